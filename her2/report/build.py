"""Stage 2, report: read a finished run, lay out the page, write it and the tables beside it.

Each section of the page is one function that returns plain data; `page.html.j2` only lays them
out. Equal results give equal bytes: no hosts, no folders of the machine, and no times but those
that the feature stores record of their own making.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import polars as pl

from her2.config.jobs import ReportSpec
from her2.core.files import write_text
from her2.core.tables import write_csv
from her2.report import format, script
from her2.report.figures.base import write_figures
from her2.report.paper import checklist, methods
from her2.report.results import DETAILS, Results, read_results
from her2.report.sections import (
    cohort,
    comparison,
    controls,
    explanation,
    flow,
    gallery,
    headline,
    leakage,
    models,
    notices,
    overlap,
    pictures,
    pretraining,
    provenance,
    published_protocol,
    summary,
    throughput,
)

log = logging.getLogger(__name__)

OPTIONAL = ("comparison", "statement", "pretraining", "throughput", "similar")
"""Tables that not every run has."""
_FOLDER = Path(__file__).parent


def build_report(spec: ReportSpec, results: Path, output: Path) -> None:
    """Write `tables/*.csv`, `figures/*`, `methods.txt` and `checklist.csv` beside the page, and
    the page last.

    Args:
        spec: the job.
        results: the results folder of the run.
        output: the HTML file: self-contained, with one script, pinned by its hash.

    Raises:
        UserError: a table of the run is missing or broken, or the page cannot be written.
    """
    run = read_results(spec, results)
    written = tables(run)
    for name, table in written.items():
        write_csv(table, output.parent / "tables" / f"{name}.csv")
    for name in OPTIONAL:  # not beside this page, if an earlier report of more encoders had it
        if name not in written:
            (output.parent / "tables" / f"{name}.csv").unlink(missing_ok=True)
    shown = sections(run)
    files = write_figures(shown, output.parent / "figures")
    write_text(output.with_name("methods.txt"), "\n\n".join(shown["methods"]) + "\n")
    write_csv(checklist.checklist_table(run), output.with_name("checklist.csv"))
    page = render(shown)
    write_text(output, page)
    log.info(
        "report: %d models, %d figure files, %.1f MB", len(run.models), len(files), len(page) / 1e6
    )


def render(shown: Mapping[str, Any]) -> str:
    """The page of `sections`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": format.count, "plural": format.plural}
    return environment.get_template("page.html.j2").render(
        style=(_FOLDER / "style.css").read_text(encoding="utf-8"),
        script=script.script(),
        script_hash=script.script_hash(),
        **shown,
    )


def sections(run: Results) -> dict[str, Any]:
    """What the template is given, in the order of the page."""
    excluded = cohort.excluded_slides(run)
    attention = [pictures.attention(run, model) for model in run.models]
    levels = {
        level: [headline.headline(run, task, level) for task in run.config.tasks]
        for level in ("patient", "slide")
    }
    return {
        "config": run.config,
        "synthetic": run.synthetic,
        "sentences": summary.sentences(run),
        "headlines": levels,
        "reached": controls.reached(run),
        "statements": comparison.statements(run),
        "footnotes": overlap.footnotes(run),
        "notices": notices.notices(run, excluded, attention),
        "flows": flow.flows(run),
        "compositions": [cohort.composition(run, task) for task in run.config.tasks],
        "grids": cohort.grid_rows(run),
        "encoders": cohort.encoder_rows(run),
        "checks": leakage.checks(run),
        "pairs": leakage.pairs(run),
        "excluded": excluded,
        "comparisons": comparison.comparisons(run),
        "shared_tiles": comparison.shared_tiles(run),
        "protocols": published_protocol.protocols(run),
        "pretraining": pretraining.pretraining(run),
        "published": headline.published(run),
        "protocol": headline.protocol(run),
        "models": [
            models.model_section(run, model, drawn=index < models.DRAWN)
            for index, model in enumerate(run.models)
        ],
        "drawn": models.DRAWN,
        "localised": explanation.localised(run),
        "localisation": explanation.localisation(run),
        "by_class": explanation.localisation_by_class(run),
        "faithfulness": explanation.faithfulness(run),
        "agreement": explanation.agreement(run),
        "attention": attention,
        "truth": pictures.truth_words(run),
        "covariates": controls.covariates_sheet(run),
        "inputs": controls.inputs_sheet(run),
        "shuffled": controls.shuffled_sheet(run),
        "gallery": gallery.gallery(run),
        "much": gallery.MUCH,
        "throughput": throughput.throughput(run),
        "methods": methods.methods(run),
        "checklist": checklist.checklist(run),
        "provenance": provenance.provenance(run),
    }


def tables(run: Results) -> dict[str, pl.DataFrame]:
    """The figures of the page for other programs: one table a file."""
    names = ("task_name", "encoder", "head")
    metrics = _stack(run, [model.metrics for model in run.models])
    aucs = metrics.filter(
        (pl.col("metric") == "auc")
        & (pl.col("level") == "patient")
        & (pl.col("class") != "weighted")
    )
    domains = {name: headline.domain(run, name) for name in run.config.encoders}
    excluded = [asdict(row) for row in cohort.excluded_slides(run)]
    folds = [
        {
            **{name.removesuffix("_name"): getattr(model, name) for name in names},
            **{key: value for key, value in asdict(row).items() if key != "tune_loss"},
            "tune_loss": model.folds[row.run].tune_loss,
            "options": model.folds[row.run].options,
            "overlap": overlap.seen(run, model.encoder),
        }
        for model in run.models
        for row in models.fold_rows(model)
    ]
    makers = (
        comparison.comparison_table,
        comparison.statement_table,
        pretraining.pretraining_table,
        throughput.throughput_table,
        leakage.pairs_table,
    )
    optional = {name: make(run) for name, make in zip(OPTIONAL, makers, strict=True)}
    return {
        "headline": aucs.select(
            "task",
            "encoder",
            pl.col("encoder").replace_strict(domains).alias("domain"),
            "head",
            "class",
            "n_positive",
            "n",
            pl.col("value").alias("auc"),
            "low",
            "high",
            "note",
            "overlap",
        ),
        "metrics": metrics,
        **{name: _stack(run, [getattr(model, name) for model in run.models]) for name in DETAILS},
        **{
            name: _stack(run, [model.controls[name] for model in run.models])
            for name in ("covariates", "inputs", "shuffled", "subgroups")
        },
        **{
            name: _stack(run, [model.attention[name] for model in run.models])
            for name in ("localisation_summary", "faithfulness_summary", "agreement")
        },
        "folds": pl.DataFrame(folds, infer_schema_length=None),
        "excluded": pl.DataFrame(
            excluded, schema=dict.fromkeys(cohort.Excluded.__dataclass_fields__, pl.String)
        ),
        "unlabelled": _stack(run, [models.unlabelled_table(model) for model in run.models]),
        "encoders": pl.DataFrame([asdict(row) for row in provenance.encoder_facts(run)]),
        **{name: table for name, table in optional.items() if table is not None},
    }


def _stack(run: Results, found: list[pl.DataFrame]) -> pl.DataFrame:
    """The models' tables under each other, with their names in front; columns may differ.

    `overlap` is how many patients of the cohort the encoder was pre-trained on.
    """
    parts = [
        table.select(
            pl.lit(model.task_name).alias("task"),
            pl.lit(model.encoder).alias("encoder"),
            pl.lit(model.head).alias("head"),
            pl.all(),
            pl.lit(overlap.seen(run, model.encoder), pl.Int64).alias("overlap"),
        )
        for model, table in zip(run.models, found, strict=True)
    ]
    return pl.concat(parts, how="diagonal")
