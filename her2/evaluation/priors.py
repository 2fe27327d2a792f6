"""Stage 2, evaluate: probabilities for classes that are as frequent as in the training set.

`her2.mil.priors` has the method. The shares of a fold's training set come from the folds table, so
that no model is trained again. They are shares of patients: figures are of patients, while a
training draws slides. So a patient's slides count as one, also where nothing was balanced. Only
under the published protocol, which has no patients, they are shares of slides.
"""

import logging
from collections.abc import Collection
from pathlib import Path

import numpy as np
import polars as pl

from her2.config import Task
from her2.config.jobs import EvaluateSpec
from her2.config.names import parse_run
from her2.core.tables import read_result
from her2.evaluation.predictions import MODEL
from her2.mil.priors import PRIORS, seen_shares, with_shares
from her2.storage.entries import read_folds

log = logging.getLogger(__name__)


def training_priors(
    spec: EvaluateSpec, *, folds: Path, models: Path, predicted: Collection[str]
) -> pl.DataFrame:
    """Return the share of each class in every model's training set, and as the training saw it.

    Args:
        spec: the job's spec.
        folds: the task's folds table.
        models: folder of the chunks' entries files.
        predicted: the slides that any of the models predicted, or would have if its fold had one. A
            slide without features is not among them, and was in no training set.

    Returns:
        `run, key, class, slides, patients, share, seen, note`, see `her2.mil.priors.PRIORS`.
    """
    table, names = read_result(folds), spec.task.class_names
    records, notes = [], {}
    for name, entry in read_folds(models, spec.chunks).items():
        run = parse_run(name)
        rows = table.filter(
            (pl.col("repeat") == run.repeat)
            & (pl.col("fold") == run.fold)
            & (pl.col("role") == "train")
        )
        rows, note = _trained_on(rows, predicted, entry.train_slides)
        if note:
            notes[name] = note
        labels = rows["label"].to_numpy()
        slides = np.bincount(labels, minlength=len(names))
        patients = np.bincount(rows.unique("patient_id")["label"].to_numpy(), minlength=len(names))
        counts = slides if spec.protocol == "published" else patients
        shares = zip(
            names, slides, patients, counts / counts.sum(), seen_shares(slides, spec.training),
            strict=True,
        )  # fmt: skip
        records += [(name, entry.key, *values, _absent(values[1], note)) for values in shares]
    for run_name, note in notes.items():
        log.warning("%s: %s", run_name, note)
    return pl.DataFrame(records, schema=PRIORS, orient="row")


def with_training_priors(
    predictions: pl.DataFrame, priors: pl.DataFrame, task: Task
) -> pl.DataFrame:
    """Correct `prob_<class>`, and keep what the model gave as `raw_<class>`.

    Args:
        predictions: the table of `her2.evaluation.predictions.gather_predictions`.
        priors: the table of `training_priors`.
        task: the task, for its classes.
    """
    columns = [f"prob_{name}" for name in task.class_names]
    by_run = {
        parse_run(str(name)): own.select("share", "seen").to_numpy().T
        for (name,), own in priors.partition_by("run", as_dict=True, maintain_order=True).items()
    }
    raw = predictions.select(columns).cast(pl.Float64).to_numpy()
    models = predictions.select(MODEL).to_numpy()
    corrected = raw.copy()
    for run, (share, seen) in by_run.items():
        own = (models == run).all(axis=1)
        corrected[own] = with_shares(raw[own], share, seen)
    return predictions.with_columns(
        *(pl.Series(name, corrected[:, index]) for index, name in enumerate(columns)),
        *(pl.Series(f"raw_{name}", raw[:, index]) for index, name in enumerate(task.class_names)),
    )


def _trained_on(
    rows: pl.DataFrame, predicted: Collection[str], count: int
) -> tuple[pl.DataFrame, str]:
    """Return the training slides that had features, and a note if they are not known.

    In a cross-validation every slide with features is predicted by another fold's model. Under a
    fixed split no model predicts the training set, and slides without features stand out only by
    their number.
    """
    if len(rows) == count:
        return rows, ""
    usable = rows.filter(pl.col("slide_id").is_in(list(predicted)))
    if len(usable) == count:
        return usable, ""
    return rows, (
        f"the model was trained on {count} of the {len(rows)} slides of its training set; as those "
        "without features are not known, all are counted"
    )


def _absent(slides: int, note: str) -> str:
    if slides:
        return note
    return "; ".join(filter(None, (note, "no slide in the training set: not corrected")))
