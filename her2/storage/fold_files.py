"""Stage 2, train: whether the files of a trained fold are those that its card names.

The card has the fold's key, the digests of the other files and its own seal. `identity.json` has
the identity that the key is the digest of, and which tiles of each slide the fold read. Folds of
older versions have no seal and no identity.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from her2.core.errors import UserError
from her2.core.files import canonical_json, digest, file_digest
from her2.core.reading import read_json

CARD_NAME = "card.json"
IDENTITY_NAME = "identity.json"

ReadRows = Mapping[str, list[str | None]]
"""Slide -> digest of the tiles that were read, checksum of the slide; None where not known."""


def write_identity(folder: Path, identity: Mapping[str, Any], read: ReadRows) -> None:
    """Write `identity.json`; before the card, which has its digest."""
    text = canonical_json({"identity": identity, "read": read})
    (folder / IDENTITY_NAME).write_text(text + "\n", encoding="utf-8")


def write_fold_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write the card with the digests of all other files and its seal, as the last file."""
    files = {item.name: file_digest(item) for item in sorted(folder.iterdir())}
    sealed = {**card, "files": files}
    text = canonical_json({**sealed, "seal": digest(sealed)})
    (folder / CARD_NAME).write_text(text + "\n", encoding="utf-8")


def read_fold_card(folder: Path) -> dict[str, Any]:
    """Read the card of a trained fold.

    Raises:
        UserError: there is no card that can be read.
        ValueError: it was edited.
    """
    card = read_json(folder / CARD_NAME)
    if not isinstance(card, dict):
        raise ValueError(f"its {CARD_NAME} is none")
    rest = {name: value for name, value in card.items() if name != "seal"}
    sealed = "seal" in card or (folder / IDENTITY_NAME).exists()
    if sealed and card.get("seal") != digest(rest):
        raise ValueError(f"its {CARD_NAME} was edited")
    return card


def fold_problem(folder: Path, key: str | None, names: Iterable[str] | None = None) -> str | None:
    """Return the problem of a fold, or None; `names` are the files to read, None for all.

    A file that the card does not name is none of the fold's. `key` is None for any.
    """
    try:
        card = read_fold_card(folder)
        if key is not None and card["key"] != key:
            return "contains the model of another key"
        files = card["files"]
        for name in files.keys() if names is None else names:
            if name not in files:
                if (folder / name).exists():
                    return f"has a file {name} that its card does not name"
            elif file_digest(folder / name) != files[name]:
                return f"has a changed file {name}"
        if names is None and IDENTITY_NAME in files:
            identity = read_json(folder / IDENTITY_NAME)["identity"]
            if digest(identity) != card["key"]:
                return "has another identity than its key says"
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"is not a trained fold ({str(error).removeprefix(f'{folder}/')})"
    return None


def check_fold(folder: Path, names: Iterable[str], key: str | None = None) -> None:
    """Check that some files of a fold are as they were made, before they are read.

    Raises:
        UserError: they are not.
    """
    problem = fold_problem(folder, key, names)
    if problem is not None:
        raise UserError(
            f"{folder}: {problem}. Move it aside with `her2 cache verify --quarantine --config "
            "CONFIG` and run snakemake again."
        )


def rows_read(folder: Path) -> ReadRows | None:
    """Return what a fold read of each slide; None for a fold of an older version.

    Raises:
        UserError: the file was changed.
    """
    if not (folder / IDENTITY_NAME).exists():
        return None
    check_fold(folder, [IDENTITY_NAME])
    text = (folder / IDENTITY_NAME).read_text(encoding="utf-8")
    found: ReadRows = json.loads(text)["read"]
    return found


def same_rows(one: ReadRows, other: ReadRows) -> bool:
    """Return whether nothing that is known of both tells them apart."""
    return one.keys() == other.keys() and all(
        a is None or b is None or a == b
        for slide, known in one.items()
        for a, b in zip(known, other[slide], strict=True)
    )
