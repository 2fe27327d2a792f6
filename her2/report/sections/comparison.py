"""Stage 2, report: pairwise comparison of encoders, and of heads, on identical patients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl

from her2.config import EncoderSection
from her2.report.format import interval, number, p_value, signed
from her2.report.results import Results
from her2.report.section import Link, Section
from her2.report.sections.model_tables import stack_tasks
from her2.report.sections.overlap import mark, seen
from her2.report.sections.pretraining import PretrainingRow, pretraining, pretraining_table
from her2.report.sections.published_protocol import ProtocolRow, protocols
from her2.report.sections.seeds import seeds_note
from her2.report.sections.selection import picks_table, selection_table
from her2.report.tables import PageTable, TableCell, TableRow, page_table


@dataclass(frozen=True, slots=True)
class Shared:
    """A pair of encoders; `same` is true where both read the same tiles."""

    encoder: str
    other: str
    same: bool
    tiles: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Tables of all pairs that share a head (or an encoder) of a task."""

    task_name: str
    kind: str
    within: str
    macro: PageTable
    classes: PageTable
    groupings: PageTable | None


@dataclass(frozen=True, slots=True)
class Statement:
    """A difference between pre-training domains, in one line."""

    task_name: str
    head: str
    text: str


def comparisons(results: Results) -> list[Comparison]:
    """Compare encoders under each head, then heads under each encoder.

    A single encoder or head has nothing to be compared with.
    """
    return [
        found
        for task_name, table in results.comparisons.items()
        for found in compared(results, task_name, table, partial(seeds_note, results, task_name))
    ]


def compared(
    results: Results,
    task_name: str,
    table: pl.DataFrame,
    caution: Callable[[Mapping[str, Any]], str] = lambda _: "",
    where: str = "",
) -> list[Comparison]:
    """Return the pairs of a comparison of a task.

    Args:
        results: the run.
        task_name: the task.
        table: its rows of the comparison.
        caution: returns a note on a row.
        where: the cohort, for captions; "" for the development's.
    """
    found = []
    for kind, within in table.select("kind", "within").unique(maintain_order=True).iter_rows():
        own = table.filter((pl.col("kind") == kind) & (pl.col("within") == within))
        groups = {
            "macro": own.filter(pl.col("class") == "macro"),
            "classes": own.filter((pl.col("grouping") == "") & (pl.col("class") != "macro")),
            "groupings": own.filter(pl.col("grouping") != ""),
        }
        shared = "head" if kind == "encoders" else "encoder"
        about = f"task {task_name}, {shared} {within}{where}"
        captions = {
            "macro": f"Macro AUC, {about}",
            "classes": f"AUC of each score, {about}",
            "groupings": f"Scores in two groups, {about}",
        }
        macro, classes, regrouped = (
            _pairs(results, groups[name], caption, caution, column)
            for (name, caption), column in zip(
                captions.items(), (None, "class", "grouping"), strict=True
            )
        )
        found.append(
            Comparison(
                task_name=task_name,
                kind=kind,
                within=within,
                macro=macro,
                classes=classes,
                groupings=regrouped if len(groups["groupings"]) else None,
            )
        )
    return found


def statements(results: Results) -> list[Statement]:
    """Return the claim of arXiv 2411.05028 about pre-training on H&E, as measured here.

    A run that lacks encoders of a kind has one line, which says what the claim needs.
    """
    found = []
    for task_name, table in results.statements.items():
        for (head,), own in table.group_by("head", maintain_order=True):
            rows = own.to_dicts()
            if all(row["difference"] is None for row in rows):
                found.append(Statement(task_name, str(head), _lacking(results)))
            else:
                found += [Statement(task_name, str(head), _statement(row)) for row in rows]
    return found


def _lacking(results: Results) -> str:
    present = {encoder.domain for encoder in results.config.encoders.values()}
    kinds = {"he": "H&E", "ihc": "IHC", "natural": "non-medical"}
    missing = [words for domain, words in kinds.items() if domain not in present]
    if not missing:
        return "Not tested: no difference is defined; the tables give the reason."
    words = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
    return f"Not tested: it needs encoders pre-trained on {words} images as well."


def shared_tiles(results: Results) -> list[Shared]:
    """Return, for each pair of encoders, whether their tile grids agree in um/px and size."""
    tables = [
        table.filter(pl.col("kind") == "encoders").select("first", "second")
        for table in results.comparisons.values()
    ]
    if not tables:
        return []
    encoders = results.config.encoders
    found = []
    for first, second in pl.concat(tables).unique(maintain_order=True).iter_rows():
        grids = [_patches(results, name) for name in (first, second)]
        same = encoders[first].grid == encoders[second].grid
        tiles = grids[0] if same else f"{grids[0]}; {grids[1]}"
        found.append(Shared(first, second, same, tiles))
    return found


def _patches(results: Results, encoder: str) -> str:
    """Return an encoder's patches in words, of features from elsewhere what is known of them."""
    section = results.config.encoders[encoder]
    if isinstance(section, EncoderSection):
        return f"{section.size} px at {section.mpp:g} um/px"
    card = results.cards[encoder]
    if card.size is None or card.mpp is None:
        return "patches of another program, not stated"
    return f"{card.size} px at {card.mpp:g} um/px of another program"


def comparison_table(results: Results) -> pl.DataFrame | None:
    """Return the tables of all tasks, with the number of cohort patients each encoder saw."""
    table = stack_tasks(results.comparisons)
    if table is None:
        return None
    counts = {name: seen(results, name) for name in results.config.encoders}
    heads = pl.col("kind") == "heads"
    return table.with_columns(
        pl.when(heads)
        .then(pl.col("within"))
        .otherwise(pl.col(column))
        .replace_strict(counts, return_dtype=pl.Int64, default=None)
        .alias(name)
        for column, name in (("first", "overlap"), ("second", "other_overlap"))
    )


def statement_table(results: Results) -> pl.DataFrame | None:
    """Return the statements of all tasks."""
    return stack_tasks(results.statements)


def _pairs(
    results: Results,
    table: pl.DataFrame,
    caption: str,
    caution: Callable[[Mapping[str, Any]], str],
    column: str | None = None,
) -> PageTable:
    """Return one row per pair (and class or grouping); `difference` is first minus second."""
    rows: list[TableRow] = []
    for row in table.to_dicts():
        marks = {name: _mark(results, row, name) for name in ("first", "second")}
        low, high = row["low"], row["high"]
        note = row["note"] or ""
        # The corrected p value decides: an interval may exclude 0 where it does not hold.
        if row["p_holm"] is not None and row["p_holm"] >= 1 - results.config.evaluation.confidence:
            note = "; ".join(text for text in ("no difference shown", note) if text)
        note = "; ".join(text for text in (caution(row), note) if text)
        either = marks["first"] or marks["second"]
        middle = [row[column]] if column else []
        rows.append(
            (
                row["first"] + marks["first"],
                row["second"] + marks["second"],
                *middle,
                number(row["first_value"], sign=marks["first"]),
                number(row["second_value"], sign=marks["second"]),
                TableCell(signed(row["difference"], sign=either), interval(low, high), note),
                p_value(row["p"]),
                TableCell(
                    p_value(row["p_holm"]),
                    note=f"of {row['family_size']}" if row["family_size"] else "",
                ),
                str(row["n"]),
            )
        )
    what = "Head" if "heads" in table["kind"] else "Encoder"
    titles = {"class": ["Score"], "grouping": ["Grouping"]}.get(column or "", [])
    return page_table(
        caption,
        (f"{what} A", f"{what} B", *titles, "#AUC of A", "#AUC of B", "#A minus B", "#p",
         "#p, Holm", "#Patients"),
        rows,
    )  # fmt: skip


def _mark(results: Results, row: dict[str, Any], name: str) -> str:
    return mark(results, row["within"] if row["kind"] == "heads" else row[name])


def _statement(row: dict[str, Any]) -> str:
    words = {
        "H&E - IHC": "H&E minus IHC pre-training",
        "H&E - non-medical": "H&E minus non-medical pre-training",
        "H&E - both": "H&E minus the better of the two others (the smaller of the two differences)",
    }.get(row["statement"], row["statement"])
    if row["difference"] is None:
        return f"{words}: NA, {row['note'] or 'not defined'}."
    holds = {True: "Shown here.", False: "Not shown here.", None: ""}[row["holds"]]
    ends = interval(row["low"], row["high"])
    text = f"{words}: {signed(row['difference'])} {ends}, p {p_value(row['p'])}, "
    text += f"{p_value(row['p_holm'])} corrected for {row['family_size']} tests, "
    text += f"{row['n']} patients ({row['first']} against {row['second']}). {holds}"
    return f"{text} {row['note'][:1].upper() + row['note'][1:]}." if row["note"] else text


@dataclass(frozen=True, slots=True)
class ComparisonData:
    """Data of the section: pairwise comparisons, protocols, and encoders pre-trained here."""

    comparisons: list[Comparison]
    shared_tiles: list[Shared]
    protocols: list[ProtocolRow]
    pretraining: list[PretrainingRow]

    @property
    def compared(self) -> bool:
        """Return whether the section shows more than the pre-training."""
        return bool(self.comparisons or self.protocols)


def _collect(results: Results) -> ComparisonData:
    return ComparisonData(
        comparisons=comparisons(results),
        shared_tiles=shared_tiles(results),
        protocols=protocols(results),
        pretraining=pretraining(results),
    )


def _links(data: ComparisonData) -> list[Link]:
    found = [Link("Comparison", "comparison")] if data.compared else []
    return found + ([Link("Pre-training", "pretraining")] if data.pretraining else [])


SECTION = Section(
    anchor="comparison",
    title="Comparison",
    order=40,
    collect=_collect,
    is_shown=lambda data: data.compared or bool(data.pretraining),
    heading=lambda data: "Comparison" if data.compared else "Encoders pre-trained here",
    links=_links,
    tables={
        "comparison": comparison_table,
        "statement": statement_table,
        "selection": selection_table,
        "picks": picks_table,
        "pretraining": pretraining_table,
    },
)
