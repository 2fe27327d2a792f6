"""Features out: the folder of an export, and its record of what it wrote from which stores.

`export.json` is that record. While an export runs, it notes in a journal beside it what it begins
and ends, line by line; the next one reads both, so that nothing is lost with a killed process. A
file is believed if its bytes have the digest in the record, not by its name or time.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from her2.core.errors import UserError, problem_list
from her2.core.files import atomic_path, file_digest, write_json
from her2.core.reading import read_json

RECORD_NAME = "export.json"
JOURNAL_NAME = "export.unfinished.jsonl"
SCHEMA_VERSION = 1
ROWS_SUFFIX = ".rows"
"""What a writer's own temporary file has after the name of the file that it writes."""
_FOLDER = ".zarr"
_TEMPORARY = re.compile(rf"\.[0-9a-f]{{12}}\.(?:tmp|old)\.(.+?)(?:{re.escape(ROWS_SUFFIX)})?")
"""Names that `publishing` gives, and those of `her2.core.files.atomic_path`."""


@dataclass(frozen=True, slots=True)
class Done:
    """A slide that was exported: the store it was made from, and path -> digest of its files."""

    key: str
    seal: str
    tiles: int
    version: int
    files: Mapping[str, str]


_DONE = TypeAdapter(Done)


@dataclass(slots=True)
class Record:
    """The folder of an export while it is written.

    Attributes:
        out: the folder.
        slides: slide id -> what was written of it.
        ours: paths in the folder that exports wrote or began to write.
    """

    out: Path
    slides: dict[str, Done] = field(default_factory=dict)
    ours: set[str] = field(default_factory=set)

    def current(self, slide_id: str, key: str, seal: str, version: int) -> bool:
        """Return whether a slide's files were made from this store and are as they were made."""
        done = self.slides.get(slide_id)
        return (
            done is not None
            and (done.key, done.seal, done.version) == (key, seal, version)
            and all(content_digest(self.out / name) == sha for name, sha in done.files.items())
        )

    def begin(self, names: Iterable[str]) -> None:
        """Note which files are about to be written.

        Raises:
            UserError: one of them is there and no export wrote it.
        """
        mine = sorted(names)
        foreign = [one for one in mine if one not in self.ours and (self.out / one).exists()]
        if foreign:
            raise problem_list(
                f"{self.out}: has files that no export wrote, and none is overwritten. Move "
                "them away, or give another --out",
                foreign,
            )
        self.ours |= set(mine)
        self._note({"begun": mine})

    def end(self, slide_id: str, done: Done) -> None:
        """Note that a slide was written; files it had under other names are deleted."""
        before = self.slides.get(slide_id)
        self.slides[slide_id] = done
        self._note({"slide": slide_id, "done": asdict(done)})
        for name in set(before.files) - set(done.files) if before else ():
            self._delete(name, before.files[name] if before else "")

    def remove(self, slide_id: str) -> list[str]:
        """Delete the files of a slide, and return those that stay, as they were changed since."""
        done = self.slides.pop(slide_id)
        self._note({"slide": slide_id, "done": None})
        return [name for name, sha in done.files.items() if not self._delete(name, sha)]

    def finish(self, content: Mapping[str, Any]) -> None:
        """Write the record, and delete the journal."""
        slides = {name: asdict(done) for name, done in self.slides.items()}
        write_json(self.out / RECORD_NAME, {**content, "slides": slides})
        (self.out / JOURNAL_NAME).unlink(missing_ok=True)

    def _delete(self, name: str, sha: str) -> bool:
        path = self.out / name
        if not path.exists():
            return True
        if content_digest(path) != sha:
            return False
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return True

    def _note(self, line: Mapping[str, Any]) -> None:
        with (self.out / JOURNAL_NAME).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, sort_keys=True) + "\n")


@contextmanager
def open_record(out: Path, about: Mapping[str, Any]) -> Iterator[Record]:
    """Open the folder of an export, a new one or one of an earlier export of the same.

    Args:
        out: the folder.
        about: what is exported: form, encoder and cohort. An export of something else has another
            folder.

    Raises:
        UserError: there is something else in the folder, the record is damaged, or another process
            is exporting there.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder.")
    path, journal = out / RECORD_NAME, out / JOURNAL_NAME
    there = [item.name for item in sorted(out.iterdir())] if out.is_dir() else []
    if there and not {RECORD_NAME, JOURNAL_NAME} & set(there):
        raise UserError(
            f"--out {out}: has {', '.join(there[:5])}{' ...' if there[5:] else ''}, and no "
            f"{RECORD_NAME}, so no export wrote it. Give an empty or a new folder."
        )
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        record = Record(out)
        if path.exists():
            _read(record, path, about)
        if journal.exists():
            _replay(record, journal, about)
            _sweep(record)
        else:
            record._note({"about": dict(about)})
        yield record


def content_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file, or of the names and digests in a folder; None if absent."""
    if path.is_dir():
        found = hashlib.sha256()
        for item in sorted(path.rglob("*")):
            if item.is_file():
                found.update(f"{item.relative_to(path).as_posix()} {file_digest(item)}\n".encode())
        return found.hexdigest()
    return file_digest(path) if path.is_file() else None


@contextmanager
def publishing(out: Path, names: Mapping[str, str]) -> Iterator[dict[str, Path]]:
    """Yield role -> temporary path, and move all onto their names if the block succeeds.

    Files are not synced: one that a power cut damages does not have its digest, and is written
    again.
    """
    with ExitStack() as stack:
        yield {
            role: stack.enter_context(
                _replaced(out / name)
                if name.endswith(_FOLDER)
                else atomic_path(out / name, sync=False)
            )
            for role, name in names.items()
        }


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, which replaces it if the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{secrets.token_hex(6)}.tmp.{target.name}")
    old = target.with_name(f".{secrets.token_hex(6)}.old.{target.name}")
    try:
        yield temporary
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other exports out of the folder; a file system without locks keeps nobody out."""
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            f"--out {out}: another export is writing there; wait for its end."
        ) from None
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(handle)


def _read(record: Record, path: Path, about: Mapping[str, Any]) -> None:
    try:
        values = read_json(path)
        if values["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {values['schema_version']}")
        found = values["about"]
        record.slides = {name: _DONE.validate_python(one) for name, one in values["slides"].items()}
        record.ours = {*values["tables"], *_names(record)}
    except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is not the record of an export ({error}). Give another --out, or delete the "
            "folder if it is one of an export."
        ) from None
    _check_same(record.out, found, about)


def _replay(record: Record, journal: Path, about: Mapping[str, Any]) -> None:
    """Take in what an export that was stopped has noted; its last line may be torn."""
    for text in journal.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if "about" in line:
            _check_same(record.out, line["about"], about)
        elif "begun" in line:
            record.ours |= set(line["begun"])
        elif line["done"] is None:
            record.slides.pop(line["slide"], None)
        else:
            record.slides[line["slide"]] = _DONE.validate_python(line["done"])
    record.ours |= _names(record)


def _sweep(record: Record) -> None:
    """Delete the temporary files of an export that was killed; readers take them for slides."""
    for folder in sorted({(record.out / name).parent for name in record.ours}):
        mine = {Path(name).name for name in record.ours if (record.out / name).parent == folder}
        for item in folder.iterdir() if folder.is_dir() else ():
            left = _TEMPORARY.fullmatch(item.name)
            if left and left[1] in mine:
                shutil.rmtree(item) if item.is_dir() else item.unlink()


def _names(record: Record) -> set[str]:
    return {name for done in record.slides.values() for name in done.files}


def _check_same(out: Path, found: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    if dict(found) != dict(about):
        differ = [
            f"{name} {found.get(name) or 'none'!s}, not {about[name] or 'none'!s}"
            for name in about
            if found.get(name) != about[name]
        ]
        raise UserError(
            f"--out {out}: is an export of something else ({'; '.join(differ)}). Give another "
            "folder."
        )
