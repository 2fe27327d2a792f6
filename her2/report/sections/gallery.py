"""Stage 2, report: the quality-control gallery of all slides of a cohort."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from her2.cohort.cautions import is_brown
from her2.config.given import GRID
from her2.filters.base import Filter
from her2.filters.registry import LISTED
from her2.report.figures.base import Picture, jpeg
from her2.report.format import percent, plural, without_folders
from her2.report.results import Results
from her2.report.section import Section
from her2.segmenters import class_filters
from her2.storage.facts import is_of_network
from her2.storage.pictures import check_picture

SHOWN = 500
"""Maximum number of slides on the page, worst first; the others stay files."""
MARKED_FROM = 0.1
"""Share of rejected tiles from which a slide is marked."""
_SIZES = ((60, 480, 80), (150, 320, 75), (SHOWN, 208, 70))
"""(maximum slides, px of the longer side, JPEG quality); 500 slides stay below 10 MB."""


@dataclass(frozen=True, slots=True)
class Card:
    """One slide; `reason` is empty for a usable one, `figure` None where it could not be tiled.

    `lost` is the share of its tiles with enough tissue that were rejected, `causes` the share by
    cause, and `facts` what the enlarged view adds.
    """

    slide_id: str
    anchor: str
    site: str
    status: str
    reason: str
    tiles: int
    tissue_mm2: float
    lost: float
    causes: tuple[tuple[str, float], ...]
    marked: bool
    facts: tuple[tuple[str, str], ...]
    figure: Picture | None

    @property
    def words(self) -> str:
        """Return the rejected shares as `pen 8 %, blur 3 %`; empty when nothing was rejected."""
        return ", ".join(f"{name} {percent(share)}" for name, share in self.causes if share)


@dataclass(frozen=True, slots=True)
class Gallery:
    """The cards of one grid, worst first; `left_out` more are not shown."""

    grid: str
    cards: tuple[Card, ...]
    left_out: int
    unusable: int
    marked: int
    given: bool
    """True where the tiles are those of another program, whose choice of tissue is not known."""
    regions: bool
    """True where some slides were tiled in annotated regions only."""
    causes: tuple[Filter, ...]
    """What tiles can be rejected for."""
    marked_from: float = MARKED_FROM


def causes_in(columns: Iterable[str]) -> list[str]:
    """Return the names of what tiles are rejected for in a cohort's table with these columns."""
    names = [name.removeprefix("rejected_") for name in columns if is_of_network(name)]
    return list(dict.fromkeys([*(one.name for one in LISTED), *names]))


def card_anchor(slide_id: str) -> str:
    """Return the id of a slide's card on the page."""
    return f"slide/{slide_id}"


def shown_slides(results: Results) -> frozenset[str]:
    """Return the slides that have a card on the page."""
    if _is_given(results):
        return frozenset()
    return frozenset(row["slide_id"] for row in _ordered(results)[:SHOWN])


def _is_given(results: Results) -> bool:
    """Return whether no slide was cut here, so that there is nothing to check."""
    return min(results.config.all_grids).startswith(GRID)


def _ordered(results: Results) -> list[dict[str, Any]]:
    """Return the slides of the first grid: unusable ones, brown ones, then by the tiles lost."""
    table = results.cohort.filter(pl.col("grid") == min(results.config.all_grids))
    return sorted(
        table.to_dicts(),
        key=lambda row: (
            *(row["status"] == "ok", not is_brown(row.get("brown"))),
            *(-_lost(row), row["tiles"], row["slide_id"]),
        ),
    )


def gallery(results: Results) -> Gallery:
    """Return the slides of the first grid, worst first; no cards where none was cut here."""
    grid = min(results.config.all_grids)
    given = _is_given(results)
    rows = [] if given else _ordered(results)
    shown = rows[:SHOWN]
    side, quality = next((s, q) for limit, s, q in _SIZES if len(shown) <= limit)
    folder = results.folder / "tiles" / grid
    cards = tuple(_card(row, folder, side, quality) for row in shown)
    return Gallery(
        grid=grid,
        cards=cards,
        left_out=len(rows) - len(shown),
        unusable=sum(card.status != "ok" for card in cards),
        marked=sum(card.marked for card in cards),
        given=given,
        regions=any(row.get("regions") is not None for row in rows),
        causes=(*LISTED, *class_filters(results.config.tiling)),
    )


def _rejected(row: dict[str, Any]) -> dict[str, int]:
    return {name: row.get(f"rejected_{name}") or 0 for name in causes_in(row)}


def _candidates(row: dict[str, Any]) -> int:
    """Return the number of tiles with enough tissue before any was rejected, or 1 for none."""
    kept = (row["tiles"] or 0) + (row.get("not_drawn") or 0)
    return max(1, kept + sum(_rejected(row).values()))


def _lost(row: dict[str, Any]) -> float:
    return sum(_rejected(row).values()) / _candidates(row)


def _card(row: dict[str, Any], folder: Path, side: int, quality: int) -> Card:
    found = _candidates(row)
    causes = tuple((name, number / found) for name, number in _rejected(row).items())
    slide_id, lost = row["slide_id"], _lost(row)
    tiles = plural(row["tiles"] or 0, "tile")
    figure = None
    # A slide that could not be opened has no picture, and its card gives the reason.
    with contextlib.suppress(OSError):
        if row.get("key"):
            check_picture(folder / f"{slide_id}.qc.jpg", row["key"])
        figure = jpeg(
            folder / f"{slide_id}.qc.jpg",
            side_px=(side, side),
            quality=quality,
            alt=f"{slide_id}: tissue outline and {tiles}",
        )
    return Card(
        slide_id=slide_id,
        anchor=card_anchor(slide_id),
        site=row["site"] or "",
        status=row["status"],
        reason=without_folders(row["reason"] or ""),
        tiles=row["tiles"] or 0,
        tissue_mm2=row["tissue_mm2"] or 0.0,
        lost=lost,
        causes=causes,
        marked=row["status"] == "ok" and lost >= MARKED_FROM,
        facts=tuple(_facts(row)),
        figure=figure,
    )


def _facts(row: dict[str, Any]) -> list[tuple[str, str]]:
    found = [("Tiles", f"{row['tiles'] or 0:,}")]
    if row["tissue_mm2"] is not None:
        found.append(("Tissue", f"{row['tissue_mm2']:,.2f} mm\N{SUPERSCRIPT TWO}"))
    rejected = [f"{number:,} for {name}" for name, number in _rejected(row).items() if number]
    found.append(("Tiles rejected", ", ".join(rejected) or "none"))
    if row.get("not_drawn"):
        found.append(("Tiles not drawn", f"{row['not_drawn']:,} (tiling.max_tiles)"))
    areas = [f"{name} {percent(row[name])}" for name in causes_in(row) if row.get(name)]
    if areas:
        found.append(("Area under artefacts", ", ".join(areas)))
    if row.get("regions") is not None:
        found.append(("Annotated regions", f"{row['regions']:,}"))
    if row.get("tissue_source") not in (None, "detected"):
        found.append(("Tissue from", row["tissue_source"]))
    if row.get("artefact_source") is not None:
        found.append(("Artefacts also from", row["artefact_source"]))
    if row["width_px"] is not None:
        size = f"{row['width_px']:,} \N{MULTIPLICATION SIGN} {row['height_px']:,} px"
        found.append(("Slide", f"{size}, {row['mpp_x']:.4g} um/px ({row['mpp_source']})"))
    if row.get("file_mpp_x") is not None:
        found.append(("um/px of the file", f"{row['file_mpp_x']:.4g}"))
    if is_brown(row.get("brown")):
        found.append(("Stain", f"{percent(row['brown'])} brown, without eosin: IHC?"))
    if row["site"]:
        found.append(("Site", row["site"]))
    return found


SECTION = Section(anchor="quality", title="Quality control", order=80, collect=gallery)
