"""A MIRAX slide, as small as OpenSlide opens one: a grid of PNG images in two data files.

Source: https://openslide.org/formats/mirax/; one zoom level, without overlaps or positions.
"""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

SLIDE_ID = "2F0A1B"


def write_mirax(path: Path, image: np.ndarray, *, mpp: float, tile: int = 64) -> Path:
    """Write RGB (h, w, 3) uint8, sides multiples of `tile`; every other tile in a nested folder."""
    folder = path.with_suffix("")
    (folder / "deep").mkdir(parents=True)
    rows, columns = (side // tile for side in image.shape[:2])
    files = ("Data0000.dat", "deep/Data0001.dat")
    data, records = [b"", b""], []
    for number in range(rows * columns):
        y, x = (part * tile for part in divmod(number, columns))
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image[y : y + tile, x : x + tile])).save(buffer, "PNG")
        at = number % 2
        records.append(struct.pack("<4i", number, len(data[at]), buffer.tell(), at))
        data[at] += buffer.getvalue()
    for name, content in zip(files, data, strict=True):
        (folder / name).write_bytes(content)
    head = f"01.02{SLIDE_ID}".encode()
    # Pointers to the zoom levels, to the first one's list, and to its first and only page.
    levels = len(head) + 8
    listed, page = levels + 4, levels + 12
    (folder / "Index.dat").write_bytes(
        head
        + struct.pack("<2i", levels, 0)
        + struct.pack("<i", listed)
        + struct.pack("<2i", 0, page)
        + struct.pack("<2i", len(records), 0)
        + b"".join(records)
    )
    sections = {
        "GENERAL": {
            "SLIDE_VERSION": "01.02", "SLIDE_ID": SLIDE_ID, "IMAGENUMBER_X": columns,
            "IMAGENUMBER_Y": rows, "OBJECTIVE_MAGNIFICATION": 20,
        },
        "HIERARCHICAL": {
            "INDEXFILE": "Index.dat", "HIER_COUNT": 1, "NONHIER_COUNT": 0,
            "HIER_0_NAME": "Slide zoom level", "HIER_0_COUNT": 1,
            "HIER_0_VAL_0_SECTION": "LAYER_0_LEVEL_0_SECTION",
        },
        "LAYER_0_LEVEL_0_SECTION": {
            "OVERLAP_X": 0, "OVERLAP_Y": 0, "MICROMETER_PER_PIXEL_X": mpp,
            "MICROMETER_PER_PIXEL_Y": mpp, "IMAGE_FORMAT": "PNG", "IMAGE_CONCAT_FACTOR": 0,
            "IMAGE_FILL_COLOR_BGR": 0xFFFFFF, "DIGITIZER_WIDTH": tile, "DIGITIZER_HEIGHT": tile,
        },
        "DATAFILE": {"FILE_COUNT": 2, "FILE_0": files[0], "FILE_1": files[1]},
    }  # fmt: skip
    text = "".join(
        f"[{name}]\r\n" + "".join(f"{key} = {value}\r\n" for key, value in values.items())
        for name, values in sections.items()
    )
    (folder / "Slidedat.ini").write_bytes(b"\xef\xbb\xbf" + text.encode())
    path.write_bytes(b"a picture for file managers")
    return path
