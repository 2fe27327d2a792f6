"""Between the stages: the feature store, one `*.zarr.zip` a slide.

Zarr v3 in an uncompressed zip: one file is published atomically, each of its members has a CRC,
and an uncompressed chunk can be mapped into memory where it lies, so training gathers rows
without reading or copying a store.
"""

import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.storage
from numpy.typing import NDArray

from her2.errors import UserError

CHUNK_BYTES = 1 << 30
"""Below this the features of a slide are one chunk."""

_DAMAGE = (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile)
"""What reading a damaged file raises: a wrong bit may also read as encryption, or as a format of
the future, which zipfile answers with a RuntimeError."""

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """The features of a slide, mapped into memory.

    `chunks` are float16 or float32 (rows of the chunk, d), in row order; `attributes` hold
    identity, provenance and the throughput receipt.
    """

    path: Path
    chunks: tuple[NDArray[Any], ...]
    attributes: Mapping[str, Any]

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)

    @property
    def dimension(self) -> int:
        """Features a tile."""
        return int(self.chunks[0].shape[1])

    def all(self) -> NDArray[Any]:
        """All rows (n, d); no copy when the store is one chunk."""
        return self.chunks[0] if len(self.chunks) == 1 else np.concatenate(self.chunks)

    def gather(self, rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Some rows (len(rows), d), in the order asked for; only they are read."""
        if len(self.chunks) == 1:
            return self.chunks[0][rows]
        size = len(self.chunks[0])
        return np.stack([self.chunks[row // size][row % size] for row in rows])


def write_store(
    path: Path,
    features: NDArray[Any],
    coords: NDArray[np.int32],
    attributes: Mapping[str, Any],
) -> None:
    """Write a store; publishing it atomically is the caller's part.

    Args:
        path: of the new file.
        features: (n, d) float16 or float32, finite, n >= 1.
        coords: (n, 2) int32, level-0 px.
        attributes: JSON values.

    Raises:
        ValueError: shapes do not agree, or a value is not finite.
    """
    if features.ndim != 2 or coords.shape != (len(features), 2) or len(features) == 0:
        raise ValueError(f"features {features.shape} do not go with coords {coords.shape}")
    if not np.isfinite(features).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(features))} values are not finite")
    row_bytes = features.itemsize * features.shape[1]
    rows = min(len(features), max(1, CHUNK_BYTES // row_bytes))
    with zarr.storage.ZipStore(path, mode="w", compression=zipfile.ZIP_STORED) as store:
        group = zarr.create_group(store, zarr_format=3, attributes=dict(attributes))
        for name, values, size in (("features", features, rows), ("coords", coords, len(coords))):
            group.create_array(
                name,
                data=values,
                chunks=(size, values.shape[1]),
                compressors=None,
                filters=None,
                config={"write_empty_chunks": True},  # or there is nothing to map
            )


def open_store(path: Path) -> FeatureStore:
    """Open a store for training: reads its small members, maps the features.

    Raises:
        UserError: it is not a feature store.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            attributes = json.loads(archive.read("zarr.json"))["attributes"]
            array = json.loads(archive.read("features/zarr.json"))
            rows, dimension = array["shape"]
            size = array["chunk_grid"]["configuration"]["chunk_shape"][0]
            dtype = np.dtype(array["data_type"]).newbyteorder("<")
            chunks = [
                _map(path, archive.getinfo(f"features/c/{i}/0"), dtype, size, dimension)
                for i in range(-(-rows // size))
            ]
        # Zarr pads the last chunk to full size.
        chunks[-1] = chunks[-1][: rows - size * (len(chunks) - 1)]
    except _DAMAGE as error:
        raise _broken(path, error) from None
    return FeatureStore(path, tuple(chunks), attributes)


def read_attributes(path: Path) -> dict[str, Any]:
    """The attributes alone.

    Raises:
        UserError: it is not a feature store.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found: dict[str, Any] = json.loads(archive.read("zarr.json"))["attributes"]
            return found
    except _DAMAGE as error:
        raise _broken(path, error) from None


def read_coords(path: Path) -> NDArray[np.int32]:
    """Where the rows lie: int32 (n, 2), level-0 px, top left."""
    with zarr.storage.ZipStore(path, mode="r") as store:
        return np.asarray(zarr.open_group(store, mode="r")["coords"][:])  # type: ignore[index]


def store_problems(path: Path) -> list[str]:
    """What is wrong with a store, reading all of it (CRC, shapes, finite); empty when sound."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            return [f"checksum of {bad} is wrong"]
        features, coords = open_store(path), read_coords(path)
    except (UserError, *_DAMAGE) as error:
        return [f"cannot be read: {error}"]
    problems = []
    if len(features) != len(coords):
        problems.append(f"{len(features)} features for {len(coords)} coordinates")
    if not all(np.isfinite(chunk).all() for chunk in features.chunks):
        problems.append("holds values that are not finite")
    return problems


def _map(
    path: Path, member: zipfile.ZipInfo, dtype: np.dtype[Any], rows: int, dimension: int
) -> NDArray[Any]:
    """Map an uncompressed member: its bytes begin behind its local header."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    if member.file_size != rows * dimension * dtype.itemsize:
        raise ValueError(f"{member.filename} has {member.file_size} bytes")
    with path.open("rb") as stream:
        stream.seek(member.header_offset)
        header = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
    if header[0] != b"PK\x03\x04":
        raise ValueError(f"{member.filename} has no local header")
    offset = member.header_offset + _LOCAL_HEADER.size + header[-2] + header[-1]
    return np.memmap(path, dtype, mode="r", offset=offset, shape=(rows, dimension))


def _broken(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: is not a feature store ({error}); remove it (her2 cache verify finds all such) "
        "and run snakemake again."
    )
