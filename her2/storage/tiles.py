"""Stage 1, tile: the tile table, one Parquet file per slide."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from her2.core.errors import UserError, first_line
from her2.core.files import canonical_json, digest
from her2.core.reading import MAKE_AGAIN, path_problem
from her2.core.sharing import check_readable
from her2.core.tables import arrow_table, table_columns
from her2.storage.facts import SlideFacts, TileGrid, of_table_metadata, table_metadata
from her2.storage.features import FeatureStore, read_coords

_METADATA_KEY, _KEY, _IDENTITY, _SEAL = b"her2", b"her2.key", b"her2.identity", b"her2.seal"


@dataclass(frozen=True, slots=True)
class TileTable:
    """The tiles of a slide: `coords` int32 (n, 2), top left x and y in level-0 px.

    `tissue` (n,) is the share of a tile that is tissue. `quality` has further columns (n,) by name.
    For each artefact filter (`her2.filters`) it has the share of the tile that the artefact covers,
    or the measured value (NaN if unknown) and `<name>_read`: 1 if the value was measured on the
    tile itself, 0 if it is a neighbour's. Artefacts that a network found are shares as well.
    `annotated` is the share in annotated regions. `reads`
    counts the tiles that each filter read, including rejected ones. The table's key is the digest
    of its `identity`, which older tables do not have.
    """

    coords: NDArray[np.int32]
    tissue: NDArray[np.float32]
    facts: SlideFacts
    grid: TileGrid
    quality: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    reads: Mapping[str, int] = field(default_factory=dict)
    identity: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def coords_digest(self) -> str:
        """Return the digest of the tiles' positions and size."""
        return coords_digest(self.coords, (self.grid.level0_width, self.grid.level0_height))


def coords_digest(coords: NDArray[np.int32], level0_tile: Sequence[float] | None) -> str:
    """Return the digest of tiles' positions (n, 2) and size (width, height), in level-0 px.

    The size is None where it is not known.
    """
    content = hashlib.sha256(coords.astype("<i4").tobytes()).hexdigest()
    return digest([content, list(level0_tile or ())])


def rows_digest(store: FeatureStore) -> str:
    """Return the digest of the tiles that a store has, without those that could not be read.

    Raises:
        KeyError: the store does not say how large its tiles are.
    """
    return coords_digest(read_coords(store.path), store.attributes["slide"]["level0_tile"])


def write_table(path: Path, table: TileTable, key: str) -> None:
    """Write one row per tile (x, y, tissue, quality).

    The slide's facts, the table's key and identity, and the seal (a digest of all of this and the
    columns) go into the file's metadata.
    """
    columns: dict[str, NDArray[Any]] = {
        "x": table.coords[:, 0],
        "y": table.coords[:, 1],
        "tissue": table.tissue,
        **table.quality,
    }
    facts = table_metadata(table.facts, table.grid, table.reads)
    metadata = {_METADATA_KEY: json.dumps(facts, sort_keys=True).encode(), _KEY: key.encode()}
    if table.identity is not None:
        metadata[_IDENTITY] = canonical_json(table.identity).encode()
    metadata[_SEAL] = _seal(columns, metadata)
    described = arrow_table(columns).replace_schema_metadata(metadata)
    pa.parquet.write_table(described, path, write_page_checksum=True)


def _seal(columns: Mapping[str, NDArray[Any]], metadata: Mapping[bytes, bytes]) -> bytes:
    """Return the digest of a table's columns and of our metadata, apart from the seal itself."""
    result = hashlib.sha256()
    for name, values in columns.items():
        result.update(f"{name}|{values.dtype}|{len(values)}|".encode())
        result.update(np.ascontiguousarray(values).tobytes())
    for part in (_METADATA_KEY, _KEY, _IDENTITY):
        result.update(part + b"|" + metadata.get(part, b"") + b"|")
    return result.hexdigest().encode()


def read_key(path: Path) -> str | None:
    """Return the key stored in a tile table, or None if it has none."""
    try:
        found = (pa.parquet.read_schema(path).metadata or {}).get(_KEY)
        return found.decode("ascii") if found else None
    except (OSError, ValueError, pa.ArrowException):
        return None


def read_table(path: Path, key: str | None = None) -> TileTable:
    """Read a tile table, that of a key if one is given.

    Raises:
        UserError: the file is not a tile table, was edited, is that of another key, or may not be
            read.
    """
    check_readable(path)
    if problem := path_problem(path):
        raise UserError(f"{path}: is not a tile table: it {problem}. {MAKE_AGAIN}")
    with _damage(path):
        table = pa.parquet.read_table(path, page_checksum_verification=True)
        metadata = table.schema.metadata
        columns = table_columns(table)
        sealed = _SEAL in metadata or _IDENTITY in metadata  # older tables have neither
        if sealed and metadata.get(_SEAL) != _seal(columns, metadata):
            raise ValueError("it was edited after it was made")
        if key is not None and metadata.get(_KEY) != key.encode():
            raise ValueError("it contains the tiles of another key")
        coords = np.stack([columns.pop("x"), columns.pop("y")], axis=1)
        facts, grid, reads = of_table_metadata(json.loads(metadata[_METADATA_KEY]))
        tissue = columns.pop("tissue")
        identity = json.loads(metadata[_IDENTITY]) if _IDENTITY in metadata else None
        return TileTable(coords.astype(np.int32), tissue, facts, grid, columns, reads, identity)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn any damage that is found within the block into a UserError."""
    try:
        yield
    except Exception as error:  # pyarrow and numpy raise any type on what they did not write
        raise UserError(
            f"{path}: is not a tile table ({first_line(error)}). {MAKE_AGAIN}"
        ) from None
