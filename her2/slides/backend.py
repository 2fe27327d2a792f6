"""What a slide reader is: a module of `her2.slides.backends` with the names of `Backend`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL import Image

    from her2.core.types import RGB


class Backend(Protocol):
    """A module that reads slides of some formats."""

    NAME: str
    """The library that reads them, as errors call it."""
    ORDER: int
    """Backends are asked in ascending order: OpenSlide is 50, flat images are 90."""

    def files(self, path: Path) -> list[Path] | None:
        """Return all files of the slide at `path`, which is one of them.

        They are what is fingerprinted and what is copied to a scratch disk. They lie in the folder
        of `path` or below it, and their order depends on nothing but the slide.

        Returns:
            None where the slide is one file, or this backend does not know its format.

        Raises:
            SlideError: they cannot be known; the message names the file that should say so (or
                the files that are absent), and the fix.
            OSError: a file cannot be read.
        """

    def open_slide(self, path: Path) -> "OpenedSlide | None":
        """Return the opened slide; None where its content is of no format of this backend.

        Raises:
            FileNotFoundError: there is no such file.
            UnreadableSlide: it is of such a format, and damaged.
        """


class UnreadableSlide(Exception):
    """A slide that its backend knows and cannot open; the message is the library's own."""


class OpenedSlide(ABC):
    """An open slide: levels of px, the finest first. Reads are thread-safe."""

    reader: str
    """The library that decodes it, as the timings of a run call it."""
    vendor: str
    """The scanner's maker or the format, for the table of tiles."""
    level_sizes: Sequence[tuple[int, int]]
    """(width, height) px of each level."""
    downsamples: Sequence[float]
    """Level-0 px a px of each level; the first is 1."""
    mpp: tuple[float, float] | None = None
    """um a level-0 px, (x, y), from the file's metadata; None where it has none."""
    bounds_corner_px: tuple[int, int] = (0, 0)
    """Top left of the scanned area, level-0 px."""

    @abstractmethod
    def read_region(
        self, corner: tuple[int, int], level: int, size: tuple[int, int]
    ) -> "Image.Image":
        """Return px of a level: RGB, or RGBA that is transparent where nothing was scanned.

        Args:
            corner: top left, level-0 px; it may be outside the slide, which is transparent there.
            level: index into `level_sizes`.
            size: (width, height) px of the level.

        Raises:
            TileError: the file is damaged there.
            SlideError: the slide itself cannot be read any longer.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def tile_decoder(self) -> "TileDecoder | None":
        """Return a faster way to some of the px, if the slide has one.

        It is used only after a region has been read both ways and was equal.
        """
        return None


class TileDecoder(Protocol):
    """A faster way to the same px, for the rectangles it can read. Reads are thread-safe."""

    reader: str
    """What decodes it, as the timings of a run call it."""

    def read(self, level: int, left: int, top: int, size: tuple[int, int]) -> "RGB | None":
        """Return uint8 (height, width, 3), or None where `read_region` has to read it.

        Args:
            level: index into the slide's `level_sizes`.
            left, top: px of the level.
            size: (width, height) px.
        """

    def close(self) -> None:
        """Close the file."""
