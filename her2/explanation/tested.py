"""Stage 2, explanation: which model may explain a slide: the one that never saw its patient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from her2.config import Task
from her2.manifest import FeatureEntry


@dataclass(frozen=True, slots=True)
class TestedSlide:
    """A labelled slide with features, and the fold of a repeat that tested it."""

    slide_id: str
    patient_id: str
    label: str
    repeat: int
    fold: int


def tested_slides(
    folds: pl.DataFrame, entries: Mapping[str, FeatureEntry], task: Task
) -> list[TestedSlide]:
    """Every slide and repeat in which a fold tested it, by slide and repeat."""
    usable = [name for name, entry in entries.items() if entry.status == "ok"]
    table = folds.filter((pl.col("role") == "test") & pl.col("slide_id").is_in(usable))
    rows = table.select("slide_id", "patient_id", "label", "repeat", "fold")
    return [
        TestedSlide(slide_id, patient_id, task.class_names[label], repeat, fold)
        for slide_id, patient_id, label, repeat, fold in rows.sort("slide_id", "repeat").iter_rows()
    ]


def spread(slides: Sequence[TestedSlide], count: int, *, seed: int) -> list[TestedSlide]:
    """At most `count` of the slides, drawn by the seed, the classes in turn; in order of ids."""
    order = np.random.default_rng(seed).permutation(len(slides))
    by_class: dict[str, list[TestedSlide]] = {}
    for index in order:
        by_class.setdefault(slides[index].label, []).append(slides[index])
    chosen: list[TestedSlide] = []
    while len(chosen) < count and any(by_class.values()):
        for label in sorted(by_class):
            if by_class[label] and len(chosen) < count:
                chosen.append(by_class[label].pop())
    return sorted(chosen, key=lambda slide: slide.slide_id)
