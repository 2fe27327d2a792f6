"""Patches and features of others: HDF5 files of somebody else, which are not trusted.

A file of a few bytes may declare a billion rows, lead to files elsewhere or to itself, or unpack
to a full disk. What it declares is compared with what it holds before it is read.
"""

import gzip
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from her2.core.files import atomic_path

log = logging.getLogger(__name__)

FILE_BYTES = 256 << 30
"""Largest file that is read or unpacked; PatchCamelyon's largest has 7 GB."""
ROWS = 10_000_000
"""Most rows of a dataset; PatchCamelyon has 262,144."""
CHUNK_BYTES = 1 << 30
"""Largest chunk, which is unpacked whole to read one row of it."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_DENSEST = 1100
"""Bytes that one stored byte can stand for: deflate's limit is 1,032."""
_GZIPPED_DENSEST = 100
_FEW_BYTES = 32 << 20
_SMALL = 64 << 20

_HEAP = b"GCOL"
"""Begins a collection of texts of variable length, of the global heap."""
_HEAP_HEAD, _OBJECT_HEAD = 16, 16
_HEAP_BYTES = 64 << 20


@contextmanager
def open_checked(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file to look at names, shapes and attributes, without a wrong heap of texts.

    HDF5 walks through the texts of attributes by the sizes that stand before them. One that is
    damaged makes it walk for ever, in C, so that nothing can end it. So every heap is walked
    through here before HDF5 sees it. For arrays open the file anew: this way is slow for them.

    Raises:
        ValueError: sizes in a heap are wrong.
        OSError: the file is damaged otherwise; h5py raises other types as well.
    """
    with _CheckedFile(path) as source:
        try:
            with h5py.File(source, "r") as file:
                yield file
        finally:
            if source.problem is not None:
                raise ValueError(source.problem)


class _CheckedFile(io.FileIO):
    """A file whose bytes, as they are read, have no heap with wrong sizes in them."""

    problem: str | None = None

    def readinto(self, buffer: Any, /) -> int:
        """Read bytes, or zeros from the first wrong heap on."""
        start = self.tell()
        back = min(start, len(_HEAP) - 1)  # a heap may begin in the bytes read before
        self.seek(start - back)
        block = super().read(back + len(buffer))
        place = block.find(_HEAP)
        while place >= 0 and self.problem is None:
            self.problem = self._heap_problem(start - back + place)
            place = block.find(_HEAP, place + 1)
        block = block[back:] if self.problem is None else bytes(len(buffer))
        buffer[: len(block)] = block
        self.seek(start + len(block))
        return len(block)

    def _heap_problem(self, start: int) -> str | None:
        self.seek(start)
        head = super().read(_HEAP_HEAD)
        size = int.from_bytes(head[8:], "little")
        if len(head) < _HEAP_HEAD or head[4:8] != b"\x01\0\0\0":
            return None  # no heap, or one that HDF5 refuses
        if size > _HEAP_BYTES:
            return f"its texts take {size / 1e6:,.0f} MB"
        self.seek(start)
        heap = super().read(size)
        place = _HEAP_HEAD
        while place + _OBJECT_HEAD <= len(heap):
            index = int.from_bytes(heap[place : place + 2], "little")
            held = int.from_bytes(heap[place + 8 : place + 16], "little")
            step = _OBJECT_HEAD + -(-held // 8) * 8 if index else held
            if not _OBJECT_HEAD <= step <= size - place:
                return "the sizes of its texts are damaged"
            place += step
        return None


def dataset(
    file: h5py.File, name: str, *, rows: int = ROWS, densest: float = _DENSEST
) -> h5py.Dataset:
    """Return a dataset of a file, with at least one axis, whose values are in the file.

    `rows` is the most that it may have, `densest` the most bytes that a stored byte may become
    where they are many; a few, as of the corners of a grid, may shrink as far as they can.

    Raises:
        ValueError: there is none, or reading it would cost more than the file can hold.
    """
    link = file.get(name, getlink=True)
    if link is None:
        raise ValueError(f"it has no dataset {name}")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{name} is a link to another place, not a dataset")
    found = file[name]
    if not isinstance(found, h5py.Dataset) or not found.shape:
        raise ValueError(f"{name} is no array with rows")
    if found.external or found.is_virtual:
        raise ValueError(f"the values of {name} are in other files")
    if len(found) > rows:
        raise ValueError(f"{name} declares {len(found):,} rows, more than {rows:,}")
    held = found.id.get_storage_size()
    declared = found.size * found.id.get_type().get_size()  # bfloat16 is read as float32
    most = _DENSEST if declared <= _FEW_BYTES else densest
    if declared > held * (most if is_filtered(found) else 1):
        raise ValueError(f"{name} declares {declared:,} bytes and holds {held:,}")
    chunk = int(np.prod(found.chunks or (0,), dtype=object)) * found.dtype.itemsize
    if chunk > CHUNK_BYTES:
        raise ValueError(f"{name} has chunks of {chunk:,} bytes, more than {CHUNK_BYTES:,}")
    return found


def is_filtered(found: h5py.Dataset) -> bool:
    """Return whether a dataset's chunks are compressed, or otherwise not stored as they are."""
    return bool(found.id.get_create_plist().get_nfilters())


def whole_numbers(found: h5py.Dataset) -> NDArray[np.int64]:
    """Read a dataset of one whole number per row: (n,).

    Raises:
        ValueError: it has other values, or more than one in a row.
    """
    name = found.name.removeprefix("/")
    if found.dtype.kind not in "biuf":
        raise ValueError(f"{name} is {found.dtype}, not whole numbers")
    if found.size != len(found):
        raise ValueError(f"{name} has shape {found.shape}, not one number per row")
    values = np.asarray(found[:]).reshape(len(found))
    with np.errstate(invalid="ignore"):  # of NaN
        whole = values.astype(np.int64)
    if not (whole == values).all():
        raise ValueError(f"{name} has values that are not whole numbers")
    return whole


def unpack(path: Path, plain: Path) -> None:
    """Unpack a gzipped HDF5 file to `plain`, which then is complete or absent.

    Raises:
        ValueError: the content is no HDF5 file, or larger than such files become.
        OSError, EOFError, zlib.error: the file is damaged.
        UserError: the disk is full.
    """
    limit = min(FILE_BYTES, _SMALL + _GZIPPED_DENSEST * path.stat().st_size)
    log.info("unpacking %s to %s", path, plain)
    with (
        atomic_path(plain) as temporary,
        gzip.open(path) as packed,
        temporary.open("wb") as out,
    ):
        while block := packed.read(1 << 22):
            if out.tell() == 0 and not block.startswith(_SIGNATURE):
                raise ValueError("it holds no HDF5 file")
            if out.tell() + len(block) > limit:
                raise ValueError(f"it unpacks to more than {limit / 1e6:,.0f} MB")
            out.write(block)
