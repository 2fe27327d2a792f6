"""`her2 view`: the layers over a slide: which there are, their legends, pictures and outlines."""

from collections.abc import Hashable
from dataclasses import asdict
from urllib.parse import urlencode

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from her2.core.errors import SlideError, TileError, UserError
from her2.viewer.drawn import DrawnSlides
from her2.viewer.kept import Kept
from her2.viewer.layers import all_layers
from her2.viewer.overlay.attention import Attention
from her2.viewer.overlay.layer import SCALES, Gridded, Layer, Made, Outlined, Painted, Seen
from her2.viewer.overlay.raster import to_png
from her2.viewer.overlay.retiling import ComputingError
from her2.viewer.run import PREDICTED, NotThereError
from her2.viewer.state import Asked, asked, slide_address, words_of
from her2.viewer.stored import Stored

_LAYERS = 16


class _Layers:
    """The layers of the package, and those that were made last."""

    def __init__(self) -> None:
        self.known = {one.name: one for one in all_layers()}
        self._made: Kept[Made] = Kept(_LAYERS)

    def get(self, name: str) -> Layer:
        """Return a layer by name."""
        if name not in self.known:
            raise NotThereError(
                f"there is no layer of that name; there are {', '.join(self.known)}."
            )
        return self.known[name]

    def make(self, name: str, seen: Seen) -> Made:
        """Return what a layer shows, made now or before."""
        layer = self.get(name)
        key: Hashable = (name, seen.key)
        return self._made.get(key, lambda: layer.make(seen))

    def forget(self, slide: Asked) -> None:
        """Make the layers of a slide again when they are asked for: its files may have changed."""
        own = (slide.cohort.key, slide.slide_id)
        self._made.forget(lambda key: isinstance(key, tuple) and key[1][:2] == own)


def seen_of(request: Request) -> Seen:
    """Return what a request asks to see: `model`, `run`, `class` and `scale` in its address.

    Raises:
        NotThereError: there is no such slide, model or scale.
    """
    one, query = asked(request), request.query_params
    models = one.viewer.run.models
    model = query.get("model") or next(iter(models), None)
    if model is not None:
        one.viewer.run.model(model)
    scale = query.get("scale", SCALES[0])
    if scale not in SCALES:
        raise NotThereError(f"there is no scale {scale}; there are {', '.join(SCALES)}.")
    return Seen(one, model, query.get("run") or None, query.get("class") or None, scale)


def list_layers(request: Request) -> Response:
    """Return the layers that there are, and what can be chosen for the model that is asked for."""
    seen = seen_of(request)
    layers = seen.asked.viewer.part(_Layers)
    run = seen.asked.viewer.run
    # A page begins with this list; it may be of a run that was made again meanwhile.
    layers.forget(one := seen.asked)
    one.viewer.part(Attention).forget(one.cohort, one.slide_id)
    one.viewer.part(Stored).forget(one.cohort, one.slide_id)
    one.viewer.part(DrawnSlides).forget(one.cohort, one.slide_id)
    return JSONResponse(
        {
            "layers": [
                {
                    "name": one.name,
                    "title": one.title,
                    "kind": one.kind,
                    "order": one.order,
                    "opacity": one.opacity,
                    "shown": one.shown,
                    "options": sorted(one.options),
                }
                for one in layers.known.values()
            ],
            # Predictions are those of a bundle, whichever models the run has.
            "models": [] if seen.asked.cohort.key == PREDICTED else list(run.models),
            "model": seen.model,
            "encoder": seen.encoder,
            **_choices(seen),
        }
    )


def _choices(seen: Seen) -> dict[str, object]:
    """Return which runs and classes there are, and what the model predicted."""
    try:
        found = seen.attended
    except (UserError, SlideError) as error:
        return {"note": words_of(error), "runs": [], "run": None, "classes": [], "tiles": None}
    tiles = found.tiles
    classes = dict.fromkeys((*found.maps("attention"), *found.maps("contribution")))
    return {
        "note": "",
        "runs": found.runs,
        "run": found.run,
        "classes": list(classes),
        "contributions": list(found.maps("contribution")),
        "tiles": len(tiles),
        "uniform": tiles.uniform,
        "by": tiles.of.by.replace("\n", " "),
        "label": tiles.of.label,
        "predicted": tiles.predicted,
        "probabilities": dict(zip(tiles.class_names, tiles.probabilities, strict=False)),
    }


def show_layer(request: Request) -> Response:
    """Return a layer's legend and where its content is, or `absent`, the reason why there is none.

    While it is being computed, the answer is 202 and says so.
    """
    seen, name = seen_of(request), request.path_params["name"]
    try:
        made = seen.asked.viewer.part(_Layers).make(name, seen)
    except ComputingError as error:
        return JSONResponse(
            {"computing": words_of(error), "seconds": error.seconds}, status_code=202
        )
    except (UserError, SlideError, TileError) as error:  # of this slide and model; no mistake
        return JSONResponse({"absent": words_of(error)})
    answer: dict[str, object] = {"legend": _legend(made), "note": words_of(made.note)}
    match made:
        case Painted():
            answer |= {
                "url": content_address(seen, "", f"{name}.png"),
                "bounds_px": made.cells.bounds_px,
                "cells": made.cells.index.shape[::-1],
                "regular": made.cells.regular,
            }
        case Outlined():
            answer |= {"url": content_address(seen, "/api", f"{name}.geojson")}
        case Gridded():
            answer |= {
                "url": content_address(seen, "", f"{name}.bin"),
                "tile_px": made.tile,
                "count": len(made.coords),
            }
    return JSONResponse(answer)


def _legend(made: Made) -> dict[str, object]:
    return asdict(made.legend)


def content_address(seen: Seen, begin: str, file: str) -> str:
    """Return the address of a layer's content."""
    one = seen.asked
    asked_for = {"model": seen.model, "run": seen.run, "class": seen.of_class, "scale": seen.scale}
    query = urlencode({name: value for name, value in asked_for.items() if value is not None})
    return f"{slide_address(one.cohort.key, one.slide_id, begin)}/layers/{file}?{query}"


def _content(request: Request) -> Made:
    """Return what a layer shows, for its picture or outlines.

    Raises:
        UserError: it is not known yet; its legend says when it is.
    """
    seen = seen_of(request)
    try:
        return seen.asked.viewer.part(_Layers).make(request.path_params["name"], seen)
    except ComputingError as error:
        raise UserError(f"{error}; ask again.") from None


def picture(request: Request) -> Response:
    """Return the picture of a layer, one px per cell."""
    made = _content(request)
    if not isinstance(made, Painted):
        raise NotThereError("this layer is no picture.")
    return Response(to_png(made.cells, made.levels, made.colours), media_type="image/png")


def outlines(request: Request) -> Response:
    """Return the outlines of a layer as GeoJSON, in level-0 px."""
    made = _content(request)
    if not isinstance(made, Outlined):
        raise NotThereError("this layer has no outlines.")
    return JSONResponse({"type": "FeatureCollection", "features": list(made.features)})


def corners(request: Request) -> Response:
    """Return the top left corners of tiles, x and y as little-endian int32, by rows."""
    made = _content(request)
    if not isinstance(made, Gridded):
        raise NotThereError("this layer has no grid.")
    order = np.lexsort((made.coords[:, 0], made.coords[:, 1]))
    content = made.coords[order].astype("<i4").tobytes()
    return Response(content, media_type="application/octet-stream")


_SLIDE = "/slides/{cohort}/{slide}/layers"
ROUTES = (
    Route(f"/api{_SLIDE}", list_layers),
    Route(f"/api{_SLIDE}/{{name}}.geojson", outlines),
    Route(f"/api{_SLIDE}/{{name}}", show_layer),
    Route(f"{_SLIDE}/{{name}}.png", picture),
    Route(f"{_SLIDE}/{{name}}.bin", corners),
)
