"""Stage 1, pre-training: augmentation that leaves a patch's class unchanged.

Scale varies little, because the size of a nucleus separates classes. Colour varies in the amounts
of stain (optical density), as it does between laboratories, after Tellez 2018 (arXiv 1808.05896).
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
    """Return the side, in px of the patch, of the encoder's window; by default the whole patch."""
    whole = min(shape[0], shape[1])
    return whole if window_px is None else min(window_px, whole)


def plain(image: NDArray[np.uint8], size_px: int, window_px: float | None) -> NDArray[np.uint8]:
    """Return the centre of a patch, uint8 (size_px, size_px, 3), as validation uses it."""
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
    """Cut a random square, flip and rotate it by right angles: uint8 (size_px, size_px, 3).

    The square lies inside the patch, and its side is that of the window within `strength` times
    10 %.
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
    """Draw changes of stain: matrices (count, 3, 3) and shifts (count, 3) of optical density.

    Haematoxylin, eosin and DAB each get their own gain and shift, and the light gets a factor.
    Together these are one affine map of the optical density.
    """
    gain = 1 + strength * STAIN_GAIN * generator.uniform(-1, 1, (count, 3))
    shift = strength * STAIN_SHIFT * generator.uniform(-1, 1, (count, 3))
    light = strength * BRIGHTNESS * generator.uniform(-1, 1, (count, 1))
    matrices = np.einsum("ij,nj,jk->nik", np.linalg.inv(HED), gain, HED)
    shifts = shift @ HED + light
    return torch.from_numpy(matrices).float(), torch.from_numpy(shifts).float()


def restain(patches: Tensor, matrices: Tensor, shifts: Tensor) -> Tensor:
    """Apply `stain_changes` to uint8 patches (b, h, w, 3); return floats in [0, 255]."""
    b, h, w, _ = patches.shape
    density = -torch.log((patches.float() + 1) / 256).reshape(b, h * w, 3)
    changed = torch.baddbmm(shifts[:, None], density, matrices)
    return (256 * torch.exp(-changed) - 1).clamp(0, 255).reshape(b, h, w, 3)


def _resized(image: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    if image.shape[0] == size_px:
        return image
    how = cv2.INTER_AREA if image.shape[0] > size_px else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (size_px, size_px), interpolation=how), np.uint8)
