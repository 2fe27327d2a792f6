"""Stage 2, control: facts of slides that are known without looking at the tissue.

A headline figure has a meaning only next to such a figure, on the same patients in the same folds.
`her2.evaluation.controls.covariate_models` makes the predictions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from her2.cohort.columns import covariates
from her2.evaluation.controls.patient_groups import as_numbers, column_of

NUMBERS = {
    "tissue": pl.col("tissue_mm2"),
    "tiles": pl.col("tiles"),
    "size": pl.col("width_px") * pl.col("height_px"),
    "mpp": (pl.col("mpp_x") * pl.col("mpp_y")).sqrt(),
}
"""Covariates computed from the results of tiling; the logarithm of each is used."""
WORDS = {
    "tissue": "tissue area",
    "tiles": "number of tiles",
    "size": "slide size",
    "mpp": "um/px",
}
"""Names of these covariates in the report; the manifest's columns have labels of their own."""
MISSING = "(missing)"
INPUTS = {
    "covariate": pl.String,
    "kind": pl.String,
    "used": pl.Boolean,
    "levels": pl.Int64,
    "missing": pl.Int64,
    "note": pl.String,
}


@dataclass(frozen=True, slots=True)
class Covariates:
    """Covariates of slides.

    `table` has one row per slide, with `slide_id` and the covariates. `inputs` describes all
    covariates, used or not.
    """

    table: pl.DataFrame
    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    inputs: pl.DataFrame

    @property
    def any_used(self) -> bool:
        """Whether any covariate differs between slides."""
        return bool(self.numbers or self.categories)


def covariates_of(
    cohort: pl.DataFrame, slides: Sequence[str], *, columns: Sequence[str] = (), label: str = ""
) -> Covariates:
    """Return the covariates of some slides, from the cohort's table for one grid.

    A covariate that is not known for any slide, or the same for all, is not used; `inputs` tells
    why.

    Args:
        cohort: one row per slide.
        slides: ids of the slides.
        columns: further columns of the manifest that are covariates: numbers where all their
            values are numbers, else categories.
        label: the label column of the task, which is never used.

    Raises:
        UserError: the cohort's table lacks one of `columns`.
    """
    table = cohort.filter(pl.col("slide_id").is_in(list(slides))).sort("slide_id")
    # A declared column is in the table only if some slide has a value.
    numbers, categories = (
        {name: words for name, words in covariates(kind).items() if name in cohort.columns}
        for kind in ("number", "category")
    )
    for name in columns:
        place = column_of(cohort, name)
        if place not in numbers | categories:
            kind = categories if as_numbers(table[place]) is None else numbers
            kind[place] = name
    labels = WORDS | numbers | categories
    table = table.select(
        "slide_id",
        *(value.cast(pl.Float64).log().alias(name) for name, value in NUMBERS.items()),
        *(pl.col(name).cast(pl.Float64) for name in numbers),
        *(pl.col(name).cast(pl.String) for name in categories),
    )
    filled = table.with_columns(
        *(
            pl.when(pl.col(name).is_finite()).then(pl.col(name)).otherwise(None).alias(name)
            for name in WORDS | numbers
        ),
    )
    records, used = [], []
    for name, words in labels.items():
        known = filled[name].drop_nulls()
        missing, levels = len(filled) - len(known), known.n_unique()
        # What is missing is a level of a category.
        varies = levels + (name in categories and missing > 0) > 1
        note = "" if varies else "the same for every slide"
        note = "not known for any slide" if not len(known) else note
        note = "the label of the task" if name == f"label_{label}" else note
        if not note:
            used.append(name)
        records.append(
            {
                "covariate": words,
                "kind": "category" if name in categories else "number",
                "used": not note,
                "levels": levels,
                "missing": missing,
                "note": note,
            }
        )
    return Covariates(
        table=filled.with_columns(pl.col(name).fill_null(MISSING) for name in categories),
        numbers=tuple(name for name in used if name not in categories),
        categories=tuple(name for name in used if name in categories),
        inputs=pl.DataFrame(records, schema=INPUTS),
    )
