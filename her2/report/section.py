"""Stage 2, report: what a section of the page is, declared by its module in `sections`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import polars as pl

from her2.report.results import Results

Data = TypeVar("Data")
MakeTable = Callable[[Results], pl.DataFrame | None]


@dataclass(frozen=True, slots=True)
class Link:
    """An entry of the page's navigation."""

    title: str
    anchor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section(Generic[Data]):
    """A section of the page: `SECTION` of a module in `her2.report.sections`.

    Its template has the module's name and is given what `collect` returns as `data`.

    Attributes:
        anchor: id of its heading; links on the page lead to it.
        title: its heading.
        short_title: its entry in the navigation where that is not the title.
        order: sections stand on the page by this number; no two share one.
        collect: reads from a run what the template lays out.
        is_shown: whether a run has anything to show here.
        heading: its heading where that depends on the data.
        links: its entries in the navigation where those depend on the data.
        tables: CSV files beside the page, by name without suffix; None where a run has none.
    """

    anchor: str
    title: str
    order: int
    collect: Callable[[Results], Data]
    short_title: str = ""
    is_shown: Callable[[Data], bool] = lambda _: True
    heading: Callable[[Data], str] | None = None
    links: Callable[[Data], Sequence[Link]] | None = None
    tables: Mapping[str, MakeTable] = field(default_factory=dict)
