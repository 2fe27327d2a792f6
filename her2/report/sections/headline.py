"""Stage 2, report: the headline metrics of each encoder and head, as shown on the page."""

from dataclasses import dataclass
from typing import Any

from her2.config import AnyEncoder
from her2.libraries import NAMES
from her2.metrics import headline_metrics
from her2.metrics.base import Metric
from her2.report.format import NA, interval, number, p_value
from her2.report.results import EvaluatedModel, Results
from her2.report.sections.controls import shuffled_row, within_cells
from her2.report.sections.covariate_tables import covariates_cell
from her2.report.sections.external_cells import (
    COVARIATES_ALONE,
    external_cell,
    external_control,
    external_models,
    external_words,
)
from her2.report.sections.overlap import mark
from her2.report.shown_model import ShownModel
from her2.report.shown_model import find as find
from her2.report.tables import TableCell


@dataclass(frozen=True, slots=True)
class Column:
    """A column head of the headline table.

    `note` is the number of positives, as `6 of 18`. `control` marks a column that the model's AUC
    is to be read against.
    """

    title: str
    note: str = ""
    control: bool = False


@dataclass(frozen=True, slots=True)
class HeadlineRow:
    """One encoder and head; `domain` names the images its encoder was trained on.

    `cohort` is the external cohort whose figures these are, "" for those out-of-fold.
    """

    encoder: str
    mark: str
    head: str
    domain: str
    source: str
    anchor: str
    cells: tuple[TableCell, ...]
    cohort: str = ""


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
    "features": "features computed elsewhere",
    "python": "a network of the user's own code",
}
DOMAINS = {
    "he": "H&E",
    "ihc": "IHC",
    "he_ihc": "H&E + IHC",
    "natural": "non-medical",
    "none": "none (random)",
    "unknown": "not stated",
}
"""Domain in the config -> its name on the page."""


SELDOM = 0.025
"""One-sided p value of shuffled labels below which an AUC is better, or worse, than chance."""


def headline(results: Results, task_name: str, level: str) -> Headline:
    """Return the headline metrics (AUC for each class and macro first), one row per model.

    At patient level, the macro AUC is followed by what it is to be read against: covariates alone,
    shuffled labels, and pairs of patients of one site or scanner. Each model is followed by its
    figures on external cohorts.
    """
    models = results.task_models(task_name)
    external = {model.anchor: external_models(results, model) for model in models}
    shown: list[tuple[EvaluatedModel, ShownModel, str, str, str]] = []
    for model in models:
        words = source(results.config.encoders[model.encoder])
        shown.append((model, model, model.anchor, "", words))
        shown += [(model, one, *external_words(one, level)) for one in external[model.anchor]]
    classes = results.config.tasks[task_name].class_names
    wanted = [
        (metric, name)
        for metric in headline_metrics()
        for name in shown_columns(metric, classes)
        if metric.one_vs_rest or any(find(m, level, metric.name, name) for m in models)
    ]
    counts = {
        name: {_positive(find(model, level, "auc", name)) for model in models} for name in classes
    }
    # Encoders may have lost different slides. Then each cell states its own numbers.
    common = all(len(texts) == 1 for texts in counts.values())
    columns: list[Column] = []
    cells: dict[str, list[TableCell]] = {one.anchor: [] for _, one, *_ in shown}
    for metric, name in wanted:
        note = min(counts[name]) if common and name in counts else ""
        title = "" if metric.within_folds and len(classes) == 2 else name
        columns.append(Column(f"{metric.label} {title}".rstrip(), note))
        for model in models:
            record = find(model, level, metric.name, name)
            cells[model.anchor].append(_cell(results, model, record, metric, with_count=not common))
            for one in external[model.anchor]:
                cells[one.anchor].append(external_cell(results, one, level, metric, name))
        if level == "patient" and metric.name == "auc" and name == "macro":
            controls = {model.anchor: _controls(model) for model in models}
            titles = dict.fromkeys(title for own in controls.values() for title in own)
            columns += [Column(*title, control=True) for title in titles]
            for anchor, own in controls.items():
                cells[anchor] += [own.get(title, TableCell(NA)) for title in titles]
                for one in external[anchor]:
                    cells[one.anchor] += [external_control(one, title) for title in titles]
    rows = [
        HeadlineRow(
            encoder=model.encoder,
            mark=mark(results, model.encoder),
            head=model.head,
            domain=domain(results, model.encoder),
            source=words,
            anchor=anchor,
            cells=tuple(cells[one.anchor]),
            cohort=cohort,
        )
        for model, one, anchor, cohort, words in shown
    ]
    return Headline(task_name, level, tuple(columns), tuple(rows))


def shown_columns(metric: Metric, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the classes and means of a metric that are worth a column.

    Two classes have one AUC: that of the first is that of the second, and so is their mean.
    """
    names = tuple(name for name in metric.columns(classes) if name != "weighted")
    return ("macro",) if metric.within_folds and len(classes) == 2 else names


def domain(results: Results, encoder: str) -> str:
    """Return the name of the images that an encoder was trained on, as the config declares."""
    return DOMAINS[results.config.encoders[encoder].domain or "none"]


def source(encoder: AnyEncoder) -> str:
    """Return the source of an encoder's weights, in words."""
    if encoder.source == "pretrain":
        return f"{SOURCES['pretrain']} on {encoder.data}, from {encoder.init}"
    return SOURCES[encoder.source]


def published(results: Results) -> bool:
    """Return whether any encoder's training data were not compared with the cohort."""
    sections = results.config.encoders.values()
    return any(section.source not in ("random", "pretrain") for section in sections)


def chance(model: EvaluatedModel) -> float:
    """Return the mean macro AUC of a model with shuffled labels, 0.5 where it is not defined.

    It differs from 0.5 where folds are small or classes uneven between them.
    """
    row = shuffled_row(model)
    return 0.5 if row is None or row["mean"] is None else float(row["mean"])


def verdict(model: EvaluatedModel, record: dict[str, Any]) -> str:
    """Return how a macro AUC compares with chance; empty when its interval is above.

    An interval below chance is not enough for "worse": the labels must also have been shuffled, and
    give so low an AUC seldom enough. Where they seldom give so high an AUC as that of an interval
    that reaches chance, both are said: the shuffled labels ask whether there is any association,
    the interval how large it may be.
    """
    low, high, line = record["low"], record["high"], chance(model)
    if low is None or high is None or low > line:
        return ""
    row = shuffled_row(model) or {}
    better, worse = row.get("p_better"), row.get("p_worse")
    if high < line and worse is not None and worse < SELDOM:
        return "worse than chance"
    if better is not None and better < SELDOM:
        return f"interval reaches chance, which shuffled labels seldom do (p {p_value(better)})"
    return "not distinguishable from chance"


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


def _positive(record: dict[str, Any] | None) -> str:
    return f"{record['n_positive']} of {record['n']}" if record else ""


def _cell(
    results: Results,
    model: EvaluatedModel,
    record: dict[str, Any] | None,
    metric: Metric,
    *,
    with_count: bool,
) -> TableCell:
    if record is None:
        return TableCell(NA, note="not evaluated")
    digits = metric.decimals
    notes = [record["note"]] if record["note"] else []
    if record["lowest"] is not None and record["lowest"] < record["highest"]:
        ends = (number(record[name], digits) for name in ("lowest", "highest"))
        notes.append(f"rounds {' to '.join(ends)}")
    if metric.name == "auc" and record["class"] == "macro" and record["level"] == "patient":
        notes += [words] if (words := verdict(model, record)) else []
    if with_count and record["n_positive"] is not None:
        notes.append(_positive(record))
    value = number(record["value"], digits, sign=mark(results, model.encoder))
    return TableCell(value, interval(record["low"], record["high"], digits), "; ".join(notes))


def _controls(model: EvaluatedModel) -> dict[tuple[str, str], TableCell]:
    """Return what the macro AUC is to be read against, by column title and note."""
    row = shuffled_row(model)
    shuffled = (
        TableCell(number(row["mean"]), interval(row["low"], row["high"]), row["note"] or "")
        if row
        else TableCell(NA)
    )
    return {
        (COVARIATES_ALONE, "macro AUC"): covariates_cell(model.controls["covariates"]),
        ("Chance", "labels shuffled"): shuffled,
        **{(title, "macro AUC"): cell for title, cell in within_cells(model)},
    }
