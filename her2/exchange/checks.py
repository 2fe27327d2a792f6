"""Features of other programs: whether a file can be what it is taken for."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2.core.barcodes import slide_name
from her2.core.errors import SlideError
from her2.core.spelling import words_of
from her2.core.types import Floats
from her2.exchange.form import Given, Level

_LARGEST_PX = 2**31 - 1
"""Largest coordinate that a store of features can hold."""
_SLACK_PX = 1.0
"""What rounding to um may move a corner beyond a border."""


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
    others: Iterable[str] = (),
    size_px: tuple[int, int] | None = None,
    mpp: float | None = None,
) -> Checked:
    """Check a file without reading its features: its rows, coordinates and the slide it names.

    Args:
        given: the file.
        names: the slide's id and the stem of its file, of which a file that names its slide
            should name one; empty: not checked.
        others: ids and stems of the cohort's other slides, which it must not name.
        size_px: level-0 (width, height) of the slide it is taken for; None: not known.
        mpp: um per level-0 px of the slide, to compare coordinates in um with its size; None: not
            known.
    """
    if not given.rows:
        words = "has no rows, so the program found no tissue in the slide; leave the slide out, or "
        return Checked((f"{words}compute its features anew",), ())
    problems, cautions = [], []
    if given.size_px is not None and size_px is not None and given.size_px != size_px:
        (width, height), (own_width, own_height) = given.size_px, size_px
        problems.append(
            f"was computed on a slide of {width:,} x {height:,} px, and this one has "
            f"{own_width:,} x {own_height:,} px: it belongs to another slide, or to another export "
            "of this one"
        )
    named = str(given.stated.get("name", ""))
    if names and named and not _is_one_of(named, names) and named in others:
        problems.append(
            f"says that it is of the slide {named!r}, which is another one of the cohort; name "
            "each file like its own slide, or compute it anew"
        )
    elif names and named and not _is_one_of(named, names):
        cautions.append(
            f"says that it is of the slide {named!r}; make sure that it was not taken for another"
        )
    if given.level == "tile" and given.coords is not None:
        found, seen = _of_coords(given, given.coords, size_px or given.size_px, mpp)
        problems += found
        cautions += seen
    return Checked(tuple(problems), tuple(cautions))


def finite_blocks(given: Given) -> Iterator[NDArray[Any]]:
    """Yield the features in blocks of rows (k, dimension), as `given.blocks` does.

    Raises:
        SlideError: values are not finite, rows are fewer or more than declared, or the file is
            damaged.
    """
    first = 0
    for block in given.blocks():
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            row = first + int(np.argmin(finite))
            raise SlideError(
                f"{given.path.name}: row {row:,} of {given.rows:,} has values that are not finite "
                "(NaN or infinite); compute its features anew, in float32 if float16 overflowed"
            )
        first += len(block)
        yield block


def mixed_dimensions(kinds: Mapping[str, tuple[Level, int]]) -> dict[str, str]:
    """Return slide id -> problem for the files that have another level or dimension than most.

    Without one that most have, all are problems: nobody can tell which encoder was meant.

    Args:
        kinds: slide id -> (level, dimension) of its file, for files that have rows.
    """
    counts = Counter(kinds.values()).most_common()
    if len(counts) < 2:
        return {}
    said = ", ".join(f"{_words(kind)} in {count:,} of {len(kinds):,}" for kind, count in counts[:4])
    usual = counts[0][0] if counts[0][1] > counts[1][1] else None
    fix = "give each encoder a folder of its own"
    if {kind[0] for kind in kinds.values()} == {"tile", "slide"}:
        fix += "; a file with the only tile of its slide is read as such where `format` says so"
    return {
        slide_id: f"has {_words(kind)}, and the files together have {said}; {fix}"
        for slide_id, kind in kinds.items()
        if kind != usual
    }


def _words(kind: tuple[Level, int]) -> str:
    level, dimension = kind
    return f"{dimension:,} values per {level}"


def _is_one_of(named: str, names: frozenset[str]) -> bool:
    """Return whether a name is one of these, spelt alike, or has the same TCGA barcode."""
    if words_of(named) in {words_of(name) for name in names}:
        return True
    own = slide_name(named)
    return own is not None and own.slide in {
        other.slide for name in names if (other := slide_name(name)) is not None
    }


def _of_coords(
    given: Given, coords: Floats, size_px: tuple[int, int] | None, mpp: float | None
) -> tuple[list[str], list[str]]:
    """Return the problems and cautions of the coordinates of tiles."""
    if len(coords) != given.rows:
        return [
            f"has {given.rows:,} rows of features and {len(coords):,} coordinates; compute it anew"
        ], []
    lost = ~np.isfinite(coords).all(axis=1)
    if lost.any():
        return [
            f"{int(lost.sum()):,} of {len(coords):,} coordinates are not finite; compute it anew"
        ], []
    problems, cautions = [], []
    in_um = given.unit == "um"
    limits, where = np.full(2, float(_LARGEST_PX)), "any slide"
    slack = 0.0
    unit = "um" if in_um else "px"
    if size_px is not None and not (in_um and mpp is None):
        limits = np.array(size_px, float) * (mpp if in_um and mpp else 1.0)
        where = f"the slide of {limits[0]:,.0f} x {limits[1]:,.0f} {unit}"
        slack = _SLACK_PX * mpp if in_um and mpp else 0.0
    outside = ((coords < -slack) | (coords >= limits + slack)).any(axis=1)
    if outside.any():
        x, y = coords[np.argmax(outside)]
        problems.append(
            f"{int(outside.sum()):,} of {len(coords):,} coordinates are outside {where}, such "
            f"as ({x:,.0f}, {y:,.0f}) {unit}: it belongs to another slide, or its coordinates are "
            "not those of level 0"
        )
    repeated = len(coords) - len(np.unique(coords, axis=0))
    if repeated > len(coords) / 2:
        problems.append(
            f"{repeated:,} of {len(coords):,} coordinates repeat others, so they are no places of "
            "tiles; compute it anew"
        )
    elif repeated:
        cautions.append(
            f"{repeated:,} of {len(coords):,} coordinates repeat others, so these tiles count twice"
        )
    return problems, cautions
