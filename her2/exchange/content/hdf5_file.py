"""Feature files of other programs: the arrays of an HDF5 file."""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from her2.core.errors import first_line
from her2.core.hdf5 import dataset, is_filtered, open_checked
from her2.exchange.content import ROWS, Array, Content, Stated, row_blocks

_NAMES = 64
"""Arrays, and attributes of each, that are looked at; the programs write fewer than twenty."""
_DENSEST = 100
"""Bytes that a stored byte may become. Features hardly shrink; zeros of a short file may."""
_TEXT, _NAME = 1000, 100
"""Longest text of an attribute that is kept, and longest name that is looked at."""
_ATTRIBUTE_BYTES = 1 << 16
_UNPACKED_BYTES = 256 << 20
"""Rows of compressed chunks that are unpacked at once, so that no chunk is unpacked twice."""


def read_hdf5(path: Path) -> Content:
    """Look at the arrays at the top of an HDF5 file; reads no values but small attributes.

    Raises:
        OSError: it cannot be opened; h5py raises other types as well on a damaged file.
    """
    arrays, refused = {}, {}
    with open_checked(path) as file:
        for name in filter(_is_name, islice(file, _NAMES)):
            try:
                found = _dataset(file, name)
                arrays[name] = Array(
                    name, found.shape, _native(found.dtype), _stated(found), _blocks(path, found)
                )
            except Exception as error:  # h5py raises any type of error on a damaged file
                refused[name] = f"{name} cannot be read ({first_line(error)})"
        return Content(path, "HDF5", arrays, refused, _stated(file))


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    found = dataset(file, name, rows=ROWS, densest=_DENSEST)
    if found.dtype.kind not in "biuf" or found.dtype.itemsize > 8:
        raise ValueError(f"it is {found.dtype}, not plain numbers")
    return found


def _is_name(name: str) -> bool:
    """Return whether a name can be shown, in an error as in a report."""
    return len(name) <= _NAME and name.isprintable()


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("=")


def _blocks(path: Path, declared: h5py.Dataset) -> Any:
    """Return a function that reads a dataset anew, which must still be as it was."""
    name = declared.name.removeprefix("/")
    shape, dtype = declared.shape, declared.dtype

    def blocks() -> Iterator[NDArray[Any]]:
        with h5py.File(path, "r", locking="best-effort") as file:
            found = _dataset(file, name)
            if (found.shape, found.dtype) != (shape, dtype):
                raise ValueError(f"{name} changed while it was read")
            leading = (0,) * max(0, len(shape) - 2)
            if any(length != 1 for length in shape[:-2]):
                raise ValueError(f"{name} has shape {shape}, not (rows, values)")
            rows, columns = (1, *shape) if len(shape) == 1 else shape[-2:]
            for start, stop in row_blocks(
                rows, columns, dtype.itemsize, at_least=_rows_of_chunks(found, columns)
            ):
                read = found[:] if len(shape) == 1 else found[(*leading, slice(start, stop))]
                yield np.asarray(read, _native(dtype)).reshape(stop - start, columns)

    return blocks


def _rows_of_chunks(found: h5py.Dataset, columns: int) -> int:
    """Return how many rows share chunks that have to be unpacked whole, within reason."""
    if found.ndim < 2 or not is_filtered(found):
        return 1
    most = _UNPACKED_BYTES // max(1, columns * found.dtype.itemsize)
    return int(max(1, min(found.chunks[-2], most)))


def _stated(owner: h5py.Dataset | h5py.File) -> dict[str, Stated]:
    found: dict[str, Stated] = {}
    for name in filter(_is_name, islice(owner.attrs, _NAMES)):
        try:
            value = _value(owner, name)
        except Exception:  # a type that h5py does not know, or a damaged attribute, says nothing
            continue
        if value is not None:
            found[name] = value
    return found


def _value(owner: h5py.Dataset | h5py.File, name: str) -> Stated | None:
    """Return the value of an attribute that is one text or one finite number, else None."""
    attribute = owner.attrs.get_id(name)
    text = h5py.check_string_dtype(attribute.dtype) is not None
    if math.prod(attribute.shape) != 1 or not (text or attribute.dtype.kind in "biuf"):
        return None
    if attribute.get_storage_size() > _ATTRIBUTE_BYTES:
        return None
    value = np.asarray(owner.attrs[name]).reshape(-1)[0]
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return value.encode(errors="replace").decode() if len(value) <= _TEXT else None
    plain: int | float | bool = value.item()
    return plain if math.isfinite(plain) else None
