"""The slides of a hospital's cases: which files, which scans, and under which ids."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from her2.core.errors import UserError
from her2.core.spelling import folded_id, look_alikes, printable, words_of
from her2.importing.cases import Case
from her2.importing.found import LeftOut
from her2.importing.labels import legal_ids
from her2.importing.matching import (
    SLIDE_SUFFIXES,
    Matched,
    match_by_name,
    scan_group,
    slide_files,
    unfinished_files,
)
from her2.importing.rescans import Choice, ScanGroup, copies_of

RESCANS = "rescans.csv"
_STAINS = frozenset(
    ("her2", "her2neu", "erbb2", "er", "pr", "pgr", "ki67", "ki", "ihc", "ihk", "iq", "ish", "fish",
     "cish", "sish", "dish", "ddish", "dab", "p53", "p63", "ck5", "ck7", "ck14", "ecad", "gata3")
)  # fmt: skip
_HE = frozenset(("he", "hes", "hp", "h", "haematoxylin", "hematoxylin"))


@dataclass(slots=True)
class CaseSlides:
    """The files of each case, and why others are left out.

    Attributes:
        of: name of a case -> its slides, for cases that have some.
        left_out: files that are no slides of the cohort, with the reasons.
        problems: what has to be mended before anything can be imported.
        rules: sentences on what was decided.
        conflicts: sentences on names that contradict the sheet.
        names: file -> the name that its id is made of.
        without: names of the cases that no file is called after.
    """

    of: dict[str, list[Path]]
    left_out: list[LeftOut]
    problems: list[str]
    rules: list[str]
    conflicts: list[str]
    names: Mapping[Path, str]
    without: frozenset[str]

    def leave_out(self, folder: Path, reasons: Mapping[Path, str]) -> None:
        self.of = {
            name: kept
            for name, paths in self.of.items()
            if (kept := [path for path in paths if path not in reasons])
        }
        self.left_out += [LeftOut(below(path, folder), why) for path, why in reasons.items()]


def find_case_slides(
    cases: Sequence[Case], folder: Path, suffix: list[str] | None, column: str
) -> CaseSlides:
    """Find the files of each case.

    Raises:
        UserError: there are no files, or no case has one.
    """
    suffixes = {f".{one.lower().lstrip('.')}" for one in suffix or ()} or SLIDE_SUFFIXES
    paths = slide_files(folder, suffixes)
    if not paths:
        what = f"with the suffix {', '.join(sorted(suffixes))}" if suffix else "that can be a slide"
        raise UserError(f"--slides {folder}: has no file {what}.")
    matched = match_by_name([case.name for case in cases], paths)
    titles = {path: path.stem for path in paths}
    if not matched.files and not matched.ambiguous:
        matched, titles = _match_by_folder(cases, paths, folder)
    if not matched.files and not matched.ambiguous:
        raise UserError(
            f"no file or folder below {folder} begins with a text of the column {column!r}. It has "
            f"texts such as {', '.join(examples_of(case.name for case in cases))}; files are "
            f"called {', '.join(examples_of(path.name for path in paths))}. Name with "
            "--column slide=... the column that file names begin with."
        )
    owners = {case.name: case for case in cases}
    problems = [
        f"{below(path, folder)} fits equally well to {' and '.join(str(owners[n]) for n in names)}"
        "; write them the same in the sheet, or name the column with the files by --column slide="
        for path, names in matched.ambiguous.items()
    ]
    left_out = [LeftOut(below(path, folder), "has no row in the sheet") for path in matched.unnamed]
    left_out += [
        LeftOut(below(path, folder), "its download is not finished")
        for path in unfinished_files(folder)
    ]
    found = CaseSlides(
        dict(matched.files), left_out, problems, [], [], titles, frozenset(matched.without)
    )
    if any(titles[path] != path.stem for path in paths):
        found.rules.append("no file begins with such a text, so the names of folders were taken")
    _leave_out_other_stains(found, folder)
    return found


def _match_by_folder(
    cases: Sequence[Case], paths: Sequence[Path], folder: Path
) -> tuple[Matched, dict[Path, str]]:
    """Match files by the nearest folder that is called after a case, as `H2301234/scan1.svs` is.

    Returns:
        the matches, and each file's name with that of its folder.
    """
    names = [case.name for case in cases]
    titles = {path: path.stem for path in paths}
    files: dict[str, list[Path]] = {}
    ambiguous: dict[Path, tuple[str, ...]] = {}
    left, depth = list(paths), 0
    while left:
        depth += 1
        parts = {path: path.relative_to(folder).parent.parts[-depth:] for path in left}
        named = {  # a folder of its own keeps equal names apart
            Path(str(at), f"{parts[path][0]} {path.stem}.svs"): path
            for at, path in enumerate(left)
            if len(parts[path]) == depth
        }
        found = match_by_name(names, named)
        for name, same in found.files.items():
            files.setdefault(name, []).extend(named[one] for one in same)
        ambiguous |= {named[one]: same for one, same in found.ambiguous.items()}
        titles |= {named[one]: one.stem for one in {*named} - {*found.unnamed}}
        left = [named[one] for one in found.unnamed]
    known = {path for same in files.values() for path in same} | ambiguous.keys()
    return Matched(
        {name: sorted(files[name]) for name in names if name in files},
        tuple(name for name in names if name not in files),
        tuple(path for path in paths if path not in known),
        ambiguous,
    ), titles


def _leave_out_other_stains(files: CaseSlides, folder: Path) -> None:
    """Leave out files whose name beyond that of their case names a stain other than H&E.

    Where the sheet has the whole name, it is the sheet that says that this is a slide of the
    cohort, and the contradiction is named.
    """
    reasons = {}
    for name, paths in files.of.items():
        length = len(words_of(name))
        for path in paths:
            words = words_of(scan_group(Path(f"{files.names[path]}.svs")))
            further = words[length:] or words[-1:]
            stains = ", ".join(sorted({*further} & _STAINS)).upper()
            if not stains or {*words} & _HE:
                continue
            if words[length:]:
                reasons[path] = (
                    f"is not H&E by its name ({stains}); if it is, give its whole name in the "
                    "column of --column slide="
                )
            else:
                files.conflicts.append(
                    f"{below(path, folder)}: its name says {stains}, and the sheet has it as a "
                    "slide; if it is not H&E, take its row out"
                )
    files.leave_out(folder, reasons)


def leave_out_copies(files: CaseSlides, folder: Path) -> None:
    """Leave out copies of a case's own slides.

    One file as slides of two cases is a contradiction, which is found when slides are opened.
    """
    owner = {path: name for name, paths in files.of.items() for path in paths}
    copies: dict[Path, str] = {}
    for same in copies_of(list(owner)):
        first_of: dict[str, Path] = {}
        for path in same:
            first = first_of.setdefault(owner[path], path)
            if first != path:
                copies[path] = f"is a copy of {below(first, folder)}, to the byte"
    files.leave_out(folder, copies)
    if copies:
        files.rules.append(f"copies of other files that were left out: {len(copies):,}")


def choose_scans(
    files: CaseSlides, groups: Sequence[ScanGroup], choice: Choice | None, folder: Path
) -> list[str]:
    """Leave out the scans that were not chosen; say what has to be chosen, or why it cannot be."""
    if not groups:
        return []
    if choice is None:
        return listed(
            f"glasses that seem to have been scanned several times: {len(groups):,}. Add --rescans "
            "last (the highest number), first, or all (if they are different slides):",
            [", ".join(below(path, folder) for path in group.files) for group in groups],
        )
    kept = [group.chosen(choice) for group in groups]
    unclear = [
        f"{group.name}: " + ", ".join(below(path, folder) for path in paths)
        for group, paths in zip(groups, kept, strict=True)
        if choice != "all" and len(paths) > 1
    ]
    dropped = {path for group in groups for path in group.files} - {p for one in kept for p in one}
    why = f"is another scan of a glass of which --rescans {choice} uses one"
    files.leave_out(folder, dict.fromkeys(sorted(dropped), why))
    files.rules.append(
        f"--rescans {choice}: glasses with several scans: {len(groups):,}; scans that were left "
        f"out: {len(dropped):,} ({RESCANS})"
    )
    return listed(
        f"--rescans {choice}: their names do not say which scan that is. Rename them, move one "
        "elsewhere, or take --rescans all:",
        unclear,
    )


def id_problems(cases: Sequence[Case], files: CaseSlides, folder: Path) -> list[str]:
    """Return the patients and files that cannot be told apart by their ids."""
    patients = list(dict.fromkeys(case.patient for case in cases))
    ids, same = legal_ids(patients)
    found = [
        f"patients {' and '.join(map(repr, texts))} would both be {one!r}; write them the same if "
        "they are one, or give them ids of their own in the sheet"
        for one, texts in [*same.items(), *_alike(ids)]
    ]
    found += [
        f"patient {one!r}: no letter or digit is left for an id" for one in ids if not ids[one]
    ]
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for case in cases:
        for path in files.of[case.name]:
            by_stem[files.names[path]].append(path)
    ids, same = legal_ids(by_stem)
    groups = list(same.values())
    groups += [[stem] for stem, paths in by_stem.items() if len(paths) > 1 and stem not in
               {text for texts in same.values() for text in texts}]  # fmt: skip
    for stems in groups:
        paths = [path for stem in stems for path in by_stem[stem]]
        found.append(
            f"{' and '.join(below(path, folder) for path in paths)} would both be slide "
            f"{ids[stems[0]]!r}; rename one, or say with --suffix which files are slides"
        )
    found += [
        f"{below(by_stem[one][0], folder)}: no letter or digit of its name is left for an id"
        for one in ids
        if not ids[one]
    ]
    return found


def _alike(ids: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Return ids that a manifest refuses as one, such as 7 and 007, with their texts."""
    owners: dict[str, list[str]] = defaultdict(list)
    for text, one in ids.items():
        owners[one].append(text)
    groups = look_alikes(dict.fromkeys(one.lower() for one in ids.values()), folded_id)
    lower = {one.lower(): one for one in ids.values()}
    return [
        (lower[group[0]], [text for one in group for text in owners[lower[one]]])
        for group in groups
    ]


def rescans_text(groups: Sequence[ScanGroup], files: CaseSlides, folder: Path) -> str:
    """Return the text of a sheet of all scans of glasses with several."""
    used = {path for paths in files.of.values() for path in paths}
    rows = [
        (group.name, str(number), below(path, folder), "yes" if path in used else "no")
        for group in groups
        for path, number in zip(group.files, group.numbers, strict=True)
    ]
    return csv_text([("glass", "number", "file", "used"), *rows])


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Return a CSV with the mark by which spreadsheets know UTF-8."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return f"\ufeff{stream.getvalue()}"


def listed(heading: str, lines: Sequence[str], *, shown: int = 12) -> list[str]:
    """Return a heading and the first lines below it; nothing where there are no lines."""
    if not lines:
        return []
    more = [f"  ... and {len(lines) - shown:,} more"] if len(lines) > shown else []
    return [heading, *(f"  - {line}" for line in lines[:shown]), *more]


def without_row(files: CaseSlides) -> int:
    """Return how many files have no row in the sheet."""
    return sum(one.reason == "has no row in the sheet" for one in files.left_out)


def examples_of(texts: Iterable[str]) -> list[str]:
    """Return the first three different texts, shortened."""
    return [printable(one)[:40] for one in dict.fromkeys(texts) if one][:3]


def below(path: Path, folder: Path) -> str:
    """Return a path from a folder on, for people."""
    return printable(str(path.relative_to(folder)))
