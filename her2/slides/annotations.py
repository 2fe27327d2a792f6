"""Stage 1, tile: annotated regions, from QuPath (GeoJSON) or Aperio ImageScope (XML).

Coordinates are level-0 px. QuPath counts from the corner of the scanned area where a format gives
one (MIRAX, Leica SCN). Set `tiling.annotation_origin: bounds` for such files.
"""

import gc
import math
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

import cv2
import numpy as np
from numpy.typing import NDArray

from her2.core.errors import SlideError, SlideUnfit
from her2.core.files import parse_json
from her2.core.reading import check_regular
from her2.core.types import Mask

Ring = NDArray[np.float64]
"""(n, 2) x, y in level-0 px; closed, whether or not the last point repeats the first."""

_FINEST = 8
"""Polygons are filled on a raster this many times finer than the mask, because OpenCV fills every
px that an outline touches, which enlarges areas by half a px on every side."""
_LARGEST_FILL = 1 << 26
_SHIFT = 4
_FAR_PX = 1e6
_LARGEST_COORDINATE = 1e9
"""In level-0 px; slides have up to a million."""
_MOST_FILLED = 1 << 37
"""Px of all fine rasters together, which take about a minute; they grow with every region."""
_LARGEST_JSON, _LARGEST_XML = 512 << 20, 128 << 20
"""Bytes; reading takes five times as much memory, or ten."""
_DEEPEST_XML = 20
_OUTLINES = frozenset({"0", "1", "2"})
"""ImageScope's region types with an area: polygon, rectangle, ellipse (not arrow, ruler)."""
UNDRAWN = frozenset({"detection", "cell", "tile", "tma_core"})
"""Types of QuPath's objects that nobody drew, in lower case."""


@dataclass(frozen=True, slots=True)
class Region:
    """An area: its outline, then its holes. A `negative` region is subtracted from all others."""

    rings: tuple[Ring, ...]
    name: str
    negative: bool = False


class _Malformed(Exception):
    """A malformed file; the message says what is wrong, without the file's name."""


def read_regions(path: Path) -> tuple[Region, ...]:
    """Read the regions of an annotation file: ImageScope's `.xml`, anything else as GeoJSON.

    Points and lines, which have no area, are left out, and so are QuPath's cells and tiles.

    Raises:
        SlideError: the file is absent, too large or malformed; the message names it and says why.
    """
    try:
        check_regular(path)
        is_xml = path.suffix.lower() == ".xml"
        limit = _LARGEST_XML if is_xml else _LARGEST_JSON
        if (size := path.stat().st_size) > limit:
            raise _Malformed(
                f"has {size >> 20:,} MiB, more than {limit >> 20}; export the annotations only, "
                "without cells and detections"
            )
        content = path.read_bytes()
        with _no_garbage_collection():
            return tuple(_aperio_regions(content) if is_xml else _geojson_regions(content))
    except FileNotFoundError:
        raise SlideError(f"its annotation {path.name} does not exist") from None
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except _Malformed as error:
        problem = str(error)
    raise SlideError(f"its annotation {path.name} {problem}") from None


def chosen_regions(
    path: Path, classes: Collection[str], *, key: str = "tiling.annotation_classes"
) -> tuple[Region, ...]:
    """Read the regions of some classes (all if none is given), and every negative region.

    Raises:
        SlideUnfit: there is no such region; the message names the config `key` of the classes.
        SlideError: as `read_regions`.
    """
    regions = read_regions(path)
    positive = [region for region in regions if not region.negative]
    chosen = [region for region in positive if not classes or region.name in classes]
    if not positive:
        raise SlideUnfit(f"its annotation {path.name} has no region with an area")
    if not chosen:
        found = ", ".join(sorted({region.name or "(no class)" for region in positive}))
        raise SlideUnfit(
            f"its annotation {path.name} has no region of class {', '.join(sorted(classes))} "
            f"({key}); its classes are {found}"
        )
    return tuple(chosen) + tuple(region for region in regions if region.negative)


def region_mask(
    regions: Sequence[Region],
    shape: tuple[int, int],
    *,
    size_px: tuple[int, int],
    origin_px: tuple[float, float] = (0.0, 0.0),
) -> Mask:
    """Rasterise regions: True where at least half of a px is inside one and not in a negative one.

    `shape` (h, w) covers the whole slide, which has `size_px` (width, height) at level 0;
    `origin_px` is the level-0 position of the regions' (0, 0).

    Raises:
        SlideError: the regions overlap so much that to fill them would take very long.
    """
    scale = np.array([shape[1] / size_px[0], shape[0] / size_px[1]])
    inside, outside = np.zeros(shape, bool), np.zeros(shape, bool)
    filled = 0
    for region in regions:
        rings = [(ring + np.array(origin_px)) * scale for ring in region.rings]
        filled += _fill(outside if region.negative else inside, rings)
        if filled > _MOST_FILLED:
            raise SlideError(
                f"its annotation has {len(regions):,} regions, most of them on top of each other; "
                "merge them, or export fewer"
            )
    found: Mask = inside & ~outside
    return found


def _fill(mask: Mask, rings: Sequence[Ring]) -> int:
    """Set the px inside the first ring and outside the others (even-odd), in place.

    Returns the number of px of the finer raster.
    """
    outline = rings[0]
    left, top = np.floor(np.maximum(outline.min(axis=0), 0)).astype(int)
    right, bottom = np.ceil(np.minimum(outline.max(axis=0), mask.shape[::-1])).astype(int)
    if right <= left or bottom <= top:
        return 0
    size = (int(right - left), int(bottom - top))
    factor = int(np.clip((_LARGEST_FILL / (size[0] * size[1])) ** 0.5, 2, _FINEST))
    fine = np.zeros((size[1] * factor, size[0] * factor), np.uint8)
    # OpenCV counts from the centre of the first px, in units of 1/16 px.
    points = [
        np.clip((ring - (left, top)) * factor - 0.5, -_FAR_PX, _FAR_PX) * 2**_SHIFT
        for ring in rings
    ]
    cv2.fillPoly(fine, [np.round(p).astype(np.int32) for p in points], 255, shift=_SHIFT)
    mask[top:bottom, left:right] |= cv2.resize(fine, size, interpolation=cv2.INTER_AREA) >= 128
    return fine.size


def _geojson_regions(content: bytes) -> Iterator[Region]:
    try:
        value = parse_json(content)
    except ValueError as error:
        raise _Malformed(f"is not JSON ({error})") from None
    for number, feature in enumerate(_features(value), start=1):
        properties = feature.get("properties") or {}
        if not isinstance(properties, dict):
            raise _Malformed(f"feature {number}: its properties are not an object")
        if str(properties.get("objectType", "")).lower() in UNDRAWN:
            continue
        for rings in _polygons(feature.get("geometry"), number):
            yield Region(rings, classification(properties) or str(properties.get("name") or ""))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Do not look for garbage while millions of objects are made; it takes twice their time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _features(value: Any) -> list[dict[str, Any]]:
    """Return the features of a FeatureCollection, a bare list, one feature or one geometry."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "FeatureCollection":
        value = value.get("features")
    elif kind == "Feature":
        value = [value]
    elif kind is not None:
        value = [{"geometry": value}]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _Malformed("is not GeoJSON: no FeatureCollection, list of features or geometry")
    return value


def _polygons(geometry: Any, number: int) -> Iterator[tuple[Ring, ...]]:
    if not isinstance(geometry, dict) or "type" not in geometry:
        raise _Malformed(f"feature {number} has no geometry")
    kind, coordinates = geometry["type"], geometry.get("coordinates")
    match kind:
        case "Polygon":
            yield _rings(coordinates, number)
        case "MultiPolygon":
            if not isinstance(coordinates, list):
                raise _Malformed(f"feature {number}: its coordinates are not a list")
            for polygon in coordinates:
                yield _rings(polygon, number)
        case "GeometryCollection":
            parts = geometry.get("geometries")
            if not isinstance(parts, list):
                raise _Malformed(f"feature {number}: its geometries are not a list")
            for part in parts:
                if isinstance(part, dict) and part.get("type") == "GeometryCollection":
                    raise _Malformed(f"feature {number}: it nests a geometry collection in another")
                yield from _polygons(part, number)
        case "Point" | "MultiPoint" | "LineString" | "MultiLineString":
            return
        case _:
            raise _Malformed(f"feature {number}: {str(kind)[:40]!r} is not a GeoJSON geometry")


def _rings(coordinates: Any, number: int) -> tuple[Ring, ...]:
    if not isinstance(coordinates, list) or not coordinates:
        raise _Malformed(f"feature {number}: its polygon has no rings")
    return tuple(_ring(points, f"feature {number}") for points in coordinates)


def _ring(points: Any, where: str) -> Ring:
    try:
        # A third coordinate (z) is legal and ignored.
        flat = [float(value) for point in points for value in (point[0], point[1])]
        ring = np.array(flat, np.float64).reshape(-1, 2)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        raise _Malformed(f"{where}: a point is not two numbers") from None
    if len(ring) < 3:
        raise _Malformed(f"{where}: an outline of {len(ring)} point(s), fewer than 3")
    largest = float(np.abs(ring).max())
    if not math.isfinite(largest):
        raise _Malformed(f"{where}: a coordinate is not finite")
    if largest > _LARGEST_COORDINATE:
        raise _Malformed(f"{where}: a coordinate of {largest:g} px is on no slide")
    return ring


def classification(properties: Mapping[str, Any]) -> str:
    """Return the class of an object of QuPath, {name} or (since 0.5) {names}; "" without one."""
    found = properties.get("classification")
    if isinstance(found, dict):
        names = found.get("names")
        several = ": ".join(map(str, names)) if isinstance(names, list) else names
        found = found.get("name") or several
    return str(found or "")


def _aperio_regions(content: bytes) -> Iterator[Region]:
    root = _safe_xml(content)
    if root.tag != "Annotations":
        raise _Malformed(f"is not ImageScope XML: its root element is <{root.tag[:40]}>")
    number = 0
    for layer in root.iter("Annotation"):
        for region in layer.iter("Region"):
            number += 1
            kind = region.get("Type", "0")
            if kind not in _OUTLINES:
                continue
            points = [(vertex.get("X"), vertex.get("Y")) for vertex in region.iter("Vertex")]
            ring = _box_or_ellipse(points, kind, f"region {number}")
            name = region.get("Text") or layer.get("Name") or ""
            yield Region((ring,), name, negative=region.get("NegativeROA", "0") == "1")


def _box_or_ellipse(points: list[tuple[str | None, str | None]], kind: str, where: str) -> Ring:
    """Return an outline; two points are opposite corners of a rectangle or an ellipse's box."""
    if kind == "0" or len(points) != 2:
        return _ring(points, where)
    (x0, y0), (x1, y1), _ = _ring([*points, points[0]], where)
    if kind == "1":
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    turn = np.linspace(0, 2 * math.pi, 180, endpoint=False)
    around = np.stack([np.cos(turn) * (x1 - x0), np.sin(turn) * (y1 - y0)], axis=1) / 2
    return around + np.array([(x0 + x1) / 2, (y0 + y1) / 2])


def _safe_xml(content: bytes) -> ET.Element:
    """Parse XML but refuse a document type, so that no entity can expand or read other files.

    Deep nesting is refused too.
    """

    def refuse(*_: object) -> None:
        raise _Malformed("has a document type (<!DOCTYPE>), which is not read for safety")

    depth = 0

    def deeper(*_: object) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST_XML:  # regions in regions would be visited again and again
            raise _Malformed(f"nests elements deeper than {_DEEPEST_XML}")

    def shallower(_: object) -> None:
        nonlocal depth
        depth -= 1

    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = refuse
    guard.StartElementHandler, guard.EndElementHandler = deeper, shallower
    try:
        guard.Parse(content, True)
        return ET.fromstring(content)
    except (expat.ExpatError, ET.ParseError, ValueError, LookupError) as error:
        raise _Malformed(f"is not XML ({error})") from None
