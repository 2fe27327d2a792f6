"""Features of other programs: what one of their files says, and what a form of files declares."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from her2.core.types import Floats
from her2.exchange.content import Array, Content, Stated

Level = Literal["tile", "slide"]
"""What a row of features describes: a tile, or the whole slide."""

Unit = Literal["level0_px", "um"]
"""In what a file states coordinates and the side of its tiles."""


@dataclass(frozen=True, slots=True)
class Given:
    """A feature file of another program, before its rows are read.

    Attributes:
        path: the file.
        form: name of its form, such as `trident`.
        level: `tile`: a row is a tile; `slide`: the only row is the whole slide.
        rows: number of rows; 0 where the program found no tissue.
        dimension: values in a row; 0 where a file without rows does not tell.
        dtype: type of the values, float16, float32 or float64.
        coords: (n, 2) top left corners (x, y) of the tiles in `unit`, which need not be as many
            as the rows (`check_given` tells); None where the file has none.
        unit: of `coords` and `tile`.
        tile: side of a tile in `unit`; None where the file does not tell.
        tile_px: side of a tile in px as the encoder saw it; None where the file does not tell.
        size_px: level-0 (width, height) of the slide; None where the file does not tell.
        stated: what the file says of its slide, encoder, program and version.
        blocks: a function that reads the features anew, in the order of the file, as blocks of
            rows (k, dimension) in `dtype`. It raises a SlideError where the file is damaged.
    """

    path: Path
    form: str
    level: Level
    rows: int
    dimension: int
    dtype: np.dtype[Any]
    coords: Floats | None
    unit: Unit
    tile: float | None
    tile_px: int | None
    size_px: tuple[int, int] | None
    stated: Mapping[str, Stated]
    blocks: Callable[[], Iterator[NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Form:
    """A form of feature files, which a module of `her2.exchange.forms` declares.

    Attributes:
        name: what users write under `format`; that of the module, with dashes.
        words: what wrote it and what is in it, for lists and errors.
        suffixes: in lower case, of the files to look for in a folder.
        recognise: tells whether a content is of this form, by the names, shapes and attributes in
            it. No content is of two forms.
        read: what a content says, which need not have been recognised (a user may name the form).
            It raises a ValueError that says what is wrong, without the name of the file.
    """

    name: str
    words: str
    suffixes: tuple[str, ...]
    recognise: Callable[[Content], bool]
    read: Callable[[Content], Given]


def described(
    content: Content,
    form: str,
    features: Array,
    *,
    level: Level = "tile",
    coords: Floats | None = None,
    unit: Unit = "level0_px",
    tile: float | None = None,
    tile_px: float | None = None,
    size_px: tuple[float | None, float | None] = (None, None),
    stated: Mapping[str, Stated],
) -> Given:
    """Return what a file of features says, with what all forms have in common checked.

    Numbers that no tile or slide can have (zero, negative) count as not told.

    Raises:
        ValueError: the features are no table of floating-point numbers, or not one row where that
            is to describe the slide.
    """
    rows, dimension = features.table()
    if features.dtype.kind != "f":
        raise ValueError(f"{features.title} is {features.dtype}, not float16, float32 or float64")
    if level == "slide" and rows > 1:
        raise ValueError(f"{features.title} has {rows:,} rows, not the one of a slide")
    width, height = (_whole(one) for one in size_px)
    return Given(
        path=content.path,
        form=form,
        level=level,
        rows=rows,
        dimension=dimension,
        dtype=features.dtype,
        coords=coords,
        unit=unit,
        tile=tile if tile is not None and math.isfinite(tile) and tile > 0 else None,
        tile_px=_whole(tile_px),
        size_px=None if width is None or height is None else (width, height),
        stated=stated,
        blocks=features.blocks,
    )


def number(stated: Mapping[str, Stated], *names: str) -> float | None:
    """Return the first of these attributes that is a number, else None."""
    for name in names:
        value = stated.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
    return None


def _whole(value: float | None) -> int | None:
    return int(value) if value is not None and value >= 1 and value == int(value) else None
