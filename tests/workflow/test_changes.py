"""Only what changed runs again: docs/reruns.md is the expectation, row by row."""

import re
from pathlib import Path

import pytest

from tests.workflow.changes import CHANGES
from tests.workflow.project import REPOSITORY, Project

pytestmark = pytest.mark.xdist_group("changes")

COLUMNS = ("tiled", "embedded", "trained")


def documented(page: Path = REPOSITORY / "docs/reruns.md") -> dict[str, tuple[str, ...]]:
    """Change -> its cells: the jobs, then slides tiled and embedded, and folds trained."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$",
                      page.read_text(), re.MULTILINE)  # fmt: skip
    return {name: tuple(cells) for name, *cells in rows if name in CHANGES or cells[0] != "---"}


TABLE = documented()


def test_the_page_has_a_row_for_every_change() -> None:
    assert list(TABLE)[1:] == list(CHANGES)  # the first is the table's head


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_costs_what_the_page_says(project: Project, name: str) -> None:
    expected = CHANGES[name](project)
    jobs, *counts = TABLE[name]
    run = project.snakemake()
    assert run.code == 0, run.output
    assert ran(run.rules) == jobs
    assert run.work == expected
    for column, cell in zip(COLUMNS, counts, strict=True):
        found = len(run.work[column])
        assert cell == str(found) or (cell == "some" and 0 < found < len(project.rows()))
    assert tiles_of(project, run.work["embedded"]) == run.patches
    again = project.snakemake("--dry-run")
    assert again.idle, again.output


def ran(rules: dict[str, int]) -> str:
    """`tile_bucket 2, embed_bucket`, in the order of the stages."""
    order = ("materialise_encoder", "tile_bucket", "tabulate_cohort", "audit_cohort",
             "audit_overlap", "embed_bucket", "make_folds", "train_folds", "evaluate",
             "compare_encoders", "draw_heatmaps", "build_report")  # fmt: skip
    assert set(rules) <= set(order)
    found = [name if rules[name] == 1 else f"{name} {rules[name]}" for name in order if rules[name]]
    return ", ".join(found) or "nothing"


def tiles_of(project: Project, slides: list[str]) -> int:
    """Tiles of these slides, by the features that now stand in the results."""
    return sum(project.features()[slide] for slide in slides)
