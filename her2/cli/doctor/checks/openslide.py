"""`her2 doctor`: OpenSlide, and the other readers of slides."""

from collections.abc import Iterator

from her2.cli.doctor.base import Check, Finding, Situation
from her2.core.errors import first_line


def find(_: Situation) -> Iterator[Finding]:
    """Yield the version of its library, or why that cannot be loaded."""
    try:
        import openslide
    except (ImportError, OSError) as error:
        yield Finding(
            "bad",
            f"OpenSlide cannot be loaded ({first_line(error)})",
            "pip install openslide-bin, or install the system's libopenslide",
        )
        return
    yield Finding(
        "ok", f"{openslide.__library_version__} (openslide-python {openslide.__version__})"
    )


CHECK = Check("OpenSlide", 40, find)
