"""Stage 2, heatmaps: attention and maps of a slide's tiles, by a model that never saw it."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.core.tables import read_result
from her2.explanation.held_out import HeldOut, HeldOutSlide, unusable
from her2.explanation.localisation import is_uniform
from her2.mil.maps import read_maps
from her2.slides.slide import Scale
from her2.storage.facts import StoredSlide
from her2.storage.features import read_attributes, read_coords
from her2.storage.fold_files import read_fold_card

UNIFORM = "this head has no attention of its own: all tiles weigh the same"
"""The note beside pictures of heads without attention."""


@dataclass(frozen=True, slots=True)
class SlideTiles:
    """The tiles (n) of a slide that a model read, in the order of its feature store.

    `coords` int32 (n, 2) are x and y of the top left corner in level-0 px. `attention` (n,) sums to
    one. `maps` has more columns (n,): `attention_<output>` for a head with one map per output, and
    `contribution_<output>` for an additive head. `shown` names the contribution to the predicted
    class. `encoder_px` is the side of a tile as the encoder saw it.
    """

    held: HeldOutSlide
    class_names: tuple[str, ...]
    coords: NDArray[np.int32]
    slide: StoredSlide
    encoder_px: int
    attention: NDArray[np.float32]
    maps: dict[str, NDArray[np.float32]]
    probabilities: tuple[float, ...]
    shown: str | None
    model_key: str

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def scale(self) -> Scale:
        return Scale(*self.slide.mpp, self.slide.mpp_source)

    @property
    def predicted(self) -> str:
        return self.class_names[int(np.argmax(self.probabilities))]

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


def read_tiles(held_out: HeldOut, held: HeldOutSlide) -> SlideTiles:
    """Read what the model that never saw a slide stored for its tiles.

    Raises:
        UserError: the fold has no prediction for the slide, its features are missing, or a map of
            it is not finite or does not match its tiles and the model's outputs.
    """
    task, (model, key) = held_out.task, held_out.models[held.run]
    store = held_out.store(held.slide_id)
    attributes, coords = read_attributes(store), read_coords(store)
    table = read_result(model / "predictions.parquet")
    probabilities = table.filter(pl.col("slide_id") == held.slide_id).select(
        f"prob_{name}" for name in task.class_names
    )
    if len(probabilities) != 1:
        raise unusable(held, f"has no prediction in {model}")
    try:
        outputs = read_fold_card(model)["outputs"]
    except (ValueError, KeyError) as error:
        raise unusable(
            held, f"has a model in {model} whose card cannot be used ({error})"
        ) from None
    maps = {}
    for kind, values in read_maps(model, held.slide_id).items():
        shape, whose = (len(coords), len(outputs)), f"its map {kind} in {model}"
        if values.shape != shape:
            raise unusable(held, f"{whose} is {values.shape}, not (tiles, outputs) {shape}")
        if not np.isfinite(values).all():  # JSON cannot express NaN
            raise unusable(held, f"{whose} is not finite")
        for column, name in enumerate(outputs):
            maps[f"{kind}_{name}"] = np.ascontiguousarray(values[:, column])
    found = probabilities.row(0)
    # Like `her2.mil.model.Prediction`: for an ordered task, the highest threshold that is passed.
    thresholds = len(outputs) < len(task.class_names)
    shown = f"contribution_{outputs[max(0, int(np.argmax(found)) - thresholds)]}"
    return SlideTiles(
        held=held,
        class_names=tuple(task.class_names),
        coords=coords,
        slide=StoredSlide.read(attributes),
        encoder_px=int(attributes["target"]["px"]),
        attention=held_out.attention[held.slide_id, held.repeat],
        maps=maps,
        probabilities=tuple(found),
        shown=shown if shown in maps else None,
        model_key=key,
    )
