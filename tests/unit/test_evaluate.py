import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    roc_auc_score,
)

from her2.config import EvaluationSection, Task
from her2.config.jobs import EvaluateSpec
from her2.core.errors import UserError
from her2.core.files import digest
from her2.core.tables import write_table
from her2.evaluation.figures import confusion_table, figures, fold_figures
from her2.evaluation.predictions import gather_predictions, out_of_fold
from her2.evaluation.stage import evaluate, evaluation_tables
from her2.storage.cache import Cache
from her2.storage.entries import FoldEntry, write_entries
from tests.unit.prediction_makers import predictions as made_predictions
from tests.unit.products import reseal

SCORE = Task(
    label="her2",
    classes={"0": ["0"], "1+": ["1+"], "2+": ["2+"], "3+": ["3+"]},
    ordinal=True,
)
BINARY = Task(label="her2", classes={"negative": ["0", "1+"], "positive": ["2+", "3+"]})
PROBS = [f"prob_{name}" for name in SCORE.class_names]
SECTION = EvaluationSection(bootstrap=400)


def probabilities(labels: np.ndarray, signal: float, seed: int, classes: int = 4) -> np.ndarray:
    """Return rows that sum to one, with the true class raised by `signal` above normal noise."""
    logits = np.random.default_rng(seed).normal(size=(len(labels), classes))
    logits[np.arange(len(labels)), labels] += signal
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def slides_table(
    labels: np.ndarray, probs: np.ndarray, patients: Sequence[str] | None = None
) -> pl.DataFrame:
    """Return the predictions of one model, which tested all slides."""
    names = [f"s{i:03d}" for i in range(len(labels))]
    zero = pl.Series([0] * len(labels), dtype=pl.Int32)
    return pl.DataFrame(
        {
            "slide_id": names,
            "patient_id": patients or [f"p-{name}" for name in names],
            **dict.fromkeys(("repeat", "fold", "seed"), zero),
            "role": ["test"] * len(labels),
            "target": pl.Series(labels, dtype=pl.Int32),
            "predicted": pl.Series(probs.argmax(axis=1), dtype=pl.Int32),
            **{f"prob_{SCORE.class_names[i]}": probs[:, i] for i in range(probs.shape[1])},
        }
    )


def cohort_labels(n: int = 80) -> np.ndarray:
    """Return labels of all classes, with unequal counts."""
    return np.tile([0, 1, 2, 3, 1, 2, 2, 3, 0, 1], -(-n // 10))[:n]


def measured(table: pl.DataFrame, task: Task = SCORE, **changed: object) -> dict:
    options = {"level": "slide", "seed": 1} | changed
    rows = figures(table, task, options.pop("section", SECTION), **options).to_dicts()
    return {(row["metric"], row["class"]): row for row in rows}


def predictions(rows: list[tuple], classes: Sequence[str] = ("a", "b")) -> pl.DataFrame:
    """(slide, patient, repeat, role, target, probabilities...)."""
    return pl.DataFrame(
        rows,
        schema=["slide_id", "patient_id", "repeat", "role", "target"]
        + [f"prob_{name}" for name in classes],
        orient="row",
    )


def test_point_figures_are_scikit_learns() -> None:
    labels = cohort_labels()
    probs = probabilities(labels, 1.0, seed=0)
    found = measured(slides_table(labels, probs))
    predicted = probs.argmax(axis=1)
    expected = {
        ("auc", "macro"): roc_auc_score(labels, probs, multi_class="ovr", average="macro"),
        ("auc", "weighted"): roc_auc_score(labels, probs, multi_class="ovr", average="weighted"),
        ("balanced_accuracy", ""): balanced_accuracy_score(labels, predicted),
        ("macro_f1", ""): f1_score(labels, predicted, average="macro"),
        ("quadratic_kappa", ""): cohen_kappa_score(labels, predicted, weights="quadratic"),
        ("ordinal_mae", ""): mean_absolute_error(labels, predicted),
        # The sum over classes: scikit-learn's Brier score of many classes may be its half.
        ("brier", ""): np.mean(((probs - np.eye(4)[labels]) ** 2).sum(axis=1)),
        ("log_loss", ""): log_loss(labels, probs),
    }
    for i, name in enumerate(SCORE.classes):
        expected["auc", name] = roc_auc_score(labels == i, probs[:, i])
        expected["auc_pooled", name] = expected["auc", name]  # one test set
        expected["auprc", name] = average_precision_score(labels == i, probs[:, i])
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected)


def test_kappa_is_reported_for_ordered_classes_only() -> None:
    labels = cohort_labels()
    table = slides_table(labels, probabilities(labels, 1.0, seed=0))
    unordered = SCORE.model_copy(update={"ordinal": False})
    for metric in ("quadratic_kappa", "ordinal_mae"):
        assert (metric, "") in measured(table)
        assert (metric, "") not in measured(table, unordered)


def test_each_figure_says_how_many_it_was_taken_over() -> None:
    labels = np.array([0] * 5 + [1] * 7 + [2] * 3 + [3] * 6)
    found = measured(slides_table(labels, probabilities(labels, 1.0, seed=0)))
    assert {row["n"] for row in found.values()} == {21}
    positives = [found["auc", name]["n_positive"] for name in SCORE.class_names]
    assert positives == [5, 7, 3, 6]
    assert found["auc", "macro"]["n_positive"] is None
    assert [found["auprc", name]["prevalence"] for name in SCORE.class_names] == pytest.approx(
        [5 / 21, 7 / 21, 3 / 21, 6 / 21]
    )


def test_shuffled_labels_leave_one_half_inside_the_interval_of_the_macro_auc() -> None:
    labels = cohort_labels()
    probs = probabilities(labels, 1.5, seed=0)
    generator = np.random.default_rng(0)
    section = EvaluationSection(bootstrap=200)
    inside = 0
    for _ in range(60):
        row = measured(slides_table(generator.permutation(labels), probs), section=section)[
            "auc", "macro"
        ]
        inside += row["low"] <= 0.5 <= row["high"]
    # Of 60 intervals at 95 %, 57 on average; below 51 has a chance of about 1 in 200.
    assert inside >= 51


def test_a_true_signal_clears_one_half() -> None:
    labels = cohort_labels()
    found = measured(slides_table(labels, probabilities(labels, 1.5, seed=0)))
    for name in ("macro", *SCORE.class_names):
        assert found["auc", name]["low"] > 0.5
        row = found["auc", name]
        assert row["low"] < row["value"] < row["high"]


def test_copies_of_a_patients_slides_narrow_no_interval() -> None:
    # Three equal slides a patient: as much evidence as one. A bootstrap over slides would see
    # three times as much.
    labels = cohort_labels(40)
    probs = probabilities(labels, 1.0, seed=0)
    patients = [f"p{i}" for i in range(40)]
    once = measured(slides_table(labels, probs, patients))
    thrice = measured(
        slides_table(np.repeat(labels, 3), np.repeat(probs, 3, 0), np.repeat(patients, 3).tolist())
    )
    for name, row in once.items():
        for side in ("value", "low", "high"):
            assert thrice[name][side] == pytest.approx(row[side]), (name, side)


def test_the_bootstrap_keeps_the_classes_so_a_rare_one_still_has_an_interval() -> None:
    # An unstratified resample of 40 would miss the two rare patients in every seventh draw.
    labels = np.array([0] * 20 + [1] * 16 + [2] * 2 + [3] * 2)
    found = measured(slides_table(labels, probabilities(labels, 1.0, seed=0)))
    assert all(row["low"] is not None and row["note"] == "" for row in found.values())


def test_the_seed_and_the_confidence_decide_the_interval() -> None:
    labels = cohort_labels()
    table = slides_table(labels, probabilities(labels, 1.0, seed=0))
    first, again, other = (measured(table, seed=s) for s in (1, 1, 2))
    assert first == again
    resampled = ("auc_pooled", "macro")
    assert first[resampled]["low"] != other[resampled]["low"]
    wide = measured(table, section=EvaluationSection(bootstrap=400, confidence=0.99))
    for name in (resampled, ("auc", "macro")):
        assert wide[name]["low"] < first[name]["low"]
        assert wide[name]["high"] > first[name]["high"]


def test_the_interval_of_an_auc_depends_on_no_seed() -> None:
    labels = cohort_labels()
    table = slides_table(labels, probabilities(labels, 1.0, seed=0))
    first, other = (measured(table, seed=s)["auc", "macro"] for s in (1, 2))
    assert first == other


def test_figures_of_an_absent_class_are_null_with_the_reason() -> None:
    labels = np.arange(40) % 3  # no 3+
    found = measured(slides_table(labels, probabilities(labels, 1.0, seed=0)))
    undefined = {(metric, name) for metric in ("auc", "auc_pooled")
                 for name in ("3+", "macro", "weighted")} | {("auprc", "3+")}  # fmt: skip
    undefined |= {("balanced_accuracy", ""), ("macro_f1", "")}
    assert {name for name, row in found.items() if row["value"] is None} == undefined
    for name in undefined:
        row = found[name]
        assert (row["value"], row["low"], row["high"]) == (None, None, None)
        assert row["note"] == "not defined: a class is absent"
    assert found["auc", "3+"]["n_positive"] == 0
    assert found["auc", "0"]["value"] is not None
    assert found["auc", "0"]["low"] is not None
    assert found["auc", "0"]["note"] == ""


def test_test_sets_of_one_class_each_are_the_reason_and_no_class_is_said_to_be_absent() -> None:
    labels = np.arange(40) % 4
    table = slides_table(labels, probabilities(labels, 1.0, seed=0))
    found = measured(table.with_columns(fold=pl.col("target").cast(pl.Int32)))
    for name in ("0", "1+", "2+", "3+", "macro", "weighted"):
        row = found["auc", name]
        assert row["value"] is None
        assert row["note"] == "not defined: no test set has patients of both sides"
        assert found["auc_pooled", name]["value"] is not None


def test_a_slide_is_averaged_over_repeats() -> None:
    table = predictions(
        [
            ("s1", "p1", 0, "test", 0, 0.9, 0.1),
            ("s1", "p1", 1, "test", 0, 0.4, 0.6),
            ("s2", "p2", 0, "test", 1, 0.2, 0.8),
            ("s2", "p2", 1, "test", 1, 0.4, 0.6),
        ]
    )
    found = out_of_fold(table, ("a", "b"), by="slide_id")
    assert found["slide_id"].to_list() == ["s1", "s2"]
    assert found["prob_a"].to_list() == pytest.approx([0.65, 0.3])
    assert found["target"].to_list() == [0, 1]
    assert found["predicted"].to_list() == [0, 1]


def test_a_patient_is_the_mean_of_its_slides() -> None:
    table = predictions(
        [
            ("s1", "p1", 0, "test", 1, 0.9, 0.1),
            ("s2", "p1", 0, "test", 1, 0.3, 0.7),
            ("s3", "p1", 0, "test", 1, 0.0, 1.0),
            ("s4", "p2", 0, "test", 0, 0.6, 0.4),
        ]
    )
    found = out_of_fold(table, ("a", "b"), by="patient_id")
    assert found.columns == ["patient_id", "target", "predicted", "prob_a", "prob_b"]
    assert found["patient_id"].to_list() == ["p1", "p2"]
    assert found["prob_b"].to_list() == pytest.approx([0.6, 0.4])
    assert found["predicted"].to_list() == [1, 0]


def test_unlabelled_slides_are_in_no_figure() -> None:
    rows = [("s1", "p1", 0, "test", 0, 0.9, 0.1), ("s2", "p1", 0, "predict", None, 0.0, 1.0)]
    for by in ("slide_id", "patient_id"):
        found = out_of_fold(predictions(rows), ("a", "b"), by=by)
        assert found["prob_a"].to_list() == [0.9]


def test_the_confusion_table_counts_every_pair() -> None:
    labels = np.array([0, 0, 1, 3])
    probs = np.eye(4)[[0, 2, 1, 3]]
    rows = confusion_table(slides_table(labels, probs), SCORE, level="slide").to_dicts()
    assert len(rows) == 16
    counted = {(row["true"], row["predicted"]): row["count"] for row in rows if row["count"]}
    assert counted == {("0", "0"): 1, ("0", "2+"): 1, ("1+", "1+"): 1, ("3+", "3+"): 1}
    shares = {(row["true"], row["predicted"]): row["share"] for row in rows}
    assert shares["0", "0"] == shares["0", "2+"] == 0.5
    assert shares["1+", "1+"] == 1
    assert shares["1+", "0"] == 0
    assert shares["2+", "2+"] is None  # nobody is of this class


class Models:
    """A folds table and trained folds, as `make_folds` and `train_folds` write them."""

    def __init__(self, root: Path, *, repeats: int = 2, patients: int = 24) -> None:
        self.cache, self.models = Cache(root / "cache"), root / "models"
        self.folds, self.output = root / "folds.parquet", root / "evaluation"
        generator = np.random.default_rng(0)
        records, manifests = [], {}
        for repeat in range(repeats):
            entries = {}
            for fold in range(2):
                held: list[tuple] = []
                tuned: list[tuple] = []
                for i in range(patients):
                    label = i % 2 if i < patients - 2 else None  # the last two: unlabelled
                    tested = (i // 2 + repeat) % 2 == fold
                    role = "predict" if label is None else ("test" if tested else "train")
                    if role == "train" and i % 3 == 1:
                        role = "tune"
                    for letter in "ab" if i % 3 == 0 else "a":
                        slide = f"s{i:02d}-{letter}"
                        records.append((slide, f"p{i:02d}", label, repeat, fold, role))
                        if role != "train":
                            p = float(generator.uniform(0.05, 0.95))
                            part = tuned if role == "tune" else held
                            part.append((slide, f"p{i:02d}", 1 - p, p))
                entries[f"r{repeat}f{fold}"] = self.publish(held, tuned)
            manifests[f"r{repeat}f0-r{repeat}f1"] = entries
        for name, entries in manifests.items():
            write_entries(self.models / f"{name}.json", entries)
        self.manifests = manifests
        schema = {
            "slide_id": pl.String, "patient_id": pl.String, "label": pl.Int32,
            "repeat": pl.Int32, "fold": pl.Int32, "role": pl.String,
        }  # fmt: skip
        pl.DataFrame(records, schema=schema, orient="row").write_parquet(self.folds)
        self.spec = EvaluateSpec(task=BINARY, chunks=tuple(manifests), evaluation=SECTION, seed=3)

    def publish(self, held: list[tuple], tuned: list[tuple]) -> FoldEntry:
        key = digest([held, tuned])
        columns = ["slide_id", "patient_id", "prob_negative", "prob_positive"]
        with self.cache.publish("models", key) as folder:
            for name, rows in (("predictions", held), ("tune", tuned)):
                schema = dict(zip(columns, [pl.String] * 2 + [pl.Float64] * 2, strict=True))
                pl.DataFrame(rows, schema=schema, orient="row").write_parquet(
                    folder / f"{name}.parquet"
                )
            reseal(folder, key=key)
        return FoldEntry(key, 1, 1, 1, 0, 1, 0.5)

    def change(self, slide_id: str, value: float | None) -> None:
        """Set another probability for a slide of the first fold."""
        path = self.cache.path("models", self.manifests["r0f0-r0f1"]["r0f0"].key)
        table = pl.read_parquet(path / "predictions.parquet")
        assert slide_id in table["slide_id"].to_list()
        chosen = pl.col("slide_id") == slide_id
        other = pl.when(chosen).then(pl.lit(value, pl.Float64)).otherwise("prob_positive")
        table.with_columns(prob_positive=other).write_parquet(path / "predictions.parquet")
        reseal(path)

    def gather(self) -> pl.DataFrame:
        return gather_predictions(self.spec, self.cache, folds=self.folds, models=self.models)

    def evaluate(self) -> pl.DataFrame:
        return evaluate(
            self.spec, self.cache, folds=self.folds, models=self.models, output=self.output
        )


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path)


def test_predictions_are_one_row_a_held_out_slide_repeat_and_fold(models: Models) -> None:
    table = models.gather()
    assert table.columns == [
        "slide_id", "patient_id", "repeat", "fold", "seed", "role", "target",
        "prob_negative", "prob_positive",
    ]  # fmt: skip
    assert not table.select("slide_id", "repeat", "fold").is_duplicated().any()
    expected = pl.read_parquet(models.folds).filter(pl.col("role") != "train")
    assert set(expected["role"]) == {"test", "tune", "predict"}
    keys = ["slide_id", "patient_id", "repeat", "fold", "role"]
    assert set(table.select(keys).iter_rows()) == set(expected.select(keys).iter_rows())


def test_every_reported_figure_follows_from_the_predictions_table_alone(models: Models) -> None:
    metrics = models.evaluate()
    table = pl.read_parquet(models.output / "predictions.parquet")
    tested = table.filter(pl.col("role") == "test")
    for level, key in (("slide", "slide_id"), ("patient", "patient_id")):
        means = tested.group_by(key).agg(pl.col("target").first(), pl.col("prob_positive").mean())
        pooled = roc_auc_score(means["target"], means["prob_positive"])
        found = metrics.filter((pl.col("level") == level) & (pl.col("class") == "positive"))
        values = dict(found.select("metric", "value").iter_rows())
        assert values["auc_pooled"] == pytest.approx(pooled)
        assert values["auc"] == pytest.approx(within_folds(tested, key))
        assert set(found["n"]) == {len(means)}


def within_folds(tested: pl.DataFrame, key: str) -> float:
    """Return the mean over repeats of the AUC over pairs of one test set, by scikit-learn."""
    rounds = []
    for (_,), own in tested.group_by("repeat"):
        won = pairs = 0.0
        for (_,), rows in own.group_by("fold"):
            means = rows.group_by(key).agg(pl.col("target").first(), pl.col("prob_positive").mean())
            ups = int(means["target"].sum())
            count = ups * (len(means) - ups)
            if count:
                won += count * roc_auc_score(means["target"], means["prob_positive"])
                pairs += count
        rounds.append(won / pairs)
    return float(np.mean(rounds))


def test_tables_are_written_as_parquet_and_csv_with_equal_content(models: Models) -> None:
    metrics = models.evaluate()
    names = (
        "predictions", "slides", "patients", "metrics", "fold_metrics", "confusion", "binary",
        "seeds", "priors", "temperatures", "calibration", "reliability", "operating",
        "decision",
    )  # fmt: skip
    assert {path.name for path in models.output.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("csv", "parquet")
    }
    assert pl.read_parquet(models.output / "metrics.parquet").equals(metrics)
    patients = pl.read_parquet(models.output / "patients.parquet")
    text = pl.read_csv(models.output / "patients.csv", schema=patients.schema)
    assert text.equals(patients)


def test_evaluating_again_writes_the_same_bytes(models: Models) -> None:
    models.evaluate()
    before = {path.name: path.read_bytes() for path in models.output.iterdir()}
    models.evaluate()
    assert {path.name: path.read_bytes() for path in models.output.iterdir()} == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_probability_that_is_not_finite_is_refused_naming_the_slide(
    models: Models, value: float | None
) -> None:
    models.change("s00-b", value)
    with pytest.raises(UserError, match=r"1 predictions cannot be evaluated .*: s00-b\."):
        models.evaluate()
    assert not models.output.exists()


def test_a_predicted_slide_that_the_folds_do_not_hold_out_is_refused(models: Models) -> None:
    table = pl.read_parquet(models.folds).filter(pl.col("slide_id") != "s04-a")
    table.write_parquet(models.folds)
    with pytest.raises(UserError, match=r"not held out in the folds table.*: s04-a\."):
        models.gather()


def test_a_prediction_of_a_train_slide_is_refused(models: Models) -> None:
    # A model's own train slide among its predictions would be a leak.
    trained = pl.when(
        (pl.col("slide_id") == "s04-a") & (pl.col("role") == "test") & (pl.col("repeat") == 0)
    )
    table = pl.read_parquet(models.folds)
    table.with_columns(role=trained.then(pl.lit("train")).otherwise("role")).write_parquet(
        models.folds
    )
    with pytest.raises(UserError, match=r"not held out .*: s04-a\."):
        models.gather()


def test_a_patient_in_two_parts_is_refused(models: Models) -> None:
    table = pl.read_parquet(models.folds)
    tested = (pl.col("slide_id") == "s00-b") & (pl.col("role") == "test")
    moved = pl.when(tested).then(pl.lit("tune")).otherwise("role")
    table.with_columns(role=moved).write_parquet(models.folds)
    with pytest.raises(UserError, match="p00 in test and tune"):
        models.gather()


def test_a_fold_that_left_the_cache_is_named_with_the_fix(models: Models) -> None:
    folder = models.cache.path("models", models.manifests["r1f0-r1f1"]["r1f1"].key)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="r1f1: .*is not in the cache.*run snakemake again"):
        models.gather()


def test_a_tune_prediction_of_a_test_slide_is_refused(models: Models) -> None:
    """No prediction for a test set may influence a temperature or a threshold."""
    table = pl.read_parquet(models.folds)
    slide = table.filter(pl.col("role") == "tune")["slide_id"][0]
    changed = pl.when((pl.col("slide_id") == slide) & (pl.col("role") == "tune"))
    table.with_columns(role=changed.then(pl.lit("test")).otherwise("role")).filter(
        pl.col("patient_id") != "p00"
    ).write_parquet(models.folds)
    with pytest.raises(UserError, match=f"not held out in the folds table.*{slide}"):
        models.gather()


def test_a_patient_of_two_classes_is_refused(models: Models) -> None:
    table = pl.read_parquet(models.folds)
    changed = pl.when((pl.col("slide_id") == "s00-b") & (pl.col("role") == "test"))
    table.with_columns(label=changed.then(1).otherwise("label").cast(pl.Int32)).write_parquet(
        models.folds
    )
    with pytest.raises(UserError, match=r"1 patients have slides of two classes.*p00 \(s00-a, s00"):
        models.gather()


def test_a_model_without_its_tuning_set_is_named(models: Models) -> None:
    folder = models.cache.path("models", models.manifests["r1f0-r1f1"]["r1f1"].key)
    (folder / "tune.parquet").unlink()
    reseal(folder)
    with pytest.raises(UserError, match=r"r1f1: its model has no tune\.parquet"):
        models.gather()


@pytest.mark.parametrize("name", ["predictions", "tune"])
def test_predictions_that_were_changed_in_place_are_not_evaluated(
    models: Models, name: str
) -> None:
    path = models.cache.path("models", models.manifests["r1f0-r1f1"]["r1f1"].key)
    table = pl.read_parquet(path / f"{name}.parquet")
    table.with_columns(prob_positive=1 - pl.col("prob_positive")).write_parquet(
        path / f"{name}.parquet"
    )
    with pytest.raises(UserError, match=rf"changed file {name}\.parquet.*--quarantine"):
        models.gather()


def test_predictions_for_tuning_sets_are_in_no_figure(models: Models) -> None:
    """Only temperatures, thresholds and the figures based on them depend on it."""
    before = evaluation_tables(models.spec, models.gather())
    reversed_tune = models.gather().with_columns(
        pl.when(pl.col("role") == "tune")
        .then(pl.col(f"prob_{other}"))
        .otherwise(pl.col(f"prob_{name}"))
        .alias(f"prob_{name}")
        for name, other in (("negative", "positive"), ("positive", "negative"))
    )
    after = evaluation_tables(models.spec, reversed_tune)
    changed = {name for name, table in before.items() if not table.equals(after[name])}
    assert changed <= {
        "predictions", "temperatures", "calibration", "reliability", "operating", "decision",
    }  # fmt: skip
    for name in ("calibration", "reliability", "decision"):
        plain = pl.col("state") == "as predicted"
        assert before[name].filter(plain).equals(after[name].filter(plain)), name


def test_permuting_the_predictions_changes_no_table(models: Models) -> None:
    table = models.gather()
    before = evaluation_tables(models.spec, table)
    after = evaluation_tables(models.spec, table.sample(fraction=1, shuffle=True, seed=1))
    for name in before:
        if name != "predictions":
            assert_frame_equal(before[name], after[name], rel_tol=1e-9)


def test_each_fold_is_measured_on_its_own_test_set(models: Models) -> None:
    table = models.gather()
    found = fold_figures(table, BINARY, level="slide")
    for repeat, fold in ((0, 0), (1, 1)):
        own = table.filter(
            (pl.col("repeat") == repeat) & (pl.col("fold") == fold) & (pl.col("role") == "test")
        )
        row = found.row(
            by_predicate=(pl.col("run") == f"r{repeat}f{fold}")
            & (pl.col("metric") == "auc")
            & (pl.col("class") == "positive"),
            named=True,
        )
        assert row["value"] == pytest.approx(roc_auc_score(own["target"], own["prob_positive"]))
        assert (row["n"], row["n_positive"]) == (len(own), own["target"].sum())
    # Of one test set the pooled AUC is the AUC.
    assert {"auc", "auprc", "brier"} <= set(found["metric"])
    assert "auc_pooled" not in set(found["metric"])


def test_a_fold_that_lacks_a_class_is_na_and_the_others_are_not() -> None:
    rows = [("s1", "p1", 0, 0, 0, "test", 0, 0.9, 0.1), ("s2", "p2", 0, 0, 0, "test", 1, 0.2, 0.8)]
    rows += [("s3", "p3", 0, 1, 0, "test", 0, 0.6, 0.4), ("s4", "p4", 0, 1, 0, "test", 0, 0.7, 0.3)]
    columns = ["slide_id", "patient_id", "repeat", "fold", "seed", "role", "target"]
    table = pl.DataFrame(rows, schema=[*columns, "prob_negative", "prob_positive"], orient="row")
    found = fold_figures(table, BINARY, level="patient").filter(pl.col("metric") == "auc")
    by_run = {row["run"]: row for row in found.filter(pl.col("class") == "positive").to_dicts()}
    assert by_run["r0f0"]["value"] == 1
    assert by_run["r0f1"]["value"] is None
    assert by_run["r0f1"]["note"] == "not defined: a class is absent"


def few(targets: Sequence[int], probabilities: Sequence[Sequence[float]]) -> pl.DataFrame:
    """Return predictions of one fold for the task SCORE, one row per patient, no tuning set."""
    records = [
        {"slide_id": f"s{i}", "patient_id": f"p{i}", "repeat": 0, "fold": 0, "seed": 0,
         "role": "test", "target": target, **dict(zip(PROBS, row, strict=True))}
        for i, (target, row) in enumerate(zip(targets, probabilities, strict=True))
    ]  # fmt: skip
    schema = {"slide_id": pl.String, "patient_id": pl.String, "target": pl.Int32}
    schema |= dict.fromkeys(("repeat", "fold", "seed"), pl.Int32) | {"role": pl.String}
    return pl.DataFrame(records, schema=schema | dict.fromkeys(PROBS, pl.Float64))


def tables_of(predictions: pl.DataFrame) -> dict[str, pl.DataFrame]:
    spec = EvaluateSpec(task=SCORE, chunks=(), evaluation=SECTION, seed=3)
    return evaluation_tables(spec, predictions)


def test_equal_predictions_give_tables_with_equal_bytes() -> None:
    """Sums of shares of repeats differ in the last bit if their order does."""
    made = made_predictions(80, repeats=3, slides=2)
    tables = [
        {name: table.write_json() for name, table in tables_of(made).items()} for _ in range(6)
    ]
    for name, first in tables[0].items():
        assert all(own[name] == first for own in tables), name


def test_tables_of_one_patient_are_full_of_reasons() -> None:
    found = tables_of(few([2], [[0.1, 0.2, 0.4, 0.3]]))
    metrics = {(row["metric"], row["class"]): row for row in found["metrics"].to_dicts()}
    assert metrics["auc", "2+"]["note"] == "not defined: every slide is of this class"
    for table in ("metrics", "binary", "calibration", "operating"):
        for row in found[table].to_dicts():
            value = row.get("value", row.get("sensitivity"))
            assert value is not None or row["note"], (table, row)
            assert row.get("low") is None, (table, row)
            assert row["note"], (table, row)
    assert found["temperatures"]["note"].to_list() == ["no tuning set"]
    assert len(found["decision"]) == 0


def test_tables_of_nobody_are_full_of_reasons() -> None:
    found = tables_of(few([], []))
    for table in ("metrics", "binary", "calibration", "operating"):
        assert len(found[table])
        assert found[table]["note"].str.len_chars().min() > 0, table


def test_equal_probabilities_are_chance_by_ties_and_have_no_interval() -> None:
    found = tables_of(few([0, 1, 2, 3] * 5, [[0.25] * 4] * 20))
    metrics = {(row["metric"], row["class"]): row for row in found["metrics"].to_dicts()}
    binary = found["binary"].filter(pl.col("metric") == "auc").to_dicts()
    for row in (metrics["auc", "macro"], metrics["auc", "0"], *binary):
        assert (row["value"], row["low"], row["high"]) == (0.5, None, None)
        assert row["note"] == "interval not defined: the predictions do not vary"
    assert metrics["auprc", "3+"]["value"] == metrics["auprc", "3+"]["prevalence"]


def test_a_class_above_all_others_is_no_certainty() -> None:
    found = tables_of(few([0, 1, 2, 3] * 5, [np.eye(4)[i].tolist() for i in range(4)] * 5))
    metrics = {(row["metric"], row["class"]): row for row in found["metrics"].to_dicts()}
    binary = found["binary"].filter(pl.col("metric") == "auc")
    for row in (metrics["auc", "3+"], metrics["auc", "macro"], *binary.to_dicts()):
        assert (row["value"], row["high"], row["note"]) == (1.0, 1.0, "")
        assert 0.4 < row["low"] < 0.95
    pooled = metrics["auc_pooled", "macro"]
    assert (pooled["value"], pooled["low"]) == (1.0, None)
    assert "all resamples give the same value" in pooled["note"]


def test_a_class_of_one_patient_gives_no_interval_to_what_rests_on_it() -> None:
    """Every resample of one patient is that patient, so an interval would be too narrow."""
    labels = np.array([0] * 9 + [1] * 9 + [2] * 9 + [3])
    found = measured(slides_table(labels, probabilities(labels, 1.0, seed=0)))
    reasons = {
        ("auc", "3+"): "a side has 1 patient",
        ("auc", "macro"): "a class has 1 patient",
        ("auc_pooled", "3+"): "fewer than 2 patients of 3+",
        ("balanced_accuracy", ""): "fewer than 2 patients of 3+",
    }
    for name, reason in reasons.items():
        assert found[name]["value"] is not None
        assert found[name]["low"] is None
        assert found[name]["note"] == f"interval not defined: {reason}"
    for name in (("auc", "0"), ("brier", ""), ("quadratic_kappa", "")):
        assert found[name]["low"] is not None, name


def test_a_table_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    nested = pl.DataFrame({"a": [[1, 2]]})  # CSV has no lists
    with pytest.raises(pl.exceptions.ComputeError):
        write_table(nested, tmp_path / "out" / "t")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "module", ["her2.evaluation.stage", "her2.evaluation.compare", "her2.evaluation.controls.stage"]
)
def test_a_stage_of_tables_starts_without_slow_imports(module: str) -> None:
    """The imports take seconds per job; only the fit of covariates needs scikit-learn."""
    slow = {"torch", "sklearn", "scipy.stats", "statsmodels", "pandas", "matplotlib", "zarr"}
    code = f"import sys, {module}; print(*sorted({slow!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
