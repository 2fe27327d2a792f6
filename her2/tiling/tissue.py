"""Stage 1, tile: tissue detection on a thumbnail, as pure functions on arrays.

Tissue is recognised by its stains: haematoxylin and eosin both absorb green most. In optical
density relative to the slide's own glass, this separates even the palest pink from grey dirt,
bubbles, shadows and yellowed mounting medium, whatever else is on the slide. No threshold depends
on how dark the darkest tissue is.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from her2.core.masks import drop_small
from her2.core.types import RGB, Density, Mask

SMOOTHING_UM = 8.0
"""Sigma of the initial blur, which removes noise and single nuclei but keeps larger structures."""
DEFAULT_GLASS = (244.0, 244.0, 244.0)
"""Glass colour of a slide that shows no glass."""
STAIN_RANGE = (0.04, 0.12)
"""Bounds of the least density by which green exceeds red or blue on tissue; 0.04 is a saturation of
4 %. Within them, the threshold is six times the noise of the glass."""
DARKEST = 2.4
"""Density above which (less than 9 % of the light in every channel) colour is meaningless."""
EDGE_SHARE = 0.4
EDGE_UM = 16.0
"""A faint px this close to tissue is its blurred edge unless it has this share of the stain."""


def optical_density(thumbnail: RGB, *, mpp: float) -> Density:
    """Return the optical density of a blurred thumbnail, ln(glass / light), (h, w, 3).

    Source: Beer-Lambert, as in Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23, 2001.
    """
    sigma = max(0.6, SMOOTHING_UM / mpp)
    smooth = cv2.GaussianBlur(thumbnail, (0, 0), sigmaX=sigma)
    glass = np.log(np.array(glass_colour(smooth), np.float32) + 1)
    levels = glass - np.log(np.arange(256, dtype=np.float32) + 1)[:, None]
    return np.asarray(cv2.LUT(smooth, levels[:, None, :]), np.float32)


def glass_colour(image: NDArray[np.generic]) -> tuple[float, float, float]:
    """Return the colour of empty glass: the brightest common colour of bright, almost grey px.

    Pale tissue is not mistaken for glass, because its green is below red and blue. If less than
    0.3 % of the image is glass, the result is `DEFAULT_GLASS`.
    """
    px = image.reshape(-1, 3)
    px = px[:: max(1, len(px) // 500_000)].astype(np.float32)
    low, high = px.min(axis=1), px.max(axis=1)
    pink = np.minimum(px[:, 0], px[:, 2]) - px[:, 1]
    glass = px[(low >= 195) & (high - low <= 25) & (pink <= 10)]
    if len(glass) < 0.003 * len(px):
        return DEFAULT_GLASS
    grey = glass.mean(axis=1)
    near = glass[np.abs(grey - np.percentile(grey, 95)) <= 6]
    red, green, blue = np.median(near, axis=0)
    return float(red), float(green), float(blue)


def stain(density: Density) -> NDArray[np.float32]:
    """Return by how much green is absorbed more than red or blue: (h, w), 0 where grey."""
    red, green, blue = cv2.split(density)
    return np.asarray(green - cv2.min(red, blue), np.float32)


def tissue_mask(
    density: Density, *, mpp: float, min_tissue_um: float, exclude: Mask | None = None
) -> Mask:
    """Find tissue by its stain in the `optical_density` of a thumbnail, and return its mask (h, w).

    Pieces narrower than `min_tissue_um` are removed, and such holes filled. `exclude` is not tissue
    whatever its colour (pen, the scanner's border).
    """
    amount = stain(density)
    red, green, blue = cv2.split(density)
    least = np.asarray(cv2.min(cv2.min(red, green), blue))
    mask = (amount > _threshold(density, amount)) & (least < DARKEST)
    reach = 2 * round(EDGE_UM / mpp) + 1
    nearby = cv2.dilate(amount, np.ones((reach, reach), np.uint8))
    mask &= (amount > STAIN_RANGE[1]) | (amount > EDGE_SHARE * nearby)
    return cleaned(mask, mpp=mpp, min_tissue_um=min_tissue_um, exclude=exclude)


def _threshold(density: Density, amount: NDArray[np.float32]) -> float:
    """Return the threshold: median + 6 robust standard deviations of the glass, within bounds."""
    red, green, blue = cv2.split(np.abs(density))
    glass = amount[cv2.max(cv2.max(red, green), blue) < 0.04]
    if len(glass) < 100:
        return STAIN_RANGE[0]
    middle = float(np.median(glass))
    spread = 1.4826 * float(np.median(np.abs(glass - middle)))
    return float(np.clip(middle + 6 * spread, *STAIN_RANGE))


def cleaned(mask: Mask, *, mpp: float, min_tissue_um: float, exclude: Mask | None = None) -> Mask:
    """Return a mask of tissue without specks, small holes, small pieces and what is excluded.

    Arguments are those of `tissue_mask`.
    """
    min_px = min_tissue_um / mpp
    return (
        _clean(mask, min_px=min_px)
        if exclude is None
        else _clean(mask & ~exclude, min_px=min_px) & ~exclude
    )


def _clean(mask: Mask, *, min_px: float) -> Mask:
    """Remove specks by opening, then fill small holes and drop small pieces."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel).astype(bool)
    return drop_small(~drop_small(~opened, min_px**2), min_px**2)
