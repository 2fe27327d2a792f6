"""Stage 2, external cohorts: the groupings' rates at the thresholds of development.

Nothing is chosen on external patients. The mean of the folds' thresholds is applied to the mean of
the folds' calibrated probabilities, as the frozen model is used, so the intervals are of given
thresholds.
"""

import numpy as np
import polars as pl

from her2.config import EvaluationSection
from her2.config.external_jobs import Truth
from her2.evaluation.external.tables import OPERATING_GIVEN
from her2.evaluation.external.thresholds import mean_threshold
from her2.evaluation.groupings import Grouping, groupings_of, two_sides
from her2.evaluation.operating_points import RATES, rate_columns
from her2.evaluation.predictions import out_of_fold, rows_of


def operating_at(
    predictions: pl.DataFrame,
    thresholds: pl.DataFrame,
    truth: Truth,
    section: EvaluationSection,
    *,
    level: str,
) -> pl.DataFrame:
    """Return sensitivity, specificity, PPV and NPV at given thresholds, with Wilson's intervals.

    A patient is one trial. PPV and NPV at a stated prevalence follow from the external sensitivity
    and specificity.

    Args:
        predictions: calibrated, in the classes of the truth.
        thresholds: the table of `her2.evaluation.external.thresholds.fold_thresholds` for the
            truth.
        truth: the truth.
        section: the `evaluation` section of the config.
        level: `patient` or `slide`.

    Returns:
        The columns of `her2.evaluation.external.tables.OPERATING_GIVEN`.
    """
    task = truth.truth
    table = out_of_fold(predictions, task.class_names, by=f"{level}_id")
    rows = rows_of(table, task)
    asked = {"specificity": section.specificity, "sensitivity": section.sensitivity}
    records = []
    for grouping in groupings_of(task, section):
        sides = two_sides(rows.target, rows.probabilities, grouping)
        prevalence = stated_prevalence(grouping, truth, section)
        for fixed, value in asked.items():
            where = {"level": level, "grouping": grouping.name, "fixed": fixed}
            record = {
                **where,
                "asked": value,
                "n_positive": int(sides.positive.sum()),
                "n_negative": int((~sides.positive).sum()),
            }
            chosen = mean_threshold(thresholds, **where)
            if chosen is None:
                record["note"] = "not defined: no fold of development has a threshold"
            else:
                called = pl.DataFrame(
                    {
                        "patient": table.filter(pl.Series(sides.kept, dtype=pl.Boolean))[
                            "patient_id"
                        ],
                        "positive": pl.Series(sides.positive, dtype=pl.Boolean),
                        "called": pl.Series(sides.scores >= chosen["value"], dtype=pl.Float64),
                    }
                )
                found, note = rate_columns(
                    called, section.confidence, prevalence, np.zeros(len(RATES))
                )
                record |= found | {
                    "threshold": chosen["value"],
                    "threshold_min": chosen["lowest"],
                    "threshold_max": chosen["highest"],
                    "note": "; ".join(filter(None, (note, _lacking(thresholds, where)))),
                }
            records.append(record)
    return pl.DataFrame(records, schema=OPERATING_GIVEN)


def stated_prevalence(grouping: Grouping, truth: Truth, section: EvaluationSection) -> float | None:
    """Return the prevalence that the config states for a grouping of the truth, or None.

    Where the truth has the two sides of one of the task's groupings under another name, it is that
    one's.
    """
    if grouping.name in section.prevalence:
        return section.prevalence[grouping.name]
    own = [
        {index for place in side for index in truth.sides[place]}
        for side in (grouping.negative, grouping.positive)
    ]
    for other in groupings_of(truth.task, section):
        if own == [set(other.negative), set(other.positive)]:
            return section.prevalence.get(other.name)
    return None


def _lacking(thresholds: pl.DataFrame, where: dict[str, str]) -> str:
    own = thresholds.filter(*(pl.col(name) == value for name, value in where.items()))
    lacking = own.filter(pl.col("threshold").is_null())["run"].to_list()
    if not lacking:
        return ""
    return (
        f"the threshold is the mean of {len(own) - len(lacking)} of {len(own)} folds, without "
        f"{', '.join(lacking)}, whose tuning set lacks a side"
    )
