"""Stage 1, pre-training data: the labels of IHC4BC, a csv without a header as it is published.

Each row is an image's name, a mark of its annotators, the number of nuclei in the H&E patch, and
the mean DAB of each nucleus in the IHC patch. The mark is no class: `a` accepts the DAB analysis,
`0` says that the patch is negative whatever the analysis found, `d` discards it (its image is not
published). So a class needs two numbers that the set does not give, and the config does. For HER2
the authors made no DAB analysis.

Source: Akbarnejad et al., arXiv 2308.01982, and the description of the files at ihc4bc.github.io.
"""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from her2.core.errors import UserError
from her2.core.reading import path_problem
from her2.core.spelling import printable

MARKS = ("a", "0", "d")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Stained:
    """A row: an image's name, the annotators' mark, and the share of its nuclei that are stained.

    `share` is None where it cannot be computed: there are no nuclei, or no cut-off was given.
    """

    row: int
    name: str
    mark: str
    share: float | None


def is_headless(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Return whether the first cell of a csv is the name of an image, not of a column."""
    try:
        first = next((record for _, record in _records(path) if record), [""])
    except UserError:
        return False  # Parquet, or a fault that the reader of tables with a header explains
    return first[0].strip().lower().endswith(suffixes)


def read_stained(path: Path, dab: float | None) -> tuple[list[Stained], list[str]]:
    """Read the rows of a csv without a header, and what is wrong with them.

    Args:
        path: the file; it is streamed, since some have hundreds of MB.
        dab: mean DAB from which a nucleus is stained.

    Raises:
        UserError: the file cannot be read.
    """
    found, wrong = [], []
    for number, record in _records(path):
        cells = [cell.strip() for cell in record]
        if not any(cells):
            continue
        if len(cells) < 2 or cells[1] not in MARKS:
            mark = printable(repr(cells[1])) if len(cells) > 1 else "nothing"
            wrong.append(f"row {number}: column 2 has {mark}, not a mark ({', '.join(MARKS)})")
            continue
        try:
            share = _share(cells[2:], dab)
        except ValueError as error:
            wrong.append(f"row {number}: {error}")
            continue
        found.append(Stained(number, cells[0], cells[1], share))
    problems = [f"{path.name}: {one}" for one in wrong[:_SHOWN]]
    if len(wrong) > _SHOWN:
        problems.append(f"{path.name}: and {len(wrong) - _SHOWN:,} more rows that cannot be read")
    return found, problems


def _share(cells: list[str], dab: float | None) -> float | None:
    """Return stained nuclei / nuclei; at most 1, since the two were counted on different slides."""
    if not cells or dab is None:
        return None
    numbers = [float(cell) for cell in cells if cell]
    if not all(map(math.isfinite, numbers)) or any(one < 0 for one in numbers[:1]):
        raise ValueError("the number of nuclei and their DAB must be numbers")
    nuclei, values = (numbers[0], numbers[1:]) if numbers else (0, [])
    return min(sum(value >= dab for value in values) / nuclei, 1.0) if nuclei else None


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each row."""
    if problem := path_problem(path):
        raise UserError(f"{path}: {problem}. Check `labels` in the config.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield from enumerate(csv.reader(stream, strict=True), start=1)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: is not a readable table ({printable(str(error))}). Check `labels` in the "
            "config."
        ) from None
