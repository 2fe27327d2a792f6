"""Stage 1, tile: the fingerprint and checksum that identify a slide's content, not its file name.

The fingerprint samples the files, in milliseconds, and is part of every key. It can miss damage of
a few bytes in a gigabyte, e.g. by a copy that was broken off and resumed. The checksum covers every
byte. It is computed once for each state of the files, and products record it as a proof, so that
content with the same samples is told apart (`her2.tiling.stage`).
"""

import hashlib
import io
from pathlib import Path

from her2.core.checksums import State, digest_of, state_of
from her2.core.errors import SlideError
from her2.slides.backends import slide_files

_HEAD_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 16
_BLOCKS = 64
_READ_BYTES = 1 << 22


def fingerprint(path: Path) -> str:
    """Return a digest of a slide's content, SHA-256 (hex), in milliseconds.

    It covers the size, the first and last MiB and 64 evenly spaced blocks of 64 KiB of each of the
    slide's files (`her2.slides.backends.slide_files`), but no names or times. Two scans differ
    everywhere, so a sample tells them apart. A change of a few bytes in a gigabyte can be missed.

    Raises:
        SlideError: a file is absent or cannot be read, or the slide's file is empty.
    """
    result = hashlib.sha256()
    try:
        if path.stat().st_size == 0:
            raise SlideError("the file is empty (0 bytes); copy it again")
        for part in slide_files(path):
            size = part.stat().st_size
            result.update(size.to_bytes(8, "big"))
            with part.open("rb") as stream:
                _update(result, stream, size)
    except OSError as error:
        raise SlideError(f"the file cannot be read ({error.strerror})") from None
    return result.hexdigest()


def checksum(path: Path, index: Path) -> str:
    """Return the SHA-256 (hex) of the sizes and all bytes of a slide's files.

    `index` keeps it for this state of the files: size, times, inode (`her2.core.checksums`).

    Raises:
        SlideError: a file is absent, cannot be read, or changes while it is read.
    """

    def compute() -> str:
        result = hashlib.sha256()
        for part in files:
            result.update(part.stat().st_size.to_bytes(8, "big"))
            with part.open("rb", buffering=0) as stream:
                while block := stream.read(_READ_BYTES):
                    result.update(block)
        if _content(state_of(files, changes=True)) != _content(state):
            raise SlideError("the file changed while it was read; run again when it is complete")
        return result.hexdigest()

    try:
        files = slide_files(path)
        state = state_of(files, changes=True)
        return digest_of(index, path, state, compute)
    except OSError as error:
        raise SlideError(f"the file cannot be read ({error.strerror})") from None


def _content(state: State) -> State:
    """Return the part of a state that only writing changes."""
    return [one[:3] for one in state]


def _update(result: "hashlib._Hash", stream: io.BufferedReader, size: int) -> None:
    if size <= 2 * _HEAD_BYTES + _BLOCKS * _BLOCK_BYTES:
        result.update(stream.read())
        return
    result.update(stream.read(_HEAD_BYTES))
    span = size - 2 * _HEAD_BYTES - _BLOCK_BYTES
    for index in range(_BLOCKS):
        stream.seek(_HEAD_BYTES + span * index // (_BLOCKS - 1))
        result.update(stream.read(_BLOCK_BYTES))
    stream.seek(-_HEAD_BYTES, io.SEEK_END)
    result.update(stream.read(_HEAD_BYTES))
