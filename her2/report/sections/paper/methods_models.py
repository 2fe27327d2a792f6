"""Stage 2, report: the methods of heads, training and folds."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from her2.cohort.fixed_split import SPLITS
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
    "sampling": "slides were drawn so that classes were equally frequent",
    "loss": "classes had equal weight in the loss",
    "slides": "slides were drawn uniformly, with replacement",
    "none": "every slide was seen once per epoch, without class balancing",
}
FIT_BALANCE = {
    "sampling": "classes had equal weight",
    "loss": "classes had equal weight",
    "slides": "slides had equal weight",
    "none": "slides had equal weight",
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
    """A random search; `options` holds names with the values that were tried."""

    name: str
    trials: int
    options: list[tuple[str, list[str]]]


@dataclass(frozen=True, slots=True)
class _Models:
    """Facts of the models paragraph; `trained` names heads trained by gradient descent."""

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
    """Describe the heads and their training."""
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
    """Return a head's kind and sources: `attention-based pooling, Ilse et al. 2018`."""
    return f"{head.label}, {listed(list(head.citations))}" if head.citations else head.label


def _options(head: HeadSection) -> list[str]:
    """Return the options that were set, not searched: `dropout 0.25`, `gated`."""
    words = []
    searched = head.search.options if isinstance(head, Projected) and head.search else {}
    skipped = {"head", "search", *searched}
    for key, value in head.model_dump(mode="json").items():
        chosen = isinstance(head, Fitted) and isinstance(value, list)  # on the tuning set
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
    """Return the way class imbalance was handled in training."""
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
    """Facts of the validation paragraph.

    `tune_drawn` is true where the fixed split names no tuning set; `picked` lists what was chosen
    on the tuning set.
    """

    folds: FoldsSection
    seed: int
    fixed_split: bool
    tune_drawn: bool
    parts: str
    picked: list[str]
    as_published: bool
    augmented: bool


def folds(results: Results) -> str:
    """Describe the division of patients, with the size of each set."""
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
            augmented=any(e.augmentations for e in results.config.encoders.values()),
        ),
    )


def parts(results: Results) -> str:
    """Return the number of patients in each set, for each task; see `_sizes`."""
    return "; ".join(f"{_sizes(table)} (task {task})" for task, table in results.folds.items())


def _picked(results: Results) -> list[str]:
    """Return what was chosen on the tuning set."""
    heads = results.config.heads.values()
    searched = any(isinstance(head, Projected) and head.search is not None for head in heads)
    found = {
        "the epoch": any(head.trained_by_gradient for head in heads),
        **{head.picked: True for head in heads if isinstance(head, Fitted)},
        "the options of heads": searched,
        "the temperature": True,
        "the thresholds": True,
        "the model of the pipeline that picks one": any(map(len, results.picks.values())),
    }
    return [name for name, held in found.items() if held]


def _splits(results: Results) -> list[str | None]:
    return results.cohort["split"].unique().to_list()


def _sizes(table: pl.DataFrame) -> str:
    """Return `10 to 12 training, 2 tuning and 6 test patients per fold`.

    Patients without usable slides count too.
    """
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
    return f"{train} training, {tune} tuning and {test} test {noun}{' per fold' if several else ''}"
