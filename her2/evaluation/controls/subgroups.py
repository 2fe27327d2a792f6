"""Stage 2, control: AUC in subgroups of the cohort, by site, scanner and so on, and by tissue."""

import polars as pl

from her2.cohort.columns import subgroups
from her2.config import EvaluationSection, Task
from her2.evaluation.figures import figures

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
FEW = 10
"""Number of patients in a subgroup below which its interval is noted as unreliable."""
UNKNOWN = "(not known)"


def subgroup_labels() -> dict[str, str]:
    """Return the values of the table's column `by` and their names in the report, in its order."""
    return subgroups() | {"tissue": "amount of tissue"}


def subgroup_figures(
    predictions: pl.DataFrame,
    cohort: pl.DataFrame,
    task: Task,
    section: EvaluationSection,
    *,
    seed: int,
) -> pl.DataFrame:
    """Return the macro AUC and class AUCs of each subgroup, at patient level.

    A patient has the site, scanner and so on of their first slide that names one. Their amount of
    tissue is the sum over their tested slides, and patients are cut into thirds by it. A column
    that is the same for all patients, or unknown, gives no rows.

    Args:
        predictions: the predictions table of one model.
        cohort: one row per slide: `slide_id, tissue_mm2` and columns of the manifest.
        task: the task, for its classes.
        section: the `evaluation` section of the config, for the resamples.
        seed: seed of the resamples.
    """
    names = [name for name in subgroups() if name in cohort.columns]
    tested = (
        predictions.filter(pl.col("role") == "test")
        .select("slide_id", "patient_id")
        .unique()
        .sort("slide_id")
        .join(cohort, on="slide_id", how="left")
    )
    about = (
        tested.group_by("patient_id")
        .agg(
            pl.col(names).cast(pl.String).drop_nulls().first(),
            pl.col("tissue_mm2").sum(),
        )
        .sort("patient_id")
        .with_columns(pl.col(names).fill_null(UNKNOWN))
        .with_columns(tissue=_thirds(pl.col("tissue_mm2")))
    )
    parts = []
    for by in (*names, "tissue"):
        groups = about[by].unique().sort().to_list()
        # Thirds are cut by rank, so there are three even where all amounts are the same.
        if len(groups) < 2 or (by == "tissue" and about["tissue_mm2"].n_unique() < 2):
            continue
        for group in groups:
            members = about.filter(pl.col(by) == group)["patient_id"]
            own = predictions.filter(pl.col("patient_id").is_in(members.to_list()))
            parts.append(_part(own, task, section, seed).with_columns(
                pl.lit(by).alias("by"), pl.lit(group).alias("group")
            ))  # fmt: skip
    if not parts:
        return pl.DataFrame(schema=SUBGROUPS)
    return pl.concat(parts).select(list(SUBGROUPS))


def _part(own: pl.DataFrame, task: Task, section: EvaluationSection, seed: int) -> pl.DataFrame:
    found = figures(own, task, section, level="patient", seed=seed).filter(
        (pl.col("metric") == "auc") & (pl.col("class") != "weighted")
    )
    patients = own.filter(pl.col("role") == "test")["patient_id"].n_unique()
    few = f"fewer than {FEW} patients" if patients < FEW else ""
    return found.with_columns(
        note=pl.concat_str(
            [pl.col("note"), pl.lit("; " if few else ""), pl.lit(few)]
        ).str.strip_chars("; ")
    )


def _thirds(tissue: pl.Expr) -> pl.Expr:
    """Return `1 (least)`, `2` or `3 (most)` by rank; equal amounts are ranked by their order."""
    third = (3 * (tissue.rank("ordinal") - 1) / pl.len()).floor()
    names = ("1 (least)", "2", "3 (most)")
    chosen = pl.when(third == 0).then(pl.lit(names[0]))
    return chosen.when(third == 1).then(pl.lit(names[1])).otherwise(pl.lit(names[2]))
