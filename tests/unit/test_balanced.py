"""A covariate that is as frequent in every class reads below chance, also within test sets."""

import numpy as np

from her2.core.types import Ints
from her2.evaluation.areas import HeldOut, class_area, macro_area
from her2.evaluation.intervals import mean_estimate

CLASSES, PATIENTS, FOLDS = 4, 12, 5


def shares_of_sites(sites: Ints, generator: np.random.Generator) -> tuple[float, bool]:
    """Predict classes by their shares at the patient's site among the training patients.

    Returns:
        The macro AUC, and whether its interval lies below 0.5.
    """
    classes = np.repeat(np.arange(CLASSES), PATIENTS)
    folds = np.empty(len(classes), np.int64)
    for index in range(CLASSES):
        own = generator.permutation(np.flatnonzero(classes == index))
        folds[own] = (np.arange(PATIENTS) + generator.integers(FOLDS)) % FOLDS
    probabilities = np.empty((len(classes), CLASSES))
    for fold in range(FOLDS):
        for site in (0, 1):
            trained = (folds != fold) & (sites == site)
            everyone = np.bincount(classes[folds != fold], minlength=CLASSES)
            shares = np.bincount(classes[trained], minlength=CLASSES) / everyone + 0.02
            probabilities[(folds == fold) & (sites == site)] = shares / shares.sum()
    rows = HeldOut(
        target=classes,
        probabilities=probabilities,
        patients=np.arange(len(classes)),
        models=folds,
        rounds=np.zeros(FOLDS, np.int64),
        folds=FOLDS,
        names=("",) * len(classes),
        classes=classes,
    )
    areas = [class_area(rows, index) for index in range(CLASSES)]
    found = mean_estimate(macro_area(rows, areas), areas, 0.95)
    return found.value, found.high < 0.5


def test_sites_that_share_every_class_evenly_read_below_chance() -> None:
    generator = np.random.default_rng(0)
    evenly = np.arange(CLASSES * PATIENTS) % 2
    found = [shares_of_sites(evenly, generator) for _ in range(100)]
    values, below = np.mean(found, axis=0)
    assert 0.33 < values < 0.39
    assert below > 0.6


def test_sites_at_random_read_chance() -> None:
    generator = np.random.default_rng(0)
    found = [
        shares_of_sites(generator.integers(0, 2, CLASSES * PATIENTS), generator) for _ in range(100)
    ]
    values, below = np.mean(found, axis=0)
    assert 0.48 < values < 0.53
    assert below < 0.1
