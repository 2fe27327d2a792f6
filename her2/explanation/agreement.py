"""Stage 2, explanation: agreement of attention between the models of two repeats.

It is Spearman's rank correlation of a held-out slide's attention between repeats that tested it,
averaged over the pairs of repeats, then over a patient's slides, then over patients.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.explanation.averages import INTERVAL, SIGNED, over_patients
from her2.explanation.held_out import HeldOutSlide
from her2.explanation.localisation import UNIFORM, is_uniform

AGREEMENT = {
    "measure": pl.String,
    **INTERVAL,
    "slides": pl.Int64,
    "pairs": pl.Int64,
    "note": pl.String,
}


def rank_correlation(maps: Sequence[NDArray[np.floating]]) -> float | None:
    """Return Spearman's rho, averaged over all pairs of maps (n,) of a slide.

    None where fewer than two of the maps vary, as correlation with a constant is not defined.
    """
    ranks = [pl.Series(values).rank() for values in maps if not is_uniform(values)]
    pairs = [np.corrcoef(first, second)[0, 1] for first, second in combinations(ranks, 2)]
    return float(np.mean(pairs)) if pairs else None


def agreement_table(
    slides: Sequence[HeldOutSlide],
    correlations: Sequence[float | None],
    confidence: float,
    *,
    repeats: int,
) -> pl.DataFrame:
    """Return a one-row table with the mean over patients of the slides' `rank_correlation`.

    `repeats` counts those of the cross-validation, and `pairs` of the table the pairs they form.
    """
    rows = [
        (slide.patient_id, slide.label, value)
        for slide, value in zip(slides, correlations, strict=True)
        if value is not None
    ]
    schema = {"patient_id": pl.String, "label": pl.String, "spearman": pl.Float64}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    (mean,) = over_patients(table, {"spearman": SIGNED}, confidence)
    note = mean.note
    if repeats < 2:
        note = "not defined: one repeat (folds.repeats is 1, or the manifest's split is used)"
    elif not rows:
        note = UNIFORM if slides else "not defined: no slide was tested in two repeats"
    pairs = repeats * (repeats - 1) // 2
    row = {"measure": "spearman", "slides": len(rows), "pairs": pairs, **asdict(mean), "note": note}
    return pl.DataFrame([row], schema=AGREEMENT)
