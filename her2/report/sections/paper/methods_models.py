"""Stage 2, report: the part of the methods on heads, training and folds."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from her2.cohort.split import SPLITS
from her2.config import FoldsSection, HeadSection, TrainingSection
from her2.heads import Fitted, Projected
from her2.mil.selection import SELECT_WORDS
from her2.report.format import listed
from her2.report.results import Results
from her2.report.sections.paper.prose import paragraph
from her2.report.sections.published_protocol import protocols

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


@dataclass(frozen=True, slots=True)
class _Head:
    name: str
    label: str
    options: list[str]


@dataclass(frozen=True, slots=True)
class _Baseline:
    name: str
    choices: str


@dataclass(frozen=True, slots=True)
class _Search:
    """`options` are names with the values that were tried."""

    name: str
    trials: int
    options: list[tuple[str, list[str]]]


@dataclass(frozen=True, slots=True)
class _Models:
    """`trained` names the heads that are trained by steps; `baselines` are fitted."""

    heads: list[_Head]
    trained: list[str]
    baselines: list[_Baseline]
    searches: list[_Search]
    training: TrainingSection
    loss: str
    optimiser: str
    balance: str
    fit_balance: str
    selected: str


def models(results: Results) -> str:
    """Describe the heads and how they were trained."""
    heads, training = results.config.heads, results.config.training
    return paragraph(
        "models",
        _Models(
            heads=[_Head(name, _label(head), _options(head)) for name, head in heads.items()],
            trained=[name for name, head in heads.items() if head.trained_by_gradient],
            baselines=[
                _Baseline(name, _choices(head))
                for name, head in heads.items()
                if isinstance(head, Fitted)
            ],
            searches=[
                _Search(
                    name,
                    head.search.trials,
                    [
                        (key.replace("_", " "), [_value(value) for value in values])
                        for key, values in head.search.options.items()
                    ],
                )
                for name, head in heads.items()
                if isinstance(head, Projected) and head.search is not None
            ],
            training=training,
            loss=LOSSES[training.loss],
            optimiser=OPTIMISERS[training.optimiser],
            balance=BALANCE[training.balance],
            fit_balance=FIT_BALANCE[training.balance],
            selected=SELECT_WORDS[training.select],
        ),
    )


def _label(head: HeadSection) -> str:
    """Return `attention-based pooling, Ilse et al. 2018`: what a head is, and its sources."""
    return f"{head.label}, {listed(list(head.citations))}" if head.citations else head.label


def _options(head: HeadSection) -> list[str]:
    """Return `dropout 0.25`, `attention width 128`, `gated`: the options set, not searched."""
    words = []
    searched = head.search.options if isinstance(head, Projected) and head.search else {}
    skipped = {"head", "search", *searched}
    for key, value in head.model_dump(mode="json").items():
        chosen = isinstance(head, Fitted) and isinstance(value, list)  # by the tuning set
        if key in skipped or chosen or value is None or (key == "hidden" and value == 0):
            continue
        name = head.words(key)
        if isinstance(value, bool):
            words.append(name if value else f"not {name}")
        else:
            words.append(f"{name} {_value(value)}")
    return words


def _choices(head: Fitted) -> str:
    """Return `the inverse strength of the penalty was chosen from 0.1 and 1`."""
    texts = [
        f"the {head.words(key)} was chosen from {listed([f'{value:g}' for value in values])}"
        for key, values in head.model_dump(mode="json").items()
        if isinstance(values, list)
    ]
    return " and ".join(texts)


def balance(results: Results) -> str:
    """Return what was done about uneven classes in training."""
    how = results.config.training.balance
    heads = results.config.heads.values()
    found = [BALANCE[how]] if any(head.trained_by_gradient for head in heads) else []
    methods = dict.fromkeys(head.method for head in heads if isinstance(head, Fitted))
    found += [f"{FIT_BALANCE[how]} in the {method}" for method in methods]
    return "; ".join(found)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return listed([_value(item) for item in value])
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value)


@dataclass(frozen=True, slots=True)
class _Folds:
    """`tune_drawn`: the fixed split names no tune part; `picked` is what the tune part decided."""

    folds: FoldsSection
    seed: int
    fixed_split: bool
    tune_drawn: bool
    parts: str
    picked: list[str]
    as_published: bool


def folds(results: Results) -> str:
    """Describe how patients were divided, with the numbers of the parts."""
    section = results.config.folds
    named = {SPLITS.get((value or "").lower()) for value in _splits(results)}
    return paragraph(
        "folds",
        _Folds(
            folds=section,
            seed=results.config.seed if section.seed is None else section.seed,
            fixed_split=results.split,
            tune_drawn="tune" not in named,
            parts=parts(results),
            picked=_picked(results),
            as_published=bool(protocols(results)),
        ),
    )


def parts(results: Results) -> str:
    """Return how many patients the parts have, for each task; see `_sizes`."""
    return "; ".join(f"{task}: {_sizes(table)}" for task, table in results.folds.items())


def _picked(results: Results) -> list[str]:
    """Return what the tune part decided."""
    heads = results.config.heads.values()
    searched = any(isinstance(head, Projected) and head.search is not None for head in heads)
    found = {
        "the epoch": any(head.trained_by_gradient for head in heads),
        **{head.picked: True for head in heads if isinstance(head, Fitted)},
        "the options of heads": searched,
        "the temperature": True,
        "the thresholds": True,
    }
    return [name for name, held in found.items() if held]


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
