"""Stage 2, explanation: held-out slides and their attention by models that never saw them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.config import Task
from her2.config.names import run_name
from her2.core.errors import UserError
from her2.storage.entries import FeatureEntry


@dataclass(frozen=True, slots=True)
class HeldOutSlide:
    """A labelled slide with features, and the repeat and fold that tested it."""

    slide_id: str
    patient_id: str
    label: str
    repeat: int
    fold: int


def tested_slides(
    folds: pl.DataFrame, entries: Mapping[str, FeatureEntry], task: Task
) -> list[HeldOutSlide]:
    """Return every slide once per repeat in which a fold tested it, by slide and repeat."""
    usable = [name for name, entry in entries.items() if entry.status == "ok"]
    table = folds.filter((pl.col("role") == "test") & pl.col("slide_id").is_in(usable))
    rows = table.select("slide_id", "patient_id", "label", "repeat", "fold")
    return [
        HeldOutSlide(slide_id, patient_id, task.class_names[label], repeat, fold)
        for slide_id, patient_id, label, repeat, fold in rows.sort("slide_id", "repeat").iter_rows()
    ]


def spread(slides: Sequence[HeldOutSlide], count: int, *, seed: int) -> list[HeldOutSlide]:
    """Draw at most `count` slides, taking the classes in turn, and return them by id."""
    order = np.random.default_rng(seed).permutation(len(slides))
    by_class: dict[str, list[HeldOutSlide]] = {}
    for index in order:
        by_class.setdefault(slides[index].label, []).append(slides[index])
    chosen: list[HeldOutSlide] = []
    while len(chosen) < count and any(by_class.values()):
        for label in sorted(by_class):
            if by_class[label] and len(chosen) < count:
                chosen.append(by_class[label].pop())
    return sorted(chosen, key=lambda slide: slide.slide_id)


def read_attention(
    slides: Sequence[HeldOutSlide],
    models: Mapping[str, Path],
    entries: Mapping[str, FeatureEntry],
) -> dict[tuple[str, int], NDArray[np.float32]]:
    """Return (slide, repeat) -> attention (n,) by the fold that held the slide out.

    Args:
        slides: the slides to read.
        models: run -> folder of the model.
        entries: feature entries of the slides.

    Raises:
        UserError: a slide's attention is absent, not finite or does not match its tiles.
    """
    by_run: dict[str, list[HeldOutSlide]] = {}
    for slide in slides:
        by_run.setdefault(run_name(slide.repeat, slide.fold), []).append(slide)
    found = {}
    for run, tested in sorted(by_run.items()):
        path = models[run] / "attention.parquet"
        table = pl.read_parquet(path)
        rows = {name: index for index, name in enumerate(table["slide_id"])}
        for slide in tested:
            index = rows.get(slide.slide_id)
            values = None if index is None else table["attention"][index].to_numpy()
            problem = _problem(values, entries[slide.slide_id].tiles)
            if values is None or problem:
                raise UserError(
                    f"{slide.slide_id}: {problem} in {path.parent}. Delete the models' entries "
                    "files and run snakemake again."
                )
            found[slide.slide_id, slide.repeat] = np.asarray(values, np.float32)
    return found


def _problem(attention: NDArray[np.float32] | None, tiles: int) -> str:
    """Return why stored attention cannot be used; empty when it can."""
    if attention is None:
        return "has no attention"
    if len(attention) != tiles:
        return f"has attention for {len(attention)} tiles but features of {tiles} tiles"
    return "" if np.isfinite(attention).all() else "has attention that is not finite"
