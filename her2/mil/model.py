"""Stage 2, train: a model of a fold, and what it says of a slide."""

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
"""Of the float32 features that are encoded at a time: on a CPU such a piece stays in its cache."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of a slide.

    `probabilities` (c,) float32. `attention` (n,) float32 explains them: of a head with one map an
    output, it is the map of the predicted class (or, ordered, of the highest threshold that it
    passes; of the lowest if none). `maps` (n, o) are all maps of such a head, `contribution`
    (n, o) what each tile adds to each output of an additive one; None for other heads.
    """

    probabilities: NDArray[np.float32]
    attention: NDArray[np.float32]
    maps: NDArray[np.float32] | None = None
    contribution: NDArray[np.float32] | None = None


class Model(nn.Module):
    """Standardisation by the train part's statistics, then a head."""

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
        """Features (b, n, d) and mask (b, n) -> logits (b, o) and attention (b, n) or (b, n, o)."""
        # A padded row is zero before, and no number that matters after: it is masked.
        return self._pool(self._encode((bag.float() - self.mean).div_(self.std)), mask)

    def whole(self, bag: Bag) -> Output:
        """All tiles of a slide as one bag, encoded in pieces: logits (1, o), attention (1, n, ...).

        Beyond one piece only what the head pools is held, not the features.
        """
        return self.pooled(self.encoded(bag))

    def encoded(self, bag: Bag) -> tuple[Tensor, ...]:
        """What the head pools of all tiles of a slide: each (1, n, ...), rows as in the store."""
        device = self.mean.device
        rows = max(1, PIECE_BYTES.get(device.type, PIECE_BYTES["cpu"]) // (4 * bag.store.dimension))
        found = []
        for piece in pieces(bag, rows):
            features = piece.to(device, torch.float32, copy=True)  # (rows, d)
            found.append(self._encode(features.sub_(self.mean).div_(self.std)[None]))
        return tuple(torch.cat(part, dim=1) for part in zip(*found, strict=True))

    def pooled(self, parts: tuple[Tensor, ...]) -> Output:
        """Pool all rows of what `encoded` gave, or of a choice of them: logits (1, o) and so on."""
        shape = (1, parts[0].shape[1])
        return self._pool(parts, torch.ones(shape, dtype=torch.bool, device=parts[0].device))

    def _encode(self, features: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.mixed):
            return self.head.encode(features)

    def _pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
        """Sums over thousands of tiles and the logits stay float32."""
        mixed = self.mixed and self.head.pools_in_products
        with torch.autocast(mask.device.type, torch.bfloat16, enabled=mixed):
            return self.head.pool(tuple(part.float() for part in parts), mask)


@torch.inference_mode()
def predict(model: Model, bag: Bag) -> Prediction:
    """What a model says of a slide, from all of its tiles."""
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
    """Random bags of random slides, both drawn anew each time.

    Returns:
        Which slide each bag is of (count,), and class probabilities (count, c).
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
