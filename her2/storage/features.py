"""Between the stages: the feature store, one `*.zarr.zip` per slide.

The format is Zarr v3 in an uncompressed zip. One file can be published atomically, each of its
members has a CRC, and an uncompressed chunk can be memory-mapped, so training gathers rows without
reading or copying a whole store. What reads a store raises a UserError for any other file.
"""

import hashlib
import resource
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from her2.core.errors import UserError
from her2.core.files import digest
from her2.storage.archive import (
    check_stored,
    json_member,
    layout,
    map_member,
    store_archive,
)

if TYPE_CHECKING:
    from anndata import AnnData

CHUNK_BYTES = 1 << 30
"""Up to this size, the features of a slide are one chunk."""

BLOCK_BYTES = 8 << 20
"""Rows are written and read in blocks of about this size."""

_SEAL = "seal"
"""The attribute with the digest of a store's content."""
_TYPES = ("float16", "float32", "float64")
"""Types of features; her2 writes the first two."""

_LONG_NAME = 64
_NO_ROWS: NDArray[Any] = np.empty((0, 0))


@dataclass(frozen=True, slots=True, repr=False)
class FeatureStore:
    """The features of a slide, memory-mapped: `chunks` (rows of the chunk, d) in row order.

    `attributes` contain the identity, the provenance and the throughput. Of features that another
    program computed they have `given`, which says so, and None in `slide` where a fact is unknown.

    >>> import her2
    >>> store = her2.open_store("results/features/tiny/demo-004-a.zarr.zip")
    >>> len(store), store.features.shape, store.coords.shape
    (18, (18, 512), (18, 2))
    >>> store.mpp
    1.0
    """

    path: Path
    chunks: tuple[NDArray[Any], ...]
    attributes: Mapping[str, Any]

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)

    def __repr__(self) -> str:
        """Return what it is: tiles, features, encoder and grid, as far as it says so."""
        encoder, target = self.attributes.get("encoder"), self.attributes.get("target")
        words = [
            f"{len(self):,} tiles x {self.dimension:,} features ({self.chunks[0].dtype.name})",
            str(encoder["architecture"]) if encoder else "",
            _grid(target or {}),
        ]
        name = self.path.name
        if len(name) > _LONG_NAME:  # in the cache, where it is the key
            name = f"{name[:12]}\u2026"
        return f"<FeatureStore {name}: {', '.join(filter(None, words))}>"

    @property
    def dimension(self) -> int:
        """Return the number of features of a tile, d."""
        return int(self.chunks[0].shape[1])

    @property
    def features(self) -> NDArray[Any]:
        """Return all rows (n, d), without a copy if the store is one chunk; they are read-only."""
        return self.chunks[0] if len(self.chunks) == 1 else np.concatenate(self.chunks)

    @property
    def coords(self) -> NDArray[np.int32]:
        """Return the top left corners of the tiles, int32 (n, 2): x and y in level-0 px.

        Raises:
            UserError: the file cannot be read any more, or another program computed the features
                and did not tell where the tiles are.
        """
        if not positions_known(self.attributes):
            raise UserError(f"{self.path}: its features do not tell where on the slide they are.")
        return read_coords(self.path)

    @property
    def mpp(self) -> float | None:
        """Return the um/px that tiles were encoded at; None where the store does not say."""
        found = (self.attributes.get("target") or {}).get("mpp")
        return None if found is None else float(found)

    @property
    def identity(self) -> Mapping[str, Any] | None:
        """Return everything that determines the features; the oldest stores have None.

        `attributes["key"]` is its digest.
        """
        return self.attributes.get("identity")

    def to_anndata(self) -> "AnnData":
        """Return the store in memory as AnnData, see `her2.storage.as_anndata`.

        Raises:
            UserError: anndata is not installed.

        >>> import her2
        >>> store = her2.open_store("results/features/tiny/demo-004-a.zarr.zip")
        >>> store.to_anndata().shape
        (18, 512)
        """
        from her2.storage.as_anndata import to_anndata  # imports pandas

        coords = self.coords if positions_known(self.attributes) else None
        return to_anndata(self.features, coords, self.attributes)

    def gather(self, rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Return some rows (len(rows), d) in the requested order; no others are read."""
        if len(self.chunks) == 1:
            return self.chunks[0][rows]
        size = len(self.chunks[0])
        return np.stack([self.chunks[row // size][row % size] for row in rows])


def _grid(target: Mapping[str, Any]) -> str:
    """Return the grid of a store in words, as far as it says so."""
    px, mpp = target.get("px"), target.get("mpp")
    parts = f"{px} px" if px is not None else "", f"{mpp:g} um/px" if mpp is not None else ""
    return " at ".join(filter(None, parts))


def write_rows(
    path: Path,
    blocks: Iterable[NDArray[Any]],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    coords: NDArray[np.int32],
    attributes: Callable[[], Mapping[str, Any]],
) -> None:
    """Write a store from blocks of rows; the caller publishes it atomically.

    Args:
        path: the new file.
        blocks: consecutive blocks of rows (k, d), finite, which are never all in memory.
        shape, dtype: (n, d) and float16 or float32, of all features; n >= 1.
        coords: (n, 2) int32, level-0 px.
        attributes: called last, so that it can include how long the rest took; JSON values. The
            `seal` is added, the digest of features, coords and the other attributes.

    Raises:
        ValueError: shapes do not agree, or a value is not finite.
    """
    if len(shape) != 2 or coords.shape != (shape[0], 2) or shape[0] == 0:
        raise ValueError(f"features {shape} do not fit coords {coords.shape}")
    size = min(shape[0], max(1, CHUNK_BYTES // (dtype.itemsize * shape[1])))
    content_digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            _write_chunks(archive, blocks, shape, dtype, size, content_digest)
            with _member(archive, "coords/c/0/0") as stream:
                stream.write(np.ascontiguousarray(coords, "<i4").tobytes())
            facts = dict(attributes())
            facts[_SEAL] = _sealed(content_digest.hexdigest(), coords, facts)
            for name, content in _metadata(shape, dtype, size, facts).items():
                with _member(archive, name) as stream:
                    stream.write(content)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _write_chunks(
    archive: zipfile.ZipFile,
    blocks: Iterable[NDArray[Any]],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    size: int,
    content_digest: "hashlib._Hash",
) -> None:
    """Write chunks of `size` rows, the last one padded, as zarr does; digest the rows."""
    rows = (_finite(block) for block in blocks)
    rest = np.empty((0, shape[1]), dtype)
    for number in range(-(-shape[0] // size)):
        with _member(archive, f"features/c/{number}/0") as stream:
            missing = size
            while missing:
                if not len(rest) and (rest := next(rows, _NO_ROWS)) is _NO_ROWS:
                    if number * size + (size - missing) != shape[0]:
                        raise ValueError(f"fewer rows than {shape[0]}")
                    stream.write(bytes(missing * shape[1] * dtype.itemsize))
                    break
                part, rest = rest[:missing], rest[missing:]
                content = np.ascontiguousarray(part, dtype.newbyteorder("<")).tobytes()
                stream.write(content)
                content_digest.update(content)
                missing -= len(part)
    if len(rest) or any(len(block) for block in rows):
        raise ValueError(f"more rows than {shape[0]}")


def _finite(block: NDArray[Any]) -> NDArray[Any]:
    if not np.isfinite(block).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(block))} values are not finite")
    return block


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open a member for writing, without a time stamp so that equal content gives equal bytes."""
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o644 << 16
    return archive.open(info, "w")


def _metadata(
    shape: tuple[int, ...], dtype: np.dtype[Any], size: int, attributes: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return the `zarr.json` files, written by zarr itself."""
    import zarr
    import zarr.storage

    files: dict[str, Any] = {}
    store = zarr.storage.MemoryStore(files)
    group = zarr.create_group(store, zarr_format=3, attributes=dict(attributes))
    for name, extent, kind, rows in (
        ("features", shape, dtype, size),
        ("coords", (shape[0], 2), np.dtype(np.int32), shape[0]),
    ):
        group.create_array(
            name,
            shape=extent,
            dtype=kind,
            chunks=(rows, extent[1]),
            compressors=None,
            filters=None,
        )
    return {name: content.to_bytes() for name, content in files.items()}


def _sealed(features: str, coords: NDArray[np.int32], attributes: Mapping[str, Any]) -> str:
    """Return the seal of a store from the digest of its features (hex), coords and attributes."""
    places = hashlib.sha256(np.ascontiguousarray(coords, "<i4").tobytes()).hexdigest()
    return digest([features, places, {k: v for k, v in attributes.items() if k != _SEAL}])


def is_sealed(store: FeatureStore) -> bool:
    """Return whether a store has a seal; those of older versions have none."""
    return _SEAL in store.attributes


def seal_holds(store: FeatureStore) -> bool:
    """Read all of a store, and return whether it is as it was made."""
    result = hashlib.sha256()
    for chunk in store.chunks:
        step = max(1, BLOCK_BYTES // max(1, chunk.itemsize * chunk.shape[1]))
        for start in range(0, len(chunk), step):
            result.update(np.ascontiguousarray(chunk[start : start + step]).data)
    found = _sealed(result.hexdigest(), read_coords(store.path), store.attributes)
    return bool(store.attributes.get(_SEAL) == found)


def open_store(path: Path | str, key: str | None = None) -> FeatureStore:
    """Open a store, that of a key if one is given: read its small members and map the features.

    Raises:
        UserError: it is no store, or contains the features of another key.

    >>> import her2
    >>> her2.open_store("results/features/tiny/demo-004-a.zarr.zip")
    <FeatureStore demo-004-a.zarr.zip: 18 tiles x 512 features (float16), timm/resnet10t, 64 px at \
1 um/px>
    """
    path = Path(path)
    with store_archive(path) as archive:
        attributes = _attributes(archive, key)
        shape, (size, width), kind = layout(archive, "features")
        rows, dimension = shape
        if kind not in _TYPES or width != dimension:
            raise ValueError(f"its features are {kind} {shape} in chunks of {size} x {width}")
        dtype = np.dtype(kind).newbyteorder("<")
        chunks = [
            map_member(path, archive.getinfo(f"features/c/{i}/0"), dtype, size, dimension)
            for i in range(-(-rows // size))
        ]
        # Zarr pads the last chunk to full size.
        chunks[-1] = chunks[-1][: rows - size * (len(chunks) - 1)]
    return FeatureStore(path, tuple(chunks), attributes)


def allow_open_files(count: int) -> None:
    """Allow `count` mapped stores, which stay open; many systems allow 1,024 files by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def read_attributes(path: Path, key: str | None = None) -> dict[str, Any]:
    """Read only the attributes of a store, that of a key if one is given.

    Raises:
        UserError: it is no store, or contains the features of another key.
    """
    with store_archive(path) as archive:
        return _attributes(archive, key)


def computed_here(attributes: Mapping[str, Any]) -> bool:
    """Return whether a store's features were computed by this project, from their slide."""
    return "given" not in attributes


def positions_known(attributes: Mapping[str, Any]) -> bool:
    """Return whether the coordinates of a store are those of its tiles, and not zeros."""
    return bool(attributes.get("given", {}).get("positions", True))


def places_known(attributes: Mapping[str, Any]) -> bool:
    """Return whether a store tells where on the slide its tiles are, and how large.

    Other programs' features need not; coordinates are then zeros, or of tiles of unknown size.
    """
    slide, px = attributes["slide"], attributes["target"]["px"]
    facts = slide["level0_tile"], slide["mpp"], slide["size_px"], px
    return positions_known(attributes) and None not in facts


def _attributes(archive: zipfile.ZipFile, key: str | None) -> dict[str, Any]:
    """Return the attributes, which must be those of a key and agree with themselves."""
    found: dict[str, Any] = json_member(archive, "zarr.json")["attributes"]
    if not isinstance(found, dict):
        raise ValueError("it has no attributes")
    if key is not None and found.get("key") != key:
        raise ValueError("it contains the features of another key")
    identity = found.get("identity")  # version 1 of the stage did not write it
    if identity is not None and digest(identity) != found.get("key"):
        raise ValueError("its identity is not that of its key")
    return found


def read_coords(path: Path) -> NDArray[np.int32]:
    """Read the top left corners of the tiles: int32 (n, 2), level-0 px."""
    with store_archive(path) as archive:
        shape, chunk, kind = layout(archive, "coords")
        member = archive.getinfo("coords/c/0/0")
        if chunk != shape or kind != "int32" or shape[1] != 2:
            raise ValueError(f"its coordinates are {kind} {shape} in chunks of {chunk}")
        if member.file_size != 4 * shape[0] * shape[1]:
            raise ValueError(f"{member.filename} has {member.file_size} bytes")
        return np.frombuffer(archive.read(member), "<i4").reshape(shape).astype(np.int32)


def store_problems(path: Path) -> list[str]:
    """Read all of a store and return its problems (CRC, shapes, non-finite values), or none."""
    try:
        with store_archive(path) as archive:
            for member in archive.infolist():
                check_stored(member)
            bad = archive.testzip()
        if bad is not None:
            return [f"has a wrong checksum in {bad}"]
        features, coords = open_store(path), read_coords(path)
    except UserError as error:
        return [f"cannot be read: {str(error).removeprefix(f'{path}: ')}"]
    problems = []
    if len(features) != len(coords):
        problems.append(f"has {len(features)} rows of features for {len(coords)} coordinates")
    step = max(1, BLOCK_BYTES // (features.dimension * features.chunks[0].itemsize))
    if not all(
        np.isfinite(chunk[start : start + step]).all()
        for chunk in features.chunks
        for start in range(0, len(chunk), step)
    ):
        problems.append("contains values that are not finite")
    return problems
