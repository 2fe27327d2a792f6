"""Stage 2, heatmaps: export of a slide's tile values for other programs.

Formats: Parquet for analysis, GeoJSON for QuPath, and a pyramidal OME-TIFF of the overlay for any
viewer.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tifffile
from numpy.typing import NDArray

from her2.core.files import canonical_json
from her2.core.tables import arrow_table
from her2.core.types import RGB
from her2.explanation.tiles import SlideTiles
from her2.slides.slide import Scale

METADATA_KEY = b"her2"
OME_SIDE_PX = 4096
"""Maximum of the longer side of the OME-TIFF at full resolution."""
WARNING = "Attention is not HER2 staining"

_TILE_PX = 256
_QUALITY = 85
_LEAST_LEVEL_PX = 256
_FEATURES_PER_PIECE = 2000


def values(tiles: SlideTiles) -> dict[str, NDArray[np.float32]]:
    """Return column -> (n,), the values of each tile in Parquet and in QuPath's measurements."""
    return {
        "attention": tiles.attention,
        "attention_rank": tiles.rank,
        "attention_times_tiles": tiles.times_tiles,
        **tiles.maps,
    }


def facts(tiles: SlideTiles, *, synthetic: bool) -> dict[str, object]:
    """Return the facts common to all tiles of the slide, for the metadata of the files."""
    return {
        "slide_id": tiles.of.slide_id,
        "label": tiles.of.label,
        "predicted": tiles.predicted,
        "class_names": tiles.class_names,
        "fingerprint": tiles.slide.fingerprint,
        "mpp": (tiles.scale.mpp_x, tiles.scale.mpp_y),
        "mpp_source": tiles.scale.source,
        "size_level0_px": tiles.slide.size_px,
        **tiles.model,
        "synthetic": synthetic,
        "warning": WARNING,
    }


def write_parquet(tiles: SlideTiles, path: Path, about: Mapping[str, object]) -> None:
    """Write one row per tile: its rectangle in level-0 px, and the values.

    `about`, which `facts` returns, goes into the metadata as JSON under `her2`.
    """
    width, height = tiles.slide.level0_tile
    columns = {
        "x_level0_px": tiles.coords[:, 0],
        "y_level0_px": tiles.coords[:, 1],
        "width_level0_px": np.full(len(tiles), width),
        "height_level0_px": np.full(len(tiles), height),
        **values(tiles),
    }
    metadata = {METADATA_KEY: canonical_json(about)}
    pa.parquet.write_table(arrow_table(columns).replace_schema_metadata(metadata), path)


def rectangles(tiles: SlideTiles) -> NDArray[np.int64]:
    """Return (n, 4) left, top, right, bottom in whole level-0 px."""
    return np.asarray(np.rint(tiles.corners()), np.int64)


def write_geojson(
    tiles: SlideTiles, path: Path, about: Mapping[str, object], *, origin_px: tuple[int, int]
) -> None:
    """Write a FeatureCollection of tile objects, as QuPath 0.4 and later import it.

    `about` is what `facts` returns. `origin_px` is the level-0 px that QuPath counts from: the
    corner of the scanned area where the format gives one (MIRAX, Leica SCN), else (0, 0).

    Source: GeoJSON, RFC 7946; QuPath's `objectType` "tile" and `measurements` (name -> number).
    """
    head = {
        "type": "FeatureCollection",
        "her2": {**about, "origin_level0_px": origin_px},
    }
    with path.open("w", encoding="utf-8") as stream:
        stream.write(canonical_json(head)[:-1] + ',"features":[\n')
        for piece in _features(tiles, origin_px):
            stream.write(piece)
        stream.write("\n]}\n")


def _features(tiles: SlideTiles, origin_px: tuple[int, int]) -> Iterator[str]:
    """Yield the text of the features in pieces of several, one feature per line."""
    boxes = rectangles(tiles) - np.array([*origin_px, *origin_px])
    columns = values(tiles)
    names = [json.dumps(name, ensure_ascii=False) for name in columns]
    # numpy writes a float32 with the fewest digits that reproduce it.
    texts = [np.char.mod("%s", column) for column in columns.values()]
    for start in range(0, len(tiles), _FEATURES_PER_PIECE):
        lines = []
        for i in range(start, min(start + _FEATURES_PER_PIECE, len(tiles))):
            x, y, right, bottom = boxes[i].tolist()
            ring = f"[{x},{y}],[{right},{y}],[{right},{bottom}],[{x},{bottom}],[{x},{y}]"
            numbers = ",".join(f"{n}:{text[i]}" for n, text in zip(names, texts, strict=True))
            lines.append(
                f'{{"type":"Feature","geometry":{{"type":"Polygon","coordinates":[[{ring}]]}},'
                f'"properties":{{"objectType":"tile","measurements":{{{numbers}}}}}}}'
            )
        yield (",\n" if start else "") + ",\n".join(lines)


def write_ome_tiff(picture: RGB, path: Path, *, scale: Scale, name: str, about: str) -> None:
    """Write a pyramid of JPEG tiles, each level half the size of the one before, in SubIFDs.

    `picture` (h, w, 3) is the full resolution, of `scale` um/px. Viewers show `name` and, as the
    description, `about`. Resolution tags are written too, for OpenSlide and for viewers that only
    know TIFF.

    Source: OME-TIFF 6, sub-resolutions.
    """
    levels = [picture]
    while max(levels[-1].shape[:2]) > 2 * _LEAST_LEVEL_PX:
        height, width = levels[-1].shape[:2]
        size = (max(1, width // 2), max(1, height // 2))
        levels.append(np.asarray(cv2.resize(levels[-1], size, interpolation=cv2.INTER_AREA)))
    um, content = "\u00b5m", hashlib.sha256(picture.tobytes()).hexdigest()
    metadata = {
        "axes": "YXS",
        "Name": name,
        "Description": about,
        "PhysicalSizeX": scale.mpp_x,
        "PhysicalSizeXUnit": um,
        "PhysicalSizeY": scale.mpp_y,
        "PhysicalSizeYUnit": um,
        # The default is random, and equal pictures would differ in their bytes.
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_URL, f"her2/{name}/{content}")),
    }
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for index, level in enumerate(levels):
            factor = picture.shape[1] / level.shape[1], picture.shape[0] / level.shape[0]
            per_cm = 1e4 / (scale.mpp_x * factor[0]), 1e4 / (scale.mpp_y * factor[1])
            tiff.write(
                level,
                subifds=len(levels) - 1 if index == 0 else 0,
                subfiletype=0 if index == 0 else 1,
                tile=(_TILE_PX, _TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": _QUALITY},
                resolution=per_cm,
                resolutionunit="CENTIMETER",
                metadata=metadata if index == 0 else None,
                software=False,
            )
