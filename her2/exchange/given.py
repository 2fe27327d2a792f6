"""Features of other programs: one of their files as a `Given`, and the files of a folder."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from her2.core.errors import SlideError, UserError, first_line
from her2.core.listing import files_below
from her2.core.reading import path_problem
from her2.exchange.content import Content
from her2.exchange.content.opening import open_content
from her2.exchange.form import Form
from her2.exchange.form import Given as Given
from her2.exchange.form import Level as Level
from her2.exchange.form import Unit as Unit
from her2.exchange.registry import form_of, installed_forms


def read_given(path: Path | str, form: str | None = None) -> Given:
    """Open a feature file of another program: what it says of itself, and a way to its rows.

    The form is found by content, whatever the file is called. Nothing in it is run, no other file
    is opened for it, and features are read in blocks of about 16 MB. Coordinates are in level-0 px
    or, by STAMP, in um, as `Given.unit` says.

    Args:
        path: the file.
        form: name of its form, one of `form_names()`; None: found by content.

    Returns:
        What the file says. `given.coords` is float64 (n, 2), and `given.blocks()` yields (k, d).

    Raises:
        UserError: there is no form of this name.
        SlideError: the file is of no form that is known, is damaged, or is not what it declares.
            The message begins with the file's name and says what was found, and the fix.

    >>> import h5py, her2, numpy
    >>> with h5py.File("A-001.h5", "w") as file:  # as CLAM writes one
    ...     file["features"] = numpy.ones((3, 4), numpy.float32)
    ...     file["coords"] = numpy.array([[0, 0], [0, 256], [256, 0]], numpy.int32)
    >>> given = her2.read_given("A-001.h5")
    >>> given.form, given.rows, given.dimension, given.unit
    ('clam-h5', 3, 4, 'level0_px')
    >>> sum(block.sum(axis=0) for block in given.blocks()) / given.rows
    array([1., 1., 1., 1.], dtype=float32)
    """
    asked = None if form is None else form_of(form)
    path = Path(path)
    try:
        content = open_content(path)
        found = asked or _recognised(content)
        try:
            given = found.read(content)
        except ValueError as error:
            raise ValueError(f"as {found.name} ({found.words}): {error}") from None
    except ValueError as error:
        raise SlideError(f"{path.name}: {error}") from None
    except Exception as error:  # h5py raises any type of error on a damaged file
        raise SlideError(f"{path.name}: {_damaged(error)}") from None
    return replace(given, blocks=lambda: _blocks(given))


def form_names() -> list[str]:
    """Return the names of all forms, sorted: the values that `format:` may have."""
    return list(installed_forms())


def given_files(folders: Iterable[Path], form: str | None = None) -> list[Path]:
    """Return the feature files below folders, sorted: by suffix, and without hidden ones.

    Args:
        folders: the folders; links are followed.
        form: name of the form they have; None: files with the suffix of any form.

    Raises:
        UserError: a folder is absent or cannot be read, or there is no form of this name.
    """
    forms = installed_forms().values() if form is None else [form_of(form)]
    suffixes = {suffix for one in forms for suffix in one.suffixes}
    found: set[Path] = set()
    for folder in folders:
        if (problem := path_problem(folder, "folder")) is not None:
            raise UserError(f"{folder}: {problem}; name the folder with the feature files.")
        listed = files_below(folder, "feature files")
        found.update(path for path in listed if path.suffix.lower() in suffixes)
    return sorted(found)


def _recognised(content: Content) -> Form:
    forms = installed_forms()
    found = [one for one in forms.values() if one.recognise(content)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(one.name for one in found)
        raise ValueError(f"it could be {names}; say which by `format`")
    raise ValueError(
        f"it is {content.words()}, which is none of the forms {', '.join(forms)}; name one by "
        "`format` to see what it lacks"
    )


def _blocks(given: Given) -> Iterator[NDArray[Any]]:
    """Yield the rows as declared; any error is one about the file."""
    if not given.rows:
        return
    rows = 0
    try:
        for block in given.blocks():
            rows += len(block)
            yield block
    except SlideError:
        raise
    except Exception as error:  # h5py raises any type of error on a damaged file
        raise SlideError(f"{given.path.name}: {_damaged(error)}") from None
    if rows != given.rows:
        raise SlideError(f"{given.path.name}: has {rows:,} rows and declares {given.rows:,}")


def _damaged(error: Exception) -> str:
    return f"cannot be read ({first_line(error)}); copy it again, or compute it anew"
