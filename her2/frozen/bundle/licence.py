"""Whether an encoder's weights may be passed on inside a bundle."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from her2.config.catalogue import catalogue
from her2.core.errors import UserError
from her2.encoders.card import CODE, EncoderCard
from her2.libraries import library

PERMISSIVE = frozenset(
    {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "unlicense"}
)
"""Licences that let anybody pass weights on, for any use, as identifiers of the hub. A licence with
a condition beside it ("Apache-2.0, research use only") is none of them."""
_REMARK = re.compile(r"\s*\([^()]*\)\s*$")


@dataclass(frozen=True, slots=True)
class Permission:
    """Whether weights may be passed on, and why. `known` is False where no licence is stated."""

    allowed: bool
    known: bool
    why: str


def may_be_passed_on(lineage: Sequence[EncoderCard], row: str | None) -> Permission:
    """Return whether the weights of an encoder may be in a bundle.

    Args:
        lineage: its card, and the cards of the encoders that its weights were initialised from
            (`her2.pretraining.overlap.lineage`).
        row: the catalogue's row that the encoder is, if any.
    """
    card, *before = lineage
    if card.source == "random":
        return Permission(True, True, "random weights")
    if card.source != "pretrain":
        return _of_licence(card.licence, row)
    start = card.provenance.get("init", {}).get("from", "random")
    if start == "random":
        return Permission(True, True, "pre-trained here from random weights")
    if start == "published":
        own = _of_licence(library(card.library).licence(card.architecture), None)
    elif before:
        own = may_be_passed_on(before, _row_of(before[0]))
    else:
        own = Permission(False, False, f"nothing is known of {start}")
    return Permission(own.allowed, own.known, f"pre-trained here, its first weights: {own.why}")


def permission(lineage: Sequence[EncoderCard], row: str | None, word: str | None) -> Permission:
    """Return whether the weights are put in, with the word of the one who makes the bundle.

    Args:
        lineage: as for `may_be_passed_on`.
        row: the catalogue's row that the encoder is, if any.
        word: the licence or permission that somebody has for weights without a stated one.

    Raises:
        UserError: a licence is stated that does not allow it, which no word can change; or the
            encoder is code, of which there is no bundle at all.
    """
    if lineage[0].library == CODE:
        raise UserError(
            "the encoder is of `source: python`, and a bundle holds no code: who gets it would "
            "have to run it unread. Predict other slides as an external cohort (`validation` in "
            "the config), or their features with `her2 predict --features`."
        )
    found = may_be_passed_on(lineage, row)
    if word is None or found.allowed:
        return found
    if found.known:
        raise UserError(
            f"--include-encoder {word!r}: the encoder's weights may not be passed on "
            f"({found.why}). Leave the option out: the bundle then names them, and who uses it "
            "gets them from their authors."
        )
    return Permission(True, True, f"by the word of who made the bundle: {word}")


def _of_licence(licence: str, row: str | None) -> Permission:
    if row is not None and (entry := catalogue().get(row)) is not None and entry.gated:
        return Permission(False, True, f"access must be asked for; licence: {licence}")
    if not licence:
        return Permission(False, False, "no licence is stated")
    allowed = _REMARK.sub("", licence).strip().lower() in PERMISSIVE
    return Permission(allowed, True, f"licence: {licence}")


def _row_of(card: EncoderCard) -> str | None:
    """Return the row of the catalogue that a card is of."""
    if card.source != "catalogue":
        return None
    named = card.provenance.get("catalogue")
    if isinstance(named, str):
        return named
    rows = catalogue().items()
    return next((name for name, row in rows if row.architecture == card.architecture), None)
