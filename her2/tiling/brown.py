"""Stage 1, tile: whether a slide is immunohistochemistry by its colour: brown, and without eosin.

The HER2 stain of a case lies in the same folders as its H&E, and is the answer itself. Its brown is
that of diaminobenzidine (DAB). Brown alone is no proof, as melanin, haemosiderin and bile are brown
or yellow too; but what was stained with haematoxylin and eosin has eosin beside them.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from her2.core.types import Density, Mask
from her2.slides.backends import read_header
from her2.slides.slide import Slide
from her2.tiling.tissue import optical_density, tissue_mask

THUMBNAIL_MPP = 8.0
EOSIN_LEAST = 0.10
"""Share of eosin in all stain from which a slide is H&E, whatever else is brown on it. The demo's
slides have 0.14 to 0.39, its IHC of any score up to 0.03, and up to 0.06 with the haematoxylin of
its other laboratories."""
_LEAST_DAB = 0.05
_DAB_SHARE = 0.15
_MOST_EOSIN = 0.3
_LEAST_HAEMATOXYLIN = -0.05
"""Yellow (bile, saffron, fat) lets red through, which the unmixing takes for less than no
haematoxylin."""
_LARGEST_LEVEL_PX = 1 << 27

_STAINS = np.array([(0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776)])
"""Optical density of haematoxylin, eosin and DAB in R, G, B: Ruifrok and Johnston 2001."""


def unmixed(density: Density) -> NDArray[np.float32]:
    """Return the amounts of haematoxylin, eosin and DAB (h, w, 3), by colour deconvolution.

    Source: Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23, 2001. An amount is the optical
    density along a stain's vector of length 1; it is negative where a colour is none of these.
    """
    vectors = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
    return np.asarray(density @ np.linalg.inv(vectors).astype(np.float32))


def brown_share(density: Density, tissue: Mask) -> float:
    """Return the share of the tissue that is brown by DAB; 0 on a slide with eosin, or no tissue.

    `density` is the `optical_density` of a thumbnail (h, w, 3), `tissue` its mask (h, w).
    """
    if not tissue.any():
        return 0.0
    amounts = unmixed(density[tissue][None])[0]
    stain = np.clip(amounts, 0, None)
    total = stain.sum(axis=1)
    if float(stain[:, 1].sum()) >= EOSIN_LEAST * float(total.sum()):
        return 0.0
    haematoxylin, eosin, dab = amounts.T
    brown = (dab > _LEAST_DAB) & (dab > _DAB_SHARE * total)
    brown &= (eosin < _MOST_EOSIN * dab) & (haematoxylin > _LEAST_HAEMATOXYLIN * dab)
    return round(float(brown.mean()), 4)


def brown_of_slide(path: Path, manifest_mpp: float | None) -> float | None:
    """Return `brown_share` of a slide's file; None if its px are too many to be read for that.

    So are those of a slide without a pyramid, such as a flat JPEG, which would be decoded whole.

    Raises:
        SlideError: the slide cannot be read, or has no um/px.
        TileError: a part of the level that is read is damaged.
    """
    width, height = min(read_header(path).level_sizes)
    if width * height > _LARGEST_LEVEL_PX or len(read_header(path).level_sizes) < 2:
        return None
    with Slide(path) as slide:
        thumbnail = slide.thumbnail(THUMBNAIL_MPP, slide.scale(manifest_mpp))
    density = optical_density(thumbnail, mpp=THUMBNAIL_MPP)
    return brown_share(density, tissue_mask(density, mpp=THUMBNAIL_MPP, min_tissue_um=100.0))
