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
                            (f"s{patient:03d}-{slide}", f"p{patient:03d}", repeat, fold, 0, role,
                             int(labels[patient]), *(powers / powers.sum()))
                        )  # fmt: skip
    schema = {
        "slide_id": pl.String, "patient_id": pl.String, "repeat": pl.Int32, "fold": pl.Int32,
        "seed": pl.Int32, "role": pl.String, "target": pl.Int32,
        **{f"prob_{name}": pl.Float64 for name in SCORE.class_names},
    }  # fmt: skip
    return pl.DataFrame(records, schema=schema, orient="row")


def cohort_of(table: pl.DataFrame, *, site: object = None, seed: int = 5) -> pl.DataFrame:
    """Slides whose measures know nothing of the label; `site` by label, or at random."""
    generator = np.random.default_rng(seed)
    slides = table.select("slide_id", "target").unique().sort("slide_id")
    n = len(slides)
    sites = np.array(["a", "b", "c", "d"])
    chosen = sites[slides["target"].to_numpy()] if site == "label" else generator.choice(sites, n)
    return pl.DataFrame(
        {
            "slide_id": slides["slide_id"],
            "grid": ["g"] * n,
            "status": ["ok"] * n,
            "site": chosen,
            "scanner": generator.choice(["x", "y"], n),
            "tissue_mm2": generator.uniform(1, 90, n),
            "tiles": generator.integers(50, 900, n),
            "width_px": generator.integers(10_000, 90_000, n),
            "height_px": generator.integers(10_000, 90_000, n),
            "mpp_x": generator.normal(0.25, 0.01, n),
            "mpp_y": generator.normal(0.25, 0.01, n),
        }
    )
