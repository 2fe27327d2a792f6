"""What the best of several models is worth, in simulated studies with a known AUC.

    python benchmarks/selection.py                  10 and 50 models, 48 and 100 patients
    python benchmarks/selection.py --better 0.05    one model is better by so much

Each study has four classes of equal size in 5 folds; the next fold is a fold's tuning set. Scores
are normal noise, half of whose variance all models share, and higher for the class of the patient,
so that the true AUC of every class and model is `--auc`. The truth of a study is the true AUC of
the model that was chosen, or the mean of those that were picked.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.special import ndtri

from her2.config import EvaluationSection, Task
from her2.core.types import Floats, Ints
from her2.evaluation.selection import CORRECTED, HIGHEST, NESTED, selection_records

CLASSES = ("a", "b", "c", "d")
TASK = Task(label="x", classes={name: [name] for name in CLASSES})
FOLDS = 5
SHARED = 0.5
"""Share of the noise's variance that is common to all models."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a method says of one kind of study.

    Attributes:
        patients, models: of each study.
        method: the column `method` of the table `selection`.
        value: mean of its figures.
        truth: mean of the true AUCs of what was chosen.
        coverage: share of the intervals that contain the truth.
        width: mean width of the intervals.
    """

    patients: int
    models: int
    method: str
    value: float
    truth: float
    coverage: float
    width: float


def simulated(
    *,
    studies: int,
    patients: int,
    models: int,
    resamples: int = 500,
    auc: float = 0.625,
    better: float = 0.0,
    seed: int = 5,
) -> list[Row]:
    """Simulate studies, and return a row for each method."""
    section = EvaluationSection(bootstrap=resamples, selection="nested", groupings={})
    true = {f"m{index:02d}": auc + better * (index == models - 1) for index in range(models)}
    found: dict[str, list[tuple[float, float, bool, float]]] = {}
    for study in range(studies):
        tables = {(name, "h"): table for name, table in study_tables(true, patients, [seed, study])}
        records, picks = selection_records(tables, TASK, section, seed=study)
        chosen = true[records[0]["encoder"]]
        picked = float(np.mean([true[pick["encoder"]] for pick in picks]))
        for record in records:
            low, high, truth = record["low"], record["high"], chosen
            if record["method"] == NESTED:
                truth = picked
            found.setdefault(record["method"], []).append(
                (record["value"], truth, low <= truth <= high, high - low)
            )
    return [
        Row(patients, models, method, *(float(column) for column in np.mean(found[method], axis=0)))
        for method in (HIGHEST, CORRECTED, NESTED)
    ]


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| patients | models | method | mean | truth | intervals that contain it | mean width |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.patients} | {row.models} | {row.method} | {row.value:.3f} | {row.truth:.3f} "
        f"| {100 * row.coverage:.0f} % | {row.width:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def study_tables(
    true: dict[str, float], patients: int, seed: list[int]
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield each model's name and predictions table."""
    generator = np.random.default_rng(seed)
    target = np.arange(patients) % len(CLASSES)
    place = _places(target, generator)
    common = generator.normal(size=(patients, len(CLASSES)))
    fold = np.concatenate([place, (place - 1) % FOLDS])  # a patient is tuned on by the fold before
    rows = np.tile(np.arange(patients), 2)
    columns = {
        "slide_id": [f"s{index:04d}" for index in rows],
        "patient_id": [f"p{index:04d}" for index in rows],
        "repeat": pl.Series(np.zeros(len(rows)), dtype=pl.Int32),
        "fold": pl.Series(fold, dtype=pl.Int32),
        "seed": pl.Series(np.zeros(len(rows)), dtype=pl.Int32),
        "role": ["test"] * patients + ["tune"] * patients,
        "target": pl.Series(target[rows], dtype=pl.Int32),
    }
    for name, auc in true.items():
        scores = _scores(auc, target, common, generator)
        again = _scores(auc, target, common, generator)  # the model of another fold
        made = np.concatenate([scores, again])
        yield (
            name,
            pl.DataFrame(
                columns | {f"prob_{one}": made[:, index] for index, one in enumerate(CLASSES)}
            ),
        )


def _places(target: Ints, generator: np.random.Generator) -> Ints:
    """Return each patient's fold, with the classes spread evenly."""
    order = np.lexsort([generator.random(len(target)), target])
    place = np.empty(len(target), np.int64)
    place[order] = np.arange(len(target)) % FOLDS
    return place


def _scores(auc: float, target: Ints, common: Floats, generator: np.random.Generator) -> Floats:
    """Return scores (n, c) between 0 and 1, whose AUC for each class is `auc`."""
    own = generator.normal(size=common.shape)
    noise: Floats = np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own
    noise[np.arange(len(target)), target] += np.sqrt(2) * ndtri(auc)
    logistic: Floats = 1 / (1 + np.exp(-noise))
    return logistic


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--auc", type=float, default=0.625)
    parser.add_argument("--better", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=5)
    options = vars(parser.parse_args())
    kinds = [(48, 10), (48, 50), (100, 10), (100, 50)]
    print(table([row for patients, models in kinds for row in
                 simulated(patients=patients, models=models, **options)]))  # fmt: skip


if __name__ == "__main__":
    main()
