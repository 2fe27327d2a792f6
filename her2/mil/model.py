"""Stage 2, train: a fold's model, and its prediction for a slide."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from her2.heads.layers import Head, Output
from her2.mil.bags import Bag, pieces, sample_batch
from her2.mil.losses import Loss, class_logits

PIECE_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
"""Size of the float32 features that are encoded at a time; on a CPU a piece fits its cache."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's prediction for a slide.

    `probabilities` (c,) and `attention` (n,) are float32. For a head with one map per output, the
    attention is the map of the predicted class, or with ordered classes that of the highest
    threshold passed (the lowest threshold if none is). `maps` (n, o) holds all maps of such a head,
    `contribution` (n, o) the summand of each tile in each output of an additive head. They are None
    for other heads.
    """

    probabilities: NDArray[np.float32]
    attention: NDArray[np.float32]
    maps: NDArray[np.float32] | None = None
    contribution: NDArray[np.float32] | None = None


class Model(nn.Module):
    """A head after standardisation by the training set's statistics."""

    def __init__(
        self,
        head: Head,
        mean: Tensor,
        std: Tensor,
        loss: Loss = "cross_entropy",
        precision: str = "float32",
    ) -> None:
        super().__init__()
        self.head = head
        self.loss: Loss = loss
        self.mixed = precision == "bfloat16"
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, bag: Tensor, mask: Tensor) -> Output:
        """Classify features (b, n, d): logits (b, o) and attention (b, n) or (b, n, o)."""
        # Standardising makes padded rows nonzero, which has no effect because they are masked.
        return self._pool(self._encode((bag.float() - self.mean).div_(self.std)), mask)

    def whole(self, bag: Bag) -> Output:
        """Classify all tiles of a slide as one bag: logits (1, o), attention (1, n, ...).

        Tiles are encoded in pieces; only the input of the head's `pool` is held for all of them.
        """
        return self.pooled(self.encoded(bag))

    def encoded(self, bag: Bag) -> tuple[Tensor, ...]:
        """Encode all tiles of a slide: inputs of `pool`, each (1, n, ...), in the store's order."""
        device = self.mean.device
        rows = max(1, PIECE_BYTES.get(device.type, PIECE_BYTES["cpu"]) // (4 * bag.store.dimension))
        found = []
        for piece in pieces(bag, rows):
            features = piece.to(device, torch.float32, copy=True)  # (rows, d)
            found.append(self._encode(features.sub_(self.mean).div_(self.std)[None]))
        return tuple(torch.cat(part, dim=1) for part in zip(*found, strict=True))

    def pooled(self, parts: tuple[Tensor, ...]) -> Output:
        """Pool the parts from `encoded`, or a selection of their rows: logits (1, o) and so on."""
        shape = (1, parts[0].shape[1])
        return self._pool(parts, torch.ones(shape, dtype=torch.bool, device=parts[0].device))

    def _encode(self, features: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.mixed):
            return self.head.encode(features)

    def _pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
        """Pool in float32, as sums over thousands of tiles and the logits need its precision."""
        mixed = self.mixed and self.head.pools_in_products
        with torch.autocast(mask.device.type, torch.bfloat16, enabled=mixed):
            return self.head.pool(tuple(part.float() for part in parts), mask)


@torch.inference_mode()
def predict(model: Model, bag: Bag) -> Prediction:
    """Predict a slide from all of its tiles."""
    output = model.eval().whole(bag)
    probabilities = class_logits(output.logits.double(), model.loss).softmax(dim=1)[0]
    attention, maps = output.attention[0], None  # (n,) or (n, o)
    if attention.ndim == 2:
        maps = _numpy(attention)
        predicted = int(probabilities.argmax())
        attention = attention[:, max(0, predicted - (model.loss == "ordinal"))]
    contribution = None if output.contribution is None else _numpy(output.contribution[0])
    return Prediction(_numpy(probabilities), _numpy(attention), maps, contribution)


@torch.inference_mode()
def predict_bags(
    model: Model, bags: Sequence[Bag], *, count: int, bag_size: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Predict `count` random bags, each from a random slide.

    Returns:
        The index of each bag's slide (count,), and class probabilities (count, c).
    """
    generator, device = np.random.default_rng(seed), model.mean.device
    drawn = generator.integers(len(bags), size=count)
    parts = []
    for start in range(0, count, 64):
        features, mask, _ = sample_batch(
            [bags[i] for i in drawn[start : start + 64]], bag_size=bag_size, generator=generator
        )
        logits = model.eval()(features.to(device), mask.to(device)).logits
        parts.append(_numpy(class_logits(logits.double(), model.loss).softmax(dim=1)))
    return drawn, np.concatenate(parts)


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = tensor.float().cpu().numpy()
    return values
