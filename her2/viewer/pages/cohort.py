"""`her2 view`: the page of all slides, and their table."""

import contextlib
import gzip
import json

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from her2.core.errors import UserError
from her2.viewer.cohort.table import cohort_table
from her2.viewer.kept import Kept
from her2.viewer.run import ViewedRun
from her2.viewer.state import Viewer, page, viewer_of

_TABLES = 8
"""Number of tables in memory, each of a model; one of 20,000 slides has 1 MB."""
_GZIP = {"Content-Encoding": "gzip"}


class Tables:
    """The latest tables of slides as compressed JSON, one for each model. Thread-safe."""

    def __init__(self) -> None:
        self._made: Kept[bytes] = Kept(_TABLES)

    def of(self, run: ViewedRun, key: str | None) -> bytes:
        """Return the table of a model, made now or before; see `cohort_table`."""
        return self._made.get(key, lambda: as_json(cohort_table(run, key)))


def as_json(table: object) -> bytes:
    """Return compressed JSON.

    Raises:
        UserError: a number is none, which no run writes, and for which JSON has no word.
    """
    try:
        text = json.dumps(table, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        raise UserError(
            "A table of the results has a probability that is no number; run snakemake again."
        ) from None
    return gzip.compress(text.encode(), compresslevel=4)


def show_cohort(request: Request) -> Response:
    """Return the page, whose script asks for the slides; they are read while the page loads."""
    answer = page(request, "cohort.html.j2", title="All slides")
    viewer, key = viewer_of(request), _wanted(request)
    if key is None or key in viewer.run.models:
        answer.background = BackgroundTask(_read_ahead, viewer, key)
    return answer


def slides(request: Request) -> Response:
    """Return all slides with the predictions of a model, by default the first, as JSON.

    Raises:
        NotThereError: there is no such model.
        UserError: a table is damaged.
    """
    viewer = viewer_of(request)
    content, headers = viewer.part(Tables).of(viewer.run, _wanted(request)), _GZIP
    if "gzip" not in request.headers.get("accept-encoding", ""):
        content, headers = gzip.decompress(content), {}
    return Response(content, media_type="application/json", headers=headers)


def _wanted(request: Request) -> str | None:
    """Return the key of the model that a request asks for; None where there is no model yet."""
    first = next(iter(viewer_of(request).run.models), None)
    return request.query_params.get("model") or first


def _read_ahead(viewer: Viewer, key: str | None) -> None:
    with contextlib.suppress(UserError):  # the page is told when it asks
        viewer.part(Tables).of(viewer.run, key)


ROUTES = (Route("/", show_cohort), Route("/api/cohort", slides))
