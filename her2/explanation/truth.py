"""Stage 2, explanation: ground truths of where the positive tissue is.

A person (or the demo) provides one file per slide in the folder `cohort.masks`: `{slide_id}.png`,
`.tif` or `.tiff` (white = positive), `.geojson` (QuPath) or `.xml` (Aperio ImageScope). Ground
truths only evaluate attention and are never trained on.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from her2.cohort.manifest import TRUTH_SUFFIXES
from her2.core.errors import SlideError
from her2.core.plot_style import FigureContext
from her2.core.types import Mask
from her2.slides.annotations import chosen_regions, region_mask
from her2.slides.masks import fitted, read_values

REGION_SUFFIXES = (".geojson", ".xml")
KEY = "cohort.mask_classes"


def truth_words(context: FigureContext) -> str:
    """Return what the area of a ground truth stands for, for pictures."""
    return "Planted HER2-positive morphology" if context.synthetic else "Annotated positive area"


def find_truth(folder: Path, slide_id: str) -> Path | None:
    """Return the ground-truth file of a slide, or None.

    Raises:
        SlideError: the slide has several.
    """
    paths = (folder / f"{slide_id}{suffix}" for suffix in TRUTH_SUFFIXES)
    found = [path for path in paths if path.is_file()]
    if len(found) > 1:
        raise SlideError(
            f"has several ground truths ({', '.join(path.name for path in found)}); keep one"
        )
    return found[0] if found else None


def truth_mask(
    path: Path,
    shape: tuple[int, int],
    *,
    size_px: tuple[int, int],
    classes: Collection[str] = (),
    origin_px: tuple[float, float] = (0.0, 0.0),
) -> Mask:
    """Return a mask of the whole slide, true for px of which at least half is positive.

    Pictures cover the whole slide, `size_px` (width, height) at level 0, at any size. White is more
    than half of the maximum of their type, or 1 where they hold only 0 and 1; with a palette, the
    indices count. Regions are in level-0 px from `origin_px`, and of some `classes`, or of all.

    Raises:
        SlideError: the file cannot be used, or has no region, or none of the classes.
    """
    if path.suffix.lower() in REGION_SUFFIXES:
        regions = chosen_regions(path, classes, key=KEY)
        return region_mask(regions, shape, size_px=size_px, origin_px=origin_px)
    values = read_values(path, shape, size_px=size_px, what="ground truth")
    if values.dtype.kind not in "bui":
        raise SlideError(
            f"its ground truth {path.name} holds {values.dtype} values; save whole numbers, "
            "white = positive"
        )
    if values.dtype == bool or values.max(initial=0) <= 1:
        return fitted(values > 0, shape)
    return fitted(values > np.iinfo(values.dtype).max / 2, shape)
