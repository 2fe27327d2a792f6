"""Stage 2, report: pictures as data URIs and figures as files, equal bytes for equal numbers."""

import base64
import dataclasses
import io
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Canvas
from PIL import Image

from her2.core.files import atomic_path, write_json

log = logging.getLogger(__name__)

# All of them, so that no date and no version is written.
_SVG_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_PDF_METADATA = dict.fromkeys(("CreationDate", "Creator", "Producer", "ModDate"))
_LIST = "figures.json"


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture on the page; `alt` says in words what it shows. Sizes are CSS px.

    A figure that was drawn from numbers also has a `name`, of its files, and their content.
    """

    uri: str
    alt: str
    width: int
    height: int
    name: str = ""
    svg: bytes = b""
    pdf: bytes = b""


def vector(canvas: Canvas, alt: str, name: str) -> Figure:
    """A drawn figure, for the page (SVG) and as files (SVG, PDF)."""
    svg, pdf = io.BytesIO(), io.BytesIO()
    canvas.savefig(svg, format="svg", metadata=_SVG_METADATA)
    canvas.savefig(pdf, format="pdf", metadata=_PDF_METADATA)
    width, height = (round(side * 96) for side in canvas.get_size_inches())
    uri = _uri("image/svg+xml", svg.getvalue())
    return Figure(uri, alt, width, height, name, svg.getvalue(), pdf.getvalue())


def jpeg(path: Path, *, side_px: tuple[int, int], quality: int, alt: str) -> Figure:
    """A picture shrunk to fit into `side_px` (width, height).

    Raises:
        OSError: it cannot be read.
    """
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail(side_px, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality, optimize=True)
    return Figure(_uri("image/jpeg", buffer.getvalue()), alt, small.width, small.height)


def write_figures(shown: Any, folder: Path) -> list[str]:
    """Write every drawn figure among what the page shows as `{name}.svg` and `{name}.pdf`.

    Files that an earlier report wrote and this one does not have are removed, by `figures.json`.

    Returns:
        The names of the files.
    """
    contents = {}
    for figure in _figures(shown):
        if figure.name:
            contents[f"{figure.name}.svg"] = figure.svg
            contents[f"{figure.name}.pdf"] = figure.pdf
    listed = folder / _LIST
    for name in json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else ():
        if name not in contents and Path(name).name == name:
            (folder / name).unlink(missing_ok=True)
    for name, content in contents.items():
        with atomic_path(folder / name) as path:
            path.write_bytes(content)
    write_json(listed, sorted(contents))
    return sorted(contents)


def _figures(shown: Any) -> Iterator[Figure]:
    """The figures in nested mappings, sequences and dataclasses."""
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


def title(text: str, synthetic: bool) -> str:
    """A figure's title, that says when its data are synthetic."""
    return f"{text} (synthetic data)" if synthetic else text


def data_words(synthetic: bool) -> str:
    """For the words that stand for a figure."""
    return " on synthetic data" if synthetic else ""


def file_name(model: str, kind: str) -> str:
    """`score.uni2.abmil.roc`: names hold no slash and no space."""
    return f"{model.replace(' / ', '.')}.{kind}"
