"""Raw slides to scores: lines on stderr that say how far a command is, and the time left."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from her2.core.events import Event, hearing
from her2.core.pace import duration, seconds_left

TERMINAL_SECONDS, FILE_SECONDS = 20.0, 300.0
"""Time between two lines on a terminal, and in a log."""
FIRST_SECONDS = 5.0
"""Time after which the first line is printed, when the pace is known."""


class Progress:
    """The progress of a command through its stages, from their events.

    `clock` returns seconds.
    """

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._clock = stream or sys.stderr, clock
        self._every = TERMINAL_SECONDS if self._stream.isatty() else FILE_SECONDS
        self._lock = threading.Lock()
        self._begin("", 0, 0)

    @contextmanager
    def stage(self, name: str, slides: int, tiles: int = 0) -> Iterator[None]:
        """Print how far a stage is while the block runs.

        Args:
            name: what is done, e.g. `embedding`.
            slides: number of slides that the stage goes through.
            tiles: number of tiles, for a stage whose pace is that of tiles.
        """
        self._begin(name, slides, tiles)
        with hearing(self._hear):
            yield

    def say(self, text: str) -> None:
        """Print a line."""
        print(f"her2 predict: {text}", file=self._stream, flush=True)

    def _begin(self, name: str, slides: int, tiles: int) -> None:
        self._name, self._slides, self._tiles = name, slides, tiles
        self._slides_done = self._slides_worked = self._tiles_done = 0
        self._began = self._clock()
        self._next = self._began + min(FIRST_SECONDS, self._every)

    def _hear(self, event: Event) -> None:
        with self._lock:
            if event.kind == "encoded":
                self._tiles_done += event.tiles
            elif event.kind in ("tiled", "embedded", "left_out"):
                self._slides_done += 1
                self._slides_worked += not event.cached
                if event.cached and self._tiles:
                    self._tiles -= event.tiles
            now = self._clock()
            over = self._slides_done == self._slides or (
                self._tiles_done and self._tiles_done == self._tiles
            )
            if now >= self._next and not over:
                self._next = now + self._every
                self.say(self.line(now))

    def line(self, now: float) -> str:
        """Return `embedding: 3 of 20 slides, 1,234 of 60,000 tiles, 8 min left`."""
        words = [f"{self._name}: {self._slides_done:,} of {self._slides:,} slides"]
        left = seconds_left(
            now - self._began,
            self._slides_worked,
            self._slides - self._slides_done + self._slides_worked,
        )
        if self._tiles:
            words.append(f"{self._tiles_done:,} of {self._tiles:,} tiles")
            left = seconds_left(now - self._began, self._tiles_done, self._tiles)
        if left:
            words.append(f"{duration(left)} left")
        return ", ".join(words)
