"""Stage 2, report: what the features of each encoder know beside the label."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from her2.evaluation.robustness.neighbours import SHOWN
from her2.report.figures.base import Figure
from her2.report.figures.robustness import RobustModel, robustness_figure
from her2.report.format import interval, listed, number, p_value
from her2.report.results import ROBUSTNESS, EvaluatedModel, Results
from her2.report.section import MakeTable, Section
from her2.report.sections.overlap import mark
from her2.report.shown_model import find
from her2.report.tables import PageTable, TableCell, TableRow, figure_cell, page_table

SEEN = 0.05
"""P value below which a site or scanner counts as predicted better than chance."""
CHANCE_AUC = 0.5


@dataclass(frozen=True, slots=True)
class RobustnessData:
    """Data of the section: tables, a picture per task that has an index, and what is not known."""

    cautions: list[str]
    unknown: list[str]
    encoders: PageTable
    probes: PageTable
    neighbours: PageTable | None
    similarity: PageTable | None
    figures: dict[str, Figure]


def cautions(results: Results) -> list[str]:
    """Return a sentence for each task and source of slides that features tell as well as the label.

    It names the encoders by which a linear model predicts the site (or scanner) better than chance,
    and at least as well as the class of the task from the same embeddings.
    """
    probes = results.robustness["probes"]
    by = {(row["encoder"], row["target"]): row for row in probes.to_dicts()}
    found = []
    for source in _sources(results):
        for task in results.config.tasks:
            known = [
                (name, by[name, source]["auc"], by[name, task]["auc"])
                for name in probes["encoder"].unique(maintain_order=True)
                if (by[name, source]["auc_p"] or 1) < SEEN
                and by[name, source]["auc"] > CHANCE_AUC
                and by[name, source]["auc"] >= (by[name, task]["auc"] or CHANCE_AUC)
            ]
            if known:
                each = [
                    f"{name} ({number(first)} against {number(second)})"
                    for name, first, second in known
                ]
                found.append(
                    f"{task}: the {source} is predicted from the features of {listed(each)} as "
                    "well as the label (AUC of a linear model of patients' mean embeddings). A "
                    f"model can learn the {source} wherever it is associated with the label."
                )
    return found


def _sources(results: Results) -> list[str]:
    """Return `site` and `scanner`, as far as they can be predicted."""
    rows = results.robustness["probes"].filter(pl.col("kind") != "label")
    return list(rows.filter(pl.col("auc").is_not_null())["target"].unique(maintain_order=True))


def _unknown(results: Results) -> list[str]:
    """Return a sentence for each property that cannot be predicted, with the reason."""
    rows = results.robustness["probes"].filter(pl.col("note") != "")
    return [
        f"{'Task ' if kind == 'label' else ''}{target}: {note}."
        for target, kind, note in rows.select("target", "kind", "note")
        .unique(maintain_order=True)
        .iter_rows()
    ]


def _encoders(results: Results) -> PageTable:
    rows: list[TableRow] = [
        (
            row["encoder"] + mark(results, row["encoder"]),
            str(row["dimension"]),
            TableCell(number(row["participation_ratio"], 1)),
            f"{row['patients']:,}",
            f"{row['slides']:,}",
            f"{row['tiles']:,}",
        )
        for row in _in_order(results, "encoders")
    ]
    return page_table(
        "The features of each encoder",
        ("Encoder", "#Features", "#Participation ratio", "#Patients", "#Slides", "#Tiles"),
        rows,
        "The sample that this section is computed from. The participation ratio says how many "
        "directions the tiles vary in: 1 if all lie on a line, the number of features if all "
        "directions vary alike.",
    )


def _probes(results: Results) -> PageTable:
    rows: list[TableRow] = []
    for row in _in_order(results, "probes"):
        if row["auc"] is None:
            continue
        named = f"Task {row['target']}" if row["kind"] == "label" else row["target"].capitalize()
        rows.append(
            (
                row["encoder"] + mark(results, row["encoder"]),
                TableCell(named, note=f"{row['groups']} groups"),
                f"{row['patients']:,}",
                TableCell(number(row["auc"]), interval(row["low"], row["high"]), row["note"] or ""),
                _chance(row, "auc"),
                p_value(row["auc_p"]),
                number(row["balanced_accuracy"]),
                _chance(row, "balanced_accuracy"),
                p_value(row["balanced_accuracy_p"]),
            )
        )
    return page_table(
        "What a linear model predicts from patients' mean embeddings",
        ("Encoder", "Predicted", "#Patients", "#AUC", "#Labels shuffled", "#p",
         "#Balanced accuracy", "#Labels shuffled", "#p"),
        rows,
        "Linear discriminant, patients held out, macro AUC within test sets. Labels shuffled: the "
        "mean and limits of the same procedure with labels shuffled over the patients. p is the "
        "one-sided p value of that. Groups of fewer than 5 patients are left out.",
    )  # fmt: skip


def _chance(row: Mapping[str, Any], figure: str) -> TableCell:
    ends = interval(row[f"{figure}_chance_low"], row[f"{figure}_chance_high"])
    return TableCell(number(row[f"{figure}_chance"]), ends)


def _neighbours(results: Results) -> PageTable | None:
    rows: list[TableRow] = [
        (
            row["encoder"] + mark(results, row["encoder"]),
            row["task"],
            row["source"],
            figure_cell(row),
            TableCell(number(row["plain"]), note=f"at random {number(row['plain_chance'])}"),
            f"{row['same_class']:.1%}",
            f"{row['same_site']:.1%}",
        )
        for row in _shown(results)
    ]
    if not rows:
        return None
    return page_table(
        f"Robustness index, {SHOWN} nearest tiles of other patients",
        ("Encoder", "Task", "Against", "#Index", "#As in PathoROB", "#Same class, other source",
         "#Other class, same source"),
        rows,
        "1: neighbours share the class, whatever the source; 0: they share the source, whatever "
        "the class; 0.5: neither or both alike. Each tile has the class of its patient, also where "
        "it shows nothing of it.",
    )  # fmt: skip


def _shown(results: Results) -> list[dict[str, Any]]:
    return [row for row in _in_order(results, "neighbours") if row["k"] == SHOWN]


def _similarity(results: Results) -> PageTable | None:
    names = list(results.config.encoders)
    found = {
        frozenset((row["encoder_a"], row["encoder_b"])): row
        for row in results.robustness["similarity"].to_dicts()
    }
    if not found:
        return None
    rows: list[TableRow] = []
    for index, name in enumerate(names):
        cells = []
        for other in names[:index]:
            row = found[frozenset((name, other))]
            cells.append(TableCell(number(row["cka"], 2), note=row["note"]))
        if cells:
            rows.append((name, *cells, *("" for _ in names[index:-1])))
    over = {row["over"] for row in found.values()}
    unit = listed(sorted(over))
    return page_table(
        "Similarity of encoders (debiased linear CKA)",
        ("", *(f"#{name}" for name in names[:-1])),
        rows,
        f"Over {unit}; encoders of one grid are compared over tiles, others over the mean "
        "embeddings of slides. 1: the same but for rotation and scale; 0: unrelated.",
    )


def _in_order(results: Results, table: str) -> list[dict[str, Any]]:
    """Return the rows of a table in the config's order of encoders."""
    names = list(results.config.encoders)
    rows = results.robustness[table].to_dicts()
    return sorted(rows, key=lambda row: names.index(row["encoder"]))


def _figures(results: Results) -> dict[str, Figure]:
    """Return the picture of each task that has an index, by its title."""
    rows = _shown(results)
    found = {}
    for source in dict.fromkeys(row["source"] for row in rows):
        for task in results.config.tasks:
            index = {
                row["encoder"]: row
                for row in rows
                if (row["task"], row["source"]) == (task, source) and row["value"] is not None
            }
            models = [
                made
                for model in results.task_models(task)
                if model.encoder in index
                and (made := _robust_model(model, index[model.encoder])) is not None
            ]
            if models:
                found[f"{task}, {source}"] = robustness_figure(
                    models, task, source, results.figure_context
                )
    return found


def _robust_model(model: EvaluatedModel, row: Mapping[str, Any]) -> RobustModel | None:
    own = find(model, "patient", "auc", "macro")
    if own is None or own["value"] is None:
        return None
    return RobustModel(
        model.encoder,
        model.head,
        (row["value"], row["low"], row["high"]),
        (own["value"], own["low"], own["high"]),
    )


def _whole(name: str) -> MakeTable:
    return lambda results: results.robustness[name]


def _collect(results: Results) -> RobustnessData:
    return RobustnessData(
        cautions=cautions(results),
        unknown=_unknown(results),
        encoders=_encoders(results),
        probes=_probes(results),
        neighbours=_neighbours(results),
        similarity=_similarity(results),
        figures=_figures(results),
    )


SECTION = Section(
    anchor="robustness",
    title="Robustness of the features",
    short_title="Robustness",
    order=72,
    collect=_collect,
    tables={f"robustness_{name}": _whole(name) for name in ROBUSTNESS},
)
