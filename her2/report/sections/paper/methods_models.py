"""Stage 2, report: the part of the methods on heads, training and folds."""

from typing import Any

import polars as pl

from her2.cohort.split import SPLITS
from her2.config import HeadSection, LogisticSection, Projected
from her2.mil.selection import SELECT_WORDS
from her2.report.format import listed, percent, plural
from her2.report.results import Results
from her2.report.sections.published_protocol import protocols

HEADS = {
    "mean": "mean pooling",
    "max": "max pooling",
    "abmil": "attention-based pooling, Ilse et al. 2018",
    "multibranch": "attention-based pooling with one attention map an output, Ilse et al. 2018 "
    "and Lu et al. 2021",
    "additive": "additive attention, Javed et al. 2022",
    "clam_sb": "CLAM with one attention branch, Lu et al. 2021",
    "clam_mb": "CLAM with one attention branch an output, Lu et al. 2021",
    "dsmil": "dual-stream multiple-instance learning, Li et al. 2021",
    "transmil": "TransMIL, Shao et al. 2021",
    "logistic": "logistic regression of the mean embedding, Pedregosa et al. 2011",
}
OPTIONS = {"hidden": "projection width", "attention": "attention width", "query": "query width"}
OPTIMISERS = {"adamw": "AdamW (Loshchilov and Hutter 2019)", "adam": "Adam (Kingma and Ba 2015)"}
LOSSES = {
    "cross_entropy": "cross-entropy",
    "ordinal": "the loss of conditional probabilities of ordered classes (CORN, Shi et al. 2023)",
}
BALANCE = {
    "sampling": "slides were drawn so that classes were even",
    "loss": "classes weighed the same in the loss",
    "slides": "slides were drawn uniformly, with replacement",
    "none": "every slide was seen once an epoch, without balancing of classes",
}

FIT_BALANCE = {
    "sampling": "classes weighed the same",
    "loss": "classes weighed the same",
    "slides": "slides weighed the same",
    "none": "slides weighed the same",
}


def models(results: Results) -> str:
    """The heads and how they were trained."""
    heads = results.config.heads
    texts = [f"{name} ({HEADS[head.head]}{_options(head)})" for name, head in heads.items()]
    trained = [name for name, head in heads.items() if not isinstance(head, LogisticSection)]
    who = "one head" if len(heads) == 1 else f"{len(heads)} heads"
    text = (
        f"Models. The score of a slide was predicted from the features of its tiles by {who}: "
        f"{'; '.join(texts)}."
    )
    if trained:
        text += _training(results, trained if len(trained) < len(heads) else [])
    return text + _baselines(results) + _search(results)


def _options(head: HeadSection) -> str:
    """`; dropout 0.25, attention width 128, gated`: the options that are set, not searched."""
    words = []
    searched = head.search.options if isinstance(head, Projected) and head.search else {}
    skipped = {"head", "search", "strengths", *searched}
    for key, value in head.model_dump(mode="json").items():
        if key in skipped or (key == "hidden" and value == 0):
            continue
        if isinstance(value, bool):
            words.append(key if value else f"not {key}")
        else:
            words.append(f"{OPTIONS.get(key, key.replace('_', ' '))} {value:g}")
    return f"; {', '.join(words)}" if words else ""


def _training(results: Results, named: list[str]) -> str:
    """One paragraph of settings; `named` are the heads it holds for, empty for all."""
    training = results.config.training
    who = f" {listed(named)}" if named else ""
    rate = f"learning rate {training.learning_rate:g}, "
    if training.warmup_epochs:
        rate += f"rising over the first {training.warmup_epochs:g} epochs"
        rate = rate.replace("first 1 epochs", "first epoch")
        rate += " and then constant" if training.schedule == "constant" else ""
    else:
        rate += "constant" if training.schedule == "constant" else ""
    if training.schedule == "cosine":
        joint = " and " if training.warmup_epochs else ""
        rate += f"{joint}falling by a cosine to 0"
    extra = ""
    if training.label_smoothing:
        extra += f", label smoothing {training.label_smoothing:g}"
    if training.clip_norm is not None:
        extra += f", gradients clipped to a norm of {training.clip_norm:g}"
    scaled = (
        " Features were standardised by mean and standard deviation of the train part."
        if training.standardise
        else " Features were not standardised."
    )
    return (
        f" Training{who}: {LOSSES[training.loss]}, {OPTIMISERS[training.optimiser]}, {rate}, "
        f"weight decay {training.weight_decay:g}{extra}; {plural(training.bag_size, 'tile')} drawn "
        f"from a slide at a step, {plural(training.bags_per_batch, 'slide')} a step; "
        f"{BALANCE[training.balance]}.{scaled} Training ran for at most "
        f"{plural(training.epochs, 'epoch')} and stopped after "
        f"{plural(training.patience, 'epoch')} without a better one; the epoch with "
        f"{SELECT_WORDS[training.select]} on the tune part was kept. Predictions used all tiles of "
        f"a slide, in {training.precision}."
    )


def _baselines(results: Results) -> str:
    training = results.config.training
    texts = [
        f" For {name} the mean embeddings were standardised by the train part, "
        f"{FIT_BALANCE[training.balance]} in the fit, and the inverse strength of the penalty was "
        f"chosen from {listed([f'{value:g}' for value in head.strengths])} by the tune part "
        f"({SELECT_WORDS[training.select]})."
        for name, head in results.config.heads.items()
        if isinstance(head, LogisticSection)
    ]
    return "".join(texts)


def balance(results: Results) -> str:
    """What was done about uneven classes in training."""
    how = results.config.training.balance
    baseline = [isinstance(head, LogisticSection) for head in results.config.heads.values()]
    found = [] if all(baseline) else [BALANCE[how]]
    if any(baseline):
        found.append(f"{FIT_BALANCE[how]} in the logistic regression")
    return "; ".join(found)


def _search(results: Results) -> str:
    texts = []
    for name, head in results.config.heads.items():
        if not isinstance(head, Projected) or head.search is None:
            continue
        options = "; ".join(
            f"{key.replace('_', ' ')} from {listed([_value(v) for v in values])}"
            for key, values in head.search.options.items()
        )
        texts.append(
            f" Options of {name} were searched at random (Bergstra and Bengio 2012) anew in each "
            f"fold, {plural(head.search.trials, 'trial')}, chosen by the tune part: {options}."
        )
    return "".join(texts)


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def folds(results: Results) -> str:
    """How patients were divided, with the numbers of the parts."""
    section = results.config.folds
    seed = results.config.seed if section.seed is None else section.seed
    if results.split:
        named = {SPLITS.get((value or "").lower()) for value in _splits(results)}
        tune = "" if "tune" in named else (
            f" The column names no tune part: {percent(section.tune)} of the train patients, drawn "
            f"within their class (seed {seed}), were taken for it."
        )  # fmt: skip
        text = f"Validation. The manifest's fixed split (column 'split') was used.{tune}"
    else:
        sites = {
            "ignored": " and stratified by class",
            "stratified": " and stratified by class and site",
            "preserved": " and stratified by class, with each site as a whole in one test part, "
            "after Howard et al. 2021",
            "leave_one_out": ", with each test part being one site",
        }[section.sites]
        repeats = f", repeated {section.repeats} times" if section.repeats > 1 else ""
        text = (
            f"Validation. Patients were divided by cross-validation with {section.number} folds"
            f"{repeats}, grouped by patient{sites} (seed {seed}). Of the patients outside a "
            f"test part {percent(section.tune)} were the tune part."
        )
    text += " All slides of a patient were in one part."
    if results.folds:
        text += f" Labelled patients, those without a usable slide too: {parts(results)}."
    text += f" The tune part picked {_picked(results)}; no choice was made on a test part."
    if section.max_shared_tiles < 1:
        text += (
            " The run stops where the features of slides of two patients show that they share more "
            f"than {percent(section.max_shared_tiles)} of their tiles."
        )
    return text + _published(results)


def parts(results: Results) -> str:
    """Patients of the parts: `score: 10 to 12 train, 2 tune and 6 test patients a fold`."""
    return "; ".join(f"{task}: {_sizes(table)}" for task, table in results.folds.items())


def _picked(results: Results) -> str:
    """What the tune part decided."""
    heads = results.config.heads.values()
    baseline = [isinstance(head, LogisticSection) for head in heads]
    searched = any(isinstance(head, Projected) and head.search is not None for head in heads)
    found = {
        "the epoch": not all(baseline),
        "the strength of the penalty": any(baseline),
        "the options of heads": searched,
        "the temperature": True,
        "the thresholds": True,
    }
    return listed([name for name, held in found.items() if held])


def _splits(results: Results) -> list[str | None]:
    return results.cohort["split"].unique().to_list()


def _sizes(table: pl.DataFrame) -> str:
    """`10 to 12 train, 2 tune and 6 test patients a fold`, those without usable slides too."""
    counts = (
        table.filter(pl.col("role") != "predict")
        .group_by("repeat", "fold", "role")
        .agg(pl.col("patient_id").n_unique())
    )
    several = table.select("repeat", "fold").n_unique() > 1
    parts = []
    for role in ("train", "tune", "test"):
        numbers = counts.filter(pl.col("role") == role)["patient_id"].to_list()
        low, high = (min(numbers), max(numbers)) if numbers else (0, 0)
        parts.append(f"{low:,}" if low == high else f"{low:,} to {high:,}")
    train, tune, test = parts
    noun = "patient" if test == "1" else "patients"
    return f"{train} train, {tune} tune and {test} test {noun}{' a fold' if several else ''}"


def _published(results: Results) -> str:
    if not protocols(results):
        return ""
    return (
        " For comparison alone the models were also trained and evaluated as published (Abdulsadig "
        "et al. 2024): folds over slides, so that slides of a patient were on both sides, the last "
        "epoch kept, AUC over random bags of the test slides. None of it enters another figure."
    )
