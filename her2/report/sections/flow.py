"""Stage 2, report: the flow of slides from the manifest to the results, in matching numbers."""

from collections import Counter
from dataclasses import dataclass, replace

import polars as pl

from her2.cohort.fixed_split import SPLITS
from her2.report.format import plural
from her2.report.results import EvaluatedModel, Results, one_row_per_slide
from her2.report.sections.patient_labels import left_out

SET_NAMES = {"train": "training", "tune": "tuning", "test": "test"}
"""Role -> its name in text."""


@dataclass(frozen=True, slots=True)
class Step:
    """Slides that are lost at a step, with the reason; `rest` slides remain."""

    left: int
    reason: str
    rest: int


@dataclass(frozen=True, slots=True)
class Flow:
    """The flow of a task's slides to the results, shared by `encoders`."""

    task_name: str
    encoders: tuple[str, ...]
    slides: int
    patients: int
    steps: tuple[Step, ...]
    tested_slides: int
    tested_patients: int


def flows(results: Results) -> list[Flow]:
    """Return one flow per task, or one per group of encoders that lost the same slides."""
    found: dict[Flow, list[str]] = {}
    for task_name in results.config.tasks:
        for encoder in results.config.encoders:
            models = [m for m in results.task_models(task_name) if m.encoder == encoder]
            if models:
                found.setdefault(_flow(results, models[0]), []).append(encoder)
    return [replace(flow, encoders=tuple(encoders)) for flow, encoders in found.items()]


def _flow(results: Results, model: EvaluatedModel) -> Flow:
    section = results.config.encoders[model.encoder]
    table = one_row_per_slide(results)
    grid = results.cohort.filter(pl.col("grid") == section.grid)
    entries = results.features[model.encoder]
    label, split = f"label_{model.task.label}", "split"
    tiled = {row["slide_id"]: row for row in grid.to_dicts()}
    tested = set(model.slides["slide_id"])
    out = left_out(results, model.task_name)
    left: Counter[tuple[int, str]] = Counter()
    for row in table.to_dicts():
        name, tile = row["slide_id"], tiled.get(row["slide_id"])
        value = row[label]
        if tile is None or tile["status"] != "ok":
            status = "failed (could not be read)" if tile and tile["status"] == "failed" else ""
            left[0, status or "excluded (no usable tissue or scale)"] += 1
        elif name not in entries or entries[name].status != "ok":
            left[1, "without features (could not be embedded)"] += 1
        elif row["patient_id"] in out:
            left[2, "of patients with slides of different classes (left out of the task)"] += 1
        elif value is None:
            left[2, "without a label (predicted only)"] += 1
        elif model.task.class_index(value) is None:
            left[2, "with a label of no class of the task (predicted only)"] += 1
        elif name not in tested and results.split:
            role = SPLITS.get((row[split] or "").lower())
            words = f"the {SET_NAMES[role]} set" if role else "no set"
            left[3, f"in {words} of the fixed split"] += 1
        elif name not in tested:
            left[3, "without a prediction"] += 1
    rest, steps = len(table), []
    for (_, reason), number in sorted(left.items()):
        rest -= number
        steps.append(Step(number, f"{plural(number, 'slide')} {reason}", rest))
    return Flow(
        task_name=model.task_name,
        encoders=(),
        slides=len(table),
        patients=table["patient_id"].n_unique(),
        steps=tuple(steps),
        tested_slides=len(tested),
        tested_patients=len(model.patients),
    )
