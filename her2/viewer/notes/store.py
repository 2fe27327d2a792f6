"""`her2 view`: notes on slides, one GeoJSON file per slide in a folder beside the results.

Coordinates count from where the run's config says that annotations do
(`tiling.annotation_origin`), so that a file can be the `annotation` of a slide in the manifest.

Files are read again whenever something is asked, since QuPath, an editor or another viewer may have
changed them. What they have beside our notes is kept. A change names the note as its page knew it;
if it is another one now, nothing is written.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from her2.core.errors import UserError
from her2.core.files import parse_json, write_text
from her2.core.reading import ABSENT, path_problem
from her2.core.sharing import make_folder
from her2.viewer.notes.features import (
    Draft,
    Feature,
    Note,
    NotedSlide,
    as_line,
    class_of,
    fill,
    id_of,
    is_object,
    is_placed,
    new_feature,
    read_note,
    revision_of,
)
from her2.viewer.run import NotThereError

MOST_BYTES = 64 << 20
"""Of a file of notes."""
_DELETED = 50
_PATIENCE_SECONDS = 10.0
"""How long a change waits for another program that holds the lock; a change takes milliseconds."""
_ASKED_SECONDS = 0.05
_HALF = rb"\ud"
"""Begins, in JSON, half of a character (a surrogate), which is legal there and alone is no text."""


class ChangedNoteError(Exception):
    """A note is not any more what the page knew; `now` is what it is, None if it is gone."""

    def __init__(self, words: str, now: Note | None) -> None:
        super().__init__(words)
        self.now = now


class Notes:
    """The notes of a viewer. Thread-safe, and safe beside other viewers of the same folder.

    Args:
        folder: of the notes.
        results: the run's own folder, in which nothing is written.
    """

    def __init__(self, folder: Path, results: Path) -> None:
        self.folder, self._results = folder, results
        self._turn = threading.Lock()
        self._classes: dict[Path, tuple[tuple[int, int], set[str]]] = {}
        self._deleted: dict[tuple[str, str, str], tuple[int, Feature]] = {}

    def path(self, cohort: str, slide_id: str) -> Path:
        """Return the file of a slide: `COHORT/SLIDE.geojson`, `external/NAME/SLIDE.geojson`.

        Raises:
            NotThereError: the id is no name of a file.
        """
        if (
            not slide_id
            or slide_id.startswith(".")
            or Path(slide_id).name != slide_id
            or "\0" in slide_id
        ):
            raise NotThereError("a slide of this id cannot have notes.")
        return self.folder.joinpath(*cohort.split(":"), f"{slide_id}.geojson")

    def listed(self, slide: NotedSlide) -> tuple[list[Note], int]:
        """Return the notes of a slide, and the number of objects that are none.

        Raises:
            UserError: the file is damaged.
        """
        features = self._read(slide)["features"]
        drawn = [
            read_note(feature, number, slide)
            for number, feature in enumerate(features)
            if not is_object(feature)
        ]
        return drawn, len(features) - len(drawn)

    def add(self, slide: NotedSlide, draft: Draft) -> Note:
        """Write a new note.

        Raises:
            UserError: the file is damaged, or cannot be written.
        """
        assert draft.ring is not None
        with self._changed(slide) as features:
            feature = new_feature()
            fill(feature, draft, slide, features)
            features.append(feature)
        return read_note(feature, len(features) - 1, slide)

    def change(self, slide: NotedSlide, note_id: str, revision: str, draft: Draft) -> Note:
        """Change the class, the remark and, if one is given, the outline of a note.

        Raises:
            ChangedNoteError: it is not any more what the page knew.
            UserError: the file is damaged, or cannot be written.
        """
        with self._changed(slide) as features:
            number = _find(features, note_id, revision, slide)
            feature = features[number]
            fill(feature, draft, slide, features)
        return read_note(feature, number, slide)

    def delete(self, slide: NotedSlide, note_id: str, revision: str) -> None:
        """Delete a note, which `restore` brings back while this viewer runs.

        Raises:
            ChangedNoteError: it is not any more what the page knew.
            UserError: the file is damaged, or cannot be written.
        """
        with self._changed(slide) as features:
            number = _find(features, note_id, revision, slide)
            gone = features.pop(number)
        self._deleted[slide.cohort, slide.slide_id, note_id] = number, gone
        while len(self._deleted) > _DELETED:
            del self._deleted[next(iter(self._deleted))]

    def restore(self, slide: NotedSlide, note_id: str) -> Note:
        """Write a deleted note again, as it was.

        Raises:
            NotThereError: this viewer has not deleted it, or has forgotten it.
            UserError: the file is damaged, or cannot be written.
        """
        key = slide.cohort, slide.slide_id, note_id
        if key not in self._deleted:
            raise NotThereError("this note cannot be brought back any more.")
        number, feature = self._deleted[key]
        with self._changed(slide) as features:
            number = min(number, len(features))
            features.insert(number, feature)
        del self._deleted[key]
        return read_note(feature, number, slide)

    def classes(self) -> list[str]:
        """Return the classes of all notes, sorted; damaged files have none."""
        found: dict[Path, tuple[tuple[int, int], set[str]]] = {}
        for path in self.folder.glob("**/*.geojson"):
            with suppress(UserError, OSError):
                status = path.stat()
                state = status.st_mtime_ns, status.st_size
                if (known := self._classes.get(path)) and known[0] == state:
                    found[path] = known
                else:
                    found[path] = state, {class_of(one) for one in _document(path)["features"]}
        self._classes = found
        return sorted(set().union(*(names for _, names in found.values())) - {""})

    def content(self, cohort: str, slide_id: str) -> bytes | None:
        """Return the file of a slide's notes as it is, None where there is none.

        Raises:
            NotThereError: the id is no name of a file.
            UserError: it is damaged, or something else, as a link may lead anywhere.
        """
        path = self.path(cohort, slide_id)
        if path_problem(path) == ABSENT:
            return None
        return _contents(path)[0]

    def _read(self, slide: NotedSlide) -> dict[str, Any]:
        path = self.path(slide.cohort, slide.slide_id)
        if path_problem(path) == ABSENT:
            head = {"slide_id": slide.slide_id, "cohort": slide.cohort, "origin": slide.origin}
            return {"type": "FeatureCollection", "her2": head, "features": []}
        return _document(path)

    @contextmanager
    def _changed(self, slide: NotedSlide) -> Iterator[list[Feature]]:
        """Yield the features of a file as they are now, and write them if the block succeeds."""
        # Of a link, the file: else the link would become one.
        path = self.path(slide.cohort, slide.slide_id).resolve()
        if path.is_relative_to(self._results.resolve()):
            raise UserError(f"{path}: is in the results, whose files the run owns.")
        with self._alone():
            document = self._read(slide)
            yield document["features"]
            head = {name: value for name, value in document.items() if name != "features"}
            lines = ",\n".join(as_line(feature) for feature in document["features"])
            text = f'{as_line(head)[:-1]},"features":[\n{lines}\n]}}\n'
            if len(text.encode()) > MOST_BYTES:
                raise UserError(f"{path}: would have more than {MOST_BYTES >> 20} MiB.")
            try:
                write_text(path, text)
            except UserError as error:
                raise UserError(f"{error} her2 view --notes names another folder.") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads out, and other viewers where the file system can.

        Raises:
            UserError: another program does not let go of the lock. Who may read the folder can hold
                it, and waiting for it for ever would take one thread of the server after the other.
        """
        until = time.monotonic() + _PATIENCE_SECONDS
        with ExitStack() as stack:
            if not self._turn.acquire(timeout=_PATIENCE_SECONDS):
                raise self._held()
            stack.callback(self._turn.release)
            lock = None
            with suppress(OSError, UserError):  # who cannot write here is told by the writing
                make_folder(self.folder)
                # Open to read: it may be another user's, and a lock needs no more. It may be no
                # file but a pipe, whose opening waits, or a link, which would make a file there.
                flags = os.O_RDONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW
                lock = os.open(self.folder / ".lock", flags, 0o666)
                stack.callback(os.close, lock)  # which releases it
            while lock is not None and not _locked(lock):
                if time.monotonic() > until:
                    raise self._held()
                time.sleep(_ASKED_SECONDS)
            yield

    def _held(self) -> UserError:
        return UserError(
            f"{self.folder / '.lock'}: is held by another program, so nothing was written; try "
            "again, or end that program (`fuser` names it)."
        )


def _locked(lock: int) -> bool:
    """Return whether the lock is ours now; some file systems have none, which is as good."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _document(path: Path) -> dict[str, Any]:
    """Read a file of notes as a FeatureCollection.

    Raises:
        UserError: it is damaged.
    """
    return _contents(path)[1]


def _contents(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Read a file of notes as it is, and as a FeatureCollection.

    Raises:
        UserError: it is damaged.
    """
    if problem := path_problem(path, limit_bytes=MOST_BYTES):
        raise UserError(f"{path}: {problem}; nothing is written to it.")
    try:
        content = path.read_bytes()
        found = parse_json(content)
        if isinstance(found, list):
            found = {"type": "FeatureCollection", "features": found}
        elif isinstance(found, dict) and found.get("type") == "Feature":
            found = {"type": "FeatureCollection", "features": [found]}
        features = found.get("features") if isinstance(found, dict) else None
        if not isinstance(features, list) or not all(isinstance(one, dict) for one in features):
            raise ValueError("it has no list of features")
        if not all(isinstance(one.get("properties") or {}, dict) for one in features):
            raise ValueError("properties of a feature are no object")
        if _HALF in content.lower() and not _is_text(found):
            raise ValueError("it has half of a character, which cannot be written")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: is no GeoJSON that can be read ({error}). Nothing is written to it: mend it, "
            "for example from a backup, or move it away to begin a new one."
        ) from None
    return content, dict(found)


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _find(features: Sequence[Feature], note_id: str, revision: str, slide: NotedSlide) -> int:
    """Return the number of the feature that a page knows.

    Raises:
        ChangedNoteError: it is gone, or is another one now.
    """
    same = [i for i, one in enumerate(features) if id_of(one, i) == note_id]
    # Features without an id count by place, which changes when one before them is deleted.
    moved = [i for i, one in enumerate(features) if is_placed(note_id) and is_placed(id_of(one, i))]
    for number in (*same, *moved):
        if revision_of(features[number]) == revision:
            return number
    if not same:
        raise ChangedNoteError("This note was deleted meanwhile, elsewhere.", None)
    now = read_note(features[same[0]], same[0], slide)
    raise ChangedNoteError("This note was changed meanwhile, elsewhere.", now)
