"""A bundle from the results of a run: `her2 bundle`.

The same results give the same bytes, with the same versions of her2 and its libraries, which are
named in it: there are no times, names of machines or paths in it, and nothing is drawn at random.
"""

import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from her2.config.validation import Final
from her2.core.errors import UserError, problem_list
from her2.core.files import file_digest
from her2.core.reading import write_problem
from her2.frozen.bundle.asked import Wanted
from her2.frozen.bundle.files import write_folder, write_zip
from her2.frozen.bundle.gather import gather
from her2.frozen.bundle.model_card import model_card
from her2.frozen.bundle.read import checked
from her2.frozen.bundle.schema import (
    README_NAME,
    SCHEMA_NAME,
    Body,
    Contents,
    FileFacts,
)
from her2.frozen.bundle.seal import problems_in, sealed, to_bytes

_LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{0,200}")

log = logging.getLogger(__name__)


def make_bundle(
    wanted: Wanted,
    target: Path,
    *,
    zipped: bool = False,
    final: Final = "folds",
    licence: str = "",
    permitted: str | None = None,
    force: bool = False,
    threads: int = 1,
) -> Contents:
    """Write the bundle of a trained model, whole or not at all, and read it again.

    Args:
        wanted: the model in the results.
        target: the folder, or with `zipped` the file.
        zipped: whether it is one file.
        final: the models of all folds, or the one trained on all patients.
        licence: licence of the heads, for the model card: an identifier of the hub such as
            `apache-2.0`, or a name.
        permitted: the licence or permission by which an encoder without a stated licence may be
            passed on.
        force: replace another bundle at `target`.
        threads: number of CPU threads for torch.

    Raises:
        UserError: results are missing, the target is there and may not be replaced, or it cannot
            be written.
    """
    check_target(target, force)
    _check_words({"--licence": licence, "--include-encoder": permitted or ""})
    if target.suffix == ".zip" and not zipped:
        raise UserError(f"--out {target}: would be a folder; add --zip, or leave out the .zip.")
    try:
        found = gather(wanted, final=final, licence=licence, permitted=permitted, threads=threads)
    except ValidationError as error:
        raise problem_list(
            f"{wanted.results}: what it says cannot be put into a bundle", problems_in(error)
        ) from None
    return write_bundle(found.body, found.weights, target, zipped=zipped)


def write_bundle(
    body: Body, weights: Mapping[str, Path], target: Path, *, zipped: bool = False
) -> Contents:
    """Write a bundle, in place of an earlier one, and read it again.

    Raises:
        UserError: it cannot be written.
    """
    texts = {README_NAME: model_card(body).encode()}
    files = {name: _facts(content) for name, content in texts.items()}
    files |= {
        name: FileFacts(sha256=file_digest(path), bytes=path.stat().st_size)
        for name, path in weights.items()
    }
    contents = sealed(body, files)
    parts: dict[str, Path | bytes] = {**texts, **weights, SCHEMA_NAME: to_bytes(contents)}
    megabytes = sum(item.bytes for item in files.values()) / 1e6
    new = target.with_name(f".{secrets.token_hex(6)}.tmp.{target.name}")
    try:
        (write_zip if zipped else write_folder)(new, parts, megabytes)
        checked(new)  # before it has its name: the results may have changed under our hands
        _replace(target, new)
    finally:
        _remove(new)
    log.info("%s: %s", target, contents.digest)
    return contents


def _check_words(given: Mapping[str, str]) -> None:
    """Check that the words of who makes the bundle are short lines, as a model card shows them.

    Raises:
        UserError: it names the options.
    """
    wrong = [f"{name} {text[:80]!r}" for name, text in given.items() if not _LINE.fullmatch(text)]
    if wrong:
        raise problem_list("write one line of at most 200 characters", wrong)


def _facts(content: bytes) -> FileFacts:
    return FileFacts(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def check_target(target: Path, force: bool) -> None:
    """Refuse to replace anything but a bundle, and a bundle without `force`.

    Raises:
        UserError: it says what is there.
    """
    if target.name in ("", ".."):
        raise UserError(f"--out {target}: is no name for a bundle; name a folder or file in it.")
    if problem := write_problem(target.parent):
        raise UserError(f"--out {target}: its folder {problem}.")
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return
    if not force:
        raise UserError(
            f"--out {target}: is there already. Name another path, or add --force to replace a "
            "bundle."
        )
    try:
        checked(target)
    except UserError as error:
        raise UserError(
            f"--out {target}: is no bundle that could be replaced, so it stays as it is. Remove it "
            f"yourself, or name another path. ({error})"
        ) from None


def _replace(target: Path, new: Path) -> None:
    """Give a bundle its name; an earlier one is out of the way only for a moment."""
    old = target.with_name(f".{secrets.token_hex(6)}.tmp.{target.name}")
    if target.is_dir():
        target.rename(old)
    try:
        new.replace(target)
    except OSError:
        if old.is_dir():
            old.rename(target)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
