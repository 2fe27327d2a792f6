"""Between the stages: the entries file of a job, a small JSON file that Snakemake can compare.

An entries file is sorted, contains no times or host names, and is written last. Equal work gives
equal bytes, so nothing downstream runs again. The products themselves are in the cache.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from her2.core.errors import UserError, problem_list
from her2.core.files import write_json
from her2.core.reading import read_json
from her2.core.sharing import check_readable
from her2.core.stamps import noted
from her2.storage.facts import SlideFacts, fact_columns, facts_of_columns

Status = Literal["ok", "excluded", "failed"]
"""ok: usable. excluded: readable but not usable (see the reason). failed: not readable."""


@dataclass(frozen=True, slots=True)
class TileEntry:
    """The result of tiling a slide; `facts` is None if it was not tiled."""

    status: Status
    reason: str | None = None
    key: str | None = None
    tiles: int = 0
    facts: SlideFacts | None = None

    def columns(self) -> dict[str, Any]:
        """Return the flat entry, for the entries file and the cohort's table."""
        own = {"status": self.status, "reason": self.reason, "key": self.key, "tiles": self.tiles}
        return {**own, **fact_columns(self.facts)}

    @classmethod
    def of_columns(cls, columns: Mapping[str, Any]) -> "TileEntry":
        """Return the entry with these columns.

        Raises:
            KeyError, TypeError: the columns are not those of an entry.
        """
        facts = dict(columns)
        own = {name: facts.pop(name) for name in ("status", "reason", "key", "tiles")}
        return cls(**own, facts=facts_of_columns(facts))


@dataclass(frozen=True, slots=True)
class FeatureEntry:
    """The result of embedding a slide.

    `views` has the keys of its augmented views, from the first on.
    """

    status: Status
    reason: str | None = None
    key: str | None = None
    tiles: int = 0
    failed_tiles: int = 0
    dimension: int | None = None
    views: tuple[str, ...] = ()

    def columns(self) -> dict[str, Any]:
        """Return the entry for the entries file, of a slide without views as before there were."""
        return {name: value for name, value in asdict(self).items() if name != "views" or value}

    @classmethod
    def of_columns(cls, columns: Mapping[str, Any]) -> "FeatureEntry":
        """Return the entry with these columns.

        Raises:
            TypeError: the columns are not those of an entry.
        """
        return cls(**{**columns, "views": tuple(columns.get("views", ()))})


@dataclass(frozen=True, slots=True)
class FoldEntry:
    """A trained fold: the key of its model, predictions and attention, and how it was trained.

    `trials` combinations of options were tried, and the tuning set selected `options` (JSON). A
    fold that lost what a training needs with the slides that cannot be used has no key (""), and
    the `reason`.
    """

    key: str
    train_slides: int
    tune_slides: int
    test_slides: int
    best_epoch: int
    epochs: int
    tune_loss: float | None
    trials: int = 1
    options: str = ""
    reason: str = ""

    def columns(self) -> dict[str, Any]:
        """Return the entry for the entries file, of a trained fold without a reason."""
        return {name: value for name, value in asdict(self).items() if name != "reason" or value}


Entry = TypeVar("Entry", TileEntry, FeatureEntry, FoldEntry)


def write_entries(path: Path, entries: Mapping[str, TileEntry | FeatureEntry | FoldEntry]) -> None:
    """Write the entries file of a job, one entry per slide (or fold)."""
    write_json(path, {name: entry.columns() for name, entry in entries.items()})


def read_entries(path: Path, entry: type[Entry]) -> dict[str, Entry]:
    """Read the entries file of a job.

    Raises:
        UserError: the file is absent or not an entries file.
    """
    check_readable(path)
    if not path.exists():
        # Snakemake makes an absent file only for a job that names it or for a target.
        raise UserError(
            f"{path}: does not exist. Make it again with `snakemake --cores 1 "
            f"{shlex.quote(str(path))} --configfile CONFIG`, then continue the run."
        )
    build: Callable[[Any], Any] = getattr(entry, "of_columns", lambda columns: entry(**columns))
    try:
        values = read_json(noted(path))
        return {name: build(columns) for name, columns in values.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: is not a readable entries file ({error}). Delete it and run snakemake again."
        ) from None


def read_all_entries(folder: Path, names: Iterable[str], entry: type[Entry]) -> dict[str, Entry]:
    """Read several entries files of a folder (`{name}.json`) into one mapping."""
    found: dict[str, Entry] = {}
    for name in names:
        found |= read_entries(folder / f"{name}.json", entry)
    return found


def read_folds(folder: Path, chunks: Iterable[str]) -> dict[str, FoldEntry]:
    """Read the entries files of a model's chunks; return those of its trained folds.

    Raises:
        UserError: no fold could be trained.
    """
    found = read_all_entries(folder, chunks, FoldEntry)
    trained = {run: entry for run, entry in found.items() if entry.key}
    if not trained:
        raise problem_list(
            f"{folder}: no fold could be trained",
            [f"{run}: {entry.reason}" for run, entry in found.items()],
        )
    return trained


def untrained_folds(folder: Path, chunks: Iterable[str]) -> dict[str, str]:
    """Read the entries files of a model's chunks; return run -> why it has no model."""
    found = read_all_entries(folder, chunks, FoldEntry)
    return {run: entry.reason for run, entry in found.items() if not entry.key}


def check_excluded(reasons: dict[str, str], *, total: int, limit: float, where: str) -> None:
    """Stop if too many slides cannot be used, which points to a mistake in the setup.

    Raises:
        UserError: too many slides cannot be used; the message gives each slide's reason.
    """
    # 29 of 100 is not more than 0.29, but in floating point 29 > 0.29 * 100 may hold.
    if len(reasons) <= limit * total + 1e-9 and len(reasons) < total:
        return
    words = (
        "and one has to be usable, whatever cohort.max_excluded is; fix them"
        if len(reasons) >= total and limit >= 1
        else f"more than cohort.max_excluded {limit:g}; fix them, or raise the limit to run "
        "without them"
    )
    raise problem_list(
        f"{len(reasons)} of {total} slides cannot be used ({where}), {words}",
        [f"{name}: {reason}" for name, reason in sorted(reasons.items())],
    )
