"""Simulated studies with a known AUC, in batches, for benchmarks/coverage.py.

A batch has s studies of the same patients' classes. Its test predictions become one `HeldOut`, in
which each study has rounds of its own, so that the package computes the AUCs of all studies at
once; `split` gives each study its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from her2.core.types import Floats, Ints
from her2.evaluation.areas import Area, HeldOut, class_areas, macro_area
from her2.evaluation.intervals import Estimate, area_estimate, mean_estimate

CONFIDENCE = 0.95
FOLDS = 5
FEATURES = 10
PENALTY = 5.0
TUNING = 1 / 8
"""Share of the training patients that a model does not see, as those of a tuning set."""
SHAPES = ("normal", "unequal", "mixture", "skewed", "ties")
"""Shapes of the scores of a class, against standard normal ones of the rest.

normal: of the same spread. unequal: twice the spread. mixture: some patients look like the rest,
the others are 4 higher. skewed: an exponential tail towards the rest, three times as long as the
spread. ties: normal, rounded to multiples of 1.5.
"""


def places(target: Ints, shape: tuple[int, ...], generator: np.random.Generator) -> Ints:
    """Return random test folds stratified by class (*shape, n)."""
    order = np.argsort(target + generator.random((*shape, len(target))), axis=-1)
    found = np.empty(order.shape, np.int64)
    np.put_along_axis(
        found, order, np.broadcast_to(np.arange(len(target)) % FOLDS, order.shape), -1
    )
    return found


def held(target: Ints, scores: Floats, place: Ints, patients: Ints | None = None) -> HeldOut:
    """Return the predictions of a batch.

    Args:
        target: class of each row (n,).
        scores: (s, r, n, c), of s studies with r rounds each.
        place: test fold of each row (s, r, n).
        patients: of each row (n,), 0 to p - 1; each row its own if left out.
    """
    studies, rounds, n, classes = scores.shape
    own = np.arange(n) if patients is None else patients
    folds = int(place.max()) + 1
    number = np.arange(studies * rounds)
    by_patient = np.zeros(own.max() + 1, np.int64)
    by_patient[own] = target
    return HeldOut(
        target=np.tile(target, len(number)),
        probabilities=scores.reshape(-1, classes),
        patients=np.tile(own, len(number)),
        models=(number[:, None] * folds + place.reshape(-1, n)).ravel(),
        rounds=np.repeat(number, folds),
        folds=folds,
        names=tuple(f"p{index:03d}" for index in range(len(by_patient))),
        classes=by_patient,
    )


def split(area: Area, studies: int) -> list[Area]:
    """Return the AUC of each study of a batch."""
    rounds = area.rounds.reshape(studies, -1)
    levels = area.levels.reshape(studies, -1)
    influence = area.influence.reshape(studies, rounds.shape[1], -1)
    return [
        replace(area, rounds=own, influence=part, levels=level)
        for own, part, level in zip(rounds, influence, levels, strict=True)
    ]


def shaped(
    shape: str, truth: float, sizes: tuple[int, int], studies: int, generator: np.random.Generator
) -> Floats:
    """Return scores of a class and the rest (s, n), of a shape whose AUC is `truth`."""
    up, down = (generator.normal(size=(studies, size)) for size in sizes)
    if shape == "normal":
        up += np.sqrt(2) * norm.ppf(truth)
    elif shape == "unequal":
        up = 2 * up + np.sqrt(5) * norm.ppf(truth)
    elif shape == "mixture":
        # Patients 4 higher have an AUC of their own, the others 0.5.
        share = (truth - 0.5) / (norm.cdf(4 / np.sqrt(2)) - 0.5)
        up += 4 * (generator.random(up.shape) < share)
    elif shape == "skewed":
        up = _root(_skewed_area, truth) - 3 * generator.exponential(size=up.shape)
    else:
        up, down = (_rounded(part) for part in (up + _root(_tied_area, truth), down))
    return np.concatenate([up, down], axis=1)


def _rounded(scores: Floats) -> Floats:
    return np.round(scores / 1.5)


def _skewed_area(shift: float) -> float:
    return float(quad(lambda e: norm.cdf(shift - 3 * e) * np.exp(-e), 0, 60, limit=200)[0])


def _tied_area(shift: float) -> float:
    edges = (np.arange(-30, 31) - 0.5) * 1.5
    up, down = (np.diff(norm.cdf(edges - mean)) for mean in (shift, 0.0))
    below = np.cumsum(down) - down
    return float((up * (below + down / 2)).sum())


@cache
def _root(area: Callable[[float], float], truth: float) -> float:
    return float(brentq(lambda shift: area(shift) - truth, -8, 25))


@dataclass(frozen=True, slots=True)
class Trained:
    """Cross-validated models of a batch.

    `scores` (s, r, n, c) are out-of-fold. `truth` (s, c) has the AUCs of the models for unlimited
    new patients, averaged over the models. `weights` (m, s, d, c) are those of the models, whose
    scores are linear, and `mean_truth` (s, c) has the AUCs of the mean of their scores.
    """

    scores: Floats
    truth: Floats
    weights: Floats
    mean_truth: Floats


def patients(target: Ints, strength: float, noise: Floats) -> Floats:
    """Return features (s, n, d): noise, of which one per class is higher for its patients."""
    features = noise.copy()
    features[:, np.arange(len(target)), target] += strength
    return features


def cross_validated(
    target: Ints, features: Floats, place: Ints, strength: float, generator: np.random.Generator
) -> Trained:
    """Train ridge regressions of each class against the rest, a model for each test fold.

    Features are normal and alike in all classes but for their means, so the AUC of a linear score
    for new patients is known exactly.
    """
    studies, rounds, n = place.shape
    classes = int(target.max()) + 1
    labels = np.eye(classes)[target]
    shares = labels.mean(axis=0)
    scores = np.empty((studies, rounds, n, classes))
    truth = np.zeros((studies, classes))
    models: list[Floats] = []
    for round_ in range(rounds):
        for fold in range(int(place.max()) + 1):
            test = place[:, round_] == fold
            seen = (~test & (generator.random(test.shape) >= TUNING)).astype(float)
            count = seen.sum(axis=1)[:, None]
            centre = np.einsum("sn,snd->sd", seen, features) / count
            prior = seen @ labels / count
            moved = features - centre[:, None]
            weighted = moved * seen[..., None]
            gram = weighted.transpose(0, 2, 1) @ moved + PENALTY * np.eye(features.shape[2])
            made = np.linalg.solve(gram, weighted.transpose(0, 2, 1) @ (labels - prior[:, None]))
            found = moved @ made + prior[:, None]
            scores[:, round_][test] = found[test]
            truth += _true_areas(made, strength, shares)
            models.append(made)
    weights = np.stack(models)
    mean_truth = _true_areas(weights.mean(axis=0), strength, shares)
    return Trained(scores, truth / len(models), weights, mean_truth)


def _true_areas(made: Floats, strength: float, shares: Floats) -> Floats:
    """Return the AUC of each class (s, c) of linear scores (s, d, c)."""
    classes = len(shares)
    length = np.linalg.norm(made, axis=1)
    means = strength * made[:, :classes, :]  # (s, class of the patient, class of the score)
    own = np.einsum("skk->sk", means)
    reach = np.divide(
        own[:, None] - means, np.sqrt(2) * length[:, None], out=np.zeros_like(means),
        where=length[:, None] > 0,
    )  # fmt: skip
    weights = shares[:, None] * (1 - np.eye(classes))
    return (weights * norm.cdf(reach)).sum(axis=1) / weights.sum(axis=0)


def batches(studies: int, size: int) -> Iterator[int]:
    """Yield the sizes of batches that add up to the number of studies."""
    for first in range(0, studies, size):
        yield min(size, studies - first)


def class_estimates(rows: HeldOut, studies: int) -> list[list[Estimate]]:
    """Return the estimates of each class and of the macro AUC, for each study of a batch."""
    areas = class_areas(rows)
    each = [split(one, studies) for one in areas]
    found = []
    for whole, *parts in zip(split(macro_area(rows, areas), studies), *each, strict=True):
        own = [area_estimate(one, CONFIDENCE) for one in parts]
        found.append([*own, mean_estimate(whole, parts, CONFIDENCE)])
    return found
