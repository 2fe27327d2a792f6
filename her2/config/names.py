"""Before stage 2: names of runs (a fold of a repeat), of jobs that train some, and of protocols."""

from her2.config import FoldsSection
from her2.config.jobs import Protocol

PUBLISHED = ".as-published"
"""Ends the names of what belongs to the published protocol."""


def split_protocol(name: str) -> tuple[str, Protocol]:
    """A task's or head's name -> the name in the config, and the protocol its suffix means."""
    if name.endswith(PUBLISHED):
        return name.removesuffix(PUBLISHED), "published"
    return name, "sound"


def folds_name(task: str, model: str) -> str:
    """The folds table that a model is trained on."""
    return task + (PUBLISHED if model.endswith(PUBLISHED) else "")


def chunks(folds: FoldsSection) -> dict[str, tuple[tuple[int, int], ...]]:
    """Chunk name -> the (repeat, fold) pairs that one training job takes."""
    runs = [(repeat, fold) for repeat in range(folds.repeats) for fold in range(folds.number)]
    parts = [runs[i : i + folds.per_job] for i in range(0, len(runs), folds.per_job)]
    return {f"{run_name(*part[0])}-{run_name(*part[-1])}": tuple(part) for part in parts}


def run_name(repeat: int, fold: int) -> str:
    """`r0f3`: the fourth fold of the first repeat."""
    return f"r{repeat}f{fold}"


def parse_run(name: str) -> tuple[int, int]:
    """The repeat and the fold of a run's name."""
    repeat, fold = name.removeprefix("r").split("f")
    return int(repeat), int(fold)
