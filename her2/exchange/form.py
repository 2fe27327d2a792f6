"""Features of other programs: what one of their files says, and what a form of files declares."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from her2.core.types import Floats

Level = Literal["tile", "slide"]
"""What a row of features describes: a tile, or the whole slide."""

Unit = Literal["level0_px", "um"]
"""In what a file states coordinates and the side of its tiles."""

Stated = str | int | float | bool
"""A value that a file states of itself."""


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
