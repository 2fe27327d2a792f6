"""An external cohort for tests: what a frozen model said of it, and the development beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from her2.config import EvaluationSection, Task
from her2.config.external_jobs import Truth, ValidateSpec
from her2.evaluation.external.cohort import Evaluated, with_truth
from her2.evaluation.external.covariates import Cohorts
from her2.evaluation.external.stage import validation_tables
from her2.evaluation.temperature import fit_temperatures, scale
from tests.unit.prediction_makers import SCORE, cohort_of, predictions

GRID = "g"
SECTION = EvaluationSection(bootstrap=100)
STATUS = Task(
    label="status",
    classes={"negative": ["Negative"], "positive": ["Positive"]},
    ordinal=True,
)
SAME = Truth(of="score", task=SCORE, truth=SCORE, sides=((0,), (1,), (2,), (3,)))
BINARY = Truth(of="score", task=SCORE, truth=STATUS, sides=((0, 1), (2, 3)))
"""2+ and 3+ are positive."""


def spec_of(truth: Truth = SAME, **changed: Any) -> ValidateSpec:
    given: dict[str, Any] = {
        "cohort": "yale", "truth": truth, "grid": GRID, "patient_label": "refuse",
        "evaluation": SECTION, "seed": 3,
    }  # fmt: skip
    return ValidateSpec(**(given | changed))


def frozen(
    labels: Sequence[int], *, signal: float = 1.0, temperature: float = 2.0, seed: int = 1
) -> pl.DataFrame:
    """Return what `her2 apply` writes for slides `x000`, ... of these classes."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(len(labels), 4))
    logits[np.arange(len(labels)), np.asarray(labels, int)] += signal
    powers = np.exp(logits)
    raw = powers / powers.sum(axis=1, keepdims=True)
    calibrated = scale(raw, temperature)
    names = SCORE.class_names
    return pl.DataFrame(
        {"slide_id": [f"x{i:03d}" for i in range(len(labels))]}
        | {f"prob_{name}": calibrated[:, i] for i, name in enumerate(names)}
        | {f"raw_{name}": raw[:, i] for i, name in enumerate(names)},
        schema_overrides={"slide_id": pl.String},
    )


def single_models(given: pl.DataFrame) -> pl.DataFrame:
    """Return `each.parquet` of three models with the probabilities of their mean."""
    own = given.select(pl.exclude("^raw_.*$"))
    return pl.concat([own.with_columns(run=pl.lit(f"r0f{fold}")) for fold in range(3)])


def table_of(
    labels: Sequence[str | None], *, column: str = "her2", per_patient: int = 1, seed: int = 7
) -> pl.DataFrame:
    """Return the cohort's table of slides `x000`, ... with these labels, of two sites."""
    ids = [f"x{i:03d}" for i in range(len(labels))]
    zero = pl.DataFrame({"slide_id": ids, "target": [0] * len(ids)},
                        schema={"slide_id": pl.String, "target": pl.Int64})  # fmt: skip
    measures = cohort_of(zero, seed=seed).drop("site")
    return measures.with_columns(
        pl.Series("patient_id", [f"q{i // per_patient:03d}" for i in range(len(ids))], pl.String),
        pl.Series("site", [f"hospital {'AB'[i // per_patient % 2]}" for i in range(len(ids))],
                  pl.String),
        pl.Series(f"label_{column}", labels, pl.String),
        reason=pl.lit(None, pl.String),
        vendor=pl.lit("aperio"),
    )  # fmt: skip


@dataclass
class World:
    """Tables of a development and an external cohort, as they lie in the results."""

    given: pl.DataFrame
    cohort: pl.DataFrame
    trained: pl.DataFrame = field(default_factory=lambda: predictions(80, seed=4))
    development: pl.DataFrame | None = None
    each: pl.DataFrame | None = None
    temperatures: pl.DataFrame | None = None

    def __post_init__(self) -> None:
        slides = self.trained.unique("slide_id").sort("slide_id")
        if self.development is None:
            self.development = cohort_of(self.trained).with_columns(
                patient_id=slides["patient_id"],
                label_her2=pl.Series([SCORE.class_names[i] for i in slides["target"]]),
                reason=pl.lit(None, pl.String),
                vendor=pl.lit("aperio"),
            )
        if self.each is None:
            self.each = single_models(self.given)
        if self.temperatures is None:
            self.temperatures = fit_temperatures(self.trained, SCORE)

    @property
    def folds(self) -> pl.DataFrame:
        """Return the folds table in which `trained` was predicted."""
        slides = self.trained.unique("slide_id").select("slide_id", "patient_id", label="target")
        keys = self.trained.select("repeat", "fold").unique()
        held = self.trained.select("slide_id", "repeat", "fold", "role")
        return (
            slides.join(keys, how="cross")
            .join(held, on=["slide_id", "repeat", "fold"], how="left")
            .with_columns(pl.col("role").fill_null("train"))
            .sort("repeat", "fold", "slide_id")
        )

    def write(self, folder: Path) -> dict[str, Path]:
        """Write the tables, and return the arguments of `validate`."""
        places = {
            "predictions": folder / "given.parquet",
            "each": folder / "each.parquet",
            "cohort": folder / "cohort.parquet",
            "development": folder / "development",
            "folds": folder / "folds" / "score.parquet",
            "development_cohort": folder / "slides.parquet",
        }
        for path in (places["development"], places["folds"].parent):
            path.mkdir(parents=True, exist_ok=True)
        assert self.development is not None
        assert self.each is not None
        assert self.temperatures is not None
        for table, path in (
            (self.given, places["predictions"]),
            (self.each, places["each"]),
            (self.cohort, places["cohort"]),
            (self.trained, places["development"] / "predictions.parquet"),
            (self.temperatures, places["development"] / "temperatures.parquet"),
            (self.folds, places["folds"]),
            (self.development, places["development_cohort"]),
        ):
            table.write_parquet(path)
        return places

    def validated(self, spec: ValidateSpec | None = None) -> dict[str, pl.DataFrame]:
        """Return the tables that `validate` writes."""
        spec = spec or spec_of()
        evaluated = self.evaluated(spec)
        assert self.temperatures is not None
        return validation_tables(spec, evaluated, self.temperatures, self.cohorts(evaluated))

    def evaluated(self, spec: ValidateSpec) -> Evaluated:
        """Return the predictions with what the cohort's table says of them."""
        assert self.each is not None
        return with_truth(spec, self.given, self.each, self.cohort)

    def cohorts(self, evaluated: Evaluated) -> Cohorts:
        """Return what covariates are learned on, and read on."""
        assert self.development is not None
        return Cohorts(
            development=self.development,
            folds=self.folds,
            trained=self.trained,
            external=self.cohort.filter(pl.col("status") == "ok"),
            predictions=evaluated.predictions,
        )


def world(count: int = 60, *, truth: Truth = SAME, per_patient: int = 1, **changed: Any) -> World:
    """Return a cohort of `count` slides whose classes are as frequent as in development."""
    labels = [i // per_patient % 4 for i in range(count)]
    words = [
        list(truth.truth.classes.values())[place][0]
        for label in labels
        for place, side in enumerate(truth.sides)
        if label in side
    ]
    cohort = table_of(words, column=truth.truth.label, per_patient=per_patient)
    return World(frozen(labels, **changed), cohort)


def one(table: pl.DataFrame, **values: object) -> dict[str, Any]:
    """Return the only row with these values."""
    found = table.filter(*(pl.col(name) == value for name, value in values.items()))
    assert len(found) == 1, found
    return found.row(0, named=True)
