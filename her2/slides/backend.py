"""The interface of slide readers: modules of `her2.slides.backends` that match `Backend`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL import Image

    from her2.core.types import RGB


class Backend(Protocol):
    """A module that reads slides of certain formats."""

    NAME: str
    """Name of the library that reads them, for errors."""
    ORDER: int
    """Backends are tried in ascending order: OpenSlide is 50, flat images are 90."""

    def files(self, path: Path) -> list[Path] | None:
        """Return all files of the slide at `path`, which is one of them.

        These files are fingerprinted and copied to a scratch disk. They lie in the folder of
        `path` or below it, and their order depends only on the slide.

        Returns:
            The files, or None if the slide is a single file or of an unknown format.

        Raises:
            SlideError: the files cannot be determined; the message names the incomplete index (or
                the absent files), and the fix.
            OSError: a file cannot be read.
        """

    def open_slide(self, path: Path) -> "OpenedSlide | None":
        """Return the opened slide, or None if this backend does not read its format.

        Raises:
            FileNotFoundError: there is no such file.
            UnreadableSlide: the format is known, but the file is damaged.
        """


class UnreadableSlide(Exception):
    """A slide whose format is known but which cannot be opened; the message is the library's."""


class OpenedSlide(ABC):
    """An open slide: a pyramid of levels, the finest first. Reads are thread-safe."""

    reader: str
    """Name of the decoding library, for the timings of a run."""
    vendor: str
    """The scanner's vendor or the format, for the tile table."""
    level_sizes: Sequence[tuple[int, int]]
    """(width, height) px of each level."""
    downsamples: Sequence[float]
    """Level-0 px per px of each level; the first is 1."""
    mpp: tuple[float, float] | None = None
    """um per level-0 px, (x, y), from the file's metadata; None if absent."""
    bounds_corner_px: tuple[int, int] = (0, 0)
    """Top left corner of the scanned area, level-0 px."""

    @abstractmethod
    def read_region(
        self, corner: tuple[int, int], level: int, size: tuple[int, int]
    ) -> "Image.Image":
        """Return a region of a level: RGB, or RGBA, transparent where nothing was scanned.

        Args:
            corner: top left, level-0 px; may lie outside the slide, which reads as transparent.
            level: index into `level_sizes`.
            size: (width, height) px of the level.

        Raises:
            TileError: the file is damaged in this region.
            SlideError: the slide can no longer be read.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def tile_decoder(self) -> "TileDecoder | None":
        """Return a faster decoder for some of the regions, or None.

        It is used only after a region read both ways has turned out equal.
        """
        return None


class TileDecoder(Protocol):
    """A faster decoder of the same px, for the regions it can read. Reads are thread-safe."""

    reader: str
    """Name of the decoder, for the timings of a run."""

    def read(self, level: int, left: int, top: int, size: tuple[int, int]) -> "RGB | None":
        """Return uint8 (height, width, 3), or None if `read_region` has to read it.

        Args:
            level: index into the slide's `level_sizes`.
            left, top: px of the level.
            size: (width, height) px.
        """

    def close(self) -> None:
        """Close the file."""
