"""Demo cohort: pen marks and tissue folds, to test the detection of tissue and artefacts."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from her2.synthetic.nuclei import Stains, blur, smooth_noise

PENS = {"blue": (38, 62, 168), "green": (28, 128, 78), "black": (34, 32, 38)}


def add_pen(rng: np.random.Generator, rgb: NDArray[np.uint8], colour: str, mpp: float) -> None:
    """Draw a felt-pen arc around the section, over glass and the tissue's edge, in place."""
    side = rgb.shape[0]
    start, span = rng.uniform(0, 2 * np.pi), rng.uniform(0.9, 2.2)
    t = np.linspace(0, 1, 60)
    radius = side * (rng.uniform(0.42, 0.47) + 0.012 * np.sin(rng.uniform(5, 9) * t))
    turn = start + span * t
    points = np.stack([np.cos(turn), np.sin(turn)], 1) * radius[:, None] + side / 2
    ink = np.zeros((side, side), np.uint8)
    width_px = max(3, round(rng.uniform(38, 60) / mpp))
    cv2.polylines(ink, [np.round(points).astype(np.int32)], False, 255, width_px, cv2.LINE_AA)
    rows = np.flatnonzero(ink.any(axis=1))
    margin = round(8 / mpp)  # room for the soft edge
    band = np.s_[max(0, rows[0] - margin) : rows[-1] + 1 + margin]
    cover = blur(ink[band], 2 / mpp) / 255
    streaks = smooth_noise(rng, side, 9 / mpp)[band]
    cover *= np.clip(0.86 + 0.05 * streaks, 0.6, 0.97)
    for c, level in enumerate(PENS[colour]):
        # Ink absorbs light, so what lies under it shows through, tinted.
        through = rgb[band, :, c].astype(np.float32)
        rgb[band, :, c] = np.clip(through * (1 - cover * (1 - level / 255)), 0, 255)


def add_fold(
    rng: np.random.Generator,
    stains: Stains,
    tissue: NDArray[np.bool_],
    mpp: float,
) -> None:
    """Lay a second sheet of tissue over a curved band through the section, in place."""
    side = tissue.shape[0]
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    turn, offset = rng.uniform(0, np.pi), rng.uniform(-0.12, 0.12) * side
    across = (x - side / 2) * np.float32(np.cos(turn)) + (y - side / 2) * np.float32(np.sin(turn))
    across += np.float32(offset) + np.float32(18 / mpp) * smooth_noise(rng, side, 260 / mpp)
    half_px = rng.uniform(16, 30) / mpp + np.float32(5 / mpp) * smooth_noise(rng, side, 160 / mpp)
    inside = np.clip((half_px - np.abs(across)) * np.float32(mpp / 2.5), 0, 1) * tissue
    shift = (round(50 / mpp) % side, round(35 / mpp) % side)
    for stain in (stains.haematoxylin, stains.eosin):
        # The folded sheet is a neighbouring piece of the same section, twice.
        stain += inside * (np.roll(stain, shift, (0, 1)) + np.float32(0.45) * stain)
