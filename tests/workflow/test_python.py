"""The Python door on a finished run: every example as it is written, and the same as the run."""

import doctest
import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import polars as pl
import pytest

import her2
from her2.storage.features import write_rows
from tests.workflow.conftest import copy
from tests.workflow.project import Project

pytestmark = pytest.mark.xdist_group("workflow")

GRID = {"mpp": 1.0, "size": 64}
TILING = {"min_tissue": 0.3, "min_tiles": 2}


@pytest.fixture(scope="module")
def opened(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the finished project, in which examples may write."""
    return copy(finished, tmp_path_factory.mktemp("python") / "project")


@pytest.fixture(autouse=True)
def here(opened: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(opened.folder)
    monkeypatch.delenv("HER2_CACHE", raising=False)


def examples() -> Iterator[Any]:
    """Every public name and method with an example in its docstring."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in her2.__all__:
        value = getattr(her2, name)
        module = inspect.getmodule(value)
        for one in finder.find(value, name, module=module, globs={}):
            if one.examples:
                yield pytest.param(one, id=one.name)


@pytest.mark.parametrize("example", [*examples()])
def test_an_example_does_what_it_says(example: doctest.DocTest) -> None:
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=said.append, clear_globs=False)
    assert not said, "".join(said)


def test_every_public_function_has_an_example() -> None:
    shown = {one.id.split(".")[0] for one in examples()}
    functions = {name for name in her2.__all__ if inspect.isfunction(getattr(her2, name))}
    assert functions | {"FeatureStore", "FrozenModel", "Results"} <= shown


def test_a_slide_embedded_by_hand_is_the_product_of_the_run() -> None:
    encoder = her2.load_encoder("results/encoders/tiny")
    own = her2.open_store("results/features/tiny/demo-007-a.zarr.zip")
    with her2.open_slide("slides/demo-007-a.svs") as slide:
        tiles = her2.tile(slide, **GRID, tiling=TILING)
        made = her2.embed(tiles, encoder, cache="empty-cache")
        found = her2.embed(tiles, encoder, cache="cache")
    assert made.identity == own.identity
    np.testing.assert_array_equal(made.features, own.features)
    np.testing.assert_array_equal(made.coords, own.coords)
    key = own.attributes["key"]
    assert made.path == Path("empty-cache/features", key[:2], f"{key}.zarr.zip")
    assert found.path == Path("cache/features", key[:2], f"{key}.zarr.zip")  # the run's own


def test_an_open_slide_is_tiled_for_the_encoder() -> None:
    encoder = her2.load_encoder("results/encoders/tiny")
    with her2.open_slide("slides/demo-007-a.svs") as slide:
        store = her2.embed(slide, encoder)
        assert len(store) == len(her2.tile(slide, encoder.mpp, encoder.size))


def test_a_section_of_the_config_is_the_encoder_of_the_run() -> None:
    section = her2.load_config("config.yaml").encoders["tiny"]
    made = her2.load_encoder(section)
    assert made.card == her2.load_encoder("results/encoders/tiny").card
    assert her2.load_encoder(section).folder == made.folder  # made once


def test_a_model_is_the_same_from_results_and_from_its_folder() -> None:
    store = her2.open_store("results/features/tiny/demo-004-a.zarr.zip")
    one = her2.load_model("results", task="score").predict(store)
    other = her2.load_model("results/models/score/tiny/abmil").predict(store)
    np.testing.assert_array_equal(one.each, other.each)
    np.testing.assert_array_equal(one.attention, other.attention)
    assert one.attention.sum() == pytest.approx(1)
    assert one.predicted == ("low", "high")[int(one.probabilities.argmax())]


def test_the_figures_of_a_run_follow_from_its_predictions_alone() -> None:
    run = her2.Results("results")
    own = run.metrics.drop("task", "encoder", "head")
    table = run.predictions.select("slide_id", "patient_id", "repeat", "fold", "seed", "role",
                                   pl.col("target").replace_strict({0: "low", 1: "high"}),
                                   "prob_low", "prob_high")  # fmt: skip
    section = run.config.evaluation
    found = her2.evaluate(table, evaluation=section, seed=run.config.seed).metrics.drop("model")
    assert found.equals(own)


def test_anndata_writes_and_reads_a_store_again() -> None:
    store = her2.open_store("results/features/tiny/demo-004-a.zarr.zip")
    store.to_anndata().write_h5ad("one.h5ad")
    found = anndata.read_h5ad("one.h5ad")
    np.testing.assert_array_equal(found.X, store.features)
    assert found.X.dtype == store.features.dtype
    np.testing.assert_array_equal(found.obs[["x_level0_px", "y_level0_px"]], store.coords)
    np.testing.assert_array_equal(found.obsm["spatial"], store.coords + 64.0)  # tiles of 128 px
    assert found.uns["her2"]["key"] == store.attributes["key"]


def test_an_unfinished_run_has_its_tables_and_says_what_is_missing(tmp_path: Path) -> None:
    run = copy(Project(Path.cwd()), tmp_path / "unfinished").folder / "results"
    for name in ("build_report", "evaluate/score/tiny/abmil"):
        (run / "stamps" / f"{name}.json").unlink()
    for path in (run / "evaluation" / "score" / "tiny" / "abmil").iterdir():
        path.unlink()
    found = her2.Results(run)
    assert found.cohort.height == 12
    assert "not finished: there is no report" in repr(found)
    with pytest.raises(her2.UserError, match="no table 'predictions': the run is not finished"):
        _ = found.predictions
    with pytest.raises(her2.UserError, match="Run snakemake to its end"):
        _ = found.config
    with pytest.raises(AttributeError, match="The tables are agreement, "):
        _ = found.headlines


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: her2.open_slide("absent.svs"), "absent.svs: the file does not exist"),
        (lambda: her2.open_slide("slides/demo-004-a.svs", mpp=90), "mpp 90 is outside"),
        (lambda: her2.open_slide("masks/demo-004-a.png"), "give them as open_slide"),
        (lambda: her2.load_encoder("results/encoders"), "is no folder with card.json"),
        (lambda: her2.load_encoder("unii"), "the catalogue has no 'unii'; did you mean"),
        (lambda: her2.load_encoder("results/encoders/tiny", mpp=1), "takes no options"),
        (lambda: her2.load_encoder({"source": "pretrain", "model": "timm/resnet10t", "mpp": 1,
                                    "size": 64, "data": "x", "init": "random", "domain": "he"}),
         "is trained by a run"),
        (lambda: her2.load_model("results", head="abmill"), "no evaluated model is --head abmill"),
        (lambda: her2.load_model("results/models/score/tiny/abmil", head="abmil"),
         "is no results folder"),
        (lambda: her2.load_model("slides"), "holds no trained model"),
        (lambda: her2.Results("slides"), "is no results folder"),
        (lambda: her2.tile("slides/demo-004-a.svs", **GRID), "is a str, no Slide; open it with"),
        (lambda: her2.embed("slides/demo-004-a.svs", "uni"), "is a str, no Slide or Tiles"),
        (lambda: her2.load_model("results").predict("a"), "is a str, no FeatureStore"),
        (lambda: her2.draw_heatmap("a", [1.0], "slides/demo-004-a.svs"), "no FeatureStore"),
        (lambda: her2.open_store("slides/demo-004-a.svs"), "is not a feature store"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_fix(attempt: Any, words: str) -> None:
    with pytest.raises((her2.UserError, her2.SlideError), match=words):
        attempt()


def test_tiles_of_another_grid_are_refused() -> None:
    encoder = her2.load_encoder("results/encoders/tiny")
    with her2.open_slide("slides/demo-004-a.svs") as slide:
        tiles = her2.tile(slide, mpp=0.5, size=64)
        with pytest.raises(her2.UserError, match=r"tile\(slide, mpp=1, size=64\)"):
            her2.embed(tiles, encoder)
        with pytest.raises(her2.UserError, match="min_tisue: unknown key"):
            her2.tile(slide, **GRID, tiling={"min_tisue": 0.3})
        with pytest.raises(her2.SlideError, match="no tile has enough tissue"):
            her2.embed(her2.tile(slide, **GRID, tiling={"min_tissue_um": 1000}), encoder)


@pytest.mark.parametrize(
    ("weights", "slide", "words"),
    [
        (np.full(3, 1 / 3), "demo-004-a", "has 18 tiles"),
        (np.array("none"), "demo-004-a", "give what a model predicted, or a weight"),
        (np.full(18, np.nan), "demo-004-a", "not finite"),
        (np.full(18, 1.0), "demo-004-a", "sums to 18, not to one"),
        (np.full(18, 1 / 18), "demo-001-a", "is not the slide"),
    ],
)
def test_attention_that_does_not_fit_is_not_drawn(
    weights: np.ndarray, slide: str, words: str, tmp_path: Path
) -> None:
    store = her2.open_store("results/features/tiny/demo-004-a.zarr.zip")
    with pytest.raises(her2.UserError, match=words):
        her2.draw_heatmap(store, weights, f"slides/{slide}.svs", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def store_like(path: Path, **changes: Any) -> her2.FeatureStore:
    """The store of a slide of the run, with other attributes."""
    own = her2.open_store("results/features/tiny/demo-004-a.zarr.zip")
    attributes = {**own.attributes, "given": {"form": "trident"}, "key": "k", "identity": None}
    attributes |= changes
    write_rows(
        path, [own.features], own.features.shape, own.features.dtype, own.coords, lambda: attributes
    )
    return her2.open_store(path)


def test_features_of_another_program_are_drawn_where_they_say_where_they_are(
    tmp_path: Path,
) -> None:
    slide = her2.open_store("results/features/tiny/demo-004-a.zarr.zip").attributes["slide"]
    weights = np.full(18, 1 / 18)
    placed = store_like(tmp_path / "a.zarr.zip", slide={**slide, "fingerprint": "of the file"})
    picture = her2.draw_heatmap(placed, weights, "slides/demo-004-a.svs")
    assert picture.width > 500
    for number, (key, words) in enumerate(
        {"size_px": "is not the slide", "mpp": "do not tell where on the slide"}.items()
    ):
        other = {**slide, key: [9, 9] if key == "size_px" else None}
        lacking = store_like(tmp_path / f"{number}.zarr.zip", slide=other)
        with pytest.raises(her2.UserError, match=words):
            her2.draw_heatmap(lacking, weights, "slides/demo-004-a.svs")


def test_an_encoder_of_another_program_embeds_nothing() -> None:
    made = her2.load_encoder("results/encoders/tiny")
    elsewhere = replace(made, card=replace(made.card, source="features"))
    slide = her2.open_slide("slides/demo-004-a.svs")
    with slide, pytest.raises(her2.UserError, match="were computed by another program"):
        her2.embed(slide, elsewhere)
