"""Stage 2, report: what the licences of published weights do not allow, one sentence each."""

import re
from collections.abc import Iterator

from her2.config import EncoderSection, GivenSection
from her2.config.catalogue import row as catalogue_row
from her2.libraries import library
from her2.report.results import Results
from her2.segmenters import chosen

_NOT_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial|research", re.IGNORECASE)
_NO_DERIVATIVES = re.compile(r"\bnd\b|no-?derivatives", re.IGNORECASE)


def cautions(results: Results) -> list[str]:
    """Return the restrictions of each encoder's weights and of those it was trained from.

    Those of the segmenters follow, where some have chosen the tiles.
    """
    found = []
    for name, encoder in results.config.encoders.items():
        if isinstance(encoder, GivenSection):  # whose weights is known to who computed them
            continue
        for origin, own in _lineage(results, name, encoder):
            licence, text = _restriction(results, origin, own)
            if not text:
                continue
            via = f" (its first weights were those of {origin})" if origin != name else ""
            if origin != name and _NO_DERIVATIVES.search(licence):
                text += " Weights that were trained from them may not be passed on."
            found.append(f"{name}{via}: {text}")
    if results.config.needs_slides:
        found += [
            f"{one.place}: {_not_commercial(one.licence)}"
            for one in chosen(results.config.tiling)
            if not one.commercial
        ]
    return found


def _lineage(
    results: Results, name: str, encoder: EncoderSection
) -> Iterator[tuple[str, EncoderSection]]:
    """Yield an encoder and those that its first weights came from, each once.

    `published` stands for those that the library of the last one publishes.
    """
    seen: set[str] = set()
    while name not in seen:
        seen.add(name)
        yield name, encoder
        if encoder.init == "published":
            yield "published", encoder
        name = encoder.init or name
        origin = results.config.encoders.get(name)
        if not isinstance(origin, EncoderSection):
            return
        encoder = origin


def _restriction(results: Results, name: str, encoder: EncoderSection) -> tuple[str, str]:
    """Return the licence of an encoder's own weights, and what it does not allow ("" if nothing).

    The catalogue says it of its rows; a library only states a licence.
    """
    if encoder.source == "catalogue":
        row = catalogue_row(encoder.model)
        licence, commercial = row.licence, row.commercial
        if row.terms:
            return (
                licence,
                f"commercial use of its weights ({licence}) has conditions: {row.terms}.",
            )
    else:
        card = results.cards.get(name)
        licence = card.licence if card is not None else ""
        if name == "published":
            licence = library(encoder.library).licence(encoder.architecture)
        commercial = "no" if _NOT_COMMERCIAL.search(licence) else "yes"
    if commercial == "yes":
        return licence, ""
    return licence, _not_commercial(licence)


def _not_commercial(licence: str) -> str:
    return (
        f"the licence of its weights ({licence}) allows no commercial use. Read in its text what "
        "that means for models and figures made with them."
    )
