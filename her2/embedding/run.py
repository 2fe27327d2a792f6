"""Stage 1, embed: run many slides through one encoder, on its device.

Batches may contain tiles of several slides. Finished slides are published while others are encoded.
"""

from collections.abc import Sequence

from her2.embedding.cpu import run_on_cpu
from her2.embedding.cuda import run_on_cuda
from her2.embedding.reading import PendingSlide, TileQueue
from her2.embedding.session import Embedder
from her2.slides.staging import staged


def embed_slides(
    embedder: Embedder, slides: Sequence[PendingSlide], scratch: str | None = None
) -> None:
    """Embed every tile of the slides, and publish each slide.

    Args:
        embedder: the encoder on its device.
        slides: slides that are not in the cache.
        scratch: folder on a local disk to which slides are copied before they are read.

    Raises:
        UserError: a value is not finite, or a slide could not be published.
    """
    queue = TileQueue(slides)
    run = run_on_cpu if embedder.device.type == "cpu" else run_on_cuda
    with staged(scratch, queue.paths) as stager, embedder.publishing():
        for slide in slides:
            slide.stager = stager
        run(embedder, queue)
