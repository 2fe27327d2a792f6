"""`her2 view`: the page of all slides, and their table."""

import gzip
import json
import threading
from collections import OrderedDict

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from her2.viewer.cohort_table import cohort_table
from her2.viewer.run import ViewedRun
from her2.viewer.state import page, viewer_of

_KEPT = 8
"""Number of tables in memory, each for a model; one of 20,000 slides has 2 MB."""
_FIRST = threading.Lock()


def show_cohort(request: Request) -> Response:
    """Return the page, whose script asks for the slides."""
    return page(request, "cohort.html.j2", title="Cohort")


def cohort_answer(request: Request) -> Response:
    """Return all slides with the predictions of a model, by default the first, as JSON.

    Raises:
        NotThereError: there is no such model.
    """
    run = viewer_of(request).run
    key = request.query_params.get("model") or next(iter(run.models), None)
    content = _tables(request).of(run, key)
    headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        content, headers = gzip.decompress(content), {}
    return Response(content, media_type="application/json", headers=headers)


def _tables(request: Request) -> "Tables":
    """Return the tables of the application, which begins without any."""
    state = request.app.state
    with _FIRST:
        if not hasattr(state, "cohort_tables"):
            state.cohort_tables = Tables()
    tables = state.cohort_tables
    assert isinstance(tables, Tables)
    return tables


class Tables:
    """The latest tables of slides as compressed JSON, one for each model. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str | None, bytes] = OrderedDict()

    def of(self, run: ViewedRun, key: str | None) -> bytes:
        """Return the table of a model, made now or before; see `cohort_table`."""
        with self._lock:  # two pages that ask at once cost one table
            if key not in self._kept:
                self._kept[key] = as_json(cohort_table(run, key))
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]


def as_json(table: object) -> bytes:
    """Return compressed JSON; a number that is none is an error, as JSON has no word for it."""
    text = json.dumps(table, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return gzip.compress(text.encode("utf-8", "surrogatepass"), compresslevel=4)


ROUTES = (Route("/", show_cohort), Route("/api/cohort", cohort_answer))
