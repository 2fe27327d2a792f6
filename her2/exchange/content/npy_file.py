"""Feature files of other programs: the array of an npy file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2.core.errors import first_line
from her2.exchange.content import Array, Content, row_blocks


def read_npy(path: Path) -> Content:
    """Look at the array of an npy file.

    Raises:
        ValueError: it holds objects, which only code could restore, or fewer values than declared.
    """
    array = _map(path)
    return Content(
        path,
        "npy",
        {"": Array("", array.shape, array.dtype.newbyteorder("="), {}, lambda: _blocks(path))},
        {},
        {},
    )


def _map(path: Path) -> NDArray[Any]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises several types on a damaged header
        if "allow_pickle" in str(error) or "Python object" in str(error):
            raise ValueError(
                "it holds Python objects, and code is never run; save an array of numbers"
            ) from None
        raise ValueError(
            f"it is no npy file that can be read ({first_line(error)}); copy it again"
        ) from None
    return np.asarray(found)


def _blocks(path: Path) -> Iterator[NDArray[Any]]:
    array = _map(path)
    table = array[None] if array.ndim == 1 else array
    while table.ndim > 2 and table.shape[0] == 1:
        table = table[0]
    if table.ndim != 2:
        raise ValueError(f"its array has shape {array.shape}, not (rows, values)")
    for start, stop in row_blocks(len(table), table.shape[1], table.dtype.itemsize):
        yield np.array(table[start:stop], table.dtype.newbyteorder("="))
