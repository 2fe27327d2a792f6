"""Before stage 2: names of runs (a fold of a repeat), of chunks of runs, and of protocols."""

from her2.config import FoldsSection
from her2.config.jobs import Protocol

PUBLISHED = ".as-published"
"""Suffix of tasks and heads in the published protocol."""


def split_protocol(name: str) -> tuple[str, Protocol]:
    """Split a task's or head's name into its name in the config and the protocol."""
    if name.endswith(PUBLISHED):
        return name.removesuffix(PUBLISHED), "published"
    return name, "sound"


def folds_name(task: str, model: str) -> str:
    """Return the name of the folds that a model is trained on."""
    return task + (PUBLISHED if model.endswith(PUBLISHED) else "")


def chunks(folds: FoldsSection) -> dict[str, tuple[tuple[int, int], ...]]:
    """Return chunk name -> its (repeat, fold) pairs, which one training job trains."""
    runs = [(repeat, fold) for repeat in range(folds.repeats) for fold in range(folds.number)]
    parts = [runs[i : i + folds.per_job] for i in range(0, len(runs), folds.per_job)]
    return {f"{run_name(*part[0])}-{run_name(*part[-1])}": tuple(part) for part in parts}


def run_name(repeat: int, fold: int) -> str:
    """Return the name of a run: `r0f3` is the fourth fold of the first repeat."""
    return f"r{repeat}f{fold}"


def parse_run(name: str) -> tuple[int, int]:
    """Return the repeat and the fold from a run's name."""
    repeat, fold = name.removeprefix("r").split("f")
    return int(repeat), int(fold)
