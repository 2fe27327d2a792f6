"""Slide readers, one module each; see `her2.slides.backend` for what such a module says.

They are found by listing this package, and imported when the first slide is asked for.
"""

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import cast

from her2.core.errors import SlideError
from her2.slides.backend import Backend, OpenedSlide, UnreadableSlide


def backends() -> list[Backend]:
    """Return the readers in the order in which they are asked."""
    names = (item.name for item in pkgutil.iter_modules(__path__))
    found = [cast(Backend, import_module(f"{__name__}.{name}")) for name in names]
    return sorted(found, key=lambda backend: (backend.ORDER, backend.NAME))


def slide_files(path: Path) -> list[Path]:
    """Return all files of a slide, `path` among them, in an order that is the slide's own.

    Raises:
        SlideError: files of the slide are absent or cannot be known.
        OSError: a file cannot be read.
    """
    for backend in backends():
        found = backend.files(path)
        if found is not None:
            return found
    return [path]


def open_slide(path: Path) -> OpenedSlide:
    """Open a slide by the first backend that knows its content.

    Raises:
        SlideError: none does, or the file is too damaged.
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
        f"not a slide that {', '.join(first)} or {last} can open, or cut off; compare it with the "
        f"original and copy it again{detail}"
    )
