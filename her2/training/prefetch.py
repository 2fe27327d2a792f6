"""Batches prepared by threads ahead of the training step."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Iterable over `load(0), load(1), ...` in this order, prepared a few batches ahead.

    The workers are threads, because the slow parts of a batch (faulting pages in, copying rows,
    decoding and resizing images) release the interpreter's lock, and threads share mapped stores.
    `waited_seconds` is the time for which the consumer waited for batches. An exception in a worker
    is raised in place of its batch.
    """

    def __init__(
        self, load: Callable[[int], T], count: int, *, ahead: int, threads: int = 1
    ) -> None:
        """Set up the workers; they start with the iteration.

        Args:
            load: returns the batch with a given number; called in threads.
            count: number of batches.
            ahead: number of batches that are ready or in preparation while one is used.
            threads: number of threads.
        """
        self.load, self.count = load, count
        self.ahead, self.threads = ahead, threads
        self.waited_seconds = 0.0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[T]:
        with ThreadPoolExecutor(self.threads, thread_name_prefix="prefetch") as pool:
            pending: deque[Future[T]] = deque()
            try:
                for number in range(self.count):
                    pending.append(pool.submit(self.load, number))
                    if len(pending) > self.ahead:
                        yield self._next(pending)
                while pending:
                    yield self._next(pending)
            finally:
                for future in pending:
                    future.cancel()

    def _next(self, pending: "deque[Future[T]]") -> T:
        start = time.perf_counter()
        batch = pending.popleft().result()
        self.waited_seconds += time.perf_counter() - start
        return batch
