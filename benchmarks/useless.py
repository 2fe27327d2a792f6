"""Check the covariates control on covariates that carry no information on the label.

    python benchmarks/useless.py             200 studies (two minutes)

Each study has 100 patients, 40 / 30 / 20 / 10 in four classes, in 5 folds stratified by class. The
covariates are random. The table shows the mean AUC of the pooled predictions and its standard
error, for all six covariates and for tissue area alone. By chance the AUC is 0.5.
"""

import argparse

import numpy as np
import polars as pl
from sklearn.model_selection import StratifiedKFold

from her2.config import Task
from her2.evaluation.controls.covariates import (
    NUMBERS,
    Covariates,
    covariates_of,
    predict_by_covariates,
)
from her2.evaluation.figures import measure
from her2.evaluation.predictions import out_of_fold, rows_of

TASK = Task(label="x", classes={name: [name] for name in ("a", "b", "c", "d")})
TARGET = np.repeat(np.arange(4), (40, 30, 20, 10))
IDS = [f"s{index:03d}" for index in range(len(TARGET))]
FOLDS = 5


def area(seed: int, *, only: str | None) -> float:
    """Return the pooled macro AUC of one study."""
    generator = np.random.default_rng(seed)
    folds = _folds(seed)
    tested = folds.filter(pl.col("role") == "test").select("slide_id", "repeat", "fold")
    made = predict_by_covariates(_random(generator, only), folds, tested, TASK)
    rows = rows_of(out_of_fold(made, TASK.class_names, by="patient_id"), TASK)
    return float(measure(rows, TASK, np.ones((1, len(rows))))[0, len(TASK.class_names)])


def _folds(seed: int) -> pl.DataFrame:
    place = np.empty(len(TARGET), int)
    splits = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(TARGET, TARGET)
    for fold, (_, test) in enumerate(splits):
        place[test] = fold
    parts = []
    for fold in range(FOLDS):
        role = np.where(place == (fold + 1) % FOLDS, "tune", "train")
        columns = {"slide_id": IDS, "patient_id": IDS, "label": TARGET, "repeat": 0, "fold": fold}
        parts.append(pl.DataFrame({**columns, "role": np.where(place == fold, "test", role)}))
    return pl.concat(parts)


def _random(generator: np.random.Generator, only: str | None) -> Covariates:
    n = len(TARGET)
    cohort = pl.DataFrame(
        {
            "slide_id": IDS,
            "site": generator.choice(["a", "b", "c", "d"], n),
            "scanner": generator.choice(["x", "y"], n),
            "tissue_mm2": generator.uniform(1, 90, n),
            "tiles": generator.integers(50, 900, n),
            "width_px": generator.integers(10_000, 90_000, n),
            "height_px": generator.integers(10_000, 90_000, n),
            "mpp_x": generator.normal(0.25, 0.01, n),
            "mpp_y": generator.normal(0.25, 0.01, n),
        }
    )
    found = covariates_of(cohort, IDS)
    if only is None:
        return found
    assert only in NUMBERS
    return Covariates(found.table, (only,), (), found.inputs)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=200)
    studies = parser.parse_args().studies
    print("| covariates | macro AUC | standard error |\n| --- | --- | --- |")
    for words, only in (("tissue area alone", "tissue"), ("all six", None)):
        areas = [area(seed, only=only) for seed in range(studies)]
        print(f"| {words} | {np.mean(areas):.3f} | {np.std(areas) / np.sqrt(studies):.3f} |")


if __name__ == "__main__":
    main()
