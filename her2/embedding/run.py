"""Stage 1, embed: run many slides through one encoder, on its device.

Batches may contain tiles of several slides. Finished slides are published while others are encoded.
"""

import logging
import time
from collections.abc import Sequence

from her2.embedding.cpu import run_on_cpu
from her2.embedding.cuda import run_on_cuda
from her2.embedding.reading import PendingSlide, TileQueue
from her2.embedding.session import Embedder
from her2.slides.staging import staged

log = logging.getLogger(__name__)


def embed_slides(
    embedder: Embedder, slides: Sequence[PendingSlide], scratch: str | None = None
) -> None:
    """Embed every tile of slides that are not in the cache, and publish each slide.

    `scratch` is a folder on a local disk to which slides are copied before they are read.

    Raises:
        UserError: a value is not finite, or a slide could not be published.
    """
    begin = time.perf_counter()
    queue = TileQueue(slides)
    run = run_on_cpu if embedder.device.type == "cpu" else run_on_cuda
    with staged(scratch, queue.paths) as stager, embedder.publishing():
        for slide in slides:
            slide.stager = stager
        run(embedder, queue)
    seconds = time.perf_counter() - begin
    count = sum(len(slide.order) * len(slide.spools) for slide in slides)
    log.info("embedding: %d patches in %.1f s, %.1f patches/s", count, seconds, count / seconds)
