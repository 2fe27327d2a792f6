"""Check the controls on covariates that carry no information on the label.

    python benchmarks/useless.py             200 studies (ten minutes)

Each study has 100 patients, 40 / 30 / 20 / 10 in four classes. Their covariates are random. In 5
folds they are stratified by class; with one site left out at a time, the classes differ between
5 sites, and so does the tissue. By chance the macro AUC is 0.5. The table shows the mean over the
studies with its standard error: over pairs within folds, and with the folds pooled.
"""

import argparse

import numpy as np
import polars as pl
from sklearn.model_selection import StratifiedKFold

from her2.config import Task
from her2.evaluation.areas import class_areas, held_out, macro_area
from her2.evaluation.controls.covariate_models import FOREST, LOGISTIC, predict_by_covariates
from her2.evaluation.controls.covariates import Covariates, covariates_of
from her2.evaluation.figures import measure
from her2.evaluation.predictions import out_of_fold, rows_of
from her2.metrics import metric_named

TASK = Task(label="x", classes={name: [name] for name in ("a", "b", "c", "d")})
TARGET = np.repeat(np.arange(4), (40, 30, 20, 10))
IDS = [f"s{index:03d}" for index in range(len(TARGET))]
FOLDS = 5


def areas(seed: int, *, by_site: bool) -> dict[str, dict[str, float]]:
    """Return model of covariates -> `within` and `pooled` -> macro AUC of one study."""
    generator = np.random.default_rng(seed)
    sites = _sites(generator)
    folds = _folds(sites if by_site else _stratified(seed))
    tested = folds.filter(pl.col("role") == "test").select("slide_id", "repeat", "fold")
    covariates = _random(generator, sites if by_site else None)
    found = {}
    for by in (LOGISTIC, FOREST):
        made = predict_by_covariates(covariates, folds, tested, TASK, by=by, seed=seed)
        rows = held_out(made, TASK, level="patient")
        classes = class_areas(rows)
        pooled = rows_of(out_of_fold(made, TASK.class_names, by="patient_id"), TASK)
        found[by] = {
            "within": macro_area(rows, classes).value,
            "pooled": float(
                measure(pooled, [metric_named("auc_pooled")], TASK, np.ones((1, len(pooled))))[0, 4]
            ),
        }
    kinds = ("within", "pooled")
    found["the larger"] = {kind: max(one[kind] for one in found.values()) for kind in kinds}
    return found


def _sites(generator: np.random.Generator) -> np.ndarray:
    """Return the site of each patient; each class is most frequent at a site of its own."""
    shares = np.full((len(TASK.class_names), FOLDS), 0.15)
    shares[np.arange(4), np.arange(4)] = 0.4
    return np.array([generator.choice(FOLDS, p=shares[target]) for target in TARGET])


def _stratified(seed: int) -> np.ndarray:
    place = np.empty(len(TARGET), int)
    splits = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(TARGET, TARGET)
    for fold, (_, test) in enumerate(splits):
        place[test] = fold
    return place


def _folds(place: np.ndarray) -> pl.DataFrame:
    parts = []
    for fold in range(FOLDS):
        role = np.where(place == (fold + 1) % FOLDS, "tune", "train")
        columns = {"slide_id": IDS, "patient_id": IDS, "label": TARGET, "repeat": 0, "fold": fold}
        parts.append(pl.DataFrame({**columns, "role": np.where(place == fold, "test", role)}))
    return pl.concat(parts)


def _random(generator: np.random.Generator, sites: np.ndarray | None) -> Covariates:
    n = len(TARGET)
    tissue = generator.uniform(1, 90, n)
    cohort = pl.DataFrame(
        {
            "slide_id": IDS,
            "site": generator.choice(["a", "b", "c", "d"], n),
            "scanner": generator.choice(["x", "y"], n),
            "tissue_mm2": tissue if sites is None else tissue * (1 + sites),
            "tiles": generator.integers(50, 900, n),
            "width_px": generator.integers(10_000, 90_000, n),
            "height_px": generator.integers(10_000, 90_000, n),
            "mpp_x": generator.normal(0.25, 0.01, n),
            "mpp_y": generator.normal(0.25, 0.01, n),
        }
    )
    return covariates_of(cohort, IDS)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=200)
    studies = parser.parse_args().studies
    print("| folds | model | within folds | pooled |\n| --- | --- | --- | --- |")
    for words, by_site in ((f"{FOLDS}, stratified", False), ("one site left out", True)):
        found = [areas(seed, by_site=by_site) for seed in range(studies)]
        for by in found[0]:
            cells = []
            for kind in ("within", "pooled"):
                values = np.array([study[by][kind] for study in found])
                values = values[~np.isnan(values)]
                cells.append(f"{values.mean():.3f} ({values.std() / np.sqrt(len(values)):.3f})")
            print(f"| {words} | {by} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
