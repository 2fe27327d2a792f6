"""Broken annotations are read, or refused by name, and never end the process."""

from pathlib import Path

import pytest

from tests.fuzz.harness import check, outcomes


def test_every_broken_annotation_is_read_or_refused(tmp_path: Path) -> None:
    check(outcomes("annotations", tmp_path, seed=14, count=300))


@pytest.mark.nightly
@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_broken_annotations_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    check(outcomes("annotations", tmp_path, seed=seed, count=8000))
