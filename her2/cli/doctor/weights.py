"""`her2 doctor`: files of published weights: on this machine and whole, or where they come from."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from her2.cli.doctor.base import Finding, Situation, within
from her2.config import EncoderSection, GivenSection
from her2.config.catalogue import WHOLE_REVISION, row
from her2.core.downloads import damage
from her2.core.errors import first_line
from her2.encoders.card import CARD_NAME
from her2.encoders.fetching import Published
from her2.libraries import NAMES, library
from her2.segmenters import chosen

ACCESS_SECONDS = 4.0
"""How long the hub may take to say, for all encoders together, whether access was granted."""
DIGEST_SECONDS = 10.0
"""How long a file may take to be compared with its digest."""


@dataclass(frozen=True, slots=True)
class Download:
    """A published weights file: what it is, where it is here, if it is, and where it would go."""

    what: str
    path: Path | None
    folder: Path

    @property
    def here(self) -> bool:
        """Return whether the file is on this machine."""
        return self.path is not None and self.path.is_file()


def of_encoder(encoder: EncoderSection) -> Download | None:
    """Return the file that an encoder without a local one is made of; None if it needs none."""
    if encoder.source == "catalogue":
        known = row(encoder.model)
        if known.hub is not None:
            return of_hub(known)
        return _of_library(known.library, known.architecture)
    if encoder.source in NAMES or encoder.init == "published":
        return _of_library(encoder.library, encoder.architecture)
    return None


def of_hub(known: Published) -> Download:
    """Return a file of the Hugging Face hub."""
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_CACHE

    assert known.hub is not None
    assert known.file is not None
    whole = known.revision if len(known.revision or "") == WHOLE_REVISION else None
    found = huggingface_hub.try_to_load_from_cache(known.hub, known.file, revision=whole)
    path = Path(found) if isinstance(found, str) else None
    return Download(f"{known.hub}/{known.file}", path, Path(HF_HUB_CACHE))


def _of_library(name: str, architecture: str) -> Download:
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    path = library(name).fetched(architecture)
    own = Path(torch.hub.get_dir())
    folder = own if path is not None and path.is_relative_to(own) else Path(HF_HUB_CACHE)
    return Download(f"{name}/{architecture}", path, folder)


def downloads(situation: Situation) -> Iterator[Download]:
    """Yield the files that the config's encoders and segmenters, not made yet, come from."""
    if situation.config is None:
        return
    for name, encoder in situation.config.encoders.items():
        made = (situation.results / "encoders" / name / CARD_NAME).exists()
        if made or isinstance(encoder, GivenSection) or encoder.checkpoint is not None:
            continue
        if (found := of_encoder(encoder)) is not None:
            yield found
    for one in chosen(situation.config.tiling):
        made = (situation.results / "segmenters" / one.folder / CARD_NAME).exists()
        if not made and getattr(situation.config.tiling, one.path_key) is None:
            yield of_hub(one)


def fetched(situation: Situation, name: str, found: Download) -> Finding:
    """Return whether a file is here and whole, or can be fetched."""
    if found.here:
        assert found.path is not None
        return _whole(name, found.path, found.what)
    if situation.hub:
        return Finding(
            "bad", f"{name}: {found.what} is not on this machine, and the hub cannot be reached",
            "make it on a machine with a network, or use `source: checkpoint`",
        )  # fmt: skip
    return Finding("ok", f"{name}: open, {found.what} is fetched when it is made")


def _whole(name: str, path: Path, what: str) -> Finding:
    """Compare a file with the digest that its name states, as nothing does before it is read."""
    here = f"{name}: {what} is on this machine"
    try:
        problem = within(DIGEST_SECONDS, lambda: damage(path))
    except TimeoutError:
        return Finding("ok", f"{here}; too large to compare with its digest now")
    except OSError as error:
        return Finding("bad", f"{name}: {path}: {first_line(error)}", "make it readable")
    if problem is None:
        return Finding("ok", here)
    text, _, mend = problem.partition(". ")
    return Finding("bad", f"{name}: {path} {text}", mend)


def by_hand(known: Published) -> str:
    """Return how to bring a file to a machine without a network."""
    whole = len(known.revision or "") == WHOLE_REVISION  # the hub finds none by its beginning
    at = f" --revision {known.revision}" if whole else ""
    return (
        f"on a machine with a network: hf download {known.hub} {known.file}{at}; here set "
        f"`{known.path_key}` to the file"
    )


def access(name: str, known: Published, seconds: float) -> tuple[Finding, float]:
    """Ask the hub whether gated weights may be had, and return the time that is left for others."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    began = time.monotonic()
    page = known.ask_at or known.card
    ask = f"ask for access at {page} with the account of your token (`hf auth login`)"
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
