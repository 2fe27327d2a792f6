"""Stage 1, embed: pixels of JPEG TIFF and SVS without OpenSlide's detour through RGBA.

OpenSlide draws through a 32-bit canvas and Pillow. Decoding the file's own JPEG tiles into RGB
takes a quarter of the time (benchmarks/embed.py) and gives the same bytes, because both use
libjpeg-turbo with its exact transform. tifffile decodes a tile. This module finds the tiles that a
rectangle needs, checks that they are complete, and keeps those that the next rectangle needs too.
Everything else (another codec, a level whose downsample is not a whole number, a damaged or absent
tile) is left to OpenSlide.
"""

import logging
import os
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from her2.core.types import RGB

log = logging.getLogger(__name__)

KEPT_BYTES = 32 << 20
"""Decoded tiles kept per slide: several columns of a band, see `her2.embedding.reading`."""

_PHOTOMETRIC = {tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR}
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_RESTARTS = b"\xff\xdd"
"""Marker of the segment that sets the interval of restart markers."""
_MARKER, _MARKER_OR_RESTART = (
    re.compile(rb"\xff[^\x00\xd0-\xd7\xff]"),
    re.compile(rb"\xff[^\x00\xff]"),
)
_HOLE = bytes(16)
_MOST_PAGES = 500
_LARGEST_TILE_BYTES = 1 << 26
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
"""Markers of the segment with the image's size, of the kinds that libjpeg decodes."""


@dataclass(frozen=True, slots=True)
class _Level:
    """A page of the file, and the decoder of its tiles: (bytes, index) -> (1, h, w, 3), ..."""

    page: tifffile.TiffPage
    decode: Callable[[bytes, int], tuple[NDArray[Any] | None, object, object]]

    @property
    def columns(self) -> int:
        return -(-self.page.imagewidth // self.page.tilewidth)


class JpegTiles:
    """The levels of a TIFF that are grids of JPEG tiles. Reads are thread-safe.

    `level_sizes` (width, height) and `downsamples` are those of OpenSlide's levels.
    """

    reader = "jpeg"

    def __init__(
        self,
        path: Path,
        level_sizes: Sequence[tuple[int, int]],
        downsamples: Sequence[float],
    ) -> None:
        self._levels = _levels(path, level_sizes, downsamples)
        self._file = os.open(path, os.O_RDONLY)
        pages = [level.page for level in self._levels.values()]
        largest = max((3 * page.tilewidth * page.tilelength for page in pages), default=1)
        self._tile = lru_cache(max(1, KEPT_BYTES // largest))(self._decoded)

    def __len__(self) -> int:
        return len(self._levels)

    def close(self) -> None:
        os.close(self._file)
        self._tile.cache_clear()

    def read(self, level: int, left: int, top: int, size: tuple[int, int]) -> RGB | None:
        """Return a rectangle of a level; None if OpenSlide has to read it."""
        found = self._levels.get(level)
        right, bottom = left + size[0], top + size[1]
        if found is None or left < 0 or top < 0:
            return None
        page = found.page
        if right > page.imagewidth or bottom > page.imagelength:
            return None
        result = np.empty((size[1], size[0], 3), np.uint8)
        across, down = page.tilewidth, page.tilelength
        for row in range(top // down, -(-bottom // down)):
            for column in range(left // across, -(-right // across)):
                tile = self._tile(level, row * found.columns + column)
                if tile is None:
                    return None
                x, y = column * across, row * down
                x0, x1 = max(left, x), min(right, x + across)
                y0, y1 = max(top, y), min(bottom, y + down)
                result[y0 - top : y1 - top, x0 - left : x1 - left] = tile[
                    y0 - y : y1 - y, x0 - x : x1 - x
                ]
        return result

    def _decoded(self, level: int, index: int) -> RGB | None:
        page, decode = self._levels[level].page, self._levels[level].decode
        try:
            count = page.databytecounts[index]
            if not 0 < count <= _LARGEST_TILE_BYTES:
                return None
            content = os.pread(self._file, count, page.dataoffsets[index])
            if len(content) < count or not _looks_whole(content):
                return None
            if _coded_size(content) != (page.tilewidth, page.tilelength):
                return None  # else a tile could ask for gigabytes
            decoded, _, _ = decode(content, index)
        except MemoryError:
            raise
        except Exception as error:  # whatever a damaged tag or tile leads to
            log.debug("tile %d of level %d: %r", index, level, error)
            return None
        if decoded is None or decoded.shape != (1, page.tilelength, page.tilewidth, 3):
            return None
        return decoded[0]


def open_jpeg_tiles(
    path: Path,
    level_sizes: Sequence[tuple[int, int]],
    downsamples: Sequence[float],
) -> JpegTiles | None:
    """Open the JPEG tiles of a TIFF whose levels are pages; None if it has none."""
    try:
        found = JpegTiles(path, level_sizes, downsamples)
    except MemoryError:
        raise
    except Exception as error:  # tifffile raises all kinds of errors on damaged tags
        log.info("%s: its tiles are not decoded directly (%r)", path.name, error)
        return None
    if not len(found):
        found.close()
        return None
    return found


def _looks_whole(content: bytes) -> bool:
    """Return True if the coded image ends at its first marker and has no run of zeros (a hole).

    OpenSlide treats libjpeg's warnings as errors while imagecodecs ignores them, so a stream that
    may be damaged is left to OpenSlide. Source: ITU-T T.81, B.1.1.2 and B.1.1.5: in coded data a
    byte FF is followed by 00, or by D0 to D7 if the header announces restarts. Undetected are wrong
    bits that read as legal codes, of which OpenSlide notices only some.
    """
    scan = content.find(_START_OF_SCAN)
    if scan < 0:
        return False
    legal = _MARKER if _RESTARTS in content[:scan] else _MARKER_OR_RESTART
    marker = legal.search(content, scan + 2)
    if marker is None or marker[0] != _END_OF_IMAGE or _HOLE in content:
        return False
    return not content[marker.end() :].strip(b"\0")


def _coded_size(content: bytes) -> tuple[int, int] | None:
    """Return (width, height) px of a coded image, from its frame header (ITU-T T.81, B.2.2)."""
    place = 2
    while content[place : place + 1] == b"\xff":
        marker = content[place + 1]
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", content, place + 5)
            return width, height
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return None


def _levels(
    path: Path, level_sizes: Sequence[tuple[int, int]], downsamples: Sequence[float]
) -> dict[int, _Level]:
    """Find the levels with whole-number downsamples, whose px OpenSlide does not interpolate."""
    found = {}
    with tifffile.TiffFile(path) as tiff:
        pages = {
            (page.imagewidth, page.imagelength): page
            for page in reversed(list(islice(tiff.pages, _MOST_PAGES)))  # the first of a size wins
            if isinstance(page, tifffile.TiffPage)
            and page.is_tiled
            and page.compression == tifffile.COMPRESSION.JPEG
            and page.photometric in _PHOTOMETRIC
            and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
            and (page.samplesperpixel, page.bitspersample) == (3, 8)
        }
        for number, size in enumerate(level_sizes):
            page = pages.get((size[0], size[1]))
            if page is None or downsamples[number] != int(downsamples[number]):
                continue
            # Read now, while the file is open.
            found[number] = _Level(page, partial(page.decode, jpegtables=page.jpegtables))
    return found
