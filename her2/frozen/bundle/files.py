"""The files of a bundle: a folder of them, or a zip that holds them as they are.

A zip is not compressed, since weights are not compressible; so nothing in it can unfold to more
than its size. Its times, order and modes are fixed. Files lie beside each other and are only ever
asked for by the names that `bundle.json` lists, so no name can lead elsewhere.
"""

import hashlib
import os
import shutil
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from her2.core.errors import UserError, first_line
from her2.core.files import atomic_folder, atomic_path
from her2.core.reading import is_lfs_pointer, path_problem
from her2.core.sharing import denied
from her2.frozen.bundle.schema import SCHEMA_NAME, FileFacts

IGNORED = frozenset({".cache", ".git", ".gitattributes", ".gitignore", ".locks"})
"""What a hub puts beside the files of a repository; it is never read."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can state."""
_BLOCK_BYTES = 1 << 22
_ENCRYPTED = 0x1


class Files(Protocol):
    """The files of a bundle, and their sizes in bytes."""

    @property
    def path(self) -> Path:
        """Return the bundle's path."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Return the name of each file and its size."""

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading."""


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """A bundle that is a folder."""

    path: Path
    sizes: Mapping[str, int]

    def open(self, name: str) -> IO[bytes]:
        # Not through a link that somebody has put there since the folder was listed.
        return os.fdopen(os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW), "rb")


@dataclass(frozen=True, slots=True)
class ZipFiles:
    """A bundle that is a zip."""

    path: Path
    sizes: Mapping[str, int]

    def open(self, name: str) -> IO[bytes]:
        try:
            archive = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:  # another file than when it was listed
            raise UserError(f"{self.path}: cannot be read any more ({error}).") from None
        try:
            return archive.open(name)
        finally:
            archive.close()  # the member keeps the file open until it is closed


def list_files(path: Path) -> Files:
    """Return the files of a bundle.

    Raises:
        UserError: there is none, or it has something that no bundle has: a folder, a link, a
            compressed or encrypted member, a name twice. All of them are named.
    """
    if problem := path_problem(path, "file or folder"):
        raise UserError(f"{path}: {problem}; give a bundle, a folder or a .zip.")
    return _list_folder(path) if path.is_dir() else _list_zip(path)


def _list_folder(path: Path) -> FolderFiles:
    sizes, problems = {}, []
    found = sorted(item for item in path.iterdir() if item.name not in IGNORED)
    if SCHEMA_NAME not in {item.name for item in found}:  # nor looked through any further
        raise UserError(f"{path}: has no {SCHEMA_NAME}, so it is not a bundle, or not all of one.")
    for item in found:
        mode = item.lstat().st_mode
        if stat.S_ISLNK(mode):
            problems.append(f"{item.name!r} is a link; copy the bundle with `cp -rL`")
        elif not stat.S_ISREG(mode):
            problems.append(f"{item.name!r} is no file; take it out of the folder")
        elif not os.access(item, os.R_OK):
            raise denied(item)
        elif is_lfs_pointer(item):
            problems.append(f"{item.name!r} is a pointer of Git LFS; run `git lfs pull` there")
        else:
            sizes[item.name] = item.stat().st_size
    _refuse(path, problems)
    return FolderFiles(path, sizes)


def _list_zip(path: Path) -> ZipFiles:
    sizes: dict[str, int] = {}
    problems = []
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename
                if "/" in name or "\\" in name or name in ("", ".", ".."):
                    problems.append(f"{name!r} leads into a folder")
                elif member.compress_type != zipfile.ZIP_STORED:
                    problems.append(f"{name!r} is compressed")
                elif member.flag_bits & _ENCRYPTED:
                    problems.append(f"{name!r} is encrypted")
                elif name in sizes:
                    problems.append(f"{name!r} is there twice")
                elif stat.S_ISLNK(member.external_attr >> 16):
                    problems.append(f"{name!r} is a link")
                else:
                    sizes[name] = member.file_size
    # NotImplementedError: of a zip in several parts, or of a version that zipfile cannot read.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise UserError(
            f"{path}: is neither a folder nor a zip ({first_line(error)}); copy the bundle again."
        ) from None
    total, size = sum(sizes.values()), path.stat().st_size
    if total > size:
        problems.append(f"its files have {total:,} bytes, more than the {size:,} of the zip itself")
    _refuse(path, problems, "; if the bundle was packed again, unpack it and give the folder")
    return ZipFiles(path, sizes)


def _refuse(path: Path, problems: list[str], fix: str = "") -> None:
    if problems:
        shown = [*problems[:20], *([f"and {len(problems) - 20} more"] if problems[20:] else [])]
        lines = "\n".join(f"  - {problem}" for problem in shown)
        raise UserError(f"{path}: is not a bundle as her2 writes one{fix}\n{lines}")


def read_bytes(files: Files, name: str, limit_bytes: int) -> bytes:
    """Return the bytes of a file.

    Raises:
        UserError: it is absent, too large or cannot be read.
    """
    if name not in files.sizes:
        raise UserError(f"{files.path}: has no {name}, so it is not a bundle, or not all of one.")
    if files.sizes[name] > limit_bytes:
        raise UserError(
            f"{files.path}: its {name} has {files.sizes[name]:,} bytes, more than the "
            f"{limit_bytes:,} that are allowed."
        )
    try:
        with files.open(name) as stream:
            return stream.read(files.sizes[name])
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{files.path}: {name} cannot be read ({first_line(error)}).") from None


def problems_of(files: Files, expected: Mapping[str, FileFacts], others: set[str]) -> list[str]:
    """Return what differs from the files that a bundle should have; `others` are allowed too."""
    problems = [f"{name!r} is missing" for name in expected if name not in files.sizes]
    for name in sorted(files.sizes):
        if name in others:
            continue
        if name not in expected:
            problems.append(f"{name!r} is no file of the bundle; take it out")
        elif files.sizes[name] != expected[name].bytes:
            problems.append(
                f"{name!r} was changed: it has {files.sizes[name]:,} bytes, and "
                f"{expected[name].bytes:,} are stated"
            )
        else:
            try:
                own = _digest(files, name)
            except (OSError, zipfile.BadZipFile, EOFError) as error:
                problems.append(f"{name!r} cannot be read ({first_line(error)})")
                continue
            if own != expected[name].sha256:
                stated = expected[name].sha256
                problems.append(
                    f"{name!r} was changed: its digest is {own}, and {stated} is stated"
                )
    return problems


def _digest(files: Files, name: str) -> str:
    result = hashlib.sha256()
    with files.open(name) as stream:
        while block := stream.read(_BLOCK_BYTES):
            result.update(block)
    return result.hexdigest()


def write_folder(target: Path, contents: Mapping[str, Path | bytes], megabytes: float) -> None:
    """Write a folder of files, whole or not at all; a file's content is a path or its bytes.

    Raises:
        UserError: it cannot be written.
    """
    with atomic_folder(target, megabytes=megabytes) as temporary:
        for name, content in sorted(contents.items()):
            if isinstance(content, bytes):
                (temporary / name).write_bytes(content)
            else:
                shutil.copyfile(content, temporary / name)


def write_zip(target: Path, contents: Mapping[str, Path | bytes], megabytes: float) -> None:
    """Write the same as one file: equal contents give equal bytes.

    Raises:
        UserError: it cannot be written.
    """
    with (
        atomic_path(target, megabytes=megabytes) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name, content in sorted(contents.items()):
            member = zipfile.ZipInfo(name, _EPOCH)
            member.create_system = 3  # Unix, on any system
            member.external_attr = (stat.S_IFREG | 0o644) << 16
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            member.file_size = size
            with archive.open(member, "w") as stream:
                if isinstance(content, bytes):
                    stream.write(content)
                else:
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, stream, _BLOCK_BYTES)
