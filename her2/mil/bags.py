"""Stage 2, train: slides as bags of features, gathered by row from memory-mapped stores."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from her2.core.errors import UserError
from her2.storage.features import FeatureStore
from her2.storage.tiles import rows_digest

# Stores are mapped read-only. Torch warns once per process that it has no read-only tensors.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(b"read", np.uint8))


@dataclass(frozen=True, slots=True)
class Bag:
    """A slide of a fold; `label` is its class index, None for an unlabelled slide.

    `store` has the plain features. `views` have augmented ones of the same tiles, in the same
    order; only the batches that a head is trained on draw from them.
    """

    slide_id: str
    patient_id: str
    key: str
    store: FeatureStore
    label: int | None
    views: tuple[FeatureStore, ...] = ()

    def __len__(self) -> int:
        return len(self.store)

    @property
    def read(self) -> list[str | None]:
        """Return the digest of its tiles and the slide's checksum; None where not known."""
        found = self.store.attributes
        if "identity" not in found:
            return [None, None]
        whole = not found["failed_tiles"]
        rows = found["identity"]["tiles"] if whole else rows_digest(self.store)
        return [rows, found["slide"].get("checksum")]


def views_read(bags: Sequence[Bag]) -> dict[str, dict[str, list[str]]]:
    """Return the part of an identity on the views that bags are trained on; {} without views."""
    keys = {bag.slide_id: [view.attributes["key"] for view in bag.views] for bag in bags}
    return {"views": keys} if any(keys.values()) else {}


def check_dimensions(bags: Sequence[Bag]) -> int:
    """Return the dimension of the features, after checking that all bags agree.

    Raises:
        UserError: there is no bag, or the stores come from different encoders.
    """
    if not bags:
        raise UserError(
            "no slide with features to train on; see the reason of each slide in the entries files."
        )
    kinds = {
        (bag.store.attributes["encoder"]["digest"], bag.store.dimension): bag.slide_id
        for bag in bags
    }
    if len(kinds) > 1:
        raise UserError(
            "the stores come from different encoders, e.g. those of "
            + " and ".join(sorted(kinds.values()))
            + "; embed the cohort again with one encoder."
        )
    return bags[0].store.dimension


def statistics(bags: Sequence[Bag], *, per_bag: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (d,) of the training set's features.

    Each slide has the same weight.

    Raises:
        UserError: the features of a slide, which is named, are not finite.
    """
    generator = np.random.default_rng(seed)
    # Sums in float64: float32 sums over 100,000 rows are off in the third digit.
    mean, square = np.zeros((2, bags[0].store.dimension))
    for bag in bags:
        rows = bag.store.gather(_draw(generator, len(bag), per_bag)).astype(np.float64)
        if not np.isfinite(rows).all():
            raise UserError(
                f"{bag.slide_id}: its features contain values that are not finite. Find its "
                "damaged store with `her2 cache verify`, remove it and run snakemake again."
            )
        mean += rows.mean(axis=0) / len(bags)
        square += (rows**2).mean(axis=0) / len(bags)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    # A feature that never varies carries no information, and must not be divided by zero.
    std[std < 1e-6 * np.maximum(1.0, np.abs(mean))] = 1.0
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(std.astype(np.float32))


def sample_batch(
    bags: Sequence[Bag],
    *,
    bag_size: int,
    generator: np.random.Generator,
    augmented: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw sub-bags without replacement: features (b, n, d), mask (b, n), labels (b,).

    n is `bag_size`; a smaller slide gives all its tiles, and the rest of its row is masked.
    Features keep the type of the stores, which takes half of the bytes of float32; converting them
    where they are used is cheap. With `augmented`, each row is drawn from the plain store or one of
    the bag's views, all of them alike; otherwise it is the plain one.
    """
    kind = np.result_type(*(bag.store.chunks[0].dtype for bag in bags))
    features = np.zeros((len(bags), bag_size, bags[0].store.dimension), kind)
    mask = np.zeros((len(bags), bag_size), bool)
    for index, bag in enumerate(bags):
        rows = _draw(generator, len(bag), bag_size)
        stores = (bag.store, *bag.views) if augmented else (bag.store,)
        features[index, : len(rows)] = _gather(stores, rows, generator)
        mask[index, : len(rows)] = True
    labels = torch.tensor([-1 if bag.label is None else bag.label for bag in bags])
    return torch.from_numpy(features), torch.from_numpy(mask), labels


def pieces(bag: Bag, rows: int) -> Iterator[Tensor]:
    """Yield all tiles of a slide in order, (at most `rows`, d) of the store's type, read-only."""
    for chunk in bag.store.chunks:
        for start in range(0, len(chunk), rows):
            yield torch.from_numpy(chunk[start : start + rows])


def _gather(
    stores: Sequence[FeatureStore], rows: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[Any]:
    """Return rows (n, d), each from a store that is drawn for it; one store needs no draw."""
    if len(stores) == 1:
        return stores[0].gather(rows)
    drawn = generator.integers(len(stores), size=len(rows))
    found = np.empty((len(rows), stores[0].dimension), stores[0].chunks[0].dtype)
    for number, store in enumerate(stores):
        chosen = drawn == number
        if chosen.any():
            found[chosen] = store.gather(rows[chosen])
    return found


def _draw(generator: np.random.Generator, n: int, count: int) -> NDArray[np.int64]:
    """Draw row numbers, sorted because gathering in file order is faster."""
    if n <= count:
        return np.arange(n)
    return np.sort(generator.choice(n, size=count, replace=False, shuffle=False))
