"""Stage 2, train: write a trained fold to a folder, and read it again.

The folder holds `model.safetensors`, `card.json` (written last), `history.parquet`, and for the
slides that the fold held out `predictions.parquet`, `attention.parquet` and, where a head has
several maps or contributions of tiles, `maps.safetensors`. `tune.parquet` has the predictions for
the tuning set, on which temperatures and thresholds are fitted. A search adds `trials.parquet`.
`identity.json` says what determined the fold and what it read (`her2.storage.fold_files`). A model
of all patients (`her2.mil.refit`) has the same files, without held-out slides.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from her2.config import KEEP_ORDER, HeadSection, Task
from her2.config.external_jobs import RefitSpec
from her2.config.jobs import TrainSpec
from her2.core.errors import UserError, first_line
from her2.core.files import canonical_json, digest, file_digest
from her2.core.reading import MAKE_AGAIN
from her2.core.sharing import check_readable
from her2.mil.bags import Bag
from her2.mil.losses import output_count, output_names
from her2.mil.maps import MAPS_NAME
from her2.mil.model import Model, predict, predict_bags
from her2.mil.search import Trial
from her2.mil.train import Trained
from her2.storage.entries import FoldEntry
from her2.storage.fold_files import (
    ReadRows,
    read_fold_card,
    write_fold_card,
    write_identity,
)

MODEL_NAME = "model.safetensors"
_HEAD: TypeAdapter[HeadSection] = TypeAdapter(HeadSection)
PUBLISHED_BAGS = 1600
"""Number of random test bags per fold under the published protocol."""


@dataclass(frozen=True, slots=True)
class Fold:
    """The parts of a trained fold that are written beside its predictions.

    Its key is the digest of `identity`; `read` has what it read of each slide.
    """

    identity: Mapping[str, Any]
    read: ReadRows
    parts: Mapping[str, Sequence[Bag]]
    trained: Trained
    trials: Sequence[Trial]
    seed: int

    @property
    def key(self) -> str:
        return digest(self.identity)


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A fold's saved model and its card."""

    folder: Path
    model: Model
    card: Mapping[str, Any]

    @property
    def task(self) -> Task:
        """The task that the model predicts."""
        return Task.model_validate(self.card["task"])

    @property
    def head(self) -> HeadSection:
        """The head and its options."""
        return _HEAD.validate_python(self.card["head"])


def write_fold(folder: Path, spec: TrainSpec | RefitSpec, fold: Fold) -> None:
    """Predict the held-out slides, and write all files of the fold, the card last."""
    held_out = sorted([*fold.parts["test"], *fold.parts["predict"]], key=lambda bag: bag.slide_id)
    _write_predictions(folder, spec, fold.trained.model, held_out)
    tuned = [(bag, predict(fold.trained.model, bag).probabilities) for bag in fold.parts["tune"]]
    _probability_table(spec, tuned).write_parquet(folder / "tune.parquet")
    if spec.protocol == "published":
        _write_random_bags(folder, spec, fold)
    pl.DataFrame([epoch.row() for epoch in fold.trained.history]).write_parquet(
        folder / "history.parquet"
    )
    if len(fold.trials) > 1:
        pl.DataFrame(
            [asdict(trial) for trial in fold.trials], infer_schema_length=None
        ).write_parquet(folder / "trials.parquet")
    model = fold.trained.model
    state = {n: t.cpu().contiguous() for n, t in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / MODEL_NAME)
    write_identity(folder, fold.identity, fold.read)
    write_fold_card(folder, _card(spec, fold))


def _card(spec: TrainSpec | RefitSpec, fold: Fold) -> dict[str, Any]:
    """Return the identity of a model, and the facts that a slide must match to be predicted."""
    trained, parts = fold.trained, fold.parts
    store = parts["train"][0].store
    return {
        "key": fold.key,
        "version": spec.version,
        "protocol": spec.protocol,
        "head": trained.head.model_dump(mode="json"),
        "search": [trial.options for trial in fold.trials] if len(fold.trials) > 1 else None,
        "training": spec.training.model_dump(mode="json"),
        "loss": trained.model.loss,
        "task": spec.task.model_dump(mode="json", context=KEEP_ORDER),
        "outputs": output_names(trained.model.loss, spec.task.class_names),
        "dimension": store.dimension,
        "encoder_digest": store.attributes["encoder"]["digest"],
        "tiles": store.attributes.get("target"),
        "folds_digest": folds_digest(parts),
        "seed": fold.seed,
        **({"augmentations": views} if (views := len(parts["train"][0].views)) else {}),
        "slides": {role: len(bags) for role, bags in parts.items()},
        "best_epoch": trained.best_epoch,
        "epochs": len(trained.history),
        "tune_loss": trained.best.tune.loss if parts["tune"] else None,
    }


def folds_digest(parts: Mapping[str, Sequence[Bag]]) -> str:
    """Return the digest of the slides and patients in each role."""
    return digest(
        {role: [(bag.slide_id, bag.patient_id) for bag in bags] for role, bags in parts.items()}
    )


def read_entry(folder: Path) -> FoldEntry:
    """Return a fold's entry in the entries file of its chunk.

    Raises:
        UserError: the fold's card cannot be read.
    """
    try:
        card = read_fold_card(folder)
        trials = card["search"]
        return FoldEntry(
            key=card["key"],
            train_slides=card["slides"]["train"],
            tune_slides=card["slides"]["tune"],
            test_slides=card["slides"]["test"],
            best_epoch=card["best_epoch"],
            epochs=card["epochs"],
            tune_loss=None if card["tune_loss"] is None else round(card["tune_loss"], 6),
            trials=len(trials) if trials else 1,
            options=_chosen(card["head"], trials) if trials else "",
        )
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise UserError(
            f"{folder}: has a card that is none of a trained fold "
            f"({type(error).__name__}: {first_line(error)}). {MAKE_AGAIN}"
        ) from None


def load_model(folder: Path, device: torch.device) -> SavedModel:
    """Read the model in a fold's folder.

    Raises:
        UserError: the folder holds no model, its files do not match its card or may not be read.
    """
    check_readable(folder)
    try:
        card = read_fold_card(folder)
        if file_digest(folder / MODEL_NAME) != card["files"][MODEL_NAME]:
            raise ValueError(f"{MODEL_NAME} does not match its card")
        model = build_model(card, safetensors.torch.load_file(folder / MODEL_NAME))
    except safetensors.SafetensorError as error:
        raise UserError(f"{folder / MODEL_NAME}: cannot be read ({error}).") from None
    except Exception as error:  # of a card, or of tensors, that somebody else made
        why = first_line(error).removeprefix(f"{folder}/")
        raise UserError(f"{folder}: is not a trained model ({why}).") from None
    return SavedModel(folder, model.to(device).eval(), card)


def build_model(card: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Model:
    """Build the model of a card, with its weights, on the CPU.

    Raises:
        Exception: of any type, for a card or tensors that somebody else made.
    """
    head: HeadSection = _HEAD.validate_python(card["head"])
    classes, dimension = len(Task.model_validate(card["task"]).classes), card["dimension"]
    module = head.build(dimension, output_count(card["loss"], classes))
    blank = torch.zeros(dimension)
    precision = card["training"]["precision"]
    model = Model(module, blank, blank.clone(), card["loss"], precision)
    model.load_state_dict(state)
    return model


def _write_predictions(
    folder: Path, spec: TrainSpec | RefitSpec, model: Model, held_out: Sequence[Bag]
) -> None:
    rows, attention, maps = [], [], {}
    for bag in held_out:
        found = predict(model, bag)
        rows.append((bag, found.probabilities))
        attention.append((bag.slide_id, found.attention.tolist()))
        for name, values in (("attention", found.maps), ("contribution", found.contribution)):
            if values is not None:
                maps[f"{name}/{bag.slide_id}"] = np.ascontiguousarray(values)
    _probability_table(spec, rows).write_parquet(folder / "predictions.parquet")
    pl.DataFrame(
        attention, schema={"slide_id": pl.String, "attention": pl.List(pl.Float32)}, orient="row"
    ).write_parquet(folder / "attention.parquet")
    if maps:
        safetensors.numpy.save_file(maps, folder / MAPS_NAME)


def _probability_table(
    spec: TrainSpec | RefitSpec, rows: Sequence[tuple[Bag, NDArray[np.floating[Any]]]]
) -> pl.DataFrame:
    """Return a table of `slide_id, patient_id, prob_<class>`."""
    # With explicit types, because a role can be left without a usable slide.
    columns: dict[str, Any] = {"slide_id": pl.String, "patient_id": pl.String}
    columns |= {f"prob_{name}": pl.Float64 for name in spec.task.class_names}
    records = [(bag.slide_id, bag.patient_id, *map(float, given)) for bag, given in rows]
    return pl.DataFrame(records, schema=columns, orient="row")


def _write_random_bags(folder: Path, spec: TrainSpec | RefitSpec, fold: Fold) -> None:
    """Write `bags.parquet`: predictions of random bags, whose AUC arXiv 2411.05028 reports."""
    test = fold.parts["test"]
    if not test:
        return
    drawn, probabilities = predict_bags(
        fold.trained.model,
        test,
        count=PUBLISHED_BAGS,
        bag_size=spec.training.bag_size,
        seed=fold.seed,
    )
    columns = {f"prob_{name}": probabilities[:, i] for i, name in enumerate(spec.task.class_names)}
    pl.DataFrame({"slide_id": [test[i].slide_id for i in drawn], **columns}).write_parquet(
        folder / "bags.parquet"
    )


def _chosen(head: Mapping[str, Any], trials: Sequence[str]) -> str:
    """Return the options of the trial that was kept."""
    options = (json.loads(text) for text in trials)
    return next(canonical_json(o) for o in options if all(head[k] == v for k, v in o.items()))
