"""Stage 2, report: the headline metrics of each encoder and head, as shown on the page."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from her2.config import EncoderSection
from her2.libraries import NAMES
from her2.metrics import headline_metrics
from her2.report.format import NA, interval, number
from her2.report.results import EvaluatedModel, Results
from her2.report.sections.controls import covariates_cell
from her2.report.sections.overlap import mark
from her2.report.tables import TableCell


@dataclass(frozen=True, slots=True)
class Column:
    """A column head of the headline table; `note` is the number of positives, as `6 of 18`."""

    title: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class HeadlineRow:
    """One encoder and head; `domain` names the images its encoder was trained on."""

    encoder: str
    mark: str
    head: str
    domain: str
    source: str
    anchor: str
    cells: tuple[TableCell, ...]
    covariates: TableCell | None


@dataclass(frozen=True, slots=True)
class Headline:
    """The headline metrics of a task at one level (`patient` or `slide`)."""

    task_name: str
    level: str
    columns: tuple[Column, ...]
    rows: tuple[HeadlineRow, ...]


SOURCES = {
    "random": "random weights, not trained on any image",
    **{name: f"published weights ({name})" for name in NAMES},
    "checkpoint": "weights from a local file",
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
"""Domain in the config -> its name on the page."""


def headline(results: Results, task_name: str, level: str) -> Headline:
    """Return the headline metrics (AUC for each class and macro first), one row per model."""
    models = results.task_models(task_name)
    classes = results.config.tasks[task_name].class_names
    wanted = [
        (metric, name)
        for metric in headline_metrics()
        for name in metric.columns(classes)
        if name != "weighted"
        and (metric.one_vs_rest or any(find(m, level, metric.name, name) for m in models))
    ]
    counts = {
        name: {_positive(find(model, level, "auc", name)) for model in models} for name in classes
    }
    # Encoders may have lost different slides. Then each cell states its own numbers.
    common = all(len(texts) == 1 for texts in counts.values())
    columns = [
        Column(
            f"{metric.label} {name}".rstrip(),
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
                    find(model, level, metric.name, name),
                    digits=metric.decimals,
                    with_count=not common,
                    sign=mark(results, model.encoder),
                )
                for metric, name in wanted
            ),
            covariates=covariates_cell(model) if level == "patient" else None,
        )
        for model in models
    ]
    return Headline(task_name, level, tuple(columns), tuple(rows))


def domain(results: Results, encoder: str) -> str:
    """Return the name of the images that an encoder was trained on, as the config declares."""
    return DOMAINS[results.config.encoders[encoder].domain or "none"]


def source(encoder: EncoderSection) -> str:
    """Return the source of an encoder's weights, in words."""
    if encoder.source == "pretrain":
        return f"{SOURCES['pretrain']} on {encoder.data}, from {encoder.init}"
    return SOURCES[encoder.source]


def published(results: Results) -> bool:
    """Return whether any encoder's training data were not compared with the cohort."""
    sections = results.config.encoders.values()
    return any(section.source not in ("random", "pretrain") for section in sections)


def chance(low: float | None, high: float | None) -> str:
    """Return how an AUC's interval compares with chance (0.5); empty when it is above."""
    if low is None or high is None or low > 0.5:
        return ""
    return "worse than chance" if high < 0.5 else "not distinguishable from chance"


def protocol(results: Results) -> str:
    """Return the way patients were divided, in words."""
    section = results.config.folds
    if results.split:
        return "the manifest's fixed split (column 'split')"
    sites = {
        "ignored": "",
        "stratified": ", test sets with similar proportions of each site",
        "preserved": ", each site in a single test set",
        "leave_one_out": ", one site as each test set",
    }
    repeats = f" and {section.repeats} repeats" if section.repeats > 1 else ""
    grouped = f"cross-validation with {section.number} folds{repeats}, grouped by patient"
    return grouped + sites[section.sites]


def find(model: EvaluatedModel, level: str, metric: str, name: str = "") -> dict[str, Any] | None:
    """Return the record of one metric; None when the evaluation lacks it."""
    rows = model.level(level).filter((pl.col("metric") == metric) & (pl.col("class") == name))
    return rows.to_dicts()[0] if len(rows) else None


def _positive(record: dict[str, Any] | None) -> str:
    return f"{record['n_positive']} of {record['n']}" if record else ""


def _cell(record: dict[str, Any] | None, *, digits: int, with_count: bool, sign: str) -> TableCell:
    if record is None:
        return TableCell(NA, note="not evaluated")
    notes = [record["note"]] if record["note"] else []
    macro_auc = record["metric"] == "auc" and record["class"] == "macro"
    if macro_auc and (words := chance(record["low"], record["high"])):
        notes.append(words)
    if with_count and record["n_positive"] is not None:
        notes.append(_positive(record))
    value = number(record["value"], digits, sign=sign)
    return TableCell(value, interval(record["low"], record["high"], digits), "; ".join(notes))
