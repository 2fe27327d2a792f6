"""Stage 2, external cohorts: columns of the tables that the development cohort has none of.

The other tables of `her2 validate` have the columns of the development's tables of the same name:
`metrics`, `confusion`, `binary`, `calibration`, `reliability`, `decision`, `slides`, `patients` and
`predictions` those of `her2 evaluate`, `inputs` and `covariates` those of `her2 control`; and
`comparison` and `statement` of `her2 external` those of `her2 compare`.
"""

import polars as pl

from her2.evaluation.operating_points import OPERATING

COUNTS = {
    "what": pl.String,
    "slides": pl.Int64,
    "patients": pl.Int64,
    "note": pl.String,
}
"""How many are left at each step from the manifest to the figures; `what` is one of `STEPS`."""
MANIFEST, UNUSABLE, UNPREDICTED = "in the manifest", "not usable", "usable, not predicted"
PREDICTED_ONLY = "predicted"
UNLABELLED, UNMAPPED, LEFT_OUT = "no label", "label of no class", "left out by patient_label"
EVALUATED = "evaluated"
STEPS = (
    MANIFEST, UNUSABLE, UNPREDICTED, PREDICTED_ONLY, UNLABELLED, UNMAPPED, LEFT_OUT, EVALUATED,
)  # fmt: skip
"""In the manifest = not usable + usable, not predicted + predicted (slides); predicted = no label +
label of no class + left out + evaluated (slides)."""

THRESHOLDS = {
    "level": pl.String,
    "grouping": pl.String,
    "fixed": pl.String,
    "asked": pl.Float64,
    "run": pl.String,
    "threshold": pl.Float64,
    "note": pl.String,
}
"""A fold's threshold on its calibrated tuning set; null with the reason where it lacks a side."""

OPERATING_GIVEN = OPERATING | {"threshold": pl.Float64}
"""Those of `operating` and `threshold`, the development's, which was applied to the mean
probabilities; `threshold_min` and `threshold_max` are the range over the folds that it is the mean
of."""

SITES = {
    "level": pl.String,
    "by": pl.String,
    "site": pl.String,
    "metric": pl.String,
    "class": pl.String,
    "grouping": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "n_positive": pl.Int64,
    "note": pl.String,
}
"""`by` is `site`, `scanner` or a column of `evaluation.subgroups`, and `site` its value. The only
`metric` is `auc`; of `class` (a class or `macro`) and `grouping` one is empty."""

INTERNAL = {
    "metric": pl.String,
    "class": pl.String,
    "grouping": pl.String,
    "internal": pl.Float64,
    "internal_low": pl.Float64,
    "internal_high": pl.Float64,
    "external": pl.Float64,
    "external_low": pl.Float64,
    "external_high": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "single": pl.Float64,
    "single_difference": pl.Float64,
    "single_low": pl.Float64,
    "single_high": pl.Float64,
    "single_p": pl.Float64,
    "n_internal": pl.Int64,
    "n_external": pl.Int64,
    "note": pl.String,
}
"""AUCs by patient. `difference` is external minus internal; of `class` and `grouping` one is
empty.

`external` is of the mean of all models, `internal` of single ones, which the mean of several
exceeds. `single` is the mean external AUC of the single models, and `single_difference` (with
`single_low`, `single_high`, `single_p`) is that minus `internal`: like for like."""

CASE_MIX = {
    "what": pl.String,
    "kind": pl.String,
    "unit": pl.String,
    "task": pl.String,
    "grid": pl.String,
    "level": pl.String,
    "development": pl.Int64,
    "external": pl.Int64,
    "development_share": pl.Float64,
    "external_share": pl.Float64,
    "development_low": pl.Float64,
    "development_median": pl.Float64,
    "development_high": pl.Float64,
    "external_low": pl.Float64,
    "external_median": pl.Float64,
    "external_high": pl.Float64,
    "difference": pl.Float64,
    "note": pl.String,
}
"""`what` is in words (`class`, `site`, `scanner`, `vendor`, `um/px`, `tissue area`, ...).

`kind` is `category` or `number`, `unit` what is counted: `patients` or `slides`. A category has a
row per level, with counts and shares. A number has one row: `level` is empty, counts are of the
slides with a value, and the quartiles (`low`, `median`, `high`) are filled. `task` is the name of
the truth, for classes, and `grid` the grid, for tiles; else empty. `difference` is the
standardised one, external minus development."""
