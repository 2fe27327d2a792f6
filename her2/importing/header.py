"""Which row of a sheet has the names of its columns."""

from collections.abc import Iterable, Sequence

from her2.core.spelling import folded, nearest, printable

SEARCHED = 30
"""Rows among which the header is looked for."""


def header_row(
    rows: Sequence[Sequence[str]], wanted: Sequence[str], header: int | None
) -> int | None:
    """Return the place of the header: as given, with all wanted names, or by the shape of rows."""
    if header is not None:
        return header - 1 if 0 < header <= len(rows) else None
    first = rows[:SEARCHED]
    if wanted:
        whole = (at for at, row in enumerate(first) if len(known_names(row, wanted)) == len(wanted))
        return next(whole, None)
    filled = [sum(map(bool, row)) for row in first]
    most = max(filled, default=0)
    # The first row that is about as wide as the widest: a title fills one cell.
    return next((at for at, count in enumerate(filled) if count and count >= 0.75 * most), None)


def no_header(
    rows: Sequence[Sequence[str]], wanted: Sequence[str], header: int | None, *, choosable: bool
) -> str:
    """Say why there is no header."""
    if header is not None:
        return f"has {len(rows)} rows, so row {header} cannot be the header"
    if not any(any(row) for row in rows):
        return "has no cell with a value"
    first = rows[:SEARCHED]
    best = max(first, key=lambda row: (len(known_names(row, wanted)), sum(map(bool, row))))
    lacking = [name for name in wanted if folded(name) not in set(map(folded, best))]
    said = ", ".join(f"{name!r}{meant(name, best)}" for name in lacking)
    in_copy, say = " in a copy of the file", ", or say with --header which row has them"
    return (
        f"has no column {said}; the row that is most like a header has {listed(best)}. Correct "
        f"the names of the columns{say if choosable else in_copy}"
    )


def meant(name: str, header: Iterable[str]) -> str:
    """Return a hint to the name of a header that was probably meant, "" if there is none."""
    found = nearest(name, [one for one in header if one])
    return f" (did you mean {found!r}?)" if found else ""


def listed(names: Iterable[str]) -> str:
    """Return names for a sentence."""
    return printable(", ".join(filter(None, names)))


def known_names(row: Sequence[str], wanted: Sequence[str]) -> set[str]:
    """Return which of the wanted names a row has, folded."""
    return {folded(name) for name in wanted} & {folded(cell) for cell in row}
