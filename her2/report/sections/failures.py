"""Stage 2, report: the patients that a model got wrong although it was certain."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from her2.report.format import number
from her2.report.results import EvaluatedModel, Results
from her2.report.section import Section
from her2.report.sections.gallery import card_anchor, shown_slides
from her2.report.sections.headline import find
from her2.report.sections.model_tables import stacked
from her2.report.sections.overlap import mark
from her2.report.sections.patient_labels import decided
from her2.report.sections.pictures import all_pictures
from her2.report.shown_model import ShownModel

PATIENTS_SHOWN = 10
MODELS_SHOWN = 3
"""Models of each task on the page, by macro AUC; the table beside the page has all."""


@dataclass(frozen=True, slots=True)
class SlideLink:
    """A slide with the id of its attention picture on the page, else of its card, else ""."""

    slide_id: str
    anchor: str
    has_attention: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A patient whose most probable class is not the true one; `note` is on its labels."""

    patient_id: str
    note: str
    true: str
    predicted: str
    probability_predicted: str
    probability_true: str
    slides: tuple[SlideLink, ...]


@dataclass(frozen=True, slots=True)
class ModelFailures:
    """The first of a model's failures; it got `wrong` of `patients` wrong."""

    name: str
    anchor: str
    mark: str
    macro_auc: str
    rows: tuple[Failure, ...]
    wrong: int
    patients: int


@dataclass(frozen=True, slots=True)
class FailuresData:
    """Data of the section: at most `models_shown` models of each task, and `left_out` in total."""

    models: tuple[ModelFailures, ...]
    models_shown: int
    left_out: int


def failures_table(model: ShownModel) -> pl.DataFrame:
    """Return the patients with a wrong prediction, the most certain first.

    Probabilities are averaged over rounds and over the patient's slides. Columns: `rank` (from 1),
    `patient_id, slides` (ids), `true, predicted, prob_predicted, prob_true`.
    """
    names = dict(enumerate(model.task.class_names))
    probabilities = pl.concat_list([f"prob_{name}" for name in names.values()])
    slides = model.slides.group_by("patient_id").agg(pl.col("slide_id").sort().alias("slides"))
    return (
        model.patients.filter(pl.col("predicted") != pl.col("target"))
        .join(slides, on="patient_id", how="left")
        .select(
            "patient_id",
            pl.col("slides").list.join(" "),
            pl.col("target").replace_strict(names, return_dtype=pl.String).alias("true"),
            pl.col("predicted").replace_strict(names, return_dtype=pl.String),
            probabilities.list.get(pl.col("predicted")).alias("prob_predicted"),
            probabilities.list.get(pl.col("target")).alias("prob_true"),
        )
        .sort("prob_predicted", "prob_true", "patient_id", descending=[True, False, False])
        .with_row_index("rank", offset=1)
        .with_columns(pl.col("rank").cast(pl.Int64))
    )


def shown_models(results: Results) -> list[EvaluatedModel]:
    """Return the models of each task with the highest macro AUC, undefined ones last."""
    return [
        model
        for task_name in results.config.tasks
        for model in sorted(results.task_models(task_name), key=_by_area)[:MODELS_SHOWN]
    ]


def model_failures(results: Results, model: EvaluatedModel) -> ModelFailures:
    """Return the first failures of a model, with links to pictures of their slides."""
    table = failures_table(model)
    differing = decided(results, model.task_name)
    drawn = {
        shown.slide_id: shown.anchor
        for item in all_pictures(results)
        if item.name == model.name
        for shown in item.pictures
    }
    cards = shown_slides(results)
    rows = []
    for row in table.head(PATIENTS_SHOWN).to_dicts():
        patient = row["patient_id"]
        labels = differing[patient].labels if patient in differing else ()
        rows.append(
            Failure(
                patient_id=patient,
                note=f"slides with the labels {', '.join(labels)}" if labels else "",
                true=row["true"],
                predicted=row["predicted"],
                probability_predicted=number(row["prob_predicted"], 2),
                probability_true=number(row["prob_true"], 2),
                slides=tuple(_link(slide, drawn, cards) for slide in row["slides"].split()),
            )
        )
    area = _macro(model)
    return ModelFailures(
        name=model.name,
        anchor=model.anchor.replace("model/", "failures/", 1),
        mark=mark(results, model.encoder),
        macro_auc=number(area),
        rows=tuple(rows),
        wrong=len(table),
        patients=len(model.patients),
    )


def _link(slide_id: str, drawn: Mapping[str, str], cards: frozenset[str]) -> SlideLink:
    card = card_anchor(slide_id) if slide_id in cards else ""
    return SlideLink(slide_id, drawn.get(slide_id, card), slide_id in drawn)


def _macro(model: EvaluatedModel) -> float | None:
    record = find(model, "patient", "auc", "macro")
    return None if record is None else record["value"]


def _by_area(model: EvaluatedModel) -> tuple[bool, float]:
    area = _macro(model)
    return area is None, -(area or 0.0)


def _collect(results: Results) -> FailuresData:
    models = shown_models(results)
    return FailuresData(
        models=tuple(model_failures(results, model) for model in models),
        models_shown=MODELS_SHOWN,
        left_out=len(results.models) - len(models),
    )


SECTION = Section(
    anchor="failures",
    title="Failure analysis",
    order=62,
    collect=_collect,
    is_shown=lambda data: bool(data.models),
    tables={"failures": stacked(failures_table)},
)
