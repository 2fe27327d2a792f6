"""`her2 doctor`: the segmenters: their libraries, their weights, their licences."""

from collections.abc import Iterator
from pathlib import Path

from her2.cli.doctor.base import Check, Finding, Situation
from her2.cli.doctor.weights import ACCESS_SECONDS, access, by_hand, fetched, of_hub
from her2.core.errors import UserError
from her2.core.files import file_digest
from her2.encoders.fetching import checked_digest
from her2.segmenters import chosen
from her2.segmenters.base import Segmenter
from her2.tiling.segmenter_card import CARD_NAME, SegmenterCard, read_segmenter_card


def find(situation: Situation) -> Iterator[Finding]:
    """Yield the state of the segmenters that the config names."""
    tiling = None if situation.config is None else situation.config.tiling
    found = () if tiling is None else chosen(tiling)
    if not found:
        yield Finding("ok", "none: no published network chooses tiles")
    seconds = ACCESS_SECONDS
    for one in found:
        if problem := _library_problem(one):
            yield problem
        given, stated = (getattr(tiling, key) for key in (one.path_key, one.digest_key))
        finding, seconds = _weights(situation, one, given, stated, seconds)
        yield finding
        if not one.commercial:
            yield Finding(
                "note",
                f"{one.kind} {one.name}: licence {one.licence}, which allows no commercial use",
                f"leave `{one.key}` out where that is what you do",
            )


def _library_problem(one: Segmenter) -> Finding | None:
    import torch

    try:
        with torch.device("meta"):
            one.build()
    except UserError as error:
        text, _, mend = str(error).removeprefix("tiling.").partition(". ")
        return Finding("bad", text, mend)
    return None


def _weights(
    situation: Situation, one: Segmenter, given: Path | None, stated: str | None, seconds: float
) -> tuple[Finding, float]:
    """Return where the weights are, and the time that is left to ask the hub for others."""
    name = f"{one.kind} {one.name}"
    folder = situation.results / "segmenters" / one.folder
    if (folder / CARD_NAME).exists():
        try:
            card = read_segmenter_card(folder, one)
        except UserError as error:
            return Finding("bad", f"{name}: {error}", f"delete {folder}"), seconds
        if _as_asked(card, given, stated):
            return Finding("ok", f"{name}: its weights are in {folder}"), seconds
    if given is not None and not given.is_file():
        mend = f"correct tiling.{one.path_key}"
        return Finding("bad", f"{name}: {given} is no file", mend), seconds
    if given is not None:
        try:
            checked_digest(given, one, stated)
        except UserError as error:
            return Finding("bad", f"{name}: {error}", f"correct tiling.{one.path_key}"), seconds
        known = one.sha256 is not None or stated is not None
        text = f"{name}: from {given}" + (", which has the right digest" if known else "")
        return Finding("ok", text), seconds
    download = of_hub(one)
    if not download.here and not situation.hub:  # no row says whether its hub asks for consent
        found, seconds = access(name, one, seconds)
        if found.level == "ok":
            text = f"{name}: {download.what} may be fetched, which a run does first"
            found = Finding("ok", text)
        return found, seconds
    found = fetched(situation, name, download)
    if found.level == "bad" and not download.here:
        found = Finding("bad", found.text, by_hand(one))
    return found, seconds


def _as_asked(card: SegmenterCard, given: Path | None, stated: str | None) -> bool:
    """Tell whether a card is of the weights that the config names; a run makes others anew."""
    digest = card.provenance.get("sha256")
    if stated is not None and digest != stated.lower():
        return False
    if given is None:
        return "hub" in card.provenance
    return not given.is_file() or file_digest(given) == digest


CHECK = Check("segmenters", 85, find)
