"""Features of other programs: one of their files as a `Given`, and the files of a folder."""

from collections.abc import Iterable
from pathlib import Path

from her2.exchange.form import Given as Given
from her2.exchange.form import Level as Level
from her2.exchange.form import Unit as Unit


def read_given(path: Path, form: str | None = None) -> Given:
    """Open a feature file of another program, in a form that is found by its content.

    Args:
        path: the file.
        form: name of its form, one of `form_names()`; None: found by content.

    Raises:
        UserError: there is no form of this name.
        SlideError: the file is of no form that is known, is damaged, or is not what it declares;
            with what was found, and the fix. The message does not repeat the path.
    """
    raise NotImplementedError


def form_names() -> list[str]:
    """Return the names of all forms, sorted: the values that `format:` may have."""
    raise NotImplementedError


def given_files(folders: Iterable[Path], form: str | None = None) -> list[Path]:
    """Return the feature files below folders, sorted: by suffix, and without hidden ones.

    Raises:
        UserError: a folder is absent or cannot be read, or there is no form of this name.
    """
    raise NotImplementedError
