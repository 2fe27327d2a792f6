"""`import her2` is cheap, and gives the names that a script needs."""

import ast
import inspect
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import her2

CLASSES = {"Cohort", "Config", "Evaluation", "FeatureStore", "FrozenEncoder", "FrozenModel",
           "FrozenPrediction", "Given", "Results", "Slide", "SlideError", "TileError", "Tiles",
           "UserError"}  # fmt: skip
"""Public classes. Scripts make none of these themselves but `Results`, and catch the errors."""

CALLS = {
    "draw_heatmap": "store, attention, slide, *, out=None, formats=('png', 'geojson'), name=None, "
    "label=None, synthetic=False",
    "embed": "given, encoder, *, cache=None, batch_size=64, threads=None, scratch=None",
    "evaluate": "predictions, *, classes=None, ordinal=False, evaluation=None, seed=2411",
    "load_config": "path",
    "load_encoder": "given, *, seed=2411, cache=None, **options",
    "load_model": "path, *, task=None, encoder=None, head=None, threads=None",
    "open_slide": "path, mpp=None",
    "open_store": "path, key=None",
    "read_cohort": "slides, *, root=None, tasks=mappingproxy({}), patient_label='refuse', "
    "named=None, rules=LabelRules(missing=(), unmapped='error'), fixed_split=False, asked=None, "
    "slides_for=None, where='cohort'",
    "read_given": "path, form=None",
    "tile": "slide, mpp, size, *, tiling=None, annotation=None, mask=None, seed=None, cache=None",
    "FeatureStore.to_anndata": "self",
    "FrozenEncoder.module": "self",
    "FrozenModel.predict": "self, given",
    "Results": "folder",
    "Results.table": "self, name",
}
"""Scripts of others call these. A name or a parameter that goes away breaks them."""

VALUES = {
    "Evaluation": ("assumed", "calibration", "classes", "comparison", "metrics", "models",
                   "reliability", "tables"),
    "FeatureStore": ("attributes", "chunks", "coords", "dimension", "features", "gather",
                     "identity", "mpp", "path"),
    "FrozenEncoder": ("card", "dimension", "folder", "mpp", "size"),
    "FrozenPrediction": ("attention", "class_names", "each", "predicted", "probabilities",
                         "spread"),
    "Results": ("calibration", "cohort", "comparison", "config", "folds", "headline", "metrics",
                "missing", "models", "names", "patients", "predictions", "slides"),
    "Slide": ("close", "region", "scale", "thumbnail"),
    "Tiles": ("coords", "mpp", "picture", "size", "slide", "table"),
}  # fmt: skip
HEAVY = {"anndata", "cv2", "matplotlib", "numpy", "pandas", "polars", "pyarrow", "pydantic",
         "torch", "typer", "zarr"}  # fmt: skip


def public(name: str) -> Any:
    value: Any = her2
    for part in name.split("."):
        value = getattr(value, part)
    return value


def parameters(value: Any) -> str:
    """A signature without its types, which only become wider."""
    found = inspect.signature(value)
    plain = [one.replace(annotation=inspect.Parameter.empty) for one in found.parameters.values()]
    return str(found.replace(parameters=plain, return_annotation=inspect.Signature.empty))[1:-1]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_importing_the_package_imports_nothing_else_of_it() -> None:
    code = "import sys, her2; print(*[name for name in sys.modules if name.startswith('her2')])"
    assert run(code).split() == ["her2"]


def test_importing_the_package_imports_no_library() -> None:
    found = set(run("import sys, her2; print(*sys.modules)").split())
    assert not found & HEAVY


def test_the_public_names_are_those_that_scripts_rely_on() -> None:
    calls = {name for name in CALLS if "." not in name}
    assert sorted(her2.__all__) == sorted(CLASSES | calls)


@pytest.mark.parametrize("name", CALLS)
def test_a_public_function_takes_what_scripts_give_it(name: str) -> None:
    assert parameters(public(name)) == CALLS[name]


@pytest.mark.parametrize("name", VALUES)
def test_what_a_public_class_tells_is_there_and_documented(name: str) -> None:
    own = public(name)
    known = {*dir(own), *getattr(own, "__dataclass_fields__", ())}
    for one in VALUES[name]:
        assert one in known, one
        found = getattr(own, one, None)
        if isinstance(found, property):
            assert found.__doc__, one


def test_type_checkers_see_the_names_where_they_are_defined() -> None:
    stub = ast.parse(Path(her2.__file__).with_suffix(".pyi").read_text())
    imports = [one for one in stub.body if isinstance(one, ast.ImportFrom)]
    told: dict[str, set[str]] = {}
    for one in imports:
        told.setdefault(one.module or "", set()).update(name.name for name in one.names)
    assert told == {home: set(names) for home, names in vars(her2)["_HOMES"].items()}


def test_importing_the_package_takes_under_50_ms_of_cpu_time() -> None:
    code = "import time; a = time.process_time(); import her2; print(time.process_time() - a)"
    assert min(float(run(code)) for _ in range(3)) < 0.05


@pytest.mark.parametrize("name", her2.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(her2, name)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(her2)


def test_another_name_is_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="module 'her2' has no attribute 'slide_opener'"):
        her2.slide_opener  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_are_told_that_the_package_is_typed() -> None:
    assert resources.files("her2").joinpath("py.typed").is_file()
