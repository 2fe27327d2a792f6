"""`her2 view`: what the modules of the viewer share while it runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.templating import Jinja2Templates

from her2.report.format import without_folders
from her2.storage.cache import Cache
from her2.viewer.open_slides import Slides
from her2.viewer.run import ViewedCohort, ViewedRun
from her2.viewer.zoom import OpenSlide

_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class Viewer:
    """A run that is looked at: its cache, the slides that are open, and the folder of notes.

    `parts` is what modules keep in memory while it runs, see `part`.
    """

    run: ViewedRun
    cache: Cache
    slides: Slides
    notes: Path
    parts: dict[type, Any] = field(default_factory=dict, compare=False, repr=False)

    def part(self, kind: type[_Part], make: "Callable[[Viewer], _Part] | None" = None) -> _Part:
        """Return the one `kind` of this viewer, made when it is first asked for.

        Args:
            kind: a class.
            make: makes it of the viewer; None: `kind` takes no arguments.
        """
        if kind not in self.parts:  # one wins, whichever thread asks
            self.parts.setdefault(kind, kind() if make is None else make(self))
        found: _Part = self.parts[kind]
        return found


@dataclass(frozen=True, slots=True)
class Asked:
    """The slide that a request names in its path, as `/.../{cohort}/{slide}/...`."""

    viewer: Viewer
    cohort: ViewedCohort
    slide_id: str

    @property
    def file(self) -> Path:
        """Return the path of its file, see `ViewedCohort.file`."""
        return self.cohort.file(self.slide_id)

    def open(self) -> OpenSlide:
        """Return the open slide.

        Raises:
            NotThereError: there is none of that name, or no file.
            SlideError: its file cannot be opened.
        """
        return self.viewer.slides.open(self.file, self.cohort.row(self.slide_id).mpp)


def slide_address(cohort: str, slide_id: str, begin: str = "") -> str:
    """Return what the addresses of a slide begin with; `begin` is `/api` for those of JSON."""
    return f"{begin}/slides/{quote(cohort, safe='')}/{quote(slide_id, safe='')}"


def words_of(error: Exception | str) -> str:
    """Return what an error says, without folders of the machine, which no answer has."""
    return without_folders(str(error))


def viewer_of(request: Request) -> Viewer:
    """Return the viewer that answers a request."""
    found = request.app.state.viewer
    assert isinstance(found, Viewer)
    return found


def page(request: Request, template: str, *, status_code: int = 200, **data: object) -> Response:
    """Return a page of `templates`; everything in `data` is escaped."""
    templates = request.app.state.templates
    assert isinstance(templates, Jinja2Templates)
    run = viewer_of(request).run
    context = {"heading": run.config.report.title, "synthetic": run.config.cohort.synthetic, **data}
    return templates.TemplateResponse(request, template, context, status_code=status_code)


def asked(request: Request) -> Asked:
    """Return the slide that a request names.

    Raises:
        NotThereError: there is no such cohort, or no such slide in it.
    """
    viewer = viewer_of(request)
    cohort = viewer.run.cohort(request.path_params["cohort"])
    slide_id = request.path_params["slide"]
    cohort.row(slide_id)
    return Asked(viewer, cohort, slide_id)
