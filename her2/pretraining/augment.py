"""Stage 1, pre-training: what a patch may look like without its class changing.

Scale is left nearly alone, because it carries meaning: how large a nucleus is separates classes.
Colour is varied as a laboratory varies it, in the amounts of stain (optical density), after
Tellez 2018 (arXiv 1808.05896).
"""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Haematoxylin, eosin, DAB: optical density in R, G, B (Ruifrok & Johnston 2001).
HED = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
SCALE = 0.1
STAIN_GAIN, STAIN_SHIFT, BRIGHTNESS = 0.15, 0.02, 0.06


def window(shape: tuple[int, ...], window_px: float | None) -> float:
    """Side (px of the patch) of what the encoder sees: the whole patch unless a window is set."""
    whole = min(shape[0], shape[1])
    return whole if window_px is None else min(window_px, whole)


def plain(image: NDArray[np.uint8], size_px: int, window_px: float | None) -> NDArray[np.uint8]:
    """The centre of a patch, uint8 (size_px, size_px, 3): what validation sees."""
    side = round(window(image.shape, window_px))
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return _resized(image[top : top + side, left : left + side], size_px)


def moved(
    image: NDArray[np.uint8],
    size_px: int,
    window_px: float | None,
    strength: float,
    generator: np.random.Generator,
) -> NDArray[np.uint8]:
    """A random square of a patch, flipped and turned by right angles, uint8 (size_px, size_px, 3).

    The square's side is the window's within `strength` times 10 %, and inside the patch.
    """
    scale = 1 + SCALE * strength * generator.uniform(-1, 1)
    side = round(min(window(image.shape, window_px) * scale, *image.shape[:2]))
    top = int(generator.integers(image.shape[0] - side + 1))
    left = int(generator.integers(image.shape[1] - side + 1))
    square = _resized(image[top : top + side, left : left + side], size_px)
    square = np.rot90(square, int(generator.integers(4)))
    return square[:, ::-1] if generator.integers(2) else square


def stain_changes(
    count: int, strength: float, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Random changes of stain: matrices (count, 3, 3) and shifts (count, 3) of optical density.

    Each of haematoxylin, eosin and DAB gets a gain and a shift of its own, and all of the light a
    factor; together they are one affine map of the optical density.
    """
    gain = 1 + strength * STAIN_GAIN * generator.uniform(-1, 1, (count, 3))
    shift = strength * STAIN_SHIFT * generator.uniform(-1, 1, (count, 3))
    light = strength * BRIGHTNESS * generator.uniform(-1, 1, (count, 1))
    matrices = np.einsum("ij,nj,jk->nik", np.linalg.inv(HED), gain, HED)
    shifts = shift @ HED + light
    return torch.from_numpy(matrices).float(), torch.from_numpy(shifts).float()


def restain(patches: Tensor, matrices: Tensor, shifts: Tensor) -> Tensor:
    """Apply `stain_changes` to uint8 patches (b, h, w, 3); float (b, h, w, 3) in [0, 255]."""
    b, h, w, _ = patches.shape
    density = -torch.log((patches.float() + 1) / 256).reshape(b, h * w, 3)
    changed = torch.baddbmm(shifts[:, None], density, matrices)
    return (256 * torch.exp(-changed) - 1).clamp(0, 255).reshape(b, h, w, 3)


def _resized(image: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    if image.shape[0] == size_px:
        return image
    how = cv2.INTER_AREA if image.shape[0] > size_px else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (size_px, size_px), interpolation=how), np.uint8)
