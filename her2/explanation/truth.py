"""Stage 2, explanation: where a person (or the demo) says that the positive tissue is.

In the folder `cohort.masks` one file a slide: `{slide_id}.png`, `.tif` or `.tiff` (white =
positive), `.geojson` (QuPath) or `.xml` (Aperio ImageScope). It judges attention and is never
trained on.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from her2.cohort.manifest import TRUTH_SUFFIXES
from her2.core.errors import SlideError
from her2.core.types import Mask
from her2.slides.annotations import chosen_regions, read_regions, region_mask
from her2.slides.masks import fitted, read_values

REGION_SUFFIXES = (".geojson", ".xml")
KEY = "cohort.mask_classes"


def find_truth(folder: Path, slide_id: str) -> Path | None:
    """The truth file of a slide; None where there is none.

    Raises:
        SlideError: there are several.
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
    """Where the positive tissue is, over the whole slide: px of which at least half is.

    Args:
        path: of a form that `TRUTH_SUFFIXES` names. Pictures cover the whole slide, at
            any size; white is more than half of what their type can hold, or 1 where they hold 0
            and 1 alone; of a palette the indices count. Regions are in level-0 px.
        shape: (h, w) of the result.
        size_px: (width, height) of the slide at level 0.
        classes: of regions; all where none is named.
        origin_px: level-0 place of the regions' (0, 0).

    Raises:
        SlideError: naming the file and what is wrong with it; also where it has no region, or none
            of the classes.
    """
    if path.suffix.lower() in REGION_SUFFIXES:
        regions = chosen_regions(read_regions(path), classes, file=path.name, key=KEY)
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
