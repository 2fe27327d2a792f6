"""Specs keep their meaning on the way through the shell."""

import pytest

from her2.config import EvaluationSection, Task, jobs
from her2.core.errors import UserError


def evaluate_spec(*names: str) -> str:
    task = Task(label="x", classes={name: [name] for name in names}, ordinal=True)
    section = EvaluationSection()
    return jobs.dump(jobs.EvaluateSpec(task=task, chunks=("a",), evaluation=section, seed=1))


def test_the_order_of_classes_survives() -> None:
    """Ordinal classes keep their order, although canonical JSON sorts keys."""
    text = evaluate_spec("low", "mid", "high")
    assert jobs.load(jobs.EvaluateSpec, text).task.class_names == ("low", "mid", "high")


def test_another_order_of_classes_is_another_job() -> None:
    assert evaluate_spec("low", "mid", "high") != evaluate_spec("high", "mid", "low")


def test_a_spec_of_another_version_of_the_code_is_refused() -> None:
    current = f'"version":{jobs.VERSIONS["evaluate"]}'
    text = evaluate_spec("low", "high").replace(current, '"version":0')
    with pytest.raises(UserError, match="Run snakemake again"):
        jobs.load(jobs.EvaluateSpec, text)
