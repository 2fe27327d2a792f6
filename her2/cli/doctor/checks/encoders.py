"""`her2 doctor`: each configured encoder: made, or where its weights would come from."""

import json
from collections.abc import Iterator
from pathlib import Path

from her2.cli.doctor.base import Check, Finding, Situation
from her2.cli.doctor.weights import ACCESS_SECONDS, access, by_hand, fetched, of_encoder
from her2.config import EncoderSection, GivenSection
from her2.config.catalogue import row, scale_warning
from her2.config.jobs import dump
from her2.core.consent import VARIABLE, consent_problem
from her2.core.errors import UserError
from her2.core.stamps import FOLDER as STAMPS
from her2.core.stamps import read_stamp
from her2.encoders.card import CARD_NAME, read_card


def find(situation: Situation) -> Iterator[Finding]:
    """Yield the state of each encoder."""
    if situation.config is None:
        yield Finding(
            "note", "known from a config only", "`her2 encoders` lists the published ones"
        )
        return
    left = ACCESS_SECONDS
    for name, encoder in situation.config.encoders.items():
        if isinstance(encoder, GivenSection):
            yield from _given(name, encoder)
            continue
        found = _of(situation, name, encoder)
        if found is None:
            assert encoder.source == "catalogue"
            found, left = access(name, row(encoder.model), left)
        yield found
        if encoder.source == "catalogue":
            warning = scale_warning(row(encoder.model), encoder.mpp)
            if warning is not None:
                yield Finding("note", f"{name}: {warning}", "set `mpp` nearer to a trained one")


def _given(name: str, encoder: GivenSection) -> Iterator[Finding]:
    """Yield whether the folders of features that another program computed are here."""
    for folder in encoder.path:
        if folder.is_dir():
            yield Finding("ok", f"{name}: features of {encoder.identity} are read from {folder}")
        else:
            yield Finding("bad", f"{name}: {folder} is no folder", f"correct encoders.{name}.path")


def _of(situation: Situation, name: str, encoder: EncoderSection) -> Finding | None:
    """Return what is known of an encoder here; None if the hub has to say whether it may be had."""
    if encoder.module is not None and (problem := consent_problem()):
        return Finding("bad", f"{name}: {encoder.module} {problem}", f"export {VARIABLE}=1")
    folder = situation.results / "encoders" / name
    if (folder / CARD_NAME).exists():
        try:
            card = read_card(folder)
        except UserError as error:
            return Finding("bad", f"{name}: {error}", f"delete {folder}")
        if not _made_otherwise(situation, name, encoder):
            return Finding("ok", f"{name}: made, {card.dimension} features")
    try:
        weights = encoder.local_weights()
    except UserError as error:
        return Finding("bad", f"{name}: {error}", "correct `checkpoint`")
    if encoder.source == "python":
        assert weights is not None
        return _of_code(name, weights)
    if weights is not None:
        pinned = encoder.source == "catalogue" or encoder.sha256 is not None
        then = ", compared with its digest when it is made" if pinned else ""
        return Finding("ok", f"{name}: from {weights}{then}")
    download = of_encoder(encoder)
    if download is None:
        return Finding("ok", f"{name}: source {encoder.source}, which needs no download")
    known = row(encoder.model) if encoder.source == "catalogue" else None
    if known is not None and known.gated and not situation.hub and not download.here:
        return None
    found = fetched(situation, name, download)
    if found.level == "bad" and not download.here and known is not None and known.hub:
        return Finding("bad", found.text, by_hand(known))
    return found


def _made_otherwise(situation: Situation, name: str, encoder: EncoderSection) -> bool:
    """Tell whether a run made the encoder as the config had it before, so that it makes it anew."""
    stamp = read_stamp(situation.results / STAMPS / "materialise_encoder" / f"{name}.json")
    return stamp is not None and stamp.spec.get("encoder") != json.loads(dump(encoder.alone))


def _of_code(name: str, path: Path) -> Finding:
    if not path.is_file():
        return Finding("bad", f"{name}: {path} is no file", f"correct encoders.{name}.module")
    return Finding("ok", f"{name}: from {path}, which is run when it is made")


CHECK = Check("encoders", 80, find)
