"""Stage 1, embed: encode the tiles of many slides on a CPU.

Every core is an independent worker: it cuts a small batch, encodes it and hands over the rows. So
no core waits for another.
"""

import threading
import time

import numpy as np
import torch
from numpy.typing import NDArray

from her2.embedding.augment import Landing, by_view
from her2.embedding.reading import Part, TileQueue, read_part
from her2.embedding.session import Embedder


def run_on_cpu(embedder: Embedder, queue: TileQueue) -> None:
    """Encode every tile of the queue, with one worker per core and one torch thread per worker."""
    torch.set_num_threads(1)
    workers = [
        threading.Thread(target=_work, args=(embedder, queue), name=f"worker-{i}")
        for i in range(embedder.threads)
    ]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except BaseException as error:
        embedder.fail(error)
        raise


def _work(embedder: Embedder, queue: TileQueue) -> None:
    size = embedder.card.patch_px
    images = np.empty((embedder.batch_size, size, size, 3), np.uint8)
    try:
        torch.set_num_threads(1)  # applies to the calling thread only
        with torch.no_grad():
            while not embedder.stopped and (parts := queue.take(embedder.batch_size)):
                filled, read = 0, list[Part]()
                for slide, rows in parts:
                    group = read_part(slide, rows, images[filled:])
                    embedder.give_up(group)
                    filled += len(group.rows)
                    if len(group.rows):
                        read.append((slide, group.rows))
                for batch, landings in by_view(images[:filled], read):
                    _encode(embedder, batch, landings, queue)
    except BaseException as error:
        embedder.fail(error)


def _encode(
    embedder: Embedder, images: NDArray[np.uint8], parts: list[Landing], queue: TileQueue
) -> None:
    patches = torch.from_numpy(images)
    begin = time.perf_counter()
    values = embedder.encode(patches).numpy()
    seconds = time.perf_counter() - begin
    for slide, rows, _ in parts:
        slide.add("encoding", seconds * len(rows) / len(images))
    embedder.land(values, parts)
    embedder.consider_compiling(patches, seconds, queue.left, embedder.threads)
