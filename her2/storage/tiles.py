"""Stage 1, tile: the tile table, one Parquet file per slide."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from her2.core.errors import UserError, first_line
from her2.core.files import digest
from her2.core.reading import AGAIN, file_problem
from her2.storage.facts import SlideFacts, TileGrid, of_table_metadata, table_metadata

_METADATA_KEY = b"her2"
_IDENTITY_KEY = b"her2.key"


@dataclass(frozen=True, slots=True)
class TileTable:
    """The tiles of a slide: `coords` int32 (n, 2), top left x and y in level-0 px.

    `tissue` (n,) is the share of a tile that is tissue. `quality` has further columns (n,) by name.
    For each artefact filter (`her2.filters`) it has the share of the tile that the artefact covers,
    or the measured value (NaN if unknown) and `<name>_read`: 1 if the value was measured on the
    tile itself, 0 if it is a neighbour's. `annotated` is the share in annotated regions. `reads`
    counts the tiles that each filter read, including rejected ones.
    """

    coords: NDArray[np.int32]
    tissue: NDArray[np.float32]
    facts: SlideFacts
    grid: TileGrid
    quality: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    reads: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def coords_digest(self) -> str:
        """Return the digest of the tiles' positions and size."""
        return coords_digest(self.coords, (self.grid.level0_width, self.grid.level0_height))


def coords_digest(coords: NDArray[np.int32], level0_tile: Sequence[float]) -> str:
    """Return the digest of tiles' positions (n, 2) and size (width, height), in level-0 px."""
    content = hashlib.sha256(coords.astype("<i4").tobytes()).hexdigest()
    return digest([content, list(level0_tile)])


def write_table(path: Path, table: TileTable, key: str) -> None:
    """Write one row per tile (x, y, tissue, quality).

    The slide's facts and the table's key go into the file's metadata.
    """
    columns = {
        "x": pa.array(table.coords[:, 0]),
        "y": pa.array(table.coords[:, 1]),
        "tissue": pa.array(table.tissue),
        **{name: pa.array(values) for name, values in table.quality.items()},
    }
    metadata = {
        _METADATA_KEY: json.dumps(
            table_metadata(table.facts, table.grid, table.reads), sort_keys=True
        ),
        _IDENTITY_KEY: key,
    }
    described = pa.table(columns).replace_schema_metadata(metadata)
    pa.parquet.write_table(described, path, write_page_checksum=True)


def read_key(path: Path) -> str | None:
    """Return the key stored in a tile table, or None if it has none."""
    try:
        found = (pa.parquet.read_schema(path).metadata or {}).get(_IDENTITY_KEY)
        return found.decode("ascii") if found else None
    except (OSError, ValueError, pa.ArrowException):
        return None


def read_table(path: Path) -> TileTable:
    """Read a tile table.

    Raises:
        UserError: the file is not a tile table.
    """
    if problem := file_problem(path):
        raise UserError(f"{path}: is not a tile table: it {problem}. {AGAIN}")
    try:
        table = pa.parquet.read_table(path, page_checksum_verification=True)
        columns = {name: table[name].to_numpy() for name in table.column_names}
        coords = np.stack([columns.pop("x"), columns.pop("y")], axis=1)
        facts, grid, reads = of_table_metadata(json.loads(table.schema.metadata[_METADATA_KEY]))
        tissue = columns.pop("tissue")
        return TileTable(coords.astype(np.int32), tissue, facts, grid, columns, reads)
    except Exception as error:  # pyarrow and numpy raise any type on what they did not write
        raise UserError(
            f"{path}: is not a tile table ({first_line(error)}). Delete it and run "
            "snakemake again. `her2 cache verify` finds all damaged files."
        ) from None
