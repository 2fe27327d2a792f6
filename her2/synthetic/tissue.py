"""Demo cohort: paints a planned square of tissue as H&E, with known HER2 areas.

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
    LYMPHOCYTE,
    SOLID,
    SPINDLE,
    TURNS,
    VESICULAR,
    FloatImage,
    NucleusKind,
    Stains,
    blur,
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
) -> tuple[NDArray[np.uint8], BoolImage]:
    """Paint a square: RGB (side_px, side_px, 3) uint8 and the HER2-positive mask, same square.

    Each part has a generator of its own, so two calls that differ in `params.her2_share` alone
    show the same section outside the tumour nests.
    """
    plan = plan_region(rng, params, side_px, mpp)
    stroma_rng, cell_rng, artefact_rng, grain_rng = rng.spawn(4)
    stains = paint_stroma(stroma_rng, plan, side_px, mpp)
    paint_tumour(cell_rng, plan, stains, mpp)
    # A section is not equally thick everywhere.
    thickness = 1.0 + 0.03 * smooth_noise(stroma_rng, side_px, 250 / mpp)
    for stain, strength in (
        (stains.haematoxylin, params.haematoxylin_strength),
        (stains.eosin, params.eosin_strength),
    ):
        stain *= np.float32(strength) * thickness
    vectors = np.array([params.haematoxylin, params.eosin], np.float32)
    scale = match_mean_colour(stains, vectors, plan)
    if params.fold:
        add_fold(artefact_rng, stains, plan.tissue, mpp)
    rgb = np.empty((side_px, side_px, 3), np.uint8)
    grain = grain_rng.standard_normal((side_px, side_px), dtype=np.float32) * np.float32(1.6)
    for c in range(3):
        density = stains.haematoxylin * -vectors[0, c]
        density -= stains.eosin * vectors[1, c]
        np.multiply(density, scale[c], out=density, where=plan.positive)
        cv2.exp(density, density)
        rgb[..., c] = cv2.addWeighted(density, params.glass[c], grain, 1, 0, dtype=cv2.CV_8U)
    if params.pen is not None:
        add_pen(artefact_rng, rgb, params.pen, mpp)
    return rgb, plan.positive


def paint_stroma(rng: np.random.Generator, plan: RegionPlan, side_px: int, mpp: float) -> Stains:
    """Stains (side_px, side_px) of fibres, spindle cells, lymphocytes and fat."""
    fibre_rng, fat_rng, spindle_rng, lymph_rng = rng.spawn(4)
    fibres, clefts, across = _fibres(fibre_rng, side_px, mpp)
    tissue = blur(plan.tissue, 1.0 / mpp)
    density = broad_noise(fibre_rng, side_px, 130 / mpp)
    eosin = np.clip(0.55 + 0.07 * density + 0.12 * fibres, 0.08, None)
    # White gaps between bundles of collagen, and where a nest has shrunk away from its stroma.
    gap = np.clip(clefts - 1.2 + 0.35 * density, 0, 0.5) * 1.7
    retraction = np.exp(-(((plan.nest_edge + 0.035) / 0.022) ** 2)) * np.clip(clefts + 0.4, 0, 1)
    gap = np.clip(np.maximum(gap, 0.8 * retraction), 0, 0.92)
    eosin *= 1.0 - gap
    haematoxylin = 0.09 * (1.0 - gap)
    del gap, retraction, clefts

    stains = Stains(haematoxylin * tissue, eosin * tissue)
    stroma = plan.tissue & ~plan.nest & ~plan.fat
    xy = hex_positions(spindle_rng, side_px, SPINDLE_SPACING_UM / mpp, 0.3)
    keep = at(stroma, xy) & (spindle_rng.random(len(xy)) < 0.5)
    scatter(spindle_rng, stains, SPINDLE, xy, keep, mpp, angle=_along(across, xy))
    # Lymphocytes crowd in patches and along nests.
    xy = hex_positions(lymph_rng, side_px, LYMPHOCYTE_SPACING_UM / mpp, 0.3)
    crowd = at(broad_noise(lymph_rng, side_px, 70 / mpp), xy)
    near_nest = at(plan.nest_edge, xy) > -0.15
    chance = np.clip(0.03 + 0.5 * np.clip(crowd - 0.9, 0, 1) + 0.1 * near_nest, 0, 0.85)
    keep = at(stroma, xy) & (lymph_rng.random(len(xy)) < chance)
    scatter(lymph_rng, stains, LYMPHOCYTE, xy, keep, mpp)
    if plan.fat.any():
        _paint_fat(fat_rng, plan.fat, plan.tissue & ~plan.nest, stains, mpp)
    return stains


def _fibres(
    rng: np.random.Generator, side_px: int, mpp: float
) -> tuple[FloatImage, FloatImage, FloatImage]:
    """Two wavy, streaked textures (sd near 1), and how far every pixel lies across the streaks.

    A texture stretched along x is looked up through a smoothly bent coordinate system, elsewhere
    in the texture for every section.
    """
    x = np.arange(side_px, dtype=np.float32)
    turn = float(rng.uniform(0, np.pi))
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    shift = rng.uniform(0, TEXTURE_PX, 2).astype(np.float32)
    u = (x * cos + shift[0])[None] + (x * sin)[:, None]
    v = (shift[1] - x * sin)[None] + (x * cos)[:, None]
    v += broad_noise(rng, side_px, 190 / mpp) * np.float32(38 / mpp)
    v += broad_noise(rng, side_px, 60 / mpp) * np.float32(6 / mpp)
    looked_up = cv2.remap(_streaks(mpp), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    first, second = np.moveaxis(np.asarray(looked_up, np.float32), -1, 0)
    return first, second, v


@lru_cache(maxsize=2)
def _streaks(mpp: float) -> FloatImage:
    """Return two textures (TEXTURE_PX, TEXTURE_PX, 2) stretched along x, without seams."""
    # Wrapped before the blur, or the repeated texture would show its seams.
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
    """Direction (n,) of the streaks at points (n, 2) x, y in radians: where `across` is level."""
    last = across.shape[0] - 1
    x, y = xy.T
    dx = across[y, np.minimum(x + 1, last)] - across[y, np.maximum(x - 1, 0)]
    dy = across[np.minimum(y + 1, last), x] - across[np.maximum(y - 1, 0), x]
    return np.arctan2(-dx, dy)


def at(image: NDArray[Any], xy: NDArray[np.int32]) -> NDArray[Any]:
    """Values (n,) of an image at the points (n, 2) x, y."""
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
    """Adipocytes: rounded empty cells of about 60 um with thin eosinophilic membranes."""
    side = fat.shape[0]
    small = max(32, side // 4)
    spacing = 58 / mpp * small / side
    xy = hex_positions(rng, small, spacing, 0.17)
    border, label = voronoi_borders(xy, small)
    # Whole cells only: an adipocyte is inside the lobule or not.
    full_xy = np.minimum((xy * (side / small)).astype(np.int32), side - 1)
    chosen = np.zeros(int(label.max()) + 1, np.float32)
    chosen[at(label, xy)] = at(fat, full_xy)
    depth = cv2.distanceTransform((~border).astype(np.uint8), cv2.DIST_L2, 5) * chosen[label]
    # Blurring the depth rounds the corners of the polygons.
    depth_px = resize(blur(depth, spacing / 16), side) * np.float32(side / small)
    empty = np.clip((depth_px - 2.6 / mpp) * mpp / 0.8, 0, 1) * free
    for stain in (stains.haematoxylin, stains.eosin):
        stain *= 1.0 - np.float32(0.975) * empty


def voronoi_borders(xy: NDArray[np.int32], side_px: int) -> tuple[BoolImage, NDArray[np.int32]]:
    """Borders of the Voronoi cells of points (n, 2), and the label of the cell of every pixel."""
    points = np.ones((side_px, side_px), np.uint8)
    points[xy[:, 1], xy[:, 0]] = 0
    _, label = cv2.distanceTransformWithLabels(
        points, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    border = np.zeros((side_px, side_px), np.bool_)
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
    mottle = 0.6 * (speckle + broad_noise(cytoplasm_rng, side, 14 / mpp))
    nest = blur(plan.nest, 0.8 / mpp)
    for stain, level, contrast in ((stains.haematoxylin, 0.3, 0.04), (stains.eosin, 0.42, 0.05)):
        stain += nest * (level + contrast * mottle - stain)
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
    """Membranes on the Voronoi borders of the positive cells."""
    border, label = voronoi_borders(xy, plan.nest.shape[0])
    chosen = np.zeros(int(label.max()) + 1, np.bool_)
    chosen[at(label, xy)] = at(plan.positive, xy)
    border &= chosen[label] & plan.nest  # a cell on the border of the area is drawn whole
    width = max(1, round(0.9 / mpp))
    wire = cv2.dilate(border.astype(np.uint8), np.ones((width, width), np.uint8))
    line = blur(np.asarray(wire), 0.45 / mpp)
    line *= 0.8 + 0.25 * smooth_noise(rng, line.shape[0], 9 / mpp)
    for stain, amount in ((stains.haematoxylin, 0.5), (stains.eosin, 0.62)):
        stain += np.float32(amount) * line


def match_mean_colour(stains: Stains, vectors: FloatImage, plan: RegionPlan) -> NDArray[np.float32]:
    """Factors (3,) on the optical density of positive areas that make both means equal.

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
