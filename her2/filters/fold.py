"""Artefact filter: folds of the section."""

from __future__ import annotations

from typing import TYPE_CHECKING

from her2.filters.base import AreaFilter, Where

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from her2.core.types import Density, Mask

FOLD_WIDTH_UM = 160.0
"""A fold is narrower than this; tumour nests, vessels and muscle are mostly wider."""
FOLD_LENGTH_UM = 200.0
FOLD_MARGIN_UM = 32.0
HAEMATOXYLIN_EOSIN = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))
"""Optical densities of the two stains in R, G, B. Source: Ruifrok and Johnston, 2001."""


def fold_mask(density: Density, tissue: Mask, *, mpp: float) -> Mask:
    """Find folds: narrow bands that are clearly darker in both stains than the tissue beside them.

    A folded section has twice the eosin as well as the haematoxylin. This separates it from
    epithelium and lymphocytes, which are dark by haematoxylin alone. Glass at a tissue's edge does
    not count as a lighter side. There are two thresholds, as in Kothari, Phan and Wang, J. Pathol.
    Inform. 4:22, 2013: clear folds, and less clear ones around them.
    """
    import cv2
    import numpy as np

    from her2.core.masks import drop_short, grown

    inside = cv2.erode(tissue.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    if not inside.any():
        return np.zeros_like(tissue)
    eosin = np.linalg.pinv(np.array(HAEMATOXYLIN_EOSIN))[:, 1].astype(np.float32)
    smooth = (
        cv2.GaussianBlur(np.maximum(values, 0), (0, 0), sigmaX=12.0 / mpp)
        for values in (cv2.transform(density, np.full((1, 3), 1 / 3)), density @ eosin)
    )
    total, stained = (  # multiples of the tissue's median
        np.asarray(values / max(1e-3, float(np.median(values[inside]))), np.float32)
        for values in smooth
    )
    ridge, eosin_ridge = (_above_both_sides(values, inside, mpp) for values in (total, stained))
    weak = (ridge > 0.3) & (total > 1.2) & (eosin_ridge > 0.4)
    clear = (ridge > 0.6) & (total > 1.5) & (eosin_ridge > 0.7)
    if not clear.any():
        return clear
    return drop_short(weak & grown(clear, FOLD_MARGIN_UM / mpp), FOLD_LENGTH_UM / mpp)


def _above_both_sides(values: NDArray[np.float32], inside: Mask, mpp: float) -> NDArray[np.float32]:
    """Return the white top-hat of `values` within tissue, unaffected by what is outside."""
    import cv2
    import numpy as np

    side = 2 * round(FOLD_WIDTH_UM / mpp / 2) + 1
    kernel = np.ones((side, side), np.uint8)
    ground = cv2.erode(np.where(inside, values, np.float32(np.inf)), kernel)
    ground = cv2.dilate(np.where(np.isinf(ground), np.float32(-1), ground), kernel)
    result: NDArray[np.float32] = np.where(inside, values - np.minimum(ground, values), 0)
    return result


FILTER = AreaFilter(
    name="fold",
    limit=0.2,
    description="maximum share of a tile in a tissue fold; 1: no tile is rejected",
    where=Where.WITHIN,
    find=lambda seen, _: fold_mask(seen.density, seen.tissue, mpp=seen.mpp),
    colour=(200, 30, 130),
    legend="folds",
    methods="in a fold",
    listing=20,
)
