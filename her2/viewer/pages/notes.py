"""`her2 view`: notes as JSON, what is sent to change them, and the files as downloads."""

import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import IO, Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from her2.config import Config
from her2.core.errors import SlideError, UserError
from her2.core.section import is_name
from her2.core.spelling import has_controls
from her2.report.format import without_folders
from her2.viewer.bodies import read_object
from her2.viewer.notes.features import Draft, NotedSlide
from her2.viewer.notes.outlines import OutlineRefusedError, check_outline
from her2.viewer.notes.store import ChangedNoteError, Notes
from her2.viewer.run import NotThereError
from her2.viewer.state import Asked, asked, viewer_of, words_of

_MOST_BYTES = 256 << 10
_CLASS_LENGTH, _REMARK_LENGTH = 100, 4000
_PIECE = 1 << 20
NOT_HERE = "not-here.txt"
"""In the zip of all notes: which files are damaged, and why."""


def show_notes(request: Request) -> Response:
    """Return the notes of a slide, or why its file cannot be read."""
    one, notes = asked(request), _notes(request)
    slide = noted(one)
    answer: dict[str, Any] = {
        "file": str(notes.path(slide.cohort, slide.slide_id)),
        "origin": slide.origin,
        "corner_px": slide.corner_px,
        "caution": caution(one, slide),
        "classes": list(dict.fromkeys([*_classes(one.viewer.run.config), *notes.classes()])),
    }
    try:
        found, others = notes.listed(slide)
    except UserError as error:
        return JSONResponse({**answer, "problem": words_of(error), "notes": [], "others": 0})
    return JSONResponse(
        {**answer, "notes": [note.answer() for note in found], "others": others, "problem": None}
    )


async def add_note(request: Request) -> Response:
    """Write a new note."""
    given = await read_object(request, most_bytes=_MOST_BYTES)

    def add() -> Response:
        one = asked(request)
        draft = _draft(given, one)
        if draft.ring is None:
            raise HTTPException(400, "A note needs an outline.")
        return JSONResponse(_notes(request).add(noted(one), draft).answer(), 201)

    return await run_in_threadpool(add)


async def change_note(request: Request) -> Response:
    """Change a note, or bring back the one that was deleted."""
    given = await read_object(request, most_bytes=_MOST_BYTES)

    def change() -> Response:
        one, notes, name = asked(request), _notes(request), request.path_params["note"]
        slide = noted(one)
        if given.get("restore") is True:
            return JSONResponse(notes.restore(slide, name).answer())
        draft = _draft(given, one)
        try:
            return JSONResponse(notes.change(slide, name, _revision(given), draft).answer())
        except ChangedNoteError as error:
            return _conflict(error)

    return await run_in_threadpool(change)


async def delete_note(request: Request) -> Response:
    """Delete a note."""
    given = await read_object(request, most_bytes=_MOST_BYTES)

    def delete() -> Response:
        name = request.path_params["note"]
        try:
            _notes(request).delete(noted(asked(request)), name, _revision(given))
        except ChangedNoteError as error:
            return _conflict(error)
        return JSONResponse({"deleted": name})

    return await run_in_threadpool(delete)


def _conflict(error: ChangedNoteError) -> Response:
    now = None if error.now is None else error.now.answer()
    return JSONResponse({"error": words_of(error), "now": now}, 409)


def download_notes(request: Request) -> Response:
    """Return the file of a slide's notes as it is."""
    one = asked(request)
    content = _notes(request).content(one.cohort.key, one.slide_id)
    if content is None:
        raise NotThereError(f"{one.slide_id}: has no notes yet.")
    headers = _saved_as(f"{one.slide_id}.geojson")
    return Response(content, media_type="application/geo+json", headers=headers)


def download_all(request: Request) -> Response:
    """Return the notes of all slides of the run as a zip; a text in it names what is damaged."""
    viewer, notes = viewer_of(request), _notes(request)
    file = tempfile.TemporaryFile()  # noqa: SIM115, the answer closes it
    problems: list[str] = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for cohort in viewer.run.cohorts.values():
            for slide_id in cohort.rows:
                with suppress(NotThereError):
                    path = notes.path(cohort.key, slide_id)
                    try:
                        content = notes.content(cohort.key, slide_id)
                    except UserError as error:
                        problems.append(without_folders(str(error)))
                        continue
                    if content is not None:
                        archive.writestr(str(path.relative_to(notes.folder)), content)
        if problems:
            archive.writestr(NOT_HERE, "\n".join(problems) + "\n")
    file.seek(0)
    return StreamingResponse(
        _pieces(file), media_type="application/zip", headers=_saved_as("notes.zip")
    )


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE):
            yield piece


def _saved_as(name: str) -> dict[str, str]:
    """Return the header of a download (RFC 6266)."""
    given = f'filename="{name}"' if is_name(name) else f"filename*=UTF-8''{quote(name)}"
    return {"Content-Disposition": f"attachment; {given}"}


def _notes(request: Request) -> Notes:
    """Return the notes of this viewer."""
    return viewer_of(request).part(Notes, lambda viewer: Notes(viewer.notes, viewer.run.folder))


def noted(one: Asked) -> NotedSlide:
    """Return what the notes of a slide need to know of it.

    Raises:
        SlideError: annotations count from its scanned area, and its file cannot be opened.
    """
    origin = one.viewer.run.config.tiling.annotation_origin
    corner = (0, 0)
    if origin == "bounds":
        corner = one.open().slide.bounds_corner_px
    return NotedSlide(one.cohort.key, one.slide_id, origin, corner)


def caution(one: Asked, slide: NotedSlide) -> str | None:
    """Return what to mind in QuPath, which crops some slides to their scanned area."""
    try:
        x, y = one.open().slide.bounds_corner_px
    except (SlideError, NotThereError):
        return None
    if slide.origin == "bounds" or (x, y) == (0, 0):
        return None
    return (
        f"QuPath shows this slide from its scanned area on, which begins at {x:,}, {y:,} px: open "
        "it there with --no-crop, or these notes lie elsewhere."
    )


def _size(one: Asked) -> tuple[int, int] | None:
    """Return width and height of a slide in level-0 px, as far as known."""
    try:
        return one.open().size_px
    except (SlideError, NotThereError):
        return None


def _classes(config: Config) -> Iterator[str]:
    """Yield the classes that a run knows: of regions, of tasks, and the labels of these."""
    yield from config.tiling.annotation_classes
    yield from config.cohort.mask_classes
    for task in config.tasks.values():
        yield from task.classes
        for values in task.classes.values():
            yield from values


def _revision(given: Mapping[str, Any]) -> str:
    return str(given.get("revision", ""))


def _draft(given: Mapping[str, Any], one: Asked) -> Draft:
    """Return what was sent as a draft.

    Raises:
        HTTPException: a part of it is not what it should be; says which, and what to do.
    """
    class_name = _text(given, "class", _CLASS_LENGTH).strip()
    if not class_name or has_controls(class_name):
        raise HTTPException(400, "Give a class, in one line, so that the note can be found by it.")
    ring = None
    if (outline := given.get("outline")) is not None:
        try:
            ring = check_outline(outline, _size(one))
        except OutlineRefusedError as error:
            raise HTTPException(400, str(error)) from None
    tile = None
    if (named := given.get("tile")) is not None:
        if not isinstance(named, dict) or type(named.get("index")) is not int:
            raise HTTPException(400, "A tile has an encoder and an index.")
        if named.get("encoder") not in list(one.viewer.run.config.encoders):  # may be a list
            raise HTTPException(400, "There is no encoder of that name.")
        tile = named["encoder"], named["index"]
    return Draft(class_name, _text(given, "remark", _REMARK_LENGTH).strip(), ring, tile)


def _text(given: Mapping[str, Any], name: str, most: int) -> str:
    found = given.get(name, "")
    if not isinstance(found, str):
        raise HTTPException(400, f"The {name} is no text.")
    if len(found) > most:
        raise HTTPException(400, f"The {name} has {len(found):,} characters, more than {most:,}.")
    try:
        found.encode()
    except UnicodeEncodeError:
        raise HTTPException(400, f"The {name} has a character that cannot be written.") from None
    return found.replace("\r\n", "\n").replace("\0", "")


ROUTES = (
    Route("/api/slides/{cohort}/{slide}/notes", show_notes, methods=["GET"]),
    Route("/api/slides/{cohort}/{slide}/notes", add_note, methods=["POST"]),
    Route("/api/slides/{cohort}/{slide}/notes/{note:path}", change_note, methods=["PUT"]),
    Route("/api/slides/{cohort}/{slide}/notes/{note:path}", delete_note, methods=["DELETE"]),
    Route("/slides/{cohort}/{slide}/notes.geojson", download_notes),
    Route("/notes.zip", download_all),
)
