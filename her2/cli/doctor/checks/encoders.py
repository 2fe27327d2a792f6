"""`her2 doctor`: each configured encoder: made, or where its weights would come from."""

from collections.abc import Iterator
from pathlib import Path

from her2.cli.doctor.base import Check, Finding, Situation, within
from her2.config import EncoderSection, GivenSection
from her2.config.catalogue import WHOLE_REVISION, CatalogueRow, row, scale_warning
from her2.core.consent import VARIABLE, consent_problem
from her2.core.errors import UserError, first_line
from her2.encoders.card import CARD_NAME, read_card
from her2.libraries import NAMES, library

ACCESS_SECONDS = 4.0
"""How long the hub may take to say, for all encoders together, whether access was granted."""


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
            found, left = _access(name, row(encoder.model), left)
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
    if encoder.source == "catalogue":
        return _of_row(situation, name, row(encoder.model))
    if encoder.source in NAMES or encoder.init == "published":
        path = library(encoder.library).fetched(encoder.architecture)
        return _fetched(situation, name, path, f"{encoder.library}/{encoder.architecture}")
    return Finding("ok", f"{name}: source {encoder.source}, which needs no download")


def _of_code(name: str, path: Path) -> Finding:
    if not path.is_file():
        return Finding("bad", f"{name}: {path} is no file", f"correct encoders.{name}.module")
    return Finding("ok", f"{name}: from {path}, which is run when it is made")


def _of_row(situation: Situation, name: str, known: CatalogueRow) -> Finding | None:
    what = f"{known.hub}/{known.file}" if known.hub else f"{known.library}/{known.architecture}"
    path = _in_cache(known) if known.hub else library(known.library).fetched(known.architecture)
    if known.gated and not situation.hub and not (path and path.is_file()):
        return None
    found = _fetched(situation, name, path, what)
    if found.level == "bad" and known.hub:
        whole = len(known.revision or "") == WHOLE_REVISION  # the hub finds none by its beginning
        at = f" --revision {known.revision}" if whole else ""
        mend = (
            f"on a machine with a network: hf download {known.hub} {known.file}{at}; here set "
            "`checkpoint` to the file"
        )
        return Finding("bad", found.text, mend)
    return found


def _fetched(situation: Situation, name: str, path: Path | None, what: str) -> Finding:
    if path is not None and path.is_file():
        return Finding("ok", f"{name}: {what} is on this machine")
    if situation.hub:
        return Finding(
            "bad", f"{name}: {what} is not on this machine, and the hub cannot be reached",
            "make it on a machine with a network, or use `source: checkpoint`",
        )  # fmt: skip
    return Finding("ok", f"{name}: open, {what} is fetched when it is made")


def _in_cache(known: CatalogueRow) -> Path | None:
    """Return a row's file in the hub's cache on this machine, or None."""
    import huggingface_hub

    assert known.hub is not None
    assert known.file is not None
    whole = known.revision if len(known.revision or "") == WHOLE_REVISION else None
    found = huggingface_hub.try_to_load_from_cache(known.hub, known.file, revision=whole)
    return Path(found) if isinstance(found, str) else None


def _access(name: str, known: CatalogueRow, seconds: float) -> tuple[Finding, float]:
    """Ask the hub whether gated weights may be had, and return the time that is left for others."""
    import time

    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    began = time.monotonic()
    ask = f"ask for access at {known.ask_at} with the account of your token (`hf auth login`)"
    try:
        within(max(seconds, 0.1), lambda: huggingface_hub.HfApi().auth_check(str(known.hub)))
        found = Finding("ok", f"{name}: gated and granted, {known.hub} is fetched when it is made")
    except GatedRepoError:
        found = Finding("bad", f"{name}: {known.hub} is gated, and access is not granted", ask)
    except RepositoryNotFoundError:
        found = Finding("bad", f"{name}: the hub shows no {known.hub} to this account", ask)
    except Exception as error:
        found = Finding(
            "note", f"{name}: {known.hub} is gated; the hub did not say whether access is granted "
            f"({first_line(error)})", ask,
        )  # fmt: skip
    return found, seconds - (time.monotonic() - began)


CHECK = Check("encoders", 80, find)
