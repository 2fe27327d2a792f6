"""Stage 2, evaluate: temperature scaling of each fold's model, fitted on its tuning set alone.

Source: Guo, Pleiss, Sun and Weinberger, ICML 2017.
"""

import logging
import math

import numpy as np
import polars as pl
from scipy.special import log_softmax, softmax

from her2.config import Task
from her2.config.names import Run
from her2.core.types import Floats, Ints
from her2.evaluation.predictions import MODEL, of_run, rows_of, runs

log = logging.getLogger(__name__)

BOUNDS = (0.05, 20.0)
"""Bounds of a temperature, reached where the tuning set is predicted perfectly or not at all."""
TEMPERATURES = {
    "run": pl.String,
    "temperature": pl.Float64,
    "n_tune": pl.Int64,
    "note": pl.String,
}


def fit_temperature(target: Ints, probabilities: Floats) -> tuple[float, str]:
    """Return the temperature with the lowest log loss on rows (n, c), and a note on it.

    The loss is convex in 1 / T, so a single search between the bounds finds the minimum.
    """
    from scipy.optimize import minimize_scalar

    logits = _logits(probabilities)

    def loss(log_temperature: float) -> float:
        given = log_softmax(logits / math.exp(log_temperature), axis=1)
        return -float(given[np.arange(len(target)), target].mean())

    low, high = math.log(BOUNDS[0]), math.log(BOUNDS[1])
    if np.ptp([loss(low), loss(0.0), loss(high)]) < 1e-12:
        return 1.0, "every temperature fits the tuning set equally well"
    found = float(
        minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x
    )
    for bound in BOUNDS:  # near a bound the loss can be flat, and the search stops short of it
        if loss(math.log(bound)) < loss(found) + 1e-9:
            return bound, f"at the bound {bound:g}: the tuning set does not determine a temperature"
    return math.exp(found), ""


def scale(probabilities: Floats, temperature: float | Floats) -> Floats:
    """Return the softmax of log-probabilities (n, c) divided by T, a number or one per row (n, 1).

    The most probable class stays the most probable.
    """
    scaled: Floats = softmax(_logits(probabilities) / temperature, axis=1)
    return scaled


def _logits(probabilities: Floats) -> Floats:
    """Return log-probabilities, clipped at float epsilon."""
    return np.log(np.clip(probabilities, np.finfo(np.float64).eps, None))


def fit_temperatures(predictions: pl.DataFrame, task: Task) -> pl.DataFrame:
    """Fit a temperature for each fold's model on the slides of its tuning set.

    Returns:
        `run, temperature, n_tune, note`; the temperature is null without a tuning set.
    """
    records = []
    for run in runs(predictions):
        rows = rows_of(of_run(predictions, run, "tune"), task)
        temperature, note = (
            fit_temperature(rows.target, rows.probabilities)
            if len(rows)
            else (None, "no tuning set")
        )
        records.append(
            {"run": run.name, "temperature": temperature, "n_tune": len(rows), "note": note}
        )
    return pl.DataFrame(records, schema=TEMPERATURES)


def scaled_predictions(
    predictions: pl.DataFrame, temperatures: pl.DataFrame, task: Task
) -> tuple[pl.DataFrame | None, str]:
    """Return the predictions scaled by their model's temperature, and a note.

    They are None where no model has a temperature. Where only some models lack one, their rows stay
    as predicted, and the note names these models.
    """
    lacking = temperatures.filter(pl.col("temperature").is_null())["run"].to_list()
    if len(lacking) == len(temperatures):
        return None, "not defined: no fold has a tuning set"
    note = ""
    if lacking:
        note = f"left as predicted for lack of a temperature: {', '.join(lacking)}"
        log.warning("%s", note)
    given = dict(temperatures.select("run", pl.col("temperature").fill_null(1.0)).iter_rows())
    by_run = {run: given[run.name] for run in runs(predictions)}
    columns = [f"prob_{name}" for name in task.class_names]
    each = np.array([by_run[Run(*key)] for key in predictions.select(MODEL).iter_rows()])
    probabilities = predictions.select(columns).cast(pl.Float64).to_numpy()
    scaled = scale(probabilities, each[:, None])
    return predictions.with_columns(
        pl.Series(name, scaled[:, index]) for index, name in enumerate(columns)
    ), note
