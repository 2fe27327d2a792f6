"""Raw slides to scores: what a frozen model says of slides and of their patients, as one table."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from her2.core.types import Floats
from her2.evaluation.groupings import Grouping
from her2.frozen.model import Threshold
from her2.prediction.options import PATIENT, SLIDE
from her2.prediction.predictor import Predictor

POSITIVE, NEGATIVE = "positive", "negative"


@dataclass(frozen=True, slots=True)
class SlideResult:
    """What is said of a slide.

    Attributes:
        slide_id: the slide.
        patient_id: its patient.
        status: `ok`, `excluded` or `failed`, as in the workflow.
        reason: why there is no prediction.
        tiles: number of tiles that were embedded.
        each: calibrated probabilities of each fold's model (f, c); None without a prediction.
        cautions: sentences.
        percentiles: what -> percentile (0 to 100) among the slides of the development.
    """

    slide_id: str
    patient_id: str
    status: str
    reason: str | None = None
    tiles: int = 0
    each: Floats | None = None
    cautions: tuple[str, ...] = ()
    percentiles: Mapping[str, float | None] = field(default_factory=dict)


def results_table(predictor: Predictor, slides: Sequence[SlideResult]) -> pl.DataFrame:
    """Return one row per slide, then one per patient.

    Columns: `level, slide_id, patient_id, status, reason, predicted, prob_<class>`, for each
    grouping `score_<grouping>` and, by the development's thresholds of the row's level,
    `at_specificity_<grouping>` and `at_sensitivity_<grouping>` (`positive` or `negative`), then
    `spread_<class>` (standard deviation over the models), `slides, tiles, models, cautions` and
    `percentile_<what>`. A patient's probabilities are the means of those of its slides.
    """
    by_patient: dict[str, list[SlideResult]] = defaultdict(list)
    for slide in slides:
        by_patient[slide.patient_id].append(slide)
    whats = list(dict.fromkeys(what for slide in slides for what in slide.percentiles))
    schema = _schema(predictor, whats)
    records = [_slide_record(predictor, slide) for slide in slides]
    records += [_patient_record(predictor, *one) for one in sorted(by_patient.items())]
    rows = [{name: record.get(name) for name in schema} for record in records]
    return pl.DataFrame(rows, schema=schema, orient="row")


def positive_score(probabilities: Floats, grouping: Grouping) -> float:
    """Return the score of a grouping for probabilities (c,), 0.5 where neither side has any."""
    up = float(probabilities[list(grouping.positive)].sum())
    both = up + float(probabilities[list(grouping.negative)].sum())
    return up / both if both > 0 else 0.5


def _schema(predictor: Predictor, whats: Iterable[str]) -> dict[str, Any]:
    classes = predictor.model.task.class_names
    found = dict.fromkeys(("level", "slide_id", "patient_id", "status", "reason"), pl.String)
    decisions: dict[str, Any] = {}
    for grouping in predictor.groupings:
        decisions[f"score_{grouping.name}"] = pl.Float64
        for threshold in predictor.model.thresholds:
            if threshold.grouping == grouping.name:
                decisions[_decision_column(threshold)] = pl.String
    return {
        **found,
        "predicted": pl.String,
        **{f"prob_{name}": pl.Float64 for name in classes},
        **decisions,
        **{f"spread_{name}": pl.Float64 for name in classes},
        "slides": pl.Int64,
        "tiles": pl.Int64,
        "models": pl.Int64,
        "cautions": pl.String,
        **{f"percentile_{what}": pl.Float64 for what in whats},
    }


def _slide_record(predictor: Predictor, slide: SlideResult) -> dict[str, Any]:
    record: dict[str, Any] = {
        "level": SLIDE,
        "slide_id": slide.slide_id,
        "patient_id": slide.patient_id,
        "status": slide.status,
        "reason": slide.reason,
        "cautions": " ".join(slide.cautions) or None,
        **{f"percentile_{what}": value for what, value in slide.percentiles.items()},
    }
    if slide.each is not None:
        record |= _predicted(predictor, SLIDE, slide.each)
        record |= {"slides": 1, "tiles": slide.tiles}
    return record


def _patient_record(
    predictor: Predictor, patient_id: str, slides: Sequence[SlideResult]
) -> dict[str, Any]:
    usable = [slide for slide in slides if slide.each is not None]
    lost = [slide for slide in slides if slide.each is None]
    worst = "failed" if any(slide.status == "failed" for slide in lost) else "excluded"
    record: dict[str, Any] = {
        "level": PATIENT,
        "patient_id": patient_id,
        "status": "ok" if usable else worst,
        "reason": "; ".join(f"{slide.slide_id}: {slide.reason}" for slide in lost) or None,
        "cautions": " ".join(_joined(slides)) or None,
    }
    if usable:
        each = np.mean([slide.each for slide in usable if slide.each is not None], axis=0)
        record |= _predicted(predictor, PATIENT, each)
        record |= {"slides": len(usable), "tiles": sum(slide.tiles for slide in usable)}
    return record


def _joined(slides: Sequence[SlideResult]) -> list[str]:
    """Return the cautions of a patient's slides, each with its slides where there are several."""
    owners: dict[str, list[str]] = defaultdict(list)
    for slide in slides:
        for caution in slide.cautions:
            owners[caution].append(slide.slide_id)
    if len(slides) == 1:
        return list(owners)
    return [f"{', '.join(names)}: {caution}" for caution, names in owners.items()]


def _predicted(predictor: Predictor, level: str, each: Floats) -> dict[str, Any]:
    classes, mean = predictor.model.task.class_names, each.mean(axis=0)
    record: dict[str, Any] = {"predicted": classes[int(mean.argmax())], "models": len(each)}
    spread = each.std(axis=0)
    for index, name in enumerate(classes):
        record[f"prob_{name}"] = float(mean[index])
        record[f"spread_{name}"] = float(spread[index])
    for grouping in predictor.groupings:
        score = positive_score(mean, grouping)
        record[f"score_{grouping.name}"] = score
        for one in predictor.model.thresholds:
            if (one.level, one.grouping) == (level, grouping.name):
                record[_decision_column(one)] = POSITIVE if score >= one.value else NEGATIVE
    return record


def _decision_column(threshold: Threshold) -> str:
    return f"at_{threshold.fixed}_{threshold.grouping}"
