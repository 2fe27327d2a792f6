"""Stage 1, tile: the key and the seal of a QC picture, in a comment of the JPEG file."""

import hashlib
from pathlib import Path

from her2.core.errors import UserError
from her2.core.reading import path_problem

PICTURE_BYTES = 256 << 20
"""Largest picture that is read; ours have a few hundred kB."""

_START, _END = b"\xff\xd8", b"\xff\xd9"
_JFIF, _COMMENT = b"\xff\xe0", b"\xff\xfe"
_OURS = b"her2 "


def sealed_picture(content: bytes, key: str) -> bytes:
    """Return a JPEG file with a comment of its key and of the digest of the rest."""
    text = _OURS + f"{key} {hashlib.sha256(content).hexdigest()}".encode()
    place = _after_header(content)
    comment = _COMMENT + (len(text) + 2).to_bytes(2, "big") + text
    return content[:place] + comment + content[place:]


def picture_problem(path: Path, key: str) -> str | None:
    """Return the problem of a QC picture, or None; older ones have no key and no seal.

    Raises:
        OSError: the file cannot be read.
    """
    if found := path_problem(path, limit_bytes=PICTURE_BYTES):
        return found
    content = path.read_bytes()
    if content[:2] != _START or content[-2:] != _END:
        return "is not a complete JPEG"
    place = _after_header(content)
    size = int.from_bytes(content[place + 2 : place + 4], "big")
    text = content[place + 4 : place + 2 + size]
    if content[place : place + 2] != _COMMENT or not text.startswith(_OURS):
        return None
    rest = content[:place] + content[place + 2 + size :]
    stated, _, seal = text.removeprefix(_OURS).partition(b" ")
    if stated != key.encode():
        return "contains the picture of another key"
    if seal != hashlib.sha256(rest).hexdigest().encode():
        return "was edited after it was made"
    return None


def check_picture(path: Path, key: str) -> None:
    """Check that a picture, if there is one, is that of a key.

    Raises:
        UserError: it is not.
    """
    problem = picture_problem(path, key) if path.exists() else None
    if problem is not None:
        raise UserError(
            f"{path}: {problem}. Delete it and the entries files (.json) beside it, and run "
            "snakemake again."
        )


def _after_header(content: bytes) -> int:
    """Return the place after the JFIF header, which must be the first segment."""
    if content[2:4] != _JFIF:
        return 2
    return 4 + int.from_bytes(content[4:6], "big")
