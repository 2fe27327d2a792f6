"""Every stage: ids, names and words for a missing value, as different hands write them."""

import re
import unicodedata
from collections.abc import Callable, Collection, Hashable, Iterable

DASHES = frozenset({"-", "--", "---"})
MISSING = frozenset({"", "na", "n/a", "nan", "none", "null"}) | DASHES
"""Cells (in any case) that mean a missing value; of dashes, also the longer ones of Unicode."""
_WORDS = ("unknown", "missing", "not available", "not evaluated", "not applicable", "not reported")
_UNKNOWN = MISSING | {*_WORDS, *(f"[{word}]" for word in _WORDS)}

_NUMBER = re.compile(r"0*([0-9]+)(?:\.0*)?")
_DASHES_OF_OTHER_CATEGORIES = frozenset("\u02d7\u2043\u2212")
"""Modifier letter minus, hyphen bullet and minus sign: dashes that Unicode files elsewhere."""
_LETTERS = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss", "æ": "ae",
     "ø": "oe", "å": "aa", "Æ": "Ae", "Ø": "Oe", "Å": "Aa", "ł": "l", "Ł": "L"}
)  # fmt: skip


def is_missing(cell: str) -> bool:
    """Return whether a stripped cell means a missing value."""
    return _word(cell) in MISSING


def is_dash(cell: str) -> bool:
    """Return whether a stripped cell is a dash: missing, or a label where a task has it as one."""
    return _word(cell) in DASHES


def is_unknown(cell: str) -> bool:
    """Return whether a stripped cell is missing or says so in words, as clinical tables do."""
    return _word(cell) in _UNKNOWN


def _word(cell: str) -> str:
    return cell.lower() if cell.isascii() else folded(cell)


def folded(text: str) -> str:
    """Return what a text looks like to a reader, to compare it with others.

    That is NFKC without case, invisible characters and outer or repeated spaces, with one dash.
    """
    if not text.isascii():
        text = "".join(map(_plain, unicodedata.normalize("NFKC", text)))
        text = unicodedata.normalize("NFKC", text.casefold())
    return " ".join(text.casefold().split())


def folded_id(text: str) -> str:
    """Return `folded` for ids: numbers also without leading zeros and the `.0` of a spreadsheet."""
    plain = folded(text)
    number = _NUMBER.fullmatch(plain) if plain[:1].isdigit() else None
    return number[1] if number else plain


def without_accents(text: str) -> str:
    """Return a text whose umlauts are spelt out, without other marks of letters."""
    # Names of files on a Mac have letters and marks apart, which must become the same id.
    spelt = unicodedata.normalize("NFC", text).translate(_LETTERS)
    plain = unicodedata.normalize("NFKD", spelt)
    return "".join(one for one in plain if not unicodedata.combining(one))


def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name, as compared with others: `H23-007 Ä1` is h23, 7, ae1."""
    words = re.split(r"[\W_]+", folded(without_accents(name)))
    return tuple(folded_id(word) for word in words if word)


SPELLINGS: tuple[Callable[[str], Hashable], ...] = (str, folded, folded_id, words_of)
"""How far two spellings of a name may differ, the strictest first."""


def look_alikes(values: Iterable[str], key: Callable[[str], str]) -> list[list[str]]:
    """Return the groups of different values that have one key, in the order of the values."""
    different = list(dict.fromkeys(values))
    keys = list(map(key, different))
    if len(set(keys)) == len(keys):
        return []
    groups: dict[str, list[str]] = {}
    for value, same in zip(different, keys, strict=True):
        groups.setdefault(same, []).append(value)
    return [group for group in groups.values() if len(group) > 1]


def spelt(values: Iterable[str]) -> str:
    """Return values in quotes, joined by "and"; characters beyond ASCII also by their numbers."""
    return " and ".join(
        repr(value) if value.isascii() else f"{value!r} ({value!a})" for value in values
    )


def printable(text: str) -> str:
    """Return a text whose control characters, which a terminal would obey, are written out."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def nearest(name: str, candidates: Collection[str]) -> str | None:
    """Return the candidate that a name was probably meant to be, or None."""
    from difflib import get_close_matches  # seldom needed

    by_letters = {_letters(candidate): candidate for candidate in candidates}
    found = get_close_matches(_letters(name), list(by_letters), n=1, cutoff=0.8)
    return by_letters[found[0]] if found else None


def is_spelling_of(name: str, other: str) -> bool:
    """Return whether two names differ in nothing but case, separators and other signs."""
    return _letters(name) == _letters(other) != ""


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", folded(name))


def _plain(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Pd" or character in _DASHES_OF_OTHER_CATEGORIES:
        return "-"
    return "" if category == "Cf" else character


def has_controls(text: str) -> bool:
    """Return whether a text has a line break or another control character."""
    return not text.isprintable() and any(
        unicodedata.category(one) in ("Cc", "Zl", "Zp") for one in text
    )
