"""Before stage 2: names of runs (a fold of a repeat), of chunks of runs, and of protocols."""

from typing import NamedTuple

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


def run_name(repeat: int, fold: int, seed: int = 0) -> str:
    """Return the name of a run: `r0f3` is the fourth fold of the first repeat.

    `r0f3s1` is the same fold, trained again with the second of `training.seeds`.
    """
    return f"r{repeat}f{fold}" + (f"s{seed}" if seed else "")


class Run(NamedTuple):
    """A trained model: a fold of a repeat, with one of the training seeds."""

    repeat: int
    fold: int
    seed: int = 0

    @property
    def name(self) -> str:
        """Its name, as in `run_name`."""
        return run_name(*self)


def parse_run(name: str) -> Run:
    """Return the run with a name."""
    repeat, rest = name.removeprefix("r").split("f")
    fold, _, seed = rest.partition("s")
    return Run(int(repeat), int(fold), int(seed or 0))
