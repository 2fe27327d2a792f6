"""Stage 2, report: the methods of statistics, comparisons, controls and explanation."""

from dataclasses import dataclass

import polars as pl

from her2.config import Balance, EvaluationSection
from her2.evaluation.groupings import groupings_of
from her2.evaluation.intervals import ASSUMED_FACTOR, ASSUMED_MISPLACED, SHARED_BY_DIFFERENCES
from her2.evaluation.selection import CORRECTED, NESTED
from her2.explanation.citations import DELETION, POINTING_GAME
from her2.metrics import all_metrics, metrics_in
from her2.report.format import plural
from her2.report.results import Results
from her2.report.sections.controls import SUBGROUPS
from her2.report.sections.paper.prose import paragraph

REBALANCED: dict[Balance, str] = {
    "sampling": "drew the scores equally often",
    "loss": "weighed the scores alike",
}
"""What the balance of a training did to the frequencies of the scores, if anything."""


@dataclass(frozen=True, slots=True)
class _Statistics:
    """Facts of the statistics paragraph; `repeated` is true where repeats are averaged.

    `metrics` holds phrases of metrics that no other sentence names (the AUC has its own),
    `ordinal_metrics` those for ordered scores, if a task has them.
    """

    evaluation: EvaluationSection
    seed: int
    fixed_split: bool
    repeated: bool
    assumed_factor: float
    assumed_misplaced: float
    metrics: list[str]
    ordinal_metrics: list[str]
    calibration_metrics: list[str]
    rebalanced: str
    groupings: list[str]


def statistics(results: Results) -> str:
    """Describe levels, metrics, intervals, calibration and thresholds."""
    config = results.config
    return paragraph(
        "statistics",
        _Statistics(
            evaluation=config.evaluation,
            seed=config.seed,
            fixed_split=results.split,
            repeated=config.training.seeds > 1 or (not results.split and config.folds.repeats > 1),
            assumed_factor=ASSUMED_FACTOR,
            assumed_misplaced=ASSUMED_MISPLACED,
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
            rebalanced=REBALANCED.get(config.training.balance, ""),
            groupings=grouping_names(results),
        ),
    )


def grouping_names(results: Results) -> list[str]:
    """Return the names of the groupings of scores into two groups, over all tasks."""
    names = dict.fromkeys(
        grouping.name
        for task in results.config.tasks.values()
        for grouping in groupings_of(task, results.config.evaluation)
    )
    return list(names)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Facts of the comparison paragraph; `kinds` is empty where nothing was compared."""

    kinds: list[str]
    families: list[str]
    domains_compared: bool
    fixed_split: bool
    shared: float
    models: int
    corrected: bool
    nested: bool
    evaluation: EvaluationSection


def comparison(results: Results) -> str:
    """Describe the comparison of encoders and heads; empty where nothing was compared."""
    columns = {"kind": pl.String, "family": pl.String, "family_size": pl.Int64}
    whole = pl.concat(
        [pl.DataFrame(schema=columns)]
        + [table.select(list(columns)) for table in results.comparisons.values()]
    )
    sizes = whole.select("family", "family_size").unique(maintain_order=True)
    return paragraph(
        "comparison",
        _Comparison(
            kinds=[kind for kind in ("encoders", "heads") if kind in whole["kind"]],
            families=[
                f"{name}: {plural(size, 'test')}" for name, size in sizes.iter_rows() if size
            ],
            domains_compared=any(
                table["difference"].drop_nulls().len() for table in results.statements.values()
            ),
            fixed_split=results.split,
            shared=SHARED_BY_DIFFERENCES,
            models=len(results.config.encoders) * len(results.config.heads),
            corrected=_chosen(results, CORRECTED),
            nested=_chosen(results, NESTED),
            evaluation=results.config.evaluation,
        ),
    )


def _chosen(results: Results, method: str) -> bool:
    """Return whether a task has a figure for a way of choosing among its models."""
    return any(
        table.filter(pl.col("method") == method)["value"].drop_nulls().len()
        for table in results.selections.values()
    )


@dataclass(frozen=True, slots=True)
class _Controls:
    """Facts of the controls paragraph; `permutations` is the maximum over all models.

    `spread` is true where the shuffled AUCs were spread around their mean.
    """

    covariates: list[str]
    within: list[str]
    permutations: int
    spread: bool
    subgroups: list[str]
    tested: list[str]


def controls(results: Results) -> str:
    """Describe covariates, pairs within groups, shuffled labels and subgroups."""
    return paragraph(
        "controls",
        _Controls(
            covariates=_values(results, "inputs", "covariate", pl.col("used")),
            within=_properties(results, "within"),
            permutations=max(
                (
                    int(row["permutations"] or 0)
                    for model in results.models
                    for row in model.controls["shuffled"].to_dicts()
                ),
                default=0,
            ),
            spread=not results.split,
            subgroups=subgroups(results),
            tested=_properties(results, "interactions", pl.col("p").is_not_null()),
        ),
    )


def subgroups(results: Results) -> list[str]:
    """Return the kinds of subgroups with their own AUC: `site`, `amount of tissue`."""
    return _properties(results, "subgroups")


def _properties(results: Results, table: str, where: pl.Expr | None = None) -> list[str]:
    """Return the names of the properties of patients in a control's column `by`."""
    return [SUBGROUPS.get(by, by) for by in _values(results, table, "by", where)]


def _values(results: Results, table: str, column: str, where: pl.Expr | None = None) -> list[str]:
    """Return the distinct values of a column of a control, over all models, in order."""
    found: dict[str, None] = {}
    for model in results.models:
        rows = model.controls[table] if where is None else model.controls[table].filter(where)
        found |= dict.fromkeys(str(value) for value in rows[column])
    return list(found)


@dataclass(frozen=True, slots=True)
class _Explanation:
    """Facts of the explanation paragraph: slides behind each measure, empty if not measured."""

    synthetic: bool
    seeds: int
    faithfulness_over: str
    localisation_over: str
    agreement_over: str
    deletion: str = DELETION
    pointing_game: str = POINTING_GAME


def explanation(results: Results) -> str:
    """Describe the measures of attention, with the numbers of slides."""
    return paragraph(
        "explanation",
        _Explanation(
            synthetic=results.synthetic,
            seeds=results.config.training.seeds,
            faithfulness_over=_over(results, "faithfulness_summary"),
            localisation_over=_over(results, "localisation_summary"),
            agreement_over=_over(results, "agreement"),
        ),
    )


def _over(results: Results, table: str) -> str:
    """Return the range of slides behind defined values: `12 slides` or `10 to 12 slides`."""
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
