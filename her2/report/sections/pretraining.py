"""Stage 2, report: the training of the encoders that were pre-trained here."""

import math
from dataclasses import dataclass
from typing import Any

import polars as pl

from her2.report.figures.base import Figure
from her2.report.figures.training import pretraining_figure
from her2.report.format import count, number
from her2.report.results import Results
from her2.report.sections.headline import domain
from her2.report.sections.overlap import mark


@dataclass(frozen=True, slots=True)
class PretrainingRow:
    """One pre-trained encoder, with the results of its best epoch on the validation patches.

    `test` holds the results on the patch set's own test set, empty where it has none.
    """

    name: str
    domain: str
    data: str
    classes: str
    patches: str
    split: str
    init: str
    epochs: int
    best_epoch: int
    balanced_accuracy: str
    mean_auc: str
    test: str
    unusable: int
    curves: Figure | None


def pretraining(results: Results) -> list[PretrainingRow]:
    """Return one row per encoder of `source: pretrain`, in the config's order."""
    return [
        _row(results, name, card.provenance)
        for name, card in results.cards.items()
        if card.source == "pretrain"
    ]


def pretraining_table(results: Results) -> pl.DataFrame | None:
    """Return `encoder, epoch, train_loss, ...` per epoch, from 0; None without such encoders."""
    parts = [
        table.select(pl.lit(name).alias("encoder"), pl.all())
        for name, table in results.pretraining.items()
    ]
    return pl.concat(parts, how="diagonal") if parts else None


def split_words(split_by: str) -> str:
    """Return what a card's `split_by` means for the validation results, in words."""
    words = {
        "case": "by case: no patient is on both sides",
        "patch (cases unknown)": "by patch",
        "the set's own parts": "by the set's own split: no case is on both sides",
        "the set's own parts (cases unknown)": "by the set's own split",
    }.get(split_by, split_by)
    if "cases unknown" not in split_by:
        return words
    return f"{words} (cases unknown: patches of one patient may be on both sides)"


def _row(results: Results, name: str, facts: dict[str, Any]) -> PretrainingRow:
    best: dict[str, Any] = facts.get("best", {})
    history = results.pretraining.get(name)
    epoch = int(best.get("epoch", 0))
    parts = facts.get("patches", {})
    test: dict[str, Any] = facts.get("test", {})
    return PretrainingRow(
        name=name + mark(results, name),
        domain=domain(results, name),
        data=results.config.encoders[name].data or "not recorded",
        classes=", ".join(f"{key} {count(n)}" for key, n in facts.get("classes", {}).items()),
        patches=", ".join(f"{key} {count(n)}" for key, n in parts.items() if n),
        split=split_words(str(facts.get("split_by", "not recorded"))),
        init=str(facts.get("init", {}).get("from", "not recorded")),
        epochs=int(facts.get("epochs", 0)),
        best_epoch=epoch + 1,
        balanced_accuracy=_figure(best.get("balanced_accuracy")),
        mean_auc=_figure(best.get("mean_auc")),
        test=f"test set: {_figure(test.get('balanced_accuracy'))}, {_figure(test.get('mean_auc'))}"
        if test
        else "",
        unusable=int(facts.get("unusable", {}).get("count", 0)),
        curves=None
        if history is None
        else pretraining_figure(
            history.to_dict(as_series=False), epoch, name, results.figure_context
        ),
    )


def _figure(value: float | None) -> str:
    return number(None if value is None or not math.isfinite(value) else value)
