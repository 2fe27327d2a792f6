"""Demo cohort: where tissue, tumour nests, HER2-positive areas and fat lie in a square."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from her2.synthetic.nuclei import FloatImage, blur, resize, smooth_noise

BoolImage = NDArray[np.bool_]
PLAN_UM = 8.0  # a plan is drawn on cells of this size: smooth outlines, little work


@dataclass(frozen=True)
class TissueParams:
    """What a slide looks like. Stain vectors are optical density per unit of stain in R, G, B."""

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    haematoxylin_strength: float
    eosin_strength: float
    glass: tuple[float, float, float]  # grey level of empty glass in R, G, B
    her2_share: float  # of the tumour-nest area
    pen: str | None = None  # a colour of `artefacts.PENS`
    fold: bool = False


@dataclass(frozen=True)
class RegionPlan:
    """Where things are: masks (side_px, side_px); `positive` lies inside `nest`."""

    tissue: BoolImage
    nest: BoolImage
    positive: BoolImage
    fat: BoolImage
    nest_edge: FloatImage  # > 0 inside a nest, 0 at its border, about 1 per nest radius


def plan_region(
    rng: np.random.Generator, params: TissueParams, side_px: int, mpp: float
) -> RegionPlan:
    """Decide the outline, the tumour nests, the fat and which parts of nests are HER2-positive."""
    outline_rng, nest_rng, her2_rng, fat_rng, rough_rng = rng.spawn(1)[0].spawn(5)
    cell_px = PLAN_UM / mpp
    n = max(24, round(side_px / cell_px))
    cell_um = side_px * mpp / n
    tissue_field = _outline(outline_rng, n)
    nest_field, nest_id, along = _nests(nest_rng, tissue_field, cell_um)
    positive = _her2_cells(her2_rng, nest_field, nest_id, along, params.her2_share)
    fat_field = _fat(fat_rng, tissue_field, nest_field, cell_um)

    rough = smooth_noise(rough_rng, side_px, 12 / mpp)
    tissue = resize(tissue_field, side_px) + 0.005 * rough > 0
    edge = resize(nest_field, side_px) + np.float32(0.025) * rough
    nest = (edge > 0) & tissue
    fat = (resize(fat_field, side_px) > 0) & tissue & (edge < -0.12)
    # Blurred before enlarging, so that a cut through a nest is a curve, not a staircase.
    inside = resize(blur(positive, 0.8), side_px) > 0.5
    return RegionPlan(tissue, nest, nest & inside, fat, edge)


def _outline(rng: np.random.Generator, n: int) -> FloatImage:
    """Draw a field (n, n), positive on tissue: a warped ellipse over 48-62 % of the square."""
    y, x = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j].astype(np.float32)
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.45)
    u = (x * np.cos(angle) + y * np.sin(angle)) / stretch**0.5
    v = (-x * np.sin(angle) + y * np.cos(angle)) * stretch**0.5
    field = -np.hypot(u, v) + 0.13 * smooth_noise(rng, n, n / 3.0)
    field += 0.035 * smooth_noise(rng, n, n / 11.0)
    field -= 3.0 * np.clip(np.maximum(np.abs(x), np.abs(y)) - 0.84, 0, None)
    return np.asarray(field - np.quantile(field, 1 - rng.uniform(0.48, 0.62)), np.float32)


def _nests(
    rng: np.random.Generator, tissue_field: FloatImage, cell_um: float
) -> tuple[FloatImage, NDArray[np.int64], FloatImage]:
    """Draw tumour nests: a field positive inside, the nest of every cell, position along the nest.

    Nests are warped discs of 150-500 um, filling 37-47 % of the tissue.
    """
    n = tissue_field.shape[0]
    tissue = tissue_field > 0
    share = rng.uniform(0.37, 0.47)
    tissue_um2 = float(tissue.sum()) * cell_um**2
    count = max(2, round(share * tissue_um2 / (np.pi * 125.0**2)))
    candidates = np.argwhere(tissue_field > 0.04)
    centres = [candidates[rng.integers(len(candidates))]]
    for _ in range(count - 1):
        # The best of a few candidates, so that nests keep apart, as lobules do.
        tries = candidates[rng.integers(len(candidates), size=7)]
        gap = np.min([np.hypot(*(tries - c).T) for c in centres], axis=0)
        centres.append(tries[int(gap.argmax())])
    radius = np.clip(np.exp(rng.normal(np.log(120.0), 0.3, count)), 75, 240) / cell_um
    y, x = np.mgrid[0:n, 0:n].astype(np.float32)
    warp = 34.0 / cell_um
    wy = y + warp * smooth_noise(rng, n, 110 / cell_um)
    wx = x + warp * smooth_noise(rng, n, 110 / cell_um)
    turn = rng.uniform(0, np.pi)
    distance = np.stack(
        [np.hypot(wy - c[0], wx - c[1]) / r for c, r in zip(centres, radius, strict=True)]
    )
    nest_id = distance.argmin(axis=0)
    first, second = np.sort(distance, axis=0)[:2]
    field = 1.0 - first - 0.5 * np.exp(-(((second - first) / 0.13) ** 2))
    field += 0.09 * smooth_noise(rng, n, 38 / cell_um)
    field -= 9.0 * np.clip(0.06 - tissue_field, 0, None)  # a rim of stroma at the tissue's edge
    field -= np.quantile(field[tissue], 1 - share)
    origin = np.array(centres, np.float32)[nest_id]
    along = (y - origin[..., 0]) * np.sin(turn) + (x - origin[..., 1]) * np.cos(turn)
    along /= radius[nest_id]
    return field.astype(np.float32), nest_id, along.astype(np.float32)


def _her2_cells(
    rng: np.random.Generator,
    nest_field: FloatImage,
    nest_id: NDArray[np.int64],
    along: FloatImage,
    share: float,
) -> BoolImage:
    """Choose the HER2-positive cells: whole nests in random order, the last one cut through."""
    order = rng.permutation(int(nest_id.max()) + 1)
    within = 0.5 + 0.3 * along + 0.02 * smooth_noise(rng, along.shape[0], 6)
    priority = order[nest_id] + np.clip(within, 0.0, 0.999)
    inside = nest_field > 0
    if share <= 0 or not inside.any():
        return np.zeros_like(inside)
    return np.asarray(priority <= np.quantile(priority[inside], min(share, 1.0)))


def _fat(
    rng: np.random.Generator, tissue_field: FloatImage, nest_field: FloatImage, cell_um: float
) -> FloatImage:
    """Draw a field (n, n), positive where the stroma is fat: one or two lobules on most slides."""
    n = tissue_field.shape[0]
    y, x = np.mgrid[0:n, 0:n].astype(np.float32)
    free = np.argwhere((tissue_field > 0) & (nest_field < -0.3))
    field = np.full((n, n), -1.0, np.float32)
    wobble = 0.2 * smooth_noise(rng, n, 90 / cell_um)
    for _ in range(int(rng.choice(3, p=[0.25, 0.45, 0.3]))):
        if len(free) == 0:
            break
        cy, cx = free[rng.integers(len(free))]
        radius = rng.uniform(110, 260) / cell_um
        field = np.maximum(field, 1.0 - np.hypot(y - cy, x - cx) / radius + wobble)
    return field
