"""Stage 2, heatmaps: attention and maps of a slide's tiles, by models that never saw it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.explanation.localisation import is_uniform
from her2.slides.slide import Scale
from her2.storage.facts import StoredSlide
from her2.storage.features import places_known, read_attributes, read_coords

UNIFORM = "this head has no attention of its own: all tiles weigh the same"
"""The note beside pictures of heads without attention."""
NOWHERE = "its features do not tell where on the slide they are"
"""Why a slide with features of another program is not drawn."""
UNKNOWN = "score not known"
"""What pictures say of a slide whose class is not known or contradicts its patient's others."""


class Explained(Protocol):
    """A slide, and which models explain it; `label` is None where the truth is not known."""

    @property
    def slide_id(self) -> str: ...

    @property
    def patient_id(self) -> str: ...

    @property
    def label(self) -> str | None: ...

    @property
    def by(self) -> str:
        """Return who predicted it, to end a sentence: `by the model of fold 2, which ...`.

        It may be of several lines.
        """

    @property
    def models(self) -> Mapping[str, object]:
        """Return the models as columns of the lists of pictures, such as `{"fold": 2}`."""


@dataclass(frozen=True, slots=True)
class SlideTiles:
    """The tiles (n) of a slide that models read, in the order of its feature store.

    `coords` int32 (n, 2) are x and y of the top left corner in level-0 px. `attention` (n,) sums to
    one, and `probabilities` are those of `class_names`, both empty where only attention is known.
    `maps` has more columns (n,):
    `attention_<output>` for a head with one map per output, and `contribution_<output>` for an
    additive head. `shown` names the contribution to the predicted class. `encoder_px` is the side
    of a tile as the encoder saw it. `model` says in the metadata of files which models these are.
    """

    of: Explained
    class_names: tuple[str, ...]
    coords: NDArray[np.int32]
    slide: StoredSlide
    encoder_px: int
    attention: NDArray[np.float32]
    probabilities: tuple[float, ...]
    model: Mapping[str, object]
    maps: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    shown: str | None = None

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def scale(self) -> Scale:
        return Scale(*self.slide.mpp, self.slide.mpp_source)

    @property
    def predicted(self) -> str | None:
        """Return the most probable class, None where nobody predicted the slide."""
        return self.class_names[int(np.argmax(self.probabilities))] if self.probabilities else None

    @property
    def uniform(self) -> bool:
        return is_uniform(self.attention)

    @property
    def rank(self) -> NDArray[np.float32]:
        """Return the rank of each tile's attention in the slide (n,), 0 lowest to 1 highest."""
        return ranks(self.attention)

    @property
    def times_tiles(self) -> NDArray[np.float32]:
        """Return attention x n, which is 1 for every tile if all weigh the same."""
        return np.asarray(self.attention * np.float32(len(self)), np.float32)

    def corners(self) -> NDArray[np.float64]:
        """Return (n, 4) left, top, right, bottom in level-0 px."""
        return np.concatenate([self.coords, self.coords + np.array(self.slide.level0_tile)], axis=1)


def ranks(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ranks within the slide (n,), 0 lowest to 1 highest; ties share their mean rank."""
    if len(values) < 2:
        return np.full(len(values), 0.5, np.float32)
    return np.asarray((pl.Series(values).rank().to_numpy() - 1) / (len(values) - 1), np.float32)


def tiles_of_store(
    store: Path,
    of: Explained,
    *,
    class_names: Sequence[str],
    attention: NDArray[np.float32],
    probabilities: Sequence[float],
    model: Mapping[str, object],
    maps: Mapping[str, NDArray[np.float32]] | None = None,
    shown: str | None = None,
) -> SlideTiles:
    """Return a slide's tiles from its feature store, with what models say of them.

    Args:
        store: the slide's feature store, whose tiles (n) were predicted.
        of: the slide, and which models explain it.
        class_names: the classes (c).
        attention: (n,), sums to one.
        probabilities: (c,).
        model: which models these are, for the metadata of files.
        maps: further columns (n,), if the head has any.
        shown: the column of `maps` that is the contribution to the predicted class.

    Raises:
        ValueError: another program computed the features, and did not tell where the tiles are.
    """
    attributes = read_attributes(store)
    if not places_known(attributes):
        raise ValueError(f"{store}: does not tell where on the slide its tiles are")
    return SlideTiles(
        of=of,
        class_names=tuple(class_names),
        coords=read_coords(store),
        slide=StoredSlide.read(attributes),
        encoder_px=int(attributes["target"]["px"]),
        attention=attention,
        probabilities=tuple(float(value) for value in probabilities),
        model=model,
        maps=maps or {},
        shown=shown,
    )
