"""Labels and ids as people write them: what is unambiguous is read, and nothing is guessed.

A HER2 score is the intensity of the immunohistochemistry (0 to 3+); a status is negative or
positive, by the score or by in-situ hybridisation. "HER2-low", "1+ to 2+" and the like are neither
a score nor a status.
"""

import re
import unicodedata
from collections.abc import Iterable

from her2.core.spelling import folded, is_unknown, without_accents

_SCORE = re.compile(r"(?<![\w.,])([0-3])\s*\+?(?![\w%]|[.,]\d)")
_PLUSES = re.compile(r"(?<![\w+])(\+{2,3})(?![\w+])")
"""A single plus is also said of a positive result."""
_ISH = r"\b(?:f|c|s|d)?ish\b"
_ISH_SIGN = re.compile(_ISH + r"[\s:=]*([+\-])(?![\w+])")
_HYBRIDISED = re.compile(_ISH + r"[^a-z+\-]*(?:[a-z\-]+|[+\-])?")
_PARENTHESES = re.compile(r"[(\[]([^)\]]*)[)\]]")
_NUMBERS = re.compile(r"(?:\bratio\b[\s:=]*)?(?<![\w+])\d+[.,]\d+(?![\w+])|\b\d+\s*%")
_WORDS = re.compile(
    r"\b(her2|her-2|her|neu|erbb2|c-erbb-2|ihc|ihk|iq|score|scor|grade|status|statut|expression|"
    r"immun\w*|ventana|hercep\w*|dako)\b|[/:=.,;]"
)
_NEGATIVE = frozenset(
    ("negative", "negativ", "negatif", "negativo", "negativa", "neg", "non-amplified",
     "nonamplified", "not-amplified", "nicht-amplifiziert", "unamplified", "non-amplifie",
     "nao-amplificado", "no-amplificado")
)  # fmt: skip
_POSITIVE = frozenset(
    ("positive", "positiv", "positif", "positivo", "positiva", "pos", "amplified", "amplifiziert",
     "amplifie", "amplificado")
)  # fmt: skip


def her2_score(text: str) -> str:
    """Return 0, 1+, 2+ or 3+ where a text states exactly one score, else "".

    What stands in parentheses may be about anything, but for a second score; the score itself only
    where nothing else stands there.
    """
    plain = re.sub(r"(?<=\d)[.,]0(?!\d)", "", _plain(text))
    outside, inside = _PARENTHESES.sub(" ", plain), _PARENTHESES.findall(plain)
    found, others = _scores(outside)
    for part in inside:
        scores, words = _scores(part)
        found |= scores
        others |= words if scores else set()
    if len(found) != 1 or others - _NEGATIVE - _POSITIVE:
        return ""
    score = found.pop()
    return score if score == "0" else f"{score}+"


def _scores(text: str) -> tuple[set[str], set[str]]:
    """Return the scores in a text, and the words around them that say something else."""
    rest = _NUMBERS.sub(" ", _HYBRIDISED.sub(" ", text))
    rest = _WORDS.sub(" ", rest)
    found = {*_SCORE.findall(rest), *(str(len(one)) for one in _PLUSES.findall(rest))}
    return found, set(_PLUSES.sub(" ", _SCORE.sub(" ", rest)).split())


def her2_status(text: str) -> str:
    """Return `negative` or `positive` where a text says so in words and nothing else, else "".

    A score or a ratio may stand beside it, and says nothing of the status here.
    """
    plain = _ISH_SIGN.sub(
        lambda sign: " positive " if sign[1] == "+" else " negative ", _plain(text)
    )
    plain = re.sub(_ISH, " ", plain)
    rest = _WORDS.sub(" ", _NUMBERS.sub(" ", re.sub(r"[()\[\]]", " ", plain)))
    rest = _PLUSES.sub(" ", _SCORE.sub(" ", rest))
    sides = {_side(word.strip("-")) for word in rest.split() if word.strip("-")}
    return sides.pop() if len(sides) == 1 else ""


def status_of(score: str, hybridised: str) -> str:
    """Return the HER2 status of a score, and of a result of hybridisation where the score is 2+.

    Source: Wolff et al., ASCO/CAP guideline, Journal of Clinical Oncology 36(20), 2018.

    Args:
        score: 0, 1+, 2+, 3+ or "".
        hybridised: `negative`, `positive` or "".
    """
    if score == "3+":
        return "positive"
    if score in ("0", "1+"):
        return "negative"
    return hybridised if score == "2+" else ""


def legal_id(text: str) -> str:
    """Return an id of letters, digits, dots and dashes that a text becomes, "" if nothing is left.

    Umlauts are spelt out, other marks dropped. Different texts can become one id: whoever calls it
    has to compare.
    """
    plain = without_accents(text)
    return re.sub(r"[^A-Za-z0-9._]+", "-", plain).strip("-._")[:128].strip("-._")


def legal_ids(texts: Iterable[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return text -> its id, and id -> the texts that share it, for ids that several become."""
    found = {text: legal_id(text) for text in dict.fromkeys(texts)}
    owners: dict[str, list[str]] = {}
    for text, one in found.items():
        owners.setdefault(one.lower(), []).append(text)
    return found, {found[same[0]]: same for same in owners.values() if len(same) > 1}


def _plain(text: str) -> str:
    """Return a text folded, without accents; "" for a word that means a missing value."""
    plain = "".join(
        one for one in unicodedata.normalize("NFKD", folded(text)) if not unicodedata.combining(one)
    )
    plain = re.sub(r"\b(not|nicht|non|nao|no|un) amplif", r"\1-amplif", plain)
    return "" if is_unknown(plain) else plain


def _side(word: str) -> str:
    if word in _NEGATIVE:
        return "negative"
    return "positive" if word in _POSITIVE else ""
