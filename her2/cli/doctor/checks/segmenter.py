"""`her2 doctor`: the tissue segmenter: its library, its licence, its weights."""

from collections.abc import Iterator

from her2.cli.doctor.base import Check, Finding, Situation
from her2.cli.doctor.weights import ACCESS_SECONDS, access, by_hand, fetched, of_hub
from her2.config import TilingSection
from her2.core.errors import UserError
from her2.segmenters import segmenter
from her2.tiling.segmenter_card import CARD_NAME, read_segmenter_card


def find(situation: Situation) -> Iterator[Finding]:
    """Yield the state of the segmenter that the config names."""
    tiling = None if situation.config is None else situation.config.tiling
    if tiling is None or tiling.segmenter is None:
        yield Finding("ok", "none: tissue is found by its colour")
        return
    name = tiling.segmenter
    if problem := _library_problem(name):
        yield problem
    yield _weights(situation, name, tiling)
    one = segmenter(name)
    if not one.commercial:
        yield Finding(
            "note", f"{name}: licence {one.licence}, which allows no commercial use",
            "leave `segmenter` out where that is what you do",
        )  # fmt: skip


def _library_problem(name: str) -> Finding | None:
    import torch

    try:
        with torch.device("meta"):
            segmenter(name).build()
    except UserError as error:
        text, _, mend = str(error).removeprefix("tiling.segmenter: ").partition(". ")
        return Finding("bad", text, mend)
    return None


def _weights(situation: Situation, name: str, tiling: TilingSection) -> Finding:
    folder, given = situation.results / "segmenters" / name, tiling.segmenter_weights
    if (folder / CARD_NAME).exists():
        try:
            read_segmenter_card(folder, name)
        except UserError as error:
            return Finding("bad", f"{name}: {error}", f"delete {folder}")
        return Finding("ok", f"{name}: its weights are in {folder}")
    if given is not None and not given.is_file():
        return Finding("bad", f"{name}: {given} is no file", "correct tiling.segmenter_weights")
    if given is not None:
        return Finding("ok", f"{name}: from {given}, compared with its digest when it is made")
    known = segmenter(name)
    download = of_hub(known)
    if not download.here and not situation.hub:  # no row says whether its hub asks for consent
        found, _ = access(name, known, ACCESS_SECONDS)
        if found.level == "ok":
            return Finding("ok", f"{name}: {download.what} may be fetched, which a run does first")
        return found
    found = fetched(situation, name, download)
    if found.level == "bad" and not download.here:
        return Finding("bad", found.text, by_hand(known))
    return found


CHECK = Check("segmenter", 85, find)
