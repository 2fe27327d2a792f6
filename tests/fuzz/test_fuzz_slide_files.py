"""Broken slides, masks and annotations are read, or refused by name, and never end the process."""

from pathlib import Path

import pytest

from tests.fuzz.faults import LONG
from tests.fuzz.harness import check, outcomes

SHORT_SEED = 14
CASES = [
    pytest.param(kind, seed, count, id=f"{kind} {seed}", marks=marks)
    for kind, short, long in (
        ("slides", 120, 1500),
        ("masks", 250, 4000),
        ("annotations", 300, 8000),
    )
    for seed, count, marks in (
        (SHORT_SEED, short, []),
        *((seed, long, LONG) for seed in range(4)),
    )
]


@pytest.mark.parametrize(("kind", "seed", "count"), CASES)
def test_every_broken_file_is_read_or_refused(
    tmp_path: Path, kind: str, seed: int, count: int
) -> None:
    check(outcomes(kind, tmp_path, seed=seed, count=count))
