"""Stage 2, report: the declaration of a section of the page by its module in `sections`."""

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

    Its template has the module's name and receives the return value of `collect` as `data`.

    Attributes:
        anchor: id of its heading, the target of links on the page.
        title: its heading.
        short_title: its entry in the navigation where that is not the title.
        order: position on the page, lowest first; no two sections share one.
        collect: returns the data of a run that the template lays out.
        is_shown: returns whether a run has anything to show here.
        heading: returns its heading where that depends on the data.
        links: returns its entries in the navigation where those depend on the data.
        tables: name of a CSV file beside the page, without suffix -> the function that returns its
            table, or None where a run has none.
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
