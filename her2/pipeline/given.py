"""Before every stage: whether features of other programs can be those of a cohort's slides."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from her2.cohort.manifest import Cohort
from her2.config import Config, GivenSection
from her2.config.heads import HEADS
from her2.core.crashes import reading
from her2.core.errors import SlideError
from her2.exchange.checks import check_given, mixed_dimensions
from her2.exchange.given import Given, form_names, read_given
from her2.exchange.matching import MatchedFiles
from her2.exchange.slides import match_slides, names_of, other_names

_EXAMPLES = 3


def given_problems(config: Config, cohort: Cohort, where: str) -> Iterator[str]:
    """Yield why features that another program computed cannot be those of a cohort's slides.

    The first file of each encoder is opened, to see whether a head can take what it holds.
    """
    for name, section in config.given.items():
        key = f"encoders.{name}"
        if section.format is not None and section.format not in form_names():
            yield (
                f"{key}.format: {section.format!r} is no form of feature files; they are "
                f"{', '.join(form_names())}"
            )
            continue
        matched = match_slides(cohort, section.path, section.format)
        if not matched.files:
            yield f"{key}.path: {_unmatched(section, cohort, where, matched)}"
            continue
        vectors = _first_of_slides(matched, section)
        refused = [n for n, head in config.heads.items() if not head.takes_vectors]
        if vectors is not None and refused:
            taking = sorted(n for n, head in HEADS.items() if head.takes_vectors)
            yield (
                f"{key}: its files hold one vector a slide (as {vectors.name}), and the heads "
                f"{', '.join(refused)} weigh the tiles of a slide; keep only heads that take "
                f"slide vectors: {', '.join(taking)}"
            )


def _unmatched(section: GivenSection, cohort: Cohort, where: str, matched: MatchedFiles) -> str:
    """Return that no file is of any slide, with names of both, or the reasons of ambiguous ones."""
    folders = ", ".join(repr(str(folder)) for folder in section.path)
    if matched.ambiguous:
        some = [f"{slide}: {why}" for slide, why in islice(matched.ambiguous.items(), _EXAMPLES)]
        return f"no file of {folders} can be taken for a slide of {where}; {'; '.join(some)}"
    if not matched.unused:
        return f"{folders}: no feature files are there; name the folder that holds them"
    files = ", ".join(path.name for path in matched.unused[:_EXAMPLES])
    slides = ", ".join(row.slide_id for row in cohort.rows[:_EXAMPLES])
    return (
        f"no file of {folders} is of any slide of {where}: the files are {files}, ..., the slides "
        f"{slides}, ...; name files like `slide_id` or like the file in `path`"
    )


def _first_of_slides(matched: MatchedFiles, section: GivenSection) -> Path | None:
    """Return the first file that can be read, if it holds a vector of the whole slide."""
    for path in matched.files.values():
        with suppress(SlideError), reading(path.name):
            return path if read_given(path, section.format).level == "slide" else None
    return None  # the job says of each why not


def file_problems(config: Config, cohort: Cohort) -> Iterator[str]:
    """Yield which slides a run would leave out, by what their feature files say of themselves.

    Every file is opened, and no features are read. Folders and forms are taken to be right.
    """
    for name, section in config.given.items():
        matched = match_slides(cohort, section.path, section.format)
        found: dict[str, Given] = {}
        for row in cohort.rows:
            slide = f"slide {row.slide_id!r}, encoder {name}"
            path = matched.files.get(row.slide_id)
            if path is None:
                yield f"{slide}: {matched.ambiguous.get(row.slide_id, 'has no feature file')}"
                continue
            try:
                with reading(row.slide_id):
                    given = read_given(path, section.format)
            except SlideError as error:
                yield f"{slide}: {error}"
                continue
            checked = check_given(given, names=names_of(row), others=other_names(cohort, row))
            yield from (f"{slide}: {path.name}: {why}" for why in checked.problems)
            if given.rows:
                found[row.slide_id] = given
        kinds = {slide_id: (one.level, one.dimension) for slide_id, one in found.items()}
        for slide_id, why in mixed_dimensions(kinds).items():
            yield f"slide {slide_id!r}, encoder {name}: {found[slide_id].path.name}: {why}"
