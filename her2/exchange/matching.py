"""Features of other programs: which file belongs to which slide."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from her2.core.barcodes import SlideName, slide_name
from her2.core.spelling import SPELLINGS, words_of

_SLIDE_SUFFIXES = frozenset(
    (".svs", ".tif", ".tiff", ".ome", ".ndpi", ".vms", ".vmu", ".ndpis", ".mrxs", ".scn",
     ".svslide", ".bif", ".czi", ".dcm", ".qptiff", ".jpg", ".jpeg", ".png")
)  # fmt: skip
"""Suffixes that names of feature files may keep of the slide: `A-001.svs.h5`, `A-001.ome.tif`."""


@dataclass(frozen=True, slots=True)
class MatchedFiles:
    """Which feature file belongs to which slide.

    Attributes:
        files: slide id -> its file.
        without: slide ids without a file.
        ambiguous: slide id -> why no file is taken for it, with the names of all that could be
            meant, and the fix.
        unused: files that are taken for no slide, and are not among the ambiguous.
    """

    files: Mapping[str, Path]
    without: tuple[str, ...]
    ambiguous: Mapping[str, str]
    unused: tuple[Path, ...]


def match_given(slides: Mapping[str, Path | None], files: Iterable[Path]) -> MatchedFiles:
    """Match files with slides: by slide id, then stem of the slide's file, then TCGA barcode.

    A name that is spelt as written counts before one that is spelt alike (case, spaces and other
    signs, leading zeros). A slide that has a file keeps it, whatever the weaker ways say. Nothing
    is taken that two slides, or two files, could mean equally well.

    Args:
        slides: slide id -> the slide's file, None for a slide that is absent.
        files: feature files, as `given_files` returns them.
    """
    listed = list(dict.fromkeys(files))
    found: dict[str, Path] = {}
    ambiguous: dict[str, str] = {}
    taken: set[Path] = set()
    disputed: set[Path] = set()
    for way in _ways():
        owners = _by_key(slides, way)
        meant = {
            path: slide_ids
            for path in listed
            if path not in taken and (slide_ids := _owners(path, owners, way))
        }
        claims: dict[str, list[Path]] = {}
        for path, slide_ids in meant.items():
            for slide_id in slide_ids:
                claims.setdefault(slide_id, []).append(path)
        for slide_id, paths in claims.items():
            if slide_id in found or slide_id in ambiguous:
                continue
            rivals = sorted({one for path in paths for one in meant[path]})
            if len(paths) == 1 and len(rivals) == 1:
                found[slide_id] = paths[0]
            else:
                ambiguous[slide_id] = _refusal(paths, rivals, way.words)
                disputed.update(paths)
        taken.update(meant)
    used = disputed | set(found.values())
    return MatchedFiles(
        files={slide_id: found[slide_id] for slide_id in slides if slide_id in found},
        without=tuple(one for one in slides if one not in found and one not in ambiguous),
        ambiguous={one: ambiguous[one] for one in slides if one in ambiguous},
        unused=tuple(path for path in listed if path not in used),
    )


@dataclass(frozen=True, slots=True)
class _Way:
    """A way in which a slide and a feature file can have the same name, spelt alike."""

    words: str
    of_slide: Callable[[str, Path | None], list[str]]
    of_file: Callable[[Path], list[str]]
    spelt: Callable[[str], Hashable]


def _ways() -> Iterator[_Way]:
    """Yield the ways, the strongest first."""
    for spelt in SPELLINGS:
        yield _Way("slide id", _id, _stems, spelt)
        yield _Way("name of the slide's file", _stems_of_slide, _stems, spelt)
    yield _Way("TCGA barcode", _barcodes_of_slide, _barcodes_of_file, str)


def _id(slide_id: str, _: Path | None) -> list[str]:
    return [slide_id]


def _stems_of_slide(_: str, path: Path | None) -> list[str]:
    return [] if path is None else _stems(path)


def _stems(path: Path) -> list[str]:
    """Return the names that a file may mean: without its suffix, and without the slide's."""
    found = [path.stem]
    while Path(found[-1]).suffix.lower() in _SLIDE_SUFFIXES:
        found.append(Path(found[-1]).stem)
    return [name for name in found if words_of(name)]


def _barcodes_of_slide(slide_id: str, path: Path | None) -> list[str]:
    return [one.slide for one in _barcodes(slide_id, path)]


def _barcodes_of_file(path: Path) -> list[str]:
    return [one.slide for one in _barcodes("", path)]


def _barcodes(slide_id: str, path: Path | None) -> list[SlideName]:
    """Return the barcodes in a slide's id and in the name of its file; one with a UUID first."""
    names = [slide_name(name) for name in (slide_id, path.name if path else "")]
    return sorted((one for one in names if one is not None), key=lambda one: not one.uuid)


def _by_key(slides: Mapping[str, Path | None], way: _Way) -> dict[Hashable, dict[str, str]]:
    """Return key -> the slides that have it, as slide id -> UUID of the scan, "" if not known."""
    found: dict[Hashable, dict[str, str]] = {}
    for slide_id, path in slides.items():
        names = _barcodes(slide_id, path)
        for name in way.of_slide(slide_id, path):
            found.setdefault(way.spelt(name), {})[slide_id] = names[0].uuid if names else ""
    return found


def _owners(path: Path, owners: Mapping[Hashable, Mapping[str, str]], way: _Way) -> list[str]:
    """Return the slides that a file means; not one of the same barcode and another scan's UUID."""
    own = next(iter(_barcodes("", path)), None)
    uuid = own.uuid if own else ""
    for name in way.of_file(path):
        if meant := owners.get(way.spelt(name)):
            return [one for one, other in meant.items() if not (uuid and other) or uuid == other]
    return []


def _refusal(paths: list[Path], rivals: list[str], words: str) -> str:
    if len(paths) > 1:
        shown = ", ".join(map(str, paths))
        return (
            f"{len(paths)} feature files have its {words}: {shown}; name the folder of one encoder "
            "and one form, or move the others away"
        )
    return (
        f"the feature file {paths[0]} could be that of the slides {', '.join(rivals)}, which have "
        f"the same {words}; rename it to the slide id of the one it belongs to"
    )
