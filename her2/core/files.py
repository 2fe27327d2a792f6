"""Every stage: canonical JSON, digests, and files that are either whole or absent."""

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

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value: keys sorted, no spaces, NaN refused."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of all the bytes of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic_path(
    target: Path, *, megabytes: float | None = None, sync: bool = True
) -> Iterator[Path]:
    """A temporary path beside `target`, moved onto it when the block ends well.

    The file is synced before the move, so that after a power cut the name shows either the old
    bytes or all of the new ones. On an error the temporary file is removed; when the disk is full
    the error says that `megabytes` are needed. Without `sync` that holds for a killed process
    alone: for files that are written often and know when they are torn.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    # The suffix stays last, because writers (OpenCV, matplotlib) choose the format by it.
    temporary = target.with_name(f".{secrets.token_hex(6)}.tmp.{target.name}")
    with _refused_writes(target, temporary, megabytes):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if sync:
                _sync(temporary)
            temporary.replace(target)
            if sync:
                _sync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path, *, megabytes: float | None = None) -> Iterator[Path]:
    """A temporary folder beside `target`, renamed to it when the block ends well.

    When `target` exists by then (another job was first), the new folder is dropped: both hold
    the product of the same key.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    temporary = target.with_name(f".{secrets.token_hex(6)}.tmp.{target.name}")
    with _refused_writes(target, temporary, megabytes):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for path in temporary.iterdir():
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


def write_json(target: Path, value: Any) -> None:
    """Write indented, key-sorted JSON atomically: equal content gives equal bytes."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(target, text + "\n")


def link(source: Path, name: Path) -> None:
    """Give a cache product a name for people: a hard link, or a copy across filesystems."""
    name.parent.mkdir(parents=True, exist_ok=True)
    if name.exists() and name.samefile(source):
        return
    temporary = name.with_name(f".{secrets.token_hex(6)}.tmp.{name.name}")
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        temporary.replace(name)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _refused_writes(target: Path, temporary: Path, megabytes: float | None) -> Iterator[None]:
    """A refused write of `temporary`, or of a folder above it, as a UserError naming `target`."""
    try:
        yield
    except Exception as error:
        reason = _refusal(error, temporary)
        if reason is None:
            raise
        raise UserError(
            f"{target}: cannot be written ({reason}).{_space(reason, target, megabytes)} Check the "
            "folder's permissions and the free space (df -h), or name another folder in the config."
        ) from error


def _space(reason: str, target: Path, megabytes: float | None) -> str:
    """When the disk is full: what is free below `target`, and what is needed if that is known."""
    if reason not in {os.strerror(number) for number in _FULL}:
        return ""
    needed = "" if megabytes is None else f" About {megabytes:,.1f} MB are needed there."
    folder = next((path for path in target.parents if path.is_dir()), None)
    free = "" if folder is None else f" {shutil.disk_usage(folder).free / 1e6:,.1f} MB are free."
    return needed + free


def _refusal(error: Exception, temporary: Path) -> str | None:
    """Why the system refused to write, None when that is not what the error says."""
    if isinstance(error, OSError) and error.errno is not None:
        name = error.filename  # none when the disk is full
        if name is None:
            return error.strerror
        above = isinstance(name, str) and temporary.is_relative_to(name)
        below = isinstance(name, str) and Path(name).is_relative_to(temporary)
        return error.strerror if above or below else None
    # Polars and safetensors are written in Rust, and have errors of their own.
    number = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(number[1])) if number and int(number[1]) in _FULL else None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
