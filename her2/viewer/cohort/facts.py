"""`her2 view`: what tiling and embedding found of each slide, and what may be wrong with it."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from her2.cohort.cautions import BROWN_LEAST, Seen, mpp_differs, mpp_words, scale_groups
from her2.core.errors import UserError
from her2.filters.registry import LISTED
from her2.report.format import without_folders
from her2.report.sections.gallery import MARKED_FROM
from her2.segmenters import class_filters
from her2.storage.entries import FeatureEntry, read_entries
from her2.viewer.run import ViewedCohort, ViewedRun
from her2.viewer.stored import bucket_names

REJECTED, DIFFERS, SCALE, BROWN, CAUTION = (
    f"{100 * MARKED_FROM:.0f} % of tiles rejected, or more",
    "um/px not that of the file",
    "um/px unlike most slides",
    "brown: may be IHC",
    "caution of the prediction",
)
MARKS = (REJECTED, DIFFERS, SCALE, BROWN, CAUTION)
"""What may be wrong with a slide, which the page marks; a row has a bit for each."""
TEXTS = ("patient_id", "site", "scanner", "status", "reason")
"""Columns of text that a cohort's table has of each slide."""


def causes(run: ViewedRun) -> tuple[str, ...]:
    """Return the names of what tiles of a run can be rejected for."""
    return tuple(one.name for one in (*LISTED, *class_filters(run.config.tiling)))


def cohort_facts(
    run: ViewedRun, cohort: ViewedCohort, encoder: str | None
) -> tuple[pl.DataFrame, dict[str, list[str]]]:
    """Return what tiling found of each slide, on the grid of an encoder, and what may be wrong.

    Returns:
        The slides, and sentences on some of them: slide -> sentences.
    """
    table = _on_grid(run, cohort.table, encoder)
    here = set(table.columns)

    def own(name: str, kind: Any) -> pl.Expr:
        return (pl.col(name) if name in here else pl.lit(None)).cast(kind).alias(name)

    tiles = own("tiles", pl.Int64).fill_null(0)
    rejected = {name: own(f"rejected_{name}", pl.Int64) for name in causes(run)}
    counts = {name: number.fill_null(0) for name, number in rejected.items()}
    tiled = pl.any_horizontal(number.is_not_null() for number in rejected.values())
    candidates = pl.sum_horizontal(tiles, own("not_drawn", pl.Int64), *counts.values())
    table = table.select(
        "slide_id",
        *(own(name, pl.String) for name in TEXTS),
        own("tiles", pl.Int64),
        own("tissue_mm2", pl.Float64),
        *(own(name, pl.Float64) for name in ("mpp_x", "mpp_y", "file_mpp_x", "file_mpp_y")),
        own("brown", pl.Float64),
        own("cautions", pl.String),
        # As in the report's gallery: of the tiles with enough tissue.
        *(
            pl.when(tiled).then(number / pl.max_horizontal(candidates, 1)).alias(name)
            for name, number in counts.items()
        ),
    ).with_columns(
        status=pl.col("status").fill_null("ok"),
        mpp=(pl.col("mpp_x") * pl.col("mpp_y")).sqrt(),
    )  # fmt: skip
    table = _with_embedding(table, _not_embedded(run, cohort, encoder))
    odd, usual = _scales(table)
    table = table.with_columns(marks=_marks(table, odd, tuple(counts)))
    return table, _sentences(table, usual)


def _with_embedding(
    table: pl.DataFrame, lost: Mapping[str, tuple[str, str | None]]
) -> pl.DataFrame:
    """Return the slides with what became of those that could be tiled and not embedded."""
    rows = table.select("slide_id", "status", "reason").rows()
    found = [
        lost[slide] if status == "ok" and slide in lost else (status, reason)
        for slide, status, reason in rows
    ]
    reasons = [reason and without_folders(reason) for _, reason in found]
    return table.with_columns(
        pl.Series("status", [status for status, _ in found], dtype=pl.String),
        pl.Series("reason", reasons, dtype=pl.String),
    )


def _on_grid(run: ViewedRun, table: pl.DataFrame, encoder: str | None) -> pl.DataFrame:
    """Return one row per slide: on the encoder's grid or, where there is none, the first."""
    if "grid" not in table.columns:
        return table
    known = run.config.encoders
    grid = known[encoder].grid if encoder in known else min(run.config.all_grids, default="")
    own = table.filter(pl.col("grid") == grid)
    return own if len(own) else table.unique("slide_id", keep="first")


def _not_embedded(
    run: ViewedRun, cohort: ViewedCohort, encoder: str | None
) -> Mapping[str, tuple[str, str | None]]:
    """Return the slides that were tiled and not embedded, each with status and reason."""
    if encoder is None or "grid" not in cohort.table.columns:
        return {}
    found: dict[str, tuple[str, str | None]] = {}
    folder = cohort.folder / "features" / encoder
    try:
        paths = [folder / f"{name}.json" for name in bucket_names(run, cohort)]
    except UserError:  # the layers of each slide say so
        return {}
    for path in paths:
        try:
            entries = read_entries(path, FeatureEntry)
        except UserError:  # of a run that is going on, or that was changed; the rest can be seen
            continue
        for name, entry in entries.items():
            if entry.status != "ok":
                found[name] = entry.status, entry.reason
    return found


def _scales(table: pl.DataFrame) -> tuple[frozenset[str], str]:
    """Return the slides of another scale than most, and the um/px of most, in words."""
    usable = table.filter(pl.col("status") == "ok", pl.col("mpp").is_not_null())
    groups = scale_groups(
        Seen(slide_id=slide, mpp=(x, y))
        for slide, x, y in usable.select("slide_id", "mpp_x", "mpp_y").iter_rows()
    )
    most = max(groups, key=len, default=[])
    odd = frozenset(slide for group in groups if group is not most for _, slide in group)
    return odd, f"{most[len(most) // 2][0]:.4g}" if most else ""


def _marks(table: pl.DataFrame, odd: frozenset[str], lost_to: Sequence[str]) -> pl.Expr:
    """Return the bits of `MARKS` of each slide."""
    pair = ("mpp_x", "mpp_y", "file_mpp_x", "file_mpp_y")
    differing = [
        slide
        for slide, *own in table.drop_nulls(pair).select("slide_id", *pair).iter_rows()
        if mpp_differs((own[0], own[1]), (own[2], own[3]))
    ]
    lost = pl.sum_horizontal(lost_to)
    found = {
        REJECTED: (pl.col("status") == "ok") & (lost >= MARKED_FROM),
        DIFFERS: pl.col("slide_id").is_in(differing),
        SCALE: pl.col("slide_id").is_in(list(odd)),
        BROWN: pl.col("brown") >= BROWN_LEAST,
        CAUTION: pl.col("cautions").is_not_null(),
    }
    bits = [found[name].fill_null(False).cast(pl.Int64) * (1 << i) for i, name in enumerate(MARKS)]
    return pl.sum_horizontal(bits)


def _sentences(table: pl.DataFrame, usual: str) -> dict[str, list[str]]:
    """Return what may be wrong with slides in words, beside rejected tiles: slide -> sentences."""
    found = {}
    for row in table.filter(pl.col("marks") > 1).iter_rows(named=True):
        has = {name for i, name in enumerate(MARKS) if row["marks"] >> i & 1}
        pair = (row["mpp_x"], row["mpp_y"]), (row["file_mpp_x"], row["file_mpp_y"])
        own = [
            mpp_words(*pair) if DIFFERS in has else "",
            f"{row['mpp']:.4g} um/px, most slides {usual}" if SCALE in has else "",
            f"{row['brown']:.0%} of the tissue is brown, without eosin: IHC?"
            if BROWN in has
            else "",
            row["cautions"] if CAUTION in has else "",
        ]
        found[row["slide_id"]] = [words for words in own if words]
    return {slide: words for slide, words in found.items() if words}
