"""Stage 2, report: pictures on the page, embedded from files or drawn from numbers.

A `Figure` knows how to draw itself and is drawn late, by `draw_figures`, so that collecting the
data of the page needs no plotting library.
"""

import base64
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from her2.core.files import atomic_path, write_json
from her2.core.images import open_image
from her2.core.plot_style import STYLE
from her2.core.reading import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

# Every field that matplotlib fills is blanked, so that no date and no version is written.
_METADATA: Any = {
    "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
    "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer", "ModDate")),
}
_LIST = "figures.json"
_CSS_PX_PER_INCH = 96


@dataclass(frozen=True, slots=True)
class Picture:
    """An image embedded in the page; `alt` describes it in words. Sizes are in CSS px."""

    uri: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure to be drawn from numbers, by `paint` on an empty canvas of `size_in` inches.

    `name` is that of its files, without suffix; no two figures of a page share one. `alt` describes
    what it shows.
    """

    name: str
    alt: str
    size_in: tuple[float, float]
    paint: "Callable[[Canvas], None]"

    @property
    def width(self) -> int:
        """Return the width in CSS px."""
        return round(self.size_in[0] * _CSS_PX_PER_INCH)

    @property
    def height(self) -> int:
        """Return the height in CSS px."""
        return round(self.size_in[1] * _CSS_PX_PER_INCH)


def draw_figure(figure: Figure) -> dict[str, bytes]:
    """Draw a figure as `svg` and `pdf`; equal numbers give equal bytes."""
    import matplotlib as mpl
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    svg, pdf = io.BytesIO(), io.BytesIO()
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=figure.size_in, layout="constrained")
        figure.paint(canvas)
        # `savefig` would draw each file twice. These methods have no type hints.
        printer: Any = FigureCanvasSVG(canvas)
        printer.print_svg(svg, metadata=_METADATA["svg"])
        # Finding the places of everything takes as long as drawing it; the second file keeps them.
        canvas.set_layout_engine("none")
        printer = FigureCanvasPdf(canvas)
        printer.print_pdf(pdf, metadata=_METADATA["pdf"])
    return {"svg": svg.getvalue(), "pdf": pdf.getvalue()}


def draw_figures(shown: Any, folder: Path) -> dict[str, str]:
    """Draw every figure of the page as `{name}.svg` and `{name}.pdf`; return name -> data URI.

    Files that an earlier report wrote (listed in `figures.json`) and this one does not have are
    removed. `shown` are nested mappings, sequences and dataclasses.
    """
    uris: dict[str, str] = {}
    written = set()
    for figure in _figures(shown):
        drawn = draw_figure(figure)
        uris[figure.name] = _uri("image/svg+xml", drawn["svg"])
        for suffix, content in drawn.items():
            written.add(f"{figure.name}.{suffix}")
            with atomic_path(folder / f"{figure.name}.{suffix}") as path:
                path.write_bytes(content)
    listed = folder / _LIST
    for name in read_json(listed) if listed.exists() else ():
        if name not in written and Path(name).name == name:
            (folder / name).unlink(missing_ok=True)
    write_json(listed, sorted(written))
    return uris


def jpeg(path: Path, *, side_px: tuple[int, int], quality: int, alt: str) -> Picture:
    """Shrink a picture so that it fits into `side_px` (width, height).

    Raises:
        OSError: the picture cannot be read.
    """
    with open_image(path) as image:
        small = image.convert("RGB")
        small.thumbnail(side_px, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality, optimize=True)
    return Picture(_uri("image/jpeg", buffer.getvalue()), alt, small.width, small.height)


def file_name(model: str, kind: str) -> str:
    """Return `score.uni2.abmil.roc`, a file name without slashes and spaces."""
    return f"{model.replace(' / ', '.')}.{kind}"


def _figures(shown: Any) -> Iterator[Figure]:
    """Yield the figures in nested mappings, sequences and dataclasses."""
    if isinstance(shown, Figure):
        yield shown
    elif isinstance(shown, Mapping):
        for value in shown.values():
            yield from _figures(value)
    elif isinstance(shown, list | tuple):
        for value in shown:
            yield from _figures(value)
    elif dataclasses.is_dataclass(shown):
        for field in dataclasses.fields(shown):
            yield from _figures(getattr(shown, field.name))


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
