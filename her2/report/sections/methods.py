"""Stage 2, report: the draft of a paper's methods, and the TRIPOD+AI checklist."""

from dataclasses import dataclass

from her2.report.results import Results
from her2.report.section import Section
from her2.report.sections.paper.checklist import Item, checklist
from her2.report.sections.paper.methods import methods


@dataclass(frozen=True, slots=True)
class MethodsData:
    """Data of the section: paragraphs, and the items of the TRIPOD+AI checklist."""

    paragraphs: list[str]
    checklist: tuple[Item, ...]


def _collect(results: Results) -> MethodsData:
    return MethodsData(methods(results), checklist(results))


SECTION = Section(
    anchor="methods",
    title="Methods and checklist",
    short_title="Methods",
    order=100,
    collect=_collect,
)
