"""Stage 2, explanation: measures of whether predictions rely on the attended tiles.

Deletion removes the most attended tiles first, and insertion adds them first. Both follow the
probability of the class that the model predicts from all tiles, and are compared with removing or
adding tiles in random order. Attention that the model does not need gives the same curves as
chance.

Source: Petsiuk, Das, Saenko, RISE, BMVC 2018 (arXiv 1806.07421), for pixels. Here a removed tile is
left out of the bag, so it needs no replacement.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from her2.core.types import Floats
from her2.explanation.averages import INTERVAL, SHARE, SIGNED, over_patients
from her2.explanation.held_out import HeldOutSlide
from her2.explanation.localisation import UNIFORM
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

Curves = dict[tuple[str, str], Floats]
"""(curve, order) -> the probability at each of its shares."""


@dataclass(frozen=True, slots=True)
class Followed:
    """A slide with its curves."""

    slide: HeldOutSlide
    curves: Curves


@torch.inference_mode()
def follow(model: Model, bag: Bag, attention: NDArray[np.floating], *, seed: int) -> Curves:
    """Return a slide's curves for the class that the model predicts from all of its tiles.

    `model` held the slide out, and `attention` (n,) is that of the tiles of `bag`. The curves of
    several random orders, drawn with `seed`, are averaged.
    """
    if len(attention) != len(bag):
        raise ValueError(f"attention of {len(attention)} tiles for a bag of {len(bag)}")
    # Each tile is encoded independently, so that is done once; only pooling depends on the subset.
    parts = model.eval().encoded(bag)
    predicted = int(_probabilities(model, parts, np.arange(len(bag))).argmax())
    generator = np.random.default_rng(seed)
    ranked = np.argsort(-np.asarray(attention, np.float64), kind="stable")
    shuffled = [generator.permutation(len(bag)) for _ in range(RANDOM_ORDERS)]
    found: Curves = {}
    for curve in SHARES:
        found[curve, "attention"] = _curve(model, parts, ranked, curve, predicted)
        found[curve, "random"] = np.mean(
            [_curve(model, parts, order, curve, predicted) for order in shuffled], axis=0
        )
    return found


def _curve(
    model: Model, parts: tuple[Tensor, ...], order: NDArray[np.int64], curve: str, predicted: int
) -> Floats:
    values = []
    for share in SHARES[curve]:
        first = round(share * len(order))
        kept = (
            order[min(first, len(order) - 1) :] if curve == "deletion" else order[: max(first, 1)]
        )
        values.append(_probabilities(model, parts, np.sort(kept))[predicted])
    return np.array(values)


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
    followed: Sequence[Followed], confidence: float, *, asked: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return `FAITHFULNESS` and `FAITHFULNESS_SUMMARY`, means over patients of slide means.

    `followed` are slides whose attention is not uniform, of the `asked` that were to be followed.
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
    reason = _why_none(asked) if not rows else ""
    summary = [
        {"measure": curve, "slides": len(rows), **asdict(mean), "note": reason or mean.note}
        for curve, mean in zip(SHARES, means[len(points) :], strict=True)
    ]
    return (
        pl.DataFrame(curves if rows else [], schema=FAITHFULNESS),
        pl.DataFrame(summary, schema=FAITHFULNESS_SUMMARY),
    )


def _why_none(asked: int) -> str:
    if asked:
        return UNIFORM
    return "not defined: no held-out slide was followed (heatmaps.faithfulness_slides)"
