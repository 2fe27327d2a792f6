"""`her2 view`: the application: the routes of all modules, and errors as answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import xstatic.pkg.leaflet
from polars.exceptions import PolarsError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates
from starlette.types import Receive, Scope, Send

from her2.core.errors import SlideError, TileError, UserError, first_line
from her2.viewer.pages import all_routes
from her2.viewer.run import NotThereError
from her2.viewer.state import Viewer, page, words_of

_FOLDER = Path(__file__).parent


def make_app(viewer: Viewer) -> Starlette:
    """Return the application for a run, without the guard, see `her2.viewer.guard`."""
    app = Starlette(
        routes=[
            *all_routes(),
            Route("/favicon.ico", _no_icon),  # asked for while a page has not said that it has none
            Mount("/static", _Files(directory=_FOLDER / "static")),
            Mount("/leaflet", _Files(directory=xstatic.pkg.leaflet.BASE_DIR)),
        ],
        middleware=[Middleware(_Compressed, minimum_size=4096, compresslevel=4)],
        exception_handlers={
            HTTPException: _http_problem,
            NotThereError: _problem(404),
            SlideError: _problem(409),
            TileError: _problem(409),
            UserError: _problem(409),
            PolarsError: _strange,
            Exception: _our_problem,
        },
    )
    app.router.redirect_slashes = False
    app.state.viewer = viewer
    app.state.templates = Jinja2Templates(
        env=jinja2.Environment(
            loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
    )
    return app


class _Files(StaticFiles):
    """Scripts and styles: a browser keeps them and asks whether they are still the same.

    Another version may listen on the same port tomorrow.
    """

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        answer = super().file_response(*arguments, **options)
        answer.headers["Cache-Control"] = "private, no-cache"
        return answer


class _Compressed(GZipMiddleware):
    """Compress tables and scripts; pictures are compressed already."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(("/api/", "/static/", "/leaflet/")):
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _no_icon(request: Request) -> Response:
    return Response(status_code=204)


def _problem(status: int) -> Callable[[Request, Exception], Response]:
    def answer(request: Request, error: Exception) -> Response:
        return _answer(request, status, str(error))

    return answer


def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(request, error.status_code, error.detail)


def _strange(request: Request, error: Exception) -> Response:
    """Say that a table of the results has other columns or values than a run writes."""
    return _answer(
        request, 409, f"A table of the results is not as a run writes it: {first_line(error)}"
    )


def _our_problem(request: Request, error: Exception) -> Response:
    """Say that the server has an error; starlette passes it on to the log."""
    del error
    return _answer(request, 500, "The program has an error; its terminal shows where.")


def _answer(request: Request, status: int, words: str) -> Response:
    """Return an error as JSON to scripts, and as a page to people."""
    words = words_of(words)
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": words}, status_code=status)
    return page(request, "error.html.j2", status_code=status, title=str(status), words=words)
