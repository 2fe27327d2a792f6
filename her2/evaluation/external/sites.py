"""Stage 2, external cohorts: AUCs of the patients of each site and scanner."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from her2.cohort.columns import place_in_table, subgroups
from her2.config import EvaluationSection, Task
from her2.core.tables import null
from her2.evaluation.areas import HeldOut, held_out, within
from her2.evaluation.controls.patient_groups import patient_groups
from her2.evaluation.controls.subgroups import FEW, absent, codes
from her2.evaluation.external.tables import SITES
from her2.evaluation.groupings import Grouping, groupings_of
from her2.evaluation.paired import areas_of, estimate_of


def site_table(
    predictions: pl.DataFrame,
    cohort: pl.DataFrame,
    task: Task,
    section: EvaluationSection,
    *,
    level: str,
) -> pl.DataFrame:
    """Return the AUCs of each class, macro and grouping within each site, scanner and subgroup.

    A column that the cohort does not have, or that is the same for all patients, has no rows.

    Args:
        predictions: the external predictions table.
        cohort: the usable slides of the cohort's table on one grid.
        task: the truth, for its classes.
        section: the `evaluation` section of the config.
        level: `patient` or `slide`.

    Returns:
        The columns of `her2.evaluation.external.tables.SITES`.
    """
    tested = predictions.filter(pl.col("role") == "test")
    columns = [name for name in section.subgroups if place_in_table(name, cohort.columns)]
    groups = patient_groups(tested, cohort, columns)
    rows, groupings = held_out(predictions, task, level=level), groupings_of(task, section)
    records = []
    for by in (*subgroups(), *columns):
        if by not in groups:
            continue
        names, index = codes(rows, groups[by])
        for place, site in enumerate(names):
            own = within(rows, np.where(index == place, 0, -1))
            shared = {"level": level, "by": by, "site": site, "metric": "auc"}
            records += [shared | record for record in _figures(own, task, groupings, section)]
    return pl.DataFrame(records, schema=SITES)


def _figures(
    rows: HeldOut, task: Task, groupings: tuple[Grouping, ...], section: EvaluationSection
) -> list[dict[str, Any]]:
    areas = areas_of(rows, task, groupings)
    by_name = {grouping.name: grouping for grouping in groupings}
    counts = dict(
        zip(
            task.class_names,
            np.bincount(rows.target, minlength=len(task.class_names)).tolist(),
            strict=True,
        )
    )
    few = f"fewer than {FEW} patients" if len(rows.names) < FEW else ""
    records: list[dict[str, Any]] = []
    for name, grouping in areas:
        found = estimate_of(areas, (name, grouping), section.confidence)
        numbers = _sizes(rows, counts, by_name.get(grouping), name)
        note = ("" if grouping else absent(counts, name)) or found.note
        records.append(
            {
                "class": name,
                "grouping": grouping,
                "value": null(found.value),
                "low": null(found.low),
                "high": null(found.high),
                **dict(zip(("n", "n_positive"), numbers, strict=True)),
                "note": "; ".join(one for one in (note, few) if one),
            }
        )
    return records


def _sizes(
    rows: HeldOut, counts: Mapping[str, int], grouping: Grouping | None, name: str
) -> tuple[int, int | None]:
    """Return the number of rows of a figure, and of its positive side (None for a mean)."""
    if grouping is None:
        return len(rows.target), counts.get(name)
    positive = int(np.isin(rows.target, grouping.positive).sum())
    return positive + int(np.isin(rows.target, grouping.negative).sum()), positive
