"""After tile: the checks that need every slide at once, and one table of the whole cohort.

Two jobs, because a site or a scanner that changes in the manifest must change the table and
nothing else, while everything in stage 2 waits for the checks.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from her2.cohort.manifest import Cohort
from her2.config.jobs import AuditSpec, CohortSpec
from her2.core.errors import UserError, problem_list
from her2.core.files import atomic_path
from her2.core.tables import write_table
from her2.storage.entries import TileEntry, check_excluded, read_all_entries

TABLE_NAME = "slides.parquet"

Entries = Mapping[str, Mapping[str, TileEntry]]
"""Grid -> slide -> what tiling found."""


def audit_cohort(spec: AuditSpec, cohort: Cohort, tiles: Path, output: Path) -> pl.DataFrame:
    """Check the slides against each other, and write who they are.

    Args:
        spec: the job.
        cohort: the manifest.
        tiles: the folder of the grids' folders of entries.
        output: `slide_id, patient_id, fingerprint` and the labels, one row a slide (Parquet): what
            later checks ask for, and nothing that could change without need.

    Raises:
        UserError: two slides are one file, or more are unusable than `cohort.max_excluded`.
    """
    entries = _entries(tiles, spec.grids, spec.buckets)
    for grid, found in entries.items():
        _check_duplicates(found)
        check_excluded(
            {name: entry.reason or "" for name, entry in found.items() if entry.status != "ok"},
            total=len(cohort.rows),
            limit=spec.max_excluded,
            where=f"grid {grid}",
        )
    prints = {
        name: entry.facts.fingerprint if entry.facts else None
        for found in entries.values()
        for name, entry in found.items()
    }
    table = pl.DataFrame(
        [
            (row.slide_id, row.patient_id, prints[row.slide_id], *map(row.labels.get, spec.labels))
            for row in cohort.rows
        ],
        schema=dict.fromkeys(
            ["slide_id", "patient_id", "fingerprint", *(f"label_{name}" for name in spec.labels)],
            pl.String,
        ),
        orient="row",
    )
    with atomic_path(output) as temporary:
        table.write_parquet(temporary)
    return table


def tabulate_cohort(spec: CohortSpec, cohort: Cohort, tiles: Path, output: Path) -> pl.DataFrame:
    """Write `slides.parquet` and `slides.csv`, one row a slide and grid.

    Its columns are the manifest's, then what tiling found.

    Args:
        spec: the job.
        cohort: the manifest.
        tiles: the folder of the grids' folders of manifests.
        output: folder of the tables.
    """
    entries = _entries(tiles, spec.grids, spec.buckets)
    described = cohort.described
    records = [
        {
            "slide_id": row.slide_id,
            "patient_id": row.patient_id,
            **{f"label_{name}": row.labels.get(name) for name in spec.labels},
            **{name: row.value(name) for name in described},
            "grid": grid,
            **entries[grid][row.slide_id].columns(),
        }
        for row in cohort.rows
        for grid in spec.grids
    ]
    table = pl.DataFrame(records, infer_schema_length=None)
    output.mkdir(parents=True, exist_ok=True)
    write_table(table, output / "slides")
    return table


def _entries(tiles: Path, grids: tuple[str, ...], buckets: tuple[str, ...]) -> Entries:
    return {grid: read_all_entries(tiles / grid, buckets, TileEntry) for grid in grids}


def _check_duplicates(found: Mapping[str, TileEntry]) -> None:
    owners: dict[str, list[str]] = defaultdict(list)
    for name, entry in sorted(found.items()):
        if entry.facts:
            owners[entry.facts.fingerprint].append(name)
    twice = [names for names in owners.values() if len(names) > 1]
    if twice:
        raise problem_list(
            "slides with the same content under different ids; keep one row of each "
            "(a slide in two folds would leak)",
            [" = ".join(names) for names in twice],
        )


def read_cohort_table(folder: Path) -> pl.DataFrame:
    """Read what `tabulate_cohort` wrote.

    Raises:
        UserError: it is not there.
    """
    path = folder / TABLE_NAME
    if not path.exists():
        raise UserError(f"{path}: is missing; run `snakemake` up to the cohort's table.")
    return pl.read_parquet(path)
