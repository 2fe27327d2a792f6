"""Stage 2, report: checks for leakage from training to test sets, and their findings."""

from dataclasses import dataclass

import polars as pl

from her2.cohort.folds import crossing_patients
from her2.cohort.similar import LEAST_PROBES
from her2.report.format import number, plural
from her2.report.results import Results

PAIRS_SHOWN = 5
"""Pairs per encoder on the page; the CSV file has more."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check; `stops` says when a finding stops the run."""

    what: str
    where: str
    found: str
    stops: str


def checks(results: Results) -> tuple[Check, ...]:
    """Return the checks for patients in two sets, duplicate files and duplicate tissue."""
    rows = [
        Check(
            "Patients in two sets of the same fold",
            f"task {task}: {plural(table['patient_id'].n_unique(), 'patient')}, "
            f"{plural(table.select('repeat', 'fold').n_unique(), 'fold')}",
            str(len(crossing_patients(table))),
            "always",
        )
        for task, table in results.folds.items()
    ]
    prints = results.cohort.select("slide_id", "fingerprint").unique().drop_nulls()
    rows.append(
        Check(
            "Slides with the same content as another",
            plural(prints["slide_id"].n_unique(), "slide"),
            str(len(prints) - prints["fingerprint"].n_unique()),
            "always",
        )
    )
    limit = results.config.folds.max_shared_tiles
    for encoder, table in results.similar.items():
        rows.append(
            Check(
                "Slides of two patients with the same tissue",
                f"features of {encoder}",
                shared_tissue(table, limit, given=encoder in results.config.given),
                f"above {limit:g} of the tiles" if limit < 1 else "never (max_shared_tiles)",
            )
        )
    return tuple(rows)


def shared_tissue(similar: pl.DataFrame, limit: float, *, given: bool = False) -> str:
    """Return how many pairs share more tiles than allowed, and the most that a pair shares.

    Where no pair has enough tiles to be compared, nothing was found because nothing was looked at.
    Features that are `given` need not tell where their tiles are.
    """
    shared = similar["shared"].cast(pl.Float64)
    if len(shared) and shared.is_null().all():
        unplaced = ", or their features do not tell where they are" if given else ""
        return f"not known: the slides have fewer than {LEAST_PROBES} tiles{unplaced}"
    top = similar.select(pl.col("shared").cast(pl.Float64).max()).item()
    return f"{int((shared.fill_null(0) > limit).sum())} (most tiles shared: {number(top, 2)})"


def pairs(results: Results) -> list[tuple[str, ...]]:
    """Return encoder, slides, patients, cosine and shared tiles of the most similar pairs of each.

    A person should look at them; see `her2.cohort.similar`.
    """
    return [
        (
            encoder,
            f"{row['slide_a']}, {row['slide_b']}",
            f"{row['patient_a']}, {row['patient_b']}",
            number(row["cosine"], 2),
            number(row["shared"], 2),
        )
        for encoder, table in results.similar.items()
        for row in table.head(PAIRS_SHOWN).to_dicts()
    ]


def pairs_table(results: Results) -> pl.DataFrame | None:
    """Return all pairs that were kept, with their encoder; None where nothing was checked."""
    parts = [
        table.select(pl.lit(encoder).alias("encoder"), pl.all())
        for encoder, table in results.similar.items()
    ]
    return pl.concat(parts) if parts else None
