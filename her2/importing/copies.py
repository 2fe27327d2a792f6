"""Files that would have one id: copies of one slide, or slides that are not told apart."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from her2.core.crashes import reading
from her2.core.errors import SlideError


def repeated(ids: Mapping[Path, str], folder: Path) -> dict[Path, str]:
    """Return the files to leave out so that ids are unique, and why.

    Of files with the same content, the first is kept. Files of one id with different contents are
    all left out, since one of them may be damaged, or another patient's.

    Args:
        ids: file -> the id that it would have; compared without case.
        folder: where the files' names in the reasons start.
    """
    same: dict[str, list[Path]] = defaultdict(list)
    for path, one in ids.items():
        same[one.casefold()].append(path)
    reasons: dict[Path, str] = {}
    for paths in same.values():
        if len(paths) == 1:
            continue
        first, *others = paths
        contents = {_content(path, ids[path]) for path in paths}
        if len(contents) == 1 and contents != {""}:
            said = f"is a copy of {first.relative_to(folder)}: the same content"
            reasons |= dict.fromkeys(others, said)
            continue
        for path in paths:
            rest = ", ".join(str(one.relative_to(folder)) for one in paths if one != path)
            reasons[path] = (
                f"would have the id of {rest}, whose content is another; delete the wrong one, or "
                "rename one of them"
            )
    return reasons


def _content(path: Path, slide_id: str) -> str:
    """Return a digest of samples of a file, "" if it cannot be read."""
    from her2.slides.fingerprint import fingerprint

    try:
        with reading(slide_id):
            return fingerprint(path)
    except SlideError:
        return ""
