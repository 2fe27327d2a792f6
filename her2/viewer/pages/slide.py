"""`her2 view`: the page of a slide, its squares at every magnification, and its thumbnail."""

from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from her2.core.errors import SlideError, TileError
from her2.core.reading import path_problem
from her2.viewer.run import NotThereError, ViewedRun
from her2.viewer.slide_facts import facts, is_of_run, truths
from her2.viewer.state import Asked, asked, page, viewer_of
from her2.viewer.zoom import FULL, REDUCED, TILE_PX, level_count, to_jpeg

THUMBNAIL_PX = (64, 1024)
"""The smallest and the largest thumbnail, px of its longer side."""
_KEPT = {"Cache-Control": "private, max-age=3600"}


def show_slide(request: Request) -> Response:
    """Return the page of a slide, whose scripts ask for everything else."""
    one = asked(request)
    return page(
        request,
        "slide.html.j2",
        title=one.slide_id,
        cohort=one.cohort.key,
        cohort_title=one.cohort.title,
        slide_id=one.slide_id,
        truths=list(truths(one.viewer.run, one.cohort, one.slide_id)),
    )


def slide_facts(request: Request) -> Response:
    """Return what a slide's file, its row of the manifest and the run's tables say, as JSON."""
    return JSONResponse(facts(asked(request)))


def check_file(request: Request) -> Response:
    """Return whether a slide's file is the one that the run read, null if that is not known."""
    return JSONResponse({"same": is_of_run(asked(request))})


def list_slides(request: Request) -> Response:
    """Return the ids of a cohort's slides in order, for those who come without a list."""
    run: ViewedRun = viewer_of(request).run
    return JSONResponse({"slides": run.cohort(request.path_params["cohort"]).slide_ids})


def square(request: Request) -> Response:
    """Return a square of a level, or why there is none, as JSON.

    `v` in the address is the version of the file in the facts, so that no browser takes a square of
    an earlier file for one of this.
    """
    one, at = asked(request), request.path_params
    row = one.cohort.row(one.slide_id)
    ending = at["ending"]
    try:
        opened = one.open()
        if ending != (FULL if at["level"] == level_count(opened.size_px) - 1 else REDUCED):
            raise IndexError(f"square of that ending on level {at['level']}")
        found = one.viewer.slides.square(
            one.file, row.mpp, at["level"], at["column"], at["row"],
            version=request.query_params.get("v"),
        )  # fmt: skip
    except IndexError as error:
        raise NotThereError(f"{one.slide_id}: has no {error}.") from None
    except TileError as error:
        return JSONResponse({"error": str(error), "damaged": True}, status_code=409)
    except SlideError as error:
        return JSONResponse({"error": str(error), "damaged": False}, status_code=409)
    kind = "image/webp" if ending == FULL else "image/jpeg"
    return Response(found, media_type=kind, headers=_KEPT)


def thumbnail(request: Request) -> Response:
    """Return the whole slide, small; where its file cannot be read, the run's QC picture.

    The header `X-From` says which: `slide` or `qc`.
    """
    one = asked(request)
    try:
        asked_px = int(request.query_params.get("size", TILE_PX))
    except ValueError:
        raise NotThereError("`size` is a number of px.") from None
    size = min(max(asked_px, THUMBNAIL_PX[0]), THUMBNAIL_PX[1])
    row = one.cohort.row(one.slide_id)
    try:
        found = one.viewer.slides.thumbnail(one.file, row.mpp, size)
    except (NotThereError, SlideError, TileError):
        found = None
    if found is not None:
        return Response(found, media_type="image/jpeg", headers={**_KEPT, "X-From": "slide"})
    found = _qc_picture(one, size)
    if found is None:
        raise NotThereError(f"{one.slide_id}: its file cannot be read, and the run has no picture.")
    # Not kept for long: the file may come back.
    return Response(
        found,
        media_type="image/jpeg",
        headers={"Cache-Control": "private, max-age=60", "X-From": "qc"},
    )


def _qc_picture(one: Asked, size_px: int) -> bytes | None:
    """Return the run's picture of a slide, on which it has drawn what it kept and rejected."""
    for path in sorted(one.cohort.folder.glob("tiles/*")):
        picture = path / f"{one.slide_id}.qc.jpg"

        def reduce(picture=picture) -> bytes:  # type: ignore[no-untyped-def]
            # JPEG is decoded at an eighth; another kind might be of any size.
            with Image.open(picture, formats=("JPEG",)) as image:
                image.draft("RGB", (size_px, size_px))
                image.thumbnail((size_px, size_px))
                return to_jpeg(image.convert("RGB"))

        if path_problem(picture):
            continue
        try:
            version = picture.stat().st_mtime_ns
            return one.viewer.slides.kept((picture, version, "qc", size_px), reduce)
        except OSError:  # absent or damaged
            continue
    return None


ROUTES = (
    Route("/slides/{cohort}/{slide}", show_slide),
    Route("/slides/{cohort}/{slide}/thumbnail.jpg", thumbnail),
    Route("/slides/{cohort}/{slide}/zoom/{level:int}/{column:int}_{row:int}.{ending}", square),
    Route("/api/slides/{cohort}/{slide}", slide_facts),
    Route("/api/slides/{cohort}/{slide}/file", check_file),
    Route("/api/cohorts/{cohort}/slides", list_slides),
)
