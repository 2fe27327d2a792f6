"""Demo cohort: a planned square of tissue painted as H&E, with known HER2 areas.

Light is absorbed as in a stained section (Beer-Lambert, Ruifrok & Johnston 2001): every structure
adds haematoxylin or eosin, and RGB = glass * exp(-(H * h + E * e)). The HER2 signal is a
morphology, never a colour: `match_mean_colour` removes the difference that the morphology makes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from her2.synthetic.artefacts import add_fold, add_pen
from her2.synthetic.nuclei import (
    BOX_ROWS,
    LYMPHOCYTE,
    SOLID,
    SPINDLE,
    TURNS,
    VESICULAR,
    FloatImage,
    NucleusKind,
    Stains,
    blur,
    boxes,
    broad_noise,
    hex_positions,
    make_stamps,
    paste_nuclei,
    resize,
    smooth_noise,
)
from her2.synthetic.plan import BoolImage, RegionPlan, TissueParams, plan_region

NEGATIVE_SPACING_UM, POSITIVE_SPACING_UM = 10.0, 17.0
SPINDLE_SPACING_UM, LYMPHOCYTE_SPACING_UM = 17.0, 8.5
TEXTURE_PX = 1024


def draw_region(
    rng: np.random.Generator, params: TissueParams, side_px: int, mpp: float
) -> tuple[NDArray[np.uint8], RegionPlan]:
    """Plan and paint a square: RGB (side_px, side_px, 3) uint8, and where things are in it.

    Each part has a generator of its own, so two calls that differ in `params.her2_share` alone
    show the same section outside the tumour nests.
    """
    plan = plan_region(rng, params, side_px, mpp)
    stroma_rng, cell_rng, artefact_rng, grain_rng = rng.spawn(4)
    stains = paint_stroma(stroma_rng, plan, side_px, mpp)
    paint_tumour(cell_rng, plan, stains, mpp)
    # The thickness of a section varies.
    noise = smooth_noise(stroma_rng, side_px, 250 / mpp)
    for box in boxes(stains.haematoxylin):  # wherever there is eosin, there is some of it
        thickness = 1.0 + 0.03 * noise[box]
        stains.haematoxylin[box] *= np.float32(params.haematoxylin_strength) * thickness
        stains.eosin[box] *= np.float32(params.eosin_strength) * thickness
    vectors = np.array([params.haematoxylin, params.eosin], np.float32)
    scale = match_mean_colour(stains, vectors, plan)
    if params.fold:
        add_fold(artefact_rng, stains, plan.tissue, mpp)
    rgb = np.empty((side_px, side_px, 3), np.uint8)
    for top in range(0, side_px, BOX_ROWS):
        rows = slice(top, top + BOX_ROWS)
        h, e, positive = stains.haematoxylin[rows], stains.eosin[rows], plan.positive[rows]
        grain = grain_rng.standard_normal(h.shape, dtype=np.float32) * np.float32(1.6)
        for c in range(3):
            density = h * -vectors[0, c]
            density -= e * vectors[1, c]
            np.multiply(density, scale[c], out=density, where=positive)
            cv2.exp(density, density)
            rgb[rows, :, c] = cv2.addWeighted(
                density, params.glass[c], grain, 1, 0, dtype=cv2.CV_8U
            )
    if params.pen is not None:
        add_pen(artefact_rng, rgb, params.pen, mpp)
    return rgb, plan


def paint_stroma(rng: np.random.Generator, plan: RegionPlan, side_px: int, mpp: float) -> Stains:
    """Paint fibres, spindle cells, lymphocytes and fat: stains (side_px, side_px)."""
    fibre_rng, fat_rng, spindle_rng, lymph_rng = rng.spawn(4)
    along, across = _fibres(fibre_rng, side_px, mpp)
    tissue = blur(plan.tissue, 1.0 / mpp)
    density = broad_noise(fibre_rng, side_px, 130 / mpp)
    stains = Stains(np.zeros_like(tissue), np.zeros_like(tissue))
    for box in boxes(tissue):
        haematoxylin, eosin = _collagen(
            along[box], across[box], density[box], plan.nest_edge[box], mpp
        )
        stains.haematoxylin[box] = haematoxylin * tissue[box]
        stains.eosin[box] = eosin * tissue[box]
    stroma = plan.tissue & ~plan.nest & ~plan.fat
    xy = hex_positions(spindle_rng, side_px, SPINDLE_SPACING_UM / mpp, 0.3)
    keep = at(stroma, xy) & (spindle_rng.random(len(xy)) < 0.5)
    scatter(spindle_rng, stains, SPINDLE, xy, keep, mpp, angle=_along(across, xy))
    # Lymphocytes are dense in patches and along nests.
    xy = hex_positions(lymph_rng, side_px, LYMPHOCYTE_SPACING_UM / mpp, 0.3)
    crowd = at(broad_noise(lymph_rng, side_px, 70 / mpp), xy)
    near_nest = at(plan.nest_edge, xy) > -0.15
    chance = np.clip(0.03 + 0.5 * np.clip(crowd - 0.9, 0, 1) + 0.1 * near_nest, 0, 0.85)
    keep = at(stroma, xy) & (lymph_rng.random(len(xy)) < chance)
    scatter(lymph_rng, stains, LYMPHOCYTE, xy, keep, mpp)
    if plan.fat.any():
        _paint_fat(fat_rng, plan.fat, plan.tissue & ~plan.nest, stains, mpp)
    return stains


def _fibres(rng: np.random.Generator, side_px: int, mpp: float) -> tuple[FloatImage, FloatImage]:
    """Draw the coordinates of each px in a texture of fibres: along and across the fibres.

    They are smoothly bent, and elsewhere in the texture for every section.
    """
    x = np.arange(side_px, dtype=np.float32)
    turn = float(rng.uniform(0, np.pi))
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    shift = rng.uniform(0, TEXTURE_PX, 2).astype(np.float32)
    u = (x * cos + shift[0])[None] + (x * sin)[:, None]
    v = (shift[1] - x * sin)[None] + (x * cos)[:, None]
    v += broad_noise(rng, side_px, 190 / mpp) * np.float32(38 / mpp)
    v += broad_noise(rng, side_px, 60 / mpp) * np.float32(6 / mpp)
    return u, v


def _collagen(
    along: FloatImage, across: FloatImage, density: FloatImage, nest_edge: FloatImage, mpp: float
) -> tuple[FloatImage, FloatImage]:
    """Return haematoxylin and eosin of a part of the stroma, all of the same shape."""
    looked_up = cv2.remap(
        _streaks(mpp), along, across, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    fibres, clefts = np.ascontiguousarray(np.moveaxis(np.asarray(looked_up, np.float32), -1, 0))
    eosin = np.clip(0.55 + 0.07 * density + 0.12 * fibres, 0.08, None)
    # White gaps between bundles of collagen, and where a nest has shrunk away from its stroma.
    gap = np.clip(clefts - 1.2 + 0.35 * density, 0, 0.5) * 1.7
    retraction = np.exp(-(((nest_edge + 0.035) / 0.022) ** 2)) * np.clip(clefts + 0.4, 0, 1)
    gap = np.clip(np.maximum(gap, 0.8 * retraction), 0, 0.92)
    eosin *= 1.0 - gap
    return 0.09 * (1.0 - gap), eosin


@lru_cache(maxsize=2)
def _streaks(mpp: float) -> FloatImage:
    """Return two textures (TEXTURE_PX, TEXTURE_PX, 2) stretched along x, without seams."""
    # Wrapped before the blur, or the repeated texture would show seams.
    rim = 128
    noise = np.random.default_rng(TEXTURE_PX).standard_normal((TEXTURE_PX,) * 2, dtype=np.float32)
    noise = np.pad(noise, rim, mode="wrap")
    fine, broad = (
        blur(noise, along_um / mpp, across_um / mpp)[rim:-rim, rim:-rim]
        for along_um, across_um in ((6.5, 0.5), (13.0, 1.9))
    )
    fine /= fine.std()
    broad /= broad.std()
    return np.stack([0.75 * fine + 0.55 * broad, np.roll(0.35 * fine + 0.85 * broad, 331, 0)], -1)


def _along(across: FloatImage, xy: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return the direction (n,) of the streaks, in radians, at points (n, 2) x, y."""
    last = across.shape[0] - 1
    x, y = xy.T
    dx = across[y, np.minimum(x + 1, last)] - across[y, np.maximum(x - 1, 0)]
    dy = across[np.minimum(y + 1, last), x] - across[np.maximum(y - 1, 0), x]
    return np.arctan2(-dx, dy)


def at(image: NDArray[Any], xy: NDArray[np.int32]) -> NDArray[Any]:
    """Return the values (n,) of an image at the points (n, 2) x, y."""
    return image[xy[:, 1], xy[:, 0]]


def scatter(
    rng: np.random.Generator,
    stains: Stains,
    kind: NucleusKind,
    xy: NDArray[np.int32],
    keep: BoolImage,
    mpp: float,
    angle: NDArray[np.float32] | None = None,
) -> None:
    """Paint nuclei of one kind at `xy[keep]`, along `angle` (n,) in radians where given.

    Random numbers are drawn for all of `xy`, so a change of `keep` alters no other nucleus.
    """
    stamps = make_stamps(kind, mpp)
    choice = rng.integers(len(stamps), size=len(xy))
    strength = np.exp(rng.normal(0.0, 0.1, len(xy))).astype(np.float32)
    if angle is not None:
        turn = np.round(angle / np.pi * TURNS).astype(np.int64) % TURNS
        choice = turn + TURNS * (choice % (len(stamps) // TURNS))
    paste_nuclei(stains, xy[keep], stamps, choice[keep], strength[keep])


def _paint_fat(
    rng: np.random.Generator,
    fat: BoolImage,
    free: BoolImage,
    stains: Stains,
    mpp: float,
) -> None:
    """Paint adipocytes: rounded empty cells of about 60 um with thin eosinophilic membranes."""
    side = fat.shape[0]
    small = max(32, side // 4)
    spacing = 58 / mpp * small / side
    xy = hex_positions(rng, small, spacing, 0.17)
    border, label = voronoi_borders(xy, (small, small))
    # Whole cells only: an adipocyte is either inside the lobule or outside.
    full_xy = np.minimum((xy * (side / small)).astype(np.int32), side - 1)
    chosen = np.zeros(int(label.max()) + 1, np.float32)
    chosen[at(label, xy)] = at(fat, full_xy)
    depth = cv2.distanceTransform((~border).astype(np.uint8), cv2.DIST_L2, 5) * chosen[label]
    # Blurring the depth rounds the corners of the polygons.
    depth_px = resize(blur(depth, spacing / 16), side) * np.float32(side / small)
    for box in boxes(depth_px > 2.6 / mpp):
        empty = np.clip((depth_px[box] - 2.6 / mpp) * mpp / 0.8, 0, 1) * free[box]
        for stain in (stains.haematoxylin, stains.eosin):
            stain[box] *= 1.0 - np.float32(0.975) * empty


def voronoi_borders(
    xy: NDArray[np.int32], shape: tuple[int, ...]
) -> tuple[BoolImage, NDArray[np.int32]]:
    """Return the borders of the Voronoi cells of points (n, 2), and the cell of every px."""
    points = np.ones(shape, np.uint8)
    points[xy[:, 1], xy[:, 0]] = 0
    _, label = cv2.distanceTransformWithLabels(
        points, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    border = np.zeros(shape, np.bool_)
    border[:, 1:] |= label[:, 1:] != label[:, :-1]
    border[1:] |= label[1:] != label[:-1]
    return border, np.asarray(label, np.int32)


def paint_tumour(
    rng: np.random.Generator,
    plan: RegionPlan,
    stains: Stains,
    mpp: float,
) -> None:
    """Fill the nests, in place.

    HER2-negative: small, dark, crowded, irregular nuclei without visible cell borders.
    HER2-positive: large, round, pale nuclei with a nucleolus, wide apart, each in a cell with a
    drawn membrane (the chicken wire of a membranous stain).
    """
    side = plan.nest.shape[0]
    cytoplasm_rng, negative_rng, positive_rng = rng.spawn(3)
    speckle = smooth_noise(cytoplasm_rng, side, 1.6 / mpp)
    cloud = broad_noise(cytoplasm_rng, side, 14 / mpp)
    nest = blur(plan.nest, 0.8 / mpp)
    for box in boxes(nest):
        mottle = 0.6 * (speckle[box] + cloud[box])
        for stain, level, contrast in (
            (stains.haematoxylin[box], 0.3, 0.04),
            (stains.eosin[box], 0.42, 0.05),
        ):
            stain += nest[box] * (level + contrast * mottle - stain)
    xy = hex_positions(negative_rng, side, NEGATIVE_SPACING_UM / mpp, 0.2)
    scatter(negative_rng, stains, SOLID, xy, at(plan.nest & ~plan.positive, xy), mpp)
    if plan.positive.any():
        # Membranes before nuclei: a border never crosses a nucleus.
        xy = hex_positions(positive_rng, side, POSITIVE_SPACING_UM / mpp, 0.17)
        _chicken_wire(positive_rng, xy, plan, stains, mpp)
        scatter(positive_rng, stains, VESICULAR, xy, at(plan.positive, xy), mpp)


def _chicken_wire(
    rng: np.random.Generator,
    xy: NDArray[np.int32],
    plan: RegionPlan,
    stains: Stains,
    mpp: float,
) -> None:
    """Paint membranes on the Voronoi borders of the positive cells."""
    noise = smooth_noise(rng, plan.nest.shape[0], 9 / mpp)
    # Only the surroundings of positive areas: cells further away reach nothing that is drawn.
    margin = round(6 * POSITIVE_SPACING_UM / mpp)
    rows, columns = _surroundings(plan.positive, margin)
    corner = np.array([columns.start, rows.start], np.int32)
    size = np.array([columns.stop, rows.stop]) - corner
    xy = xy - corner
    xy = xy[np.all((xy >= 0) & (xy < size), axis=1)]
    positive, nest = plan.positive[rows, columns], plan.nest[rows, columns]
    border, label = voronoi_borders(xy, nest.shape)
    chosen = np.zeros(int(label.max()) + 1, np.bool_)
    chosen[at(label, xy)] = at(positive, xy)
    border &= chosen[label] & nest  # a cell on the border of the area is drawn whole
    width = max(1, round(0.9 / mpp))
    wire = cv2.dilate(border.astype(np.uint8), np.ones((width, width), np.uint8))
    line = blur(np.asarray(wire), 0.45 / mpp)
    haematoxylin, eosin = stains.haematoxylin[rows, columns], stains.eosin[rows, columns]
    for box in boxes(line):
        drawn = line[box] * (0.8 + 0.25 * noise[rows, columns][box])
        haematoxylin[box] += np.float32(0.5) * drawn
        eosin[box] += np.float32(0.62) * drawn


def _surroundings(mask: BoolImage, margin_px: int) -> tuple[slice, slice]:
    """Return the rows and columns that a mask, which is not empty, and a margin reach over."""
    found = []
    for axis, side in enumerate(mask.shape):
        inside = np.flatnonzero(mask.any(axis=1 - axis))
        found.append(
            slice(max(0, int(inside[0]) - margin_px), min(side, int(inside[-1]) + margin_px + 1))
        )
    return found[0], found[1]


def match_mean_colour(stains: Stains, vectors: FloatImage, plan: RegionPlan) -> NDArray[np.float32]:
    """Return factors (3,) on the optical density of positive areas that make both means equal.

    Solves mean(exp(-k * density)) over positive pixels = mean(exp(-density)) over negative nest
    pixels for each channel by bisection, on every third pixel of every third row.
    """
    thin = np.s_[::3, ::3]
    positive = plan.positive[thin]
    negative = (plan.nest & ~plan.positive)[thin]
    factors = np.ones(3, np.float32)
    if positive.sum() < 50 or negative.sum() < 50:
        return factors
    h, e = stains.haematoxylin[thin], stains.eosin[thin]
    for c in range(3):
        target = np.exp(-(h[negative] * vectors[0, c] + e[negative] * vectors[1, c])).mean()
        density = h[positive] * vectors[0, c] + e[positive] * vectors[1, c]
        low, high = 0.3, 3.0
        for _ in range(18):
            middle = (low + high) / 2
            if np.exp(-middle * density).mean() > target:
                low = middle
            else:
                high = middle
        factors[c] = (low + high) / 2
    return factors
