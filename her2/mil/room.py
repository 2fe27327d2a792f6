"""Stage 2: whether the largest slides fit into memory, asked before anything is trained."""

import logging
from collections.abc import Iterable

import torch

from her2.config import HeadSection
from her2.core.errors import problem_list
from her2.core.memory import available_bytes
from her2.mil.bags import Bag

log = logging.getLogger(__name__)

_STATED_BYTES = 1 << 30
"""From this estimate on, it is in the log."""


def check_room(bags: Iterable[Bag], head: HeadSection, device: torch.device) -> None:
    """Check that each slide can be predicted as one bag, by the head's own estimate.

    Training reads sub-bags of `training.bag_size` tiles, but a prediction reads all tiles, and a
    job without room for them would be killed without a word after it has trained.

    Raises:
        UserError: slides do not fit; the message names them, and the memory needed and available.
    """
    needed = {bag.slide_id: len(bag) * head.bytes_per_tile(bag.store.dimension) for bag in bags}
    tiles = {bag.slide_id: len(bag) for bag in bags}
    if not needed or max(needed.values()) < _STATED_BYTES:
        return
    largest = max(needed, key=lambda name: needed[name])
    gpu = device.type == "cuda"
    room = torch.cuda.mem_get_info(device)[0] if gpu else available_bytes()
    log.info(
        "%s: predicting %s (%s tiles) will take about %.1f GB; %.1f GB are available",
        head.head, largest, f"{tiles[largest]:,}", needed[largest] / 1e9, room / 1e9,
    )  # fmt: skip
    if needed[largest] <= room:
        return
    fits = int(room // (needed[largest] // tiles[largest]))
    more = (
        "train on a CPU or a GPU with more memory"
        if gpu
        else "give the job more memory (`--set-resources train_folds:mem_mb=...`)"
    )
    raise problem_list(
        f"head {head.head}: predicting a slide takes more memory than the {room / 1e9:.1f} GB that "
        f"are available to this job. Set `tiling.max_tiles` to {fits:,} or less, {more}, or take a "
        "smaller head (`hidden`; abmil needs a tenth of transmil)",
        [
            f"{name}: {tiles[name]:,} tiles need about {size / 1e9:.1f} GB"
            for name, size in sorted(needed.items(), key=lambda one: -one[1])
            if size > room
        ],
        limit=10,
    )
