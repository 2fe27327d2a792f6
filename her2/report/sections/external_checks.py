"""Stage 2, report: how an external cohort differs from development, and whether it was seen."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from her2.cohort.similar import SUSPICIOUS
from her2.frozen.cautions import FAR_PERCENT, MPP_TOLERANCE, RANGE_TOLERANCE
from her2.report.external_results import ExternalCohort
from her2.report.format import NA, percent, plural, signed
from her2.report.results import Results, one_row_per_slide
from her2.report.sections.cohort import Excluded, excluded, lost_slides
from her2.report.sections.leakage import Check, shared_tissue
from her2.report.sections.overlap import overlap_of
from her2.report.tables import PageTable, TableCell, TableRow, page_table

NAMED = 5
"""Slides that a caution names; the CSV file has all."""
_USABLE = pl.col("status") == "ok"
_SCALE = "um/px"


@dataclass(frozen=True, slots=True)
class Outside:
    """A slide outside the development's range, in `what`; `value` and `known` are in words."""

    what: str
    where: str
    slide_id: str
    value: str
    known: str


@dataclass(frozen=True, slots=True)
class Caution:
    """A way in which slides can lie outside; `slides` of `total` do."""

    what: str
    where: str
    known: str
    slides: tuple[Outside, ...]
    total: int
    note: str = ""


def cautions(results: Results, cohort: ExternalCohort) -> tuple[Caution, ...]:
    """Return the ways in which usable slides of a cohort lie outside development, none left out.

    The range is that of the usable slides of development, from the smallest to the largest.
    """
    known, own = one_row_per_slide(results), cohort.slides.unique("slide_id", keep="first")
    tables = [(table.filter(_USABLE).sort("slide_id")) for table in (known, own)]
    scale = (pl.col("mpp_x") * pl.col("mpp_y")).sqrt()
    found = [
        _numbers(_SCALE, "", *(table.select("slide_id", value=scale) for table in tables)),
        _numbers("tissue area", "mm\N{SUPERSCRIPT TWO}",
                 *(table.select("slide_id", value="tissue_mm2") for table in tables)),
        *(
            _numbers("tiles", grid, *(
                table.filter(_USABLE & (pl.col("grid") == grid))
                .select("slide_id", value=pl.col("tiles").cast(pl.Float64))
                for table in (results.cohort, cohort.slides)
            ))
            for grid in sorted(results.config.all_grids)
        ),
        *(_names(name, *tables) for name in ("vendor", "scanner")),
        *(_distances(cohort, encoder) for encoder in results.config.encoders),
    ]  # fmt: skip
    return tuple(found)


def cautions_page_table(cohort: ExternalCohort, found: tuple[Caution, ...]) -> PageTable:
    """Return how many slides lie outside, by kind."""
    rows: list[TableRow] = [
        (
            TableCell(one.what, note=one.where),
            one.known or NA,
            TableCell(
                NA if one.note else f"{len(one.slides)} of {one.total}",
                note=one.note or percent(len(one.slides) / max(one.total, 1)),
            ),
            _named(one.slides),
        )
        for one in found
    ]
    return page_table(
        f"Slides of {cohort.name} outside of what the models were developed on",
        ("What", "Development", "#Slides outside", "Which"),
        rows,
        "Usable slides. What the models say of a slide outside is an extrapolation, whatever the "
        "figures of the cohort are. Appearance: distance of the mean embedding from development, "
        f"outside beyond {FAR_PERCENT:g} % of its own slides. A um/px may differ by "
        f"{percent(MPP_TOLERANCE)}. All slides: tables/external_cautions.csv.",
    )


def case_mix_page_tables(cohort: ExternalCohort) -> tuple[PageTable, ...]:
    """Return the categories, then the numbers, of development beside the external cohort."""
    table = cohort.case_mix
    categories: list[TableRow] = [
        (
            TableCell(_kind(row), note=_where(row)),
            TableCell(row["level"], note=row["note"] or ""),
            *(
                TableCell(
                    NA if row[name] is None else f"{row[name]:,}",
                    note="" if row[f"{name}_share"] is None else percent(row[f"{name}_share"]),
                )
                for name in ("development", "external")
            ),
            signed(row["difference"], 2),
        )
        for row in table.filter(pl.col("kind") == "category").to_dicts()
    ]
    numbers: list[TableRow] = [
        (
            TableCell(_kind(row), note=_where(row)),
            *(
                TableCell(
                    _amount(row[f"{name}_median"]),
                    _amounts(row[f"{name}_low"], row[f"{name}_high"]),
                    "" if row[name] is None else plural(row[name], "slide"),
                )
                for name in ("development", "external")
            ),
            TableCell(signed(row["difference"], 2), note=row["note"] or ""),
        )
        for row in table.filter(pl.col("kind") == "number").to_dicts()
    ]
    found = (
        page_table(
            f"Case mix: development and {cohort.name}",
            ("What", "Level", "#Development", f"#{cohort.name}", "#Standardised difference"),
            categories,
        ),
        page_table(
            f"Case mix, numbers: development and {cohort.name}",
            ("What", "#Development", f"#{cohort.name}", "#Standardised difference"),
            numbers,
            "Median, in brackets the quartiles. The standardised difference is in standard "
            "deviations, external minus development.",
        ),
    )
    return tuple(one for one in found if one.rows)


def leak_checks(results: Results, cohort: ExternalCohort) -> tuple[Check, ...]:
    """Return the checks for what the models could have seen of a cohort before."""
    apart = cohort.apart
    rows = [
        Check(
            "Patients of development",
            f"{plural(apart.patients, 'patient')}, {apart.development_patients:,} of development",
            "0",
            "always",
        ),
        Check(
            "Slides with the content of one of development",
            f"{plural(apart.contents, 'slide')}, {apart.development_contents:,} of development",
            "0",
            "always",
        ),
        Check(
            "Names that may be those of a patient or slide of development",
            plural(apart.slides, "slide"),
            str(len(apart.cautions)),
            "never",
        ),
    ]
    limit = results.config.folds.max_shared_tiles
    for encoder, table in cohort.similar.items():
        rows.append(
            Check(
                "Slides with the tissue of one of development",
                f"features of {encoder}",
                shared_tissue(table, limit, given=encoder in results.config.given),
                f"above {limit:g} of the tiles" if limit < 1 else "never (max_shared_tiles)",
            )
        )
    for encoder in results.config.encoders:
        found = overlap_of(results, encoder, cohort.name)
        if found is not None:
            rows.append(
                Check(
                    "Patients that the encoder was pre-trained on",
                    encoder,
                    str(len(found.patients)) if found.known or found.patients else "not known",
                    "never (allow_overlap)" if found.allowed else "always",
                )
            )
    return tuple(rows)


def suspicions(cohort: ExternalCohort) -> Iterator[str]:
    """Yield sentences on slides that may be of the development."""
    yield from (f"{cohort.name}: {text}" for text in cohort.apart.cautions)
    for encoder, table in cohort.similar.items():
        for row in table.filter(pl.col("shared") > SUSPICIOUS).to_dicts():
            yield (
                f"{cohort.name}, {encoder}: {row['slide_a']} and {row['slide_b']} of development "
                f"share {row['shared']:.0%} of their tiles according to their features."
            )


def excluded_slides(results: Results, cohort: ExternalCohort) -> tuple[Excluded, ...]:
    """Return every slide of a cohort that could not be used, once per grid or encoder."""
    sites: dict[str, str | None] = {}
    if "site" in cohort.slides.columns:
        sites = dict(cohort.slides.select("slide_id", "site").iter_rows())
    lost = lost_slides(results.config, cohort.slides, cohort.features)
    return tuple(excluded(sites, *row) for row in lost)


def _numbers(what: str, where: str, known: pl.DataFrame, own: pl.DataFrame) -> Caution:
    """Return the slides beyond the smallest and largest value of development."""
    values, rows = known["value"].drop_nulls().to_list(), own.drop_nulls("value")
    if not values:
        return Caution(what, where, "", (), len(own), "no slide of development has it")
    low, high = min(values), max(values)
    slack = MPP_TOLERANCE if what == _SCALE else RANGE_TOLERANCE
    words = f"{low:.4g} to {high:.4g}"
    far = tuple(
        Outside(what, where, slide, f"{value:.4g}", words)
        for slide, value in rows.iter_rows()
        if not low * (1 - slack) <= value <= high * (1 + slack)
    )
    return Caution(what, where, words, far, len(rows))


def _names(what: str, known: pl.DataFrame, own: pl.DataFrame) -> Caution:
    """Return the slides of a vendor or scanner that no slide of development is of."""
    if what not in known.columns or not (names := sorted(known[what].drop_nulls().unique())):
        return Caution(what, "", "", (), len(own), "not known of any slide of development")
    if what not in own.columns:
        return Caution(what, "", ", ".join(names), (), len(own), "not known of any slide")
    words, given = ", ".join(names), own.select("slide_id", what).drop_nulls()
    far = tuple(
        Outside(what, "", slide, value, words)
        for slide, value in given.iter_rows()
        if value not in names
    )
    return Caution(what, "", words, far, len(given))


def _distances(cohort: ExternalCohort, encoder: str) -> Caution:
    """Return the slides far from development by the features of an encoder."""
    what, known = "appearance", f"up to percentile {FAR_PERCENT:g}"
    rows = next(model.applied for model in cohort.models if model.encoder == encoder)
    values = rows.select("slide_id", "distance", "distance_percentile").drop_nulls()
    if len(rows) and not len(values):
        note = "development has too few patients to tell"
        return Caution(what, encoder, "", (), len(rows), note)
    far = tuple(
        Outside(what, encoder, slide, f"{distance:.3g}, percentile {percentile:.4g}", known)
        for slide, distance, percentile in values.iter_rows()
        if percentile > FAR_PERCENT
    )
    return Caution(what, encoder, known, far, len(values))


def _amount(value: float | None) -> str:
    """Return `0.25`, `12.3` or `12,345`; NA for none."""
    if value is None:
        return NA
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _amounts(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{_amount(low)}, {_amount(high)}]"


def _named(slides: tuple[Outside, ...]) -> str:
    shown = ", ".join(f"{one.slide_id} ({one.value})" for one in slides[:NAMED])
    return shown + (", ..." if len(slides) > NAMED else "")


def _kind(row: dict[str, Any]) -> str:
    return f"{row['what']}, {row['unit']}" if row["unit"] else row["what"]


def _where(row: dict[str, Any]) -> str:
    return ", ".join(part for part in (row["task"], row["grid"]) if part)
