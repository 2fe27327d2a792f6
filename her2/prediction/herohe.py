"""Raw slides to scores: the table of the HEROHE challenge (Conde-Sousa 2022).

One row per case: `caseID`, `soft_prediction` (probability of HER2-positive) and `hard_prediction`
(1 or 0).
"""

import polars as pl

from her2.core.errors import UserError
from her2.evaluation.groupings import Grouping
from her2.prediction.options import PATIENT
from her2.prediction.predictor import Predictor


def chosen_grouping(predictor: Predictor, name: str | None) -> Grouping:
    """Return the grouping whose positive side is HER2-positive.

    Raises:
        UserError: there is none of this name, or several and none is named.
    """
    known = {grouping.name: grouping for grouping in predictor.groupings}
    if name is None and len(known) == 1:
        return next(iter(known.values()))
    words = ", ".join(map(repr, known)) or "none"
    if name is None:
        why = "say which is HER2-positive against negative" if known else "it needs one"
        raise UserError(f"--format herohe: the model has the groupings {words}; {why} (--grouping)")
    if name not in known:
        raise UserError(f"--grouping {name}: the model has the groupings {words}")
    return known[name]


def herohe_table(table: pl.DataFrame, grouping: Grouping) -> pl.DataFrame:
    """Return the challenge's table from one of `her2.prediction.results`.

    A case is a patient. It is called positive from a probability of 0.5 on; a case that could not
    be predicted has empty cells.
    """
    score = pl.col(f"score_{grouping.name}")
    return table.filter(level=PATIENT).select(
        caseID="patient_id",
        soft_prediction=score,
        hard_prediction=(score >= 0.5).cast(pl.Int64),
    )
