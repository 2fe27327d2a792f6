"""Stage 2, report: the figures of each encoder and head, as they stand on the page."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from sklearn.metrics import roc_curve

from her2.config import EncoderSection
from her2.manifest import FoldEntry
from her2.mil.selection import SELECT_WORDS
from her2.report.figures import Curve, Figure, learning_figure, roc_figure
from her2.report.overlap import mark
from her2.report.read import Model, Results
from her2.report.text import NA, interval, number

UNLABELLED_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure: `0.617`, `[0.529, 0.704]`, and what has to be said beside it."""

    value: str
    interval: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A head of the table of figures; `note` is how many of how many are positive."""

    title: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class HeadlineRow:
    """One encoder and head; `domain` is what its encoder was trained on."""

    encoder: str
    mark: str
    head: str
    domain: str
    source: str
    anchor: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Headline:
    """The figures of a task at one level (`patient` or `slide`)."""

    task_name: str
    level: str
    columns: tuple[Column, ...]
    rows: tuple[HeadlineRow, ...]


@dataclass(frozen=True, slots=True)
class ConfusionRow:
    """A true class: (count, share of the row, is it the diagonal) for each predicted class."""

    name: str
    cells: tuple[tuple[int, float | None, bool], ...]
    total: int


@dataclass(frozen=True, slots=True)
class FoldRow:
    """A trained fold; epochs count from 1."""

    run: str
    train_slides: int
    tune_slides: int
    test_slides: int
    epochs: int
    kept_epoch: int
    tune_loss: str
    trials: int
    options: str


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """Predictions for slides without a label of the task; `rows` are the first of `total`."""

    classes: tuple[str, ...]
    rows: tuple[tuple[str, str, str, tuple[str, ...], int], ...]
    total: int


@dataclass(frozen=True, slots=True)
class ModelSection:
    """All that is shown of one encoder and head on a task."""

    name: str
    mark: str
    anchor: str
    classes: tuple[str, ...]
    roc: Figure
    confusion: tuple[ConfusionRow, ...]
    folds: tuple[FoldRow, ...]
    curves: Figure | None
    selected: str
    trials: int
    unlabelled: Unlabelled


SOURCES = {
    "random": "random weights, not trained on any image",
    "timm": "published weights (timm)",
    "torchvision": "published weights (torchvision)",
    "checkpoint": "weights of a local file",
    "catalogue": "published weights (catalogue)",
    "pretrain": "pre-trained here",
}
DOMAINS = {
    "he": "H&E",
    "ihc": "IHC",
    "he_ihc": "H&E + IHC",
    "natural": "non-medical",
    "none": "none (random)",
}
"""What the page calls the images an encoder was trained on."""
METRICS = {
    "auc": "AUC",
    "quadratic_kappa": "Quadratic weighted kappa",
    "balanced_accuracy": "Balanced accuracy",
}
"""What the figures are called on the page, in its order."""


def headline(results: Results, task_name: str, level: str) -> Headline:
    """AUC per class and macro, then the agreement figures, a row an encoder and head."""
    models = results.task_models(task_name)
    classes = results.config.tasks[task_name].class_names
    wanted = [("auc", name) for name in (*classes, "macro")]
    wanted += [(metric, "") for metric in METRICS if any(_find(m, level, metric) for m in models)]
    counts = {
        name: {_positive(_find(model, level, "auc", name)) for model in models} for name in classes
    }
    # Encoders may have lost different slides; then each cell says its own numbers.
    common = all(len(texts) == 1 for texts in counts.values())
    columns = [
        Column(
            f"{METRICS[metric]} {name}".rstrip(),
            min(counts[name]) if common and name in counts else "",
        )
        for metric, name in wanted
    ]
    rows = [
        HeadlineRow(
            encoder=model.encoder,
            mark=mark(results, model.encoder),
            head=model.head,
            domain=domain(results, model.encoder),
            source=source(results.config.encoders[model.encoder]),
            anchor=model.anchor,
            cells=tuple(
                _cell(
                    _find(model, level, metric, name),
                    with_count=not common,
                    sign=mark(results, model.encoder),
                )
                for metric, name in wanted
            ),
        )
        for model in models
    ]
    return Headline(task_name, level, tuple(columns), tuple(rows))


def domain(results: Results, encoder: str) -> str:
    """The images that an encoder was trained on, as its config declares them."""
    return DOMAINS[results.config.encoders[encoder].domain or "none"]


def source(encoder: EncoderSection) -> str:
    """Where an encoder's weights come from, in words."""
    if encoder.source == "pretrain":
        return f"{SOURCES['pretrain']} on {encoder.data}, from {encoder.init}"
    return SOURCES[encoder.source]


def published(results: Results) -> bool:
    """An encoder has weights of others, whose training data nobody compared with the cohort."""
    sections = results.config.encoders.values()
    return any(section.source not in ("random", "pretrain") for section in sections)


def chance(low: float | None, high: float | None) -> str:
    """What an AUC's interval says about chance (0.5), in words; empty when it is above."""
    if low is None or high is None or low > 0.5:
        return ""
    return "worse than chance" if high < 0.5 else "not distinguishable from chance"


def model_section(results: Results, model: Model) -> ModelSection:
    """One encoder and head on a task, at patient level."""
    marked = mark(results, model.encoder)
    return ModelSection(
        name=model.name,
        mark=marked,
        anchor=model.anchor,
        classes=model.task.class_names,
        roc=roc_figure(
            roc_curves(model, sign=marked), name=model.name, synthetic=results.synthetic
        ),
        confusion=confusion_rows(model),
        folds=fold_rows(model),
        curves=learning_figure(
            {run: table.to_dict(as_series=False) for run, table in model.histories.items()},
            {run: model.folds[run].best_epoch for run in model.histories},
            name=model.name,
            synthetic=results.synthetic,
        ),
        selected=SELECT_WORDS[results.config.training.select],
        trials=max((entry.trials for entry in model.folds.values()), default=1),
        unlabelled=unlabelled(model),
    )


def roc_curves(model: Model, *, sign: str = "") -> list[Curve]:
    """One-vs-rest curves of the patients; a class that is absent has no points.

    `sign` marks every area.
    """
    target = model.patients["target"].to_numpy()
    curves = []
    for index, name in enumerate(model.task.class_names):
        positive = target == index
        record = _find(model, "patient", "auc", name)
        area = number(record["value"] if record else None, sign=sign)
        if positive.any() and not positive.all():
            scores = model.patients[f"prob_{name}"].to_numpy()
            false_rate, true_rate, _ = roc_curve(positive, scores)
        else:
            false_rate = true_rate = np.empty(0)
        curves.append(
            Curve(name, false_rate.tolist(), true_rate.tolist(), area, int(positive.sum()))
        )
    return curves


def confusion_rows(model: Model) -> tuple[ConfusionRow, ...]:
    """Counts of patients and their share of the true class."""
    table = model.confusion.filter(pl.col("level") == "patient")
    counts = {(true, guess): n for _, true, guess, n, _ in table.iter_rows()}
    names = model.task.class_names
    rows = []
    for true in names:
        total = sum(counts[true, guess] for guess in names)
        cells = [
            (counts[true, guess], counts[true, guess] / total if total else None, true == guess)
            for guess in names
        ]
        rows.append(ConfusionRow(true, tuple(cells), total))
    return tuple(rows)


def fold_rows(model: Model) -> tuple[FoldRow, ...]:
    """One row a fold, repeats in order."""
    return tuple(
        FoldRow(
            run=run,
            train_slides=entry.train_slides,
            tune_slides=entry.tune_slides,
            test_slides=entry.test_slides,
            epochs=entry.epochs,
            kept_epoch=entry.best_epoch + 1,
            tune_loss=number(entry.tune_loss),
            trials=entry.trials,
            options=", ".join(f"{key} {value}" for key, value in chosen(entry).items()),
        )
        for run, entry in model.folds.items()
    )


def chosen(entry: FoldEntry) -> dict[str, Any]:
    """The options that a fold's search chose; empty without one."""
    found: dict[str, Any] = json.loads(entry.options) if entry.options else {}
    return found


def protocol(results: Results) -> str:
    """How patients were divided, in words."""
    section = results.config.folds
    if results.split:
        return "the manifest's fixed split (column 'split')"
    sites = {
        "ignored": "",
        "stratified": ", test parts alike in sites",
        "preserved": ", each site in one test part",
        "leave_one_out": ", each test part a site",
    }
    repeats = f" and {section.repeats} repeats" if section.repeats > 1 else ""
    grouped = f"cross-validation with {section.number} folds{repeats}, grouped by patient"
    return grouped + sites[section.sites]


def unlabelled_table(model: Model) -> pl.DataFrame:
    """`slide_id, patient_id, predicted, prob_<class>, models`: means over all models."""
    columns = [f"prob_{name}" for name in model.task.class_names]
    table = (
        model.predictions.filter(pl.col("role") == "predict")
        .group_by("slide_id", "patient_id")
        .agg(*(pl.col(name).mean() for name in columns), models=pl.len().cast(pl.Int64))
        .sort("slide_id")
    )
    best = table.select(columns).to_numpy().argmax(axis=1) if len(table) else []
    predicted = [model.task.class_names[int(index)] for index in best]
    return table.select(
        "slide_id",
        "patient_id",
        pl.Series("predicted", predicted, pl.String),
        *columns,
        "models",
    )


def unlabelled(model: Model) -> Unlabelled:
    """The first slides of `unlabelled_table`."""
    table = unlabelled_table(model)
    return Unlabelled(
        classes=model.task.class_names,
        rows=tuple(
            (slide, patient, predicted, tuple(number(p) for p in probabilities), models)
            for slide, patient, predicted, *probabilities, models in table.head(
                UNLABELLED_SHOWN
            ).iter_rows()
        ),
        total=len(table),
    )


def _find(model: Model, level: str, metric: str, name: str = "") -> dict[str, Any] | None:
    """The record of one figure; None when the evaluation does not hold it."""
    rows = model.level(level).filter((pl.col("metric") == metric) & (pl.col("class") == name))
    return rows.to_dicts()[0] if len(rows) else None


def _positive(record: dict[str, Any] | None) -> str:
    return f"{record['n_positive']} of {record['n']}" if record else ""


def _cell(record: dict[str, Any] | None, *, with_count: bool, sign: str) -> Cell:
    if record is None:
        return Cell(NA, note="not evaluated")
    notes = [record["note"]] if record["note"] else []
    if record["class"] == "macro" and (words := chance(record["low"], record["high"])):
        notes.append(words)
    if with_count and record["n_positive"] is not None:
        notes.append(_positive(record))
    value = number(record["value"], sign=sign)
    return Cell(value, interval(record["low"], record["high"]), "; ".join(notes))
