"""Stage 1, embed: many slides through one encoder, on the device that it is on.

Batches cross slide borders, and finished slides are published while others are encoded.
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
    """Embed every tile of the slides and have each slide published.

    Args:
        embedder: the encoder, on its device.
        slides: those that are not in the cache.
        scratch: a folder of this machine to copy slides to before they are read.

    Raises:
        UserError: a value is not finite, or a slide could not be published.
    """
    queue = TileQueue(slides)
    run = run_on_cpu if embedder.device.type == "cpu" else run_on_cuda
    with staged(scratch, queue.paths) as stager, embedder.publishing():
        for slide in slides:
            slide.stager = stager
        run(embedder, queue)
