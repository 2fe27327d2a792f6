"""Features of other programs: the files that belong to the slides of a cohort."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from her2.cohort.manifest import Cohort, SlideRow
from her2.exchange.given import given_files
from her2.exchange.matching import MatchedFiles, match_given


def match_slides(cohort: Cohort, folders: Iterable[Path], form: str | None) -> MatchedFiles:
    """Return which feature file belongs to which slide of a whole cohort.

    Args:
        cohort: the manifest.
        folders: folders of feature files.
        form: name of the form of the files; None: each is found by content.

    Raises:
        UserError: a folder cannot be read, or there is no such form.
    """
    slides = {row.slide_id: cohort.present_file(row) for row in cohort.rows}
    return match_given(slides, given_files(folders, form))


def folders_in(text: str) -> list[Path]:
    """Return the folders of a job's option, which is a JSON list."""
    return [Path(one) for one in json.loads(text)]


def names_of(row: SlideRow) -> frozenset[str]:
    """Return the names of a slide: its id, and the stem of its file."""
    return frozenset({row.slide_id, Path(row.path).stem if row.path else row.slide_id})


def other_names(cohort: Cohort, row: SlideRow) -> Iterator[str]:
    """Yield the names of all slides of a cohort but one."""
    own = names_of(row)
    for other in cohort.rows:
        if other.slide_id != row.slide_id:
            yield from names_of(other) - own
