"""Stage 2, explanation: measures of whether predictions rely on the attended tiles.

Deletion removes the most attended tiles first, and insertion adds them first. Both follow the
probability of the class that the model predicts from all tiles, and are compared with removing or
adding tiles in random order. Attention that the model does not need gives the same curves as
chance.

Source: Petsiuk, Das, Saenko, RISE, BMVC 2018 (arXiv 1806.07421), for pixels. Here a removed tile is
left out of the bag, so it needs no replacement.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from her2.core.types import Floats
from her2.explanation.averages import INTERVAL, SHARE, SIGNED, over_patients
from her2.explanation.localisation import UNIFORM
from her2.explanation.tiles import Explained
from her2.mil.bags import Bag
from her2.mil.losses import class_logits
from her2.mil.model import Model

FAITHFULNESS = {
    "curve": pl.String,
    "order": pl.String,
    "share": pl.Float64,
    **INTERVAL,
    "slides": pl.Int64,
    "patients": pl.Int64,
}
FAITHFULNESS_SUMMARY = {
    "measure": pl.String,
    **INTERVAL,
    "slides": pl.Int64,
    "patients": pl.Int64,
    "note": pl.String,
}
SHARES = {
    "deletion": (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95),
    "insertion": (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0),
}
"""Shares of tiles removed or added. A bag needs tiles, so at least 5 % of them are kept."""
ORDERS = ("attention", "random")
RANDOM_ORDERS = 5

PredictSubsets = Callable[[Bag, Sequence[NDArray[np.int64]]], Floats]
"""A bag and selections of its rows -> class probabilities (s, c) of bags of these tiles alone."""

Curves = dict[tuple[str, str], Floats]
"""(curve, order) -> the probability at each of its shares."""


@dataclass(frozen=True, slots=True)
class Followed:
    """A slide with its curves."""

    slide: Explained
    curves: Curves


def follow(
    predict: PredictSubsets, bag: Bag, attention: NDArray[np.floating], *, seed: int
) -> Curves:
    """Return a slide's curves for the class that is predicted from all of its tiles.

    `predict` is by models that never saw the slide, and `attention` (n,) is theirs to the tiles of
    `bag`. The curves of several random orders, drawn with `seed`, are averaged.
    """
    if len(attention) != len(bag):
        raise ValueError(f"attention of {len(attention)} tiles for a bag of {len(bag)}")
    generator = np.random.default_rng(seed)
    ranked = np.argsort(-np.asarray(attention, np.float64), kind="stable")
    shuffled = [generator.permutation(len(bag)) for _ in range(RANDOM_ORDERS)]
    whole = [np.arange(len(bag))]
    kept = [_kept(order, curve) for curve in SHARES for order in (ranked, *shuffled)]
    found = iter(predict(bag, whole + [rows for of_curve in kept for rows in of_curve]))
    predicted = int(next(found).argmax())
    curves: Curves = {}
    for curve, shares in SHARES.items():
        first, *others = (
            np.array([next(found)[predicted] for _ in shares]) for _ in range(1 + RANDOM_ORDERS)
        )
        curves[curve, "attention"] = first
        curves[curve, "random"] = np.mean(others, axis=0)
    return curves


def _kept(order: NDArray[np.int64], curve: str) -> list[NDArray[np.int64]]:
    """Return the rows that are left at each share of a curve, sorted."""
    count = len(order)
    firsts = [round(share * count) for share in SHARES[curve]]
    if curve == "deletion":
        return [np.sort(order[min(first, count - 1) :]) for first in firsts]
    return [np.sort(order[: max(first, 1)]) for first in firsts]


@torch.inference_mode()
def predict_subsets(model: Model, bag: Bag, subsets: Sequence[NDArray[np.int64]]) -> Floats:
    """Return a model's class probabilities (s, c) for bags of some of a slide's tiles.

    Each tile is encoded independently, so that is done once; only pooling depends on the subset.
    """
    parts = model.eval().encoded(bag)
    return np.stack([_probabilities(model, parts, rows) for rows in subsets])


def _probabilities(model: Model, parts: tuple[Tensor, ...], rows: NDArray[np.int64]) -> Floats:
    """Return the model's class probabilities (c,) for a bag of some of the tiles."""
    index = torch.from_numpy(rows).to(parts[0].device)
    output = model.pooled(tuple(part.index_select(1, index) for part in parts))
    found: Floats = class_logits(output.logits.double(), model.loss).softmax(dim=1)[0].cpu().numpy()
    return found


def area_between(curves: Curves, curve: str) -> float:
    """Return the mean height of the attention curve above the random one (below, for deletion).

    This is a probability, by the trapezoid rule: positive where the attended tiles carry the
    prediction, and 0 by chance.
    """
    shares = np.array(SHARES[curve])
    gain = curves[curve, "attention"] - curves[curve, "random"]
    area = float(np.trapezoid(gain, shares) / (shares[-1] - shares[0]))
    return -area if curve == "deletion" else area


def faithfulness_tables(
    followed: Sequence[Followed], confidence: float, *, why_none: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return `FAITHFULNESS` and `FAITHFULNESS_SUMMARY`, means over patients of slide means.

    `followed` are slides whose attention is not uniform; `why_none` is the note if there are none.
    """
    points = [
        (curve, order, index, share)
        for curve, shares in SHARES.items()
        for order in ORDERS
        for index, share in enumerate(shares)
    ]
    rows = [
        {
            "patient_id": item.slide.patient_id,
            "label": item.slide.label,
            **{
                f"{curve} {order} {index}": float(item.curves[curve, order][index])
                for curve, order, index, _ in points
            },
            **{curve: area_between(item.curves, curve) for curve in SHARES},
        }
        for item in followed
    ]
    columns = {f"{curve} {order} {index}": SHARE for curve, order, index, _ in points}
    columns |= dict.fromkeys(SHARES, SIGNED)
    schema = {"patient_id": pl.String, "label": pl.String} | dict.fromkeys(columns, pl.Float64)
    means = over_patients(pl.DataFrame(rows, schema=schema), columns, confidence)
    curves = [
        {"curve": curve, "order": order, "share": share, "slides": len(rows), **asdict(mean)}
        for (curve, order, _, share), mean in zip(points, means[: len(points)], strict=True)
    ]
    reason = why_none if not rows else ""
    summary = [
        {"measure": curve, "slides": len(rows), **asdict(mean), "note": reason or mean.note}
        for curve, mean in zip(SHARES, means[len(points) :], strict=True)
    ]
    return (
        pl.DataFrame(curves if rows else [], schema=FAITHFULNESS),
        pl.DataFrame(summary, schema=FAITHFULNESS_SUMMARY),
    )


def why_not_followed(asked: int, kind: str) -> str:
    """Return why none of the `asked` slides of a kind has a curve."""
    if asked:
        return UNIFORM
    return f"not defined: no {kind} was followed (heatmaps.faithfulness_slides)"
