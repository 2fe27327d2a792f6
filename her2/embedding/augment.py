"""Stage 1, embed: the random changes of a tile in an augmented view.

They are those that the published code of arXiv 2411.05028 applies to a patch each time it is drawn
in training (RawanAbdulsadig/HER2-Scoring_MIL-Attention-Model, the training script): colour jitter
of 0.1 (brightness, contrast and saturation by up to 10 %, hue by up to 0.1 of the circle, in random
order), an affine map (rotation and shear along x by up to 10 degrees, shift by up to 0.1 of the
side, scale 0.8 to 1.2; nearest px, light grey of 245 outside of the tile), and in half of the
patches Gaussian noise with a standard deviation of 0.1 in the encoder's normalised units.

That code adds the noise after normalisation. Here all happens before it, on uint8 pixels, where the
same noise is 0.1 times the normalisation's standard deviation; it is rounded, and cut off at black
and white.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from her2.core.files import digest
from her2.embedding.reading import Part, PendingSlide

JITTER = 0.1
DEGREES, SHIFT, SCALE, SHEAR = 10.0, 0.1, (0.8, 1.2), 10.0
FILL = 245.0
"""Grey value outside of the tile: that of glass."""
NOISE, NOISE_SHARE = 0.1, 0.5


class Landing(NamedTuple):
    """Encoded rows of a slide: those of a view, or of the plain store (0)."""

    slide: PendingSlide
    rows: NDArray[np.int64]
    view: int


def tile_generator(seed: int, key: str, view: int, x: int, y: int) -> np.random.Generator:
    """Return the generator of one tile in a view, so that batches and threads do not matter.

    Args:
        seed: that of the config.
        key: that of the slide's plain store.
        view: number of the view, from 1.
        x, y: the tile's place, in level-0 px.
    """
    return np.random.default_rng(int(digest([seed, key, view, x, y])[:16], 16))


def augmented(
    tile: NDArray[np.uint8], generator: np.random.Generator, std: tuple[float, ...]
) -> NDArray[np.uint8]:
    """Return a changed copy of a tile, uint8 (size, size, 3).

    `std` (3,) is the standard deviation of RGB in [0, 1] by which the encoder divides.
    """
    side = tile.shape[0]
    bright, contrast, colour = generator.uniform(1 - JITTER, 1 + JITTER, 3).tolist()
    hue = float(generator.uniform(-JITTER, JITTER))
    order = generator.permutation(4)
    angle = float(generator.uniform(-DEGREES, DEGREES))
    shift = np.rint(generator.uniform(-SHIFT * side, SHIFT * side, 2)).astype(int).tolist()
    scale, shear = float(generator.uniform(*SCALE)), float(generator.uniform(-SHEAR, SHEAR))
    noisy = generator.random() < NOISE_SHARE
    image = torch.from_numpy(np.ascontiguousarray(tile)).permute(2, 0, 1)
    changes: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: tv.adjust_brightness(x, bright),
        lambda x: tv.adjust_contrast(x, contrast),
        lambda x: tv.adjust_saturation(x, colour),
        lambda x: tv.adjust_hue(x, hue),
    )
    for index in order:
        image = changes[index](image)
    image = tv.affine(
        image, angle=angle, translate=shift, scale=scale, shear=[shear, 0.0], fill=[FILL] * 3
    )
    found: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
    if not noisy:
        return found
    noise = generator.standard_normal(found.shape, np.float32) * (
        255 * NOISE * np.array(std, np.float32)
    )
    return np.clip(np.rint(found + noise), 0, 255).astype(np.uint8)


def view_images(
    slide: PendingSlide, rows: NDArray[np.int64], images: NDArray[np.uint8], view: int
) -> NDArray[np.uint8]:
    """Return tiles of a slide as a view shows them: `images` (k, size, size, 3) of `rows` (k,).

    Those of view 0 are the images themselves.
    """
    if view == 0:
        return images
    begin = time.perf_counter()
    found = np.empty_like(images)
    for index, (x, y) in enumerate(slide.table.coords[rows].tolist()):
        generator = tile_generator(slide.seed, slide.key, view, x, y)
        found[index] = augmented(images[index], generator, slide.std)
    slide.add("reading", time.perf_counter() - begin)
    return found


def by_view(
    images: NDArray[np.uint8], parts: list[Part]
) -> Iterator[tuple[NDArray[np.uint8], list[Landing]]]:
    """Yield a batch for each view that a slide of `parts` needs: images (b, size, size, 3), rows.

    `images` has the tiles of all parts, in their order.
    """
    for view in sorted({view for slide, _ in parts for view in slide.spools}):
        start, found, landings = 0, [], []
        for slide, rows in parts:
            part = images[start : start + len(rows)]
            start += len(rows)
            if view in slide.spools:
                found.append(view_images(slide, rows, part, view))
                landings.append(Landing(slide, rows, view))
        whole = view == 0 and len(landings) == len(parts)
        yield images if whole else np.concatenate(found), landings
