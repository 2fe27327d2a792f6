"""Stage 2, report: localisation, faithfulness and agreement of attention, and its pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from her2.report.format import NA, plural
from her2.report.results import Results
from her2.report.section import Section
from her2.report.sections.model_tables import stacked_attention
from her2.report.sections.overlap import mark
from her2.report.sections.pictures import ModelPictures, all_pictures, truth_words
from her2.report.shown_model import ShownModel
from her2.report.tables import PageTable, TableCell, TableRow, figure_cell, page_table

LOCALISED = {
    "auc": "AUC of attention, inside against outside",
    "mass_share": "Attention inside",
    "area_share": "Tiles inside",
    "enrichment": "Attention / tiles inside",
    "pointing": "Most attended tile inside",
}
"""Measure -> its title; `area_share` is the chance level of `mass_share` and `pointing`."""


Marked = Sequence[tuple[ShownModel, str]]
"""Models with the marks of their encoders."""


HEADING = "Task / encoder / head"


def localisation_by_class(models: Marked) -> list[PageTable]:
    """Return the localisation by score, for scores with a slide that has tiles in and out."""
    names = dict.fromkeys(name for model, _ in models for name in model.task.classes)
    return [found for name in names if (found := localisation(models, name)) is not None]


def localisation(models: Marked, name: str, heading: str = HEADING) -> PageTable | None:
    """Return the localisation of each model over slides with a ground truth.

    `name` is a class, or `all`, and `heading` that of the models' names.
    """
    rows: list[TableRow] = []
    defined = False
    for model, sign in models:
        table = model.attention["localisation_summary"].filter(pl.col("class") == name)
        own = {row["measure"]: row for row in table.to_dicts()}
        defined |= any(row["value"] is not None for row in own.values())
        head = model.name + sign
        rows.append((head, _over(own), *(_measured(own, measure) for measure in LOCALISED)))
    # The table over all scores stays to give the reasons; undefined scores are left out.
    if not rows or (name != "all" and not defined):
        return None
    which = "all scores" if name == "all" else f"score {name}"
    return page_table(
        f"Localisation, {which}: means over patients",
        (heading, "#Patients (slides)",
         *(f"#{title}" for title in LOCALISED.values())),
        rows,
    )  # fmt: skip


def _over(own: dict[str, dict[str, Any]]) -> str:
    first = next(iter(own.values()), None)
    return f"{first['patients']} ({first['slides']})" if first else NA


def _measured(own: dict[str, dict[str, Any]], measure: str) -> TableCell:
    found = own.get(measure)
    if found is None:  # without any ground truth the table has a single row, with the reason
        return figure_cell(next(iter(own.values()), None), digits=3)
    return figure_cell(found, digits=2 if measure == "enrichment" else 3)


def faithfulness(models: Marked, heading: str = HEADING) -> PageTable:
    """Return, for each model, the areas between its curves and those in random order."""
    names = dict.fromkeys(
        name
        for model, _ in models
        for name in model.attention["faithfulness_summary"]["measure"].drop_nulls()
    )
    rows: list[TableRow] = []
    for model, _ in models:
        table = model.attention["faithfulness_summary"]
        own = {row["measure"]: row for row in table.to_dicts()}
        rows.append((model.name, _over(own), *(figure_cell(own.get(name)) for name in names)))
    return page_table(
        "Faithfulness: area between the curves in attention order and in random order",
        (heading, "#Patients (slides)",
         *(f"#{name[:1].upper()}{name[1:]}" for name in names)),
        rows,
        "Above 0: the prediction depends on the attended tiles more than on random tiles. "
        "A removed tile is left out of the bag.",
    )  # fmt: skip


def agreement(models: Marked, between: str, heading: str = HEADING) -> PageTable:
    """Return the rank correlation of attention between repeats or fold models, for each model."""
    rows: list[TableRow] = []
    for model, _ in models:
        for row in model.attention["agreement"].to_dicts():
            over = f"{plural(row['slides'] or 0, 'slide')}, {plural(row['pairs'] or 0, 'pair')}"
            rows.append((model.name, figure_cell(row), over))
    return page_table(
        f"Agreement of a slide's attention between {between} (Spearman's rank correlation)",
        (heading, "#Mean over patients", "Over"),
        rows,
    )


@dataclass(frozen=True, slots=True)
class ExplanationData:
    """Data of the section; `localised` is true where any slide has a ground truth, `truth`."""

    localised: bool
    localisation: PageTable | None
    by_class: list[PageTable]
    faithfulness: PageTable
    agreement: PageTable
    pictures: tuple[ModelPictures, ...]
    truth: str


def _collect(results: Results) -> ExplanationData:
    models = [(model, mark(results, model.encoder)) for model in results.models]
    return ExplanationData(
        localised=any(len(model.attention["localisation"]) for model in results.models),
        localisation=localisation(models, "all"),
        by_class=localisation_by_class(models),
        faithfulness=faithfulness(models),
        agreement=agreement(models, "repeats"),
        pictures=all_pictures(results),
        truth=truth_words(results),
    )


SECTION = Section(
    anchor="attention",
    title="Explanation",
    order=60,
    collect=_collect,
    tables=stacked_attention("localisation_summary", "faithfulness_summary", "agreement"),
)
