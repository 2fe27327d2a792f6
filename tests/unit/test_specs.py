"""Specs keep their meaning on the way through the shell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2.config import EvaluationSection, Task, jobs
from her2.config.names import bucket_name, compact_buckets, expanded_buckets
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


@given(st.integers(1, 1 << 14), st.data())
def test_the_names_of_buckets_survive_as_ranges(count: int, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, count - 1), max_size=50))
    names = tuple(sorted(bucket_name(index, count) for index in chosen))
    assert expanded_buckets(compact_buckets(names)) == names


def test_the_spec_of_a_hundred_thousand_slides_fits_into_one_argument() -> None:
    """Linux allows 128 KiB for one; 8,192 names alone took 130."""
    names = tuple(bucket_name(index, 8192) for index in range(8192) if index % 97)
    text = jobs.dump(jobs.SimilarSpec(buckets=names, max_shared_tiles=0.5))
    assert len(text) < 2000
    assert jobs.load(jobs.SimilarSpec, text).buckets == names
