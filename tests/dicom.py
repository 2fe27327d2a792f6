"""A DICOM whole-slide image, as small as OpenSlide opens one: the few elements it asks for.

Written by hand, explicit little endian (PS3.5 7.1.2, A.4), because the environment has no DICOM
library. One file is one level: VL Whole Slide Microscopy Image (PS3.3 A.32.8), tiles in rows.
"""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
ROOT = "2.25.11"
_LONG = {"OB", "OW", "SQ", "UN", "UT"}


def write_dicom(
    path: Path, image: np.ndarray, *, mpp: float, level: int = 0, tile: int = 64
) -> Path:
    """Write RGB (h, w, 3) uint8 as one level of a slide; all levels share a series."""
    height, width = image.shape[:2]
    uid = f"{ROOT}.{level + 1}"
    frames = [
        _jpeg(image[y : y + tile, x : x + tile], tile)
        for y in range(0, height, tile)
        for x in range(0, width, tile)
    ]
    spacing = f"{mpp / 1000:.9g}"
    measures = _item(
        _text(0x0018, 0x0050, "DS", "0.001") + _text(0x0028, 0x0030, "DS", rf"{spacing}\{spacing}")
    )
    shared = _item(_element(0x0028, 0x9110, "SQ", measures))
    data = b"".join(
        [
            _text(
                0x0008,
                0x0008,
                "CS",
                rf"{'ORIGINAL' if level == 0 else 'DERIVED'}\PRIMARY\VOLUME\NONE",
            ),
            _text(0x0008, 0x0016, "UI", SOP_CLASS),
            _text(0x0008, 0x0018, "UI", uid),
            _text(0x0008, 0x0060, "CS", "SM"),
            _text(0x0020, 0x000D, "UI", f"{ROOT}.1000"),
            _text(0x0020, 0x000E, "UI", f"{ROOT}.1001"),
            _text(0x0020, 0x0013, "IS", str(level + 1)),
            _text(0x0020, 0x9311, "CS", "TILED_FULL"),
            _short(0x0028, 0x0002, 3),
            _text(0x0028, 0x0004, "CS", "YBR_FULL_422"),
            _short(0x0028, 0x0006, 0),
            _text(0x0028, 0x0008, "IS", str(len(frames))),
            _short(0x0028, 0x0010, tile),
            _short(0x0028, 0x0011, tile),
            _short(0x0028, 0x0100, 8),
            _short(0x0028, 0x0101, 8),
            _short(0x0028, 0x0102, 7),
            _short(0x0028, 0x0103, 0),
            _text(0x0028, 0x2110, "CS", "01"),
            _element(0x0048, 0x0006, "UL", struct.pack("<I", width)),
            _element(0x0048, 0x0007, "UL", struct.pack("<I", height)),
            _element(0x5200, 0x9229, "SQ", shared),
            _frames(frames),
        ]
    )
    meta = b"".join(
        [
            _element(0x0002, 0x0001, "OB", b"\0\1"),
            _text(0x0002, 0x0002, "UI", SOP_CLASS),
            _text(0x0002, 0x0003, "UI", uid),
            _text(0x0002, 0x0010, "UI", JPEG_BASELINE),
            _text(0x0002, 0x0012, "UI", f"{ROOT}.1002"),
        ]
    )
    length = _element(0x0002, 0x0000, "UL", struct.pack("<I", len(meta)))
    path.write_bytes(bytes(128) + b"DICM" + length + meta + data)
    return path


def _jpeg(pixels: np.ndarray, tile: int) -> bytes:
    whole = np.full((tile, tile, 3), 255, np.uint8)
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, "JPEG", quality=95, subsampling="4:2:2")
    return buffer.getvalue()


def _element(group: int, number: int, kind: str, value: bytes) -> bytes:
    head = struct.pack("<HH2s", group, number, kind.encode())
    size = struct.pack("<HI", 0, len(value)) if kind in _LONG else struct.pack("<H", len(value))
    return head + size + value


def _text(group: int, number: int, kind: str, value: str) -> bytes:
    padding = "\0" if kind == "UI" else " "
    return _element(group, number, kind, (value + padding * (len(value) % 2)).encode())


def _short(group: int, number: int, value: int) -> bytes:
    return _element(group, number, "US", struct.pack("<H", value))


def _item(value: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value)) + value


def _frames(frames: list[bytes]) -> bytes:
    """Encapsulated pixel data: an offset table, one item a frame, a delimiter."""
    items = [frame + b"\0" * (len(frame) % 2) for frame in frames]
    offsets, position = [], 0
    for item in items:
        offsets.append(position)
        position += 8 + len(item)
    table = _item(struct.pack(f"<{len(offsets)}I", *offsets))
    content = table + b"".join(_item(item) for item in items)
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + content + end
