"""What a model was developed on, and where a slide lies outside of it."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from her2.core.errors import UserError
from her2.core.files import canonical_json
from her2.frozen.cautions import Described, cautions, percentiles
from her2.frozen.development import Development, development_of, read_development
from her2.frozen.distance import reference_of
from her2.frozen.distribution import Distribution, distribution, rounded
from her2.storage.facts import SlideFacts
from tests.unit.frozen_makers import make
from tests.unit.prediction_makers import SCORE

SLIDES = 40


def slides() -> pl.DataFrame:
    """20 patients with two slides each; patient i has class i modulo 4."""
    return pl.DataFrame(
        {
            "slide_id": [f"s{i:02d}" for i in range(SLIDES)],
            "patient_id": [f"p{i // 2:02d}" for i in range(SLIDES)],
            "label": [i // 2 % 4 for i in range(SLIDES)],
        },
        schema_overrides={"label": pl.Int32},
    )


def cohort(**changed: object) -> pl.DataFrame:
    values = {
        "slide_id": [f"s{i:02d}" for i in range(SLIDES)],
        "grid": ["g"] * SLIDES,
        "site": ["north" if i < 30 else None for i in range(SLIDES)],
        "scanner": ["GT450" if i < 10 else "AT2" for i in range(SLIDES)],
        "vendor": ["aperio"] * 39 + ["leica"],
        "tissue_mm2": np.linspace(10, 49, SLIDES),
        "tiles": np.arange(SLIDES) * 100 + 100,
        "width_px": [1000] * SLIDES,
        "height_px": [2000] * SLIDES,
        "mpp_x": [0.25] * 20 + [0.26] * 20,
        "mpp_y": [0.25] * 20 + [0.26] * 20,
        "column_age": [*range(40, 79), None],
    }
    return pl.DataFrame(values | changed)


@pytest.fixture(scope="module")
def development() -> Development:
    means = np.random.default_rng(0).normal(size=(SLIDES, 8))
    reference = reference_of(means, np.arange(SLIDES))
    return development_of(slides(), cohort(), SCORE, columns=["age"], embeddings=reference)


def test_patients_and_slides_are_counted_by_class_and_site(development: Development) -> None:
    assert (development.patients, development.slides) == (20, 40)
    assert [(c.name, c.patients, c.slides) for c in development.classes] == [
        (name, 5, 10) for name in SCORE.class_names
    ]
    assert [(c.name, c.patients, c.slides) for c in development.sites] == [
        ("(missing)", 5, 10), ("north", 15, 30),
    ]  # fmt: skip
    both = {(c.class_name, c.site): (c.patients, c.slides) for c in development.classes_at_sites}
    assert sum(slides for _, slides in both.values()) == 40
    assert both["0", "north"] == (4, 8)  # patients 0, 4, 8 and 12
    assert both["3+", "(missing)"] == (2, 4)  # patients 15 and 19
    assert [c.class_name for c in development.classes_at_sites][:2] == ["0", "0"]
    assert [(c.name, c.slides) for c in development.vendors] == [("aperio", 39), ("leica", 1)]
    assert [(c.name, c.slides) for c in development.known("scanner")] == [
        ("AT2", 30),
        ("GT450", 10),
    ]
    assert [c.name for c in development.known("site")] == ["north"]


def test_a_class_without_slides_is_counted_as_zero() -> None:
    few = slides().filter(pl.col("label") != 2)
    found = development_of(few, cohort(), SCORE)
    assert [(c.name, c.slides) for c in found.classes] == [
        ("0", 10), ("1+", 10), ("2+", 0), ("3+", 10),
    ]  # fmt: skip


def test_numbers_have_quantiles_in_their_own_units(development: Development) -> None:
    assert {one.name: one.unit for one in development.numbers} == {
        "tissue": "mm2", "tiles": "", "size": "px", "mpp": "", "column_age": "",
    }  # fmt: skip
    table = cohort()
    expected = {
        "tissue": table["tissue_mm2"],
        "tiles": table["tiles"],
        "size": table["width_px"] * table["height_px"],
        "mpp": table["mpp_x"],
        "column_age": table["column_age"],
    }
    for one in development.numbers:
        values = expected[one.name].drop_nulls().to_numpy()
        found = one.distribution
        assert found.percents == (0, 1, 5, 25, 50, 75, 95, 99, 100)
        np.testing.assert_allclose(
            found.values, np.quantile(values, np.array(found.percents) / 100), rtol=1e-5
        )
        assert (found.n, found.missing) == (len(values), 40 - len(values))


def test_the_same_results_give_the_same_bytes_and_no_name_of_a_slide(
    development: Development,
) -> None:
    again = development_of(
        slides().reverse(),
        cohort().sample(fraction=1, shuffle=True, seed=3),
        SCORE,
        columns=["age"],
        embeddings=development.embeddings,
    )
    text = canonical_json(development.model_dump(mode="json"))
    assert canonical_json(again.model_dump(mode="json")) == text
    assert Development.model_validate(json.loads(text)) == development
    for name in [*slides()["slide_id"], *slides()["patient_id"]]:
        assert f'"{name}"' not in text


def test_a_model_card_has_its_facts_in_lines(development: Development) -> None:
    assert development.sentences() == (
        "40 slides of 20 patients",
        "classes: 0 (10 slides of 5 patients); 1+ (10 slides of 5 patients); "
        "2+ (10 slides of 5 patients); 3+ (10 slides of 5 patients)",
        "sites: (missing) (10 slides of 5 patients); north (30 slides of 15 patients)",
        "files from: aperio (39 slides of 20 patients); leica (1 slides of 1 patients)",
        "scanner: AT2 (30 slides of 15 patients); GT450 (10 slides of 5 patients)",
        "tissue area (mm2): median 29.5, 10 to 49",
        "number of tiles: median 2,050, 100 to 4,000",
        "slide size (px): median 2,000,000, 2,000,000 to 2,000,000",
        "um/px: median 0.255, 0.25 to 0.26",
        "age: median 59, 40 to 78",
    )


def test_a_cohort_of_other_slides_is_refused() -> None:
    with pytest.raises(UserError, match=r"lacks slides of the folds table on this grid \(s39\)"):
        development_of(slides(), cohort().head(39), SCORE)
    with pytest.raises(UserError, match=r"it has none"):
        development_of(slides().clear(), cohort(), SCORE)


@pytest.mark.usefixtures("one_thread")
def test_a_results_folder_has_all_of_it(tmp_path: Path) -> None:
    """Unlabelled slides and slides without features are no development."""
    results = make(tmp_path)
    world = results.world
    entries = world.entries()
    lost = "n1-a"
    world.set_entries(entries | {lost: type(entries[lost])("failed", "decoder died")})
    names = sorted(entries)
    table = pl.DataFrame(
        {
            "slide_id": names * 2,
            "grid": ["g"] * len(names) + ["other"] * len(names),
            "site": [None] * 2 * len(names),
            "vendor": ["aperio"] * 2 * len(names),
            "tissue_mm2": [5.0] * 2 * len(names),
            "tiles": [entries[name].tiles for name in names] * 2,
            "width_px": [10] * 2 * len(names),
            "height_px": [10] * 2 * len(names),
            "mpp_x": [0.5] * 2 * len(names),
            "mpp_y": [0.5] * 2 * len(names),
        },
        schema_overrides={"site": pl.String},
    )
    table.write_parquet(tmp_path / "slides.parquet")
    found = read_development(
        world.folds, tmp_path / "slides.parquet", world.features, grid="g",
        task=world.spec.task, cache=world.cache,
    )  # fmt: skip
    labelled = {name for name in names if not name.startswith("u")} - {lost}
    assert found.slides == len(labelled)
    assert found.patients == 23
    assert found.embeddings is not None
    assert found.embeddings.slides == len(labelled)
    tiles = found.number("tiles")
    assert tiles is not None
    assert tiles.highest == max(entries[name].tiles for name in labelled)


@pytest.mark.parametrize("value", [0.0, 1.0, 3.7, 55.5, 99.0, 100.0])
def test_a_percentile_is_the_share_of_smaller_values(value: float) -> None:
    spread = distribution(np.arange(101, dtype=float))
    assert spread.percentile(value) == pytest.approx(value)
    assert spread.percentile(-1) == 0
    assert spread.percentile(101) == 100


def test_equal_values_count_half() -> None:
    spread = distribution(np.array([1.0] * 50 + [2.0] * 50))
    assert spread.percentile(1.0) == pytest.approx(12.5, abs=12.5)
    assert spread.percentile(0.9) == 0
    assert spread.percentile(2.1) == 100
    assert Distribution(n=3, percents=(0, 50, 100), values=(4, 4, 4)).percentile(4) == 50


def test_numbers_are_kept_with_six_digits() -> None:
    assert rounded(0.123456789) == 0.123457
    assert rounded(123456789.0) == 123457000.0
    assert rounded(0.0) == 0.0


# Cautions


def slide(**changed: object) -> Described:
    values = {"mpp": 0.25, "vendor": "aperio", "tissue_mm2": 20.0, "tiles": 500, "distance": 1.0}
    return Described(**(values | changed))


def test_a_slide_like_those_of_development_has_no_caution(development: Development) -> None:
    assert cautions(slide(), development) == []
    assert cautions(slide(scanner="AT2", distance=None), development) == []
    inside = percentiles(slide(tissue_mm2=29.5), development)
    assert inside["tissue_mm2"] == pytest.approx(50)
    assert all(value is not None and 0 <= value <= 100 for value in inside.values())
    assert percentiles(slide(distance=None), development)["distance"] is None


OUTSIDE: dict[str, tuple[dict[str, object], int | None, str]] = {
    "um/px": (
        {"mpp": 0.46}, 100,
        "Its um/px of 0.46 is outside 0.25-0.26, the range of the development slides.",
    ),
    "vendor": (
        {"vendor": "hamamatsu"}, None,
        "Its vendor hamamatsu is that of no development slide: 39 of aperio, 1 of leica.",
    ),
    "scanner": (
        {"scanner": "S360"}, None,
        "Its scanner S360 is that of no development slide: 30 of AT2, 10 of GT450.",
    ),
    "tissue area": (
        {"tissue_mm2": 0.2}, 0,
        "Its tissue area of 0.2 mm2 is outside 10-49 mm2, the range of the development slides.",
    ),
    "tiles": (
        {"tiles": 12_000}, 100,
        "Its 12,000 tiles are outside 100-4,000, the range of the development slides.",
    ),
    "appearance": (
        {"distance": 41.0}, 100,
        "Its tiles look unlike those of development: distance 41, beyond every development slide ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OUTSIDE)
def test_what_lies_outside_of_development_is_said_with_its_percentile(
    development: Development, what: str
) -> None:
    changed, percentile, sentence = OUTSIDE[what]
    (found,) = cautions(slide(**changed), development)
    assert (found.what, found.percentile) == (what, percentile)
    assert found.sentence.startswith(sentence)
    assert found.sentence.endswith(".")


def test_all_that_lies_outside_is_said_at_once(development: Development) -> None:
    changed: dict[str, object] = {}
    for values, _, _ in OUTSIDE.values():
        changed |= values
    assert [one.what for one in cautions(slide(**changed), development)] == list(OUTSIDE)


def test_a_far_slide_within_the_range_has_its_percentile(development: Development) -> None:
    reference = development.embeddings
    assert reference is not None
    distance = (reference.distances.at(99) + reference.distances.highest) / 2
    (found,) = cautions(slide(distance=distance), development)
    assert found.percentile is not None
    assert 99 < found.percentile < 100
    assert f"beyond {found.percentile:.1f} % of the development slides" in found.sentence
    assert cautions(slide(distance=reference.distances.at(98.9)), development) == []


@pytest.mark.parametrize(("mpp", "said"), [(0.2649, False), (0.2661, True), (0.2451, False)])
def test_um_per_px_may_differ_a_little(development: Development, mpp: float, said: bool) -> None:
    assert bool(cautions(slide(mpp=mpp), development)) == said


def test_where_all_slides_of_development_agree_their_value_is_named() -> None:
    same = development_of(slides(), cohort(mpp_x=[0.5] * 40, mpp_y=[0.5] * 40), SCORE)
    (found,) = cautions(slide(mpp=0.25), same)
    assert found.sentence == "Its um/px of 0.25 is not 0.5, which every development slide has."


def test_nothing_is_said_of_what_development_does_not_know() -> None:
    known = development_of(
        slides(),
        cohort(scanner=pl.Series([None] * 40, dtype=pl.String),
               tissue_mm2=pl.Series([None] * 40, dtype=pl.Float64)),
        SCORE,
    )  # fmt: skip
    assert cautions(slide(scanner="S360", tissue_mm2=1e6, distance=50.0), known) == []


def test_facts_of_tiling_are_what_cautions_look_at() -> None:
    facts = SlideFacts(
        fingerprint="f", vendor="leica", width_px=10, height_px=10, mpp_x=0.2, mpp_y=0.45,
        mpp_source="file", tissue_mm2=3.0,
    )  # fmt: skip
    found = Described.of(facts, 7, scanner="AT2", distance=2.0)
    assert found == Described(
        mpp=pytest.approx(0.3), vendor="leica", tissue_mm2=3.0, tiles=7, scanner="AT2", distance=2.0
    )
