"""Only what changed runs again: docs/reruns.md is the expectation, row by row."""

import re
import shutil
from pathlib import Path

import pytest

from tests.workflow.changes import CHANGES
from tests.workflow.conftest import copy
from tests.workflow.project import REPOSITORY, Project

COLUMNS = ("tiled", "embedded", "trained")
PAGE = (REPOSITORY / "docs/reruns.md").read_text()
GROUPS = {
    name: re.findall(r"`(\w+)`", listed)
    for name, listed in re.findall(
        r"^- \*\*([a-z0-9 ]+)\*\*: (`.*(?:\n  .*)*)$", PAGE, re.MULTILINE
    )
}
TABLE = {
    name: cells
    for name, *cells in re.findall(
        r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE
    )
    if name not in ("change", "---")
}


def test_the_page_has_a_row_for_every_change() -> None:
    assert list(TABLE) == list(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_costs_what_the_page_says(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    before = request.getfixturevalue("validated" if "external" in name else "finished")
    project = copy(before, tmp_path / "project")
    expected = CHANGES[name](project)
    jobs, *counts = TABLE[name]
    planned = project.snakemake("--dry-run")
    assert planned.planned == rules(jobs), planned.output
    # What follows must not rest on Snakemake's own records: results may be copied without them.
    shutil.rmtree(project.folder / ".snakemake")
    run = project.snakemake()
    assert run.code == 0, run.output
    assert dict(run.rules) == rules(jobs)
    assert run.work == expected
    for column, cell in zip(COLUMNS, counts, strict=True):
        found = len(run.work[column])
        assert cell == str(found) or (cell == "some" and 0 < found < len(project.rows()))
    assert tiles_of(project, run.work["embedded"]) == run.patches
    again = project.snakemake("--dry-run")
    assert again.idle, again.output


def rules(cell: str) -> dict[str, int]:
    """`tile_bucket 2, checks` -> rule -> jobs."""
    found: dict[str, int] = {}
    for part in cell.split(", "):
        name, _, count = part.partition(" ")
        if part in GROUPS:
            found |= dict.fromkeys(GROUPS[part], 1)
        elif part != "nothing":
            found[name] = int(count or 1)
    return found


def tiles_of(project: Project, slides: list[str]) -> int:
    """Tiles of these slides, by the features that now stand in the results."""
    return sum(project.features()[slide] for slide in slides)
