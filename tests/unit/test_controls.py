"""Controls of one model: covariates alone, and shuffled labels."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.testing
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, rankdata
from sklearn.metrics import roc_auc_score

from her2.config import EvaluationSection, Task
from her2.config.jobs import ControlSpec
from her2.core.errors import UserError
from her2.evaluation.areas import HeldOut, class_area, held_out, macro_area
from her2.evaluation.controls import covariate_models
from her2.evaluation.controls.against_model import BELOW, compare_with_covariates
from her2.evaluation.controls.covariate_models import (
    FOREST,
    LOGISTIC,
    TREES,
    predict_by_covariates,
)
from her2.evaluation.controls.covariates import covariates_of
from her2.evaluation.controls.permutation import (
    TRAINED_BEFORE,
    _areas,
    _shuffled,
    mean_ranks,
    shuffle_labels,
)
from her2.evaluation.controls.stage import control, control_tables, slides_of_model
from tests.unit.prediction_makers import SCORE, cohort_of, predictions

SECTION = EvaluationSection(bootstrap=300, permutations=100)
SPEC = ControlSpec(task=SCORE, grid="g", evaluation=SECTION, seed=3)


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grow few trees: tests need no precise forest."""
    monkeypatch.setattr(covariate_models, "TREES", 20)


def folds_of(table: pl.DataFrame) -> pl.DataFrame:
    """Return the folds table in which these test and tune rows were held out."""
    slides = table.select("slide_id", "patient_id", label="target").unique().sort("slide_id")
    runs = table.select("repeat", "fold").unique()
    roles = table.select("slide_id", "repeat", "fold", "role")
    return (
        slides.join(runs, how="cross")
        .join(roles, on=["slide_id", "repeat", "fold"], how="left")
        .with_columns(pl.col("role").fill_null("train"))
        .sort("repeat", "fold", "slide_id")
    )


def macro(table: pl.DataFrame) -> dict[str, object]:
    return table.filter(pl.col("class") == "macro").row(0, named=True)


def test_a_site_that_decides_the_label_reaches_the_model() -> None:
    model = predictions(80, repeats=2, signal=1.5)
    tables = control_tables(SPEC, model, folds_of(model), cohort_of(model, site="label"))
    row = macro(tables["covariates"])
    assert row["reached"] is True
    assert row["covariates"] > 0.99 > row["model"]
    assert row["high"] < 0


def test_random_covariates_do_not_reach_an_honest_model() -> None:
    model = predictions(120, signal=2.0)
    tables = control_tables(SPEC, model, folds_of(model), cohort_of(model))
    row = macro(tables["covariates"])
    assert row["reached"] is False
    assert abs(row["covariates"] - 0.5) < 0.15
    assert row["difference"] == pytest.approx(row["model"] - row["covariates"])
    assert row["low"] > 0
    assert row["p"] < 0.05


def test_covariates_are_compared_on_exactly_the_slides_that_the_model_tested() -> None:
    model = predictions(60, slides=2, repeats=2)
    tables = control_tables(SPEC, model, folds_of(model), cohort_of(model))
    keys = ["slide_id", "patient_id", "repeat", "fold", "target"]
    tested = model.filter(pl.col("role") == "test").select(keys).sort(keys)
    made = tables["covariates_predictions"]
    for by in (LOGISTIC, FOREST):
        assert made.filter(pl.col("by") == by).select(keys).sort(keys).equals(tested)
    columns = [f"prob_{name}" for name in SCORE.class_names]
    np.testing.assert_allclose(made.select(pl.sum_horizontal(columns)).to_series(), 1)


def by_scikit_learn(patients: pl.DataFrame, name: str) -> float:
    """Return the share of ordered pairs within each fold, from scikit-learn's AUC of the fold."""
    won = pairs = 0.0
    for (_,), fold in patients.group_by("fold"):
        positive = fold["target"].to_numpy() == SCORE.class_names.index(name)
        count = positive.sum() * (~positive).sum()
        if count:
            scores = fold[f"prob_{name}"].round(10).to_numpy()  # means of equal trees are equal
            won += count * roc_auc_score(positive, scores)
            pairs += count
    return won / pairs


def test_the_covariates_auc_is_over_scikit_learns_of_each_fold_and_the_mean_of_repeats() -> None:
    model = predictions(60, slides=2, repeats=2)
    tables = control_tables(SPEC, model, folds_of(model), cohort_of(model))
    expected = {}
    for (by, repeat), own in tables["covariates_predictions"].group_by("by", "repeat"):
        patients = own.group_by("patient_id", "fold").agg(
            pl.col("target").first(), pl.col("prob_3+").mean()
        )
        expected[by, repeat] = by_scikit_learn(patients, "3+")
    row = tables["covariates"].filter(pl.col("class") == "3+").row(0, named=True)
    for column, by in (("logistic", LOGISTIC), ("forest", FOREST)):
        assert row[column] == pytest.approx((expected[by, 0] + expected[by, 1]) / 2)
    assert (row["n"], row["n_positive"]) == (60, 15)


def test_the_covariates_figure_is_the_larger_of_the_two_models_with_its_interval_and_name() -> None:
    model = predictions(60)
    rows = control_tables(SPEC, model, folds_of(model), cohort_of(model))["covariates"]
    assert len(rows) == 5
    for row in rows.to_dicts():
        best = "logistic" if row["logistic"] >= row["forest"] else "forest"
        assert row["by"] == {"logistic": LOGISTIC, "forest": FOREST}[best]
        for end in ("", "_low", "_high"):
            assert row[f"covariates{end}"] == row[f"{best}{end}"]
    # Each of them is the larger one somewhere, or one branch would not be tested.
    assert set(rows["by"]) == {LOGISTIC, FOREST}


LOW_HIGH = Task(label="her2", classes={"low": ["0"], "high": ["1"]})


def high_or_low(table: pl.DataFrame) -> pl.DataFrame:
    """Return predictions of two classes that know nothing."""
    even = [pl.lit(0.5).alias(f"prob_{name}") for name in LOW_HIGH.class_names]
    return table.drop(pl.selectors.starts_with("prob_")).with_columns(
        (pl.col("target") // 2).cast(pl.Int32), *even
    )


def with_targets(model: pl.DataFrame) -> pl.DataFrame:
    """Return a cohort of the model's slides with their classes, by slide."""
    targets = model.select("slide_id", "target").unique()
    return cohort_of(model).join(targets, on="slide_id").sort("slide_id")


def both_models(model: pl.DataFrame, cohort: pl.DataFrame) -> tuple[float, float]:
    spec = SPEC.model_copy(update={"task": LOW_HIGH})
    row = macro(control_tables(spec, model, folds_of(model), cohort)["covariates"])
    by_line, by_forest = row["logistic"], row["forest"]
    assert isinstance(by_line, float)
    assert isinstance(by_forest, float)
    assert row["covariates"] == max(by_line, by_forest)
    return by_line, by_forest


def test_a_label_set_by_mid_sized_tissue_is_seen_by_the_forest_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No line separates a middle from both ends."""
    monkeypatch.setattr(covariate_models, "TREES", TREES)
    model = high_or_low(predictions(80))
    cohort = with_targets(model)
    generator = np.random.default_rng(1)
    middle = generator.uniform(30, 60, 80)
    ends = np.where(np.arange(80) % 2, generator.uniform(1, 30, 80), generator.uniform(60, 90, 80))
    high = cohort["target"].to_numpy() == 1
    by_line, by_forest = both_models(
        model, cohort.with_columns(tissue_mm2=pl.Series(np.where(high, middle, ends)))
    )
    assert by_line < 0.65
    assert by_forest > 0.9


def test_a_label_set_by_the_scanner_of_each_site_is_seen_by_the_forest_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """High is scanner x at site a and scanner y at site b: neither alone tells anything."""
    monkeypatch.setattr(covariate_models, "TREES", TREES)
    model = high_or_low(predictions(80))
    cohort = with_targets(model)
    site = np.random.default_rng(2).permutation(80) % 2
    scanner = site ^ cohort["target"].to_numpy()
    by_line, by_forest = both_models(
        model,
        cohort.with_columns(
            site=pl.Series(np.array(["a", "b"])[site]),
            scanner=pl.Series(np.array(["x", "y"])[scanner]),
        ),
    )
    assert by_line < 0.65
    assert by_forest > 0.9


def test_equal_weight_of_classes_gives_a_rare_one_the_probability_of_the_others() -> None:
    """Covariates that tell nothing give about 1 / c per class, not the class's share."""
    model = predictions(160, tuned=False)
    model = model.filter((pl.col("target") > 0) | (pl.col("patient_id") < "p016"))
    cohort = cohort_of(model)
    found = covariates_of(cohort, cohort["slide_id"].to_list())
    made = predict_by_covariates(found, folds_of(model), model, SCORE, by=LOGISTIC, seed=0)
    assert (made["target"] == 0).sum() == 4
    assert made["prob_0"].mean() == pytest.approx(0.25, abs=0.1)


def test_training_seeds_of_the_model_change_nothing_in_its_covariates() -> None:
    model = predictions(60)
    again = pl.concat([model, model.with_columns(seed=pl.lit(1, pl.Int32))])
    found = covariates_of(cohort_of(model), sorted(set(model["slide_id"])))
    one, two = (
        predict_by_covariates(
            found, folds_of(model), table.filter(pl.col("role") == "test"), SCORE, by=FOREST, seed=3
        )
        for table in (model, again)
    )
    assert one.equals(two)
    assert set(one["seed"]) == {0}


def test_a_second_training_seed_that_gives_the_same_changes_no_comparison() -> None:
    model = predictions(60, repeats=2)
    again = pl.concat([model, model.with_columns(seed=pl.lit(1, pl.Int32))])
    one, two = (
        control_tables(SPEC, table, folds_of(model), cohort_of(model)) for table in (model, again)
    )
    for name in ("covariates", "within", "subgroups", "interactions"):
        pl.testing.assert_frame_equal(one[name], two[name])
    assert one["covariates_predictions"].equals(two["covariates_predictions"])


def test_the_forest_is_the_same_again_and_another_with_another_seed() -> None:
    model = predictions(40)
    found = covariates_of(cohort_of(model), sorted(set(model["slide_id"])))
    tested = model.filter(pl.col("role") == "test")
    one, same, other = (
        predict_by_covariates(found, folds_of(model), tested, SCORE, by=FOREST, seed=seed)
        for seed in (1, 1, 2)
    )
    assert one.equals(same)
    assert not one.equals(other)


def test_a_test_patients_own_label_changes_none_of_its_covariates_predictions() -> None:
    # Without tune rows, where a patient of another fold may matter.
    model = predictions(60, tuned=False)
    folds, cohort = folds_of(model), cohort_of(model)
    before = control_tables(SPEC, model, folds, cohort)["covariates_predictions"]
    patient, fold = before["patient_id"][0], before["fold"][0]
    own = pl.col("patient_id") == patient
    other_model, other_folds = (
        table.with_columns(
            pl.when(own).then((pl.col(name) + 1) % 4).otherwise(pl.col(name)).alias(name)
        )
        for table, name in ((model, "target"), (folds, "label"))
    )
    after = control_tables(SPEC, other_model, other_folds, cohort)["covariates_predictions"]
    here = pl.col("fold") == fold
    assert after.filter(here).drop("target").equals(before.filter(here).drop("target"))
    # In the other folds it is learnt from, so there the change is seen.
    assert not after.filter(~here).drop("target").equals(before.filter(~here).drop("target"))


def test_the_tuning_set_picks_the_strength_and_the_test_set_does_not() -> None:
    model = predictions(60)
    cohort, folds = cohort_of(model, site="label"), folds_of(model)
    found = covariates_of(cohort, cohort["slide_id"].to_list())
    tested = model.filter((pl.col("role") == "test") & (pl.col("fold") == 0))

    def with_other_labels(role: str) -> pl.DataFrame:
        part = (pl.col("role") == role) & (pl.col("fold") == 0)
        other = pl.when(part).then((pl.col("label") + 1) % 4).otherwise("label")
        table = folds.with_columns(label=other)
        made = predict_by_covariates(found, table, tested, SCORE, by=LOGISTIC, seed=0)
        return made.drop("target")

    # Site decides the label in the training set: a tuning set that agrees asks for a weak penalty,
    # one of other labels for a strong one.
    plain = with_other_labels("none")
    assert with_other_labels("test").equals(plain)
    assert not with_other_labels("tune").equals(plain)


def test_a_site_or_scanner_that_is_missing_is_a_level_of_its_own() -> None:
    model = predictions(80, signal=0.5)
    cohort = cohort_of(model)
    of_class = dict(model.select("slide_id", "target").unique().iter_rows())
    is_three = pl.Series([of_class[slide] == 3 for slide in cohort["slide_id"]])
    cohort = cohort.with_columns(
        pl.when(is_three).then(None).otherwise(pl.lit("a")).alias("site"),
        pl.lit(None, pl.String).alias("scanner"),
    )
    tables = control_tables(SPEC, model, folds_of(model), cohort)
    inputs = {row["covariate"]: row for row in tables["inputs"].to_dicts()}
    assert inputs["site"]["used"]
    assert inputs["site"]["missing"] == 20
    assert not inputs["scanner"]["used"]
    assert inputs["scanner"]["note"] == "not known for any slide"
    row = tables["covariates"].filter(pl.col("class") == "3+").row(0, named=True)
    assert row["covariates"] > 0.99


def test_a_covariate_that_is_the_same_for_all_is_listed_as_unused() -> None:
    model = predictions(40)
    cohort = cohort_of(model).with_columns(pl.lit(0.25).alias("mpp_x"), pl.lit(0.25).alias("mpp_y"))
    tables = control_tables(SPEC, model, folds_of(model), cohort)
    row = tables["inputs"].filter(pl.col("covariate") == "um/px").row(0, named=True)
    assert (row["used"], row["levels"], row["note"]) == (False, 1, "the same for every slide")


def test_where_no_covariate_differs_there_is_a_reason_and_no_figure() -> None:
    model = predictions(40)
    cohort = cohort_of(model).with_columns(
        pl.lit("a").alias("site"),
        pl.lit(None, pl.String).alias("scanner"),
        *(pl.lit(5.0).alias(name) for name in
          ("tissue_mm2", "tiles", "width_px", "height_px", "mpp_x", "mpp_y")),
    )  # fmt: skip
    tables = control_tables(SPEC, model, folds_of(model), cohort)
    assert len(tables["covariates_predictions"]) == 0
    for row in tables["covariates"].to_dicts():
        assert row["covariates"] is None
        assert row["reached"] is None
        assert row["note"] == "not defined: no covariate differs between the slides of the task"


def test_a_slide_outside_the_task_makes_no_covariate_differ() -> None:
    """A constant carries no information, and its AUC of 0.5 would look like a passed control."""
    model = predictions(40)
    folds = folds_of(model)
    cohort = cohort_of(model).with_columns(
        pl.lit("a").alias("site"),
        pl.lit("x").alias("scanner"),
        *(pl.lit(5.0).alias(name) for name in
          ("tissue_mm2", "tiles", "width_px", "height_px", "mpp_x", "mpp_y")),
    )  # fmt: skip
    # One without a label, as every fold predicts it, and one that the task does not have at all.
    others = cohort.head(2).with_columns(
        slide_id=pl.Series(["unlabelled", "other"]), scanner=pl.lit("y"), tissue_mm2=pl.lit(9.0)
    )
    row = folds.filter(pl.col("slide_id") == "s000-0").with_columns(
        slide_id=pl.lit("unlabelled"),
        patient_id=pl.lit("unlabelled"),
        label=pl.lit(None, folds.schema["label"]),
        role=pl.lit("predict"),
    )
    tables = control_tables(SPEC, model, pl.concat([folds, row]), pl.concat([cohort, others]))
    assert not tables["inputs"]["used"].any()
    assert macro(tables["covariates"])["covariates"] is None
    assert macro(tables["covariates"])["reached"] is None


def test_a_slide_without_features_teaches_the_covariates_nothing() -> None:
    model = predictions(60)
    cohort, folds = cohort_of(model, site="label"), folds_of(model)
    lost = pl.col("slide_id") == "s003-0"
    rest = model.filter(~lost)
    with_it = control_tables(SPEC, rest, folds, cohort)
    without = control_tables(SPEC, rest, folds.filter(~lost), cohort.filter(~lost))
    for name, table in without.items():
        assert with_it[name].equals(table), name
    # It would have taught them something.
    whole = control_tables(SPEC, model, folds, cohort)["covariates_predictions"]
    kept = whole.filter(~lost)
    assert not kept.equals(with_it["covariates_predictions"])


def test_a_slide_that_a_fixed_split_only_learns_from_takes_part() -> None:
    model = predictions(60).filter(pl.col("fold") == 0)
    folds = folds_of(predictions(60)).filter(pl.col("fold") == 0)
    assert slides_of_model(folds, model) == sorted(folds["slide_id"])


@pytest.mark.parametrize("role", ["train", "tune"])
def test_a_tested_slide_that_the_folds_do_not_hold_out_is_refused(role: str) -> None:
    model = predictions(40)
    one = (pl.col("role") == "test") & (pl.col("slide_id") == "s007-0")
    folds = folds_of(model).with_columns(role=pl.when(one).then(pl.lit(role)).otherwise("role"))
    with pytest.raises(UserError, match=r"s007-0: was tested in r0f\d"):
        control_tables(SPEC, model, folds, cohort_of(model))


def test_a_number_that_is_not_known_of_some_slides_is_filled_and_counted() -> None:
    model = predictions(40)
    cohort = cohort_of(model)
    gaps = [None if i < 7 else value for i, value in enumerate(cohort["mpp_x"])]
    cohort = cohort.with_columns(pl.Series("mpp_x", gaps))
    tables = control_tables(SPEC, model, folds_of(model), cohort)
    row = tables["inputs"].filter(pl.col("covariate") == "um/px").row(0, named=True)
    assert (row["used"], row["missing"]) == (True, 7)
    made = tables["covariates_predictions"]
    assert made.null_count().sum_horizontal()[0] == 0
    assert not made.select(pl.selectors.float().is_nan().any()).row(0)[0]


def test_a_number_that_is_missing_for_one_class_only_tells_the_forest_that_class() -> None:
    model = predictions(80)
    cohort = with_targets(model)
    cohort = cohort.with_columns(
        mpp_x=pl.when(pl.col("target") == 3).then(None).otherwise(pl.col("mpp_x"))
    ).drop("target")
    tables = control_tables(SPEC, model, folds_of(model), cohort)
    row = tables["covariates"].filter(pl.col("class") == "3+").row(0, named=True)
    assert row["by"] == FOREST
    assert row["forest"] > 0.95


def test_a_number_that_no_slide_of_a_training_set_has_is_no_obstacle() -> None:
    model = predictions(40, tuned=False)
    fold = model.filter(pl.col("fold") == 0)["slide_id"].to_list()
    cohort = cohort_of(model).with_columns(
        mpp_x=pl.when(pl.col("slide_id").is_in(fold)).then(pl.col("mpp_x")).otherwise(None)
    )
    made = control_tables(SPEC, model, folds_of(model), cohort)["covariates_predictions"]
    assert len(made) == 2 * 40
    assert not made.select(pl.selectors.float().is_nan().any()).row(0)[0]


def test_a_class_of_one_patient_has_no_interval_and_is_not_called_reached() -> None:
    model = predictions(60, signal=3.0)
    keep = (pl.col("target") != 3) | (pl.col("patient_id") == "p003")
    model = model.filter(keep)
    tables = control_tables(SPEC, model, folds_of(model), cohort_of(model))
    row = tables["covariates"].filter(pl.col("class") == "3+").row(0, named=True)
    assert row["low"] is None
    assert row["note"] == "no interval or p value: fewer than 5 patients of a class or side"
    assert row["reached"] is (True if row["difference"] <= 0 else None)


def test_one_patient_gives_reasons_and_no_figures() -> None:
    model = predictions(4, folds=4).filter(pl.col("patient_id") == "p000")
    tables = control_tables(SPEC, model, folds_of(model), cohort_of(model))
    assert tables["covariates"]["reached"].null_count() == 5
    assert all(tables["covariates"]["note"])
    assert tables["shuffled"]["value"].null_count() == 5
    assert tables["shuffled"]["p_better"].null_count() == 5
    assert all(tables["shuffled"]["note"])
    assert tables["shuffled"]["p_worse"].null_count() == 5
    # One patient is one group by every property.
    assert [len(tables[name]) for name in ("subgroups", "interactions", "within")] == [0, 0, 0]


def test_a_predicted_slide_that_the_cohort_does_not_call_usable_is_named() -> None:
    model = predictions(40)
    cohort = cohort_of(model)
    bad = cohort.with_columns(
        pl.when(pl.col("slide_id") == "s007-0").then(pl.lit("failed")).otherwise("status")
        .alias("status")
    )  # fmt: skip
    with pytest.raises(UserError, match="s007-0"):
        control_tables(SPEC, model, folds_of(model), bad)


def learned(seed: int, *, repeats: int = 1, by_site: bool = False) -> pl.DataFrame:
    """Predict labels by the training patients' mean inputs per class; inputs know nothing of them.

    Without `by_site` there are 48 patients in 5 folds. With it, each of 6 folds is one site whose
    labels and inputs both differ from those of other sites, and so are associated in the cohort.
    """
    generator = np.random.default_rng(seed)
    sites = np.arange(48) % 6
    labels = np.arange(48) % 4
    inputs = generator.normal(size=(48, 4))
    if by_site:
        shares = [np.roll([0.55, 0.25, 0.15, 0.05], site) for site in sites]
        labels = np.array([generator.choice(4, p=own) for own in shares])
        inputs += np.eye(6)[sites][:, :4]
    records = []
    for repeat in range(repeats):
        place = sites if by_site else generator.permutation(48) % 5
        for fold in range(place.max() + 1):
            test = place == fold
            own = np.eye(4)[labels[~test]]
            means = own.T @ inputs[~test] / np.maximum(own.sum(axis=0), 1)[:, None]
            powers = np.exp(inputs[test] @ (means - means.mean(axis=0)).T)
            for patient, row in zip(np.flatnonzero(test), powers, strict=True):
                name = f"p{patient:02d}"
                records.append(
                    (name, name, repeat, fold, 0, "test", int(labels[patient]), *(row / row.sum()))
                )
    return pl.DataFrame(records, schema=predictions(4).schema, orient="row")


@pytest.mark.parametrize(
    ("of", "studies"),
    [({}, 200), ({"repeats": 10}, 120), ({"by_site": True}, 200)],
    ids=["one repeat", "ten repeats", "leave one site out"],
)
def test_models_that_learned_nothing_give_p_values_that_are_about_uniform(
    of: dict[str, Any], studies: int
) -> None:
    better, worse = [], []
    for seed in range(1000, 1000 + studies):
        model = learned(seed, **of)
        table, _ = shuffle_labels(model, SCORE, permutations=100, confidence=0.95, seed=seed)
        row = macro(table)
        if row["p_better"] is not None:  # a site may lack a class altogether
            better.append(row["p_better"])
            worse.append(row["p_worse"])
    assert len(better) > 0.9 * studies
    for found in (better, worse):
        test = kstest(found, "uniform")
        assert test.pvalue > 0.01, test
        assert np.mean(np.array(found) <= 0.05) <= 0.09


def test_draws_are_spread_around_their_mean_but_not_for_a_fixed_test_set() -> None:
    """No model learned from the labels of a fixed test set, so they can be shuffled as they are."""
    model = predictions(40, folds=1, tuned=False)
    _, fixed = shuffle_labels(model, SCORE, permutations=100, confidence=0.95, seed=0)
    # A second fold of one patient adds no pair and shuffles nothing else.
    one = model.head(1).with_columns(
        slide_id=pl.lit("z"), patient_id=pl.lit("z"), fold=pl.lit(1, pl.Int32)
    )
    _, folds = shuffle_labels(
        pl.concat([model, one]), SCORE, permutations=100, confidence=0.95, seed=0
    )
    centre = fixed["auc"].mean()
    expected = centre + TRAINED_BEFORE * (fixed["auc"] - centre)
    np.testing.assert_allclose(folds["auc"], expected)


def test_labels_with_signal_give_the_least_p_there_is() -> None:
    model = predictions(80, signal=2.0)
    table, draws = shuffle_labels(model, SCORE, permutations=100, confidence=0.95, seed=0)
    row = macro(table)
    assert row["p_better"] == pytest.approx(1 / 101)
    assert row["p_worse"] == 1
    assert row["mean"] == pytest.approx(0.5, abs=0.03)
    assert draws.height == 100
    assert row["mean"] == pytest.approx(draws["auc"].mean())


def test_predictions_that_are_wrong_on_purpose_are_worse_than_chance() -> None:
    model = predictions(80, signal=-2.0)
    table, _ = shuffle_labels(model, SCORE, permutations=100, confidence=0.95, seed=0)
    row = macro(table)
    assert row["p_worse"] == pytest.approx(1 / 101)
    assert row["p_better"] == 1


def test_folds_of_one_class_each_and_their_own_level_have_no_pairs_and_so_no_p() -> None:
    """The pooled AUC of such predictions is 1 without any signal."""
    model = predictions(80, tuned=False)
    model = model.with_columns(fold=pl.col("target"), repeat=pl.lit(0, pl.Int32))
    sure = {
        f"prob_{name}": (pl.col("target") == index).cast(pl.Float64)
        for index, name in enumerate(SCORE.class_names)
    }
    table, draws = shuffle_labels(
        model.with_columns(**sure), SCORE, permutations=100, confidence=0.95, seed=0
    )
    assert macro(table)["value"] is None
    assert macro(table)["p_better"] is None
    assert macro(table)["note"] == "not defined: a class is absent, or has no pairs in any test set"
    assert draws["auc"].null_count() == 100


def test_the_observed_auc_is_that_of_the_evaluation_with_repeats_and_slides() -> None:
    model = predictions(60, slides=2, repeats=3)
    table, _ = shuffle_labels(model, SCORE, permutations=100, confidence=0.95, seed=0)
    rows = held_out(model, SCORE, level="patient")
    areas = [class_area(rows, index) for index in range(4)]
    values = [area.value for area in (*areas, macro_area(rows, areas))]
    np.testing.assert_allclose(table["value"], values)


@given(seed=st.integers(0, 10_000), patients=st.integers(1, 40), folds=st.integers(1, 6))
def test_a_label_stays_within_its_fold(seed: int, patients: int, folds: int) -> None:
    generator = np.random.default_rng(seed)
    target, fold = generator.integers(0, 4, patients), generator.integers(0, folds, patients)
    before = target.copy()
    mixed = _shuffled(target, fold, generator)
    np.testing.assert_array_equal(target, before)
    for one in range(folds):
        assert sorted(mixed[fold == one]) == sorted(target[fold == one])


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), patients=st.integers(2, 40), steps=st.integers(1, 12))
def test_areas_by_ranks_are_scikit_learns_with_ties_too(
    seed: int, patients: int, steps: int
) -> None:
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 3, (5, patients))
    scores = generator.integers(0, steps, (patients, 3)) / steps
    everyone = np.arange(patients)
    rows = HeldOut(
        target=targets[0],
        probabilities=scores,
        patients=everyone,
        models=np.zeros(patients, int),
        rounds=np.zeros(1, int),
        folds=1,
        names=tuple(f"p{index}" for index in everyone),
        classes=targets[0],
    )
    found = _areas(rows, targets)
    for row, target in zip(found, targets, strict=True):
        for index in range(3):
            positive = target == index
            if positive.all() or not positive.any():
                assert np.isnan(row[index])
                assert np.isnan(row[3])
            else:
                assert row[index] == pytest.approx(roc_auc_score(positive, scores[:, index]))
        assert row[3] == pytest.approx(row[:3].mean(), nan_ok=True)


@given(scores=st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9]), min_size=1, max_size=20))
def test_mean_ranks_are_scipys(scores: list[float]) -> None:
    np.testing.assert_allclose(mean_ranks(np.array(scores)), rankdata(scores))


def test_a_model_that_only_beats_covariates_below_half_has_not_beaten_them() -> None:
    """Covariates that are wrong more often than chance are easily exceeded."""
    model = high_or_low(predictions(80)).with_columns(
        prob_high=pl.col("target") * 0.02 + np.random.default_rng(0).random(len(predictions(80))),
    )
    model = model.with_columns(prob_low=1 - pl.col("prob_high"))
    wrong = model.with_columns(prob_low=pl.col("target"), prob_high=1 - pl.col("target"))
    row = macro(compare_with_covariates(model, {LOGISTIC: wrong, FOREST: wrong}, LOW_HIGH, SECTION))
    assert row["covariates"] == 0
    assert row["difference"] > 0.4
    assert row["model_low"] < 0.5
    assert row["reached"] is True
    assert row["note"] == BELOW


def test_an_absent_class_is_null_with_the_reason_and_the_others_have_figures() -> None:
    model = predictions(60).filter(pl.col("target") != 3)
    tables = control_tables(SPEC, model, folds_of(model), cohort_of(model))
    reasons = {
        "covariates": "not defined: no patient on the positive side",
        "shuffled": "not defined: a class is absent, or has no pairs in any test set",
        "within": "not defined: no patient of 3+",
    }
    for name, reason in reasons.items():
        for row in tables[name].to_dicts():
            gone = row["class"] in ("3+", "macro")
            value = row["difference" if name == "covariates" else "value"]
            assert (value is None) == gone, row
            if name == "covariates" and row["class"] == "macro":
                reason = "not defined: a class is absent"
            below = name == "covariates" and not gone and row["covariates"] < 0.5
            assert row["note"] == (reason if gone else BELOW if below else ""), row
    assert tables["covariates"].filter(pl.col("class") == "3+")["by"].to_list() == [None]
    assert tables["covariates"].filter(pl.col("class") == "macro")["reached"].to_list() == [None]
    assert tables["shuffled_draws"]["auc"].null_count() == SECTION.permutations
    # No training set has it.
    assert tables["covariates_predictions"]["prob_3+"].to_list() == [0.0] * (2 * 45)


def test_a_site_that_no_training_set_has_is_predicted_by_the_rest() -> None:
    model = predictions(60)
    cohort = cohort_of(model).with_columns(
        site=pl.when(pl.col("slide_id") == "s000-0").then(pl.lit("new")).otherwise("site")
    )
    made = control_tables(SPEC, model, folds_of(model), cohort)["covariates_predictions"]
    own = made.filter(pl.col("slide_id") == "s000-0").to_dicts()
    assert [row["by"] for row in own] == [LOGISTIC, FOREST]
    for row in own:
        assert sum(row[f"prob_{name}"] for name in SCORE.class_names) == pytest.approx(1)


def test_the_same_tables_give_the_same_bytes_and_covariates_come_last(tmp_path: Path) -> None:
    model = predictions(40, repeats=2)
    folder = tmp_path / "in"
    folder.mkdir()
    paths = {name: folder / f"{name}.parquet" for name in ("predictions", "folds", "cohort")}
    tables = (model, folds_of(model), cohort_of(model))
    for path, table in zip(paths.values(), tables, strict=True):
        table.write_parquet(path)
    made = [control(SPEC, **paths, output=tmp_path / name) for name in ("one", "two")]
    assert list(made[0])[-1] == "covariates"
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 2 * len(made[0])
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_rows_in_another_order_give_the_same_tables() -> None:
    model = predictions(40)
    folds, cohort = folds_of(model), cohort_of(model)
    before = control_tables(SPEC, model, folds, cohort)
    mixed = (table.sample(fraction=1, shuffle=True, seed=1) for table in (model, folds, cohort))
    after = control_tables(SPEC, *mixed)
    for name, table in before.items():
        assert after[name].equals(table), name
