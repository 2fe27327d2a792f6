"""Stage 2, explanation: agreement of attention between models that never saw a slide.

It is Spearman's rank correlation of a slide's attention between two models, averaged over the pairs
of models, then over a patient's slides, then over patients. A held-out slide has a model in each
repeat that tested it, an external slide all models of the development.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.explanation.averages import INTERVAL, SIGNED, over_patients
from her2.explanation.localisation import UNIFORM, is_uniform
from her2.explanation.tiles import Explained

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
    slides: Sequence[Explained],
    correlations: Sequence[float | None],
    confidence: float,
    *,
    maps: int,
    why_none: str,
) -> pl.DataFrame:
    """Return a one-row table with the mean over patients of the slides' `rank_correlation`.

    Args:
        slides: the slides that were compared.
        correlations: their rank correlations; None where attention is uniform.
        confidence: confidence level of the interval.
        maps: how many models a slide can have; `pairs` of the table counts the pairs they form.
        why_none: the note if no slide was compared.
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
    if not rows:
        note = UNIFORM if slides else why_none
    pairs = maps * (maps - 1) // 2
    row = {"measure": "spearman", "slides": len(rows), "pairs": pairs, **asdict(mean), "note": note}
    return pl.DataFrame([row], schema=AGREEMENT)
