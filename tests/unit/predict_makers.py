"""A predictor with a random encoder and untrained heads, for the tests of `her2 predict`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from her2.config import KEEP_ORDER, EncoderSection, EvaluationSection, Task, TilingSection
from her2.config.heads import HEADS
from her2.evaluation.groupings import groupings_of
from her2.frozen.model import FrozenFold, FrozenModel, Threshold
from her2.mil.fold import SavedModel
from her2.mil.losses import output_count, output_names
from her2.mil.model import Model
from her2.prediction.predictor import Predictor
from tests.unit.products import materialise

TASK = Task(label="her2", classes={"low": ["0", "1+"], "high": ["2+", "3+"]})
MPP, SIZE = 1.0, 64
ENCODER = EncoderSection(source="random", model="timm/resnet10t", mpp=MPP, size=SIZE)
OWN = "low vs high"


def threshold(level: str, fixed: str, value: float) -> Threshold:
    return Threshold(level, OWN, fixed, 0.9, value, value, value)


def make_predictor(folder: Path, *, folds: int = 2, **changed: Any) -> Predictor:
    """Return a predictor whose encoder lies in `folder`."""
    encoder = folder / "encoder"
    card = materialise(ENCODER, 1, encoder)
    model = FrozenModel(
        "score",
        "tiny",
        "abmil",
        TASK,
        tuple(untrained_fold(number, card.dimension, card.digest) for number in range(folds)),
        tuple(
            threshold(level, fixed, value)
            for level in ("slide", "patient")
            for fixed, value in (("specificity", 1.0), ("sensitivity", 0.0))
        ),
    )
    made = Predictor(
        model=model,
        groupings=groupings_of(TASK, EvaluationSection()),
        mpp=MPP,
        size=SIZE,
        tiling=TilingSection(min_tissue=0.3, min_tiles=2),
        seed=None,
        max_failed_tiles=0.0,
        encoder=encoder,
    )
    return replace(made, **changed)


def untrained_fold(number: int, dimension: int, encoder: str) -> FrozenFold:
    """Return a fold whose head has its first random weights."""
    head = HEADS["abmil"].model_validate({"head": "abmil", "attention": 16})
    torch.manual_seed(number)
    module = head.build(dimension, output_count("cross_entropy", 2))
    model = Model(module, torch.zeros(dimension), torch.ones(dimension)).eval()
    card = {
        "head": head.model_dump(mode="json"),
        "task": TASK.model_dump(mode="json", context=KEEP_ORDER),
        "encoder_digest": encoder,
        "dimension": dimension,
        "tiles": {"mpp": MPP, "px": SIZE},
        "outputs": output_names("cross_entropy", TASK.class_names),
    }
    even = np.array([0.5, 0.5])
    return FrozenFold(f"r0f{number}", SavedModel(Path(), model, card), even, even, 1.0 + number)
