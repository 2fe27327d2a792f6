"""Stage 2, control: AUC in subgroups of the cohort, and whether it differs between them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from scipy.special import chdtrc, logit

from her2.config import EvaluationSection, Task
from her2.core.tables import null
from her2.core.types import Floats, Ints
from her2.evaluation.areas import Area, HeldOut, class_areas, macro_area, within
from her2.evaluation.families import TEST, with_holm
from her2.evaluation.figures import class_estimates
from her2.evaluation.intervals import LEAST_COMPARED, spread

SUBGROUPS = {
    "by": pl.String,
    "group": pl.String,
    "class": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "n_positive": pl.Int64,
    "note": pl.String,
}
INTERACTIONS = {
    "by": pl.String,
    "groups": pl.Int64,
    "lowest_group": pl.String,
    "lowest": pl.Float64,
    "highest_group": pl.String,
    "highest": pl.Float64,
    "chi_square": pl.Float64,
    **TEST,
    "n": pl.Int64,
    "note": pl.String,
}
FAMILY = "differences between subgroups"
"""Family of the tests of one model, one test per property."""
FEW = 10
"""Number of patients in a subgroup below which its interval is noted as unreliable."""
Groups = Mapping[str, Mapping[str, str]]
"""Property -> patient -> group, see `her2.evaluation.controls.patient_groups`."""


def subgroup_figures(
    rows: HeldOut, groups: Groups, task: Task, section: EvaluationSection
) -> pl.DataFrame:
    """Return the macro AUC and class AUCs of the patients of each subgroup.

    Args:
        rows: the model's test rows, by patient.
        groups: the patients' groups.
        task: the task, for its classes.
        section: the `evaluation` section of the config, for the confidence.
    """
    records = []
    for by, group, own in _parts(rows, groups):
        counts = dict(zip(task.class_names, own.class_patients.tolist(), strict=True))
        few = f"fewer than {FEW} patients" if len(own.names) < FEW else ""
        for name, found in class_estimates(own, task, section.confidence).items():
            if name == "weighted":
                continue
            note = absent(counts, name) or found.note
            records.append(
                {
                    "by": by,
                    "group": group,
                    "class": name,
                    "value": null(found.value),
                    "low": null(found.low),
                    "high": null(found.high),
                    "n": len(own.names),
                    "n_positive": counts.get(name),
                    "note": "; ".join(one for one in (note, few) if one),
                }
            )
    return pl.DataFrame(records, schema=SUBGROUPS)


def interactions(rows: HeldOut, groups: Groups, task: Task) -> pl.DataFrame:
    """Test for each property whether the macro AUC differs between its groups of patients.

    Wald's chi-square on the logit scale: the groups have no patient in common, and the models that
    rank them are the same. In simulated studies without a difference, 1 to 4 % of p values were
    below 0.05. A group with fewer than `LEAST_COMPARED` patients of a class is left out, and so is
    one whose AUC is 0 or 1, which has no logit.

    `p_holm` corrects for the number of properties of the model.
    """
    records = []
    for by in groups:
        names, areas, left_out = [], [], []
        for _, group, own in _parts(rows, {by: groups[by]}):
            reason, area = _macro(own, task)
            if reason:
                left_out.append(f"{group}: {reason}")
            else:
                names.append(group)
                areas.append(area)
        order = np.argsort([area.value for area in areas])
        chi_square, p = wald(areas) if len(areas) > 1 else (math.nan, math.nan)
        untested = "" if len(areas) > 1 else "not tested: fewer than 2 groups can be"
        ends: dict[str, object] = {}
        if len(areas) > 1:  # one group is neither the lowest nor the highest
            for end, index in (("lowest", order[0]), ("highest", order[-1])):
                ends |= {f"{end}_group": names[index], end: areas[index].value}
        records.append(
            {
                "by": by,
                "groups": len(areas),
                **ends,
                "chi_square": null(chi_square),
                "p": null(p),
                "family": FAMILY,
                "n": sum(int(area.sizes.sum()) for area in areas),
                "note": "; ".join(
                    one
                    for one in (untested, f"left out: {', '.join(left_out)}" if left_out else "")
                    if one
                ),
            }
        )
    table = pl.DataFrame(records, schema=INTERACTIONS).drop("p_holm", "family_size")
    return with_holm(table).select(list(INTERACTIONS))


def wald(areas: Sequence[Area]) -> tuple[float, float]:
    """Return chi-square, of k - 1 degrees of freedom, and p that independent AUCs (k) are equal."""
    values: Floats = np.array([area.value for area in areas])
    variances = np.array([spread(area)[0] for area in areas]) / (values * (1 - values)) ** 2
    logits, weights = logit(values), 1 / variances
    chi_square = float(weights @ (logits - weights @ logits / weights.sum()) ** 2)
    return chi_square, float(chdtrc(len(areas) - 1, chi_square))


def codes(rows: HeldOut, groups: Mapping[str, str]) -> tuple[list[str], Ints]:
    """Return the names of the groups, sorted, and the index of each patient's (p,)."""
    own = [groups[name] for name in rows.names]
    names = sorted(set(own))
    places = {name: index for index, name in enumerate(names)}
    return names, np.array([places[name] for name in own], dtype=np.int64)


def absent(counts: Mapping[str, int], name: str) -> str:
    """Return the reason why some patients have no AUC of a class or macro AUC; "" if they have."""
    gone = [one for one, count in counts.items() if not count]
    if name not in counts:
        return f"not defined: no patient of {', '.join(gone)}" if gone else ""
    if not counts[name]:
        return f"not defined: no patient of {name}"
    return f"not defined: every patient is of {name}" if len(gone) == len(counts) - 1 else ""


def _parts(rows: HeldOut, groups: Groups) -> list[tuple[str, str, HeldOut]]:
    """Return each property, group and the rows of its patients."""
    parts = []
    for by, of in groups.items():
        names, index = codes(rows, of)
        parts += [
            (by, name, within(rows, np.where(index == place, 0, -1)))
            for place, name in enumerate(names)
        ]
    return parts


def _macro(rows: HeldOut, task: Task) -> tuple[str, Area]:
    """Return why a group cannot be tested ("" if it can) and its macro AUC."""
    counts = rows.class_patients
    area = macro_area(rows, class_areas(rows))
    few = [name for name, n in zip(task.class_names, counts, strict=True) if n < LEAST_COMPARED]
    if few:
        return f"fewer than {LEAST_COMPARED} patients of {' and '.join(few)}", area
    if area.reason:
        return area.reason, area
    if not 0 < area.value < 1 or not spread(area)[0] > 1e-15:
        return f"an AUC of {area.value:.3f} has no variance", area
    return "", area
