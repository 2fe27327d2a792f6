"""Stage 2, explanation: measures of whether attention lies where the positive tissue is.

A tile is inside when at least half of it is. Measures per slide: AUC of attention inside against
outside (chance 0.5), the share of attention inside against the share of tiles inside, and the
pointing game (Zhang et al., Top-down neural attention by excitation backprop, ECCV 2016), which
asks whether the most attended tile is inside (chance: the share of tiles).
"""

from dataclasses import asdict, dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.core.masks import share_inside
from her2.core.types import Bools, Mask
from her2.explanation.averages import INTERVAL, RATIO, SHARE, over_patients
from her2.metrics.auc import auc
from her2.metrics.base import Binary

LOCALISATION = {
    "slide_id": pl.String,
    "patient_id": pl.String,
    "label": pl.String,
    "tiles": pl.Int64,
    "inside_tiles": pl.Int64,
    "area_share": pl.Float64,
    "mass_share": pl.Float64,
    "auc": pl.Float64,
    "pointing": pl.Float64,
    "note": pl.String,
}
LOCALISATION_SUMMARY = {
    "class": pl.String,
    "measure": pl.String,
    **INTERVAL,
    "patients": pl.Int64,
    "slides": pl.Int64,
    "note": pl.String,
}
MEASURES = {
    "auc": SHARE,
    "mass_share": SHARE,
    "area_share": SHARE,
    "enrichment": RATIO,
    "pointing": SHARE,
}
"""Measure -> its lowest and highest possible value."""
UNIFORM = "not defined: every tile has the same attention"

_PX_PER_TILE = 16
_LARGEST_MASK = 1 << 26


@dataclass(frozen=True, slots=True)
class Located:
    """A slide's attention against its ground truth; undefined figures are None, with a `note`."""

    tiles: int
    inside_tiles: int
    area_share: float
    mass_share: float | None = None
    auc: float | None = None
    pointing: float | None = None
    note: str = ""


def is_uniform(attention: NDArray[np.floating]) -> bool:
    """Return whether all tiles have the same attention, up to rounding."""
    return bool(np.ptp(attention) <= 1e-5 * np.abs(attention).max())


def mask_shape(size_px: tuple[int, int], level0_tile: tuple[float, float]) -> tuple[int, int]:
    """Return (h, w) of a mask of the whole slide on which a tile has about 16 x 16 px."""
    width, height = (max(1.0, _PX_PER_TILE * size_px[i] / level0_tile[i]) for i in (0, 1))
    shrink = min(1.0, (_LARGEST_MASK / (width * height)) ** 0.5)
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def inside_tiles(
    truth: Mask,
    coords: NDArray[np.integer],
    level0_tile: tuple[float, float],
    size_px: tuple[int, int],
) -> Bools:
    """Return a mask (n,) of the tiles that lie inside, by at least half.

    `truth` (h, w) covers the whole slide, `size_px` (width, height) at level 0. `coords` (n, 2),
    top left x and y, and `level0_tile` (width, height) are in level-0 px.
    """
    scale = np.array([truth.shape[1] / size_px[0], truth.shape[0] / size_px[1]])
    boxes = np.concatenate([coords * scale, (coords + np.array(level0_tile)) * scale], axis=1)
    # A rounded sum of areas may fall just short of the half.
    found: Bools = share_inside(truth, boxes) >= 0.5 - 1e-6
    return found


def locate(attention: NDArray[np.floating], inside: Bools) -> Located:
    """Return the figures of a slide with attention (n,) and inside (n,)."""
    values = np.asarray(attention, np.float64)
    count, within = len(inside), int(inside.sum())
    share = within / count
    if within in (0, count):
        which = "no tile" if within == 0 else "every tile"
        return Located(count, within, share, note=f"not defined: {which} is inside the truth")
    if is_uniform(values):
        return Located(count, within, share, note=UNIFORM)
    return Located(
        count,
        within,
        share,
        mass_share=float(values[inside].sum() / values.sum()),
        auc=float(auc(Binary(inside, values, np.ones((1, count))))[0]),
        # Any of the equally attended tiles may be the first.
        pointing=float(inside[values == values.max()].mean()),
    )


def summarise(
    table: pl.DataFrame, classes: tuple[str, ...], confidence: float, *, kind: str
) -> pl.DataFrame:
    """Return `LOCALISATION_SUMMARY`: means over patients (each the mean of its slides), by class.

    `kind` is what a slide is called. Slides without a label count among all.

    A slide counts in all measures if its AUC is defined, else in none, so `area_share` is the
    chance level of `mass_share` and `pointing` on the same slides.
    """
    counted = table.filter(pl.col("auc").is_not_null()).with_columns(
        enrichment=pl.col("mass_share") / pl.col("area_share")
    )
    records = []
    for name in ("all", *classes):
        rows = counted if name == "all" else counted.filter(pl.col("label") == name)
        reason = "" if len(rows) else _why_none(table, name, kind)
        found = over_patients(rows, MEASURES, confidence)
        records += [
            {"class": name, "measure": measure, "slides": len(rows), **asdict(mean)}
            | {"note": reason or mean.note}
            for measure, mean in zip(MEASURES, found, strict=True)
        ]
    return pl.DataFrame(records, schema=LOCALISATION_SUMMARY)


def _why_none(table: pl.DataFrame, name: str, kind: str) -> str:
    """Return the reason why no slide of a class counts."""
    rows = table if name == "all" else table.filter(pl.col("label") == name)
    if not len(rows):
        return f"not defined: no {kind} has a ground truth"
    notes = rows["note"].unique().sort().to_list()
    if len(notes) == 1:
        return str(notes[0])
    return f"not defined on any of {len(rows)} slides; see localisation"
