"""Stage 2, report: the part of the methods on figures, comparisons, controls and explanation."""

import polars as pl

from her2.evaluation.calibration import BINS
from her2.evaluation.groupings import groupings_of
from her2.report.format import count, listed, percent, plural
from her2.report.results import Results
from her2.report.sections.controls import SUBGROUPS


def statistics(results: Results) -> str:
    """Levels, figures, intervals, calibration and thresholds."""
    section = results.config.evaluation
    several = not results.split and results.config.folds.repeats > 1
    repeats = " and of the repeats" if several else ""
    pooled = "" if results.split else " and the test parts of all folds were pooled"
    level = f"{100 * section.confidence:g} %"
    text = (
        "Statistics. Figures are given for patients, and for slides beside them. A patient's "
        f"probabilities are the mean over the patient's slides{repeats}{pooled}. AUC is that of "
        "one score against the rest; the macro AUC is the unweighted mean over scores. AUPRC, "
        f"balanced accuracy and macro F1 are given too{_ordinal(results)}. {level} intervals are "
        "expanded percentiles (Hesterberg 2015) of "
        f"{count(section.bootstrap)} bootstrap resamples of patients, stratified by class (seed "
        f"{results.config.seed}); a patient's slides were drawn together. Calibration was measured "
        f"by the expected calibration error ({BINS} bins, Guo et al. 2017), the Brier score (Brier "
        "1950) and the log loss, before and after scaling by a temperature that was fitted on the "
        "tune part of each fold (Guo et al. 2017)."
    )
    return f"{text}{_groupings(results)} A figure that is not defined is given as such."


def _ordinal(results: Results) -> str:
    if not any(task.ordinal for task in results.config.tasks.values()):
        return ""
    return (
        ", and for ordered scores the quadratic weighted kappa (Cohen 1968) and the mean error in "
        "steps"
    )


def _groupings(results: Results) -> str:
    """What is done with scores in two groups; empty where no task has them."""
    section = results.config.evaluation
    names = list(
        dict.fromkeys(
            grouping.name
            for task in results.config.tasks.values()
            for grouping in groupings_of(task, section)
        )
    )
    if not names:
        return ""
    return (
        f" Scores in two groups ({'; '.join(names)}) were told apart by the share of the positive "
        "group in the probability of both; their AUC also has DeLong's interval (DeLong et al. "
        "1988, on the logit scale). Thresholds for a sensitivity of "
        f"{percent(section.sensitivity)} and for a specificity of {percent(section.specificity)} "
        "came from the tune part of each fold and were applied to its test part; intervals of the "
        "shares are Wilson's (Wilson 1927). Net benefit follows Vickers and Elkin 2006."
    )


def comparison(results: Results) -> str:
    """Pairs of encoders and heads; empty where nothing was compared."""
    tables = [table for table in results.comparisons.values() if len(table)]
    if not tables:
        return ""
    whole = pl.concat([table.select("kind", "method", "family") for table in tables])
    kinds = whole["kind"].unique().to_list()
    what = listed([kind for kind in ("encoders", "heads") if kind in kinds])
    families = whole["family"].drop_nulls().to_list()
    size = ""
    if families:
        low, high = min(families), max(families)
        size = f"; {plural(high, 'test')} each" if low == high else f"; {low:,} to {high:,} tests"
    delong = (
        ", scores in two groups also by DeLong's paired test (DeLong et al. 1988)"
        if "delong" in whole["method"].to_list()
        else ""
    )
    return (
        f"Comparison. Pairs of {what} were compared on identical patients and folds by the paired "
        f"patient bootstrap{delong}; p values are two-sided and corrected by Holm within each "
        f"family of tests (Holm 1979{size}).{_statement(results)}"
    )


def _statement(results: Results) -> str:
    rows = [
        row
        for table in results.statements.values()
        for row in table.to_dicts()
        if row["difference"] is not None
    ]
    if not rows:
        return ""
    return (
        " The encoders pre-trained on H&E were set against those pre-trained on IHC and on "
        "non-medical images by the difference of their mean macro AUC (the statement of Abdulsadig "
        "et al. 2024)."
    )


def controls(results: Results) -> str:
    """Covariates, shuffled labels, parts of the cohort."""
    used = _values(results, "inputs", "covariate", pl.col("used"))
    parts = [words for by, words in SUBGROUPS.items() if by in _values(results, "subgroups", "by")]
    draws = [
        int(row["permutations"])
        for model in results.models
        for row in model.controls["shuffled"].to_dicts()
        if row["permutations"]
    ]
    text = "Controls."
    if used:
        text += (
            " A logistic regression on covariates alone, that is on what is known of a slide "
            f"without how its tissue looks ({listed(used)}), was trained and tested in the same "
            "folds."
        )
    else:
        text += " No covariate varied in this cohort, so there is no model of covariates alone."
    if draws:
        text += (
            f" Labels of held-out patients were shuffled within the test folds {count(max(draws))} "
            "times."
        )
    return text + (f" AUC is also given by {listed(parts)}." if parts else "")


def _values(results: Results, table: str, column: str, where: pl.Expr | None = None) -> list[str]:
    """The values of a column of a control, over all models, in their order."""
    found: dict[str, None] = {}
    for model in results.models:
        rows = model.controls[table] if where is None else model.controls[table].filter(where)
        found |= dict.fromkeys(str(value) for value in rows[column])
    return list(found)


def explanation(results: Results) -> str:
    """What was asked of attention, over how many slides."""
    text = (
        "Explanation. Attention of a slide is that of the model that never saw its patient. "
        "Attention is not HER2 staining."
    )
    faithful = _over(results, "faithfulness_summary")
    if faithful:
        text += (
            " Faithfulness compares the probability of the predicted class while tiles are left "
            "out, or put in, by attention with random order (after Petsiuk et al. 2018), over "
            f"{faithful} of each model."
        )
    located = _over(results, "localisation_summary")
    if located:
        truth = "planted morphology" if results.synthetic else "annotated areas"
        text += (
            f" Localisation was measured against {truth}, over {located} of each model: AUC of "
            "attention inside against outside, the share of attention inside against that of "
            "tiles, and the pointing game (Zhang et al. 2016)."
        )
    agreed = _over(results, "agreement")
    if agreed:
        text += (
            " Agreement is Spearman's rank correlation of a slide's attention between repeats, "
            f"over {agreed} of each model."
        )
    return text


def _over(results: Results, table: str) -> str:
    """`12 slides`, `10 to 12 slides`: of the defined figures of all classes; empty for none."""
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
