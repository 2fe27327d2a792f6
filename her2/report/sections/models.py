"""Stage 2, report: everything shown for one encoder and head on a task."""

import json
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import polars as pl

from her2.mil.selection import SELECT_WORDS
from her2.report.figures.base import Figure
from her2.report.figures.curves import Curve, roc_figure
from her2.report.figures.training import learning_figure
from her2.report.format import number
from her2.report.results import DETAILS, EvaluatedModel, Results
from her2.report.section import Link, Section
from her2.report.sections import controls, model_detail, probabilities, seeds
from her2.report.sections.headline import find
from her2.report.sections.model_tables import stacked, stacked_controls
from her2.report.sections.overlap import mark, seen
from her2.report.tables import PageTable
from her2.storage.entries import FoldEntry

UNLABELLED_SHOWN = 50
FULLY_DRAWN = 12
"""Models with every figure; further models have all tables, but only the ROC curves drawn."""


@dataclass(frozen=True, slots=True)
class ConfusionRow:
    """A true class with (count, share of the row, is diagonal) for each predicted class."""

    name: str
    cells: tuple[tuple[int, float | None, bool], ...]
    total: int


@dataclass(frozen=True, slots=True)
class FoldRow:
    """One trained model; epochs count from 1."""

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
    """Everything shown for one encoder and head on a task.

    `figures` come with captions; models after the first `FULLY_DRAWN` have none.
    """

    name: str
    mark: str
    anchor: str
    classes: tuple[str, ...]
    roc: Figure
    figures: tuple[tuple[Figure, str], ...]
    tables: tuple[PageTable, ...]
    fold_figures: PageTable
    confusion: tuple[ConfusionRow, ...]
    folds: tuple[FoldRow, ...]
    curves: Figure | None
    selected: str
    trials: int
    unlabelled: Unlabelled


def model_section(
    results: Results, model: EvaluatedModel, *, all_figures: bool = True
) -> ModelSection:
    """Return everything shown for one encoder and head on a task, at patient level."""
    marked = mark(results, model.encoder)
    tables = (
        model_detail.figures_page_table(results, model),
        model_detail.binary_page_table(results, model),
        seeds.seeds_page_table(results, model),
        probabilities.calibration_page_table(model),
        probabilities.class_calibration_page_table(model),
        probabilities.operating_page_table(model),
        controls.subgroups_page_table(results, model),
    )
    return ModelSection(
        name=model.name,
        mark=marked,
        anchor=model.anchor,
        classes=model.task.class_names,
        roc=roc_figure(roc_curves(model, sign=marked), model.name, results.figure_context),
        figures=_figures(results, model) if all_figures else (),
        tables=tuple(found for found in tables if found is not None),
        fold_figures=model_detail.folds_page_table(model),
        confusion=confusion_rows(model),
        folds=fold_rows(model),
        curves=learning_figure(
            {run: table.to_dict(as_series=False) for run, table in model.histories.items()},
            {run: model.folds[run].best_epoch for run in model.histories},
            model.name,
            results.figure_context,
        )
        if all_figures
        else None,
        selected=SELECT_WORDS[results.config.training.select],
        trials=max((entry.trials for entry in model.folds.values()), default=1),
        unlabelled=unlabelled(model),
    )


def _figures(results: Results, model: EvaluatedModel) -> tuple[tuple[Figure, str], ...]:
    found = (
        (
            model_detail.precision(results, model),
            "Precision over recall of each score. Dotted: its prevalence, the level of chance.",
        ),
        (
            controls.shuffled(results, model),
            "Macro AUC when the labels of held-out patients are shuffled within their test sets.",
        ),
        (
            probabilities.reliability(results, model),
            "Observed share of patients with a score, by predicted probability, with Wilson "
            "intervals. Dotted: perfect calibration.",
        ),
        (
            probabilities.benefit(results, model),
            "Decision curves: net benefit of acting on the model, of treating everyone and of "
            "treating no one, by threshold probability (Vickers and Elkin 2006).",
        ),
    )
    return tuple((figure, words) for figure, words in found if figure is not None)


def roc_curves(model: EvaluatedModel, *, sign: str = "") -> list[Curve]:
    """Return the one-vs-rest curves at patient level; a class that is absent has no points.

    `sign` marks every area.
    """
    from sklearn.metrics import roc_curve

    target = model.patients["target"].to_numpy()
    curves = []
    for index, name in enumerate(model.task.class_names):
        positive = target == index
        record = find(model, "patient", "auc", name)
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


def confusion_rows(model: EvaluatedModel) -> tuple[ConfusionRow, ...]:
    """Return counts of patients, and their shares of the true class."""
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


def fold_rows(model: EvaluatedModel) -> tuple[FoldRow, ...]:
    """Return one row per trained model, with seeds, repeats and folds in order."""
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
    """Return the options that a fold's search chose; empty without a search."""
    found: dict[str, Any] = json.loads(entry.options) if entry.options else {}
    return found


def unlabelled_table(model: EvaluatedModel) -> pl.DataFrame:
    """Return the predictions for unlabelled slides, averaged over the models of all folds.

    Columns: `slide_id, patient_id, predicted, prob_<class>, models`.
    """
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


def unlabelled(model: EvaluatedModel) -> Unlabelled:
    """Return the first slides of `unlabelled_table`."""
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


@dataclass(frozen=True, slots=True)
class ModelsData:
    """Data of the section: all models, the first `fully_drawn` of them with every figure."""

    models: list[ModelSection]
    fully_drawn: int


def _collect(results: Results) -> ModelsData:
    return ModelsData(
        [
            model_section(results, model, all_figures=index < FULLY_DRAWN)
            for index, model in enumerate(results.models)
        ],
        FULLY_DRAWN,
    )


def folds_table(results: Results) -> pl.DataFrame:
    """Return one row per trained model."""
    rows = [
        {
            "task": model.task_name,
            "encoder": model.encoder,
            "head": model.head,
            **{key: value for key, value in asdict(row).items() if key != "tune_loss"},
            "tune_loss": model.folds[row.run].tune_loss,
            "options": model.folds[row.run].options,
            "overlap": seen(results, model.encoder),
        }
        for model in results.models
        for row in fold_rows(model)
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


SECTION = Section(
    anchor="models",
    title="Encoders and heads",
    order=50,
    collect=_collect,
    links=lambda data: (Link(f"Encoders and heads ({len(data.models)})", "models"),),
    tables={
        **{name: stacked(attrgetter(name)) for name in DETAILS},
        **stacked_controls("subgroups"),
        "folds": folds_table,
        "unlabelled": stacked(unlabelled_table),
    },
)
