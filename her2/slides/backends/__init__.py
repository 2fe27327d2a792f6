"""Slide readers, one module each; see `her2.slides.backend` for their interface.

They are found by listing this package, and imported when the first slide is opened.
"""

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import cast

from her2.core.errors import SlideError
from her2.slides.backend import Backend, OpenedSlide, UnreadableSlide

_SINGLE_FILE_SUFFIXES = frozenset(
    (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".svslide", ".png", ".jpg", ".jpeg")
)


def backends() -> list[Backend]:
    """Return the readers in the order in which they are tried."""
    names = (item.name for item in pkgutil.iter_modules(__path__))
    found = [cast(Backend, import_module(f"{__name__}.{name}")) for name in names]
    return sorted(found, key=lambda backend: (backend.ORDER, backend.NAME))


def slide_files(path: Path) -> list[Path]:
    """Return all files of a slide, `path` among them, in an order that depends on the slide only.

    Raises:
        SlideError: files of the slide are absent or cannot be determined.
        OSError: a file cannot be read.
    """
    for backend in backends():
        found = backend.files(path)
        if found is not None:
            return found
    return [path]


def planned_files(path: Path) -> list[Path]:
    """Return the files of a slide for planning, which happens for every slide at every start.

    Files with the suffix of a single-file format are not read, since that takes minutes for
    thousands of slides on a network disk. Problems are left to the job that tiles the slide.
    """
    if path.suffix.lower() in _SINGLE_FILE_SUFFIXES:
        return [path]
    try:
        return slide_files(path)
    except (OSError, SlideError):
        return [path]


def open_slide(path: Path) -> OpenedSlide:
    """Open a slide with the first backend that reads its format.

    Raises:
        SlideError: there is no such backend, or the file is too damaged.
    """
    asked = backends()
    detail = ""
    try:
        for backend in asked:
            found = backend.open_slide(path)
            if found is not None:
                return found
    except FileNotFoundError:
        raise SlideError("the file does not exist") from None
    except (UnreadableSlide, OSError) as error:
        detail = f" ({error})"
    *first, last = (backend.NAME for backend in asked)
    raise SlideError(
        f"not a slide that {', '.join(first)} or {last} can open, or truncated; compare it with "
        f"the original and copy it again{detail}"
    )
