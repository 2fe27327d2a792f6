"""Stage 1, tile: slides -> tile tables on a grid at an exact um/px, and a QC picture each."""

import hashlib
import json
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from her2.cache import Cache
from her2.cohort import Cohort, SlideRow
from her2.config import TilingSection
from her2.errors import UserError
from her2.files import digest, link
from her2.manifest import TileEntry, write_manifest
from her2.slide import RGB, Scale, Slide, SlideError, SlideUnfit, TileError, fingerprint
from her2.specs import TileSpec
from her2.tissue import Mask, tissue_mask, tissue_share

log = logging.getLogger(__name__)

_QC_SIDE_PX = 1024
_METADATA_KEY = b"her2"


@dataclass(frozen=True, slots=True)
class TileMeta:
    """What is true of all tiles of a slide; lengths in level-0 px, scales in um/px."""

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


@dataclass(frozen=True, slots=True)
class TileTable:
    """The tiles of a slide: `coords` int32 (n, 2), top left x and y in level-0 px."""

    coords: NDArray[np.int32]
    tissue: NDArray[np.float32]
    meta: TileMeta

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def coords_digest(self) -> str:
        """Digest of where the tiles are and how large."""
        sizes = [self.meta.level0_width, self.meta.level0_height]
        return digest([hashlib.sha256(self.coords.astype("<i4").tobytes()).hexdigest(), sizes])


def grid_axis(length_px: int, tile: float, overlap: float) -> NDArray[np.int32]:
    """Where tiles begin along one axis, level-0 px.

    Tile i begins at floor(i * tile * (1 - overlap)): rounded once, so that a fractional tile side
    does not drift across a slide; every tile lies inside `length_px`.
    """
    stride = tile * (1 - overlap)
    if length_px < tile:
        return np.empty(0, np.int32)
    count = int((length_px - tile) / stride + 1e-9) + 1
    return np.floor(np.arange(count) * stride + 1e-9).astype(np.int32)


def tile_slide(
    slide: Slide, scale: Scale, *, mpp: float, size: int, tiling: TilingSection, fingerprint: str
) -> tuple[TileTable, RGB]:
    """Find the tiles of a slide.

    Args:
        slide: an open slide.
        scale: its um/px.
        mpp: target um/px.
        size: target px a side.
        tiling: what becomes a tile.
        fingerprint: of the slide's content.

    Returns:
        The tiles in rows from the top, and the QC picture (h, w, 3).

    Raises:
        SlideUnfit: too coarse for the target.
        TileError: the thumbnail cannot be read.
    """
    enlargement = max(scale.mpp_x, scale.mpp_y) / mpp
    if enlargement > tiling.max_enlargement:
        raise SlideUnfit(
            f"its {max(scale.mpp_x, scale.mpp_y):.3g} um/px is {enlargement:.2f} times coarser "
            f"than the {mpp:g} um/px asked for (tiling.max_enlargement {tiling.max_enlargement:g})"
        )
    width, height = size * mpp / scale.mpp_x, size * mpp / scale.mpp_y
    # A mask with fewer than 8 px a tile would measure the share of tissue coarsely.
    thumbnail_mpp = min(tiling.thumbnail_mpp, mpp * size / 8)
    thumbnail = slide.thumbnail(thumbnail_mpp, scale)
    mask = tissue_mask(thumbnail, mpp=thumbnail_mpp, min_tissue_um=tiling.min_tissue_um)
    xs = grid_axis(slide.width_px, width, tiling.overlap)
    ys = grid_axis(slide.height_px, height, tiling.overlap)
    coords = np.stack([np.tile(xs, len(ys)), np.repeat(ys, len(xs))], axis=1)
    to_mask = np.array([mask.shape[1] / slide.width_px, mask.shape[0] / slide.height_px])
    opposite = coords + np.array([width, height])
    corners = np.concatenate([coords * to_mask, opposite * to_mask], axis=1)
    tissue = tissue_share(mask, corners)
    kept = tissue >= tiling.min_tissue
    meta = TileMeta(
        fingerprint=fingerprint,
        width_px=slide.width_px,
        height_px=slide.height_px,
        vendor=slide.vendor,
        mpp_x=scale.mpp_x,
        mpp_y=scale.mpp_y,
        mpp_source=scale.source,
        target_mpp=mpp,
        tile_px=size,
        level0_width=width,
        level0_height=height,
        read_level=slide.read_level(mpp, scale),
        tissue_mm2=round(float(mask.mean()) * _area_mm2(slide, scale), 4),
    )
    table = TileTable(coords[kept].astype(np.int32), tissue[kept], meta)
    return table, _qc_picture(thumbnail, mask, corners[kept])


def write_table(path: Path, table: TileTable) -> None:
    """One row a tile (x, y, tissue), the slide's facts in the file's metadata."""
    columns = {
        "x": pa.array(table.coords[:, 0]),
        "y": pa.array(table.coords[:, 1]),
        "tissue": pa.array(table.tissue),
    }
    metadata = {_METADATA_KEY: json.dumps(asdict(table.meta), sort_keys=True)}
    described = pa.table(columns).replace_schema_metadata(metadata)
    pa.parquet.write_table(described, path, write_page_checksum=True)


def read_table(path: Path) -> TileTable:
    """Read what `write_table` wrote.

    Raises:
        UserError: it is not a tile table.
    """
    try:
        table = pa.parquet.read_table(path, page_checksum_verification=True)
        coords = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1)
        meta = TileMeta(**json.loads(table.schema.metadata[_METADATA_KEY]))
        return TileTable(coords.astype(np.int32), table["tissue"].to_numpy(), meta)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: is not a tile table ({error}); remove it (her2 cache verify finds all such) "
            "and run snakemake again."
        ) from None


def tile_bucket(
    spec: TileSpec, cohort: Cohort, cache: Cache, output: Path, *, threads: int = 1
) -> dict[str, TileEntry]:
    """Tile the slides of a bucket; a slide that fails becomes an entry with its reason."""
    rows = cohort.bucket(spec.bucket)
    with ThreadPoolExecutor(threads) as pool:
        entries = list(pool.map(lambda row: _tile_row(spec, cohort, row, cache), rows))
    found = {row.slide_id: entry for row, entry in zip(rows, entries, strict=True)}
    _name_products(found, cache, output.parent)
    write_manifest(output, found)
    return found


def _tile_row(spec: TileSpec, cohort: Cohort, row: SlideRow, cache: Cache) -> TileEntry:
    try:
        print_ = fingerprint(cohort.file(row))
        key = digest(
            {
                "stage": "tile",
                "version": spec.version,
                "fingerprint": print_,
                "manifest_mpp": row.mpp,
                "target": [spec.mpp, spec.size],
                "tiling": spec.tiling.model_dump(exclude={"min_tiles"}),
            }
        )
        table = _cached(cache, key)
        if table is None:
            with Slide(cohort.file(row)) as slide:
                table, picture = tile_slide(
                    slide,
                    slide.scale(row.mpp),
                    mpp=spec.mpp,
                    size=spec.size,
                    tiling=spec.tiling,
                    fingerprint=print_,
                )
            _publish(cache, key, table, picture)
            log.info("%s: %d tiles cut", row.slide_id, len(table))
        else:
            log.info("%s: %d tiles from the cache", row.slide_id, len(table))
    except SlideUnfit as error:
        log.warning("%s: excluded: %s", row.slide_id, error)
        return TileEntry(status="excluded", reason=str(error))
    except SlideError as error:
        log.warning("%s: failed: %s", row.slide_id, error)
        return TileEntry(status="failed", reason=str(error))
    except TileError as error:
        log.warning("%s: failed: %s", row.slide_id, error)
        return TileEntry(status="failed", reason=f"damaged, copy it again ({error})")
    return _entry(key, table, spec.tiling.min_tiles)


def _entry(key: str, table: TileTable, min_tiles: int) -> TileEntry:
    meta, reason = table.meta, None
    if meta.tissue_mm2 == 0:
        reason = "no tissue found"
    elif len(table) < min_tiles:
        reason = f"{len(table)} tile(s) with tissue, fewer than tiling.min_tiles {min_tiles}"
    return TileEntry(
        status="excluded" if reason else "ok",
        reason=reason,
        key=key,
        tiles=len(table),
        fingerprint=meta.fingerprint,
        vendor=meta.vendor,
        width_px=meta.width_px,
        height_px=meta.height_px,
        mpp_x=meta.mpp_x,
        mpp_y=meta.mpp_y,
        mpp_source=meta.mpp_source,
        tissue_mm2=meta.tissue_mm2,
    )


def _cached(cache: Cache, key: str) -> TileTable | None:
    path = cache.find("tiles", key)
    return read_table(path) if path and cache.find("qc", key) else None


def _publish(cache: Cache, key: str, table: TileTable, picture: RGB) -> None:
    with cache.publish("qc", key) as path:
        # Not cv2.imwrite: it says nothing when the disk is full.
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        path.write_bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())
    with cache.publish("tiles", key) as path:
        write_table(path, table)


def _name_products(entries: dict[str, TileEntry], cache: Cache, folder: Path) -> None:
    for slide_id, entry in entries.items():
        table, picture = folder / f"{slide_id}.parquet", folder / f"{slide_id}.qc.jpg"
        if entry.key:
            link(cache.path("tiles", entry.key), table)
            link(cache.path("qc", entry.key), picture)
        else:  # a file that read well once must not stand for one that no longer does
            table.unlink(missing_ok=True)
            picture.unlink(missing_ok=True)


def _qc_picture(thumbnail: RGB, mask: Mask, boxes: Iterable[NDArray[np.float64]]) -> RGB:
    """Thumbnail, mask outline (green) and kept tiles (blue)."""
    height, width = mask.shape
    factor = min(4.0, _QC_SIDE_PX / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    picture = cv2.resize(thumbnail, size, interpolation=interpolation)
    for left, top, right, bottom in boxes:
        corner = (round(left * factor), round(top * factor))
        opposite = (round(right * factor) - 1, round(bottom * factor) - 1)
        cv2.rectangle(picture, corner, opposite, (40, 90, 200), 1)
    large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, (0, 150, 90), 2)
    return picture.astype(np.uint8)


def _area_mm2(slide: Slide, scale: Scale) -> float:
    return slide.width_px * scale.mpp_x * slide.height_px * scale.mpp_y / 1e6
