"""Between the stages: the zip of a feature store, which somebody else may have made.

What its metadata declare is compared with what it holds before memory is spent on it.
"""

import json
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2.core.errors import UserError, first_line
from her2.core.reading import MAKE_AGAIN, path_problem
from her2.core.sharing import check_readable

METADATA_BYTES = 64 << 20
"""Largest `zarr.json` that is read."""

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


@contextmanager
def store_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a store; any damage found within the block is a UserError."""
    check_readable(path)
    if problem := path_problem(path):
        raise UserError(f"{path}: is not a feature store: it {problem}. {MAKE_AGAIN}")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except Exception as error:  # zipfile, json and numpy raise any type on what they did not write
        raise UserError(
            f"{path}: is not a feature store ({first_line(error)}). {MAKE_AGAIN}"
        ) from None


def json_member(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    """Read a member that is a JSON object."""
    member = archive.getinfo(name)
    if member.file_size > METADATA_BYTES:
        raise ValueError(f"{name} has {member.file_size} bytes")
    found = json.loads(archive.read(member))
    if not isinstance(found, dict):
        raise ValueError(f"{name} is no object")
    return found


def layout(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, int], tuple[int, int], str]:
    """Return shape, chunk shape and type of one of the arrays, which are not encoded."""
    array = json_member(archive, f"{name}/zarr.json")
    sizes = array["shape"], array["chunk_grid"]["configuration"]["chunk_shape"]
    if any(type(n) is not int for given in sizes for n in given):  # True is no size
        raise ValueError(f"{name} has no legal shape {sizes}")
    (rows, width), (chunk_rows, chunk_width) = sizes
    if rows < 1:
        raise ValueError("it has no tiles")
    if min(width, chunk_rows, chunk_width) < 1:
        raise ValueError(f"{name} has no legal shape {sizes}")
    codecs = [codec["name"] for codec in array["codecs"]]
    if codecs != ["bytes"] or array["codecs"][0]["configuration"]["endian"] != "little":
        raise ValueError(f"{name} is encoded ({array['codecs']})")
    return (rows, width), (chunk_rows, chunk_width), str(array["data_type"])


def check_stored(member: zipfile.ZipInfo) -> None:
    """Raise a ValueError if a member is compressed: it can be larger than the disk."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")


def map_member(
    path: Path, member: zipfile.ZipInfo, dtype: np.dtype[Any], rows: int, dimension: int
) -> NDArray[Any]:
    """Map an uncompressed member, whose bytes begin after its local header."""
    check_stored(member)
    if member.file_size != rows * dimension * dtype.itemsize:
        raise ValueError(f"{member.filename} has {member.file_size} bytes")
    with path.open("rb") as stream:
        stream.seek(member.header_offset)
        header = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
    if header[0] != b"PK\x03\x04":
        raise ValueError(f"{member.filename} has no local header")
    offset = member.header_offset + _LOCAL_HEADER.size + header[-2] + header[-1]
    return np.memmap(path, dtype, mode="r", offset=offset, shape=(rows, dimension))
