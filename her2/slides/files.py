"""Stage 1, tile and embed: which files make a slide."""

from pathlib import Path

_HEAD_BYTES = 1 << 16
_SERIES_UID, _INSTANCE_UID = b"\x20\x00\x0e\x00UI", b"\x08\x00\x18\x00UI"
"""DICOM's tags (0020,000E) and (0008,0018), as they stand in a file."""

_SEVERAL_FILES = {".vms", ".vmu", ".ndpis"}
"""Formats whose index names its files; they are read where they lie."""


def files_of(path: Path) -> list[Path]:
    """All files of a slide; none for a format whose files are not known by their names."""
    suffix = path.suffix.lower()
    if suffix in _SEVERAL_FILES:
        return []
    if suffix == ".mrxs":
        companion = path.with_suffix("")
        return [path, *(file for file in sorted(companion.rglob("*")) if file.is_file())]
    if suffix == ".dcm":
        return sorted(path.parent.glob("*.dcm"))
    return [path]


def parts_of(path: Path) -> list[Path]:
    """The files whose bytes identify a slide."""
    companion = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and companion.is_dir():
        return [path, *sorted(item for item in companion.iterdir() if item.is_file())]
    if path.suffix.lower() == ".dcm":
        series = _dicom_uid(path, _SERIES_UID)
        others = [item for item in path.parent.glob("*.dcm") if item != path]
        found = [path, *(item for item in others if _dicom_uid(item, _SERIES_UID) == series)]
        return sorted(found, key=lambda item: (_dicom_uid(item, _INSTANCE_UID), item.name))
    return [path]


def _dicom_uid(path: Path, tag: bytes) -> bytes:
    """A UID near the start of a DICOM file (explicit little endian); empty where there is none."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    place = head.find(tag)
    size = int.from_bytes(head[place + 6 : place + 8], "little")
    return head[place + 8 : place + 8 + size] if place >= 0 else b""
