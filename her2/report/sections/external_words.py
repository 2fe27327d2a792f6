"""Stage 2, report: what was found on external cohorts, in sentences."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from her2.cohort.audit import table_cautions
from her2.evaluation.external.tables import LEFT_OUT, UNLABELLED, UNMAPPED
from her2.metrics import headline_metrics
from her2.report.external_results import ExternalCohort, ExternalModel, ExternalTruth
from her2.report.format import NA, interval, listed, number, plural, signed
from her2.report.results import Results
from her2.report.sections import external_checks
from her2.report.sections.external_cells import patients_and_slides
from her2.report.sections.overlap import external_mark, overlap_of

FEW_PATIENTS = 10
"""Number of patients of a class below which intervals are only approximate."""
LEFT = {
    UNLABELLED: "without a label",
    UNMAPPED: "with a label of no class",
    LEFT_OUT: "of patients with slides of different classes",
}
"""Step of the table `counts` at which slides are predicted only -> its words."""
DROP, RISE, UNCLEAR, UNKNOWN = "drop", "rise", "unclear", "unknown"


def internal_row(model: ExternalModel) -> dict[str, Any] | None:
    """Return the macro AUC out-of-fold beside the external one, a row of `internal`."""
    rows = model.tables["internal"].filter(
        (pl.col("metric") == "auc") & (pl.col("class") == "macro")
    )
    return rows.to_dicts()[0] if len(rows) else None


def change(row: dict[str, Any] | None) -> str:
    """Return what the interval of the difference says, like for like: of single models."""
    if row is None or row["single_difference"] is None or row["single_low"] is None:
        return UNKNOWN
    return DROP if row["single_high"] < 0 else RISE if row["single_low"] > 0 else UNCLEAR


def sentences(results: Results, task_name: str) -> list[str]:
    """Return one sentence per external cohort and truth of a task."""
    return [
        _sentence(results, cohort, truth)
        for cohort in results.external
        for truth in cohort.truths
        if truth.of == task_name
    ]


def _sentence(results: Results, cohort: ExternalCohort, truth: ExternalTruth) -> str:
    """Return what became of the model that was best in development: it was chosen before."""
    models = cohort.of_truth(truth.name)
    where = f"External cohort {cohort.name}, {about(truth)}"
    if not any(model.evaluated for model in models):
        slides = max(len(model.applied) for model in models)
        return f"{where}: {plural(slides, 'slide')} predicted, none evaluated ({_why(models[0])})."
    rows = [(model, internal_row(model)) for model in models]
    known = [(m, row) for m, row in rows if row is not None]
    if all(row["external"] is None for _, row in known):
        return f"{where}: no macro AUC is defined; the table gives the reason."
    # Also where it has no external figure: the next best was not chosen before.
    best, top = max(known, key=lambda pair: -1.0 if pair[1]["internal"] is None
                    else pair[1]["internal"])  # fmt: skip
    sign = external_mark(results, cohort.name, best.encoder)
    figure = f"{number(top['external'], sign=sign)} "
    figure += interval(top["external_low"], top["external_high"])
    several = len(models) > 1
    if top["external"] is None:
        why = top["note"] or "the table gives the reason"
        return (
            f"{where}: {best.encoder} / {best.head}, the best of development, has no macro AUC "
            f"there ({why}); other models have."
        )
    text = (
        f"{where}, {patients_and_slides(best)}: {best.encoder} / {best.head}"
        f"{', the best of development,' if several else ''} has a macro AUC of {figure.strip()}, "
    )
    inside = f"{number(top['internal'])} {interval(top['internal_low'], top['internal_high'])}"
    text += f"against {inside.strip()} out-of-fold"
    if top["difference"] is not None:
        ends = interval(top["low"], top["high"])
        text += f", a difference of {signed(top['difference'])} {ends}".rstrip()
    if cohort.section.final == "folds" and top["single_difference"] is not None:
        ends = interval(top["single_low"], top["single_high"])
        text += f"; like for like, of single models, {signed(top['single_difference'])} {ends}"
        text = text.rstrip()
    text += {
        DROP: ": the figure drops.",
        RISE: ": the figure rises.",
        UNCLEAR: ". No change is shown, nor that there is none.",
        UNKNOWN: f". Whether it changed is not known ({top['note'] or 'no interval'}).",
    }[change(top)]
    drops = sum(change(row) == DROP for _, row in rows)
    if several and drops:
        verb = "is" if drops == 1 else "are"
        text += f" {drops} of {len(models)} models {verb} lower there by this interval"
        if change(top) == DROP:
            text += "; some of it is expected, as the best of several is too high out-of-fold"
        text += "."
    return text


def about(truth: ExternalTruth) -> str:
    """Return the task, and the two sides of its classes where the cohort knows only these."""
    own = f"task {truth.of}"
    if truth.name != truth.of:
        own += f" as {truth.name}"
    if truth.positive:
        negative, positive = truth.task.class_names
        own += f" ({negative} vs {positive}, which is {listed(truth.positive)})"
    return own


def _why(model: ExternalModel) -> str:
    notes = model.tables["metrics"]["note"].drop_nulls().to_list()
    return notes[0].split("; ")[-1] if notes and notes[0] else "no label"


@dataclass(frozen=True, slots=True)
class CohortFacts:
    """An external cohort in numbers; `left` are the slides that are not evaluated, with reasons."""

    name: str
    slides: int
    patients: int
    sites: int
    usable: str
    truths: tuple[str, ...]
    refit: bool
    models: str


def facts(results: Results, cohort: ExternalCohort) -> CohortFacts:
    """Return the numbers of a cohort for the page, the methods and the checklist."""
    one = cohort.slides.unique("slide_id", keep="first")
    lost = {row.slide_id for row in external_checks.excluded_slides(results, cohort)}
    sites = one["site"].drop_nulls().n_unique() if "site" in one.columns else 0
    numbers = sorted({int(n) for model in cohort.models for n in model.applied["models"]})
    return CohortFacts(
        name=cohort.name,
        slides=len(one),
        patients=one["patient_id"].n_unique(),
        sites=sites,
        usable="all usable" if not lost else f"{plural(len(lost), 'slide')} not usable",
        truths=tuple(_truth_words(cohort, truth) for truth in cohort.truths),
        refit=cohort.section.final == "refit",
        models=" to ".join(str(n) for n in dict.fromkeys([*numbers[:1], *numbers[-1:]])) or NA,
    )


def _truth_words(cohort: ExternalCohort, truth: ExternalTruth) -> str:
    """Return the evaluated patients of each class, and what is not evaluated."""
    first = cohort.of_truth(truth.name)[0]
    if not first.evaluated:
        return f"{about(truth)}: predicted, none evaluated ({_why(first)})"
    targets = Counter(first.patients["target"].to_list())
    by_class = listed([f"{targets[at]:,} of {name}" for at, name in
                       enumerate(truth.task.class_names)])  # fmt: skip
    rest = [
        f"{plural(row['slides'], 'slide')} {LEFT[row['what']]}"
        for row in first.tables["counts"].to_dicts()
        if row["what"] in LEFT and row["slides"]
    ]
    text = f"{about(truth)}: {plural(len(first.patients), 'patient')} evaluated ({by_class})"
    return text + (f"; predicted only: {', '.join(rest)}" if rest else "")


def notices(results: Results) -> Iterator[tuple[str, str]]:
    """Yield warnings on external cohorts, with the anchors of their details."""
    for cohort in results.external:
        yield from _notices(results, cohort)


def _notices(results: Results, cohort: ExternalCohort) -> Iterator[tuple[str, str]]:
    anchor = cohort.anchor
    for text in external_checks.suspicions(cohort):
        yield text, anchor
    for text in table_cautions(cohort.slides):
        yield f"{cohort.name}: {text}", anchor
    for encoder in results.config.encoders:
        found = overlap_of(results, encoder, cohort.name)
        if found is not None and not found.known:
            yield (
                f"{cohort.name}: it is unknown whether the pre-training of {encoder} saw patients "
                "of this cohort (its data set names no cases).",
                anchor,
            )
    groups = Counter(
        (row.stage, row.encoder or row.grid, row.status)
        for row in external_checks.excluded_slides(results, cohort)
    )
    for (stage, where, status), count in groups.items():
        yield (
            f"{cohort.name}: {plural(count, 'slide')} {status} at the {stage} stage ({where}).",
            (anchor),
        )
    for one in external_checks.cautions(results, cohort):
        if one.slides:
            where = f" ({one.where})" if one.where else ""
            yield (
                f"{cohort.name}: {len(one.slides)} of {plural(one.total, 'slide')} outside of what "
                f"the models were developed on in {one.what}{where}.",
                anchor,
            )
    for model in cohort.models:
        for text in _figures(model):
            yield text, anchor


def _figures(model: ExternalModel) -> Iterator[str]:
    """Yield figures that are not defined, and classes of few patients."""
    if not model.evaluated:
        yield f"{model.name}: predicted, not evaluated ({_why(model)})."
        return
    labels = {metric.name: metric.label for metric in headline_metrics()}
    patients = model.metrics.filter(pl.col("level") == "patient")
    absent: dict[str, list[str]] = {}
    for row in patients.filter(pl.col("metric").is_in(list(labels))).to_dicts():
        if row["value"] is None:
            what = f"{labels[row['metric']]} {row['class']}".rstrip()
            absent.setdefault(row["note"] or "not defined", []).append(what)
    for note, names in absent.items():
        yield f"{model.name}: {listed(names)} NA: {note}."
    few = [
        f"{row['class']} ({row['n_positive']})"
        for row in patients.filter(
            (pl.col("metric") == "auc") & (pl.col("n_positive") < FEW_PATIENTS)
        ).to_dicts()
        if row["value"] is not None
    ]
    if few:
        yield (
            f"{model.name}: fewer than {FEW_PATIENTS} patients of class {', '.join(few)}. Their "
            "intervals are only approximate."
        )
