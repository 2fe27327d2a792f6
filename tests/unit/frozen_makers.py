"""Trained and evaluated folds in a results folder, and an external cohort beside them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from her2.cohort.manifest import Cohort
from her2.config import EvaluationSection
from her2.config.external_jobs import ApplySpec, RefitSpec
from her2.config.jobs import ClassBalance, EvaluateSpec
from her2.config.names import Run
from her2.core.files import digest
from her2.evaluation.stage import evaluate
from her2.frozen.folders import read_folders
from her2.frozen.model import FrozenModel
from her2.frozen.results import read_frozen
from her2.frozen.stage import apply_models
from her2.mil.refit import refit_model
from her2.mil.stage import train_folds
from her2.storage.entries import FeatureEntry, write_entries
from tests.unit.products import write_store
from tests.unit.test_train_folds import BUCKET, TASK, D, World, build, cohort

SECTION = EvaluationSection(bootstrap=100, specificity=0.8, sensitivity=0.7)
NAMES = ("score", "plain", "abmil")
CHUNK = "r0f0-r0f2"


@dataclass
class Results:
    """A world whose models and tables lie as in a results folder."""

    world: World

    @property
    def root(self) -> Path:
        return self.world.root / "results"

    @property
    def models(self) -> Path:
        return self.root.joinpath("models", *NAMES)

    @property
    def evaluation(self) -> Path:
        return self.root.joinpath("evaluation", *NAMES)

    @property
    def external(self) -> Path:
        return self.root / "validation" / "yale" / "features" / "plain"

    @property
    def output(self) -> Path:
        return self.root.joinpath("validation", "yale", "predictions", *NAMES)

    @property
    def table(self) -> pl.DataFrame:
        return pl.read_parquet(self.evaluation / "predictions.parquet")

    def train(self, *, chunk: str = CHUNK, **changed: object) -> None:
        train_folds(
            self.world.spec.model_copy(update=changed), self.world.cache, folds=self.world.folds,
            features=self.world.features, output=self.models / f"{chunk}.json",
        )  # fmt: skip

    def evaluate(self, *chunks: str) -> None:
        spec = EvaluateSpec(
            task=self.world.spec.task, chunks=chunks or (CHUNK,), evaluation=SECTION, seed=1,
            training=ClassBalance(balance="sampling"),
        )  # fmt: skip
        evaluate(spec, self.world.cache, folds=self.world.folds, models=self.models,
                 output=self.evaluation)  # fmt: skip

    def refit(self) -> None:
        own = self.world.spec
        spec = RefitSpec(
            task=own.task, head=own.head, training=own.training, chunks=(CHUNK,),
            buckets=(BUCKET,), seed=own.seed,
        )  # fmt: skip
        refit_model(
            spec, self.world.cache, folds=self.world.folds, models=self.models,
            features=self.world.features, output=self.models / "refit.json",
        )  # fmt: skip

    def frozen(self, **changed: object) -> FrozenModel:
        task, encoder, head = NAMES
        values = {"task_name": task, "encoder": encoder, "head": head, "chunks": (CHUNK,),
                  "section": SECTION, "threads": 1}  # fmt: skip
        return read_frozen(self.evaluation, self.models, **(values | changed))

    def embed(self, names: list[str], *, lost: dict[str, str] | None = None, shift: float = 0.0,
              encoder: str = "e", d: int = D, target: dict | None = None) -> None:  # fmt: skip
        """Give the external cohort slides with features, and some without."""
        entries = {name: FeatureEntry("failed", reason) for name, reason in (lost or {}).items()}
        for index, name in enumerate(names):
            key = digest(["external", name, shift, encoder, d, target])
            values = np.random.default_rng(index + 100).normal(size=(7 + index, d)) + shift
            attributes = {"key": key, "encoder": {"digest": encoder}}
            if target is not None:
                attributes["target"] = target
            with self.world.cache.publish("features", key) as path:
                coords = np.zeros((7 + index, 2), np.int32)
                write_store(path, values.astype(np.float16), coords, attributes)
            entries[name] = FeatureEntry("ok", None, key, 7 + index, 0, d)
        write_entries(self.external / f"{BUCKET}.json", entries)

    def apply(self, **changed: object) -> pl.DataFrame:
        values = {"cohort": "yale", "task": TASK, "chunks": (CHUNK,), "buckets": (BUCKET,),
                  "max_excluded": 0.5, "seed": 7}  # fmt: skip
        return apply_models(
            ApplySpec(**(values | changed)), self.world.cache, evaluation=self.evaluation,
            models=self.models, folds=self.world.folds, features=self.external,
            development=self.world.features, output=self.output,
        )  # fmt: skip


def make(root: Path, slides: Cohort | None = None, **changed: object) -> Results:
    """Return trained and evaluated results: 3 folds, of 12 patients of each class by default."""
    runs = tuple(Run(0, fold) for fold in range(3))
    results = Results(build(root, slides or cohort(12), runs=runs, **changed))
    results.train()
    results.evaluate()
    return results


def folders(*given: object, **options: object) -> tuple[FrozenModel, tuple[str, ...]]:
    """Return the model of some folders, and what it lacks."""
    found = read_folders(*given, **options)
    return found.model, found.notes
