"""Stage 1, tile: regions that a person drew, from QuPath (GeoJSON) or Aperio ImageScope (XML).

Coordinates are px of level 0. QuPath counts from the corner of the scanned area where a format
gives one (MIRAX, Leica SCN): `tiling.annotation_origin: bounds` is for such files.
"""

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

import cv2
import numpy as np
from numpy.typing import NDArray

from her2.core.errors import SlideError, SlideUnfit
from her2.core.types import Mask

Ring = NDArray[np.float64]
"""(n, 2) x, y in level-0 px; closed, whether or not the last point repeats the first."""

_FINEST = 8
"""Polygons are filled on px this many times finer than the mask: OpenCV fills every px that an
outline touches, which makes areas larger by half a px all around."""
_LARGEST_FILL = 1 << 26
_SHIFT = 4
_FAR_PX = 1e6
_OUTLINES = frozenset({"0", "1", "2"})
"""ImageScope's types of regions with an area: polygon, rectangle, ellipse (not arrow, ruler)."""
_CELLS = frozenset({"detection", "cell", "tile", "tma_core"})


@dataclass(frozen=True, slots=True)
class Region:
    """An area: its outline, then its holes; `negative` ones are taken away from all others."""

    rings: tuple[Ring, ...]
    name: str
    negative: bool = False


class _Malformed(Exception):
    """What is wrong with a file, without its name."""


def read_regions(path: Path) -> tuple[Region, ...]:
    """The regions of an annotation file: `.xml` is ImageScope's, all else GeoJSON.

    Points and lines have no area and are left out, and so are QuPath's cells and tiles.

    Raises:
        SlideError: naming the file and what is wrong with it.
    """
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".xml":
            return tuple(_aperio_regions(content))
        return tuple(_geojson_regions(content))
    except FileNotFoundError:
        raise SlideError(f"its annotation {path.name} does not exist") from None
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except _Malformed as error:
        problem = str(error)
    raise SlideError(f"its annotation {path.name} {problem}") from None


def chosen_regions(
    regions: Sequence[Region],
    classes: Collection[str],
    *,
    file: str,
    key: str = "tiling.annotation_classes",
) -> tuple[Region, ...]:
    """The regions of some classes (all of them where none is named), and every negative one.

    Args:
        regions: of a file.
        classes: which, as the config's `key` names them.
        file, key: their names in errors.

    Raises:
        SlideUnfit: there is no such region.
    """
    positive = [region for region in regions if not region.negative]
    chosen = [region for region in positive if not classes or region.name in classes]
    if not positive:
        raise SlideUnfit(f"its annotation {file} holds no region with an area")
    if not chosen:
        found = ", ".join(sorted({region.name or "(no class)" for region in positive}))
        raise SlideUnfit(
            f"its annotation {file} has no region of the class {', '.join(sorted(classes))} "
            f"({key}); it has {found}"
        )
    return tuple(chosen) + tuple(region for region in regions if region.negative)


def region_mask(
    regions: Sequence[Region],
    shape: tuple[int, int],
    *,
    size_px: tuple[int, int],
    origin_px: tuple[float, float] = (0.0, 0.0),
) -> Mask:
    """Where the regions are: px of which at least half is inside one, and not in a negative one.

    Args:
        regions: in level-0 px.
        shape: (h, w) of the result, which covers the whole slide.
        size_px: (width, height) of the slide at level 0.
        origin_px: level-0 place of the regions' (0, 0).
    """
    scale = np.array([shape[1] / size_px[0], shape[0] / size_px[1]])
    inside, outside = np.zeros(shape, bool), np.zeros(shape, bool)
    for region in regions:
        rings = [(ring + np.array(origin_px)) * scale for ring in region.rings]
        _fill(outside if region.negative else inside, rings)
    found: Mask = inside & ~outside
    return found


def _fill(mask: Mask, rings: Sequence[Ring]) -> None:
    """Set the px inside the first ring and outside the others (even-odd), in place."""
    outline = rings[0]
    left, top = np.floor(np.maximum(outline.min(axis=0), 0)).astype(int)
    right, bottom = np.ceil(np.minimum(outline.max(axis=0), mask.shape[::-1])).astype(int)
    if right <= left or bottom <= top:
        return
    size = (int(right - left), int(bottom - top))
    factor = int(np.clip((_LARGEST_FILL / (size[0] * size[1])) ** 0.5, 2, _FINEST))
    fine = np.zeros((size[1] * factor, size[0] * factor), np.uint8)
    # OpenCV counts from the centre of the first px, and in 1/16 px.
    points = [
        np.clip((ring - (left, top)) * factor - 0.5, -_FAR_PX, _FAR_PX) * 2**_SHIFT
        for ring in rings
    ]
    cv2.fillPoly(fine, [np.round(p).astype(np.int32) for p in points], 255, shift=_SHIFT)
    mask[top:bottom, left:right] |= cv2.resize(fine, size, interpolation=cv2.INTER_AREA) >= 128


def _geojson_regions(content: bytes) -> Iterator[Region]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _Malformed(f"is not JSON ({error})") from None
    for number, feature in enumerate(_features(value), start=1):
        properties = feature.get("properties") or {}
        if not isinstance(properties, dict):
            raise _Malformed(f"feature {number}: its properties are no object")
        if str(properties.get("objectType", "")).lower() in _CELLS:
            continue
        for rings in _polygons(feature.get("geometry"), number):
            yield Region(rings, _class_name(properties))


def _features(value: Any) -> list[dict[str, Any]]:
    """The features of a FeatureCollection, a bare list, one feature or one geometry."""
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
                raise _Malformed(f"feature {number}: its coordinates are no list")
            for polygon in coordinates:
                yield _rings(polygon, number)
        case "GeometryCollection":
            parts = geometry.get("geometries")
            if not isinstance(parts, list):
                raise _Malformed(f"feature {number}: its geometries are no list")
            for part in parts:
                if isinstance(part, dict) and part.get("type") == "GeometryCollection":
                    raise _Malformed(f"feature {number}: a collection inside a collection")
                yield from _polygons(part, number)
        case "Point" | "MultiPoint" | "LineString" | "MultiLineString":
            return
        case _:
            raise _Malformed(f"feature {number}: {str(kind)[:40]!r} is no geometry of GeoJSON")


def _rings(coordinates: Any, number: int) -> tuple[Ring, ...]:
    if not isinstance(coordinates, list) or not coordinates:
        raise _Malformed(f"feature {number}: a polygon without rings")
    return tuple(_ring(points, f"feature {number}") for points in coordinates)


def _ring(points: Any, where: str) -> Ring:
    try:
        # A third coordinate (z) is legal, and says nothing here.
        ring = np.array([(float(point[0]), float(point[1])) for point in points], np.float64)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        raise _Malformed(f"{where}: a point is not two numbers") from None
    if len(ring) < 3:
        raise _Malformed(f"{where}: an outline of {len(ring)} points")
    if not np.isfinite(ring).all():
        raise _Malformed(f"{where}: a coordinate is not finite")
    return ring


def _class_name(properties: dict[str, Any]) -> str:
    """QuPath's classification, {name} or (since 0.5) {names}; the object's name without one."""
    found = properties.get("classification")
    if isinstance(found, dict):
        names = found.get("names")
        found = found.get("name") or (": ".join(map(str, names)) if names else None)
    return str(found or properties.get("name") or "")


def _aperio_regions(content: bytes) -> Iterator[Region]:
    root = _safe_xml(content)
    if root.tag != "Annotations":
        raise _Malformed(f"is not ImageScope's XML: it begins with <{root.tag[:40]}>")
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
    """A rectangle or ellipse of two points is given by opposite corners of its box."""
    if kind == "0" or len(points) != 2:
        return _ring(points, where)
    (x0, y0), (x1, y1), _ = _ring([*points, points[0]], where)
    if kind == "1":
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    turn = np.linspace(0, 2 * math.pi, 180, endpoint=False)
    around = np.stack([np.cos(turn) * (x1 - x0), np.sin(turn) * (y1 - y0)], axis=1) / 2
    return around + np.array([(x0 + x1) / 2, (y0 + y1) / 2])


def _safe_xml(content: bytes) -> ET.Element:
    """Parse XML that declares no document type: entities could then neither grow nor reach out."""

    def refuse(*_: object) -> None:
        raise _Malformed("has a document type (<!DOCTYPE>), which is not read for safety")

    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = refuse
    try:
        guard.Parse(content, True)
        return ET.fromstring(content)
    except (expat.ExpatError, ET.ParseError, ValueError, LookupError) as error:
        raise _Malformed(f"is not XML ({error})") from None
