"""Demo cohort: noise, cell positions and nucleus stamps, from which tissue is painted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.float32]

TURNS = 16  # directions that a nucleus can lie in
STAMPS_PER_KIND = 3 * TURNS
BOX_ROWS = 64


@dataclass(frozen=True)
class Stains:
    """Amount of each stain at every pixel, (side_px, side_px) float32, painted in place."""

    haematoxylin: FloatImage
    eosin: FloatImage


@dataclass(frozen=True)
class NucleusKind:
    """Shape of one kind of nucleus; lengths in um, stain as multiples of one unit of haematoxylin.

    `vesicular` blends from a solid, clumped nucleus (0) to a pale one with a dark rim and a
    prominent nucleolus (1).
    """

    radius_um: float
    radius_spread: float
    aspect: tuple[float, float]
    irregularity: float
    stain: float
    vesicular: float


SOLID = NucleusKind(3.7, 0.17, (1.0, 1.8), 0.055, 1.25, 0.0)
VESICULAR = NucleusKind(6.1, 0.13, (1.0, 1.35), 0.03, 1.0, 1.0)
SPINDLE = NucleusKind(2.7, 0.2, (3.0, 5.5), 0.06, 1.0, 0.0)
LYMPHOCYTE = NucleusKind(3.0, 0.08, (1.0, 1.15), 0.03, 1.6, 0.0)


@dataclass(frozen=True)
class Stamp:
    """One nucleus: haematoxylin and opacity, both (k, k) float32."""

    stain: FloatImage
    alpha: FloatImage


def smooth_noise(rng: np.random.Generator, side_px: int, wavelength_px: float) -> FloatImage:
    """Draw a random field (side_px, side_px) that varies over about `wavelength_px`, sd near 1."""
    n = max(4, int(np.ceil(side_px / max(wavelength_px, 1.0))) + 1)
    coarse = rng.standard_normal((n, n), dtype=np.float32) * np.float32(1.3)
    return resize(coarse, side_px)


def broad_noise(rng: np.random.Generator, side_px: int, wavelength_px: float) -> FloatImage:
    """Draw `smooth_noise` of a long wavelength at a fraction of the cost.

    The last step is linear: OpenCV's cubic kernel ripples on a ramp, which bent fibres show.
    """
    coarse = smooth_noise(rng, max(16, side_px // 8), wavelength_px / 8)
    return np.asarray(
        cv2.resize(coarse, (side_px, side_px), interpolation=cv2.INTER_LINEAR), np.float32
    )


def boxes(image: NDArray[Any]) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of boxes that cover all of an image (h, w) that is not zero.

    A formula applied box by box gives the pixels that it would give at once. But its intermediate
    images are so small that they stay in the processor's cache, and empty glass costs nothing:
    together half of the time of a section.
    """
    for top in range(0, image.shape[0], BOX_ROWS):
        rows = slice(top, top + BOX_ROWS)
        columns = np.flatnonzero(image[rows].any(axis=0))
        if len(columns):
            yield rows, slice(int(columns[0]), int(columns[-1]) + 1)


def blur(image: NDArray[Any], sigma_px: float, sigma_y_px: float = 0.0) -> FloatImage:
    """Blur with a Gaussian, as float32, equally in both directions unless `sigma_y_px` is given."""
    as_float = image.astype(np.float32)
    return np.asarray(cv2.GaussianBlur(as_float, (0, 0), sigma_px, sigmaY=sigma_y_px), np.float32)


def resize(field: FloatImage, side_px: int) -> FloatImage:
    """Resize a float field to (side_px, side_px) by cubic interpolation."""
    return np.asarray(
        cv2.resize(field, (side_px, side_px), interpolation=cv2.INTER_CUBIC), np.float32
    )


def hex_positions(
    rng: np.random.Generator, side_px: int, spacing_px: float, jitter: float
) -> NDArray[np.int32]:
    """Draw a jittered hexagonal grid over the square: (n, 2) int32 of x, y in px.

    Cells pack to a distance of each other, which independent positions would not.
    """
    row_px = spacing_px * 0.866
    rows, columns = int(side_px / row_px) + 2, int(side_px / spacing_px) + 2
    row, column = np.mgrid[0:rows, 0:columns]
    x = (column + 0.5 * (row % 2)) * spacing_px
    y = row * row_px
    xy = np.stack([x.ravel(), y.ravel()], axis=1)
    xy += rng.normal(0.0, jitter * spacing_px, xy.shape)
    inside = np.all((xy >= 0) & (xy < side_px), axis=1)
    return xy[inside].astype(np.int32)


@lru_cache(maxsize=8)
def make_stamps(kind: NucleusKind, mpp: float) -> tuple[Stamp, ...]:
    """Return the nuclei that every section is painted with; number i lies at i / `TURNS` of pi.

    One set per kind, whatever the slide: drawing a set takes as long as a third of a section.
    """
    rng = np.random.default_rng(STAMPS_PER_KIND)
    return tuple(make_stamp(rng, kind, i / TURNS * np.pi, mpp) for i in range(STAMPS_PER_KIND))


def make_stamp(rng: np.random.Generator, kind: NucleusKind, angle_rad: float, mpp: float) -> Stamp:
    """Draw one nucleus whose long axis points along `angle_rad`."""
    radius_px = kind.radius_um * float(np.exp(rng.normal(0.0, kind.radius_spread))) / mpp
    aspect = float(rng.uniform(*kind.aspect))
    long_px, short_px = radius_px * aspect**0.5, radius_px / aspect**0.5
    half = int(np.ceil(long_px * 1.3)) + 2
    grid = np.arange(-half, half + 1, dtype=np.float32)
    x, y = np.meshgrid(grid, grid)
    along = x * np.cos(angle_rad) + y * np.sin(angle_rad)
    across = -x * np.sin(angle_rad) + y * np.cos(angle_rad)
    theta = np.arctan2(across / short_px, along / long_px)
    outline = np.ones_like(theta)
    for lobe in (2, 3, 5):
        outline += np.cos(lobe * theta + rng.uniform(0, 6.3)) * rng.normal(
            0.0, 2.5 * kind.irregularity / lobe
        )
    radial = np.hypot(along / long_px, across / short_px) / outline
    softness_px = 0.45 / mpp**0.5
    alpha = 1.0 / (1.0 + np.exp(np.clip((radial - 1.0) * short_px / softness_px, -30, 30)))

    grain = rng.standard_normal(x.shape, dtype=np.float32)
    clumps = blur(grain, 0.9 / mpp)
    clumps /= float(clumps.std()) + 1e-6
    solid = 1.0 + 0.2 * clumps + 0.1 * radial
    spot = rng.uniform(-0.35, 0.35, 2)
    nucleolus = np.hypot(along / radius_px - spot[0], across / radius_px - spot[1])
    nucleolus /= rng.uniform(0.17, 0.27)
    pale = 0.36 + 0.11 * clumps + rng.uniform(0.65, 0.95) * np.exp(-(((radial - 0.94) / 0.12) ** 2))
    pale += rng.uniform(0.6, 1.5) * np.exp(-(nucleolus**4))
    stain = kind.stain * ((1 - kind.vesicular) * solid + kind.vesicular * pale)
    return Stamp(np.clip(stain, 0.05, None).astype(np.float32), alpha.astype(np.float32))


def paste_nuclei(
    stains: Stains,
    centres: NDArray[np.int32],
    stamps: Sequence[Stamp],
    choice: NDArray[np.int64],
    strength: FloatImage,
) -> None:
    """Paint `stamps[choice[i]]` at `centres[i]` (x, y) into both stains, in place.

    A nucleus hides what lies under it, and most of the eosin.
    """
    side_y, side_x = stains.eosin.shape
    for (x, y), which, factor in zip(
        centres.tolist(), choice.tolist(), strength.tolist(), strict=True
    ):
        stamp = stamps[which]
        half = stamp.alpha.shape[0] // 2
        top, left = max(0, y - half), max(0, x - half)
        bottom, right = min(side_y, y + half + 1), min(side_x, x + half + 1)
        part = np.s_[top - y + half : bottom - y + half, left - x + half : right - x + half]
        alpha = stamp.alpha[part]
        here = stains.haematoxylin[top:bottom, left:right]
        here += alpha * (factor * stamp.stain[part] - here)
        stains.eosin[top:bottom, left:right] *= 1.0 - 0.55 * alpha
