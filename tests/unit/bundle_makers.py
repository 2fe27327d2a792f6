"""A small bundle by hand: two untrained heads over an encoder with random weights."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from her2.config import EncoderSection, GroupingSection, Task, TilingSection, TrainingSection
from her2.core.files import digest, file_digest
from her2.encoders.card import WEIGHTS_NAME, EncoderCard
from her2.frozen.bundle.hashes import make_hashes, salt_of
from her2.frozen.bundle.schema import (
    ENCODER_NAME,
    SCHEMA_NAME,
    Body,
    DevelopmentThreshold,
    Encoder,
    Figure,
    Fold,
    Grid,
    Software,
    Tiling,
)
from her2.frozen.bundle.write import write_bundle
from her2.frozen.development import ClassAtSite, Count, Development, Number
from her2.frozen.distribution import Distribution
from her2.heads.abmil import AttentionSection
from her2.mil.losses import output_count
from her2.mil.model import Model
from tests.unit.products import materialise

HEAD = AttentionSection(head="abmil", attention=4, hidden=8)
TASK = Task(label="her2", classes={"low": ["0", "1+"], "high": ["2+", "3+"]})
RANDOM = EncoderSection(source="random", model="timm/test_vit", mpp=1.0, size=160)
PATIENTS = ("P-1", "P-2", "P-3")


@dataclass(frozen=True)
class Parts:
    """What a bundle is written from."""

    body: Body
    weights: dict[str, Path]
    encoder: Path

    def write(self, target: Path, *, zipped: bool = False) -> Path:
        write_bundle(self.body, self.weights, target, zipped=zipped)
        return target

    def with_body(self, **changed: Any) -> "Parts":
        body = Body.model_validate({**self.body.values(), **changed})
        return Parts(body, self.weights, self.encoder)

    def with_encoder(self, **changed: Any) -> "Parts":
        """The same with other facts of the encoder, and its weights only if they are included."""
        old = self.body.encoder
        card = EncoderCard(
            **{
                name: changed.get(name, getattr(old, name))
                for name in EncoderCard.__dataclass_fields__
            }
        )
        values = {**old.model_dump(), **changed, "digest": changed.get("digest", card.digest)}
        parts = self.with_body(encoder=values)
        kept = parts.body.encoder.included
        weights = {n: p for n, p in self.weights.items() if kept or n != ENCODER_NAME}
        return Parts(parts.body, weights, self.encoder)


def parts(folder: Path) -> Parts:
    """Write the weights into a folder, and say what a bundle of them says."""
    encoder_folder = folder / "encoder"
    encoder_folder.mkdir(parents=True)
    card = materialise(RANDOM, 3, encoder_folder)
    weights = {ENCODER_NAME: encoder_folder / WEIGHTS_NAME}
    folds = []
    for index in range(2):
        torch.manual_seed(index)
        name = f"r0f{index}.safetensors"
        blank = torch.zeros(card.dimension)
        model = Model(
            HEAD.build(card.dimension, output_count("cross_entropy", 2)), blank, blank + 1
        )
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        safetensors.torch.save_file(state, folder / name)
        weights[name] = folder / name
        folds.append(
            Fold(
                run=f"r0f{index}", weights=name, key=f"{index}" * 64, head=HEAD,
                loss="cross_entropy", training=TrainingSection(), protocol="sound",
                dimension=card.dimension, seed=index, slides={"train": 4, "tune": 2, "test": 2},
                best_epoch=1, epochs=3, tune_loss=0.7, share=(0.75, 0.25), seen=(0.5, 0.5),
                temperature=1.0 + index,
            )
        )  # fmt: skip
    own = {name: getattr(card, name) for name in EncoderCard.__dataclass_fields__}
    body = Body(
        schema_version=1,
        software=Software(her2="0.1.0", packages={"torch": "2.12.1"}, stages={"tile": 2}),
        synthetic=True,
        licence="apache-2.0",
        task_name="score",
        encoder_name="tiny",
        head_name="abmil",
        task=TASK,
        groupings={"low vs high": GroupingSection(negative=("low",), positive=("high",))},
        grid=Grid(mpp=card.mpp, size_px=card.size),
        tiling=Tiling(options=TilingSection(max_tiles=50), seed=7, max_failed_tiles=0.05,
                      tissue={"detected": 3}, annotated=0),
        encoder=Encoder(
            **own, name="tiny", model="timm/test_vit", domain="none", digest=card.digest,
            ran_in=("float32",), revision=None, included=True, why="random weights",
        ),
        final="folds",
        combined_by="mean of calibrated probabilities",
        folds=tuple(folds),
        thresholds=(
            DevelopmentThreshold(
                level="patient", grouping="low vs high", fixed="sensitivity", asked=0.9,
                value=0.4, lowest=0.3, highest=0.5,
            ),
        ),
        development=_development(TASK),
        figures=(
            figure("metrics", metric="auc", of="high", value=0.8, low=0.6, high=0.9),
            figure("metrics", metric="kappa", value=None, note="not defined: one class only"),
            figure("operating", metric="ppv", of="low vs high", at="sensitivity 0.9", value=0.5),
        ),
        confidence=0.95,
        seed=1,
        hashes=make_hashes(
            salt_of([file_digest(weights[fold.weights]) for fold in folds], card.digest),
            patients=PATIENTS,
            slides=[digest(name) for name in PATIENTS],
            cases=["case-9"],
            pretraining_slides=[digest("case-9")],
        ),
    )  # fmt: skip
    return Parts(body, weights, encoder_folder)


def figure(table: str, **values: Any) -> Figure:
    blank = {"level": "patient", "of": "", "at": "", "low": None, "high": None, "n": 12, "note": ""}
    return Figure.model_validate({"table": table, **blank, **values})


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change `bundle.json` and seal it again, as somebody could who knows how."""
    path = bundle / SCHEMA_NAME
    values = json.loads(path.read_text())
    change(values)
    values.pop("digest", None)
    rewrite(path, json.dumps({**values, "digest": digest(values)}).encode())


def rewrite(path: Path, content: bytes) -> None:
    """Change a file, which her2 makes read-only."""
    path.unlink()
    path.write_bytes(content)


def features(dimension: int, tiles: int = 9) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(tiles, dimension)).astype(np.float32)


def _development(task: Task) -> Development:
    """Return the facts of three patients, one slide each."""
    counts = tuple(
        Count(name=name, patients=index + 1, slides=index + 1)
        for index, name in enumerate(task.class_names)
    )
    mpp = Number(
        name="mpp", label="um/px", unit="",
        distribution=Distribution(n=3, percents=(0.0, 50.0, 100.0), values=(0.24, 0.25, 0.5)),
    )  # fmt: skip
    return Development(
        patients=3,
        slides=3,
        classes=counts,
        sites=(Count(name="(missing)", patients=3, slides=3),),
        classes_at_sites=(ClassAtSite(class_name="low", site="(missing)", patients=3, slides=3),),
        vendors=(Count(name="aperio", patients=3, slides=3),),
        numbers=(mpp,),
        categories=(),
        embeddings=None,
    )
