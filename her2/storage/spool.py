"""Between the stages: the rows of a feature store while they are computed, in any order."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from her2.core.sharing import make_folder
from her2.storage.features import BLOCK_BYTES

SPOOL_BYTES = 64 << 20
"""Above this size, the rows of a slide are collected on disk instead of in memory."""


class RowSpool:
    """A buffer for the features of a slide (rows, dimension) while they are computed, in any order.

    Small slides stay in memory. Larger ones go to an unnamed file in `folder`, so memory does not
    grow with the slide and a killed job leaves nothing behind. Several threads may put different
    rows at the same time.
    """

    def __init__(
        self, rows: int, dimension: int, dtype: str, folder: Path, *, beside: int = 0
    ) -> None:
        """Make room for the rows; `beside` further spools share the memory of one."""
        self.shape, self.dtype, self.folder = (rows, dimension), np.dtype(dtype), folder
        self._row_bytes = dimension * self.dtype.itemsize
        self._memory: NDArray[Any] | None = None
        self._file: IO[bytes] | None = None
        if rows * self._row_bytes * (1 + beside) <= SPOOL_BYTES:
            self._memory = np.zeros(self.shape, self.dtype)
        else:
            make_folder(folder)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 closed below

    def put(self, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Store `values` (len(rows), d) as these rows.

        Raises:
            OSError: the disk is full.
        """
        if self._memory is not None:
            self._memory[rows] = values
            return
        assert self._file is not None
        values = np.ascontiguousarray(values, self.dtype)
        ends = np.flatnonzero(np.diff(rows) != 1) + 1
        for first, part in zip(
            rows[np.concatenate([[0], ends])], np.split(values, ends), strict=True
        ):
            view = memoryview(part.tobytes())
            place = int(first) * self._row_bytes
            while view:  # a write may be partial at a limit, and the next one raises
                written = os.pwrite(self._file.fileno(), view, place)
                view, place = view[written:], place + written

    def blocks(self, kept: NDArray[np.bool_]) -> Iterator[NDArray[Any]]:
        """Yield the rows where `kept` (n,) is True, in order, in blocks of a few MiB."""
        step = max(1, BLOCK_BYTES // self._row_bytes)
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            if self._memory is not None:
                block = self._memory[start:stop]
            else:
                assert self._file is not None
                size, place = (stop - start) * self._row_bytes, start * self._row_bytes
                # Rows beyond the end of the file were never put, so they are not kept.
                content = os.pread(self._file.fileno(), size, place).ljust(size, b"\0")
                block = np.frombuffer(content, self.dtype).reshape(-1, self.shape[1])
            yield block[kept[start:stop]]

    def close(self) -> None:
        self._memory = None
        if self._file is not None:
            self._file.close()
