"""`bundle.json`: one schema version, strict, and without a way around its digest."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest

from her2.config.catalogue import catalogue
from her2.core.errors import UserError
from her2.core.files import canonical_json
from her2.core.section import Section
from her2.frozen.bundle import schema
from her2.frozen.bundle.read import checked, read_bundle
from her2.frozen.bundle.schema import SCHEMA_NAME, Contents
from her2.frozen.bundle.seal import parse_contents, sealed, to_bytes
from her2.frozen.development import Category, ClassAtSite, Count, Development, Number
from her2.frozen.distance import EmbeddingReference
from her2.frozen.distribution import Distribution
from her2.mil.losses import Loss
from tests.unit.bundle_makers import Parts, edit, parts, rewrite

DOCS = Path(__file__).parents[2] / "docs" / "bundles.md"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def bundle(made: Parts, tmp_path: Path) -> Path:
    return made.write(tmp_path / "a.bundle")


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        checked(path)
    return str(caught.value)


def test_it_is_read_as_it_was_written(bundle: Path) -> None:
    content = (bundle / SCHEMA_NAME).read_bytes()
    found = parse_contents(content, "here")
    assert to_bytes(found) == content
    assert found.task.class_names == ("low", "high")  # canonical JSON sorts keys, not classes


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    empty = True
    for key, one in items:
        empty = False
        yield from leaves(one, (*place, key))
    if empty:
        yield place


def test_any_edited_value_is_noticed(bundle: Path) -> None:
    values = json.loads((bundle / SCHEMA_NAME).read_text())
    places = list(leaves(values))
    assert len(places) > 150
    for place in places:
        copy = json.loads((bundle / SCHEMA_NAME).read_text())
        inner = copy
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = "edited"
        with pytest.raises(UserError, match=r"does not match its digest|schema_version"):
            parse_contents(json.dumps(copy).encode(), "here")


@pytest.mark.parametrize("version", [0, 2, 17, -1])
def test_another_schema_version_names_the_her2_that_reads_it(bundle: Path, version: int) -> None:
    def change(values: dict[str, Any]) -> None:
        values["schema_version"] = version
        values["software"]["her2"] = "9.4.2"
        values["something_new"] = {"decides": "a prediction"}

    edit(bundle, change)
    said = refusal(bundle)
    assert f"schema version {version}, of her2 9.4.2" in said
    assert "reads version 1" in said
    assert "Use her2 9.4.2" in said


@pytest.mark.parametrize("maker", [None, 3, {"a": 1}, "9\n\x1b[31m" + "x" * 500])
def test_another_schema_version_is_named_whatever_made_it(bundle: Path, maker: Any) -> None:
    edit(bundle, lambda values: values.update(schema_version=2, software={"her2": maker}))
    said = refusal(bundle)
    assert "schema version 2" in said
    assert "\n" not in said
    assert "\x1b" not in said
    assert len(said) < 500


@pytest.mark.parametrize("version", [None, "1", True, 1.0, [1]])
def test_a_version_that_is_none_is_no_bundle(bundle: Path, version: Any) -> None:
    edit(bundle, lambda values: values.update(schema_version=version))
    assert "has no schema_version" in refusal(bundle)


def _twice(content: bytes) -> bytes:
    return content.replace(b'{"combined_by"', b'{"seed":7,"combined_by"')


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_twice, "the key 'seed' is there twice"),
        (lambda c: c.replace(b'"confidence":0.95', b'"confidence":NaN'), "not finite"),
        (lambda c: c.replace(b'"confidence":0.95', b'"confidence":1e999'), "not finite"),
        (lambda c: c.replace(b'"confidence":0.95', b'"confidence":-Infinity'), "not finite"),
        (lambda c: c[:-20], "cannot be read"),
        (lambda _: b"", "cannot be read"),
        (lambda _: b"\xff\xfe", "cannot be read"),
        (lambda _: b"[" * 100_000, "nested too deep"),
        (lambda _: b"[1]", "has no schema_version"),
        (lambda _: b"null", "has no schema_version"),
    ],
)
def test_json_that_is_ambiguous_or_damaged_is_refused(
    bundle: Path, damage: Callable[[bytes], bytes], why: str
) -> None:
    before = (bundle / SCHEMA_NAME).read_bytes()
    after = damage(before)
    assert after != before
    rewrite(bundle / SCHEMA_NAME, after)
    assert why in refusal(bundle)


def test_too_large_a_file_is_not_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("her2.frozen.bundle.read.MAX_JSON_BYTES", 1000)
    assert "more than the 1,000 that are allowed" in refusal(bundle)


# Sealed again by somebody who knows how


def _embedded(values: dict[str, Any]) -> dict[str, Any]:
    """Give a bundle a reference of embeddings, and return it."""
    count = values["encoder"]["dimension"]
    known = {
        "slides": 3,
        "patients": 3,
        "mean": [0.0] * count,
        "scale": [1.0] * count,
        "components": [[0.1] * count] * 2,
        "variances": [1.0, 1.0],
        "inside": 1.0,
        "outside": 1.0,
        "distances": {"n": 3, "missing": 0, "percents": [0, 100], "values": [0.5, 2.0]},
    }
    values["development"]["embeddings"] = known  # fmt: skip
    return known


def test_a_reference_of_embeddings_of_the_encoder_is_taken(bundle: Path) -> None:
    edit(bundle, _embedded)
    assert checked(bundle)[1].development.embeddings is not None


CHANGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda v: v["folds"][0].update(weights="../../etc/passwd"), "folds.0.weights"),
    (lambda v: v["folds"][0].update(weights=".hidden"), "folds.0.weights"),
    (lambda v: v["folds"][0].update(run="a/b"), "folds.0.run"),
    (lambda v: v["folds"][1].update(run="r0f0"), "`run` is there twice"),
    (lambda v: v["folds"][0].update(weights="r0f1.safetensors"), "`weights` is there twice"),
    (lambda v: v["folds"][0].update(temperature=0.0), "folds.0.temperature"),
    (lambda v: v["folds"][0].update(share=[1.0]), "one value for each class"),
    (lambda v: v["folds"][0].update(share=[0.0, 0.0]), "r0f0: `share` and `seen` need a sum of 1"),
    (lambda v: v["folds"][1].update(seen=[1.0, 1.0]), "r0f1: `share` and `seen` need a sum of 1"),
    (lambda v: v["groupings"][0][1].update(negative=["other"]), "the task has no class other"),
    (lambda v: v["thresholds"].append(v["thresholds"][0]), "thresholds: one is there twice"),
    (lambda v: v["thresholds"][0].update(grouping="other"), "there is no grouping other"),
    (lambda v: _embedded(v)["mean"].pop(), "is not of the encoder's"),
    (lambda v: _embedded(v)["components"][0].pop(), "is not of the encoder's"),
    (lambda v: _embedded(v)["variances"].pop(), "is not of the encoder's"),
    (lambda v: v["folds"][0].update(dimension=5), "expects 5 features"),
    (lambda v: v["folds"][0]["head"].update(attention=10**9), "folds.0"),
    (lambda v: v["folds"][0]["head"].update(head="pickle"), "folds.0.head"),
    (lambda v: v.update(folds=[]), "folds"),
    (lambda v: v["files"].update({"../x": v["files"]["README.md"]}), "files"),
    (lambda v: v["files"].update({"x.py": v["files"]["README.md"]}), "x.py is no part of a bundle"),
    (lambda v: v["files"].pop("r0f0.safetensors"), "lacks r0f0.safetensors"),
    (lambda v: v["encoder"].update(mean=[0.1, 0.1, 0.1]), "is not that of this encoder"),
    (lambda v: v["encoder"].update(digest="0" * 64), "is not that of this encoder"),
    (lambda v: v["encoder"].update(architecture="hf-hub:evil/model"), "encoder.architecture"),
    (lambda v: v["encoder"].update(library="os.path/x"), "encoder.library"),
    (lambda v: v["encoder"]["arguments"].update(checkpoint_path="x"), "checkpoint_path may not"),
    (lambda v: v["encoder"]["arguments"].update(pretrained_cfg="x"), "pretrained_cfg may not"),
    (lambda v: v["encoder"]["arguments"].update(act_layer=["os.system"]), "encoder.arguments"),
    (lambda v: v["encoder"]["arguments"].update(depth=10**9), "encoder.arguments"),
    (lambda v: v["encoder"].update(included=False), "encoder.safetensors is no part"),
    (lambda v: v["hashes"].update(n=1 << 30), "hashes.n"),
    (lambda v: v.update(extra=1), "extra"),
    (lambda v: v["grid"].update(mpp=0), "grid.mpp"),
    (lambda v: v["tiling"]["options"].update(max_unheard_of=0.1), "tiling.options.max_unheard_of"),
    (lambda v: v.pop("task"), "task"),
    (lambda v: v["task"].update(classes=[["low", ["0"]]]), "task"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "place"), CHANGES)
def test_a_sealed_file_still_has_to_describe_a_bundle(
    bundle: Path, change: Callable[[dict[str, Any]], Any], place: str
) -> None:
    edit(bundle, change)
    said = refusal(bundle)
    assert "does not describe a bundle" in said
    assert place in said


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["folds"][0]["head"].update(attention=9),
        lambda v: v["folds"][0]["head"].update(hidden=9),
        lambda v: (
            v["task"].update(classes=[*v["task"]["classes"], ["more", ["4+"]]])
            or [fold.update(share=[0.2, 0.2, 0.6], seen=[0.2, 0.2, 0.6]) for fold in v["folds"]]
        ),
        lambda v: [fold.update(loss="ordinal") for fold in v["folds"]],
    ],
)
def test_weights_of_another_head_are_refused_by_name(bundle: Path, change: Any) -> None:
    edit(bundle, change)
    checked(bundle)
    with pytest.raises(UserError, match=r"r0f0.safetensors is not the model that"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", list(catalogue()))
def test_the_arguments_of_every_row_can_be_in_a_bundle(made: Parts, name: str) -> None:
    """As they are: their types are part of the encoder's digest."""
    arguments = catalogue()[name].arguments
    parts = made.with_encoder(arguments=arguments)
    found = parse_contents(to_bytes(sealed(parts.body, _files(made))), "here").encoder.arguments
    assert canonical_json(found) == canonical_json(arguments)


def test_all_problems_are_named_at_once(bundle: Path) -> None:
    edit(bundle, lambda values: values.update(seed=-1, confidence=7, licence="a\nb"))
    said = refusal(bundle)
    assert [name in said for name in ("seed:", "confidence:", "licence:")] == [True] * 3


def test_no_number_of_a_bundle_is_without_limits() -> None:
    """But figures, thresholds and losses, which are any number, and no size of anything."""
    from her2.core.section import unbounded

    free = {name for section in sections() for name in unbounded(section)}
    own = {
        "value",
        "low",
        "high",
        "lowest",
        "highest",
        "tune_loss",
        "mean",
        "std",
        "schema_version",
    }
    assert free <= own


def sections(section: type[Section] = Contents) -> Iterator[type[Section]]:
    """The sections that this schema declares, itself first."""
    yield section
    for field in section.model_fields.values():
        for kind in _kinds(field.annotation):
            own = getattr(kind, "__module__", "") == schema.__name__
            if own and isinstance(kind, type) and issubclass(kind, Section):
                yield from sections(kind)


def _kinds(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin in (tuple, list, dict, Union, UnionType, Annotated):
        for part in get_args(annotation):
            yield from _kinds(part)
    else:
        yield annotation


def field_tables() -> str:
    """The part of docs/bundles.md that lists every field."""
    parts = []
    for section in dict.fromkeys(sections()):
        name = "bundle.json" if section is Contents else section.__name__
        words = (section.__doc__ or "").split("\n")[0]
        rows = [f"| `{key}` | {field.description} |" for key, field in section.model_fields.items()]
        parts.append(
            "\n".join([f"### {name}", "", words, "", "| key | meaning |", "| --- | --- |", *rows])
        )
    return "\n\n".join(parts)


def test_every_field_is_described_in_the_docs() -> None:
    """To renew the tables: `python -m tests.unit.test_bundle_schema`."""
    assert field_tables() in DOCS.read_text(encoding="utf-8")


def test_every_fact_of_the_development_is_described_in_the_docs() -> None:
    text = DOCS.read_text(encoding="utf-8").partition("### Development")[2]
    for part in (
        Development,
        Count,
        ClassAtSite,
        Number,
        Category,
        EmbeddingReference,
        Distribution,
    ):
        assert not [name for name in part.model_fields if f"`{name}`" not in text]


def test_the_losses_are_those_of_training() -> None:
    assert get_args(schema.Fold.model_fields["loss"].annotation) == get_args(Loss)


def test_no_field_of_the_docs_is_of_another_version(made: Parts) -> None:
    assert re.search(r"schema version (\d+)", DOCS.read_text())[1] == str(schema.SCHEMA_VERSION)
    assert sealed(made.body, _files(made)).schema_version == schema.SCHEMA_VERSION


def _files(made: Parts) -> dict[str, schema.FileFacts]:
    one = schema.FileFacts(sha256="0" * 64, bytes=1)
    return dict.fromkeys(("README.md", *made.weights), one)


if __name__ == "__main__":
    print(field_tables())
