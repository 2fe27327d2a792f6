"""After tile: one table of the whole cohort, and the checks that need every slide at once."""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import polars as pl

from her2.cohort import Cohort
from her2.errors import UserError, problem_list
from her2.manifest import TileEntry, read_manifests
from her2.specs import AuditSpec
from her2.tables import write_table

TABLE_NAME = "slides.parquet"


def audit_cohort(spec: AuditSpec, cohort: Cohort, tiles: Path, folder: Path) -> pl.DataFrame:
    """Gather what tiling found, check it, and write `slides.parquet` and `slides.csv`.

    Args:
        spec: the job.
        cohort: the manifest.
        tiles: the folder of the grids' folders of manifests.
        folder: gets the tables: one row a slide and grid.

    Raises:
        UserError: two slides are one file, or more are unusable than `cohort.max_excluded`.
    """
    entries = {grid: read_manifests(tiles / grid, spec.buckets, TileEntry) for grid in spec.grids}
    for grid, found in entries.items():
        _check_duplicates(found)
        check_excluded(
            {name: entry.reason or "" for name, entry in found.items() if entry.status != "ok"},
            total=len(cohort.rows),
            limit=spec.max_excluded,
            where=f"grid {grid}",
        )
    table = cohort_table(spec, cohort, entries)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(table, folder / "slides")
    return table


def cohort_table(
    spec: AuditSpec, cohort: Cohort, entries: dict[str, dict[str, TileEntry]]
) -> pl.DataFrame:
    """One row a slide and grid: the manifest's columns, then what tiling found."""
    records = [
        {
            "slide_id": row.slide_id,
            "patient_id": row.patient_id,
            **{f"label_{name}": row.labels.get(name) for name in spec.labels},
            "site": row.site,
            "scanner": row.scanner,
            "split": row.split,
            "annotation": row.annotation,
            "grid": grid,
            **asdict(entries[grid][row.slide_id]),
        }
        for row in cohort.rows
        for grid in spec.grids
    ]
    return pl.DataFrame(records, infer_schema_length=None)


def check_excluded(reasons: dict[str, str], *, total: int, limit: float, where: str) -> None:
    """Stop when too many slides cannot be used: that is a fault of the run, not of slides.

    Raises:
        UserError: naming them and their reasons.
    """
    # 29 of 100 is not more than 0.29, whatever 0.29 * 100 is in floating point.
    if len(reasons) <= limit * total + 1e-9 and len(reasons) < total:
        return
    raise problem_list(
        f"{len(reasons)} of {total} slides cannot be used ({where}), more than "
        f"cohort.max_excluded {limit:g}; mend them, or raise the limit if they are to be left out",
        [f"{name}: {reason}" for name, reason in sorted(reasons.items())],
    )


def _check_duplicates(found: dict[str, TileEntry]) -> None:
    owners: dict[str, list[str]] = defaultdict(list)
    for name, entry in sorted(found.items()):
        if entry.fingerprint:
            owners[entry.fingerprint].append(name)
    twice = [names for names in owners.values() if len(names) > 1]
    if twice:
        raise problem_list(
            "slides with the same content under different ids; keep one row of each "
            "(a slide in two folds would leak)",
            [" = ".join(names) for names in twice],
        )


def read_cohort_table(folder: Path) -> pl.DataFrame:
    """Read what `audit_cohort` wrote.

    Raises:
        UserError: it is not there.
    """
    path = folder / TABLE_NAME
    if not path.exists():
        raise UserError(f"{path}: is missing; run `snakemake` up to the audit.")
    return pl.read_parquet(path)
