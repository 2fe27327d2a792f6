"""Stage 1, tile: running a segmenter over a slide, window by window.

The windows are part of what the network computes: the published ones average over their whole
window inside (pooling of DeepLabV3, squeeze and excitation of EfficientNet), so a larger window
would give another mask. They overlap, and only the middle of each counts.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from her2.core.errors import TileError, UserError, first_line
from her2.core.types import NOTHING, RGB, Labels, Mask
from her2.segmenters.base import Segmenter
from her2.slides.slide import Scale, Slide

log = logging.getLogger(__name__)

_BATCH = {"cuda": 8, "cpu": 1}
_WHITE = 255
_SHOWN_DIGITS = 12
_MOST_ENLARGED = 1.25
"""A slide coarser than a network's um/px by a larger factor is told."""


class SegmenterNetwork:
    """A segmenter with its weights on a device. Several threads may call `find`.

    Labels of px are `NOTHING`, or 1, 2, ... for what the segmenter `finds`, in that order.
    """

    def __init__(
        self, segmenter: Segmenter, network: nn.Module, weights_sha256: str, device: torch.device
    ) -> None:
        self._segmenter, self._device = segmenter, device
        self._network = network.eval().requires_grad_(False).to(device)
        self._weights_sha256 = weights_sha256
        self._labels = np.full(256, NOTHING, np.uint8)  # by class of the logits
        for label, channel in enumerate(segmenter.finds.values(), start=NOTHING + 1):
            self._labels[channel] = label
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
        """Return what is said of what it found: its name and its weights."""
        return f"segmenter {self._segmenter.name}, weights {self._weights_sha256[:_SHOWN_DIGITS]}"

    @property
    def finds(self) -> tuple[str, ...]:
        """Return what it finds, in the order of its labels."""
        return tuple(self._segmenter.finds)

    def find(
        self, slide: Slide, scale: Scale, shape: tuple[int, int], tiles: Mask | None = None
    ) -> Labels:
        """Return what is on a slide as labels of `shape` (h, w) that cover all of it.

        Of each `kept_px` squared px of the segmenter, the label is what at least half of them are.

        Args:
            slide: the slide.
            scale: its um/px.
            shape: height and width of the result.
            tiles: mask (h, w) that covers the slide, of tiles that embedding will read. Windows
                whose middles lie outside are not read. Neither these nor windows that cannot be
                read have labels. Default: all windows are read.

        Raises:
            TileError: the file is damaged in a window, and `tiles` is not given.
        """
        one = self._segmenter
        if max(scale.mpp_x, scale.mpp_y) > _MOST_ENLARGED * one.mpp:
            log.warning(
                "%s: %s reads slides at %g um/px, and this one has %.3g: it is enlarged, which "
                "the network has not seen in training",
                slide.path.name, one.place, one.mpp, max(scale.mpp_x, scale.mpp_y),
            )  # fmt: skip
        sides = ((slide.width_px, scale.mpp_x), (slide.height_px, scale.mpp_y))
        width, height = (max(1, round(px * mpp / one.mpp)) for px, mpp in sides)
        step_x, step_y = slide.width_px / width, slide.height_px / height

        def read(left: int, top: int, right: int, bottom: int) -> RGB:
            w, h = right - left, bottom - top
            return slide.region(left * step_x, top * step_y, w * step_x, h * step_y, (w, h))

        labels = np.full((-(-height // one.kept_px), -(-width // one.kept_px)), NOTHING, np.uint8)
        step = one.window_px - 2 * one.margin_px
        windows: list[RGB] = []
        places: list[tuple[int, int]] = []
        for left, top in _corners(width, height, step):
            if tiles is not None and not _part(tiles, left, top, step, (height, width)).any():
                continue
            try:
                window = self._window(read, left, top, width, height)
            except TileError:
                if tiles is None:
                    raise
                continue  # embedding counts the tiles that fail
            if (window == window[0, 0]).all():  # not scanned
                continue
            windows.append(window)
            places.append((left, top))
            if len(windows) == _BATCH[self._device.type]:
                self._fill(labels, windows, places)
                windows, places = [], []
        if windows:
            self._fill(labels, windows, places)
        return _sampled(labels, (height, width), one.kept_px, shape)

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

    def _fill(self, labels: Labels, windows: list[RGB], places: list[tuple[int, int]]) -> None:
        """Put the labels of the middles of windows into their places."""
        one = self._segmenter
        inner = slice(one.margin_px, one.window_px - one.margin_px)
        for found, (left, top) in zip(self.classify(windows), places, strict=True):
            blocks = self._majority(found[inner, inner])
            row, column = top // one.kept_px, left // one.kept_px
            place = labels[row : row + len(blocks), column : column + blocks.shape[1]]
            place[...] = blocks[: place.shape[0], : place.shape[1]]

    def _majority(self, found: Labels) -> Labels:
        """Return what at least half of each `kept_px` squared are; the first of two halves."""
        kept = self._segmenter.kept_px
        squares = found.reshape(len(found) // kept, kept, -1, kept)
        result = np.full((squares.shape[0], squares.shape[2]), NOTHING, np.uint8)
        for label in range(len(self.finds), NOTHING, -1):
            result[(squares == label).mean(axis=(1, 3), dtype=np.float32) >= 0.5] = label
        return result

    def classify(self, windows: list[RGB]) -> Labels:
        """Return the labels of the px of windows (b, window_px, window_px, 3), (b, h, w)."""
        one = self._segmenter
        if one.jpeg_quality is not None:
            windows = [_compressed(window, one.jpeg_quality) for window in windows]
        try:
            with self._alone, torch.inference_mode():
                batch: Tensor = torch.from_numpy(np.stack(windows)).to(self._device)
                batch = batch.permute(0, 3, 1, 2).float() / 255
                logits = one.logits(self._network, (batch - self._mean) / self._std)
                finite = bool(torch.isfinite(logits).all())
                classes = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
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
        return np.asarray(self._labels[classes])


def _corners(width: int, height: int, step: int) -> Iterator[tuple[int, int]]:
    for top in range(0, height, step):
        for left in range(0, width, step):
            yield left, top


def _part(mask: Mask, left: int, top: int, step: int, size_px: tuple[int, int]) -> Mask:
    """Return the part of a mask on which a square of an image of `size_px` (h, w) lies."""
    rows, columns = (
        slice(begin * n // px, -(-(begin + step) * n // px))
        for begin, n, px in zip((top, left), mask.shape, size_px, strict=True)
    )
    return mask[rows, columns]


def _compressed(window: RGB, quality: int) -> RGB:
    """Return a window after JPEG; like the published code, with red and blue taken for each other.

    Windows begin at multiples of JPEG's blocks, so their middles are as if all were compressed.
    """
    _, jpeg = cv2.imencode(".jpg", window, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), np.uint8)


def _sampled(
    labels: Labels, size_px: tuple[int, int], kept_px: int, shape: tuple[int, int]
) -> Labels:
    """Return labels at the middle of each px of `shape` (h, w).

    One px of `labels` stands for `kept_px` of an image of `size_px` (h, w), also the last, which
    may reach beyond it.
    """
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * (px / n) / kept_px).astype(int), limit - 1)
        for n, px, limit in zip(shape, size_px, labels.shape, strict=True)
    )
    return np.asarray(labels[np.ix_(rows, columns)])
