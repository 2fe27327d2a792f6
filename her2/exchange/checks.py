"""Features of other programs: whether a file can be what it is taken for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from her2.exchange.form import Given


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found about a file; each with the fix.

    Attributes:
        problems: reasons not to use it.
        cautions: what may be wrong and stops nothing.
    """

    problems: tuple[str, ...]
    cautions: tuple[str, ...]


def check_given(
    given: Given,
    *,
    names: frozenset[str] = frozenset(),
    size_px: tuple[int, int] | None = None,
    mpp: float | None = None,
) -> Checked:
    """Check a file without reading its features: its rows, coordinates and the slide it names.

    Args:
        given: the file.
        names: the slide's id and the stem of its file, of which a file that names its slide
            should name one; empty: not checked.
        size_px: level-0 (width, height) of the slide it is taken for; None: not known.
        mpp: um per level-0 px of the slide, to compare coordinates in um with its size; None: not
            known.
    """
    raise NotImplementedError


def finite_blocks(given: Given) -> Iterator[NDArray[Any]]:
    """Yield the features in blocks of rows (k, dimension), as `given.blocks` does.

    Raises:
        SlideError: values are not finite, rows are fewer or more than declared, or the file is
            damaged.
    """
    raise NotImplementedError


def mixed_dimensions(given: Mapping[str, Given]) -> dict[str, str]:
    """Return slide id -> problem for the files that have another dimension, or level, than most.

    Args:
        given: slide id -> its file.
    """
    raise NotImplementedError
