"""The estimators of robustness, against other libraries, formulas and simulations."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from her2.config.jobs import RobustnessSpec
from her2.core.errors import UserError
from her2.core.types import Floats, Ints
from her2.evaluation.robustness import probe as probing
from her2.evaluation.robustness import sample as sampling
from her2.evaluation.robustness import stage
from her2.evaluation.robustness.neighbours import Index, nearest, robustness_index
from her2.evaluation.robustness.probe import discriminant, probe, rotated
from her2.evaluation.robustness.sample import Sampled
from her2.evaluation.robustness.similarity import (
    covariance_length,
    linear_cka,
    participation_ratio,
)
from her2.evaluation.robustness.stage import measure_robustness
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, write_entries
from her2.storage.features import open_store
from tests.unit.products import write_store


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- linear probes


def test_the_shrinkage_is_scikit_learn_s() -> None:
    from sklearn.covariance import ledoit_wolf_shrinkage

    for n, d in ((60, 20), (30, 100)):
        means = generator(n).normal(size=(n, d)) @ generator(d).normal(size=(d, d))
        standard = (means - means.mean(axis=0)) / means.std(axis=0)
        assert rotated(means)[1] == pytest.approx(ledoit_wolf_shrinkage(standard), rel=1e-9)


def test_probabilities_are_those_of_scikit_learn_sdiscriminant() -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    labels = np.arange(60) % 3
    means = generator().normal(size=(60, 25)) @ generator(1).normal(size=(25, 25))
    means += 0.5 * labels[:, None]
    rows, shrinkage = rotated(means)
    standard = (means - means.mean(axis=0)) / means.std(axis=0)

    class Shrunk:
        def fit(self, part: Floats) -> "Shrunk":
            own = np.cov(part.T, bias=True)
            self.covariance_ = (1 - shrinkage) * own + shrinkage * np.eye(len(own))
            return self

    other = LinearDiscriminantAnalysis(
        solver="lsqr", covariance_estimator=Shrunk(), priors=[1 / 3] * 3
    ).fit(standard[:45], labels[:45])
    found = discriminant(rows[:45], rows[45:], labels[None, :45], 3, shrinkage)[0]
    np.testing.assert_allclose(np.exp(found), other.predict_proba(standard[45:]), atol=1e-10)


def test_random_embeddings_predict_nothing_on_average() -> None:
    sites = (np.arange(40) < 12).astype(np.int64)
    found = [
        probe(generator(seed).normal(size=(40, 60)), sites, confidence=0.95, seed=seed)
        for seed in range(15)
    ]
    areas = [one.auc.value for one in found]
    assert np.mean(areas) == pytest.approx(0.5, abs=3 * np.std(areas) / np.sqrt(len(areas)))
    assert np.mean([one.auc.mean for one in found]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([one.auc.p <= 0.05 for one in found]) <= 0.2
    assert np.mean([one.auc.low <= one.auc.value <= one.auc.high for one in found]) >= 0.8


def test_a_planted_site_is_found_and_the_figure_is_that_of_the_evaluation() -> None:
    sites = np.arange(40) % 2
    means = generator().normal(size=(40, 100))
    means[:, :10] += 1.5 * sites[:, None]
    found = probe(means, sites, confidence=0.95, seed=1)
    assert found.auc.value > 0.9
    assert found.auc.p == pytest.approx(1 / 101)
    assert found.balanced_accuracy.value > found.balanced_accuracy.high
    assert found.area.value == pytest.approx(found.auc.value, abs=1e-12)
    assert found.area.low > 0.5


@pytest.mark.parametrize("sizes", [(24, 24), (40, 8), (24, 12, 8, 6)])
def test_a_site_is_found_however_few_patients_and_many_features_there_are(
    sizes: tuple[int, ...],
) -> None:
    """scikit-learn's discriminant tells these sites apart by its decision function."""
    sites = np.repeat(np.arange(len(sizes)), sizes)
    means = generator().normal(size=(len(sites), 1024))
    means += 0.3 * generator(1).normal(size=(len(sizes), 1024))[sites]
    found = probe(means, sites, confidence=0.95, seed=0)
    assert found.auc.value > 0.99
    assert found.balanced_accuracy.value > 0.9
    assert found.balanced_accuracy.value > found.balanced_accuracy.high
    assert found.area.value == pytest.approx(found.auc.value, abs=1e-12)


def test_scores_order_patients_where_probabilities_are_0_and_1_within_rounding() -> None:
    logs = np.array([[[-800.0, 0.0], [-700.0, 0.0], [0.0, -900.0], [-np.inf, 0.0]]])
    scores = probing._ranking(logs)
    assert scores[0, :, 0].argsort().tolist() == [3, 0, 1, 2]
    assert scores.argmax(axis=2).tolist() == [[1, 1, 0, 1]]
    assert ((scores >= 0) & (scores <= 1)).all()


def test_a_repeat_without_pairs_of_patients_does_not_count() -> None:
    """Test sets of 3, 3, 2, 2 and 2 patients can each be of one group."""
    folds = np.repeat(np.arange(5), (3, 3, 2, 2, 2))
    labels = np.stack([(folds > 1).astype(np.int64), np.arange(12) % 2])
    scores = generator().random((2, 12, 2))
    undefined, defined = probing._areas(labels, scores, folds)
    assert np.isnan(undefined)
    assert 0 <= defined <= 1
    assert probing._mean(np.array([[0.5, np.nan], [np.nan, np.nan]])) == pytest.approx(
        [0.5, np.nan], nan_ok=True
    )
    assert np.isnan(probing._chance(np.array([np.nan, 0.4, 0.5]), 0.95).p)
    assert probing._chance(np.array([0.6, 0.4, np.nan]), 0.95).p == pytest.approx(1 / 2)


def test_embeddings_that_do_not_vary_are_chance() -> None:
    found = probe(np.ones((20, 5)), np.arange(20) % 2, confidence=0.95, seed=0)
    assert found.auc.value == pytest.approx(0.5)
    assert found.auc.p == 1.0
    assert np.isnan(found.area.low)


# --- neighbours


def planted(
    *, classes: float, sites: float, counts: tuple[int, int] = (4, 4), seed: int = 0
) -> tuple[NDArray[np.float32], Ints, Ints, Ints]:
    """Tiles of 64 patients whose features tell class and site as strongly as asked."""
    draw = generator(seed)
    patients = np.repeat(np.arange(64), 10)
    own = [draw.permutation(np.arange(64) % count) for count in counts]
    base = draw.normal(size=(64, 24))
    for column, (count, strength, values) in enumerate(
        zip(counts, (classes, sites), own, strict=True)
    ):
        base[:, 8 * column : 8 * column + count] += strength * np.eye(count)[values]
    tiles = base[patients] + 0.5 * draw.normal(size=(len(patients), 24))
    return tiles.astype(np.float32), patients, own[0][patients], own[1][patients]


def index(
    tiles: NDArray[np.float32], patients: Ints, classes: Ints, sites: Ints, ks: tuple[int, ...]
) -> list[Index]:
    near = nearest(tiles, patients, max(ks))
    return robustness_index(*near, patients, classes, sites, confidence=0.95, seed=3, ks=ks)


def test_the_nearest_tiles_are_scikit_learn_s_of_other_patients() -> None:
    from sklearn.neighbors import NearestNeighbors

    tiles, patients, *_ = planted(classes=0, sites=0)
    found, there = nearest(tiles, patients, 5)
    assert there.all()
    order = NearestNeighbors(n_neighbors=15, metric="cosine").fit(tiles).kneighbors(tiles)[1]
    for tile, row in enumerate(order):
        others = [other for other in row if patients[other] != patients[tile]]
        assert list(found[tile]) == others[:5]


def test_the_index_is_its_formula_counted_one_by_one() -> None:
    tiles, patients, classes, sites = planted(classes=2, sites=3, counts=(3, 2))
    classes[patients == 0] = -1  # not known
    near, _ = nearest(tiles, patients, 7)
    sums, plain, asked = [0.0, 0.0], [0, 0], 0
    for tile in np.flatnonzero(classes >= 0):
        fit = (patients != patients[tile]) & (classes >= 0)
        kinds = (
            fit & (classes == classes[tile]) & (sites != sites[tile]),
            fit & (classes != classes[tile]) & (sites == sites[tile]),
        )
        asked += 1
        for side, kind in enumerate(kinds):
            sums[side] += kind[near[tile]].sum() / kind.sum()
            plain[side] += kind[near[tile]].sum()
    (found,) = index(tiles, patients, classes, sites, (7,))
    assert found.value == pytest.approx(sums[0] / sum(sums))
    assert found.plain == pytest.approx(plain[0] / sum(plain))
    assert found.tiles == asked
    assert found.low < found.value < found.high


def test_a_balanced_design_has_the_index_of_pathorob() -> None:
    """As many classes as sites, all combinations equally frequent."""
    tiles, patients, *_ = planted(classes=0, sites=0)
    classes, sites = patients % 4, patients // 4 % 4
    (found,) = index(tiles, patients, classes, sites, (15,))
    assert found.value == pytest.approx(found.plain)
    assert found.plain_chance == pytest.approx(0.5)


@pytest.mark.parametrize("counts", [(4, 2), (2, 6)])
def test_neighbours_at_random_give_one_half_whatever_the_numbers_of_classes_and_sites(
    counts: tuple[int, int],
) -> None:
    found = [
        index(*planted(classes=0, sites=0, counts=counts, seed=seed), ks=(15,))[0]
        for seed in range(12)
    ]
    assert np.mean([one.value for one in found]) == pytest.approx(0.5, abs=0.04)
    chance = (counts[1] - 1) / (counts[0] + counts[1] - 2)
    assert np.mean([one.plain for one in found]) == pytest.approx(chance, abs=0.04)
    assert np.mean([one.low <= 0.5 <= one.high for one in found]) >= 0.75


def test_a_planted_site_lowers_the_index_and_a_planted_class_raises_it() -> None:
    (site,) = index(*planted(classes=0, sites=6), ks=(15,))
    (label,) = index(*planted(classes=6, sites=0), ks=(15,))
    assert site.high < 0.5 < label.low
    assert site.value < 0.1
    assert label.value > 0.9


def test_there_is_no_index_where_every_class_is_of_one_site() -> None:
    tiles, patients, classes, _ = planted(classes=1, sites=1)
    assert index(tiles, patients, classes, classes, (5,)) == []


# --- similarity and dimension


def test_the_estimate_is_the_unbiased_hsic() -> None:
    x = generator().normal(size=(40, 7)) + 3
    y = x[:, :3] @ generator(1).normal(size=(3, 5)) + generator(2).normal(size=(40, 5))
    n, one = 40, np.ones(40)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    expected = np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    expected = (expected - 2 / (n - 2) * one @ k @ l @ one) / (n * (n - 3))
    assert covariance_length(x, y) == pytest.approx(expected, rel=1e-9)


def test_cka_is_1_after_a_rotation_and_0_for_unrelated_features_of_many_dimensions() -> None:
    x = generator().normal(size=(120, 30))
    rotation = np.linalg.qr(generator(1).normal(size=(30, 30)))[0]
    assert linear_cka(x, 3 * x @ rotation + 2) == pytest.approx(1)
    other = generator(2).normal(size=(120, 600))
    assert abs(linear_cka(generator(3).normal(size=(120, 500)), other)) < 0.05


def test_the_participation_ratio_is_that_of_the_covariance_also_with_few_rows() -> None:
    variances = np.array([1.0] * 20 + [0.1] * 80)
    expected = variances.sum() ** 2 / (variances**2).sum()
    found = [
        participation_ratio(generator(seed).normal(size=(150, 100)) * np.sqrt(variances))
        for seed in range(20)
    ]
    assert np.mean(found) == pytest.approx(expected, rel=0.03)


def test_a_patient_of_many_slides_has_no_more_of_them_than_the_sample_has_room_for() -> None:
    names = [f"p{n % 3}-{n:03}" for n in range(120)] + ["q-0"]
    cohort = pl.DataFrame(
        {"slide_id": names, "patient_id": [name.split("-")[0] for name in names], "site": "a"}
    )
    drawn = sampling.draw_slides(cohort, names, seed=1)
    counts = dict(drawn.group_by("patient_id").len().iter_rows())
    assert counts == {"p0": 16, "p1": 16, "p2": 16, "q": 1}
    assert drawn["slide_id"].is_sorted()
    assert drawn.columns == cohort.columns
    assert sampling.PATIENTS * sampling.SLIDES <= sampling.TILES


def test_tiles_that_do_not_say_where_they_are_are_drawn_from_the_whole_slide() -> None:
    order = sampling._order(np.zeros((4000, 2), np.int32), 7)
    assert sorted(order) == list(range(4000))
    assert order[:64].min() < 1000 < 3000 < order[:64].max()


def test_tiles_that_encoders_are_compared_by_are_from_all_over_a_cohort_of_many_slides() -> None:
    slides = 3 * stage.COMPARED
    owner = np.repeat(np.arange(slides), 2)
    places = np.zeros((len(owner), 2), np.int32)
    tiles = np.zeros((len(owner), 1), np.float32)
    kept = stage._fewer(Sampled(np.zeros((slides, 1)), tiles, owner, places)).owner
    assert len(kept) == stage.COMPARED
    assert np.histogram(kept, bins=4, range=(0, slides))[0].min() >= stage.COMPARED // 4 - 1


def test_features_that_do_not_vary_have_no_ratio_and_no_similarity() -> None:
    still = np.ones((20, 3))
    assert np.isnan(participation_ratio(still))
    assert np.isnan(linear_cka(still, generator().normal(size=(20, 3))))
    assert np.isnan(linear_cka(still[:3], still[:3]))


# --- the sample and the stage


def study(
    folder: Path,
    *,
    sites: tuple[str | None, ...] = ("north", "south"),
    encoders: dict[str, str] | None = None,
    lost: tuple[str, ...] = (),
) -> RobustnessSpec:
    """Results of 24 patients, one with two slides; feature 0 of `told` is the site."""
    grids = encoders or {"blind": "g", "told": "g"}
    rows = [(f"s{i:02d}", f"p{i:02d}", sites[i // 2 % len(sites)]) for i in range(24)]
    rows.append(("s00-b", "p00", sites[0]))
    table = pl.DataFrame(
        rows, schema={"slide_id": pl.String, "patient_id": pl.String, "site": pl.String},
        orient="row",
    ).with_columns(scanner=pl.lit(None, pl.String), grid=pl.lit("g"))  # fmt: skip
    (folder / "cohort").mkdir(parents=True)
    table.write_parquet(folder / "cohort" / "slides.parquet")
    (folder / "folds").mkdir()
    label = (pl.col("patient_id").str.slice(1).cast(pl.Int32) % 2).alias("label")
    table.select("slide_id", "patient_id", label).write_parquet(folder / "folds" / "t.parquet")
    for number, encoder in enumerate(sorted(grids)):
        where = folder / "features" / encoder
        where.mkdir(parents=True)
        entries = {}
        for slide, _, site in rows:
            if slide in lost:
                entries[slide] = FeatureEntry("failed", "why")
                continue
            draw = generator(1000 * number + sum(map(ord, slide)))
            features = draw.normal(size=(40, 6)).astype(np.float32)
            features[:, 0] += 4 * (encoder == "told" and site == "north")
            coords = np.array([(x, y) for x in range(8) for y in range(5)], np.int32) * 96
            kept = np.arange(40) != 7 * number  # one tile could not be read
            key = f"{number}{slide}"
            write_store(where / f"{slide}.zarr.zip", features[kept], coords[kept], {"key": key})
            entries[slide] = FeatureEntry("ok", None, key, 39, 1, 6)
        write_entries(where / "b.json", entries)
    return RobustnessSpec(tasks=("t",), encoders=grids, buckets=("b",), confidence=0.95, seed=5)


@pytest.fixture(autouse=True)
def fewer_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of them, which is half of the time."""
    monkeypatch.setattr(probing, "PERMUTATIONS", 100)


def measured(folder: Path, spec: RobustnessSpec) -> dict[str, pl.DataFrame]:
    parts = {name: folder / name for name in ("cohort", "folds", "features")}
    return measure_robustness(spec, Cache(folder / "cache"), **parts, output=folder / "out")


def test_an_encoder_that_tells_the_site_stands_out(tmp_path: Path) -> None:
    tables = measured(tmp_path, study(tmp_path))
    probes = {(row["encoder"], row["target"]): row for row in tables["probes"].to_dicts()}
    assert probes["told", "site"]["auc"] == 1
    assert probes["told", "site"]["auc_p"] < 0.01
    assert probes["blind", "site"]["auc_p"] > 0.05
    assert probes["blind", "site"]["patients"] == 24
    near = tables["neighbours"].filter((pl.col("k") == 15) & (pl.col("source") == "site"))
    index = dict(near.select("encoder", "value").iter_rows())
    assert index["told"] < 0.1 < 0.3 < index["blind"]
    assert set(tables["encoders"]["patients"]) == {24}
    for name, table in tables.items():
        assert pl.read_parquet(tmp_path / "out" / f"{name}.parquet").equals(table)
        assert (tmp_path / "out" / f"{name}.csv").exists()


def test_a_run_again_gives_the_same_and_another_seed_other_tiles(tmp_path: Path) -> None:
    spec = study(tmp_path)
    first, again = measured(tmp_path, spec), measured(tmp_path, spec)
    assert all(again[name].equals(table) for name, table in first.items())
    other = measured(tmp_path, spec.model_copy(update={"seed": 6}))
    assert not other["encoders"].equals(first["encoders"])


@pytest.mark.parametrize(
    ("sites", "note"),
    [
        ((None,), "not in the manifest"),
        (("north",), "every patient is of one site (north)"),
        (("north",) * 10 + ("south",) * 2, "fewer than two sites have 5 patients"),
    ],
)
def test_what_cannot_be_measured_says_why_and_is_no_zero(
    tmp_path: Path, sites: tuple[str | None, ...], note: str
) -> None:
    tables = measured(tmp_path, study(tmp_path, sites=sites))
    for row in tables["probes"].filter(pl.col("kind") != "label").to_dicts():
        assert row["note"] == (note if row["target"] == "site" else "not in the manifest")
        assert row["auc"] is None
        assert row["balanced_accuracy"] is None
    near = tables["neighbours"].filter(pl.col("source") == "scanner")
    assert near["value"].to_list() == [None, None]
    assert near["note"].to_list() == ["not in the manifest"] * 2


def test_encoders_of_one_grid_are_compared_over_the_tiles_that_both_have(tmp_path: Path) -> None:
    grids = {"a": "fine", "b": "fine", "c": "coarse"}
    rows = measured(tmp_path, study(tmp_path, encoders=grids))["similarity"]
    over = {(a, b): (o, n) for a, b, o, n in rows.select(
        "encoder_a", "encoder_b", "over", "rows").iter_rows()}  # fmt: skip
    assert over["a", "c"] == over["b", "c"] == ("slides", 25)
    assert over["a", "b"][0] == "tiles"
    assert 25 * 25 < over["a", "b"][1] <= 25 * 32


def test_a_slide_that_an_encoder_lacks_counts_for_none(tmp_path: Path) -> None:
    tables = measured(tmp_path, study(tmp_path, lost=("s03",)))
    assert set(tables["encoders"]["patients"]) == {23}
    everything = (*(f"s{i:02d}" for i in range(24)), "s00-b")
    with pytest.raises(UserError, match="no slide has features by every encoder"):
        measured(tmp_path / "none", study(tmp_path / "none", lost=everything))


def test_patients_are_balanced_and_sites_drawn_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "PATIENTS", 8)
    monkeypatch.setattr(sampling, "TILES", 80)
    study(tmp_path, sites=("rare", *["common"] * 5))
    table = pl.read_parquet(tmp_path / "cohort" / "slides.parquet")
    slides = sampling.draw_slides(table, set(table["slide_id"]), seed=1)
    patients = slides.unique("patient_id")
    assert sorted(patients["site"].value_counts()["count"]) == [4, 4]
    entries = {
        name: FeatureEntry("ok", None, open_store(path).attributes["key"])
        for name in table["slide_id"]
        for path in [tmp_path / "features" / "told" / f"{name}.zarr.zip"]
    }
    found = sampling.read_sample(
        slides, entries, tmp_path / "features" / "told", Cache(tmp_path / "c"), seed=1
    )
    owners = slides["patient_id"].to_numpy()[found.owner]
    assert set(np.unique(owners, return_counts=True)[1]) == {10}
