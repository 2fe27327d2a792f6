"""Stage 2, report: warnings near the top of the page, one sentence each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from her2.cohort.audit import table_cautions
from her2.cohort.fixed_split import SPLITS
from her2.cohort.similar import SUSPICIOUS
from her2.config import EncoderSection
from her2.config.catalogue import row as catalogue_row
from her2.config.catalogue import scale_warning
from her2.metrics import headline_metrics
from her2.report.format import plural
from her2.report.results import EvaluatedModel, Results, one_row_per_slide
from her2.report.section import Link, Section
from her2.report.sections import external_words, licences, overlap, robustness
from her2.report.sections.cohort import Excluded, excluded_slides
from her2.report.sections.patient_labels import decided_words, left_out
from her2.report.sections.pictures import ModelPictures, all_pictures

FEW_PATIENTS = 10
"""Number of patients of a class below which intervals are only approximate."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning, with the id of the section that has the details."""

    text: str
    anchor: str


def notices(
    results: Results, excluded: Sequence[Excluded], pictures: Sequence[ModelPictures]
) -> list[Notice]:
    """Return reasons for optimistic results first, then warnings in the order of the pipeline."""
    found = [*_overlaps(results), *_similar(results), *_scales(results)]
    found += [Notice(text, "robustness") for text in robustness.cautions(results)]
    found += [
        Notice(text, "cohort")
        for name in results.config.tasks
        if (text := decided_words(results, name))
    ]
    found += [Notice(text, "quality") for text in table_cautions(results.cohort)]
    found += [*_columns(results), *_slides(results, excluded), *_encoders(results)]
    found += _given(results)
    found += [Notice(text, "provenance") for text in licences.cautions(results)]
    for model in results.models:
        found += [*_figures(model), *_folds(results, model), *_predictions(results, model)]
    found += [
        Notice(
            f"{item.name}: {plural(len(item.not_drawn), 'slide')} without a picture.", item.anchor
        )
        for item in pictures
        if item.not_drawn
    ]
    found += [Notice(text, anchor) for text, anchor in external_words.notices(results)]
    return found


def _overlaps(results: Results) -> list[Notice]:
    found = [Notice(f"{text}.", "overlap") for text in overlap.footnotes(results)]
    found += [
        Notice(
            f"{name}: it is unknown whether its pre-training saw patients of this cohort (its "
            "data set names no cases).",
            "pretraining",
        )
        for name in overlap.unknown(results)
    ]
    return found


def _similar(results: Results) -> list[Notice]:
    """Return pairs of slides that would have stopped the run at the default limit."""
    return [
        Notice(
            f"{encoder}: {row['slide_a']} and {row['slide_b']} belong to different patients but "
            f"share {row['shared']:.0%} of their tiles according to their features. This is "
            f"allowed by folds.max_shared_tiles: {results.config.folds.max_shared_tiles:g}.",
            "audit",
        )
        for encoder, table in results.similar.items()
        for row in table.filter(pl.col("shared") > SUSPICIOUS).to_dicts()
    ]


def _columns(results: Results) -> list[Notice]:
    """Return notices on manifest columns and settings that have no, or only partial, effect."""
    words, found = {}, [Notice(text, "cohort") for text in results.cautions]
    if results.split:
        text = "The manifest's fixed split is used (column 'split'): folds.number, folds.repeats "
        found.append(Notice(f"{text}and folds.sites do not apply.", "cohort"))
    else:
        words = {"split": "folds.split is 'ignore'"}
    found += [
        Notice(f"The manifest's column {name!r} is not used: {text}.", "cohort")
        for name, text in words.items()
        if name in results.cohort.columns
        and results.cohort[name].null_count() < len(results.cohort)
    ]
    slides = one_row_per_slide(results)
    for name, text in (
        ("annotation", "tiled in their annotated regions only"),
        ("mask", "tiled in the tissue of a mask from another program"),
    ):
        number = len(slides) - slides[name].null_count() if name in slides.columns else 0
        if 0 < number < len(slides):
            found.append(
                Notice(
                    f"{number} of {plural(len(slides), 'slide')} were {text}; the others were not. "
                    "If this is associated with the score, a model can learn it instead of the "
                    "tissue.",
                    "quality",
                )
            )
    return found


def _scales(results: Results) -> list[Notice]:
    """Return notices on published encoders used at another um/px than in their training."""
    found = []
    for name, encoder in results.config.encoders.items():
        if isinstance(encoder, EncoderSection) and encoder.source == "catalogue":
            text = scale_warning(catalogue_row(encoder.model), encoder.mpp)
            if text is not None:
                found.append(Notice(f"{name}: {text}", "provenance"))
    return found


def _slides(results: Results, excluded: Sequence[Excluded]) -> list[Notice]:
    groups = Counter(
        (row.stage, row.encoder or row.grid, row.status) for row in excluded if row.stage != "folds"
    )
    return [
        Notice(f"{plural(number, 'slide')} {status} at the {stage} stage ({where}).", "excluded")
        for (stage, where, status), number in groups.items()
    ]


def _encoders(results: Results) -> list[Notice]:
    found = []
    for name, card in results.cards.items():
        used = results.precisions[name]
        failed = sum(entry.failed_tiles for entry in results.features[name].values())
        if failed:
            found.append(
                Notice(f"{name}: {plural(failed, 'tile')} could not be read.", "embedding")
            )
        if len(used) > 1:
            found.append(
                Notice(
                    f"{name}: its features were computed in more than one precision "
                    f"({', '.join(used)}), so they differ slightly between slides.",
                    "provenance",
                )
            )
        elif used and card.precision not in ("auto", used[0]):
            found.append(
                Notice(
                    f"{name}: {card.precision} was requested, but features were computed in "
                    f"{used[0]}.",
                    "provenance",
                )
            )
        if len(on := results.devices[name]) > 1:
            found.append(
                Notice(
                    f"{name}: its features were computed on more than one kind of device "
                    f"({', '.join(on)}), so they differ slightly between slides.",
                    "provenance",
                )
            )
    return found


def _given(results: Results) -> list[Notice]:
    """Return notices on features that another program computed."""
    return [
        Notice(
            f"{name}: its features were not computed here. They are {card.architecture}, as the "
            f"config says (form {card.provenance.get('form')}); which encoder and tiles they "
            "really have is not known here.",
            "provenance",
        )
        for name, card in results.cards.items()
        if not card.computed_here
    ]


def _figures(model: EvaluatedModel) -> list[Notice]:
    levels: dict[tuple[str, str], list[str]] = {}
    labels = {metric.name: metric.label for metric in headline_metrics()}
    for row in model.metrics.filter(pl.col("metric").is_in(list(labels))).to_dicts():
        if row["value"] is None:
            problem = f"is NA: {row['note'] or 'not defined'}"
        elif row["low"] is None:
            problem = f"has no interval: {row['note'] or 'not defined'}"
        else:
            continue
        what = f"{labels[row['metric']]} {row['class']}".rstrip()
        levels.setdefault((what, problem), []).append(row["level"])
    found = [
        Notice(f"{model.name}: {what} ({' and '.join(at)} level) {problem}.", "headline")
        for (what, problem), at in levels.items()
    ]
    few = [
        f"{row['class']} ({row['n_positive']})"
        for row in model.level("patient")
        .filter((pl.col("metric") == "auc") & (pl.col("n_positive") < FEW_PATIENTS))
        .to_dicts()
        if row["value"] is not None
    ]
    if few:
        text = f"{model.name}: fewer than {FEW_PATIENTS} patients of class {', '.join(few)}. "
        found.append(Notice(f"{text}Their intervals are only approximate.", "headline"))
    return found


def _folds(results: Results, model: EvaluatedModel) -> list[Notice]:
    found = []
    if model.untrained:
        why = "; ".join(f"{run}: {reason}" for run, reason in model.untrained.items())
        found.append(
            Notice(
                f"{model.name}: {len(model.untrained)} of "
                f"{len(model.untrained) + len(model.folds)} folds could not be trained, and all "
                f"figures are over the others ({why}).",
                model.anchor,
            )
        )
    limit = results.config.training.epochs
    noun = "fold" if results.config.training.seeds == 1 else "trained model"
    total = plural(len(model.folds), noun)
    first = sum(entry.best_epoch == 0 and entry.epochs > 1 for entry in model.folds.values())
    last = sum(entry.best_epoch + 1 == limit for entry in model.folds.values())
    if first:
        found.append(
            Notice(
                f"{model.name}: in {first} of {total}, no epoch improved on the "
                "first, so the model kept had one epoch of training.",
                model.anchor,
            )
        )
    if last:
        found.append(
            Notice(
                f"{model.name}: {last} of {total} kept the last of {limit} allowed "
                "epochs. Training was still improving; raise training.epochs.",
                model.anchor,
            )
        )
    return found


def _predictions(results: Results, model: EvaluatedModel) -> list[Notice]:
    """Return a notice on labelled slides with features that were not evaluated.

    Under a fixed split only the slides of its test set are expected.
    """
    label = f"label_{model.task.label}"
    rows = results.cohort.select("slide_id", "patient_id", label, "split").unique().iter_rows()
    out = left_out(results, model.task_name)
    labelled = {
        slide
        for slide, patient, value, split in rows
        if value is not None
        and patient not in out
        and model.task.class_index(value) is not None
        and (not results.split or SPLITS.get((split or "").lower()) == "test")
    }
    entries = results.features[model.encoder]
    usable = {name for name in labelled if name in entries and entries[name].status == "ok"}
    absent = sorted(usable - set(model.slides["slide_id"]))
    if not absent:
        return []
    names = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
    text = f"{model.name}: {plural(len(absent), 'labelled slide')} with features but no prediction"
    return [Notice(f"{text}: {names}.", model.anchor)]


def _collect(results: Results) -> list[Notice]:
    return notices(results, excluded_slides(results), all_pictures(results))


SECTION = Section(
    anchor="notices",
    title="Warnings",
    order=20,
    collect=_collect,
    links=lambda found: (Link(f"Warnings ({len(found)})", "notices"),),
)
