"""Every stage: canonical JSON, digests, and files that are either complete or absent."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from her2.core.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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


def check_regular(path: Path) -> None:
    """Raise an OSError unless a path is that of a file; to open a named pipe could wait for ever.

    Raises:
        OSError: it does not exist, or is a folder, a named pipe or a device.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a named pipe or device, not a file", str(path))


@contextmanager
def atomic_path(
    target: Path, *, megabytes: float | None = None, sync: bool = True
) -> Iterator[Path]:
    """Yield a temporary path beside `target`, and move it onto `target` if the block succeeds.

    The file is synced before the move, so after a power cut `target` holds either the old bytes or
    all of the new ones. On an error the temporary file is removed. If the disk is full, the error
    says that `megabytes` are needed. Without `sync`, only a killed process is survived, not a power
    cut: for files that are written often and whose damage is noticed when they are read.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
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
    """Yield a temporary folder beside `target`, and rename it to `target` if the block succeeds.

    If another job has made `target` in the meantime, the new folder is dropped: both hold the
    product of the same key.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
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
    """Link a cache product under a readable name; copy it if that is on another file system."""
    if name.exists() and name.samefile(source):
        return
    with atomic_path(name, sync=False) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


@contextmanager
def _refused_writes(target: Path, temporary: Path, megabytes: float | None) -> Iterator[None]:
    """Turn a refused write of `temporary` or a parent folder into a UserError about `target`."""
    try:
        yield
    except Exception as error:
        reason = _refusal(error, temporary)
        if reason is None:
            raise
        raise UserError(
            f"{target}: cannot be written ({reason}).{_space(reason, target, megabytes)} Check the "
            "folder's permissions and the free space (df -h), or set another folder in the config."
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
        name = error.filename  # None when the disk is full
        if name is None:
            return error.strerror
        above = isinstance(name, str) and temporary.is_relative_to(name)
        below = isinstance(name, str) and Path(name).is_relative_to(temporary)
        return error.strerror if above or below else None
    # Polars and safetensors are written in Rust and raise their own errors.
    number = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(number[1])) if number and int(number[1]) in _FULL else None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
