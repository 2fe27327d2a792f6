"""A frozen model's figures on an external cohort: of its patients alone, with nothing chosen."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score, roc_curve
from statsmodels.stats.proportion import proportion_confint

from her2.config import EvaluationSection, ExternalTaskSection, Task
from her2.config.external_jobs import Truth
from her2.core.errors import UserError
from her2.evaluation.binary import binary_table
from her2.evaluation.calibration import PREDICTED, SCALED
from her2.evaluation.external.stage import validate
from her2.evaluation.external.tables import (
    EVALUATED,
    LEFT_OUT,
    MANIFEST,
    PREDICTED_ONLY,
    UNLABELLED,
    UNMAPPED,
    UNPREDICTED,
    UNUSABLE,
)
from her2.evaluation.external.thresholds import fold_thresholds
from her2.evaluation.figures import figures
from her2.evaluation.temperature import fit_temperature, scale
from tests.unit.external_makers import (
    BINARY,
    SAME,
    SECTION,
    World,
    frozen,
    one,
    single_models,
    spec_of,
    table_of,
    world,
)
from tests.unit.prediction_makers import SCORE, predictions

NAMES = SCORE.class_names
CALIBRATED = [f"prob_{name}" for name in NAMES]


@pytest.fixture(scope="module")
def two_slides() -> World:
    """Return 40 patients with two slides each."""
    return world(80, per_patient=2)


@pytest.fixture(scope="module")
def by_score(two_slides: World) -> dict[str, pl.DataFrame]:
    return two_slides.validated()


@pytest.fixture(scope="module")
def binary_world() -> World:
    return world(60, truth=BINARY)


@pytest.fixture(scope="module")
def by_status(binary_world: World) -> dict[str, pl.DataFrame]:
    return binary_world.validated(spec_of(BINARY))


def probabilities(own: World, kind: str = "prob", *, by_patient: bool = False) -> np.ndarray:
    table = own.given.select([f"{kind}_{name}" for name in NAMES]).to_numpy()
    return table.reshape(-1, 2, 4).mean(axis=1) if by_patient else table


def test_figures_are_of_the_calibrated_mean_by_patient_and_slide(two_slides, by_score) -> None:
    for level, by_patient, labels in (
        ("patient", True, np.arange(40) % 4),
        ("slide", False, np.repeat(np.arange(40) % 4, 2)),
    ):
        scores = probabilities(two_slides, by_patient=by_patient)
        for index, name in enumerate(NAMES):
            row = one(by_score["metrics"], level=level, metric="auc", **{"class": name})
            assert row["value"] == pytest.approx(roc_auc_score(labels == index, scores[:, index]))
            assert row["low"] < row["value"] < row["high"]
            assert row["n"] == len(labels)


def test_the_probability_of_a_side_is_the_sum_of_its_classes(binary_world, by_status) -> None:
    positive = probabilities(binary_world)[:, 2:].sum(axis=1)
    truth = np.arange(60) % 4 >= 2
    assert np.allclose(by_status["slides"]["prob_positive"], positive)
    row = one(by_status["binary"], level="patient", metric="auc", grouping="negative vs positive")
    assert row["value"] == pytest.approx(roc_auc_score(truth, positive))
    raw = probabilities(binary_world, "raw")[:, 2:].sum(axis=1)
    found = one(by_status["calibration"], level="slide", state=PREDICTED, metric="log_loss")
    assert found["value"] == pytest.approx(log_loss(truth, raw))


def test_calibration_is_given_before_and_after_the_temperature(binary_world, by_status) -> None:
    truth = np.arange(60) % 4 >= 2
    for state, kind in ((PREDICTED, "raw"), (SCALED, "prob")):
        scores = probabilities(binary_world, kind)[:, 2:].sum(axis=1)
        brier = one(by_status["calibration"], level="slide", state=state, metric="brier")
        assert brier["value"] == pytest.approx(2 * brier_score_loss(truth, scores))
        ratio = one(
            by_status["calibration"], level="slide", state=state, metric="observed_expected",
            **{"class": "positive"},
        )  # fmt: skip
        assert ratio["value"] == pytest.approx(truth.mean() / scores.mean())
        assert len(by_status["reliability"].filter(pl.col("state") == state))
        assert len(by_status["decision"].filter(pl.col("state") == state))


def thresholds_by_hand(trained: pl.DataFrame, specificity: float) -> list[float]:
    """Return each fold's threshold on P(2+ or 3+), from scikit-learn's ROC curve."""
    found = []
    for fold in range(4):
        tune = trained.filter(pl.col("fold") == fold, pl.col("role") == "tune")
        values, target = tune.select(CALIBRATED).to_numpy(), tune["target"].to_numpy()
        scaled = scale(values, fit_temperature(target, values)[0])
        false, _, cuts = roc_curve(target >= 2, scaled[:, 2:].sum(axis=1), drop_intermediate=False)
        found.append(float(cuts[np.flatnonzero(false <= 1 - specificity + 1e-12)[-1]]))
    return found


def test_rates_are_at_the_mean_of_the_thresholds_of_development(binary_world, by_status) -> None:
    cuts = thresholds_by_hand(binary_world.trained, SECTION.specificity)
    row = one(
        by_status["operating"], level="patient", grouping="negative vs positive",
        fixed="specificity",
    )  # fmt: skip
    assert row["threshold"] == pytest.approx(np.mean(cuts), abs=1e-9)
    assert (row["threshold_min"], row["threshold_max"]) == pytest.approx((min(cuts), max(cuts)))
    truth = np.arange(60) % 4 >= 2
    called = probabilities(binary_world)[:, 2:].sum(axis=1) >= row["threshold"]
    counts = {
        "sensitivity": (called & truth, truth),
        "specificity": (~called & ~truth, ~truth),
        "ppv": (called & truth, called),
        "npv": (~called & ~truth, ~called),
    }
    for rate, (hits, whole) in counts.items():
        low, high = proportion_confint(hits.sum(), whole.sum(), method="wilson")
        found = [row[f"{rate}{end}"] for end in ("", "_low", "_high")]
        assert found == pytest.approx([hits.sum() / whole.sum(), low, high]), rate


def test_a_patient_is_one_trial_however_many_slides(two_slides, by_score) -> None:
    row = one(by_score["operating"], level="slide", grouping="0/1+/2+ vs 3+", fixed="sensitivity")
    assert row["n_positive"] == 20
    low, high = proportion_confint(10 * row["sensitivity"], 10, method="wilson")
    assert (row["sensitivity_low"], row["sensitivity_high"]) == pytest.approx((low, high))


def test_external_labels_choose_no_threshold(binary_world, by_status) -> None:
    turned = binary_world.cohort.with_columns(
        label_status=pl.col("label_status").replace(
            {"Negative": "Positive", "Positive": "Negative"}
        )
    )
    other = World(binary_world.given, turned).validated(spec_of(BINARY))
    names = ["level", "grouping", "fixed", "threshold", "threshold_min", "threshold_max"]
    assert other["operating"].select(names).equals(by_status["operating"].select(names))
    assert not other["operating"].equals(by_status["operating"])


def test_a_fold_whose_tuning_set_lacks_a_side_has_no_part_in_the_threshold() -> None:
    trained = predictions(80, seed=4).filter(
        ~((pl.col("fold") == 1) & (pl.col("role") == "tune") & (pl.col("target") >= 2))
    )
    found = World(world(40).given, world(40).cohort, trained).validated()
    row = one(found["operating"], level="patient", grouping="0/1+ vs 2+/3+", fixed="sensitivity")
    assert "mean of 3 of 4 folds, without r0f1" in row["note"]
    own = found["thresholds"].filter(
        level="patient", grouping="0/1+ vs 2+/3+", fixed="sensitivity"
    )  # fmt: skip
    assert own["threshold"].null_count() == 1
    assert row["threshold"] == pytest.approx(own["threshold"].mean())


def test_development_without_tuning_sets_has_neither_thresholds_nor_a_temperature() -> None:
    own = world(40)
    found = World(own.given, own.cohort, predictions(80, tuned=False)).validated()
    assert found["operating"]["sensitivity"].null_count() == len(found["operating"])
    assert set(found["operating"]["note"]) == {
        "not defined: no fold of development has a threshold"
    }
    scaled = found["calibration"].filter(pl.col("state") == SCALED)
    assert set(scaled["note"]) == {"not defined: no fold has a tuning set"}


def test_a_prevalence_stated_for_the_task_holds_for_its_two_sides(binary_world) -> None:
    section = EvaluationSection(bootstrap=100, prevalence={"0/1+ vs 2+/3+": 0.15})
    found = binary_world.validated(spec_of(BINARY, evaluation=section))["operating"]
    row = one(found, level="patient", fixed="sensitivity")
    hit, spared = row["sensitivity"], row["specificity"]
    assert row["stated_prevalence"] == 0.15
    assert row["stated_ppv"] == pytest.approx(hit * 0.15 / (hit * 0.15 + (1 - spared) * 0.85))


LABELS = st.sampled_from([None, "0", "1+", "2+", "3+", "4", "unclear"])


@given(
    labels=st.lists(LABELS, min_size=1, max_size=12),
    status=st.lists(st.sampled_from(["ok", "excluded", "failed"]), min_size=12, max_size=12),
    lost=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_every_slide_is_counted_at_one_place(
    labels: list[str | None], status: list[str], lost: list[bool]
) -> None:
    cohort = table_of(labels).with_columns(
        status=pl.Series(status[: len(labels)]), reason=pl.lit("blurred")
    )
    kept = [s == "ok" and not gone for s, gone in zip(status, lost, strict=True)][: len(labels)]
    found = World(frozen([0] * len(labels)).filter(pl.Series(kept)), cohort).evaluated(spec_of())
    number = dict(found.counts.select("what", "slides").iter_rows())
    assert number[MANIFEST] == len(labels)
    assert number[UNUSABLE] == sum(s != "ok" for s in status[: len(labels)])
    assert number[MANIFEST] == number[UNUSABLE] + number[UNPREDICTED] + number[PREDICTED_ONLY]
    parts = [number[step] for step in (UNLABELLED, UNMAPPED, LEFT_OUT, EVALUATED)]
    assert sum(parts) == number[PREDICTED_ONLY] == len(found.predictions)
    roles = found.predictions["role"].to_list()
    assert roles.count("test") == number[EVALUATED]
    assert bool(found.reason) == (number[EVALUATED] == 0)
    assert found.predictions.filter(role="predict")["target"].null_count() == roles.count("predict")


def test_slides_without_a_class_are_in_no_figure_and_their_values_are_named() -> None:
    labels: list[str | None] = ["0", "1+", "2+", "3+"] * 5
    whole = World(frozen([i % 4 for i in range(20)]), table_of(labels)).validated()
    more = [*labels, None, "unclear", "unclear", "4"]
    found = World(frozen([i % 4 for i in range(24)]), table_of(more))
    found.given = pl.concat([World(*_same(20)).given, found.given[20:]])
    tables = found.validated()
    for name in ("metrics", "binary", "calibration", "operating", "internal"):
        assert tables[name].equals(whole[name]), name
    row = one(tables["counts"], what=UNMAPPED)
    assert (row["slides"], row["note"]) == (3, "unclear (2), 4 (1)")
    assert one(tables["counts"], what=UNLABELLED)["slides"] == 1


def _same(count: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    return frozen([i % 4 for i in range(count)]), table_of(["0"] * count)


@pytest.mark.parametrize(
    ("truth", "rule", "expected"),
    [
        (SAME, "worst", 3),
        (SAME, "first", 1),
        (SAME, "exclude", None),
        (BINARY, "worst", 1),
        (BINARY, "first", 0),
    ],
)
def test_a_patient_of_two_classes_has_that_of_the_rule(truth: Truth, rule: str, expected) -> None:
    words = ["1+", "3+"] if truth is SAME else ["Negative", "Positive"]
    cohort = table_of([*words, words[0], None], column=truth.truth.label, per_patient=2)
    first = {"q000": words[0]} if rule == "first" else {}
    found = World(frozen([0] * 4), cohort).evaluated(
        spec_of(truth, patient_label=rule, first=first)
    )
    own = found.predictions.filter(patient_id="q000")
    assert own["target"].to_list() == [expected] * 2
    assert one(found.counts, what=LEFT_OUT)["slides"] == 2 * (expected is None)


@pytest.mark.parametrize(
    ("positive", "ordered"), [(("2+", "3+"), True), (("3+",), True), (("0",), False)]
)
def test_two_sides_are_ordered_where_the_second_has_the_highest_class(
    positive: tuple[str, ...], ordered: bool
) -> None:
    """So `patient_label: worst` has a meaning, and the manifest is not refused."""
    section = ExternalTaskSection(
        label="status", classes={"no": ["Negative"], "yes": ["Positive"]}, positive=positive
    )
    assert section.truth(SCORE).ordinal is ordered
    assert not section.truth(SCORE.model_copy(update={"ordinal": False})).ordinal


def test_a_patient_of_two_classes_is_refused_by_name() -> None:
    cohort = table_of(["1+", "3+"], per_patient=2)
    with pytest.raises(UserError, match=r"validation\.yale.*'her2'.*q000 \('1\+': x000, '3\+'"):
        World(frozen([0, 0]), cohort).evaluated(spec_of())


NOBODY: Mapping[str, tuple[Callable[[World], World], str]] = {
    "one class": (
        lambda own: _relabelled(own, lambda _: "1"),
        "",
    ),
    "no class of the task": (
        lambda own: _relabelled(own, lambda _: "IHC pos"),
        "no label in column '{column}' is of a class: IHC pos (24); known are",
    ),
    "no label": (
        lambda own: _relabelled(own, lambda _: None),
        "no predicted slide has a label in column '{column}'",
    ),
    "no column": (
        lambda own: World(own.given, own.cohort.select(pl.exclude("^label_.*$"))),
        "the cohort's manifest has no column '{column}'",
    ),
    "no usable slide": (
        lambda own: World(
            own.given.clear(), own.cohort.with_columns(status=pl.lit("excluded"))
        ),
        "no slide of the cohort is usable",
    ),
    "nothing predicted": (
        lambda own: World(own.given.clear(), own.cohort),
        "no slide of the cohort was predicted",
    ),
}  # fmt: skip


def _relabelled(own: World, change: Callable[[str], str | None]) -> World:
    column = next(name for name in own.cohort.columns if name.startswith("label_"))
    first = own.cohort[column][0]
    new = [change(one) for one in own.cohort[column]]
    new = [first if one == "1" else one for one in new]
    return World(own.given, own.cohort.with_columns(pl.Series(column, new, pl.String)))


@pytest.mark.parametrize("truth", [SAME, BINARY], ids=["same classes", "two sides"])
@pytest.mark.parametrize("case", NOBODY)
def test_what_is_not_defined_is_null_with_the_reason(truth: Truth, case: str) -> None:
    change, reason = NOBODY[case]
    found = change(world(24, truth=truth)).validated(spec_of(truth))
    whole = world(24, truth=truth)
    for name, table in found.items():
        if name not in ("decision", "sites", "patients", "slides", "predictions"):
            assert len(table), name
    aucs = found["metrics"].filter(metric="auc")
    assert aucs["value"].null_count() == len(aucs)
    assert all(note.startswith("not defined: ") for note in aucs["note"])
    wanted = reason.format(column=truth.truth.label)
    for name in ("metrics", "binary", "calibration", "operating", "internal", "covariates"):
        assert found[name]["note"].str.contains(wanted, literal=True).all(), name
    assert found["internal"]["internal"].null_count() == 0
    assert found["internal"]["difference"].null_count() == len(found["internal"])
    assert found["covariates"]["difference"].null_count() == len(found["covariates"])
    assert found["counts"]["slides"][0] == len(whole.cohort)


def test_a_cohort_of_a_single_patient_has_no_figure_and_no_error() -> None:
    own = world(1)
    found = own.validated()
    aucs = found["metrics"].filter(metric="auc")
    assert aucs["value"].null_count() == len(aucs)
    assert one(found["counts"], what=EVALUATED)["patients"] == 1


def test_too_few_patients_have_a_figure_and_no_difference() -> None:
    found = world(16).validated()["internal"]
    assert found["difference"].null_count() == 0
    classes = found.filter(pl.col("class").is_in(NAMES))
    assert classes["p"].null_count() == len(classes)
    assert set(classes["note"]) == {
        "no interval or p value: fewer than 5 patients of a class or side"
    }


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda own: World(own.given.with_columns(prob_0=pl.lit(float("nan"))), own.cohort),
         "60 slides have predictions that are not finite: x000, "),
        (lambda own: World(own.given, own.cohort[1:]),
         "1 slides were predicted but are not usable according to the cohort's table: x000"),
        (lambda own: World(own.given, own.cohort, each=single_models(own.given)[1:]),
         "1 slides were not predicted by every model: x000"),
        (lambda own: World(own.given, own.cohort, each=single_models(own.given[2:])),
         "2 slides were not predicted by every model: x000, x001"),
    ],
)  # fmt: skip
def test_predictions_that_do_not_fit_the_cohort_are_refused(spoil: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        spoil(world()).evaluated(spec_of())


def test_sites_have_figures_of_their_own_patients(binary_world, by_status) -> None:
    positive = probabilities(binary_world)[:, 2:].sum(axis=1)
    truth, places = np.arange(60) % 4 >= 2, binary_world.cohort["site"].to_numpy()
    for site in ("hospital A", "hospital B"):
        row = one(
            by_status["sites"], level="patient", by="site", site=site,
            grouping="negative vs positive",
        )  # fmt: skip
        own = places == site
        assert row["value"] == pytest.approx(roc_auc_score(truth[own], positive[own]))
        assert (row["n"], row["n_positive"]) == (own.sum(), truth[own].sum())
        assert row["low"] < row["value"] < row["high"]


def test_a_site_without_a_side_says_so_and_a_single_site_has_no_rows() -> None:
    own = world(40, truth=BINARY)
    site = pl.when(pl.col("label_status") == "Positive").then(pl.lit("A")).otherwise(pl.lit("B"))
    apart = World(own.given, own.cohort.with_columns(site=site)).validated(spec_of(BINARY))
    rows = apart["sites"].filter(level="patient", by="site", site="A")
    assert rows["value"].null_count() == len(rows) > 0
    assert all(note.startswith("not defined: ") for note in rows["note"])
    alike = World(own.given, own.cohort.with_columns(site=pl.lit("A"))).validated(spec_of(BINARY))
    assert not len(alike["sites"].filter(by="site"))


def test_internal_figures_are_those_of_development(two_slides, by_score) -> None:
    metrics = figures(two_slides.trained, SCORE, SECTION, level="patient", seed=1)
    groups = binary_table(two_slides.trained, SCORE, SECTION, level="patient", seed=1)
    for row in by_score["internal"].iter_rows(named=True):
        where = {"grouping": row["grouping"]} if row["grouping"] else {"class": row["class"]}
        own = one(groups if row["grouping"] else metrics, metric="auc", **where)
        internal = [row[name] for name in ("internal", "internal_low", "internal_high")]
        assert internal == pytest.approx([own[name] for name in ("value", "low", "high")])
        own = one(
            by_score["binary" if row["grouping"] else "metrics"],
            level="patient", metric="auc", **where,
        )  # fmt: skip
        assert (row["external"], row["external_low"]) == (own["value"], own["low"])
        assert row["difference"] == pytest.approx(row["external"] - row["internal"])


def test_the_change_of_single_models_is_like_for_like() -> None:
    """A model that knows something and one that knows nothing: their mean is in between."""
    own = world(60)
    labels = [i % 4 for i in range(60)]
    models = [frozen(labels, signal=signal, seed=9) for signal in (2.0, 0.0)]
    own.each = pl.concat(
        table.select(pl.exclude("^raw_.*$")).with_columns(run=pl.lit(f"r0f{n}"))
        for n, table in enumerate(models)
    )
    for row in (
        own.validated()["internal"].filter(pl.col("class").is_in(NAMES)).iter_rows(named=True)
    ):
        index = NAMES.index(row["class"])
        aucs = [
            roc_auc_score(np.arange(60) % 4 == index, table[f"prob_{row['class']}"].to_numpy())
            for table in models
        ]
        assert row["single"] == pytest.approx(np.mean(aucs))
        assert row["single_difference"] == pytest.approx(np.mean(aucs) - row["internal"])
        assert row["single_low"] < row["single_difference"] < row["single_high"]
        assert 0 < row["single_p"] <= 1


def test_every_table_is_written_and_predictions_have_the_role_of_a_test_set(
    tmp_path: Path,
) -> None:
    own = world(24)
    found = validate(spec_of(), **own.write(tmp_path), output=tmp_path / "out")
    for name, table in found.items():
        assert pl.read_parquet(tmp_path / "out" / f"{name}.parquet").equals(table)
        assert (tmp_path / "out" / f"{name}.csv").exists()
    assert list(found)[-1] == "predictions"
    columns = ["slide_id", "patient_id", "repeat", "fold", "seed", "role", "target"]
    assert found["predictions"].columns[: len(columns)] == columns
    assert "auc_pooled" not in found["metrics"]["metric"]


def test_thresholds_of_the_task_itself_are_for_its_own_groupings() -> None:
    own = world(8)
    assert own.temperatures is not None
    found = fold_thresholds(own.trained, own.temperatures, SCORE, SECTION)
    assert set(found["grouping"]) == set(SECTION.groupings)
    assert found["run"].n_unique() == 4
    same = fold_thresholds(own.trained, own.temperatures, SCORE, SECTION, truth=SAME)
    assert same.equals(found)


def test_a_truth_of_three_sides_keeps_its_own_order() -> None:
    three = Task(label="her2", classes={"high": ["3+"], "none": ["0"], "some": ["1+", "2+"]})
    truth = Truth(of="score", task=SCORE, truth=three, sides=((3,), (0,), (1, 2)))
    own = world(40)
    found = own.validated(spec_of(truth))
    assert found["predictions"]["target"].to_list() == [
        {0: 1, 1: 2, 2: 2, 3: 0}[i % 4] for i in range(40)
    ]
    expected = probabilities(own)[:, 1:3].sum(axis=1)
    assert np.allclose(found["predictions"]["prob_some"], expected)
