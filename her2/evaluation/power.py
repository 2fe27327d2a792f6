"""Before a study: the precision that a number of patients gives.

Studies are simulated with the stated numbers of patients and evaluated by the functions that
evaluate real ones (`her2.evaluation.areas`, `her2.evaluation.intervals`). So the expected interval
is what the report will show if the assumed AUC is true, factors for shared training included.

The scores of a patient are normal, sum to 0 over the classes as log probabilities do, and are
higher for the patient's class, so that each class has the assumed AUC against the rest. With c
classes the shift is Phi^-1(AUC) sqrt(2 (c - 1) / c). Two models are equally good; their scores of
patients of one class have the stated correlation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import nctdtrinc, ndtri, stdtrit

from her2.core.errors import UserError
from her2.core.types import Floats, Ints
from her2.evaluation.areas import Area, HeldOut, class_areas, combined, macro_area
from her2.evaluation.intervals import (
    Estimate,
    area_estimate,
    difference_estimate,
    mean_estimate,
    spread,
)

ASSUMED_AUC = 0.75
CORRELATION = 0.5
"""Correlation of the scores of two models. `docs/power.md` has what simulations show of it."""
POWER = 0.8
STUDIES = 200
"""Number of simulated studies; another seed gives widths that differ by up to 4 %."""
SEED = 8
MOST_PATIENTS, MOST_REPEATS = 100_000, 100
"""A design of so many is simulated in minutes."""
MACRO = "macro"


@dataclass(frozen=True, slots=True)
class Design:
    """A study to be.

    Attributes:
        sizes: number of patients in each class.
        auc: the true AUC of each class against the rest.
        folds: number of test sets; 1 for a fixed one.
        repeats: complete cross-validations, which divide the same scores in other ways.
        confidence: level of the intervals.
        correlation: of the scores of two models.
        power: probability that a difference is shown.
    """

    sizes: tuple[int, ...]
    auc: float = ASSUMED_AUC
    folds: int = 5
    repeats: int = 1
    confidence: float = 0.95
    correlation: float = CORRELATION
    power: float = POWER


@dataclass(frozen=True, slots=True)
class Precision:
    """What to expect of one figure.

    Attributes:
        figure: `macro` or the position of a class, from 1.
        n: number of patients in the class, or of all.
        low, high: mean limits of its interval.
        difference: the smallest difference between two models that is shown with the power; NaN if
            none can be.
        note: why something is not defined; "" if all is.
    """

    figure: str
    n: int
    low: float
    high: float
    difference: float
    note: str

    @property
    def width(self) -> float:
        """Expected width of its interval."""
        return self.high - self.low


@cache
def precision(design: Design) -> tuple[Precision, ...]:
    """Return what to expect of the macro AUC and of the AUC of each class.

    Raises:
        UserError: a number is out of bounds; it is named as an option of `her2 power`.
    """
    check(design)
    # By number of patients, since classes of equal size differ by chance alone; 0 is the macro AUC.
    found: dict[int, list[tuple[Estimate, float, str]]] = {}
    generator = np.random.default_rng(SEED)
    for _ in range(STUDIES):
        first, second = (_areas(rows) for rows in _study(design, generator))
        for size, one, other in zip((0, *design.sizes), first, second, strict=True):
            if size:
                estimate = area_estimate(one, design.confidence)
            else:
                estimate = mean_estimate(one, first[1:], design.confidence)
            gap = combined([one, other], [1, -1], groups=one.groups)
            found.setdefault(size, []).append((estimate, *_smallest(gap, design)))
    classes = [
        _precision(str(index + 1), size, found[size], design.auc)
        for index, size in enumerate(design.sizes)
    ]
    return (_precision(MACRO, sum(design.sizes), found[0], design.auc), *classes)


def check(design: Design) -> None:
    """Check the numbers of a design.

    Raises:
        UserError: one is out of bounds.
    """
    if len(design.sizes) < 2:
        raise UserError("--classes: names one class; give the number of patients in 2 or more.")
    if min(design.sizes) < 2:
        raise UserError(
            f"--classes: the smallest class is of {min(design.sizes)}, which gives no interval; "
            "each needs 2 patients or more."
        )
    if not 0.5 < design.auc < 1:
        raise UserError(f"--auc: {design.auc:g} is not between 0.5 and 1; 0.5 is chance.")
    patients = sum(design.sizes)
    if patients > MOST_PATIENTS:
        raise UserError(f"--classes: {patients} patients are more than {MOST_PATIENTS:,}.")
    if not 1 <= design.folds <= patients // 2:
        raise UserError(
            f"--folds: {design.folds} is not between 1 (a fixed test set) and {patients // 2} "
            "(2 patients in each)."
        )
    if not 0 <= design.correlation < 1:
        raise UserError(f"--correlation: {design.correlation:g} is not in [0, 1).")
    for name, value in (("confidence", design.confidence), ("power", design.power)):
        if not 0.5 < value < 1:
            raise UserError(f"--{name}: {value:g} is not between 0.5 and 1.")
    if not 1 <= design.repeats <= MOST_REPEATS:
        raise UserError(f"--repeats: {design.repeats} is not between 1 and {MOST_REPEATS}.")


def _study(design: Design, generator: np.random.Generator) -> Iterator[HeldOut]:
    """Yield the held-out predictions of two models for the patients of one study."""
    count, patients = len(design.sizes), sum(design.sizes)
    target = np.repeat(np.arange(count), design.sizes)
    shift = ndtri(design.auc) * np.sqrt(2 * (count - 1) / count)
    common = generator.normal(size=(patients, count))
    folds = np.concatenate(
        [
            _folds(target, design.folds, generator) + repeat * design.folds
            for repeat in range(design.repeats)
        ]
    )
    rows = np.tile(np.arange(patients), design.repeats)
    for _ in range(2):
        own = generator.normal(size=common.shape)
        scores = np.sqrt(design.correlation) * common + np.sqrt(1 - design.correlation) * own
        scores[np.arange(patients), target] += shift
        scores -= scores.mean(axis=1, keepdims=True)
        yield HeldOut(
            target=target[rows],
            probabilities=scores[rows],
            patients=rows,
            models=folds,
            rounds=np.repeat(np.arange(design.repeats), design.folds),
            folds=design.folds,
            names=("",) * patients,
            classes=target,
        )


def _folds(target: Ints, folds: int, generator: np.random.Generator) -> Ints:
    """Deal the patients of each class to the folds in turn."""
    order = np.lexsort([generator.random(len(target)), target])
    place = np.empty(len(target), np.int64)
    place[order] = np.arange(len(target)) % folds
    return place


def _areas(rows: HeldOut) -> list[Area]:
    """Return the macro AUC, then that of each class."""
    classes = class_areas(rows)
    return [macro_area(rows, classes), *classes]


def _smallest(gap: Area, design: Design) -> tuple[float, str]:
    """Return the true difference that a study of this precision shows with the power.

    It is the noncentral t distribution's: a difference is shown if it is more than `critical`
    standard errors from 0.
    """
    found = difference_estimate(gap, design.confidence)
    if np.isnan(found.low):
        return float("nan"), found.note
    freedom = spread(gap)[1]
    critical = float(stdtrit(freedom, (1 + design.confidence) / 2))
    error = (found.high - found.low) / 2 / critical
    return float(nctdtrinc(freedom, 1 - design.power, critical)) * error, ""


def _precision(
    name: str, n: int, found: Sequence[tuple[Estimate, float, str]], auc: float
) -> Precision:
    low, high, difference = (
        _mean(column)
        for column in (
            [one.low for one, _, _ in found],
            [one.high for one, _, _ in found],
            [gap for _, gap, _ in found],
        )
    )
    notes = []
    if np.isnan(low):
        notes.append(next(one.note for one, _, _ in found if one.note))
    if np.isnan(difference):
        notes.append(next(note for _, _, note in found if note))
    elif auc + difference / 2 > 1:
        difference = float("nan")
        notes.append("no two encoders around this AUC differ so much that it would be shown")
    return Precision(name, n, low, high, difference, "; ".join(dict.fromkeys(notes)))


def _mean(values: Sequence[float]) -> float:
    known: Floats = np.array(values)[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
