"""Stage 1, tile: running a tissue segmenter over a slide, window by window.

The windows are part of what the network computes: both published ones average over their whole
window inside (pooling of DeepLabV3, squeeze and excitation of EfficientNet), so a larger window
would give another mask. They overlap, and only the middle of each counts.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from her2.core.errors import UserError, first_line
from her2.core.types import RGB, Mask
from her2.segmenters import Segmenter
from her2.slides.slide import Scale, Slide

_BATCH = {"cuda": 8, "cpu": 1}
_WHITE = 255
_SHOWN_DIGITS = 12


class TissueNetwork:
    """A tissue segmenter with its weights on a device. Several threads may call `find`."""

    def __init__(
        self, segmenter: Segmenter, network: nn.Module, weights_sha256: str, device: torch.device
    ) -> None:
        self._segmenter, self._device = segmenter, device
        self._network = network.eval().requires_grad_(False).to(device)
        self._weights_sha256 = weights_sha256
        self._alone = threading.Lock()  # the memory of one batch, however many slides are read
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(segmenter.mean, device=device).reshape(shape)
        self._std = torch.tensor(segmenter.std, device=device).reshape(shape)

    @property
    def identity(self) -> dict[str, Any]:
        """Return all that determines the mask of a slide, for keys."""
        return self._segmenter.identity(self._weights_sha256)

    @property
    def source(self) -> str:
        """Return what is said of tissue that it found: its name and its weights."""
        return f"segmenter {self._segmenter.name}, weights {self._weights_sha256[:_SHOWN_DIGITS]}"

    def find(self, slide: Slide, scale: Scale, shape: tuple[int, int]) -> Mask:
        """Return the tissue of a slide as a mask of `shape` (h, w) that covers all of it.

        Raises:
            TileError: the file is damaged in a window.
        """
        one = self._segmenter
        sides = ((slide.width_px, scale.mpp_x), (slide.height_px, scale.mpp_y))
        width, height = (max(1, round(px * mpp / one.mpp)) for px, mpp in sides)
        step_x, step_y = slide.width_px / width, slide.height_px / height

        def read(left: int, top: int, right: int, bottom: int) -> RGB:
            w, h = right - left, bottom - top
            return slide.region(left * step_x, top * step_y, w * step_x, h * step_y, (w, h))

        share = np.zeros((-(-height // one.kept_px), -(-width // one.kept_px)), np.float32)
        windows: list[RGB] = []
        places: list[tuple[int, int]] = []
        for left, top in _corners(width, height, one.window_px - 2 * one.margin_px):
            window = self._window(read, left, top, width, height)
            if (window == window[0, 0]).all():  # not scanned
                continue
            windows.append(window)
            places.append((left, top))
            if len(windows) == _BATCH[self._device.type]:
                self._fill(share, windows, places)
                windows, places = [], []
        if windows:
            self._fill(share, windows, places)
        return _sampled(share >= 0.5, (height, width), one.kept_px, shape)

    def _window(
        self,
        read: Callable[[int, int, int, int], RGB],
        left: int,
        top: int,
        width: int,
        height: int,
    ) -> RGB:
        """Read the window around the middle that begins at (left, top); white beyond the slide."""
        side, margin = self._segmenter.window_px, self._segmenter.margin_px
        x, y = left - margin, top - margin
        begin = max(0, x), max(0, y)
        end = min(width, x + side), min(height, y + side)
        window = np.full((side, side, 3), _WHITE, np.uint8)
        window[begin[1] - y : end[1] - y, begin[0] - x : end[0] - x] = read(*begin, *end)
        return window

    def _fill(
        self, share: NDArray[np.float32], windows: list[RGB], places: list[tuple[int, int]]
    ) -> None:
        """Put the share of tissue in the middles of windows into its place."""
        one = self._segmenter
        inner = slice(one.margin_px, one.window_px - one.margin_px)
        for mask, (left, top) in zip(self.classify(windows), places, strict=True):
            kept = one.kept_px
            middle = mask[inner, inner].astype(np.float32)
            blocks = middle.reshape(len(middle) // kept, kept, -1, kept).mean(axis=(1, 3))
            row, column = top // kept, left // kept
            place = share[row : row + len(blocks), column : column + blocks.shape[1]]
            place[...] = blocks[: place.shape[0], : place.shape[1]]

    def classify(self, windows: list[RGB]) -> NDArray[np.bool_]:
        """Return which px of windows (b, window_px, window_px, 3) are tissue, bool (b, h, w)."""
        one = self._segmenter
        if one.jpeg_quality is not None:
            windows = [_compressed(window, one.jpeg_quality) for window in windows]
        try:
            with self._alone, torch.inference_mode():
                batch: Tensor = torch.from_numpy(np.stack(windows)).to(self._device)
                batch = batch.permute(0, 3, 1, 2).float() / 255
                logits = one.logits(self._network, (batch - self._mean) / self._std)
                finite = bool(torch.isfinite(logits).all())
                found: NDArray[np.bool_] = (logits.argmax(dim=1) == one.tissue_class).cpu().numpy()
        except RuntimeError as error:  # of the device, so that no slide is blamed
            raise UserError(
                f"{one.place}: cannot be run on {self._device} ({first_line(error)}). If another "
                "program uses it, wait for its end; on a machine without a usable GPU, set "
                "CUDA_VISIBLE_DEVICES to nothing."
            ) from None
        if not finite:  # of which the most probable class is the first, whatever the picture shows
            raise UserError(
                f"{one.place}: finds values that are not finite on {self._device}. Its weights are "
                f"damaged, or of a training that failed (`{one.path_key}` {one.section}): fetch "
                "them again, or take others."
            )
        return found


def _corners(width: int, height: int, step: int) -> Iterator[tuple[int, int]]:
    for top in range(0, height, step):
        for left in range(0, width, step):
            yield left, top


def _compressed(window: RGB, quality: int) -> RGB:
    """Return a window after JPEG; like the published code, with red and blue taken for each other.

    Windows begin at multiples of JPEG's blocks, so their middles are as if all were compressed.
    """
    _, jpeg = cv2.imencode(".jpg", window, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), np.uint8)


def _sampled(mask: Mask, size_px: tuple[int, int], kept_px: int, shape: tuple[int, int]) -> Mask:
    """Return a mask at the middle of each px of `shape` (h, w).

    One px of `mask` stands for `kept_px` of an image of `size_px` (h, w), also the last, which may
    reach beyond it.
    """
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * (px / n) / kept_px).astype(int), limit - 1)
        for n, px, limit in zip(shape, size_px, mask.shape, strict=True)
    )
    return np.asarray(mask[np.ix_(rows, columns)])
