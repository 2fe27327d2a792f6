"""Features of other programs: which file belongs to which slide."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MatchedFiles:
    """Which feature file belongs to which slide.

    Attributes:
        files: slide id -> its file.
        without: slide ids without a file.
        ambiguous: slide id -> why no file is taken for it, with the names of all that could be
            meant, and the fix.
        unused: files that belong to no slide.
    """

    files: Mapping[str, Path]
    without: tuple[str, ...]
    ambiguous: Mapping[str, str]
    unused: tuple[Path, ...]


def match_given(slides: Mapping[str, Path | None], files: Iterable[Path]) -> MatchedFiles:
    """Match files with slides: by slide id, then stem of the slide's file, then TCGA barcode.

    Args:
        slides: slide id -> the slide's file, None for a slide that is absent.
        files: feature files, as `given_files` returns them.
    """
    raise NotImplementedError
