"""Stage 2, control: the AUC over pairs of patients of the same test set and the same group.

A model that recognises the site, and knows how frequent each score is there, ranks patients of two
sites well and those of one site by chance.
"""

from dataclasses import replace

import numpy as np
import polars as pl

from her2.config import EvaluationSection, Task
from her2.core.tables import null
from her2.evaluation.areas import Area, HeldOut, class_area, combined, opponents, within
from her2.evaluation.controls.patient_groups import UNKNOWN
from her2.evaluation.controls.subgroups import Groups, absent, codes
from her2.evaluation.intervals import area_estimate, mean_estimate

WITHIN = {
    "by": pl.String,
    "class": pl.String,
    "overall": pl.Float64,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "pairs": pl.Float64,
    "n": pl.Int64,
    "n_positive": pl.Int64,
    "note": pl.String,
}


def within_figures(
    rows: HeldOut, groups: Groups, task: Task, section: EvaluationSection
) -> pl.DataFrame:
    """Return each AUC over pairs of the same test set and group, beside that over all pairs.

    Patients whose group is not known are left out. `n` counts the patients who are compared with
    another at all, and `pairs` is the share of pairs that is left.

    Args:
        rows: the model's test rows, by patient.
        groups: the patients' groups by each property.
        task: the task, for its classes.
        section: the `evaluation` section of the config, for the confidence.
    """
    counts = dict(zip(task.class_names, rows.class_patients.tolist(), strict=True))
    whole, before, _ = _areas(rows)
    records = []
    for by, of in groups.items():
        names, index = codes(rows, of)
        known = np.array([name != UNKNOWN for name in names])
        parts, pairs, patients = _areas(within(rows, np.where(known[index], index, -1)))
        estimates = [area_estimate(one, section.confidence) for one in parts[:-1]]
        estimates.append(mean_estimate(parts[-1], parts[:-1], section.confidence))
        unknown = int((~known[index]).sum())
        for place, name in enumerate((*task.class_names, "macro")):
            found, all_pairs = estimates[place], before[place]
            # Without a pair, the reason is in the groups or already in the cohort.
            lost = _no_pair(name if name in counts else "some class", by)
            reason = absent(counts, name) or (lost if parts[place].reason else found.note)
            few = f"patients whose {by} is not known: {unknown}" if unknown else ""
            records.append(
                {
                    "by": by,
                    "class": name,
                    "overall": null(whole[place].value),
                    "value": null(found.value),
                    "low": null(found.low),
                    "high": null(found.high),
                    "pairs": pairs[place] / all_pairs if all_pairs else None,
                    "n": int(patients[place].sum()),
                    "n_positive": int((patients[place] & (parts[place].groups == 1)).sum())
                    if name in counts
                    else None,
                    "note": "; ".join(one for one in (reason, few) if one),
                }
            )
    return pl.DataFrame(records, schema=WITHIN)


def _no_pair(name: str, by: str) -> str:
    return f"not defined: no patient of {name} shares test set and {by} with one of another class"


def _areas(rows: HeldOut) -> tuple[list[Area], list[int], list[np.ndarray]]:
    """Return the AUC of each class and macro, their pairs, and who is in one (p,).

    A patient who is compared with no other is not in the figure, so that its interval is as wide
    as that of the patients who are.
    """
    areas, pairs, patients = [], [], []
    for index in range(rows.probabilities.shape[1]):
        positive = rows.target == index
        others = opponents(rows, positive)
        compared = np.bincount(rows.patients, others, minlength=len(rows.names)) > 0
        found = class_area(rows, index)
        areas.append(replace(found, groups=np.where(compared, found.groups, -1)))
        pairs.append(int(others[positive].sum()))
        patients.append(compared)
    compared = np.any(patients, axis=0)
    weights = [1 / len(areas)] * len(areas)
    macro = combined(areas, weights, groups=np.where(compared, rows.classes, -1))
    return [*areas, macro], [*pairs, sum(pairs)], [*patients, compared]
