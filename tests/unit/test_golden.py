"""A stage whose output changes gets a new version, or caches would still serve the old output.

`golden.json` has each stage's output for a fixed input, and its version. After an intended change,
raise the stage's number in `her2.config.jobs.VERSIONS` and regenerate the file with
`python -m tests.unit.test_golden`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from her2.cohort.split import assign_roles
from her2.config import EvaluationSection, Task, TilingSection, TrainingSection, parse_config
from her2.config.jobs import VERSIONS
from her2.evaluation.figures import figures
from her2.evaluation.robustness.neighbours import nearest, robustness_index
from her2.evaluation.robustness.probe import probe
from her2.evaluation.robustness.similarity import linear_cka, participation_ratio
from her2.frozen.distance import reference_of
from her2.frozen.model import FrozenFold, FrozenModel
from her2.mil.bags import Bag
from her2.mil.fold import SavedModel
from her2.mil.model import predict
from her2.mil.train import Trained, train_fold
from her2.slides.slide import Scale
from her2.storage.features import FeatureStore
from her2.tiling.grid import tile_slide

GOLDEN = Path(__file__).with_name("golden.json")
TASK = Task(label="x", classes={"a": ["0"], "b": ["1"], "c": ["2"]}, ordinal=True)


class _Painted:
    """A slide in memory: pink discs on glass, at 0.5 um/px."""

    width_px, height_px, vendor = 4000, 3000, "painted"

    def thumbnail(self, mpp: float, scale: Scale) -> np.ndarray:
        height, width = round(3000 * 0.5 / mpp), round(4000 * 0.5 / mpp)
        y, x = np.mgrid[:height, :width] * mpp
        image = np.full((height, width, 3), 244, np.uint8)
        for cx, cy, radius in ((700, 600, 450), (1500, 1000, 300), (400, 1300, 30)):
            image[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = (200, 120, 170)
        return image

    def region(self, *_: object, **__: object) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)

    def read_level(self, target_mpp: float, scale: Scale) -> int:
        return 0


def tile() -> Any:
    slide: Any = _Painted()
    table, _ = tile_slide(
        slide, Scale(0.5, 0.5, "manifest"), mpp=0.75, size=224, tiling=TilingSection(),
        fingerprint="",
    )  # fmt: skip
    return {
        "tiles": len(table),
        "first": table.coords[:5].tolist(),
        "sum": table.coords.sum(axis=0).tolist(),
        "tissue": round(float(table.tissue.mean()), 3),
    }


def folds() -> Any:
    patients = {f"p{i:02d}": i % 3 for i in range(30)}
    found = assign_roles(patients, TASK, folds=3, repeats=1, tune=0.2, seed=5)
    return {str(key): "".join(roles[p][1] for p in sorted(roles)) for key, roles in found.items()}


def evaluate() -> Any:
    generator = np.random.default_rng(3)
    target = np.repeat([0, 1, 2], 10)
    scores = generator.dirichlet(np.ones(3), 30)
    table = pl.DataFrame(
        {
            "patient_id": [f"p{i:02d}" for i in range(30)],
            "repeat": [0] * 30,
            "fold": [i % 2 for i in range(30)],
            "seed": [0] * 30,
            "role": ["test"] * 30,
            "target": target,
            **{f"prob_{name}": scores[:, i] for i, name in enumerate("abc")},
        }
    )
    found = figures(table, TASK, EvaluationSection(bootstrap=200), level="patient", seed=1)
    return [
        [metric, name, round(value, 6), round(low, 6), round(high, 6)]
        for metric, name, value, low, high in found.select(
            "metric", "class", "value", "low", "high"
        ).iter_rows()
    ]


def robustness() -> Any:
    """Return a probe, the index with its limits, a similarity and a participation ratio."""
    generator = np.random.default_rng(6)
    patients = np.repeat(np.arange(24), 5)
    classes, sites = patients % 3, patients // 12
    tiles = generator.normal(size=(120, 10)).astype(np.float32)
    tiles[:, 0] += sites
    tiles[:, 1] += classes
    means = tiles.reshape(24, 5, 10).mean(axis=1, dtype=float)
    found = probe(means, sites[::5], confidence=0.95, seed=1)
    near = nearest(tiles, patients, 5)
    (index,) = robustness_index(*near, patients, classes, sites, confidence=0.95, seed=2, ks=(5,))
    values = [found.auc.value, found.auc.low, found.auc.high, found.balanced_accuracy.value]
    values += [index.value, index.low, index.high, index.plain]
    values += [linear_cka(tiles, tiles[:, :4]), participation_ratio(tiles)]
    return [round(float(value), 3) for value in values]


def train() -> Any:
    trained, bags = _trained()
    probabilities = predict(trained.model, bags[15]).probabilities
    return [round(float(value), 3) for value in probabilities]


def apply() -> Any:
    """Return a frozen model's probabilities of a slide, and distances from development."""
    trained, bags = _trained()
    saved = SavedModel(Path(), trained.model, {})
    share, seen = np.array([0.5, 0.3, 0.2]), np.array([0.3, 0.3, 0.4])
    folds = tuple(FrozenFold(f"r0f{i}", saved, share, seen, 1.0 + i) for i in range(2))
    found = FrozenModel("t", "e", "h", TASK, folds, ()).predict(bags[15])
    generator = np.random.default_rng(8)
    reference = reference_of(generator.normal(size=(40, 12)), np.arange(40) // 2)
    assert reference is not None
    distances = reference.distance(generator.normal(size=(5, 12)))
    percentiles = [reference.distances.percentile(value) / 100 for value in distances]
    values = [*found.probabilities, *found.uncalibrated, *found.spread, *distances, *percentiles]
    return [round(float(value), 3) for value in values]


def _trained() -> tuple[Trained, list[Bag]]:
    torch.set_num_threads(1)
    generator = np.random.default_rng(2)
    bags = []
    for i in range(18):
        features = generator.normal(size=(20, 8)).astype(np.float16)
        features[:, 0] += i % 3
        store = FeatureStore(Path(), (features,), {"encoder": {"digest": "x"}})
        bags.append(Bag(f"s{i}", f"p{i}", str(i), store, i % 3))
    head = parse_config(
        {
            "cohort": {"slides": "x"},
            "tasks": {"t": TASK.model_dump()},
            "encoders": {"e": {"source": "random", "model": "timm/x", "mpp": 1, "size": 96}},
            "heads": {"abmil": {"attention": 4, "hidden": 4, "dropout": 0.0}},
        }
    ).heads["abmil"]
    trained = train_fold(
        bags[:12], bags[12:15], head=head, training=TrainingSection(epochs=5, bag_size=16),
        class_names=TASK.class_names, seed=4, device=torch.device("cpu"),
    )  # fmt: skip
    return trained, bags


STAGES: dict[str, Callable[[], Any]] = {
    "tile": tile,
    "folds": folds,
    "evaluate": evaluate,
    "robustness": robustness,
    "train": train,
    "apply": apply,
}


def renewed() -> dict[str, Any]:
    """Return the current content for `golden.json`."""
    return {name: {"version": VERSIONS[name], "output": make()} for name, make in STAGES.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_a_changed_output_has_a_new_version(stage: str) -> None:
    golden = json.loads(GOLDEN.read_text())[stage]
    assert golden["version"] == VERSIONS[stage], f"renew the golden output of {stage}"
    output = json.loads(json.dumps(STAGES[stage]()))
    if stage in ("train", "apply", "robustness"):  # processors differ in the last digits of a sum
        assert output == pytest.approx(golden["output"], abs=2e-3)
    else:
        assert output == golden["output"], f"{stage} gives another output: raise its version"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(renewed(), indent=1) + "\n")
