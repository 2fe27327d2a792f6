"""Names of buckets, of runs (trained models), of chunks of runs, and of protocols."""

from collections.abc import Iterable
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, PlainSerializer

from her2.config import FoldsSection
from her2.config.reserved import PUBLISHED as PUBLISHED

Protocol = Literal["sound", "published"]
"""sound: grouped by patient, best epoch on the tuning set, metrics over slides and patients.
published: like arXiv 2411.05028, for comparison: folds over slides, last epoch, metrics over random
bags."""

Buckets = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: expanded_buckets(value) if isinstance(value, str) else value),
    PlainSerializer(lambda names: compact_buckets(names), return_type=str),
]
"""Names of buckets, as ranges in JSON."""


def compact_buckets(names: Iterable[str]) -> str:
    """Return the names of buckets as ranges, `0-3,5 of 8`: thousands fit into one argument."""
    numbers = [name.split("-of-") for name in names]
    if not numbers:
        return ""
    indices = sorted(int(index) for index, _ in numbers)
    starts = [i for n, i in enumerate(indices) if n == 0 or indices[n - 1] != i - 1]
    ends = [i for n, i in enumerate(indices) if n + 1 == len(indices) or indices[n + 1] != i + 1]
    spans = (str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    return f"{','.join(spans)} of {int(numbers[0][1])}"


def expanded_buckets(text: str) -> tuple[str, ...]:
    """Return the names that `compact_buckets` was given, sorted.

    Raises:
        ValueError: the text is not of that form.
    """
    if not text:
        return ()
    spans, count = text.split(" of ")
    found: list[str] = []
    for span in spans.split(","):
        first, _, last = span.partition("-")
        found += (bucket_name(i, int(count)) for i in range(int(first), int(last or first) + 1))
    return tuple(sorted(found))


def bucket_name(index: int, count: int) -> str:
    """Return the name of one of `count` buckets."""
    return f"{index:04d}-of-{count:04d}"


DEVELOPMENT = ""
"""Folder, in the results, of the cohort that models are trained on: the results themselves."""


def cohort_folder(name: str) -> str:
    """Return the folder of an external cohort in the results, with a slash at its end."""
    return f"validation/{name}/"


def split_protocol(name: str) -> tuple[str, Protocol]:
    """Split a task's or head's name into its name in the config and the protocol."""
    if name.endswith(PUBLISHED):
        return name.removesuffix(PUBLISHED), "published"
    return name, "sound"


def folds_name(task: str, model: str) -> str:
    """Return the name of the folds that a model is trained on."""
    return task + (PUBLISHED if model.endswith(PUBLISHED) else "")


def run_name(repeat: int, fold: int, seed: int = 0) -> str:
    """Return the name of a run: `r0f3` is the fourth fold of the first repeat.

    `r0f3s1` is the same fold, trained again with the second of `training.seeds`.
    """
    return f"r{repeat}f{fold}" + (f"s{seed}" if seed else "")


REFIT = "refit"
"""Name of the model that is trained on all patients: no run, since it tests nobody."""


class Run(NamedTuple):
    """A trained model: a fold of a repeat, with one of the training seeds."""

    repeat: int
    fold: int
    seed: int = 0

    @property
    def name(self) -> str:
        """Its name, as in `run_name`."""
        return run_name(*self)

    @property
    def identity(self) -> tuple[int, ...]:
        """The numbers that identify it in specs, keys and random seeds.

        A seed of 0 is left out, so that models trained before there were several seeds, and the
        jobs that trained them, stay what they were.
        """
        return tuple(self) if self.seed else tuple(self[:2])


def parse_run(name: str) -> Run:
    """Return the run with a name."""
    repeat, rest = name.removeprefix("r").split("f")
    fold, _, seed = rest.partition("s")
    return Run(int(repeat), int(fold), int(seed or 0))


def chunks(folds: FoldsSection, seeds: int = 1) -> dict[str, tuple[Run, ...]]:
    """Return chunk name -> its runs, which one training job trains.

    A chunk has a single seed, so that more seeds add chunks and leave those of before as they are.
    """
    found = {}
    for seed in range(seeds):
        runs = [
            Run(repeat, fold, seed)
            for repeat in range(folds.repeats)
            for fold in range(folds.number)
        ]
        for start in range(0, len(runs), folds.per_job):
            part = runs[start : start + folds.per_job]
            found[f"{part[0].name}-{part[-1].name}"] = tuple(part)
    return found
