"""Between the stages: what one job made, as a small JSON file that Snakemake can compare.

A manifest is sorted, holds no times and no host names, and is written last: equal work gives
equal bytes, so nothing downstream runs again. The products themselves are in the cache.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

from her2.core.errors import UserError, problem_list
from her2.core.files import write_json

Status = Literal["ok", "excluded", "failed"]
"""ok: usable. excluded: read well, but not usable (the reason says why). failed: not readable."""


@dataclass(frozen=True, slots=True)
class TileEntry:
    """What tiling found out about a slide. Sizes are level-0 px, scales um/px.

    `pen` and `fold` are shares of the area of tissue and pen, `border` of the slide's; `rejected_*`
    count tiles with enough tissue, `not_drawn` those that `tiling.max_tiles` left out.
    """

    status: Status
    reason: str | None = None
    key: str | None = None
    tiles: int = 0
    fingerprint: str | None = None
    vendor: str | None = None
    width_px: int | None = None
    height_px: int | None = None
    mpp_x: float | None = None
    mpp_y: float | None = None
    mpp_source: str | None = None
    tissue_mm2: float | None = None
    tissue_source: str | None = None
    regions: int | None = None
    pen: float | None = None
    fold: float | None = None
    border: float | None = None
    rejected_border: int = 0
    rejected_pen: int = 0
    rejected_fold: int = 0
    rejected_blur: int = 0
    not_drawn: int = 0


@dataclass(frozen=True, slots=True)
class FeatureEntry:
    """What embedding made of a slide."""

    status: Status
    reason: str | None = None
    key: str | None = None
    tiles: int = 0
    failed_tiles: int = 0
    dimension: int | None = None


@dataclass(frozen=True, slots=True)
class FoldEntry:
    """A trained fold: where its model, predictions and attention are.

    `trials` combinations of options were tried, and the tune part chose `options` (JSON).
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


Entry = TypeVar("Entry", TileEntry, FeatureEntry, FoldEntry)


def write_manifest(path: Path, entries: Mapping[str, TileEntry | FeatureEntry | FoldEntry]) -> None:
    """Write what a job made, one entry a slide (or fold)."""
    write_json(path, {name: asdict(entry) for name, entry in entries.items()})


def read_manifest(path: Path, entry: type[Entry]) -> dict[str, Entry]:
    """Read a job's manifest.

    Raises:
        UserError: it is absent or not a manifest.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {name: entry(**fields) for name, fields in values.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is not a readable manifest ({error}); delete it and run snakemake again."
        ) from None


def read_manifests(folder: Path, names: Iterable[str], entry: type[Entry]) -> dict[str, Entry]:
    """The entries of several manifests of a folder (`{name}.json`), as one mapping."""
    found: dict[str, Entry] = {}
    for name in names:
        found |= read_manifest(folder / f"{name}.json", entry)
    return found


def check_excluded(reasons: dict[str, str], *, total: int, limit: float, where: str) -> None:
    """Stop when too many slides cannot be used: that is a fault of the run, not of slides.

    Raises:
        UserError: naming them and their reasons.
    """
    # 29 of 100 is not more than 0.29, whatever 0.29 * 100 is in floating point.
    if len(reasons) <= limit * total + 1e-9 and len(reasons) < total:
        return
    raise problem_list(
        f"{len(reasons)} of {total} slides cannot be used ({where}), more than "
        f"cohort.max_excluded {limit:g}; mend them, or raise the limit if they are to be left out",
        [f"{name}: {reason}" for name, reason in sorted(reasons.items())],
    )
