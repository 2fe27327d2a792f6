"""`her2 view`: a note as a feature of GeoJSON, in the form of QuPath 0.4 and later.

That form (QuPath's `QuPathTypeAdapters.java`) is an object with an id (UUID), a geometry in px, and
`properties`: `objectType`, `name`, `classification` with `name` and `color`, and `metadata` of
texts. A remark is in `metadata` under `remark`, and its first line is the object's name, which
QuPath lists. It is not in `ANNOTATION_DESCRIPTION`: QuPath shows that as a web page, where a remark
could run scripts.
"""

import datetime
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from her2.core.plot_style import PALETTE
from her2.slides.annotations import UNDRAWN, classification

REMARK, DESCRIPTION, TILE, ENCODER = "remark", "ANNOTATION_DESCRIPTION", "tile", "encoder"
"""Keys of a note's `metadata`."""
_DEPTHS = {
    "Point": 0,
    **dict.fromkeys(("MultiPoint", "LineString"), 1),
    **dict.fromkeys(("MultiLineString", "Polygon"), 2),
    "MultiPolygon": 3,
}
"""Geometries that are shown: how deep a point is in the lists of their coordinates."""
_FARTHEST_PX = 1e9
_NAME_LENGTH = 80
_PLACED = "at-"
_OBJECTS = UNDRAWN | {"tmacore", "root"}
_COLOURS = [[int(hexed[i : i + 2], 16) for i in (1, 3, 5)] for hexed in PALETTE[:-1]]

Feature = dict[str, Any]


@dataclass(frozen=True, slots=True)
class NotedSlide:
    """A slide that has notes.

    Attributes:
        cohort: key of its cohort.
        slide_id: its id.
        origin: what annotations count from, as the config says it.
        corner_px: level-0 px that they count from.
    """

    cohort: str
    slide_id: str
    origin: str
    corner_px: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Draft:
    """What somebody marked: class, remark, outline (closed ring, level-0 px), and its tile."""

    class_name: str
    remark: str
    ring: Sequence[Sequence[float]] | None = None
    tile: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """A note as its file has it; `geometry` is in level-0 px, None if it cannot be shown."""

    id: str
    revision: str
    class_name: str
    remark: str
    name: str
    color: list[int] | None
    geometry: dict[str, Any] | None
    tile: str | None
    encoder: str | None

    def answer(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "id": self.id,
            "revision": self.revision,
            "class": self.class_name,
            "remark": self.remark,
            "name": self.name,
            "color": self.color,
            "geometry": self.geometry,
            "tile": self.tile,
            "encoder": self.encoder,
        }


def new_feature() -> Feature:
    """Return a feature without a place or a class yet."""
    return {
        "type": "Feature",
        "id": str(uuid.uuid4()),
        "geometry": None,
        "properties": {"objectType": "annotation"},
    }


def as_line(value: Any) -> str:
    """Return a value as JSON in one line; QuPath's measurements may be NaN, which stays."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def revision_of(feature: Feature) -> str:
    """Return what changes with anything in a feature."""
    text = json.dumps(feature, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def id_of(feature: Feature, number: int) -> str:
    """Return the id of a feature; those of other programs may have none, and count by place."""
    found = feature.get("id")
    return found if isinstance(found, str) and found else f"{_PLACED}{number}"


def is_placed(note_id: str) -> bool:
    """Return whether an id is that of a feature without one."""
    return note_id.startswith(_PLACED)


def _properties(feature: Feature) -> Mapping[str, Any]:
    return feature.get("properties") or {}


def is_object(feature: Feature) -> bool:
    """Return whether a feature is something that QuPath detected or made, and nobody drew."""
    return str(_properties(feature).get("objectType", "")).lower() in _OBJECTS


def _metadata(feature: Feature) -> Mapping[str, Any]:
    found = _properties(feature).get("metadata")
    return found if isinstance(found, dict) else {}


def class_of(feature: Feature) -> str:
    """Return the name of a feature's class, "" without one."""
    return classification(_properties(feature))


def _color(feature: Feature) -> list[int] | None:
    given = _properties(feature)
    named = given.get("classification")
    for found in (named.get("color") if isinstance(named, dict) else None, given.get("color")):
        if isinstance(found, list) and len(found) == 3 and all(one in range(256) for one in found):
            return found
    return None


def read_note(feature: Feature, number: int, slide: NotedSlide) -> Note:
    """Return a feature, the one of a number in its file, as a note."""
    metadata = _metadata(feature)
    name = str(_properties(feature).get("name") or "")
    remark = str(metadata.get(REMARK) or metadata.get(DESCRIPTION) or name)
    return Note(
        id=id_of(feature, number),
        revision=revision_of(feature),
        class_name=class_of(feature),
        remark=remark,
        name=name if name != _short(remark) else "",
        color=_color(feature),
        geometry=_placed(feature.get("geometry"), slide.corner_px),
        tile=str(metadata[TILE]) if TILE in metadata else None,
        encoder=str(metadata[ENCODER]) if ENCODER in metadata else None,
    )


def _placed(geometry: Any, corner_px: tuple[int, int]) -> dict[str, Any] | None:
    """Return a geometry in level-0 px; None for one that no map can show."""
    if not isinstance(geometry, dict) or str(geometry.get("type")) not in _DEPTHS:
        return None

    def moved(value: Any, depth: int) -> Any:
        if not isinstance(value, list) or not value:
            raise TypeError
        if depth:
            return [moved(one, depth - 1) for one in value]
        x, y = (float(one) + corner for one, corner in zip(value[:2], corner_px, strict=True))
        if not (abs(x) < _FARTHEST_PX and abs(y) < _FARTHEST_PX):  # which NaN is not either
            raise ValueError
        return [x, y]

    kind = geometry["type"]
    try:
        return {"type": kind, "coordinates": moved(geometry.get("coordinates"), _DEPTHS[kind])}
    except (TypeError, ValueError, OverflowError):
        return None


def _short(remark: str) -> str:
    """Return the first line of a remark, for QuPath's list."""
    line = (remark.strip().splitlines() or [""])[0]
    return line if len(line) <= _NAME_LENGTH else f"{line[: _NAME_LENGTH - 1]}\u2026"


def fill(feature: Feature, draft: Draft, slide: NotedSlide, features: Sequence[Feature]) -> None:
    """Write a draft into a feature, and keep whatever else it has."""
    properties = dict(_properties(feature))
    metadata = dict(_metadata(feature))
    old = read_note(feature, 0, slide)
    if draft.class_name != old.class_name:
        color = _color_of(draft.class_name, features)
        properties["classification"] = {"name": draft.class_name, "color": color}
    if draft.remark != old.remark:
        metadata[REMARK] = draft.remark
        metadata.pop(DESCRIPTION, None)
        if not old.name:  # else somebody named it otherwise, in QuPath
            properties["name"] = _short(draft.remark)
    if not properties.get("name"):
        properties.pop("name", None)
    if draft.ring is not None:
        x, y = slide.corner_px
        ring = [[px - x, py - y] for px, py in draft.ring]
        feature["geometry"] = {"type": "Polygon", "coordinates": [ring]}
        for key in (TILE, ENCODER):
            metadata.pop(key, None)
    if draft.tile is not None:
        metadata[ENCODER], metadata[TILE] = draft.tile[0], str(draft.tile[1])
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    metadata["changed" if "created" in metadata else "created"] = now
    properties["metadata"] = {name: value for name, value in metadata.items() if value != ""}
    feature["properties"] = properties


def _color_of(class_name: str, features: Sequence[Feature]) -> list[int]:
    """Return the colour that a class has in the file, else one that follows from its name.

    Where another class has that one, it is the next that is free.
    """
    taken = [_color(one) for one in features if class_of(one) != class_name]
    for feature in features:
        if class_of(feature) == class_name and (found := _color(feature)):
            return found
    first = hashlib.sha256(class_name.encode()).digest()[0]
    wheel = [_COLOURS[(first + step) % len(_COLOURS)] for step in range(len(_COLOURS))]
    return next((one for one in wheel if one not in taken), wheel[0])
