"""After tiling: the checks that need all slides at once, and the table of the whole cohort.

They are two jobs, because a site or scanner that changes in the manifest must change the table
only, while everything in stage 2 depends on the checks.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from her2.cohort.cautions import Seen, by_network, cautions
from her2.cohort.columns import FURTHER
from her2.cohort.manifest import Cohort
from her2.cohort.usable import EXCLUDED
from her2.config.jobs import AuditSpec, CohortSpec
from her2.core.errors import UserError, problem_list
from her2.core.tables import read_result, write_parquet, write_table
from her2.storage.entries import TileEntry, check_excluded, read_all_entries
from her2.storage.facts import LATER, is_of_network

log = logging.getLogger(__name__)

TABLE_NAME = "slides.parquet"

FACT_TYPES = {
    **dict.fromkeys(("mpp_x", "mpp_y", "tissue_mm2"), pl.Float64),
    **dict.fromkeys(("width_px", "height_px"), pl.Int64),
    **dict.fromkeys(("vendor", "mpp_source", "key"), pl.String),
}
"""Columns of facts that may be unknown for all slides."""

Entries = Mapping[str, Mapping[str, TileEntry]]
"""Grid -> slide -> entry."""


def audit_cohort(spec: AuditSpec, cohort: Cohort, tiles: Path, output: Path) -> pl.DataFrame:
    """Check the slides against each other, and write their patients, fingerprints and labels.

    Args:
        spec: the job.
        cohort: the manifest.
        tiles: folder with a folder of entries files per grid.
        output: table of `slide_id, patient_id, fingerprint`, the labels and, for each grid, why a
            slide cannot be used (`excluded_{grid}`, null if it can), one row per slide (Parquet).
            It has only what later checks need, so that it does not change needlessly.

    Raises:
        UserError: two slides have the same content, or more slides are unusable than
            `cohort.max_excluded` allows.
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
            (
                *(row.slide_id, row.patient_id, prints[row.slide_id]),
                *map(row.labels.get, spec.labels),
                *(_unusable(found[row.slide_id]) for found in entries.values()),
            )
            for row in cohort.rows
        ],
        schema=dict.fromkeys(
            [
                *("slide_id", "patient_id", "fingerprint"),
                *(f"label_{name}" for name in spec.labels),
                *(f"{EXCLUDED}{grid}" for grid in entries),
            ],
            pl.String,
        ),
        orient="row",
    )
    write_parquet(table, output)
    return table


def tabulate_cohort(spec: CohortSpec, cohort: Cohort, tiles: Path, output: Path) -> pl.DataFrame:
    """Write `slides.parquet` and `slides.csv`, one row per slide and grid.

    The columns are the manifest's, with `column_` before the names of those that only the config
    names, then the entry's.

    Args:
        spec: the job.
        cohort: the manifest.
        tiles: folder with a folder of entries files per grid.
        output: folder of the tables.
    """
    entries = _entries(tiles, spec.grids, spec.buckets)
    described = cohort.described
    found = {
        (slide_id, grid): entry.columns()
        for grid, own in entries.items()
        for slide_id, entry in own.items()
    }
    known = dict.fromkeys(name for values in found.values() for name in values)
    later = [*(name for name in LATER if name in known), *filter(is_of_network, known)]
    records = [
        {
            "slide_id": row.slide_id,
            "patient_id": row.patient_id,
            **{f"label_{name}": row.labels.get(name) for name in spec.labels},
            **{name: row.value(name) for name in described},
            **{f"{FURTHER}{name}": row.value(name) for name in spec.columns},
            "grid": grid,
            **found[row.slide_id, grid],
            **{name: found[row.slide_id, grid].get(name) for name in later},
        }
        for row in cohort.rows
        for grid in spec.grids
    ]
    table = _typed(pl.DataFrame(records, infer_schema_length=None))
    for caution in table_cautions(table):
        log.warning(caution)
    output.mkdir(parents=True, exist_ok=True)
    write_table(table, output / "slides")
    return table


def _typed(table: pl.DataFrame) -> pl.DataFrame:
    """Give the columns of facts their type where no slide has a value, as with given features."""
    empty = {name: kind for name, kind in FACT_TYPES.items() if table.schema.get(name) == pl.Null}
    return table.cast(empty) if empty else table  # type: ignore[arg-type]


def table_cautions(table: pl.DataFrame) -> tuple[str, ...]:
    """Return what the cohort's table says may be wrong with slides, see `her2.cohort.cautions`.

    A slide that no grid could use is not among them, unless a network may be why.
    """
    shares = [n for n in table.columns if is_of_network(n) and not n.startswith("rejected_")]
    usable = table.filter(pl.col("status") == "ok").unique("slide_id", keep="first")
    others = table.filter(~pl.col("slide_id").is_in(usable["slide_id"].to_list()))
    slides = [
        Seen(
            slide_id=row["slide_id"],
            mpp=_pair(row["mpp_x"], row["mpp_y"]),
            file_mpp=_pair(row.get("file_mpp_x"), row.get("file_mpp_y")),
            brown=row.get("brown"),
            artefacts=by_network({name: row[name] for name in shares}),
        )
        for row in usable.sort("slide_id").iter_rows(named=True)
    ]
    slides += [
        Seen(slide_id=row["slide_id"], artefacts=by_network({name: row[name] for name in shares}))
        for row in others.unique("slide_id", keep="first").sort("slide_id").iter_rows(named=True)
    ]
    return tuple(cautions(slides))


def _pair(x: float | None, y: float | None) -> tuple[float, float] | None:
    return None if x is None or y is None else (x, y)


def _entries(tiles: Path, grids: tuple[str, ...], buckets: tuple[str, ...]) -> Entries:
    return {grid: read_all_entries(tiles / grid, buckets, TileEntry) for grid in grids}


def _unusable(entry: TileEntry) -> str | None:
    """Return why a slide cannot be used, or None if it can."""
    return None if entry.status == "ok" else entry.reason or entry.status


def _check_duplicates(found: Mapping[str, TileEntry]) -> None:
    owners: dict[str, list[str]] = defaultdict(list)
    for name, entry in sorted(found.items()):
        if entry.facts:
            owners[entry.facts.fingerprint].append(name)
    repeated = [names for names in owners.values() if len(names) > 1]
    if repeated:
        raise problem_list(
            "slides with the same content under different ids; keep one row of each, because a "
            "slide in two folds leaks",
            [" = ".join(names) for names in repeated],
        )


def read_cohort_table(folder: Path) -> pl.DataFrame:
    """Read the cohort's table.

    Raises:
        UserError: the table does not exist.
    """
    path = folder / TABLE_NAME
    if not path.exists():
        raise UserError(f"{path}: does not exist. Run `snakemake` up to the cohort's table.")
    return read_result(path)
