"""Stage 2, heatmaps: what the model that never saw a slide says of its tiles."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import rankdata

from her2.config import Task
from her2.errors import UserError
from her2.mil.maps import CARD_NAME, read_maps
from her2.slide import Scale
from her2.store import read_attributes, read_coords

UNIFORM = "this head has no attention of its own: all tiles weigh the same"
"""The note beside what shows the attention of such a head."""


@dataclass(frozen=True, slots=True)
class Held:
    """A held-out slide: its class index, and the fold of the first repeat that tested it."""

    slide_id: str
    patient_id: str
    label: int
    fold: int


@dataclass(frozen=True, slots=True)
class SlideTiles:
    """The tiles (n) that a model read of a slide, in the order of its feature store.

    `coords` int32 (n, 2) x and y of the top left corner and `level0_tile` (width, height) are
    level-0 px. `attention` (n,) sums to one. `maps` has more columns (n,): of a head with a map an
    output `attention_<output>`, of an additive one `contribution_<output>`; `shown` names the
    contribution that speaks for the predicted class. `encoder_px` is the side of a tile as the
    encoder saw it.
    """

    held: Held
    class_names: tuple[str, ...]
    coords: NDArray[np.int32]
    level0_tile: tuple[float, float]
    size_px: tuple[int, int]
    scale: Scale
    fingerprint: str
    encoder_px: int
    attention: NDArray[np.float32]
    maps: dict[str, NDArray[np.float32]]
    probabilities: tuple[float, ...]
    shown: str | None
    model_key: str

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def slide_id(self) -> str:
        """Of the slide."""
        return self.held.slide_id

    @property
    def label(self) -> str:
        """Its class by the manifest."""
        return self.class_names[self.held.label]

    @property
    def predicted(self) -> str:
        """The class that the model finds most probable."""
        return self.class_names[int(np.argmax(self.probabilities))]

    @property
    def uniform(self) -> bool:
        """Whether no tile has more attention than another."""
        return is_uniform(self.attention)

    @property
    def rank(self) -> NDArray[np.float32]:
        """Rank of each tile's attention in the slide (n,), 0 lowest to 1 highest."""
        return ranks(self.attention)

    @property
    def times_tiles(self) -> NDArray[np.float32]:
        """Attention x n: 1 is what each tile would have if all weighed the same."""
        return np.asarray(self.attention * np.float32(len(self)), np.float32)

    def corners(self) -> NDArray[np.float64]:
        """(n, 4) left, top, right, bottom, level-0 px."""
        return np.concatenate([self.coords, self.coords + np.array(self.level0_tile)], axis=1)


def ranks(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Ranks within the slide (n,), 0 lowest to 1 highest; equal values share their mean rank."""
    if len(values) < 2:
        return np.full(len(values), 0.5, np.float32)
    return np.asarray((rankdata(values) - 1) / (len(values) - 1), np.float32)


def is_uniform(attention: NDArray[np.float32]) -> bool:
    """Whether all tiles weigh the same, up to the rounding of float32."""
    return bool(np.ptp(attention) <= 1e-6 * attention.max())


def read_tiles(held: Held, task: Task, model: Path, key: str, store: Path) -> SlideTiles:
    """What a fold's model says of a slide's tiles.

    Args:
        held: the slide.
        task: its classes.
        model: the folder of the fold that held it out.
        key: of that model.
        store: its feature store.

    Raises:
        UserError: the fold has no attention or prediction of the slide, or not of these tiles.
    """
    attributes, coords = read_attributes(store), read_coords(store)
    row = _row(model, "attention", held.slide_id)
    attention = np.asarray(row["attention"][0].to_numpy(), np.float32)
    if len(attention) != len(coords):
        raise UserError(
            f"{held.slide_id}: {len(attention)} attention values of {model} for {len(coords)} "
            "tiles; train the fold again."
        )
    probabilities = _row(model, "predictions", held.slide_id)
    probabilities = probabilities.select(f"prob_{name}" for name in task.class_names)
    outputs = json.loads((model / CARD_NAME).read_text(encoding="utf-8"))["outputs"]
    maps = {
        f"{kind}_{name}": np.ascontiguousarray(values[:, column])
        for kind, values in read_maps(model, held.slide_id).items()
        for column, name in enumerate(outputs)
    }
    found = probabilities.row(0)
    # As `her2.mil.model.Prediction`: of an ordered task, the highest threshold that is passed.
    thresholds = len(outputs) < len(task.class_names)
    shown = f"contribution_{outputs[max(0, int(np.argmax(found)) - thresholds)]}"
    facts = attributes["slide"]
    return SlideTiles(
        held=held,
        class_names=tuple(task.class_names),
        coords=coords,
        level0_tile=(float(facts["level0_tile"][0]), float(facts["level0_tile"][1])),
        size_px=(int(facts["size_px"][0]), int(facts["size_px"][1])),
        scale=Scale(facts["mpp"][0], facts["mpp"][1], facts["mpp_source"]),
        fingerprint=facts["fingerprint"],
        encoder_px=int(attributes["target"]["px"]),
        attention=attention,
        maps=maps,
        probabilities=tuple(found),
        shown=shown if shown in maps else None,
        model_key=key,
    )


def _row(model: Path, name: str, slide_id: str) -> pl.DataFrame:
    table = pl.read_parquet(model / f"{name}.parquet").filter(pl.col("slide_id") == slide_id)
    if len(table) != 1:
        raise UserError(f"{slide_id}: has no {name} in {model}; train the fold again.")
    return table
