"""Stage 2, report: the part of the methods on figures, comparisons, controls and explanation."""

from dataclasses import dataclass

import polars as pl

from her2.config import EvaluationSection
from her2.evaluation.groupings import groupings_of
from her2.explanation.citations import DELETION, POINTING_GAME
from her2.metrics import all_metrics, metrics_in
from her2.report.format import plural
from her2.report.results import Results
from her2.report.sections.controls import SUBGROUPS
from her2.report.sections.paper.prose import paragraph


@dataclass(frozen=True, slots=True)
class _Statistics:
    """`repeated`: predictions of several repeats are averaged.

    The phrases of metrics: of those that no other sentence names, since the AUC has one of its own;
    of those for ordered scores, none without such a task; and of calibration.
    """

    evaluation: EvaluationSection
    seed: int
    fixed_split: bool
    repeated: bool
    metrics: list[str]
    ordinal_metrics: list[str]
    calibration_metrics: list[str]
    groupings: list[str]


def statistics(results: Results) -> str:
    """Describe levels, figures, intervals, calibration and thresholds."""
    config = results.config
    return paragraph(
        "statistics",
        _Statistics(
            evaluation=config.evaluation,
            seed=config.seed,
            fixed_split=results.split,
            repeated=not results.split and config.folds.repeats > 1,
            metrics=[
                metric.phrase
                for metric in all_metrics()
                if metric.tables == ("metrics",) and not metric.ordinal and metric.name != "auc"
            ],
            ordinal_metrics=[
                metric.phrase
                for metric in metrics_in("metrics", ordinal=True)
                if metric.ordinal and any(task.ordinal for task in config.tasks.values())
            ],
            calibration_metrics=[
                metric.phrase for metric in metrics_in("calibration", ordinal=True)
            ],
            groupings=grouping_names(results),
        ),
    )


def grouping_names(results: Results) -> list[str]:
    """Return the names of what divides scores in two groups, over all tasks."""
    names = dict.fromkeys(
        grouping.name
        for task in results.config.tasks.values()
        for grouping in groupings_of(task, results.config.evaluation)
    )
    return list(names)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """`kinds` are what was compared, none where nothing was."""

    kinds: list[str]
    delong: bool
    family_sizes: str
    domains_compared: bool


def comparison(results: Results) -> str:
    """Describe how encoders and heads were compared; empty where nothing was."""
    columns = {"kind": pl.String, "method": pl.String, "family": pl.Int64}
    whole = pl.concat(
        [pl.DataFrame(schema=columns)]
        + [table.select(pl.col(name).cast(kind) for name, kind in columns.items())
           for table in results.comparisons.values()]
    )  # fmt: skip
    families = whole["family"].drop_nulls().to_list()
    return paragraph(
        "comparison",
        _Comparison(
            kinds=[kind for kind in ("encoders", "heads") if kind in whole["kind"]],
            delong="delong" in whole["method"],
            family_sizes=_family_sizes(families) if families else "",
            domains_compared=any(
                table["difference"].drop_nulls().len() for table in results.statements.values()
            ),
        ),
    )


def _family_sizes(families: list[int]) -> str:
    low, high = min(families), max(families)
    return f"{plural(high, 'test')} each" if low == high else f"{low:,} to {high:,} tests"


@dataclass(frozen=True, slots=True)
class _Controls:
    """`permutations` is the most of any model; `subgroups` are parts of the cohort, in words."""

    covariates: list[str]
    permutations: int
    subgroups: list[str]


def controls(results: Results) -> str:
    """Describe covariates, shuffled labels and parts of the cohort."""
    return paragraph(
        "controls",
        _Controls(
            covariates=_values(results, "inputs", "covariate", pl.col("used")),
            permutations=max(
                (
                    int(row["permutations"] or 0)
                    for model in results.models
                    for row in model.controls["shuffled"].to_dicts()
                ),
                default=0,
            ),
            subgroups=subgroups(results),
        ),
    )


def subgroups(results: Results) -> list[str]:
    """Return the parts of the cohort with an AUC of their own: `site`, `amount of tissue`."""
    found = _values(results, "subgroups", "by")
    return [words for by, words in SUBGROUPS.items() if by in found]


def _values(results: Results, table: str, column: str, where: pl.Expr | None = None) -> list[str]:
    """Return the values of a column of a control, over all models, in their order."""
    found: dict[str, None] = {}
    for model in results.models:
        rows = model.controls[table] if where is None else model.controls[table].filter(where)
        found |= dict.fromkeys(str(value) for value in rows[column])
    return list(found)


@dataclass(frozen=True, slots=True)
class _Explanation:
    """Over how many slides each was measured, in words; empty where it was not."""

    synthetic: bool
    faithfulness_over: str
    localisation_over: str
    agreement_over: str
    deletion: str = DELETION
    pointing_game: str = POINTING_GAME


def explanation(results: Results) -> str:
    """Describe what was asked of attention, over how many slides."""
    return paragraph(
        "explanation",
        _Explanation(
            synthetic=results.synthetic,
            faithfulness_over=_over(results, "faithfulness_summary"),
            localisation_over=_over(results, "localisation_summary"),
            agreement_over=_over(results, "agreement"),
        ),
    )


def _over(results: Results, table: str) -> str:
    """Return `12 slides` or `10 to 12 slides`: over how many the defined figures of all are."""
    numbers = [
        int(row["slides"])
        for model in results.models
        for row in model.attention[table].to_dicts()
        if row["value"] is not None and row.get("class", "all") == "all"
    ]
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    return plural(high, "slide") if low == high else f"{low:,} to {plural(high, 'slide')}"
