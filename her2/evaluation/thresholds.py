"""Stage 2, evaluate: thresholds chosen on tuning sets, and how much rests on that choice.

A tuning set of few patients could as well have given another threshold. `Choices` chooses it again
in each of many resamples of the tuning patients and applies it to the test set as it is, which
gives the variance that the choice adds to a rate. The variance of the test patients is that of a
share (`her2.evaluation.shares`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from her2.core.types import Bools, Floats, Ints
from her2.evaluation.bootstrap import weight_blocks

TOLERANCE = 1e-12
"""In floats 1 - 0.9 differs from 0.1."""
LEAST_DEFINED = 0.1
"""Share of the resamples below which their variance is not used: in the others a tuning set lacks
a side, or no one is called."""


@dataclass(frozen=True, slots=True)
class Choices:
    """The thresholds that the rows of a tuning set allow, highest first.

    Attributes:
        order: the rows, highest score first (n,).
        ends: the last of each group of rows with equal scores (g,), in this order.
        positive: side of each row (n,), in this order.
        thresholds: just above each score, where its rows are not called positive, and each score,
            where they are (2 g,).
    """

    order: Ints
    ends: Ints
    positive: Bools
    thresholds: Floats

    @classmethod
    def of(cls, positive: Bools, scores: Floats) -> "Choices":
        """Return the choices of rows (n,) with at least one of them."""
        order = np.argsort(-scores, kind="stable")
        ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
        each = scores[order][ends]
        both = np.stack([np.nextafter(each, np.inf), each], axis=1).ravel()
        return cls(order, ends, positive[order], both)

    def choose(self, weights: Floats, fixed: str, asked: float) -> Ints:
        """Return the index of the threshold of each resample (b,), -1 where a side has no weight.

        It is the lowest with the specificity, or the highest with the sensitivity, that is asked:
        best for the other side. Only scores of rows with weight are thresholds.

        Args:
            weights: of the rows, in their own order (b, n).
            fixed: `specificity` or `sensitivity`.
            asked: the smallest value required of it, 0 to 1.
        """
        own = weights[:, self.order]
        up = np.cumsum(own * self.positive, axis=1)[:, self.ends]  # (b, g)
        called = np.cumsum(own, axis=1)[:, self.ends]
        ups, downs = up[:, -1:], called[:, -1:] - up[:, -1:]
        if fixed == "sensitivity":
            found = 2 * (up >= (asked - TOLERANCE) * ups).argmax(axis=1) + 1
        else:
            legal = (called - up <= (1 - asked + TOLERANCE) * downs).sum(axis=1, keepdims=True)
            most = np.where(legal > 0, np.take_along_axis(called, legal - 1, axis=1), 0)
            # The first that calls as many; if these are none, just above the first with weight.
            found = np.where(
                most > 0,
                2 * (called < most).sum(axis=1, keepdims=True) + 1,
                2 * (called == 0).sum(axis=1, keepdims=True),
            )[:, 0]
        return np.where(((ups > 0) & (downs > 0))[:, 0], found, -1)

    def threshold(self, fixed: str, asked: float) -> float:
        """Return the threshold that is chosen on the rows themselves, which have both sides.

        Rows at or above it are called positive.
        """
        return float(self.thresholds[self.choose(np.ones((1, len(self.order))), fixed, asked)[0]])


@dataclass(frozen=True, slots=True)
class Applied:
    """A model's tuning set, and what its test set has at or above each possible threshold.

    Attributes:
        choices: the thresholds (k,) of the tuning set.
        patients: of the tuning set's rows (n,), into the patients that are resampled.
        round: the model's round; a round tests every patient at most once.
        called: test rows that each threshold calls positive, of the positive and of the negative
            side (2, k).
        sizes: number of test rows of both sides (2,).
    """

    choices: Choices
    patients: Ints
    round: tuple[int, int]
    called: Floats
    sizes: Ints

    def fewest(self, fixed: str) -> int:
        """Return the number of tuning patients on the side whose figure is fixed."""
        own = self.choices.positive == (fixed == "sensitivity")
        return len(np.unique(self.patients[self.choices.order][own]))

    @classmethod
    def of(
        cls,
        tuned: tuple[Bools, Floats, Ints],
        tested: tuple[Bools, Floats],
        round_: tuple[int, int],
    ) -> "Applied":
        """Return it from sides, scores and patients of the tuning set, sides and scores of the test
        set.
        """
        choices = Choices.of(*tuned[:2])
        positive, scores = tested
        both = [np.sort(scores[positive]), np.sort(scores[~positive])]
        called = [len(side) - np.searchsorted(side, choices.thresholds) for side in both]
        sizes = np.array([len(side) for side in both])
        return cls(choices, tuned[2], round_, np.array(called, float), sizes)


def choice_variances(
    models: Sequence[Applied],
    classes: Ints,
    fixed: str,
    asked: float,
    *,
    resamples: int,
    seed: int,
) -> Floats:
    """Return the variance that the choice of thresholds adds to the rates of one round.

    Patients are drawn within their class, the same ones for all models, since tuning sets share
    patients. The variance is the mean over the rounds: rounds share them too, so that more rounds
    tell no more about other patients. With k patients on the fixed side of the smallest tuning set
    it is multiplied by (k + 1) / (k - 1), as resamples of few patients hardly move an extreme score
    (set by simulation, docs/statistics.md).

    Args:
        models: the models with their tuning and test sets.
        classes: class of each patient of the tuning sets (p,).
        fixed: as for `Choices.choose`.
        asked: as for `Choices.choose`.
        resamples: number of resamples.
        seed: seed of the resamples.

    Returns:
        Of sensitivity, specificity, PPV and NPV (4,); NaN where too few resamples define one, or
        k is 1.
    """
    fewest = min(model.fewest(fixed) for model in models)
    if fewest < 2:
        return np.full(4, np.nan)
    rounds = sorted({model.round for model in models})
    parts = []
    blocks = weight_blocks(np.arange(len(classes)), classes, resamples=resamples, seed=seed)
    for weights in blocks:
        called = np.zeros((len(rounds), 2, len(weights)))
        for model in models:
            found = model.choices.choose(weights[:, model.patients], fixed, asked)
            own = np.where(found >= 0, model.called[:, found], np.nan)
            called[rounds.index(model.round)] += own
        sizes = [sum(m.sizes for m in models if m.round == one) for one in rounds]
        parts.append(_rates(called, np.array(sizes, float)[:, :, None]))
    rates = np.concatenate(parts, axis=2)  # (4, rounds, resamples)
    defined = ~np.isnan(rates)
    count = defined.sum(axis=2)
    centre = np.where(defined, rates, 0).sum(axis=2) / np.maximum(count, 1)
    squares = np.where(defined, (rates - centre[:, :, None]) ** 2, 0).sum(axis=2)
    variances = np.where(
        count >= LEAST_DEFINED * resamples, squares / np.maximum(count - 1, 1), np.nan
    )
    mean: Floats = variances.mean(axis=1) * (fewest + 1) / (fewest - 1)
    return mean


def _rates(called: Floats, sizes: Floats) -> Floats:
    """Return sensitivity, specificity, PPV and NPV (4, r, b) from calls and sizes (r, 2, ...)."""
    hits, false = called[:, 0], called[:, 1]
    ups, downs = (
        np.broadcast_arrays(sizes[:, 0], hits)[0],
        np.broadcast_arrays(sizes[:, 1], hits)[0],
    )
    parts = np.stack([hits, downs - false, hits, downs - false])
    whole = np.stack([ups, downs, hits + false, ups + downs - hits - false])
    found: Floats = np.divide(parts, whole, out=np.full(parts.shape, np.nan), where=whole > 0)
    return found
