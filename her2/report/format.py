"""Stage 2, report: formatting of numbers, paths and lists of names."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

NA = "NA"

_ABSOLUTE = re.compile(r"""(?<![\w.<])(?:/[^\s/'"():,;<>]+)+/([^\s/'"():,;<>]+)""")


def number(value: float | None, digits: int = 3, *, sign: str = "") -> str:
    """Return `0.617` with the sign that marks it; NA for an undefined figure."""
    return NA if value is None else f"{value:.{digits}f}{sign}"


def signed(value: float | None, digits: int = 3, *, sign: str = "") -> str:
    """Return a difference as `+0.052`, `-0.013` or `0.000`; NA for an undefined one."""
    if value is None:
        return NA
    shown = f"{value:+.{digits}f}"
    return f"{shown if float(shown) else shown.lstrip('+-')}{sign}"


def p_value(value: float | None) -> str:
    """Return a p value as `0.031` or `< 0.001`; NA for an undefined one."""
    if value is None:
        return NA
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """Return `[0.529, 0.704]`; empty without an interval."""
    return "" if low is None or high is None else f"[{low:.{digits}f}, {high:.{digits}f}]"


def count(value: int) -> str:
    """Return `12,345`."""
    return f"{value:,}"


def plural(value: int, noun: str, nouns: str = "") -> str:
    """Return `1 slide` or `2 slides`; `nouns` is needed where the plural is not noun plus s."""
    return f"{value:,} {noun if value == 1 else nouns or f'{noun}s'}"


def listed(names: Sequence[str]) -> str:
    """Return `a`, `a and b` or `a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def percent(share: float) -> str:
    """Return `0 %`, `< 1 %` or `12 %`, with a space that does not break across lines."""
    text = "< 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def span(values: list[float]) -> str:
    """Return the range of some um/px as `0.25` or `0.25-0.5`; a dash for none."""
    if not values:
        return "-"
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low}\N{EN DASH}{high}"


def without_folders(text: str) -> str:
    """Cut absolute paths down to file names: where a machine keeps its files is not a result."""
    return _ABSOLUTE.sub(".../\\1", text)


def portable(value: Any) -> Any:
    """Return a config's values for YAML: paths as text, absolute ones as `.../NAME`."""
    match value:
        case PurePath():
            return f".../{value.name}" if value.is_absolute() else value.as_posix()
        case Mapping():
            return {key: portable(item) for key, item in value.items()}
        case list() | tuple():
            return [portable(item) for item in value]
        case _:
            return value
