"""External slides: what is drawn and measured of them is what the frozen model says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from her2.config.external_jobs import Truth
from her2.core.errors import UserError
from her2.explanation.agreement import AGREEMENT
from her2.explanation.drawing import headline
from her2.explanation.external_attention import frozen_subsets
from her2.explanation.external_slides import ExternalSlide
from her2.explanation.faithfulness import FAITHFULNESS, FAITHFULNESS_SUMMARY, SHARES
from her2.explanation.localisation import LOCALISATION, LOCALISATION_SUMMARY
from her2.explanation.tiles import SlideTiles
from her2.frozen.model import FrozenModel
from her2.mil.bags import Bag
from her2.mil.model import predict
from her2.storage.facts import StoredSlide
from tests.unit.bag_makers import bag
from tests.unit.external_world import (
    AS_THE_TASK,
    PER_SIDE,
    SIDE_PX,
    TASK,
    TILE_PX,
    TWO_SIDES,
    ExternalWorld,
    make_external_world,
)

SCHEMAS = {
    "localisation": LOCALISATION,
    "localisation_summary": LOCALISATION_SUMMARY,
    "faithfulness": FAITHFULNESS,
    "faithfulness_summary": FAITHFULNESS_SUMMARY,
    "agreement": AGREEMENT,
}
PROBABILITIES = [f"prob_{name}" for name in TASK.classes]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, drawn_slide: Path) -> ExternalWorld:
    return make_external_world(tmp_path_factory.mktemp("external"), drawn_slide)


def test_one_slide_is_read_as_among_all(world: ExternalWorld) -> None:
    every = world.find()
    for one in every.slides:
        alone = world.find(only=one.slide_id)
        assert (alone.slides, set(alone.attention)) == ((one,), {one.slide_id})
        tiles, same = (found.source().tiles(one.slide_id) for found in (alone, every))
        assert tiles.attention.tobytes() == same.attention.tobytes()
        assert (tiles.probabilities, tiles.slide) == (same.probabilities, same.slide)
    assert world.find(only="none").slides == ()


@pytest.fixture(scope="module")
def frozen(world: ExternalWorld) -> FrozenModel:
    return world.frozen()


@pytest.fixture(scope="module")
def drawn(
    world: ExternalWorld, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """Four slides in the classes of two sides, one without a label, in the formats with values."""
    folder = tmp_path_factory.mktemp("drawn")
    formats = ("png", "parquet", "geojson")
    return folder, world.draw(folder, truth=TWO_SIDES, slides=4, formats=formats)


def predicted(world: ExternalWorld) -> dict[str, np.ndarray]:
    """Return slide -> the stored probabilities of the task's classes."""
    table = pl.read_parquet(world.predictions / "predictions.parquet")
    values = table.select(PROBABILITIES).to_numpy()
    return dict(zip(table["slide_id"], values, strict=True))


def stored_attention(world: ExternalWorld) -> dict[str, np.ndarray]:
    table = pl.read_parquet(world.predictions / "attention.parquet")
    return {name: np.array(values) for name, values in table.iter_rows()}


def masks_of(folder: Path, names: list[str]) -> Path:
    """The first column of each slide's tiles is positive."""
    folder.mkdir()
    truth = np.zeros((SIDE_PX // 8, SIDE_PX // 8), np.uint8)
    truth[:, : TILE_PX // 8] = 255
    for name in names:
        cv2.imwrite(str(folder / f"{name}.png"), truth)
    return folder


# Pictures


@pytest.mark.parametrize(
    ("label", "count", "said"),
    [
        (
            "2+",
            25,
            "scored 2+, predicted 1+ (P = 0.61) by the mean of 25 fold models,"
            " developed on other patients",
        ),
        ("2+", 1, "scored 2+, predicted 1+ (P = 0.61) by one model, developed on other patients"),
        (
            None,
            3,
            "score not known, predicted 1+ (P = 0.61) by the mean of 3 fold models,"
            " developed on other patients",
        ),
    ],
)
def test_the_headline_says_whose_prediction_it_is(label: str | None, count: int, said: str) -> None:
    tiles = SlideTiles(
        of=ExternalSlide("s", "p", label, count),
        class_names=("0", "1+"),
        coords=np.zeros((1, 2), np.int32),
        slide=StoredSlide("f", (0.5, 0.5), "metadata", (128.0, 128.0), (768, 768)),
        encoder_px=64,
        attention=np.ones(1, np.float32),
        probabilities=(0.39, 0.61),
        model={},
    )
    first, *others = headline(tiles)
    assert first == "s"
    assert " ".join(others) == said


def test_a_drawn_slide_has_the_attention_and_the_summed_probabilities_that_were_stored(
    world: ExternalWorld, drawn: tuple[Path, list[dict[str, Any]]]
) -> None:
    folder, rows = drawn
    for row in rows:
        name = row["slide_id"]
        path = folder / f"slides/{name}.parquet"
        np.testing.assert_array_equal(
            pl.read_parquet(path)["attention"], stored_attention(world)[name]
        )
        facts = json.loads(pq.read_schema(path).metadata[b"her2"])
        assert (facts["cohort"], facts["models"], facts["label"]) == ("yale", 3, row["label"])
        assert not {"fold", "repeat", "model"} & set(facts)
        geojson = json.loads((folder / f"slides/{name}.geojson").read_text())
        assert geojson["her2"]["class_names"] == ["negative", "positive"]
        # The task's class is 0, but the other two together are more probable.
        negative, *others = predicted(world)[name]
        assert negative == max(negative, *others)
        assert row["predicted"] == ("positive" if sum(others) > negative else "negative")
    assert "positive" in {row["predicted"] for row in rows}


@pytest.mark.parametrize("truth", [AS_THE_TASK, TWO_SIDES])
def test_probabilities_are_the_stored_ones_summed_to_the_classes_of_the_truth(
    world: ExternalWorld, truth: Truth
) -> None:
    source = world.find(truth=truth).source()
    for name, stored in predicted(world).items():
        tiles = source.tiles(name)
        sums = [sum(stored[index] for index in side) for side in truth.sides]
        assert tiles.probabilities == pytest.approx(sums, abs=1e-12)
        assert tiles.predicted == tiles.class_names[int(np.argmax(sums))]


def test_slides_of_all_classes_and_without_a_label_are_drawn_and_listed(
    drawn: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, rows = drawn
    assert [row["label"] for row in rows] == sorted(
        (row["label"] for row in rows), key=["negative", "positive", None].index
    )
    assert {row["label"] for row in rows} == {"negative", "positive", None}
    assert json.loads((folder / "heatmaps.json").read_text()) == rows
    for row in rows:
        assert row["models"] == 3
        for path in (row["picture"], row["tile_strip"], *row["files"]):
            assert (folder / path).stat().st_size > 0
    scores = json.loads((folder / "tiles.json").read_text())
    assert [(one["label"], one["slides"], one["patients"]) for one in scores] == [
        ("negative", 2, 2),
        ("positive", 5, 4),
    ]
    assert {(tile["slide_id"][0], tile["models"]) for tile in scores[0]["tiles"]} == {("n", 3)}


def test_the_lists_have_the_columns_of_development_with_models_for_the_fold(
    drawn: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, rows = drawn
    assert set(rows[0]) == {
        "slide_id", "patient_id", "label", "predicted", "models", "picture", "panels", "tiles",
        "um_per_px", "files", "tile_strip",
    }  # fmt: skip
    (first, *_), _ = (one["tiles"] for one in json.loads((folder / "tiles.json").read_text()))
    assert set(first) == {
        "end", "slide_id", "patient_id", "models", "x_level0_px", "y_level0_px",
        "width_level0_px", "height_level0_px", "attention_times_tiles",
    }  # fmt: skip


def test_the_truth_of_the_cohort_is_a_panel(world: ExternalWorld, tmp_path: Path) -> None:
    (row,) = world.draw(tmp_path, slides=1, masks=masks_of(tmp_path / "m", list(world.tiles)))
    assert row["panels"] == ["thumbnail", "attention", "truth"]


def without_labels(world: ExternalWorld) -> pl.DataFrame:
    null = pl.lit(None, pl.String)
    return pl.read_parquet(world.table).with_columns(label_her2=null, label_status=null)


def test_a_cohort_without_labels_is_drawn_and_its_scores_say_why_they_have_no_tiles(
    world: ExternalWorld, tmp_path: Path
) -> None:
    (tmp_path / "w").mkdir()
    blind = world.copy(tmp_path / "w", slides=without_labels(world))
    rows = blind.draw(tmp_path / "out", slides=2)
    assert [row["label"] for row in rows] == [None, None]
    assert all((tmp_path / "out" / row["picture"]).exists() for row in rows)
    scores = json.loads((tmp_path / "out" / "tiles.json").read_text())
    assert [one["label"] for one in scores] == list(TASK.classes)
    assert {one["note"] for one in scores} == {"no external slide of this score has features"}


def none_usable(world: ExternalWorld, folder: Path) -> ExternalWorld:
    folder.mkdir()
    tables = {
        name: pl.read_parquet(world.predictions / f"{name}.parquet").clear()
        for name in ("predictions", "attention")
    }
    return world.copy(folder, **tables)


def test_a_cohort_without_a_usable_slide_has_empty_lists_and_folders(
    world: ExternalWorld, tmp_path: Path
) -> None:
    assert none_usable(world, tmp_path / "w").draw(tmp_path / "out") == []
    assert json.loads((tmp_path / "out" / "heatmaps.json").read_text()) == []
    assert len(json.loads((tmp_path / "out" / "tiles.json").read_text())) == 3
    assert all((tmp_path / "out" / name).is_dir() for name in ("slides", "strips", "scores"))


# Measures


@pytest.mark.parametrize("masked", [False, True])
def test_the_tables_are_those_of_development(
    world: ExternalWorld, tmp_path: Path, masked: bool
) -> None:
    masks = masks_of(tmp_path / "m", list(world.tiles)) if masked else None
    tables = world.measure(tmp_path / "out", masks=masks, faithfulness_slides=2)
    assert list(tables) == list(SCHEMAS)
    for name, schema in SCHEMAS.items():
        assert dict(tables[name].schema) == schema
        assert pl.read_parquet(tmp_path / "out" / f"{name}.parquet").equals(tables[name])
    if not masked:
        (row,) = tables["localisation_summary"].to_dicts()
        assert row["note"] == "not defined: no validation.yale.masks"


def test_attention_is_located_on_every_external_slide_with_or_without_a_label(
    world: ExternalWorld, tmp_path: Path
) -> None:
    masks = masks_of(tmp_path / "m", list(world.tiles))
    tables = world.measure(tmp_path / "out", masks=masks, faithfulness_slides=0, truth=TWO_SIDES)
    located = tables["localisation"]
    assert located["slide_id"].to_list() == sorted(world.tiles)
    for row in located.iter_rows(named=True):
        values = stored_attention(world)[row["slide_id"]]
        index = sorted(world.tiles, key=world.tiles.__getitem__).index(row["slide_id"])
        kept = np.sort(np.random.default_rng(index + 100).permutation(PER_SIDE**2)[: len(values)])
        inside = kept % PER_SIDE == 0
        assert row["inside_tiles"] == inside.sum()
        assert row["mass_share"] == pytest.approx(values[inside].sum() / values.sum(), rel=1e-5)
        expected = {"n": "negative", "u": None}.get(row["slide_id"][0], "positive")
        assert row["label"] == expected
    summary = tables["localisation_summary"].filter(measure="auc")
    assert dict(summary.select("class", "slides").iter_rows()) == {
        "all": 9, "negative": 2, "positive": 5,
    }  # fmt: skip


def test_a_point_of_a_curve_is_what_the_frozen_model_predicts_of_the_remaining_tiles(
    world: ExternalWorld, frozen: FrozenModel
) -> None:
    whole = world.bag("q0-a")
    features = whole.store.features
    subsets = [np.arange(len(whole)), np.arange(0, len(whole), 3), np.array([5])]
    found = frozen_subsets(frozen, TWO_SIDES, whole, subsets)
    for rows, own in zip(subsets, found, strict=True):
        negative, *others = frozen.predict(bag("rest", features[rows], None)).probabilities
        assert own == pytest.approx([negative, sum(others)], abs=1e-6)
    negative, *others = predicted(world)["q0-a"]
    assert found[0] == pytest.approx([negative, sum(others)], abs=1e-6)


def test_the_curves_follow_the_class_of_the_truth_from_what_was_predicted(
    world: ExternalWorld, tmp_path: Path
) -> None:
    table = world.measure(tmp_path, truth=TWO_SIDES, faithfulness_slides=99)["faithfulness"]
    sides = {name: max(p[0], p[1:].sum()) for name, p in predicted(world).items()}
    patients = {name.split("-")[0] for name in sides}
    means = [np.mean([v for n, v in sides.items() if n.startswith(p)]) for p in patients]
    for curve, share in (("deletion", 0.0), ("insertion", 1.0)):
        for value in table.filter(curve=curve, share=share)["value"]:
            assert value == pytest.approx(np.mean(means), abs=1e-6)
    assert len(table) == 2 * sum(map(len, SHARES.values()))
    assert set(table["slides"]) == {9}


def test_agreement_is_that_of_the_fold_models_over_the_followed_slides(
    world: ExternalWorld, frozen: FrozenModel, tmp_path: Path
) -> None:
    (row,) = world.measure(tmp_path, faithfulness_slides=99)["agreement"].to_dicts()
    assert (row["slides"], row["pairs"], row["note"]) == (9, 3, "")

    def agreement(whole: Bag) -> float:
        maps = [predict(fold.saved.model, whole).attention for fold in frozen.folds]
        pairs = [(0, 1), (0, 2), (1, 2)]
        return float(np.mean([spearmanr(maps[i], maps[j])[0] for i, j in pairs]))

    rho = {name: agreement(world.bag(name)) for name in world.tiles}
    patients = {name.split("-")[0] for name in rho}
    means = [np.mean([v for n, v in rho.items() if n.startswith(p)]) for p in patients]
    assert row["value"] == pytest.approx(np.mean(means), abs=1e-6)


def notes(tables: dict[str, pl.DataFrame]) -> dict[str, set[str]]:
    summaries = ("localisation_summary", "faithfulness_summary", "agreement")
    for name in summaries:
        assert tables[name]["value"].null_count() == len(tables[name]) > 0
    return {name: set(tables[name]["note"]) for name in summaries}


def test_a_cohort_without_a_usable_slide_has_tables_with_the_reason(
    world: ExternalWorld, tmp_path: Path
) -> None:
    masks = masks_of(tmp_path / "m", list(world.tiles))
    tables = none_usable(world, tmp_path / "w").measure(tmp_path / "out", masks=masks)
    found = notes(tables)
    assert set().union(*found.values()) == {"not defined: no external slide has features"}
    assert {name: dict(table.schema) for name, table in tables.items()} == SCHEMAS


def test_without_followed_slides_the_tables_name_the_key(
    world: ExternalWorld, tmp_path: Path
) -> None:
    found = notes(world.measure(tmp_path / "out", faithfulness_slides=0))
    said = {"not defined: no external slide was followed (heatmaps.faithfulness_slides)"}
    assert found["faithfulness_summary"] == found["agreement"] == said


def test_one_model_agrees_with_nobody(world: ExternalWorld, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    table = pl.read_parquet(world.predictions / "predictions.parquet")
    single = world.copy(tmp_path / "w", predictions=table.with_columns(models=1))
    found = notes(single.measure(tmp_path / "out", faithfulness_slides=0))
    assert found["agreement"] == {"not defined: one model predicted the cohort"}
    with pytest.raises(UserError, match="predicted by 1 models, but score / e / abmil has 3"):
        single.measure(tmp_path / "out")


def test_uniform_attention_needs_no_model_and_gives_reasons(
    world: ExternalWorld, tmp_path: Path
) -> None:
    (tmp_path / "w").mkdir()
    rows = [(name, [1 / n] * n) for name, n in sorted(world.tiles.items())]
    schema = {"slide_id": pl.String, "attention": pl.List(pl.Float32)}
    even = world.copy(tmp_path / "w", attention=pl.DataFrame(rows, schema=schema, orient="row"))
    masks = masks_of(tmp_path / "m", list(world.tiles))
    found = notes(even.measure(tmp_path / "out", masks=masks))
    assert all("every tile has the same attention" in one for one in set().union(*found.values()))


def test_a_cohort_of_one_class_is_measured_and_the_other_classes_say_why_not(
    world: ExternalWorld, tmp_path: Path
) -> None:
    (tmp_path / "w").mkdir()
    slides = pl.read_parquet(world.table).with_columns(label_her2=pl.lit("3+"))
    tables = world.copy(tmp_path / "w", slides=slides).measure(
        tmp_path / "out", masks=masks_of(tmp_path / "m", list(world.tiles))
    )
    summary = tables["localisation_summary"]
    assert summary.filter(pl.col("class") == "3+")["value"].null_count() == 0
    absent = summary.filter(pl.col("class").is_in(["0", "2+"]))
    assert absent["value"].null_count() == len(absent)
    assert set(absent["note"]) == {"not defined: no external slide has a ground truth"}
    assert tables["faithfulness"]["value"].null_count() == 0


# What does not go together


def without(table: pl.DataFrame) -> pl.DataFrame:
    return table.filter(pl.col("slide_id") != "q0-a")


def shorter(table: pl.DataFrame) -> pl.DataFrame:
    named = pl.col("slide_id") == "q0-a"
    cut = pl.when(named).then(pl.col("attention").list.head(5)).otherwise("attention")
    return table.with_columns(cut)


def not_finite(table: pl.DataFrame, column: str) -> pl.DataFrame:
    named = pl.col("slide_id") == "q0-a"
    return table.with_columns(pl.when(named).then(float("nan")).otherwise(column).alias(column))


@pytest.mark.parametrize(
    ("which", "spoil", "problem"),
    [
        ("attention", without, "has no attention"),
        ("attention", shorter, "has attention for 5 tiles but features of 26 tiles"),
        (
            "attention",
            lambda t: t.with_columns(pl.col("attention") * float("nan")),
            "has attention that is not finite",
        ),
        (
            "predictions",
            lambda t: not_finite(t, "prob_2+"),
            "has probabilities that are not finite",
        ),
        (
            "predictions",
            lambda t: t.with_columns(pl.col("slide_id").replace("q0-a", "lost-a")),
            "is not in the cohort's table",
        ),
        (
            "slides",
            lambda t: t.filter(pl.col("slide_id") != "q0-a"),
            "is not in the cohort's table",
        ),
    ],
)
def test_predictions_that_are_not_of_these_features_stop_both_jobs_and_name_the_slide(
    world: ExternalWorld, tmp_path: Path, which: str, spoil: Any, problem: str
) -> None:
    path = world.table if which == "slides" else world.predictions / f"{which}.parquet"
    (tmp_path / "w").mkdir()
    bad = world.copy(tmp_path / "w", **{which: spoil(pl.read_parquet(path))})
    for job in (bad.draw, bad.measure):
        with pytest.raises(UserError, match=rf"(?s)validation\.yale.*(q0|lost)-a: {problem}"):
            job(tmp_path / "out")


def test_all_slides_that_do_not_fit_are_named_at_once(world: ExternalWorld, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    attention = pl.read_parquet(world.predictions / "attention.parquet").head(6)
    with pytest.raises(UserError, match=r"(?s)q1-a: has no.*u0-a: has no.*u1-a: has no"):
        world.copy(tmp_path / "w", attention=attention).draw(tmp_path / "out")


def test_contradicting_labels_of_a_patient_follow_the_rule_of_the_figures(
    world: ExternalWorld, tmp_path: Path
) -> None:
    (tmp_path / "w").mkdir()
    named = pl.col("slide_id") == "p0-a"
    other = pl.when(named).then(pl.lit("2+")).otherwise("label_her2").alias("label_her2")
    two = world.copy(tmp_path / "w", slides=pl.read_parquet(world.table).with_columns(other))
    with pytest.raises(UserError, match="p0"):
        two.draw(tmp_path / "out")
    found = two.find(patient_label="worst")
    labels = {slide.slide_id: slide.label for slide in found.slides}
    assert labels["p0-a"] == labels["p0-b"] == "3+"


def test_a_slide_that_is_gone_is_a_row_with_its_reason(
    world: ExternalWorld, tmp_path: Path
) -> None:
    rows = tuple(replace(row, path="gone.svs") for row in world.cohort.rows)
    gone = replace(world, cohort=replace(world.cohort, rows=rows))
    (row,) = gone.draw(tmp_path, slides=1)
    assert row["reason"] == "the file does not exist"
    scores = json.loads((tmp_path / "tiles.json").read_text())
    assert {one["note"] for one in scores} == {"none of the slides could be read"}
