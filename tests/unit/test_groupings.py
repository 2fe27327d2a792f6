"""Groupings of the classes into two sides: the tasks that have them, and their figures."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from her2.config import EvaluationSection, GroupingSection, Task, parse_config
from her2.core.errors import UserError
from her2.evaluation.binary import binary_table
from her2.evaluation.groupings import groupings_of, two_sides
from her2.evaluation.predictions import Rows, out_of_fold
from tests.unit.prediction_makers import SCORE, predictions

SECTION = EvaluationSection(bootstrap=300)
NAMES = ["0/1+ vs 2+/3+", "0 vs 1+", "0/1+/2+ vs 3+"]
SIDES = {NAMES[0]: ([0, 1], [2, 3]), NAMES[1]: ([0], [1]), NAMES[2]: ([0, 1, 2], [3])}


def config(groupings: object = None, classes: object = None):
    values = {
        "cohort": {"slides": "x"},
        "tasks": {"t": {"label": "x", "classes": classes or dict(SCORE.classes)}},
        "encoders": {"e": {"source": "random", "model": "timm/x", "mpp": 1, "size": 96}},
        "heads": {"abmil": {}},
    }
    if groupings is not None:
        values["evaluation"] = {"groupings": groupings}
    return parse_config(values)


def test_a_task_has_the_groupings_whose_classes_it_has() -> None:
    assert [one.name for one in groupings_of(SCORE, SECTION)] == NAMES
    low = Task(label="x", classes={"0": ["0"], "1+": ["1"]})
    assert [one.name for one in groupings_of(low, SECTION)] == ["0 vs 1+"]
    three = Task(label="x", classes={"low": ["0"], "mid": ["1"], "high": ["2"]})
    assert groupings_of(three, SECTION) == ()


def test_a_task_of_two_classes_is_its_own_grouping() -> None:
    status = Task(label="x", classes={"negative": ["0"], "positive": ["1"]})
    (own,) = groupings_of(status, SECTION)
    assert (own.name, own.negative, own.positive) == ("negative vs positive", (0,), (1,))


def test_the_config_names_groupings_in_its_own_order() -> None:
    found = config({"z": {"negative": ["3+"], "positive": ["0"]},
                    "a": {"negative": ["0"], "positive": ["2+", "1+"]}})  # fmt: skip
    groupings = groupings_of(found.tasks["t"], found.evaluation)
    assert [(one.name, one.negative, one.positive) for one in groupings] == [
        ("z", (3,), (0,)), ("a", (0,), (2, 1)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("grouping", "words"),
    [
        ({"negative": ["0"], "positive": ["4+"]}, r"evaluation\.groupings\.mine: no task has"),
        ({"negative": ["0"], "positive": ["0", "1+"]}, "'0' is listed twice"),
        ({"negative": [], "positive": ["0"]}, r"groupings\.mine\.negative"),
        ({"negative": [0], "positive": ["1+"]}, "put it in quotes"),
        ({"low": ["0"], "positive": ["1+"]}, "the legal keys are negative, positive"),
    ],
)
def test_a_grouping_that_cannot_be_is_refused_by_its_key(grouping: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        config({"mine": grouping})


def test_the_default_groupings_ask_nothing_of_another_cohort() -> None:
    found = config(classes={"responder": ["1"], "other": ["0"]})
    assert list(found.evaluation.groupings) == NAMES
    # As a spec hands it on: written out, it reads the same.
    again = parse_config(found.model_dump(mode="json"))
    assert again == found


def test_the_score_is_the_positive_share_of_both_sides() -> None:
    rows = Rows(
        target=np.array([0, 1, 2, 3]),
        probabilities=np.array(
            [[0.1, 0.2, 0.3, 0.4], [0.5, 0.0, 0.5, 0.0], [0, 0, 0.6, 0.4], [0.25] * 4]
        ),
        patients=np.arange(4),
    )
    first, second, third = groupings_of(SCORE, SECTION)
    assert two_sides(rows.target, rows.probabilities, first).scores == pytest.approx(
        [0.7, 0.5, 1.0, 0.5]
    )
    assert two_sides(rows.target, rows.probabilities, second).scores == pytest.approx([2 / 3, 0.0])
    assert two_sides(rows.target, rows.probabilities, second).kept.tolist() == [1, 1, 0, 0]
    assert two_sides(rows.target, rows.probabilities, third).scores == pytest.approx(
        [0.4, 0.0, 0.4, 0.25]
    )


def test_no_probability_for_either_side_is_undecided_and_said() -> None:
    section = EvaluationSection(
        bootstrap=100, groupings={"g": GroupingSection(negative=("0",), positive=("1+",))}
    )
    table = pl.DataFrame(
        {
            "slide_id": list("abcd"), "patient_id": list("abcd"), "target": [0, 0, 1, 1],
            "repeat": [0] * 4, "fold": [0] * 4, "seed": [0] * 4, "role": ["test"] * 4,
            "prob_0": [0.5, 0.0, 0.1, 0.2], "prob_1+": [0.1, 0.0, 0.5, 0.6],
            "prob_2+": [0.4, 0.5, 0.4, 0.2], "prob_3+": [0.0, 0.5, 0.0, 0.0],
        }
    )  # fmt: skip
    found = binary_table(table, SCORE, section, level="patient", seed=1)
    assert all("1 with probability 0 for both sides scored 0.5" in n for n in found["note"])


def of_level(level: str, **options: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the averaged rows of one test set, where pooled and within folds are the same."""
    made = predictions(**options).with_columns(fold=pl.lit(0, pl.Int32))
    table = out_of_fold(made, SCORE.class_names, by=f"{level}_id")
    return table, binary_table(made, SCORE, SECTION, level=level, seed=1)


def test_figures_of_both_sides_are_scikit_learns() -> None:
    table, found = of_level("patient")
    probabilities = table.select(f"prob_{name}" for name in SCORE.class_names).to_numpy()
    target = table["target"].to_numpy()
    for name, (negative, positive) in SIDES.items():
        kept = np.isin(target, negative + positive)
        up = probabilities[kept][:, positive].sum(axis=1)
        scores = up / (up + probabilities[kept][:, negative].sum(axis=1))
        truth = np.isin(target[kept], positive)
        rows = {r["metric"]: r for r in found.filter(pl.col("grouping") == name).to_dicts()}
        area = roc_auc_score(truth, scores)
        assert rows["auc"]["value"] == rows["auc_pooled"]["value"] == pytest.approx(area)
        assert rows["auprc"]["value"] == pytest.approx(average_precision_score(truth, scores))
        assert rows["brier"]["value"] == pytest.approx(brier_score_loss(truth, scores))
        for row in rows.values():
            assert (row["n"], row["n_positive"]) == (len(truth), truth.sum())
            assert row["prevalence"] == pytest.approx(truth.mean())


def test_slides_of_a_patient_are_no_more_evidence_than_the_patient() -> None:
    made = predictions(slides=1)
    copied = pl.concat([made, made.with_columns(slide_id=pl.col("slide_id") + "-copy")])
    once, twice = (
        binary_table(table, SCORE, SECTION, level="slide", seed=1).filter(pl.col("metric") == "auc")
        for table in (made, copied)
    )
    for column in ("value", "low", "high"):
        assert twice[column].to_numpy() == pytest.approx(once[column].to_numpy())


def test_a_missing_side_leaves_its_grouping_open_and_the_others_not() -> None:
    found = binary_table(
        predictions().filter(pl.col("target") != 1), SCORE, SECTION, level="patient", seed=1
    )
    low = found.filter(pl.col("grouping") == "0 vs 1+")
    assert low["value"].null_count() == len(low) >= 4
    assert all(n.startswith("not defined: no patient on the positive side") for n in low["note"])
    assert found.filter(pl.col("grouping") != "0 vs 1+")["value"].null_count() == 0
