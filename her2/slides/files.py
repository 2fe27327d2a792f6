"""The files that make up a slide, for the multi-file formats that OpenSlide opens.

An index is checked before it is used: the files it names must exist in its folder or below it. That
is stricter than OpenSlide. Source: https://openslide.org/formats/ and OpenSlide's own readers.
"""

import codecs
import configparser
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath

from her2.core.errors import SlideError

_HEAD_BYTES = 1 << 16
"""OpenSlide rejects longer Hamamatsu indexes, and a DICOM file's UIDs lie within these bytes."""

_SERIES_UID = re.compile(rb"\x20\x00\x0d\x00UI..[\d.]+[\0 ]?\x20\x00\x0e\x00UI(..)", re.DOTALL)
"""DICOM's Series Instance UID (0020,000E) up to its length, in explicit little endian, as OpenSlide
requires. A file's own follows (0020,000D) directly; those of files it refers to do not.
"""
_INSTANCE_UID = re.compile(rb"\x08\x00\x18\x00UI(..)", re.DOTALL)
"""DICOM's SOP Instance UID (0008,0018)."""

_HAMAMATSU = re.compile(r"ImageFile.*|MapFile|MacroImage|OptimisationFile")
_INDEX_KEYS = {
    "Virtual Microscope Specimen": _HAMAMATSU,
    "Uncompressed Virtual Microscope Specimen": _HAMAMATSU,
    "NanoZoomer Digital Pathology Image Set": re.compile(r"Image\d+"),
}
"""Sections of Hamamatsu's indexes -> their keys whose values are files."""
_NOT_NEEDED = "OptimisationFile"
"""Holds positions that OpenSlide otherwise searches for, so the px are the same without it."""
_INDEX_SUFFIXES = (".vms", ".vmu", ".ndpis")
_MIRAX_KEYS = {"HIERARCHICAL": re.compile("INDEXFILE"), "DATAFILE": re.compile(r"FILE_\d+")}
_SHOWN = 5


def companions(path: Path) -> list[Path] | None:
    """Return all files of a MIRAX, Hamamatsu VMS, VMU, NDPIS or DICOM slide, `path` among them.

    They are in an order that does not depend on the file system, within the folder of `path`. None
    for any other format, whose slides are single files.

    Raises:
        SlideError: a file of the slide is absent or outside its folder.
        OSError: a file cannot be read.
    """
    if path.suffix.lower() == ".mrxs":
        return _mirax(path)
    head = _head(path)
    if head[128:132] == b"DICM":
        return _dicom(path, head)
    section = _index_section(head)
    if section is not None:
        return _indexed(path, section)
    if path.suffix.lower() in _INDEX_SUFFIXES:
        raise SlideError(f"{path.name} does not list the slide's files; copy it again")
    return None


def _mirax(path: Path) -> list[Path]:
    folder = path.with_suffix("")
    if not folder.is_dir():
        raise SlideError(
            f"the folder {folder.name} with the image data of {path.name} is missing; copy it "
            "beside the file"
        )
    index = folder / "Slidedat.ini"
    if index.is_file():
        _check_named(f"{folder.name}/{index.name}", folder, _names(index, _MIRAX_KEYS))
    return [path, *(item for item in sorted(folder.rglob("*")) if item.is_file())]


def _index_section(head: bytes) -> str | None:
    """Return the section of a Hamamatsu index, or None for any other file."""
    if b"\0" in head or len(head) == _HEAD_BYTES:
        return None
    lines = {line.strip() for line in head.removeprefix(codecs.BOM_UTF8).splitlines()}
    return next((name for name in _INDEX_KEYS if f"[{name}]".encode() in lines), None)


def _indexed(path: Path, section: str) -> list[Path]:
    """Return a Hamamatsu index and the files it names."""
    named = _names(path, {section: _INDEX_KEYS[section]})
    if not (path.parent / named.get(_NOT_NEEDED, "")).is_file():
        named.pop(_NOT_NEEDED, None)
    _check_named(path.name, path.parent, named)
    return [path, *dict.fromkeys(path.parent / name for name in named.values())]


def _names(index: Path, keys: Mapping[str, re.Pattern[str]]) -> dict[str, str]:
    """Return key -> file name from an INI-like index."""
    parser = configparser.ConfigParser(
        delimiters=("=",), comment_prefixes=("#",), strict=False, interpolation=None
    )
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    lines = index.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    try:
        parser.read_string("\n".join(line.strip() for line in lines))
    except configparser.Error:
        raise SlideError(f"{index.name} is damaged; copy it again") from None
    return {
        key: name
        for section, pattern in keys.items()
        if parser.has_section(section)
        for key, name in parser[section].items()
        if name and pattern.fullmatch(key)
    }


def _check_named(index: str, folder: Path, named: Mapping[str, str]) -> None:
    """Raise a SlideError unless all files that an index names are in its folder."""
    paths = {name: PurePosixPath(name.replace("\\", "/")) for name in named.values()}
    outside = [name for name, path in paths.items() if path.is_absolute() or ".." in path.parts]
    if outside:
        raise SlideError(
            f"{index} names {_listed(outside)}, outside its folder; put the slide's files beside "
            "it and write their names without folders"
        )
    absent = [name for name in named.values() if not (folder / name).is_file()]
    if absent:
        raise SlideError(
            f"{index} names {_listed(absent)}, missing in its folder; copy the slide's files there"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _dicom(path: Path, head: bytes) -> list[Path]:
    """Return the files of a DICOM file's series in the order of their UIDs."""
    series = _uid(_SERIES_UID, head)
    if not series:
        raise SlideError(
            f"{path.name} has no Series Instance UID near its start, so the files of its series "
            "are unknown; export it again in explicit little endian"
        )
    found = []
    with os.scandir(path.parent) as entries:
        for entry in entries:
            # OpenSlide skips unreadable files; here, a level of the slide must not be skipped.
            if not entry.is_file() or not (
                entry.name.endswith(".dcm") or os.access(entry, os.R_OK)
            ):
                continue
            state = entry.stat()
            other, instance = _uids(Path(entry), state.st_size, state.st_mtime_ns)
            if other == series:
                found.append((instance, entry.name))
    return [path.parent / name for _, name in sorted(found)]


@lru_cache(maxsize=1 << 16)
def _uids(path: Path, size: int, mtime_ns: int) -> tuple[bytes, bytes]:
    """Return the series and instance UIDs; cached, because many slides may share a folder."""
    head = _head(path)
    return _uid(_SERIES_UID, head), _uid(_INSTANCE_UID, head)


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_HEAD_BYTES)


def _uid(element: re.Pattern[bytes], head: bytes) -> bytes:
    """Return a UID near the start of a DICOM file, or empty bytes."""
    found = element.search(head)
    if found is None:
        return b""
    return head[found.end() : found.end() + int.from_bytes(found[1], "little")]
