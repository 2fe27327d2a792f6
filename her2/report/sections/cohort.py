"""Stage 2, report: the cohort, and the slides of it that could not be used."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from statistics import median

import polars as pl

from her2.cohort.faults import LabelRules
from her2.config import Config
from her2.config.given import GRID
from her2.report.format import count, percent, span, without_folders
from her2.report.results import Results, one_row_per_slide
from her2.report.section import Section
from her2.report.sections import flow, leakage
from her2.report.sections.gallery import causes_in
from her2.report.sections.patient_labels import decided, decided_table
from her2.report.tables import PageTable
from her2.storage.entries import FeatureEntry


@dataclass(frozen=True, slots=True)
class CompositionRow:
    """Numbers of (patients, slides) of a site or of all: each class, then no class, then all."""

    site: str
    cells: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Composition:
    """The cohort by the classes of a task.

    `outside` counts slides whose label is of no class, `left_out` those of patients that are left
    out of the task.
    """

    task_name: str
    label: str
    classes: tuple[str, ...]
    rows: tuple[CompositionRow, ...]
    has_sites: bool
    missing: int
    outside: int
    left_out: int


@dataclass(frozen=True, slots=True)
class GridRow:
    """One tile grid over the cohort; `rejected` is a share of the tiles with enough tissue."""

    grid: str
    encoders: str
    usable: int
    excluded: int
    failed: int
    mpp: str
    sources: str
    tiles: str
    rejected: str
    causes: str
    tiles_median: str
    tissue_median_mm2: str


@dataclass(frozen=True, slots=True)
class Excluded:
    """A slide that a stage could not use, or of a patient that the folds of a task leave out.

    `encoder` is empty for the tile stage, and so is `grid` for the folds.
    """

    slide_id: str
    site: str
    stage: str
    grid: str
    encoder: str
    status: str
    reason: str


Lost = tuple[str, str, str, str, str, str | None]


def composition(results: Results, task_name: str) -> Composition:
    """Return patients and slides per class, and per site where sites are known."""
    task = results.config.tasks[task_name]
    own = decided(results, task_name)
    records = one_row_per_slide(results).select(
        "slide_id", "patient_id", "site", label=pl.col(f"label_{task.label}")
    )
    rules = LabelRules(results.config.cohort.missing)
    rows = []
    for slide, patient, site, label in records.iter_rows():
        index = None if label is None else task.class_index(label)
        if index is not None and patient in own:
            used = own[patient].used
            index = None if used is None else task.class_names.index(used)
        if index is None and label is not None and rules.means_missing(label):
            label = None
        rows.append((slide, patient, site, index, label))
    out = {patient for patient, item in own.items() if item.used is None}
    sites = sorted({site for _, _, site, _, _ in rows if site is not None})
    indices = [*range(len(task.class_names)), None]

    def row(
        site: str, members: list[tuple[str, str, str | None, int | None, str | None]]
    ) -> CompositionRow:
        groups = [[one for one in members if one[3] == index] for index in indices]
        pairs = [(len({one[1] for one in group}), len(group)) for group in [*groups, members]]
        return CompositionRow(site, tuple(pairs))

    table = [row(site, [one for one in rows if one[2] == site]) for site in sites]
    unknown = [one for one in rows if one[2] is None]
    if sites and unknown:
        table.append(row("(no site)", unknown))
    table.append(row("all", rows))
    return Composition(
        task_name=task_name,
        label=task.label,
        classes=task.class_names,
        rows=tuple(table),
        has_sites=bool(sites),
        missing=sum(label is None and patient not in out for _, patient, *_, label in rows),
        outside=sum(
            index is None and label is not None and patient not in out
            for _, patient, _, index, label in rows
        ),
        left_out=sum(patient in out for _, patient, *_ in rows),
    )


def grid_rows(results: Results) -> list[GridRow]:
    """Return one row per grid, in the order of their names."""
    found = []
    for grid in sorted(results.config.all_grids):
        table = results.cohort.filter(pl.col("grid") == grid)
        usable = table.filter(pl.col("status") == "ok")
        by_status = dict(table.group_by("status").len().iter_rows())
        scales = [scale for axis in ("mpp_x", "mpp_y") for scale in table[axis].drop_nulls()]
        given = grid.startswith(GRID)
        rejected, causes = ("not known", "") if given else _rejected(table)
        sources = Counter(table["mpp_source"].drop_nulls().to_list())
        found.append(
            GridRow(
                grid=grid,
                encoders=", ".join(n for n, e in results.config.encoders.items() if e.grid == grid),
                usable=len(usable),
                excluded=by_status.get("excluded", 0),
                failed=by_status.get("failed", 0),
                mpp=span(scales),
                sources=", ".join(f"{name} ({number})" for name, number in sorted(sources.items()))
                or "-",
                tiles=count(int(usable["tiles"].sum())),
                rejected=rejected,
                causes=causes,
                tiles_median=_median(usable["tiles"], 0),
                tissue_median_mm2=_median(usable["tissue_mm2"], 2),
            )
        )
    return found


def encoder_table(results: Results) -> pl.DataFrame:
    """Return slides and tiles that each encoder embedded, of the usable slides of its grid."""
    lost = Counter(row.encoder for row in excluded_slides(results))
    entries = {name: of.values() for name, of in results.features.items()}
    good = {name: [one for one in of if one.status == "ok"] for name, of in entries.items()}
    return pl.DataFrame(
        {
            "encoder": name,
            "grid": section.grid,
            "embedded": len(good[name]),
            "lost": lost[name],
            "tiles": sum(entry.tiles for entry in good[name]),
            "failed_tiles": sum(entry.failed_tiles for entry in entries[name]),
        }
        for name, section in results.config.encoders.items()
    )


def excluded_slides(results: Results) -> list[Excluded]:
    """Return every slide that is not used, once per grid, encoder or task that lost it."""
    found = lost_slides(results.config, results.cohort, results.features)
    slides = one_row_per_slide(results)
    for name in results.config.tasks:
        own = decided(results, name)
        found += [
            (slide_id, "folds", "", "", "excluded",
             f"left out of task {name}: its patient {patient} has slides of different classes "
             f"({', '.join(own[patient].labels)})")
            for slide_id, patient in slides.select("slide_id", "patient_id").iter_rows()
            if patient in own and own[patient].used is None
        ]  # fmt: skip
    sites = dict(slides.select("slide_id", "site").iter_rows())
    return [excluded(sites, *row) for row in found]


def lost_slides(
    config: Config, cohort: pl.DataFrame, features: Mapping[str, Mapping[str, FeatureEntry]]
) -> list[Lost]:
    """Return slide, stage, grid, encoder, status and reason of slides lost in stage 1."""
    unusable = cohort.filter(pl.col("status") != "ok").sort("slide_id", "grid")
    found: list[Lost] = [
        (slide_id, "take" if grid.startswith(GRID) else "tile", grid, "", status, reason)
        for slide_id, grid, status, reason in unusable.select(
            "slide_id", "grid", "status", "reason"
        ).iter_rows()
    ]
    for name, section in config.encoders.items():
        usable = (pl.col("grid") == section.grid) & (pl.col("status") == "ok")
        tiled = set(cohort.filter(usable)["slide_id"])
        found += [
            (slide_id, "embed", section.grid, name, entry.status, entry.reason)
            for slide_id, entry in sorted(features[name].items())
            if entry.status != "ok" and slide_id in tiled
        ]
    return found


def excluded(
    sites: Mapping[str, str | None], slide_id: str, stage: str, grid: str, encoder: str,
    status: str, reason: str | None,
) -> Excluded:  # fmt: skip
    """Return a row of the table of slides that are not used."""
    reason = without_folders(reason or "no reason recorded")
    return Excluded(slide_id, sites.get(slide_id) or "", stage, grid, encoder, status, reason)


def _rejected(table: pl.DataFrame) -> tuple[str, str]:
    """Return the share of tiles with enough tissue that artefacts cost, in total and by cause."""
    columns = [f"rejected_{name}" for name in causes_in(table.columns)]
    numbers = {name: int(table[name].sum()) for name in columns if name in table.columns}
    kept = int(table["tiles"].sum()) + (int(table["not_drawn"].sum()) if numbers else 0)
    total = sum(numbers.values())
    if not total:
        return "none", ""
    causes = [
        f"{name.removeprefix('rejected_')} {percent(number / (kept + total))}"
        for name, number in numbers.items()
        if number
    ]
    return percent(total / (kept + total)), ", ".join(causes)


def _median(values: pl.Series, digits: int) -> str:
    numbers = values.drop_nulls().to_list()
    return f"{median(numbers):,.{digits}f}" if numbers else "-"


@dataclass(frozen=True, slots=True)
class CohortData:
    """Data of the section: flow and composition of the cohort, tiles, features and audit.

    `external` has the name, anchor and number of unused slides of each external cohort.
    """

    flows: list[flow.Flow]
    compositions: list[Composition]
    decided: PageTable | None
    grids: list[GridRow]
    encoders: pl.DataFrame
    checks: tuple[leakage.Check, ...]
    pairs: list[tuple[str, ...]]
    excluded: list[Excluded]
    external: tuple[tuple[str, str, int], ...] = ()


def _collect(results: Results) -> CohortData:
    return CohortData(
        flows=flow.flows(results),
        compositions=[composition(results, task) for task in results.config.tasks],
        decided=decided_table(results),
        grids=grid_rows(results),
        encoders=encoder_table(results),
        checks=leakage.checks(results),
        pairs=leakage.pairs(results),
        excluded=excluded_slides(results),
        external=tuple(
            (one.name, one.anchor, len({lost[0] for lost in own}))
            for one in results.external
            for own in (lost_slides(results.config, one.slides, one.features),)
        ),
    )


def excluded_table(results: Results) -> pl.DataFrame:
    """Return the slides that are not used, one row per reason."""
    schema = dict.fromkeys((field.name for field in fields(Excluded)), pl.String)
    return pl.DataFrame([asdict(row) for row in excluded_slides(results)], schema=schema)


SECTION = Section(
    anchor="cohort",
    title="Cohort",
    order=30,
    collect=_collect,
    tables={"excluded": excluded_table, "similar": leakage.pairs_table},
)
