"""Differences between encoders are paired: what is hard for both cancels."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from her2.config import EvaluationSection, Task
from her2.errors import UserError
from her2.evaluation.compare import paired_differences

TASK = Task(label="x", classes={"a": ["0"], "b": ["1"]})
SECTION = EvaluationSection(bootstrap=500)


def table(scores: np.ndarray, target: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "patient_id": [f"p{i:03d}" for i in range(len(target))],
            "target": target,
            "prob_a": 1 - scores,
            "prob_b": scores,
        }
    )


@pytest.fixture
def target() -> np.ndarray:
    return np.repeat([0, 1], 40)


def noisy(target: np.ndarray, signal: float, seed: int) -> np.ndarray:
    return signal * target + np.random.default_rng(seed).normal(size=len(target))


def test_the_difference_is_that_of_the_aucs(target: np.ndarray) -> None:
    good, bad = noisy(target, 2, 1), noisy(target, 0.2, 2)
    found = paired_differences(
        {"good": table(good, target), "bad": table(bad, target)}, TASK, SECTION, seed=1
    ).row(by_predicate=pl.col("class") == "b", named=True)
    expected = roc_auc_score(target, good) - roc_auc_score(target, bad)
    assert found["difference"] == pytest.approx(expected)
    assert found["low"] > 0
    assert found["p"] < 0.05


def test_an_encoder_does_not_differ_from_itself(target: np.ndarray) -> None:
    scores = table(noisy(target, 1, 1), target)
    found = paired_differences({"one": scores, "two": scores}, TASK, SECTION, seed=1)
    assert found["difference"].abs().max() == 0
    assert found["p"].min() == 1


def test_pairing_narrows_the_interval(target: np.ndarray) -> None:
    """Two nearly equal encoders: the spread of the difference is far below that of either AUC."""
    first = noisy(target, 1, 1)
    second = first + np.random.default_rng(3).normal(scale=0.05, size=len(first))
    found = paired_differences(
        {"one": table(first, target), "two": table(second, target)}, TASK, SECTION, seed=1
    ).row(by_predicate=pl.col("class") == "b", named=True)
    # Hanley and McNeil 1982: the standard error of one AUC of about 0.76 with 40 + 40 is > 0.05.
    assert found["high"] - found["low"] < 0.05


def test_only_patients_that_all_predicted_are_compared(target: np.ndarray) -> None:
    whole = table(noisy(target, 1, 1), target)
    found = paired_differences(
        {"one": whole, "two": whole.filter(pl.col("patient_id") != "p000")}, TASK, SECTION, seed=1
    )
    assert found["n"].unique().to_list() == [79]


def test_different_labels_are_refused(target: np.ndarray) -> None:
    scores = noisy(target, 1, 1)
    with pytest.raises(UserError, match="different labels"):
        paired_differences(
            {"one": table(scores, target), "two": table(scores, 1 - target)}, TASK, SECTION, seed=1
        )


def test_an_absent_class_is_not_compared(target: np.ndarray) -> None:
    scores = table(noisy(target, 1, 1), np.zeros_like(target))
    found = paired_differences({"one": scores, "two": scores}, TASK, SECTION, seed=1)
    assert found["difference"].null_count() == len(found)
    assert set(found["note"]) == {"not defined: a class is absent"}


def test_every_pair_and_class_has_a_row(target: np.ndarray) -> None:
    scores = table(noisy(target, 1, 1), target)
    found = paired_differences(dict.fromkeys("xyz", scores), TASK, SECTION, seed=1)
    assert len(found) == 3 * 3
