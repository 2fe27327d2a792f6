"""Controls: covariates alone, shuffled labels and parts of the cohort, beside one model."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from her2.config import EvaluationSection
from her2.config.jobs import ControlSpec
from her2.core.errors import UserError
from her2.evaluation.controls.covariates import covariates_of, predict_by_covariates
from her2.evaluation.controls.permutation import _areas, _shuffled, shuffle_labels
from her2.evaluation.controls.stage import control, control_tables, slides_of_model
from her2.evaluation.controls.subgroups import subgroup_figures
from tests.unit.prediction_makers import SCORE, cohort_of, predictions

SECTION = EvaluationSection(bootstrap=300, permutations=100)
SPEC = ControlSpec(task=SCORE, grid="g", evaluation=SECTION, seed=3)


def folds_of(table: pl.DataFrame) -> pl.DataFrame:
    """The folds table in which these test and tune parts were held out."""
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
    assert tables["covariates_predictions"].select(keys).sort(keys).equals(tested)
    columns = [f"prob_{name}" for name in SCORE.class_names]
    total = tables["covariates_predictions"].select(pl.sum_horizontal(columns)).to_series()
    np.testing.assert_allclose(total, 1)


def test_the_covariates_auc_is_scikit_learns_of_their_mean_predictions() -> None:
    model = predictions(60, slides=2, repeats=2)
    tables = control_tables(SPEC, model, folds_of(model), cohort_of(model))
    patients = (
        tables["covariates_predictions"]
        .group_by("patient_id")
        .agg(pl.col("target").first(), pl.col("prob_3+").mean())
    )
    row = tables["covariates"].filter(pl.col("class") == "3+").row(0, named=True)
    expected = roc_auc_score(patients["target"].to_numpy() == 3, patients["prob_3+"].to_numpy())
    assert row["covariates"] == pytest.approx(expected)
    assert (row["n"], row["n_positive"]) == (60, 15)


def test_a_test_patients_own_label_changes_none_of_its_covariates_predictions() -> None:
    # Without a tune part in the tables: a patient that is tune elsewhere may matter there.
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


def test_the_tune_part_picks_the_strength_and_the_test_part_does_not() -> None:
    model = predictions(60)
    cohort, folds = cohort_of(model, site="label"), folds_of(model)
    found = covariates_of(cohort, cohort["slide_id"].to_list())
    tested = model.filter((pl.col("role") == "test") & (pl.col("fold") == 0))

    def with_other_labels(role: str) -> pl.DataFrame:
        part = (pl.col("role") == role) & (pl.col("fold") == 0)
        other = pl.when(part).then((pl.col("label") + 1) % 4).otherwise("label")
        table = folds.with_columns(label=other)
        return predict_by_covariates(found, table, tested, SCORE).drop("target")

    # Site decides the label in the train part: a tune part that agrees asks for a weak penalty,
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
    assert inputs["scanner"]["note"] == "not known of any slide"
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
    """A constant says nothing: its AUC of 0.5 would pass for a control that the model beats."""
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
    assert tables["covariates_predictions"].null_count().sum_horizontal()[0] == 0


def test_a_class_of_one_patient_has_no_interval_and_is_not_called_reached() -> None:
    model = predictions(60, signal=3.0)
    keep = (pl.col("target") != 3) | (pl.col("patient_id") == "p003")
    model = model.filter(keep)
    tables = control_tables(SPEC, model, folds_of(model), cohort_of(model))
    row = tables["covariates"].filter(pl.col("class") == "3+").row(0, named=True)
    assert row["low"] is None
    assert row["note"]
    assert row["reached"] is (True if row["difference"] <= 0 else None)


def test_one_patient_gives_reasons_and_no_figures() -> None:
    model = predictions(4, folds=4).filter(pl.col("patient_id") == "p000")
    tables = control_tables(SPEC, model, folds_of(model), cohort_of(model))
    assert tables["covariates"]["reached"].null_count() == 5
    assert all(tables["covariates"]["note"])
    assert tables["shuffled"]["value"].null_count() == 5
    assert tables["shuffled"]["p"].null_count() == 5
    assert all(tables["shuffled"]["note"])
    assert len(tables["subgroups"]) == 0 or tables["subgroups"]["value"].null_count() == 5


def test_a_predicted_slide_that_the_cohort_does_not_call_usable_is_named() -> None:
    model = predictions(40)
    cohort = cohort_of(model)
    bad = cohort.with_columns(
        pl.when(pl.col("slide_id") == "s007-0").then(pl.lit("failed")).otherwise("status")
        .alias("status")
    )  # fmt: skip
    with pytest.raises(UserError, match="s007-0"):
        control_tables(SPEC, model, folds_of(model), bad)


def test_labels_without_signal_give_p_values_that_are_about_uniform() -> None:
    found = []
    for seed in range(150):
        model = predictions(48, signal=0.0, tuned=False, seed=seed)
        table, _ = shuffle_labels(model, SCORE, permutations=100, confidence=0.95, seed=seed)
        found.append(macro(table)["p"])
    test = kstest(found, "uniform")
    assert test.pvalue > 0.01, test
    assert np.mean(np.array(found) <= 0.05) < 0.11


def test_labels_with_signal_give_the_least_p_there_is() -> None:
    model = predictions(80, signal=2.0)
    table, draws = shuffle_labels(model, SCORE, permutations=100, confidence=0.95, seed=0)
    row = macro(table)
    assert row["p"] == pytest.approx(1 / 101)
    assert row["mean"] == pytest.approx(0.5, abs=0.03)
    assert draws.height == 100
    assert row["mean"] == pytest.approx(draws["auc"].mean())


def test_folds_of_another_mix_and_level_alone_are_no_signal() -> None:
    """Each fold has its class and its own level: pooled AUC is 1, within a fold nothing is left."""
    model = predictions(80, tuned=False)
    model = model.with_columns(fold=pl.col("target"), repeat=pl.lit(0, pl.Int32))
    sure = {
        f"prob_{name}": (pl.col("target") == index).cast(pl.Float64)
        for index, name in enumerate(SCORE.class_names)
    }
    table, _ = shuffle_labels(
        model.with_columns(**sure), SCORE, permutations=100, confidence=0.95, seed=0
    )
    assert macro(table)["value"] == 1
    assert macro(table)["p"] == 1


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
    found = _areas(targets, scores)
    for row, target in zip(found, targets, strict=True):
        for index in range(3):
            positive = target == index
            if positive.all() or not positive.any():
                assert np.isnan(row[index])
                assert np.isnan(row[3])
            else:
                assert row[index] == pytest.approx(roc_auc_score(positive, scores[:, index]))
        assert row[3] == pytest.approx(row[:3].mean(), nan_ok=True)


def test_an_absent_class_is_null_with_the_reason_and_the_others_have_figures() -> None:
    model = predictions(60).filter(pl.col("target") != 3)
    tables = control_tables(SPEC, model, folds_of(model), cohort_of(model))
    for name, value in (("covariates", "difference"), ("shuffled", "value")):
        for row in tables[name].to_dicts():
            gone = row["class"] in ("3+", "macro")
            assert (row[value] is None) == gone, row
            assert row["note"] == ("not defined: a class is absent" if gone else ""), row
    assert tables["covariates"].filter(pl.col("class") == "macro")["reached"].to_list() == [None]
    assert tables["shuffled_draws"]["auc"].null_count() == SECTION.permutations
    # No train part has it.
    assert tables["covariates_predictions"]["prob_3+"].to_list() == [0.0] * 45


def test_a_site_that_no_train_part_has_is_predicted_by_the_rest() -> None:
    model = predictions(60)
    cohort = cohort_of(model).with_columns(
        site=pl.when(pl.col("slide_id") == "s000-0").then(pl.lit("new")).otherwise("site")
    )
    made = control_tables(SPEC, model, folds_of(model), cohort)["covariates_predictions"]
    row = made.filter(pl.col("slide_id") == "s000-0").row(0, named=True)
    assert sum(row[f"prob_{name}"] for name in SCORE.class_names) == pytest.approx(1)


def test_the_first_third_has_the_patients_of_least_tissue() -> None:
    model = predictions(60, slides=2)
    cohort = cohort_of(model)
    rest = cohort_of(model).with_columns(scanner=pl.lit("x"), site=pl.lit("a"))
    table = subgroup_figures(model, rest, SCORE, SECTION, seed=0)
    assert set(table["by"]) == {"tissue"}
    least = (
        cohort.group_by("p" + pl.col("slide_id").str.slice(1, 3).alias("patient_id"))
        .agg(pl.col("tissue_mm2").sum())
        .sort("tissue_mm2")
    ).to_series()[:20]
    own = model.filter((pl.col("role") == "test") & pl.col("patient_id").is_in(least.to_list()))
    patients = own.group_by("patient_id").agg(pl.col("target").first(), pl.col("prob_0").mean())
    row = table.filter((pl.col("group") == "1 (least)") & (pl.col("class") == "0")).row(
        0, named=True
    )
    expected = roc_auc_score(patients["target"].to_numpy() == 0, patients["prob_0"].to_numpy())
    assert row["value"] == pytest.approx(expected)


@pytest.mark.parametrize("tissue", [5.0, None])
def test_what_is_the_same_for_everyone_or_not_known_gives_no_parts(tissue: float | None) -> None:
    model = predictions(40)
    cohort = cohort_of(model).with_columns(
        site=pl.lit("a"),
        scanner=pl.lit(None, pl.String),
        tissue_mm2=pl.lit(tissue, pl.Float64),
    )
    assert len(subgroup_figures(model, cohort, SCORE, SECTION, seed=0)) == 0


def test_the_parts_of_the_cohort_hold_every_patient_once_and_their_auc_is_scikit_learns() -> None:
    model = predictions(90, slides=2)
    cohort = cohort_of(model)
    table = subgroup_figures(model, cohort, SCORE, SECTION, seed=0)
    of_macro = table.filter(pl.col("class") == "macro")
    for by in ("site", "scanner", "tissue"):
        assert of_macro.filter(pl.col("by") == by)["n"].sum() == 90
    assert of_macro.filter(pl.col("by") == "tissue")["n"].to_list() == [30, 30, 30]
    first = cohort.with_columns(patient_id="p" + pl.col("slide_id").str.slice(1, 3))
    own = (
        first.sort("slide_id")
        .group_by("patient_id")
        .agg(pl.col("scanner").first())
        .filter(pl.col("scanner") == "x")
    )
    patients = (
        model.filter(pl.col("role") == "test")
        .join(own, on="patient_id")
        .group_by("patient_id")
        .agg(pl.col("target").first(), pl.col("prob_0").mean())
    )
    row = table.filter(
        (pl.col("by") == "scanner") & (pl.col("group") == "x") & (pl.col("class") == "0")
    ).row(0, named=True)
    expected = roc_auc_score(patients["target"].to_numpy() == 0, patients["prob_0"].to_numpy())
    assert row["value"] == pytest.approx(expected)


def test_a_part_without_a_class_is_null_with_the_reason_and_a_small_one_is_noted() -> None:
    model = predictions(40)
    cohort = cohort_of(model).with_columns(
        site=pl.when(pl.col("slide_id") < "s003").then(pl.lit("small")).otherwise(pl.lit("large"))
    )
    table = subgroup_figures(model, cohort, SCORE, SECTION, seed=0)
    row = macro(table.filter(pl.col("group") == "small"))
    assert row["n"] == 3
    assert row["value"] is None
    assert "a class is absent" in row["note"]
    assert "fewer than 10 patients" in row["note"]
    assert "fewer than" not in macro(table.filter(pl.col("group") == "large"))["note"]


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
