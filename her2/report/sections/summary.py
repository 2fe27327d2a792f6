"""Stage 2, report: the main findings, in sentences and headline metrics."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from her2.report.figures.base import Figure
from her2.report.figures.forest import ForestLine, forest_figure
from her2.report.format import interval, number, plural
from her2.report.results import EvaluatedModel, Results
from her2.report.section import Section
from her2.report.sections import comparison, controls, external_words, headline
from her2.report.sections.controls import covariates_row, shuffled_row
from her2.report.sections.headline import domain, find, verdict
from her2.report.sections.model_tables import stack_models, stacked
from her2.report.sections.overlap import mark
from her2.report.sections.selection import selection_page_table, selection_sentence
from her2.report.tables import PageTable


def sentences(results: Results) -> list[str]:
    """Return one sentence per task: patients, range and best of macro AUC, and its caveats.

    Each is followed by one sentence per external cohort.
    """
    found = []
    for task_name in results.config.tasks:
        models = results.task_models(task_name)
        rows = [(model, row) for model in models if (row := _macro(model))["value"] is not None]
        if not rows:
            found.append(f"Task {task_name}: no macro AUC is defined; the table gives the reason.")
        else:
            rows.sort(key=lambda item: -item[1]["value"])
            found.append(_sentence(results, task_name, rows, len(models)))
        found += external_words.sentences(results, task_name)
    return found


def _sentence(
    results: Results,
    task_name: str,
    rows: list[tuple[EvaluatedModel, dict[str, Any]]],
    total: int,
) -> str:
    best, top = rows[0]
    words = f"{plural(top['n'], 'held-out patient')} with {plural(len(best.slides), 'slide')}"
    text = f"Task {task_name}, {words}: "
    figure = f"{number(top['value'], sign=mark(results, best.encoder))} "
    figure = f"{figure}{interval(top['low'], top['high'])}".rstrip()
    if total == 1:
        text += f"{best.encoder} / {best.head} has a macro AUC of {figure}"
    else:
        least = rows[-1][1]["value"]
        text += (
            f"the macro AUC of {plural(total, 'model')} (encoder and head) ranges from "
            f"{number(least)} to {figure}, the highest with {best.encoder} / {best.head} "
            f"({_pretraining(results, best.encoder)})"
        )
    if words := verdict(best, top):
        text += f", {words}"
    text += "."
    if choice := selection_sentence(results, task_name):
        text += f" {choice}"
    unclear = sum(bool(verdict(model, row)) for model, row in rows)
    if total > 1 and unclear:
        text += (
            f" {unclear} of {total} models {'is' if unclear == 1 else 'are'} not above chance "
            "by their intervals."
        )
    return text


def forest(results: Results, task_name: str) -> Figure | None:
    """Return the figure of all models of a task; None for one model, whose table says the same."""
    lines = []
    for model in results.task_models(task_name):
        row, covariates = _macro(model), covariates_row(model)
        if row["value"] is None:
            continue
        shuffled = shuffled_row(model)
        lines.append(
            ForestLine(
                name=f"{model.encoder} / {model.head}",
                value=row["value"],
                limits=_limits(row, "low", "high"),
                chance=_limits(shuffled, "low", "high"),
                covariates=covariates["covariates"] if covariates else None,
                covariates_limits=_limits(covariates, "covariates_low", "covariates_high"),
            )
        )
    if len(lines) < 2:
        return None
    return forest_figure(lines, task_name, results.figure_context)


def _limits(row: dict[str, Any] | None, low: str, high: str) -> tuple[float, float] | None:
    if row is None or row[low] is None or row[high] is None:
        return None
    return row[low], row[high]


def _pretraining(results: Results, encoder: str) -> str:
    if results.config.encoders[encoder].domain in (None, "none"):
        return "no pre-training"
    if results.config.encoders[encoder].domain == "unknown":
        return "its pre-training not stated"
    return f"pre-trained on {domain(results, encoder)} images"


def _macro(model: EvaluatedModel) -> dict[str, Any]:
    return find(model, "patient", "auc", "macro") or {"value": None}


@dataclass(frozen=True, slots=True)
class SummaryData:
    """Data of the section: sentences and headline metrics, by patient and by slide.

    `compared` is true where the page has a comparison, `published` where an encoder has weights
    that were not trained here.
    """

    sentences: list[str]
    by_patient: list[headline.Headline]
    by_slide: list[headline.Headline]
    forests: list[Figure]
    selections: list[PageTable]
    covariate_warnings: list[controls.CovariateWarning]
    statements: list[comparison.Statement]
    compared: bool
    published: bool


def summary(results: Results) -> SummaryData:
    """Collect the sentences and the headline metrics of all tasks."""
    by_patient, by_slide = (
        [headline.headline(results, task, level) for task in results.config.tasks]
        for level in ("patient", "slide")
    )
    return SummaryData(
        sentences=sentences(results),
        by_patient=by_patient,
        by_slide=by_slide,
        selections=[
            table for task in results.config.tasks if (table := selection_page_table(results, task))
        ],
        forests=[found for task in results.config.tasks if (found := forest(results, task))],
        covariate_warnings=controls.covariate_warnings(results),
        statements=comparison.statements(results),
        compared=bool(results.comparisons),
        published=headline.published(results),
    )


def headline_table(results: Results) -> pl.DataFrame:
    """Return the AUCs at patient level, with the images each encoder was trained on."""
    domains = {name: domain(results, name) for name in results.config.encoders}
    found = stack_models(results, lambda model: model.metrics).filter(
        (pl.col("metric") == "auc")
        & (pl.col("level") == "patient")
        & (pl.col("class") != "weighted")
    )
    return found.select(
        "task",
        "encoder",
        pl.col("encoder").replace_strict(domains).alias("domain"),
        "head",
        "class",
        "n_positive",
        "n",
        pl.col("value").alias("auc"),
        "low",
        "high",
        "lowest",
        "highest",
        "note",
        "overlap",
    )


SECTION = Section(
    anchor="headline",
    title="Summary",
    order=10,
    collect=summary,
    tables={"headline": headline_table, "metrics": stacked(lambda model: model.metrics)},
)
