"""Stage 2, explanation: slides of a cohort with the attention of a model that never saw them.

Both cohorts are explained by the same code: a held-out slide of the development by the model of one
fold (`held_out.py`), an external slide by all of them (`external_slides.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from her2.explanation.tiles import Explained, SlideTiles

AnyExplained = TypeVar("AnyExplained", bound=Explained)


@dataclass(frozen=True, slots=True)
class Source:
    """The slides that are explained, and where their attention comes from.

    Attributes:
        class_names: classes of the truth, which are also those of the predictions.
        kind: what a slide is called, `held-out slide` or `external slide`.
        slides: each slide once, by name.
        attention: slide -> (n,), in the order of its feature store.
        tiles: reads a slide's tiles with their values; a product that is missing or does not fit is
            a UserError.
        store: returns the path of a slide's feature store, likewise.
        masks_key: the config's key of the folder of ground truths.
    """

    class_names: tuple[str, ...]
    kind: str
    slides: Sequence[Explained]
    attention: Mapping[str, NDArray[np.float32]]
    tiles: Callable[[str], SlideTiles]
    store: Callable[[str], Path]
    masks_key: str


def spread(slides: Sequence[AnyExplained], count: int, *, seed: int) -> list[AnyExplained]:
    """Draw at most `count` slides, taking the classes in turn, and return them by id.

    Slides without a label are drawn like those of one more class, the last.
    """
    order = np.random.default_rng(seed).permutation(len(slides))
    by_class: dict[tuple[bool, str], list[AnyExplained]] = {}
    for index in order:
        label = slides[index].label
        by_class.setdefault((label is None, label or ""), []).append(slides[index])
    chosen: list[AnyExplained] = []
    while len(chosen) < count and any(by_class.values()):
        for label_key in sorted(by_class):
            if by_class[label_key] and len(chosen) < count:
                chosen.append(by_class[label_key].pop())
    return sorted(chosen, key=lambda slide: slide.slide_id)
