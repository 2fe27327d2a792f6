"""`her2 doctor`: the segmenters: their libraries, their weights, their licences."""

from collections.abc import Iterator
from pathlib import Path

from her2.cli.doctor.base import Check, Finding, Situation
from her2.cli.doctor.weights import ACCESS_SECONDS, access, by_hand, fetched, of_hub
from her2.core.errors import UserError
from her2.segmenters import chosen
from her2.segmenters.base import Segmenter
from her2.tiling.segmenter_card import CARD_NAME, read_segmenter_card


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
        finding, seconds = _weights(situation, one, getattr(tiling, one.path_key), seconds)
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
    situation: Situation, one: Segmenter, given: Path | None, seconds: float
) -> tuple[Finding, float]:
    """Return where the weights are, and the time that is left to ask the hub for others."""
    name = f"{one.kind} {one.name}"
    folder = situation.results / "segmenters" / one.folder
    if (folder / CARD_NAME).exists():
        try:
            read_segmenter_card(folder, one)
        except UserError as error:
            return Finding("bad", f"{name}: {error}", f"delete {folder}"), seconds
        return Finding("ok", f"{name}: its weights are in {folder}"), seconds
    if given is not None and not given.is_file():
        mend = f"correct tiling.{one.path_key}"
        return Finding("bad", f"{name}: {given} is no file", mend), seconds
    if given is not None:
        text = f"{name}: from {given}, compared with its digest when it is made"
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


CHECK = Check("segmenters", 85, find)
