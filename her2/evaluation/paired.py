"""Stage 2, compare: AUCs of several models for the same patients, slides and folds.

Each AUC comes with the influence of every patient, so that patients who are hard for two models
cancel out in their difference. All models have the same rounds, those of the model with the most
training seeds. Another model with fewer counts in each of them with the mean over its own seeds, so
that no seed of a model counts more than the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from her2.config import EvaluationSection, Task
from her2.core.errors import UserError
from her2.core.types import Floats
from her2.evaluation.areas import (
    Area,
    HeldOut,
    class_areas,
    combined,
    grouping_area,
    held_out,
    macro_area,
)
from her2.evaluation.groupings import Grouping, groupings_of
from her2.evaluation.intervals import Estimate, area_estimate, difference_estimate, mean_estimate

Model = tuple[str, str]
"""Encoder, head."""
Question = tuple[str, str]
"""(class or `macro`, "") or ("", grouping): names one AUC of a model."""
MACRO: Question = ("macro", "")
Round = tuple[int, int]
"""Repeat, training seed."""


@dataclass(frozen=True, slots=True)
class Paired:
    """AUCs of several models for their common patients.

    `areas` holds each model's AUC for each question, `counts` the number of patients in each
    question. `left_out` says how many patients not all models tested, "" if none.
    """

    areas: Mapping[Model, Mapping[Question, Area]]
    counts: Mapping[Question, int]
    confidence: float
    left_out: str

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions, in the order of the tables."""
        return tuple(self.counts)

    def estimate(self, model: Model, question: Question) -> Estimate:
        """Return the AUC of a model with its interval."""
        return estimate_of(self.areas[model], question, self.confidence)

    def contrast(self, weights: Mapping[Model, float], question: Question) -> Area:
        """Return a linear combination of the models' AUCs."""
        found = [self.areas[model][question] for model in weights]
        return combined(found, list(weights.values()), groups=found[0].groups)

    def difference(self, first: Model, second: Model, question: Question) -> Estimate:
        """Return the AUC of the first model minus that of the second."""
        return difference_estimate(self.contrast({first: 1, second: -1}, question), self.confidence)


def pair_models(
    predictions: Mapping[Model, pl.DataFrame], task: Task, section: EvaluationSection
) -> Paired:
    """Restrict models to the slides (of every repeat) that all of them tested.

    They may have different numbers of training seeds.

    Args:
        predictions: the predictions table of each model.
        task: the task that they predict.
        section: the `evaluation` section of the config, for groupings and confidence.

    Raises:
        UserError: the models disagree on a slide's class or fold, or have no patient in common.
    """
    tested = commonly_tested(predictions)
    rounds = {model: _rounds(table) for model, table in tested.items()}
    most = max(rounds.values(), key=len)
    groupings = groupings_of(task, section)
    areas: dict[Model, dict[Question, Area]] = {}
    patients = 0
    for model, table in tested.items():
        rows = held_out(table, task, level="patient")
        patients = len(rows.names)
        areas[model] = {
            question: _in_rounds(one, rounds[model], most)
            for question, one in areas_of(rows, task, groupings).items()
        }
    first = next(iter(areas.values()))
    return Paired(
        areas=areas,
        counts={question: int(one.sizes.sum()) for question, one in first.items()},
        confidence=section.confidence,
        left_out=left_out_words(predictions, patients),
    )


def areas_of(rows: HeldOut, task: Task, groupings: Sequence[Grouping]) -> dict[Question, Area]:
    """Return the AUC of every question: each class, macro, each grouping."""
    classes = class_areas(rows)
    return {
        **{(name, ""): one for name, one in zip(task.class_names, classes, strict=True)},
        MACRO: macro_area(rows, classes),
        **{("", grouping.name): grouping_area(rows, grouping) for grouping in groupings},
    }


def estimate_of(areas: Mapping[Question, Area], question: Question, confidence: float) -> Estimate:
    """Return one AUC of a model with its interval."""
    if question != MACRO:
        return area_estimate(areas[question], confidence)
    parts = [one for (name, _), one in areas.items() if name not in ("", MACRO[0])]
    return mean_estimate(areas[question], parts, confidence)


def _rounds(table: pl.DataFrame) -> list[Round]:
    """Return the rounds of a model, in the order of the areas of its rows."""
    return table.select("repeat", "seed").unique().sort("repeat", "seed").rows()


def _in_rounds(area: Area, own: Sequence[Round], wanted: Sequence[Round]) -> Area:
    """Return a model's AUC in other rounds: in each, the mean over its seeds of the same repeat."""
    if own == wanted:
        return area
    repeats = np.array([repeat for repeat, _ in own])
    # Seeds test the same patients, so an AUC is defined for all seeds of a repeat or for none.
    members = [np.flatnonzero(repeats == repeat) for repeat, _ in wanted]

    def means(values: Floats) -> Floats:
        return np.stack([values[each].mean(axis=0) for each in members])

    return replace(
        area,
        rounds=means(area.rounds),
        influence=means(area.influence),
        levels=means(area.levels),
    )


def commonly_tested(predictions: Mapping[Model, pl.DataFrame]) -> dict[Model, pl.DataFrame]:
    """Return each model's test rows of the slides (of every repeat) that all models tested.

    Raises:
        UserError: the models disagree on a slide's class or fold, or have no slide in common.
    """
    tested = {model: table.filter(pl.col("role") == "test") for model, table in predictions.items()}
    common = _common(tested)
    if not len(common) and len(tested) > 1:
        raise UserError(
            f"the models to compare ({', '.join('/'.join(one) for one in tested)}) have no "
            "patient in common; see the report's list of excluded slides."
        )
    return {
        model: table.join(common, on=["slide_id", "repeat"], how="semi", maintain_order="left")
        for model, table in tested.items()
    }


def left_out_words(predictions: Mapping[Model, pl.DataFrame], kept: int) -> str:
    """Return a note on the patients that some but not all models tested, "" if there are none.

    A model that lacks a fold tests its patients in fewer repeats, or not at all.
    """
    tested = [
        table.filter(pl.col("role") == "test").select("patient_id", "repeat").unique()
        for table in predictions.values()
    ]
    counts = pl.concat(tested).group_by("patient_id", "repeat").len()
    whole = counts.filter(pl.col("len") == len(tested))["patient_id"].unique()
    partly = counts.filter(
        (pl.col("len") < len(tested)) & pl.col("patient_id").is_in(whole.to_list())
    )
    words = (
        ("patients left out because not all models tested them",
         counts["patient_id"].n_unique() - kept),
        ("patients compared in fewer repeats, because not all models tested them in each",
         partly["patient_id"].n_unique()),
    )  # fmt: skip
    return "; ".join(f"{text}: {number}" for text, number in words if number)


def _common(tested: Mapping[Model, pl.DataFrame]) -> pl.DataFrame:
    """Return the `slide_id, repeat` pairs that all models tested, in the same fold."""
    keys = ["slide_id", "repeat"]
    # Training seeds repeat the same test sets.
    each = [table.select(*keys, "fold", "target").unique() for table in tested.values()]
    merged = (
        pl.concat(each)
        .group_by(keys)
        .agg(pl.len().alias("models"), pl.col("fold", "target").n_unique())
        .sort(keys)
    )
    for column, words in (("target", "different labels"), ("fold", "different folds")):
        torn = merged.filter(pl.col(column) > 1)
        if len(torn):
            raise UserError(
                f"{torn['slide_id'][0]}: the models to compare were evaluated on {words}; run "
                "snakemake again."
            )
    return merged.filter(pl.col("models") == len(tested)).select(keys)
