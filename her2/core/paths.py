"""Before every stage: paths as users write them.

Every path of the config and the manifest passes `user_path`, so that `~`, `$SCRATCH` and the
characters that Snakemake takes for its own mean the same under every key.
"""

import os
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo

BY_USER = "by user"
"""Context of a validation whose values a user wrote. Specs hold paths that were read before."""

_PATTERN_CHARACTERS = "{}<>"
"""Snakemake reads `{x}` as a wildcard and `<x>` as a variable, in paths and in shell lines."""
_MAX_BYTES, _MAX_NAME_BYTES = 4095, 255  # of Linux; a name is what stands between two slashes
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def user_path(text: str) -> Path:
    """Return the path that a user means, with a leading `~` and variables (`$NAME`) filled in.

    `$$` stands for a dollar sign, and `./~` for a name that begins with a tilde.

    Raises:
        ValueError: a variable is not set, or no file of this name can be used; it says why, and
            the fix.
    """
    check_text(text)
    found = filled_in(text, os.environ) if "$" in text or text.startswith("~") else text
    check_name(found)
    return Path(found)


def check_text(text: str) -> None:
    """Raise ValueError, with the fix, if a text cannot be a path on this machine."""
    if not text.strip():
        raise ValueError("is empty; name a file or folder")
    if _URL.match(text):
        raise ValueError(f"{text!r} is a URL; copy the file to a disk of this machine")
    odd = sorted(set(_CONTROLS.findall(text)))
    if odd:
        shown = " ".join(f"U+{ord(one):04X}" for one in odd)
        raise ValueError(f"{text!r} contains control characters ({shown}); rename it")


def check_name(path: str, *, shown: str | None = None) -> None:
    """Raise ValueError, with the fix, if a path is too long or would be Snakemake's pattern.

    `path` is filled in; errors quote it, or `shown`.
    """
    taken = [one for one in _PATTERN_CHARACTERS if one in path]
    if taken:
        raise ValueError(
            f"{(shown or path)!r} contains {' '.join(taken)}, which Snakemake takes for a wildcard "
            "or a variable; rename it, or make a link to it under another name"
        )
    if len(path.encode()) > _MAX_BYTES:
        raise ValueError(f"has {len(path.encode()):,} bytes; a path has at most {_MAX_BYTES:,}")
    long = [name for name in path.split("/") if len(name.encode()) > _MAX_NAME_BYTES]
    if long:
        raise ValueError(
            f"the name {long[0][:40] + '...'!r} has {len(long[0].encode())} bytes; a file's name "
            f"has at most {_MAX_NAME_BYTES}"
        )


def filled_in(text: str, variables: Mapping[str, str]) -> str:
    """Fill in a leading `~` and the variables of a path.

    Raises:
        ValueError: a variable is not set, or there is no such home folder; with the fix.
    """
    template = string.Template(text)
    if not template.is_valid():
        raise ValueError(
            f"{text!r}: $ begins the name of a variable here; write $$ for a dollar sign"
        )
    lacking = [name for name in template.get_identifiers() if not variables.get(name)]
    if lacking:
        raise ValueError(
            f"{text!r}: the variable ${lacking[0]} is not set; set it wherever the run computes, "
            "or write the path in full ($$ for a dollar sign)"
        )
    found = template.substitute(variables)
    if not text.startswith("~"):
        return found
    try:
        return str(Path(found).expanduser())
    except RuntimeError:
        raise ValueError(
            f"{text!r}: there is no home folder {text.split('/')[0]}; write the path in full, or "
            f"./{text} for a name that begins with ~"
        ) from None


def _as_user_means(value: Any, info: ValidationInfo) -> Any:
    return user_path(value) if info.context == BY_USER and isinstance(value, str) else value


UserPath = Annotated[Path, BeforeValidator(_as_user_means)]
"""A path in a section of the config."""


def _on_another_machine(value: Any, info: ValidationInfo) -> Any:
    if info.context == BY_USER and isinstance(value, str):
        check_text(value)
        check_name(re.sub(r"\$(\w+|\{\w+\})", "", value), shown=value)
    return value


NodePath = Annotated[str, BeforeValidator(_on_another_machine)]
"""A path in the config that is filled in on the machine that uses it, such as $TMPDIR."""
