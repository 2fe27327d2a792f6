"""What an import writes: the manifest, a config that runs, what was decided, and the sheets.

Files that somebody else made or changed are never written over: `import.json` names what was
written, with digests.
"""

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from her2.cohort.columns import COLUMNS
from her2.core.errors import UserError, problem_list
from her2.core.files import file_digest, write_json, write_text
from her2.core.paths import user_path
from her2.core.reading import path_problem, read_json
from her2.core.spelling import has_controls, printable
from her2.importing.found import Found, ImportedSlide
from her2.importing.preset import as_user_path

MANIFEST = "slides.csv"
RECORD = "import.json"
_OPTIONAL = ("site", "scanner", "split", "mpp", "annotation")


def manifest_text(slides: Sequence[ImportedSlide], root: Path) -> str:
    """Return the text of a manifest whose relative paths start at `root`; CSV, UTF-8.

    Files that are not below `root` are named in full. Optional columns without a value are left
    out, label columns are not.
    """
    rows = [_row(one, root) for one in slides]
    labels = dict.fromkeys(name for one in slides for name in one.labels)
    further = dict.fromkeys(name for one in slides for name in one.further)
    optional = [name for name in (*_OPTIONAL, *further) if any(row.get(name) for row in rows)]
    stream = io.StringIO()
    header = ["slide_id", "path", "patient_id", *labels, *optional]
    writer = csv.DictWriter(stream, header, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def slide_problems(slides: Sequence[ImportedSlide], root: Path) -> list[str]:
    """Return what no manifest can hold: ids, files that are there twice, odd names and cells.

    `root` is where its relative paths start.
    """
    declared = {column.name: column for column in COLUMNS}
    found = []
    files: dict[Path, list[str]] = {}
    ids: dict[str, list[str]] = {}
    for one in slides:
        where = f"slide {printable(str(one.path))!r}"
        for name in ("slide_id", "patient_id"):
            try:
                declared[name].parse(getattr(one, name))
            except ValueError as error:
                found.append(f"{where}: {name} {error}")
        for name, path in (("path", one.path), ("annotation", one.annotation)):
            try:
                if path is not None and path != path.with_name(path.name.rstrip()):
                    raise ValueError(f"{path.name!r} ends with a space; rename it")
                if path is not None:
                    user_path(_cell(path, root))
            except ValueError as error:
                found.append(f"{where}: {name} {error}")
        if taken := sorted({*one.labels, *one.further} & declared.keys()):
            found.append(f"{where}: {', '.join(taken)} cannot be the name of a further column")
        cells = {"site": one.site, "scanner": one.scanner, "split": one.split}
        for name, cell in (cells | dict(one.labels) | dict(one.further)).items():
            if has_controls(cell) or has_controls(name):
                found.append(
                    f"{where}: column {printable(name)!r}: {cell!r} has a line break or another "
                    "control character"
                )
        if one.annotation is not None and (problem := path_problem(one.annotation)):
            found.append(f"{where}: annotation {str(one.annotation)!r} {problem}")
        files.setdefault(one.path, []).append(one.slide_id)
        ids.setdefault(one.slide_id.casefold(), []).append(printable(str(one.path)))
    found += [
        f"slide {printable(str(path))!r} is listed {len(names)} times, as {', '.join(names)}"
        for path, names in files.items()
        if len(names) > 1
    ]
    found += [
        f"slide_id {name!r} is that of {len(paths)} files: {', '.join(paths)}"
        for name, paths in ids.items()
        if len(set(paths)) > 1
    ]
    return found


def publish(
    out: Path, texts: Mapping[str, str], record: Mapping[str, Any], found: Found, *, force: bool
) -> None:
    """Write an import's files, and `import.json` with their digests.

    Args:
        out: the folder; made if it is not there.
        texts: name -> text of the files.
        record: what `import.json` says besides.
        found: whose inputs may be written over, since what they said has been read.
        force: also write over what others made or changed.

    Raises:
        UserError: files would be written over; nothing has been written then.
    """
    texts = {name: _in_utf8(text) for name, text in texts.items()}
    record = {name: _in_utf8(value) for name, value in record.items()}
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    if not force:
        check_free(out, digests, found.inputs)
    earlier = _earlier(out)
    kept = {name: known for name, known in earlier.items() if (out / name).is_file()}
    # Both states count as written here until all files are, in case this process is stopped.
    write_json(out / RECORD, {**record, "files": _both(kept, digests)})
    for name, text in texts.items():
        write_text(out / name, text)
    write_json(out / RECORD, {**record, "files": kept | {k: [v] for k, v in digests.items()}})


def _in_utf8(value: Any) -> Any:
    """Return a value whose texts are UTF-8, as the names of files need not be."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_in_utf8(name): _in_utf8(one) for name, one in value.items()}
    return [_in_utf8(one) for one in value] if isinstance(value, list | tuple) else value


def check_free(out: Path, digests: Mapping[str, str], inputs: Sequence[Path] = ()) -> None:
    """Check that nothing is lost when an import writes its files into a folder.

    Args:
        out: the folder.
        digests: name -> digest of what will be written; "" if that is not known yet.
        inputs: files that may be written over, since what they say has been read.

    Raises:
        UserError: others made or changed some of the files.
    """
    if problems := [*_not_ours(out, digests, _earlier(out), inputs)]:
        raise problem_list(
            f"--out {out}: nothing was written, since files that `her2 import` did not write would "
            "be lost; move them, name another folder, or add --force",
            problems,
        )


def _both(earlier: Mapping[str, list[str]], digests: Mapping[str, str]) -> dict[str, list[str]]:
    names = dict.fromkeys([*earlier, *digests])
    new = {name: [digests[name]] if name in digests else [] for name in names}
    return {name: sorted({*earlier.get(name, ()), *new[name]}) for name in names}


def _earlier(out: Path) -> dict[str, list[str]]:
    """Return name -> digests of the files that earlier imports wrote into a folder."""
    path = out / RECORD
    if path_problem(path) is not None:
        return {}
    try:
        known = read_json(path)
        return {str(name): [str(one) for one in found] for name, found in known["files"].items()}
    except (UserError, KeyError, TypeError, AttributeError):
        return {}


def _not_ours(
    out: Path,
    digests: Mapping[str, str],
    earlier: Mapping[str, list[str]],
    inputs: Sequence[Path],
) -> Iterator[str]:
    """Yield why files may not be written over."""
    read = {path.absolute() for path in inputs}
    record = out / RECORD
    if record.exists() and not earlier:
        yield f"{RECORD}: was not written by `her2 import`"
    for name, new in digests.items():
        path = out / name
        if not (path.exists() or path.is_symlink()) or path.absolute() in read:
            continue
        if not path.is_file():
            yield f"{name}: is not a file"
        elif (now := file_digest(path)) != new and now not in earlier.get(name, ()):
            changed = "was changed since it was" if name in earlier else "was not"
            yield f"{name}: {changed} written by an import"


def _row(one: ImportedSlide, root: Path) -> dict[str, str]:
    annotation = "" if one.annotation is None else _cell(one.annotation, root)
    return {
        "slide_id": one.slide_id,
        "path": _cell(one.path, root),
        "patient_id": one.patient_id,
        "site": one.site,
        "scanner": one.scanner,
        "split": one.split,
        "mpp": "" if one.mpp is None else f"{one.mpp:.9g}",
        "annotation": annotation,
        **one.labels,
        **one.further,
    }


def _cell(path: Path, root: Path) -> str:
    if path.is_relative_to(root):
        return as_user_path(path.relative_to(root))
    return as_user_path(path.absolute())
