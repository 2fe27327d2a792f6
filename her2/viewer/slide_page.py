"""`her2 view`: the page of a slide, its facts, and its squares at every magnification."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from her2.core.errors import SlideUnfit
from her2.viewer.run import NotThereError
from her2.viewer.state import Asked, asked, page
from her2.viewer.zoom import TILE_PX


def show_slide(request: Request) -> Response:
    """Return the page of a slide, whose scripts ask for everything else."""
    one = asked(request)
    return page(
        request, "slide.html.j2", title=one.slide_id, cohort=one.cohort.key, slide_id=one.slide_id
    )


def slide_facts(request: Request) -> Response:
    """Return what a slide's file and its row of the manifest say, as JSON."""
    return JSONResponse(facts(asked(request)))


def facts(one: Asked) -> Mapping[str, object]:
    """Return the facts of a slide.

    Raises:
        SlideError: its file cannot be opened.
    """
    opened, row = one.open(), one.cohort.row(one.slide_id)
    slide = opened.slide
    try:
        scale = slide.scale()
    except SlideUnfit:
        scale = None
    return {
        "slide_id": one.slide_id,
        "cohort": one.cohort.key,
        "patient_id": row.patient_id,
        "site": row.site,
        "scanner": row.scanner,
        "labels": dict(row.labels),
        "size_px": [slide.width_px, slide.height_px],
        "mpp": None if scale is None else [scale.mpp_x, scale.mpp_y],
        "mpp_source": None if scale is None else scale.source,
        "vendor": slide.vendor,
        "zoom": {"tile_px": TILE_PX, "levels": opened.zoom.level_count},
        "models": list(one.viewer.run.models),
    }


def square(request: Request) -> Response:
    """Return a square of a Deep Zoom level as JPEG."""
    one, at = asked(request), request.path_params
    row = one.cohort.row(one.slide_id)
    try:
        found = one.viewer.slides.jpeg(one.file, row.mpp, at["level"], at["column"], at["row"])
    except IndexError as error:
        raise NotThereError(f"{one.slide_id}: has no {error}.") from None
    return Response(
        found, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"}
    )


ROUTES = (
    Route("/slides/{cohort}/{slide}", show_slide),
    Route("/api/slides/{cohort}/{slide}", slide_facts),
    Route("/slides/{cohort}/{slide}/zoom/{level:int}/{column:int}_{row:int}.jpg", square),
)
