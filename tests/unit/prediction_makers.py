"""Predictions tables for tests: a cohort of the four scores, folds, repeats and tuning sets."""

import numpy as np
import polars as pl

from her2.config import Task

SCORE = Task(
    label="her2",
    classes={"0": ["0"], "1+": ["1+"], "2+": ["2+"], "3+": ["3+"]},
    ordinal=True,
)


def predictions(
    patients: int = 80,
    *,
    slides: int = 1,
    folds: int = 4,
    repeats: int = 1,
    signal: float = 1.0,
    sharpness: float = 1.0,
    tuned: bool = True,
    seed: int = 0,
) -> pl.DataFrame:
    """Test each patient once per repeat; the next fold's patients are the tuning set.

    Probabilities are the softmax of normal noise, `signal` higher for the true class, times
    `sharpness`. With `sharpness` 1 and the classes alike they are calibrated: they are the
    posterior of such noise where signal is 1.
    """
    generator = np.random.default_rng(seed)
    labels = np.arange(patients) % 4
    records = []
    for repeat in range(repeats):
        place = generator.permutation(patients) % folds
        for fold in range(folds):
            roles = {"test": place == fold}
            if tuned:
                roles["tune"] = place == (fold + 1) % folds
            for role, members in roles.items():
                for patient in np.flatnonzero(members):
                    for slide in range(slides):
                        logits = generator.normal(size=4)
                        logits[labels[patient]] += signal
                        powers = np.exp(sharpness * logits)
                        records.append(
                            (f"s{patient:03d}-{slide}", f"p{patient:03d}", repeat, fold, role,
                             int(labels[patient]), *(powers / powers.sum()))
                        )  # fmt: skip
    schema = {
        "slide_id": pl.String, "patient_id": pl.String, "repeat": pl.Int32, "fold": pl.Int32,
        "role": pl.String, "target": pl.Int32,
        **{f"prob_{name}": pl.Float64 for name in SCORE.class_names},
    }  # fmt: skip
    return pl.DataFrame(records, schema=schema, orient="row")
