"""Stage 2, evaluate: calibration of one class against the rest, as three numbers.

- `observed_expected`: observed share / mean probability; above 1 the probabilities are too low.
- `slope`: b of logit P(class) = a + b logit(p); below 1 the probabilities are too extreme.
- `intercept`: a where b is fixed at 1, calibration in the large on the logit scale; above 0 the
  probabilities are too low.

Sources: Van Calster, McLernon, van Smeden, Wynants and Steyerberg, BMC Medicine 17, 2019;
Steyerberg, Clinical Prediction Models, 2nd edition, 2019.

Intervals of slope and intercept are Wald's, with the variance of the logistic model where every
patient has one row, and that of patients as clusters where one has several (Liang and Zeger,
Biometrika 73(1), 1986). That of the ratio is symmetric on the log scale (Debray et al., BMJ 356,
2017), with the variance of a ratio of two means of patients, as the probabilities vary too.
"""

import math

import numpy as np
from scipy.special import expit, logit, ndtri

from her2.core.types import Bools, Floats, Ints
from her2.evaluation.intervals import Estimate
from her2.evaluation.shares import wilson

OBSERVED_EXPECTED, SLOPE, INTERCEPT = PER_CLASS = "observed_expected", "slope", "intercept"
LARGEST_SLOPE = 50.0
"""A slope or intercept beyond it means probabilities that hardly differ, or that separate a class
from the rest: then the likelihood has no maximum, and the search stops anywhere."""


def recalibration(
    hits: Bools, probabilities: Floats, patients: Ints, confidence: float
) -> dict[str, Estimate]:
    """Return the three figures of a class.

    Args:
        hits: whether each row is of the class (n,).
        probabilities: predicted for the class (n,).
        patients: patient of each row (n,).
        confidence: confidence level of the intervals.
    """
    if not len(hits):
        return dict.fromkeys(PER_CLASS, Estimate(math.nan, note="not defined: no rows"))
    ratio = _ratio(hits, probabilities, patients, confidence)
    if hits.all() or not hits.any():
        which = "every" if hits.any() else "no"
        reason = Estimate(math.nan, note=f"not defined: {which} patient is of this class")
        return {OBSERVED_EXPECTED: ratio, SLOPE: reason, INTERCEPT: reason}
    logits = logit(np.clip(probabilities, np.finfo(float).eps, 1 - np.finfo(float).eps))
    return {
        OBSERVED_EXPECTED: ratio,
        SLOPE: _fit(hits, np.stack([np.ones(len(logits)), logits], 1), 0 * logits, patients,
                    confidence),
        INTERCEPT: _fit(hits, np.ones((len(logits), 1)), logits, patients, confidence),
    }  # fmt: skip


def _ratio(hits: Bools, probabilities: Floats, patients: Ints, confidence: float) -> Estimate:
    expected, observed = float(probabilities.mean()), float(hits.mean())
    if not expected > 0:
        return Estimate(math.nan, note="not defined: every probability is 0")
    value, count = observed / expected, len(np.unique(patients))
    if count < 2:
        return Estimate(value, note="interval not defined: 1 patient")
    if not observed:
        return Estimate(value, 0.0, wilson(0, count, confidence)[1] / expected)
    # What a patient adds to observed - value * expected, whose mean is 0.
    parts = np.bincount(patients, hits - value * probabilities)
    error = math.sqrt(count / (count - 1) * (parts**2).sum()) / hits.sum()
    if not error > 0:
        return Estimate(value, note="interval not defined: every probability is exactly right")
    reach = math.exp(_critical(confidence) * error)
    return Estimate(value, value / reach, value * reach)


def _fit(
    hits: Bools, design: Floats, offset: Floats, patients: Ints, confidence: float
) -> Estimate:
    """Return the last coefficient of a logistic regression, by Newton's method.

    Args:
        hits: outcome of each row (n,), both of them.
        design: (n, k).
        offset: added to the linear predictor (n,).
        patients: patient of each row (n,).
        confidence: confidence level of the interval.
    """
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return Estimate(math.nan, note="not defined: every probability is the same")
    beta, information = np.zeros(design.shape[1]), np.eye(design.shape[1])
    for _ in range(100):
        chance = expit(design @ beta + offset)
        information = design.T @ (design * (chance * (1 - chance))[:, None])
        gradient = design.T @ (hits - chance)
        if np.linalg.cond(information) > 1e12:
            return _no_fit(hits, design[:, -1])
        step = np.linalg.solve(information, gradient)
        step *= min(1.0, 5 / max(np.abs(step).max(), 1e-300))
        beta = beta + step
        if np.abs(step).max() < 1e-10:
            break
    if np.abs(beta).max() > LARGEST_SLOPE:
        return _no_fit(hits, design[:, -1])
    inverse = np.linalg.inv(information)
    variance = inverse
    if len(np.unique(patients)) < len(patients):
        scores = design * (hits - expit(design @ beta + offset))[:, None]
        sums = np.stack([np.bincount(patients, column) for column in scores.T], axis=1)
        count = int((np.bincount(patients) > 0).sum())
        if count < 2:
            return Estimate(float(beta[-1]), note="interval not defined: 1 patient")
        variance = inverse @ (sums.T @ sums) @ inverse * count / (count - 1)
    value, error = float(beta[-1]), math.sqrt(variance[-1, -1])
    reach = _critical(confidence) * error
    return Estimate(value, value - reach, value + reach)


def _no_fit(hits: Bools, values: Floats) -> Estimate:
    """Return that there is no slope, and why: of probabilities that hardly differ it is too large.

    Such are the means of many models; that is no sign of a class that is told from the rest.
    """
    inside, outside = values[hits], values[~hits]
    if inside.min() >= outside.max() or inside.max() <= outside.min():
        return Estimate(
            math.nan, note="not defined: the probabilities separate the class perfectly"
        )
    return Estimate(
        math.nan, note="not defined: the probabilities differ too little between patients"
    )


def _critical(confidence: float) -> float:
    return float(-ndtri((1 - confidence) / 2))
