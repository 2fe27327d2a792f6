"""`her2 view`: similar tiles as JSON: from the sample at once, from all stores as a search.

What is asked of a search of all tiles: it is begun (POST), asked how far it is (GET), and cancelled
(DELETE).
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from her2.core.errors import UserError
from her2.storage.features import places_known, read_coords
from her2.viewer.bodies import read_object
from her2.viewer.run import NotThereError
from her2.viewer.similar.jobs import Known, Running, SimilarTiles
from her2.viewer.similar.search import PER_PATIENT, Found, Hit, Query, read_query
from her2.viewer.similar.stores import EmbeddedSlide
from her2.viewer.state import Asked, Viewer, asked, slide_address, viewer_of, words_of

SIMILARITY = "cosine of the embeddings"
_MOST_BYTES = 4096
_WAIT_SECONDS = 0.5
"""For a sample that is nearly read, before the page is told to ask again."""


def find_similar(request: Request) -> Response:
    """Return the similar tiles of the sample, or how far the sample is."""
    one, given = asked(request), request.query_params
    return JSONResponse(_of_sample(request, one, given))


def _of_sample(request: Request, one: Asked, given: Mapping[str, Any]) -> dict[str, Any]:
    similar, encoder, query, model = _question(request, one, given)
    slides = similar.slides(encoder)
    made = similar.sample(encoder, slides.slides[query.slide].open())
    if not made.ready.wait(_WAIT_SECONDS):
        sample = made.sample
        return {"state": "building", "done": sample.done, "of": sample.number}
    if made.problem:
        raise UserError(f"the sample of tiles could not be read: {made.problem}.")
    return {
        "state": "done",
        **_answer(one.viewer, similar, encoder, query, model, made.sample.search(query)),
    }


async def begin_search(request: Request) -> Response:
    """Begin to search all tiles; the answer has the address to ask."""
    given = await read_object(request, most_bytes=_MOST_BYTES)

    def begin() -> Response:
        similar, encoder, query, model = _question(request, asked(request), given)
        made = similar.begin(encoder, query, model)
        return JSONResponse({"address": f"/api/similar/{made.number}", **_progress(made)}, 202)

    return await run_in_threadpool(begin)


def show_search(request: Request) -> Response:
    """Return how far a search of all tiles is, or what it found; `model` is whose predictions."""
    similar = _similar(request)
    made = similar.search(request.path_params["number"])
    if not made.ended.is_set():
        return JSONResponse(_progress(made))
    if made.problem:
        raise UserError(f"the search ended: {made.problem}.")
    if made.found is None:
        return JSONResponse({**_progress(made), "state": "cancelled"})
    model = request.query_params.get("model") or made.model
    answer = _answer(
        viewer_of(request), similar, made.encoder, made.search.query, model, made.found
    )
    return JSONResponse({"state": "done", "seconds": made.seconds, **answer})


def cancel_search(request: Request) -> Response:
    """End a search of all tiles."""
    made = _similar(request).search(request.path_params["number"])
    made.search.cancelled.set()
    return JSONResponse({**_progress(made), "state": "cancelled"})


def _similar(request: Request) -> SimilarTiles:
    """Return the searches of this viewer, which begin with the first question."""
    return viewer_of(request).part(SimilarTiles, SimilarTiles)


def _question(
    request: Request, one: Asked, given: Mapping[str, Any]
) -> tuple[SimilarTiles, str, Query, str | None]:
    """Return what a page asks: the searches, the encoder, the tile and the model.

    Raises:
        HTTPException: a part is missing or is of the wrong kind.
        NotThereError: there is no such encoder, model or tile.
        UserError: the tile's store cannot be read.
    """
    similar, encoder, tile = _similar(request), given.get("encoder"), given.get("tile")
    if isinstance(tile, str) and tile.isascii() and tile.isdigit():
        tile = int(tile)
    if not isinstance(encoder, str) or type(tile) is not int:
        raise HTTPException(400, "Name an encoder, and a tile by its number.")
    model = given.get("model") or None
    if model is None:
        of_it = (key for key, named in one.viewer.run.models.items() if named.encoder == encoder)
        model = next(of_it, None)
    elif not isinstance(model, str):
        raise HTTPException(400, "A model is named by its key.")
    else:
        one.viewer.run.model(model)
    slides = similar.slides(encoder)
    number = slides.find(one.cohort.key, one.slide_id)
    try:
        return similar, encoder, read_query(slides.slides, number, tile), model
    except IndexError as error:
        raise NotThereError(f"{one.slide_id}: has no {error}.") from None


def _progress(made: Running) -> dict[str, Any]:
    search = made.search
    return {
        "state": "running",
        "done": search.done,
        "of": len(search.slides),
        "tiles": search.tiles,
    }


def _answer(
    viewer: Viewer,
    similar: SimilarTiles,
    encoder: str,
    query: Query,
    model: str | None,
    found: Found,
) -> dict[str, Any]:
    """Return what was found as JSON, with what was searched and which scores the hits have."""
    stored, known = similar.slides(encoder), similar.known(model)
    slides, searched = stored.slides, found.searched
    skipped = [
        {"slide": slides[number].slide_id, "reason": words_of(reason)}
        for number, reason in sorted(searched.skipped.items())
    ]
    skipped += [{"slide": "", "reason": words_of(words)} for words in stored.problems]

    def described(hits: Iterable[Hit]) -> list[dict[str, Any]]:
        return [_hit(viewer, slides[hit.slide], hit, encoder, model, known) for hit in hits]

    return {
        "similarity": SIMILARITY,
        "encoder": encoder,
        "model": model,
        "label": known.label,
        "tile": query.tile,
        "per_patient": PER_PATIENT,
        "searched": {
            "tiles": searched.tiles,
            "slides": searched.slides,
            "patients": searched.patients,
            "whole": searched.whole,
            "all_tiles": sum(one.tiles for one in slides),
            "undefined": searched.undefined,
            "skipped": skipped,
        },
        "scores": _scores(slides, query, found, known),
        "others": described(found.others),
        "same_patient": described(found.same_patient),
        "same_slide": described(found.same_slide),
    }


def _scores(
    slides: tuple[EmbeddedSlide, ...], query: Query, found: Found, known: Known
) -> list[dict[str, Any]]:
    """Return of each score: hits and their patients, and the other patients that were searched.

    A patient whose slides have different scores counts under each of them.
    """

    def score(slide: EmbeddedSlide) -> str | None:
        return known.slides.get((slide.cohort, slide.slide_id), (None, None, None))[0]

    own = slides[query.slide].patient_id
    there = {
        (score(one), one.patient_id)
        for number, one in enumerate(slides)
        if one.patient_id != own and number not in found.searched.skipped
    }
    hits = [slides[hit.slide] for hit in found.others]
    tiles = Counter(score(one) for one in hits)
    patients = Counter(name for name, _ in {(score(one), one.patient_id) for one in hits})
    of_patients = Counter(name for name, _ in there)
    return [
        {
            "score": name,
            "tiles": tiles[name],
            "patients": patients[name],
            "of_patients": of_patients[name],
        }
        for name in (*known.scores, None)
        if of_patients[name]
    ]


def _hit(
    viewer: Viewer, slide: EmbeddedSlide, hit: Hit, encoder: str, model: str | None, known: Known
) -> dict[str, Any]:
    """Return a hit: whose it is, its score, and where it is, if its features say so."""
    score, truth, predicted = known.slides.get((slide.cohort, slide.slide_id), (None, None, None))
    own = slide_address(slide.cohort, slide.slide_id)
    box = box_of(slide, hit.tile)
    address = {"model": model, "tile": hit.tile}
    if box is not None:
        centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        address |= {"x": round(centre[0]), "y": round(centre[1]), "z": 0}
    asked_for = urlencode({name: value for name, value in address.items() if value is not None})
    row = viewer.run.cohort(slide.cohort).rows.get(slide.slide_id)
    return {
        "cohort": slide.cohort,
        "slide_id": slide.slide_id,
        "patient_id": slide.patient_id,
        "tile": hit.tile,
        "similarity": round(hit.similarity, 6),
        "score": score,
        "truth": truth,
        "predicted": predicted,
        "box_px": box,
        "address": None if row is None else f"{own}?{asked_for}",
        "picture": f"{own}/tiles/{quote(encoder, safe='')}/{hit.tile}.png"
        if box is not None and row is not None and row.path
        else None,
    }


def box_of(slide: EmbeddedSlide, tile: int) -> list[float] | None:
    """Return left, top, right and bottom of a tile, level-0 px.

    None where features from elsewhere do not say so, or cannot be read any more.
    """
    try:
        store = slide.open()
        if not places_known(store.attributes):
            return None
        width, height = store.attributes["slide"]["level0_tile"]
        x, y = read_coords(store.path)[tile].tolist()
        if not (0 < width < math.inf and 0 < height < math.inf):
            return None
    except (UserError, KeyError, IndexError, TypeError, ValueError):
        return None
    return [x, y, x + width, y + height]


ROUTES = (
    Route("/api/slides/{cohort}/{slide}/similar", find_similar, methods=["GET"]),
    Route("/api/slides/{cohort}/{slide}/similar", begin_search, methods=["POST"]),
    Route("/api/similar/{number}", show_search, methods=["GET"]),
    Route("/api/similar/{number}", cancel_search, methods=["DELETE"]),
)
