"""Stage 2, report: read a finished run and write its page with tables and figures beside it.

A section of the page is a module in `sections` and a template in `templates/sections`; see
`her2.report.section`.
"""

import logging
from pathlib import Path

import polars as pl

from her2.config.jobs import ReportSpec
from her2.core.files import write_text
from her2.core.tables import write_csv
from her2.report.figures.base import draw_figures
from her2.report.results import Results, read_results

log = logging.getLogger(__name__)


def build_report(spec: ReportSpec, results: Path, output: Path) -> None:
    """Write the page of a run, and the files beside it first.

    These are `tables/*.csv`, `figures/*`, `methods.txt` and `checklist.csv`.

    Args:
        spec: the job.
        results: the results folder of the run.
        output: the HTML file, self-contained, with one script that is pinned by its hash.

    Raises:
        UserError: a table of the run is missing or broken, or the page cannot be written.
    """
    run = read_results(spec, results)

    # Sections import large libraries, so an incomplete folder is reported before that.
    from her2.report import page
    from her2.report.sections.paper import checklist, methods

    for name, table in tables(run).items():
        path = output.parent / "tables" / f"{name}.csv"
        if table is None:  # an earlier report may have had it
            path.unlink(missing_ok=True)
        else:
            write_csv(table, path)
    write_text(output.with_name("methods.txt"), "\n\n".join(methods.methods(run)) + "\n")
    write_csv(checklist.checklist_table(run), output.with_name("checklist.csv"))
    shown = page.collect_sections(run)
    figures = draw_figures([item.data for item in shown], output.parent / "figures")
    text = page.render(page.page_context(run), shown, figures)
    write_text(output, text)
    log.info(
        "report: %d models, %d figures, %.1f MB", len(run.models), len(figures), len(text) / 1e6
    )


def tables(run: Results) -> dict[str, pl.DataFrame | None]:
    """Return the tables of all sections for the CSV files; None where the run has none."""
    from her2.report.page import find_sections

    return {
        name: make(run)
        for section in find_sections().values()
        for name, make in section.tables.items()
    }


def table_of(run: Results, name: str) -> pl.DataFrame | None:
    """Return one of these tables; None where the run, or the page, has none of this name."""
    from her2.report.page import find_sections

    makers = {key: make for one in find_sections().values() for key, make in one.tables.items()}
    return makers[name](run) if name in makers else None
