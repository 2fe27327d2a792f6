"""Which files make a slide, in the formats of several files that OpenSlide opens.

Where an index or a folder says which files those are, it is believed only as far as they are there.
Source: https://openslide.org/formats/ and the readers behind it, which take further files from the
slide's folder without asking for more than is listed here.
"""

import codecs
import configparser
import os
from pathlib import Path, PurePosixPath

from her2.core.errors import SlideError

_HEAD_BYTES = 1 << 16
"""OpenSlide reads no Hamamatsu index that is longer, and a DICOM file's UIDs stand within it."""

_DICOM_MAGIC = 128, b"DICM"
_SERIES_UID, _INSTANCE_UID = b"\x20\x00\x0e\x00UI", b"\x08\x00\x18\x00UI"
"""DICOM's tags (0020,000E) and (0008,0018) in a file of explicit little endian, as all are that
OpenSlide opens."""
_WHOLE_SLIDE_CLASS = b"1.2.840.10008.5.1.4.1.1.77.1.6"

_VMS_KEYS = ("ImageFile", "MapFile", "MacroImage", "OptimisationFile")
_INDEX_KEYS = {
    "Virtual Microscope Specimen": _VMS_KEYS,
    "Uncompressed Virtual Microscope Specimen": _VMS_KEYS,
    "NanoZoomer Digital Pathology Image Set": ("Image",),
}
"""Sections of Hamamatsu's indexes, and how the keys begin whose values are files."""
_NOT_NEEDED = "OptimisationFile"
"""It holds positions that OpenSlide otherwise searches for: the px are the same without it."""
_INDEX_SUFFIXES = (".vms", ".vmu", ".ndpis")
_SHOWN = 5


def companions(path: Path) -> list[Path] | None:
    """Return all files of a MIRAX, Hamamatsu VMS, VMU, NDPIS or DICOM slide, `path` among them.

    Returns:
        Files in a fixed order that does not depend on the file system, all within the folder of
        `path`; None for a slide of any other format, which is one file.

    Raises:
        SlideError: a file that belongs to the slide is absent, or outside its folder.
        OSError: a file cannot be read.
    """
    if path.suffix.lower() == ".mrxs":
        return _mirax(path)
    head = _head(path)
    if _is_dicom(head):
        return _dicom(path, head)
    section = _index_section(head)
    if section is not None:
        return _indexed(path, section)
    if path.suffix.lower() in _INDEX_SUFFIXES:
        raise SlideError(f"{path.name} does not say which files make the slide; copy it again")
    return None


def _mirax(path: Path) -> list[Path]:
    folder = path.with_suffix("")
    if not folder.is_dir():
        raise SlideError(
            f"{path.name} lacks its folder {folder.name}, which holds its px; copy it beside the "
            "file"
        )
    return [path, *(item for item in sorted(folder.rglob("*")) if item.is_file())]


def _index_section(head: bytes) -> str | None:
    """The section of a Hamamatsu index, None for another kind of file."""
    if b"\0" in head or len(head) == _HEAD_BYTES:
        return None
    lines = {line.strip() for line in head.removeprefix(codecs.BOM_UTF8).splitlines()}
    return next((name for name in _INDEX_KEYS if f"[{name}]".encode() in lines), None)


def _indexed(path: Path, section: str) -> list[Path]:
    """A Hamamatsu index and the files it names."""
    index = configparser.ConfigParser(
        delimiters=("=",), comment_prefixes=("#",), strict=False, interpolation=None
    )
    index.optionxform = str  # type: ignore[assignment, method-assign]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        index.read_string("\n".join(line.strip() for line in lines))
    except (UnicodeDecodeError, configparser.Error):
        raise SlideError(f"{path.name} is a damaged index; copy it again") from None
    named = {
        key: name
        for key, name in index[section].items()
        if name and key.startswith(_INDEX_KEYS[section])
    }
    outside = [name for name in named.values() if _leaves_folder(name)]
    if outside:
        raise SlideError(
            f"{path.name} names {_listed(outside)}, outside its folder; put the slide's files "
            "beside it, and their plain names into it"
        )
    found = {path.parent / name: key for key, name in named.items()}
    absent = [item for item in found if not item.is_file()]
    needed = [item.name for item in absent if found[item] != _NOT_NEEDED]
    if needed:
        raise SlideError(
            f"{path.name} names {_listed(needed)}, which its folder lacks; copy the slide's files "
            "there"
        )
    return [path, *(item for item in found if item not in absent)]


def _leaves_folder(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/"))
    return parts.is_absolute() or ".." in parts.parts


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _dicom(path: Path, head: bytes) -> list[Path]:
    """The files of a DICOM file's series, in the order of their UIDs, whatever they are called."""
    series = _uid(head, _SERIES_UID)
    if not series:
        raise SlideError(
            f"{path.name} has no Series Instance UID near its start, so the files of its series "
            "are unknown; export it again, in explicit little endian"
        )
    found = [(_uid(head, _INSTANCE_UID), path.name, path)]
    for item in path.parent.iterdir():
        named_so = item.suffix == ".dcm"
        if item.name == path.name or not item.is_file():
            continue
        if not named_so and not os.access(item, os.R_OK):  # OpenSlide passes over it too
            continue
        other = _head(item)
        # A DICOMDIR names a series as well, and is no part of it.
        if _uid(other, _SERIES_UID) == series and (named_so or _WHOLE_SLIDE_CLASS in other):
            found.append((_uid(other, _INSTANCE_UID), item.name, item))
    return [item for _, _, item in sorted(found)]


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_HEAD_BYTES)


def _is_dicom(head: bytes) -> bool:
    return head.startswith(_DICOM_MAGIC[1], _DICOM_MAGIC[0])


def _uid(head: bytes, tag: bytes) -> bytes:
    """A UID near the start of a DICOM file; empty where there is none."""
    place = head.find(tag)
    size = int.from_bytes(head[place + 6 : place + 8], "little")
    return head[place + 8 : place + 8 + size] if place >= 0 else b""
