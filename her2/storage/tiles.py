"""Stage 1, tile: the tile table, one Parquet file a slide."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from her2.core.errors import UserError
from her2.core.files import digest

_METADATA_KEY = b"her2"
_IDENTITY_KEY = b"her2.key"


@dataclass(frozen=True, slots=True)
class TileMeta:
    """What is true of all tiles of a slide; lengths in level-0 px, scales in um/px.

    `pen`, `fold` are shares of the area of tissue and pen, and `border` of the slide's.
    `rejected` counts tiles with enough tissue by what they were rejected for, `not_drawn` those
    that `max_tiles` left out, `blur_reads` the tiles read to measure blur.
    """

    fingerprint: str
    width_px: int
    height_px: int
    vendor: str
    mpp_x: float
    mpp_y: float
    mpp_source: str
    target_mpp: float
    tile_px: int
    level0_width: float
    level0_height: float
    read_level: int
    tissue_mm2: float
    tissue_source: str = "detected"
    regions: int | None = None
    pen: float = 0.0
    fold: float = 0.0
    border: float = 0.0
    rejected: dict[str, int] = field(default_factory=dict)
    not_drawn: int = 0
    blur_reads: int = 0


@dataclass(frozen=True, slots=True)
class TileTable:
    """The tiles of a slide: `coords` int32 (n, 2), top left x and y in level-0 px.

    `quality` has more columns (n,), by name: `pen`, `fold`, `border`, `annotated` are shares of
    the tile, `blur` its perceived blur (NaN: not known) and `blur_read` 1 where that was measured
    on this very tile, 0 where a neighbour speaks for it.
    """

    coords: NDArray[np.int32]
    tissue: NDArray[np.float32]
    meta: TileMeta
    quality: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def coords_digest(self) -> str:
        """Digest of where the tiles are and how large."""
        return coords_digest(self.coords, (self.meta.level0_width, self.meta.level0_height))


def coords_digest(coords: NDArray[np.int32], level0_tile: Sequence[float]) -> str:
    """Digest of where tiles are (n, 2) and how large (width, height), in level-0 px."""
    content = hashlib.sha256(coords.astype("<i4").tobytes()).hexdigest()
    return digest([content, list(level0_tile)])


def write_table(path: Path, table: TileTable, key: str) -> None:
    """One row a tile (x, y, tissue and its quality); the slide's facts and the table's key are in
    the file's metadata."""
    columns = {
        "x": pa.array(table.coords[:, 0]),
        "y": pa.array(table.coords[:, 1]),
        "tissue": pa.array(table.tissue),
        **{name: pa.array(values) for name, values in table.quality.items()},
    }
    metadata = {
        _METADATA_KEY: json.dumps(asdict(table.meta), sort_keys=True),
        _IDENTITY_KEY: key,
    }
    described = pa.table(columns).replace_schema_metadata(metadata)
    pa.parquet.write_table(described, path, write_page_checksum=True)


def read_key(path: Path) -> str | None:
    """The key of the table in a file; None where it does not say."""
    try:
        found = (pa.parquet.read_schema(path).metadata or {}).get(_IDENTITY_KEY)
    except (OSError, ValueError, pa.ArrowException):
        return None
    return found.decode("ascii") if found else None


def read_table(path: Path) -> TileTable:
    """Read what `write_table` wrote.

    Raises:
        UserError: it is not a tile table.
    """
    try:
        table = pa.parquet.read_table(path, page_checksum_verification=True)
        columns = {name: table[name].to_numpy() for name in table.column_names}
        coords = np.stack([columns.pop("x"), columns.pop("y")], axis=1)
        meta = TileMeta(**json.loads(table.schema.metadata[_METADATA_KEY]))
        return TileTable(coords.astype(np.int32), columns.pop("tissue"), meta, columns)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: is not a tile table ({error}); remove it (her2 cache verify finds all such) "
            "and run snakemake again."
        ) from None
