"""Feature files of other programs, which are not trusted: the arrays in one, of whatever form.

`open_content` finds the kind of a file by its first bytes, and what it declares is compared with
what it holds before it is read. Nothing in a file is run, and no other file is opened for it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from her2.core.types import Floats

Kind = Literal["HDF5", "torch", "npy"]

Stated = str | int | float | bool
"""A value that a file states of itself."""

FILE_BYTES = 256 << 30
"""Largest file that is read; 300,000 tiles of 2,560 values take 3 GB."""
ROWS = 5_000_000
"""Most rows of a slide: 20x tiles of 64 px of the largest slides."""
DIMENSION = 65_536
"""Most values in a row; the widest published encoders have 5,120."""
BLOCK_BYTES = 16 << 20
"""Rows that are read at once take about this much memory."""


@dataclass(frozen=True, slots=True)
class Array:
    """An array of a file, before its values are read.

    Attributes:
        name: in the file; "" where it has only one.
        shape: as the file declares it.
        dtype: of the values as `blocks` yields them.
        stated: its attributes that are one text or number.
        blocks: a function that reads the array anew: blocks of rows (k, columns), in the order of
            the file, of the array without leading axes of length 1, (d,) as one row. It raises a
            ValueError, or any error of the library, where the file is damaged.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stated: Mapping[str, Stated]
    blocks: Callable[[], Iterator[NDArray[Any]]]

    @property
    def title(self) -> str:
        """The array as errors call it."""
        return self.name or "its array"

    def table(self) -> tuple[int, int]:
        """Return the shape as (rows, columns): (n, d), (1, n, d), (d,) as one row, (0,) as none.

        Raises:
            ValueError: it has another shape, or is larger than features become.
        """
        shape = self.shape[1:] if len(self.shape) == 3 and self.shape[0] == 1 else self.shape
        if len(shape) == 1:
            shape = (1, *shape) if shape[0] else (0, 0)
        if len(shape) != 2:
            raise ValueError(f"{self.title} has shape {self.shape}, not (rows, values)")
        rows, columns = shape
        if rows > ROWS or columns > DIMENSION:
            raise ValueError(
                f"{self.title} declares {rows:,} rows of {columns:,} values, more than "
                f"{ROWS:,} of {DIMENSION:,}"
            )
        return rows, columns

    def is_vector(self) -> bool:
        """Return whether it is one row, by its shape: (d,) or (1, d)."""
        return (len(self.shape) == 1 and self.shape[0] > 0) or (
            len(self.shape) == 2 and self.shape[0] == 1
        )

    def pairs(self) -> Floats:
        """Read the array as coordinates: (n, 2).

        Raises:
            ValueError: it has another shape, or holds no numbers.
        """
        rows, columns = self.table()
        if columns != 2 and rows:
            raise ValueError(f"{self.title} has shape {self.shape}, not (n, 2)")
        if self.dtype.kind not in "iuf":
            raise ValueError(f"{self.title} is {self.dtype}, not numbers")
        found = [block.astype(np.float64) for block in self.blocks()]
        return np.concatenate([np.empty((0, 2)), *found])


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a file.

    Attributes:
        path: the file.
        kind: what reads it.
        arrays: name -> array; the only one of a torch or npy file is called "".
        refused: name -> why it is no array that is read.
        stated: the attributes of the file itself that are one text or number.
    """

    path: Path
    kind: Kind
    arrays: Mapping[str, Array]
    refused: Mapping[str, str]
    stated: Mapping[str, Stated]

    def has(self, *names: str) -> bool:
        """Return whether the file has all of these names, readable or not."""
        return all(name in self.arrays or name in self.refused for name in names)

    def array(self, name: str) -> Array:
        """Return an array.

        Raises:
            ValueError: there is none of this name, or it is not to be read.
        """
        if name in self.refused:
            raise ValueError(self.refused[name])
        if name not in self.arrays:
            raise ValueError(f"it has no {name or 'array of one type'}; it has {self.words()}")
        return self.arrays[name]

    def words(self) -> str:
        """Return what is in the file, for an error."""
        found = [
            f"{array.title} {array.dtype} {array.shape}".removeprefix("its array ")
            for array in self.arrays.values()
        ]
        found += list(self.refused.values())
        return f"{self.kind} with {'; '.join(found[:6]) or 'no arrays'}"


def row_blocks(
    rows: int, columns: int, itemsize: int, *, at_least: int = 1
) -> Iterator[tuple[int, int]]:
    """Yield the first row, and that after the last, of each block to read at once."""
    step = max(at_least, BLOCK_BYTES // max(1, columns * itemsize), 1)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)
