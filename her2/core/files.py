"""Every stage: canonical JSON, digests, and files that are either complete or absent."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from her2.core.errors import UserError
from her2.core.sharing import (
    access_words,
    file_mode,
    forbid_writing,
    make_folder,
    share_file,
    share_folder,
)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {os.strerror(number) for number in (errno.EACCES, errno.EPERM)}

WRITTEN: set[Path] = set()
"""The texts and tables that this process has written, for its stamp (`her2.core.stamps`)."""
MADE: set[Path] = set()
"""All files that it has written, but links to products."""


def canonical_json(value: Any) -> str:
    """Return the canonical JSON of a value: keys sorted, no spaces, NaN refused."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic_path(
    target: Path, *, megabytes: float | None = None, sync: bool = True, product: bool = False
) -> Iterator[Path]:
    """Yield a temporary path beside `target`, and move it onto `target` if the block succeeds.

    The file is synced before the move, so after a power cut `target` holds either the old bytes or
    all of the new ones. On an error the temporary file is removed. If the disk is full, the error
    says that `megabytes` are needed. Without `sync`, only a killed process is survived, not a power
    cut: for files that are written often and whose damage is noticed when they are read.

    The file gets the mode of the umask and, in a shared folder, its group bits
    (`her2.core.sharing`). A `product` of the cache is read-only. Where another user's `target`
    may not be replaced, as in a sticky folder, that one stays: both are the product of one key.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    temporary = _temporary(target)
    with _refused_writes(target, temporary, megabytes):
        make_folder(target.parent)
        mode = file_mode(temporary)
        try:
            yield temporary
            share_file(temporary, mode, read_only=product)
            if sync:
                _sync(temporary)
            try:
                temporary.replace(target)
            except PermissionError:
                if not (product and target.exists()):
                    raise
            MADE.add(target)
            if sync:
                _sync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path, *, megabytes: float | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, and rename it to `target` if the block succeeds.

    If another job has made `target` in the meantime, the new folder is dropped: both hold the
    product of the same key. The modes are those of `atomic_path`; the files are read-only.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    temporary = _temporary(target)
    with _refused_writes(target, temporary, megabytes):
        make_folder(target.parent)
        temporary.mkdir()
        try:
            share_folder(temporary)
            mode = file_mode(temporary / temporary.name)
            yield temporary
            for path in temporary.iterdir():
                share_file(path, mode, read_only=True)
                _sync(path)
            _sync(temporary)
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
            _sync(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    WRITTEN.add(target)


def write_json(target: Path, value: Any) -> None:
    """Write indented, key-sorted JSON atomically: equal content gives equal bytes."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(target, text + "\n")


def parse_json(content: str | bytes) -> Any:
    """Parse JSON; a key that is there twice is an error, a ValueError like those of `json`."""
    try:
        return json.loads(content, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def link(source: Path, name: Path) -> None:
    """Give a cache product one more name, under which nobody can write in it.

    It is copied if it is on another file system, or another user's file that may not be linked or
    that stays writable.
    """
    if name.exists() and name.samefile(source):
        return
    temporary = _temporary(name)
    with _refused_writes(name, temporary, None):
        make_folder(name.parent)
        try:
            if _linked(source, temporary):
                temporary.replace(name)
                return
        finally:
            temporary.unlink(missing_ok=True)
    copy(source, name, sync=False)


def copy(source: Path, name: Path, *, sync: bool = True) -> None:
    """Copy a cache product to a file of its own, as for an output of a rule.

    Snakemake refuses to make a rule's output again that is read-only, as links to products are.
    """
    with atomic_path(name, sync=sync) as temporary:
        shutil.copyfile(source, temporary)


def _linked(source: Path, name: Path) -> bool:
    """Link a file, and return whether this was possible and it is read-only."""
    try:
        os.link(source, name)
    except OSError:
        return False
    if forbid_writing(name):
        return True
    name.unlink()
    return False


def _temporary(target: Path) -> Path:
    """Return a new hidden name beside a file or folder; it sorts among the cache's leftovers."""
    # The suffix stays last, because writers (OpenCV, matplotlib) choose the format by it.
    return target.with_name(f".{secrets.token_hex(6)}.tmp.{target.name}")


@contextmanager
def _refused_writes(target: Path, temporary: Path, megabytes: float | None) -> Iterator[None]:
    """Turn a refused write of `temporary` or a parent folder into a UserError about `target`."""
    try:
        yield
    except Exception as error:
        reason = _refusal(error, temporary)
        if reason is None:
            raise
        who = f" {access_words(target)}" if reason in _DENIED else ""
        raise UserError(
            f"{target}: cannot be written ({reason}).{_space(reason, target, megabytes)}{who} "
            "Check the folder's permissions and the free space (df -h), or set another folder in "
            "the config."
        ) from error


def _space(reason: str, target: Path, megabytes: float | None) -> str:
    """Describe the free space at `target` and the space needed; empty unless the disk is full."""
    if reason not in {os.strerror(number) for number in _FULL}:
        return ""
    needed = "" if megabytes is None else f" About {megabytes:,.1f} MB are needed there."
    folder = next((path for path in target.parents if path.is_dir()), None)
    free = "" if folder is None else f" {shutil.disk_usage(folder).free / 1e6:,.1f} MB are free."
    return needed + free


def _refusal(error: Exception, temporary: Path) -> str | None:
    """Return why the system refused to write, or None for any other error."""
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is None:  # the disk is full
            return _reason(error)
        # A copy that fails names its source, and then its target.
        names = [name for name in (error.filename, error.filename2) if isinstance(name, str)]
        about = any(
            temporary.is_relative_to(name) or Path(name).is_relative_to(temporary) for name in names
        )
        return error.strerror if about else None
    # Polars and safetensors are written in Rust and raise their own errors.
    number = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(number[1])) if number and int(number[1]) in _FULL else None


def _reason(error: OSError) -> str | None:
    """Return the system's words; pyarrow has words of its own around the number."""
    return os.strerror(error.errno) if error.errno in _FULL else error.strerror


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
