"""Slide readers, one module each, and their interface: `Backend`, `OpenedSlide`, `TileDecoder`.

They are found by listing this package, and imported when the first slide is opened.
"""

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from her2.core.errors import SlideError
from her2.core.reading import check_regular

if TYPE_CHECKING:
    from PIL import Image

    from her2.core.types import RGB

_Read = TypeVar("_Read")

_SINGLE_FILE_SUFFIXES = frozenset(
    (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".svslide", ".png", ".jpg", ".jpeg")
)


class Backend(Protocol):
    """A module that reads slides of certain formats.

    One whose `open_slide` decodes the px also has `read_header(path) -> SlideHeader | None`, which
    reads the metadata alone, with the errors of `open_slide`.
    """

    NAME: str
    """Name of the library that reads them, for errors."""
    ORDER: int
    """Backends are tried in ascending order: OpenSlide is 50, flat images are 90."""

    def files(self, path: Path) -> list[Path] | None:
        """Return all files of the slide at `path`, which is one of them; None for a single file.

        These files are fingerprinted and copied to a scratch disk. They lie in the folder of
        `path` or below it, and their order depends only on the slide. None also means that the
        format is unknown.

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
            SlideError: the file is intact but cannot be read, such as one too large; with the fix.
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
    objective: float | None = None
    """Nominal magnification of the objective that the file names, which no um/px follow from."""
    bounds_corner_px: tuple[int, int] = (0, 0)
    """Top left corner of the scanned area, level-0 px."""

    @abstractmethod
    def read_region(
        self, corner: tuple[int, int], level: int, size: tuple[int, int]
    ) -> "Image.Image":
        """Return a region of a level: RGB, or RGBA, transparent where nothing was scanned.

        `corner` (top left) is in level-0 px and may lie outside the slide, which reads as
        transparent; `size` (width, height) is in px of the level.

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


@dataclass(frozen=True, slots=True)
class SlideHeader:
    """What a slide's file says of itself, before any px is decoded.

    Attributes:
        vendor: the scanner's vendor or the format.
        reader: name of the library that opens it.
        level_sizes: (width, height) px of each level, the finest first.
        mpp: um per level-0 px, (x, y), from the file's metadata; None if absent.
    """

    vendor: str
    reader: str
    level_sizes: tuple[tuple[int, int], ...]
    mpp: tuple[float, float] | None


class TileDecoder(Protocol):
    """A faster decoder of the same px, for the regions it can read. Reads are thread-safe."""

    reader: str
    """Name of the decoder, for the timings of a run."""

    def read(self, level: int, left: int, top: int, size: tuple[int, int]) -> "RGB | None":
        """Return uint8 (height, width, 3), or None if `read_region` has to read it.

        `left`, `top` and `size` (width, height) are px of the level.
        """

    def close(self) -> None:
        """Close the file."""


def backends() -> list[Backend]:
    """Return the readers in the order in which they are tried."""
    names = (item.name for item in pkgutil.iter_modules(__path__))
    found = [cast(Backend, import_module(f"{__name__}.{name}")) for name in names]
    return sorted(found, key=lambda backend: (backend.ORDER, backend.NAME))


def slide_files(path: Path) -> list[Path]:
    """Return all files of a slide, `path` among them, in an order that depends on the slide only.

    Raises:
        SlideError: files of the slide are absent or cannot be determined.
        OSError: a file cannot be read.
    """
    for backend in backends():
        found = backend.files(path)
        if found is not None:
            return found
    return [path]


def planned_files(path: Path) -> list[Path]:
    """Return the files of a slide for planning, which happens for every slide at every start.

    Files with the suffix of a single-file format are not read, since that takes minutes for
    thousands of slides on a network disk. Problems are left to the job that tiles the slide.
    """
    if path.suffix.lower() in _SINGLE_FILE_SUFFIXES:
        return [path]
    try:
        return slide_files(path)
    except (OSError, SlideError):
        return [path]


def open_slide(path: Path) -> OpenedSlide:
    """Open a slide with the first backend that reads its format.

    Raises:
        SlideError: there is no such backend, or the file is too damaged.
    """
    return _first(path, lambda backend: backend.open_slide(path))


def read_header(path: Path) -> SlideHeader:
    """Read what a slide's file says of itself; an image that has to be decoded whole is not.

    Raises:
        SlideError: no backend reads its format, or the file is too damaged, as far as can be told
            without decoding px.
    """

    def read(backend: Backend) -> SlideHeader | None:
        own = getattr(backend, "read_header", None)
        if own is not None:
            return cast("SlideHeader | None", own(path))
        opened = backend.open_slide(path)
        if opened is None:
            return None
        try:
            sizes = tuple((width, height) for width, height in opened.level_sizes)
            return SlideHeader(opened.vendor, backend.NAME, sizes, opened.mpp)
        finally:
            opened.close()

    return _first(path, read)


def _first(path: Path, read: Callable[[Backend], _Read | None]) -> _Read:
    """Return what the first backend that knows a slide's format reads of it."""
    asked = backends()
    detail = ""
    try:
        check_regular(path)
        for backend in asked:
            found = read(backend)
            if found is not None:
                return found
    except FileNotFoundError:
        raise SlideError("the file does not exist") from None
    except (UnreadableSlide, OSError) as error:
        detail = f" ({error})"
    *first, last = (backend.NAME for backend in asked)
    raise SlideError(
        f"not a slide that {', '.join(first)} or {last} can open, or truncated; compare it with "
        f"the original and copy it again{detail}"
    )
