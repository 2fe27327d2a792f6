"""`her2 view`: one tile of a slide: its numbers, its pictures, its neighbours, and the extremes."""

import io
import math
from typing import TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from her2.core.crashes import reading
from her2.core.errors import SlideError, UserError
from her2.core.types import RGB
from her2.explanation.tiles import UNIFORM, SlideTiles
from her2.filters.registry import LISTED
from her2.segmenters import class_filters
from her2.viewer.overlay.attention import Attended
from her2.viewer.overlay.layer import Seen
from her2.viewer.overlay.nowhere import why_no_tile
from her2.viewer.pages.layers import seen_of
from her2.viewer.run import NotThereError
from her2.viewer.state import asked, slide_address, words_of
from her2.viewer.stored import PlacedTiles, Stored

_MOST = 50
_LARGEST_PX = 2048
_SIDEWAYS = 3.0
"""A step aside counts as this many steps ahead when a neighbour is looked for."""
_DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}
"""Name -> axis of the coordinates, and sign."""

Number = TypeVar("Number", int, float)


def show_tile(request: Request) -> Response:
    """Return the tile at `x`, `y` in level-0 px, of number `index`, or `to` a side of that one.

    Where there is none, `index` is null and `words` says why, as far as it is known.
    """
    seen, query = seen_of(request), request.query_params
    placed = seen.placed
    if "index" in query:
        index: int | None = _number(query["index"], "index", int)
        placed.box(int(index or 0))
        if "to" in query:
            index = neighbour(placed, int(index or 0), query["to"])
            if index is None:
                return JSONResponse({"index": None, "words": "there is no tile on that side"})
    else:
        x, y = (_number(query.get(name, ""), name, float) for name in ("x", "y"))
        index = tile_at(placed, x, y)
        if index is None:
            return JSONResponse({"index": None, "words": why_no_tile(seen, x, y)})
    return JSONResponse(facts(seen, placed, int(index or 0)))


def list_extremes(request: Request) -> Response:
    """Return the `count` tiles with the most and the least attention, or contribution.

    `by` says which; `class` the map, where there are several. Where there is nothing to list, the
    answer is `absent`, the reason.
    """
    seen, query = seen_of(request), request.query_params
    count = _number(query.get("count", "10"), "count", int)
    if not 1 <= count <= _MOST:
        raise NotThereError(f"count {count}: is not from 1 to {_MOST}.")
    placed = seen.placed
    try:
        attended = _attended(seen, placed)
        values, words = _ranked(seen, attended, query.get("by", "attention"))
    except UserError as error:
        return JSONResponse({"absent": words_of(error)})
    order = np.argsort(-values, kind="stable")
    most, least = order[:count], order[::-1][: min(count, len(order) - len(order[:count]))]
    return JSONResponse(
        {
            "words": words,
            "most": [_short(seen, placed, int(i), values) for i in most],
            "least": [_short(seen, placed, int(i), values) for i in least],
        }
    )


def picture(request: Request) -> Response:
    """Return a tile as PNG: in px of the slide or, `as=encoder`, as the encoder saw it."""
    one, at = asked(request), request.path_params
    placed = one.viewer.part(Stored).placed(one.viewer, one.cohort, one.slide_id, at["encoder"])
    left, top, right, bottom = placed.box(at["index"])
    slide = one.open().slide
    width, height = right - left, bottom - top
    if request.query_params.get("as") == "encoder":
        out = (min(placed.target[1], _LARGEST_PX),) * 2
    else:
        # Whole px, so that none is resampled.
        width = min(math.ceil(right), slide.width_px) - left
        height = min(math.ceil(bottom), slide.height_px) - top
        shrink = max(1.0, max(width, height) / _LARGEST_PX)
        out = (max(1, round(width / shrink)), max(1, round(height / shrink)))
    with reading(str(one.file)):
        image = slide.region(left, top, width, height, out)
    return Response(_png(image), media_type="image/png")


def tile_at(placed: PlacedTiles, x: float, y: float) -> int | None:
    """Return the tile at a place in level-0 px, of several the one whose middle is nearest."""
    width, height = placed.slide.level0_tile
    away = np.array([x, y]) - placed.coords
    inside = np.flatnonzero(
        (away[:, 0] >= 0) & (away[:, 0] < width) & (away[:, 1] >= 0) & (away[:, 1] < height)
    )
    if not len(inside):
        return None
    to_middle = np.abs(away[inside] - np.array([width, height]) / 2).max(axis=1)
    return int(inside[np.argmin(to_middle)])


def neighbour(placed: PlacedTiles, index: int, side: str) -> int | None:
    """Return the nearest tile on a side (left, right, up, down) of another, if there is one.

    Raises:
        NotThereError: there is no such side.
    """
    if side not in _DIRECTIONS:
        raise NotThereError(f"to {side}: is none of {', '.join(_DIRECTIONS)}.")
    axis, sign = _DIRECTIONS[side]
    steps = (placed.coords - placed.coords[index]) / np.array(placed.slide.level0_tile)
    ahead, aside = steps[:, axis] * sign, np.abs(steps[:, 1 - axis])
    there = np.flatnonzero((ahead > 1e-9) & (aside <= np.maximum(ahead, 0.5)))
    if not len(there):
        return None
    return int(there[np.argmin(ahead[there] + _SIDEWAYS * aside[there])])


def facts(seen: Seen, placed: PlacedTiles, index: int) -> dict[str, object]:
    """Return what is known of a tile, for the page."""
    left, top, right, bottom = placed.box(index)
    mpp, px = placed.target
    um = [(right - left) * placed.slide.mpp[0], (bottom - top) * placed.slide.mpp[1]]
    return {
        "index": index,
        "encoder": placed.encoder,
        "tiles": len(placed),
        "box_px": [left, top, right, bottom],
        "um": um,
        "target": {"mpp": mpp, "px": px},
        **_pictures(seen, placed, index),
        **_attention(seen, placed, index),
        **_quality(seen, placed, index),
    }


def _pictures(seen: Seen, placed: PlacedTiles, index: int) -> dict[str, str]:
    begin = slide_address(seen.asked.cohort.key, seen.asked.slide_id)
    address = f"{begin}/tiles/{quote(placed.encoder, safe='')}/{index}.png"
    return {"picture": address, "seen": f"{address}?as=encoder"}


def _attention(seen: Seen, placed: PlacedTiles, index: int) -> dict[str, object]:
    """Return what the model stored of a tile, or why there is nothing."""
    try:
        attended = _attended(seen, placed)
    except (UserError, SlideError) as error:
        return {"attention": None, "note": words_of(error)}
    tiles = attended.tiles
    kinds = ("attention", "contribution")
    return {
        "attention": float(tiles.attention[index]),
        "times_uniform": float(tiles.times_tiles[index]),
        **_place(tiles.attention, tiles.rank, index),
        "classes": {
            kind: {name: float(tiles.maps[f"{kind}_{name}"][index]) for name in attended.maps(kind)}
            for kind in kinds
            if attended.maps(kind)
        },
        "note": UNIFORM if tiles.uniform else "",
    }


def _attended(seen: Seen, placed: PlacedTiles) -> Attended:
    """Return what the model stored, of these tiles.

    Raises:
        UserError: there is none, or it is of other tiles.
    """
    found = seen.attended
    if not np.array_equal(found.tiles.coords, placed.coords):
        raise UserError("the run was made again meanwhile; load the page again.")
    return found


def _place(
    values: NDArray[np.float32], ranks: NDArray[np.float32], index: int
) -> dict[str, object]:
    """Return a tile's rank, 1 for the highest value, and the percentile of its value."""
    return {
        "rank": int((values > values[index]).sum()) + 1,
        "percentile": 100 * float(ranks[index]),
    }


def _quality(seen: Seen, placed: PlacedTiles, index: int) -> dict[str, object]:
    """Return a tile's row of the tile table: the share of tissue, and what the filters found."""
    one = seen.asked
    try:
        table = one.viewer.part(Stored).table(one.viewer, one.cohort, one.slide_id, seen.grid)
    except UserError as error:
        return {"tissue": None, "quality": [], "quality_note": words_of(error)}
    same: list[int] = []
    if table is not None:
        same = np.flatnonzero((table.coords == placed.coords[index]).all(axis=1)).tolist()
    if table is None or not same:
        note = "another program laid the tiles, without a table of their quality"
        return {"tissue": None, "quality": [], "quality_note": note}
    row, tiling = same[0], one.viewer.run.config.tiling
    quality = []
    for filter_ in (*LISTED, *class_filters(tiling)):
        if filter_.name not in table.quality:
            continue
        read = table.quality.get(f"{filter_.name}_read")
        quality.append(
            {
                "name": filter_.name,
                "title": filter_.legend,
                "value": _finite(table.quality[filter_.name][row]),
                "limit": filter_.limit_in(tiling),
                "measured": None if read is None else bool(read[row]),
            }
        )
    annotated = table.quality.get("annotated") if table.facts.regions is not None else None
    return {
        "tissue": float(table.tissue[row]),
        "annotated": None if annotated is None else float(annotated[row]),
        "quality": quality,
        "quality_note": "",
    }


def _finite(value: np.float32) -> float | None:
    return float(value) if math.isfinite(value) else None


def _ranked(seen: Seen, attended: Attended, by: str) -> tuple[NDArray[np.float32], str]:
    """Return the values (n,) that tiles are listed by, and what they are in words.

    Raises:
        NotThereError: there is no such map.
        UserError: attention is the same for all tiles.
    """
    tiles: SlideTiles = attended.tiles
    if by not in ("attention", "contribution"):
        raise NotThereError(f"by {by}: is neither attention nor contribution.")
    known = attended.maps(by)
    if by == "contribution" and not known:
        raise NotThereError("this model has no contributions of tiles.")
    if seen.of_class is not None and seen.of_class in known:
        return tiles.maps[f"{by}_{seen.of_class}"], f"{by}, {seen.of_class}"
    if by == "contribution":
        shown = tiles.shown or f"contribution_{known[0]}"
        return tiles.maps[shown], f"contribution, {shown.removeprefix('contribution_')}"
    if tiles.uniform:
        raise UserError(f"{UNIFORM}.")
    return tiles.attention, "attention"


def _short(
    seen: Seen, placed: PlacedTiles, index: int, values: NDArray[np.float32]
) -> dict[str, object]:
    return {
        "index": index,
        "box_px": placed.box(index),
        "value": float(values[index]),
        **_pictures(seen, placed, index),
    }


def _number(text: str, name: str, kind: type[Number]) -> Number:
    try:
        found, finite = kind(text), math.isfinite(float(text))
    except (ValueError, OverflowError):
        raise NotThereError(f"{name} {text!r}: is no number.") from None
    if not finite:
        raise NotThereError(f"{name} {text!r}: is not finite.")
    return found


def _png(image: RGB) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


_SLIDE = "/slides/{cohort}/{slide}"
ROUTES = (
    Route(f"/api{_SLIDE}/tile", show_tile),
    Route(f"/api{_SLIDE}/tiles", list_extremes),
    Route(f"{_SLIDE}/tiles/{{encoder}}/{{index:int}}.png", picture),
)
