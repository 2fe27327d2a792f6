"""Stage 1, encoder: a published weights file from the Hugging Face hub, compared with its pin."""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors as hub_errors

from her2.config.catalogue import WHOLE_REVISION
from her2.core.downloads import kept_at
from her2.core.errors import UserError, first_line
from her2.core.files import file_digest

log = logging.getLogger(__name__)

T = TypeVar("T")
_ATTEMPTS = 3
_FINAL = (
    hub_errors.GatedRepoError,
    hub_errors.RepositoryNotFoundError,
    hub_errors.RevisionNotFoundError,
    hub_errors.RemoteEntryNotFoundError,
    hub_errors.LocalEntryNotFoundError,
)
"""What another attempt does not change: answers of the hub, and none after its own attempts."""


class Published(Protocol):
    """Weights that are published as one file: a row of the catalogue, or a tissue segmenter."""

    @property
    def name(self) -> str: ...
    @property
    def place(self) -> str:
        """Where the config names them; errors begin with it."""

    @property
    def path_key(self) -> str:
        """The key of a local file of them."""

    @property
    def digest_key(self) -> str:
        """The key that states the digest of other weights."""

    @property
    def section(self) -> str:
        """Where these keys are, as in `in the encoder's section`."""

    @property
    def hub(self) -> str | None: ...
    @property
    def file(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def sha256(self) -> str | None: ...
    @property
    def also_sha256(self) -> Mapping[str, str]: ...
    @property
    def card(self) -> str: ...
    @property
    def ask_at(self) -> str | None: ...

    def pins(self, digest: str) -> bool:
        """Tell whether a file with this SHA-256 (hex) holds them, as far as known."""


def fetch(row: Published, *, revision: str | None = None) -> Path:
    """Return a published weights file, from the Hugging Face hub or its cache on this machine.

    `revision` is that of the repository, by default the pinned one.

    Raises:
        UserError: access has not been granted, the file, revision or repository is gone, or there
            is no network; with what to do.
    """
    assert row.hub is not None
    assert row.file is not None
    if revision is None and row.revision is not None and len(row.revision) == WHOLE_REVISION:
        revision = row.revision
    download = partial(huggingface_hub.hf_hub_download, row.hub, row.file, revision=revision)
    try:
        return Path(retried(download))
    except hub_errors.GatedRepoError:
        raise UserError(_not_granted(row)) from None
    except hub_errors.RepositoryNotFoundError:
        raise UserError(
            f"{row.place}: the hub has no repository {row.hub} (renamed, removed or made "
            f"private). Look for it at {row.card}. {_by_hand(row)}"
        ) from None
    except hub_errors.RevisionNotFoundError:
        raise UserError(
            f"{row.place}: {row.hub} no longer has the revision {revision}, at which its "
            f"weights were checked. {_by_hand(row)}"
        ) from None
    except hub_errors.RemoteEntryNotFoundError:
        raise UserError(
            f"{row.place}: {row.hub} has no file {row.file} at revision "
            f"{revision or 'main'} (renamed or removed). {_by_hand(row)}"
        ) from None
    except OSError as error:
        why, mend = first_line(error), ""
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            why, mend = "HF_HUB_OFFLINE is set, and it is not on this machine", "Unset it. "
        raise UserError(
            f"{row.place}: {row.hub}/{row.file} could not be fetched ({why}). {mend}"
            "This step needs a network; on a machine without one set "
            f"`{row.path_key}: PATH` to a downloaded {row.file}{_at(row)}."
        ) from None


def checked_digest(path: Path, row: Published | None, stated: str | None) -> str:
    """Return the SHA-256 (hex) of a weights file, which is that of its row or the stated one.

    Args:
        path: the file.
        row: the published weights that it is to hold, if any.
        stated: the digest that the config states for this file, in place of the pin.

    Raises:
        UserError: it is another file; with both digests, and what to do with other bits on purpose.
    """
    digest = file_digest(path)
    if stated is not None:
        if digest != stated.lower():
            key = row.digest_key if row is not None else "sha256"
            raise UserError(
                f"{path}: has the SHA-256 {digest}, but the config's `{key}` is {stated}. Copy "
                "the file again, or correct the key."
            )
        return digest
    if row is None or row.pins(digest):
        return digest
    known = " or ".join(
        f"{one}{'...' if len(one) < len(digest) else ''}"
        for one in (row.sha256, *row.also_sha256.values())
        if one is not None
    )
    again = "fetch it again"
    if (kept := kept_at(path)) is not None:  # in a cache, from which it would come again
        again = f"delete {kept} and rerun the same command"
    raise UserError(
        f"{path}: is not the published {row.file} of {row.name}: its SHA-256 is {digest}, and "
        f"{known} is expected. If its copying broke off, {again}; if its authors have "
        f"replaced it, fetch it{_at(row)}. If these other weights are meant, say so with "
        f"`{row.path_key}: {path}` and `{row.digest_key}: {digest}` {row.section}."
    )


def retried(call: Callable[[], T]) -> T:
    """Call up to three times, a few seconds apart, because networks fail for moments."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return call()
        except _FINAL:
            raise
        except OSError as error:
            log.warning("attempt %d of %d failed: %s", attempt, _ATTEMPTS, first_line(error))
            time.sleep(2**attempt)
    return call()


def _not_granted(row: Published) -> str:
    if huggingface_hub.get_token() is None:
        then = "then run `hf auth login` (or set HF_TOKEN) and rerun the same command."
    else:
        then = (
            "and rerun the same command when it is granted. There is a token here already: it must "
            "be of the account that asks (`hf auth whoami`), and may read gated repositories; "
            "otherwise run `hf auth login` again (or set HF_TOKEN)."
        )
    return (
        f"{row.place}: access to the weights must be requested. Request it at "
        f"{row.ask_at or row.card}, {then}"
    )


def _by_hand(row: Published) -> str:
    digest = f" with the SHA-256 {row.sha256}" if row.sha256 else ""
    return (
        f"If you have its {row.file}{digest}, set `{row.path_key}: PATH` to it; a later version of "
        "her2 may know where it is now."
    )


def _at(row: Published) -> str:
    return f" at revision {row.revision} of {row.hub}" if row.revision else ""
