"""Demo patch sets: tumour in HER2 immunohistochemistry, with blue nuclei and brown membranes.

The score is in the membranes alone, as in the ASCO/CAP guideline: how many cells stain, how
strongly and how completely round the cell. Nuclei, spacing and nest shapes vary from case to case
and know nothing of the score.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from her2.synthetic.nuclei import (
    FloatImage,
    NucleusKind,
    Stains,
    blur,
    hex_positions,
    smooth_noise,
)
from her2.synthetic.plan import BoolImage, RegionPlan
from her2.synthetic.tissue import at, paint_stroma, scatter, voronoi_borders

# Optical density of a unit of stain in R, G, B (Ruifrok & Johnston 2001).
HAEMATOXYLIN, DAB = (0.650, 0.704, 0.286), (0.268, 0.570, 0.776)
NEST_SHARE = 0.78


@dataclass(frozen=True)
class Membranes:
    """Ranges of what a score looks like; a case draws one value from each.

    `cells` is the share of tumour cells that stain, `amount` the DAB in a membrane, `complete` the
    share of the outline that is drawn, `width_um` its width.
    """

    cells: tuple[float, float]
    amount: tuple[float, float]
    complete: tuple[float, float]
    width_um: tuple[float, float]


SCORES = {
    "0": Membranes((0.0, 0.08), (0.15, 0.30), (0.25, 0.40), (0.7, 0.9)),
    "1+": Membranes((0.30, 0.75), (0.30, 0.55), (0.30, 0.55), (0.7, 1.0)),
    "2+": Membranes((0.50, 0.90), (0.70, 1.10), (0.80, 0.95), (0.9, 1.2)),
    "3+": Membranes((0.80, 1.00), (1.50, 2.30), (0.97, 1.00), (1.2, 1.8)),
}


def draw_ihc(
    rng: np.random.Generator, score: str, side_px: int, mpp: float
) -> tuple[NDArray[np.uint8], BoolImage]:
    """Paint a square of one case: RGB (side_px, side_px, 3) uint8, and where tumour is."""
    look_rng, nest_rng, stroma_rng, cell_rng, membrane_rng, grain_rng = rng.spawn(6)
    plan = _plan(nest_rng, side_px, mpp)
    stroma = paint_stroma(stroma_rng, plan, side_px, mpp)
    nest = blur(plan.nest, 0.8 / mpp)
    # Without eosin the stroma is a pale blue grey, and a little brown sticks to all protein.
    haematoxylin = stroma.haematoxylin * np.float32(0.8) + np.float32(0.10) * stroma.eosin
    dab = np.float32(look_rng.uniform(0.01, 0.08)) * stroma.eosin
    haematoxylin += nest * (0.13 + 0.02 * smooth_noise(cell_rng, side_px, 6 / mpp) - haematoxylin)
    stains = Stains(np.asarray(haematoxylin, np.float32), np.asarray(dab, np.float32))

    spacing_um = look_rng.uniform(11.0, 16.0)
    nucleus = NucleusKind(
        radius_um=0.33 * spacing_um * look_rng.uniform(0.9, 1.1),
        radius_spread=0.14,
        aspect=(1.0, 1.5),
        irregularity=0.04,
        stain=look_rng.uniform(0.75, 1.05),
        vesicular=look_rng.uniform(0.1, 0.9),
    )
    xy = hex_positions(cell_rng, side_px, spacing_um / mpp, 0.18)
    _membranes(membrane_rng, SCORES[score], xy, plan.nest, stains, mpp)
    scatter(cell_rng, stains, nucleus, xy, at(plan.nest, xy), mpp)

    strengths = np.exp(look_rng.normal(0.0, 0.1, 2))
    vectors = np.array([HAEMATOXYLIN, DAB]) + look_rng.normal(0.0, 0.015, (2, 3))
    vectors *= strengths[:, None]
    glass = 242 + look_rng.uniform(-4, 4, 3)
    rgb = np.empty((side_px, side_px, 3), np.uint8)
    grain = grain_rng.standard_normal((side_px, side_px), dtype=np.float32) * np.float32(1.6)
    for c in range(3):
        density = stains.haematoxylin * np.float32(vectors[0, c])
        density += stains.eosin * np.float32(vectors[1, c])
        light = np.float32(glass[c]) * np.asarray(cv2.exp(-density)) + grain
        rgb[..., c] = np.clip(light + np.float32(0.5), 0, 255)
    return rgb, plan.nest


def _plan(rng: np.random.Generator, side_px: int, mpp: float) -> RegionPlan:
    """Plan a field inside a tumour: mostly nests, stroma between them, no edge of the tissue."""
    field = smooth_noise(rng, side_px, 130 / mpp) + 0.35 * smooth_noise(rng, side_px, 45 / mpp)
    edge = np.asarray(0.4 * (field - np.quantile(field, 1 - NEST_SHARE)), np.float32)
    nothing = np.zeros((side_px, side_px), np.bool_)
    return RegionPlan(~nothing, edge > 0, nothing, nothing, edge)


def _membranes(
    rng: np.random.Generator,
    look: Membranes,
    xy: NDArray[np.int32],
    nest: BoolImage,
    stains: Stains,
    mpp: float,
) -> None:
    """Add DAB (the second stain) to the rims of the cells that express the receptor, in place."""
    side = nest.shape[0]
    share, amount, complete, width_um = (
        float(rng.uniform(*span))
        for span in (look.cells, look.amount, look.complete, look.width_um)
    )
    border, label = voronoi_borders(xy, nest.shape)
    # Cells of a clone lie together, so the field matters more than the single cell.
    rank = at(smooth_noise(rng, side, 60 / mpp), xy) + 0.7 * rng.standard_normal(len(xy))
    stained = rank < np.quantile(rank, share)
    cell_amount = np.zeros(int(label.max()) + 1, np.float32)
    cell_amount[at(label, xy)] = stained * amount * np.exp(rng.normal(0.0, 0.15, len(xy)))
    amounts: FloatImage = cell_amount[label] * nest
    depth_um = cv2.distanceTransform((~border).astype(np.uint8), cv2.DIST_L2, 5) * mpp
    rim = np.clip((width_um - depth_um) / 0.5, 0, 1)
    gaps = smooth_noise(rng, side, 7 / mpp)
    rim *= np.clip((np.quantile(gaps, complete) - gaps) / 0.35 + 0.5, 0, 1)
    dab = stains.eosin
    dab += blur(amounts * rim, 0.35 / mpp)
    dab += np.float32(0.1) * blur(amounts, 1.0 / mpp)
