"""Batches made by threads that stay ahead of the step."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Iterate over `load(0), load(1), ...` in this order, made a few ahead of the consumer.

    The workers are threads: what takes time in a batch (faulting pages in, copying rows, decoding
    and resizing images) runs without the interpreter's lock, and threads share mapped stores.
    `waited_seconds` is how long the consumer stood still for them. What fails in a worker is raised
    where its batch would have been.
    """

    def __init__(
        self, load: Callable[[int], T], count: int, *, ahead: int, threads: int = 1
    ) -> None:
        """Prepare; work begins with the iteration.

        Args:
            load: makes the batch of a number; called in threads.
            count: of batches.
            ahead: batches that are ready or being made while one is used.
            threads: that make them.
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
