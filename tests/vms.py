"""A Hamamatsu VMS slide, as small as OpenSlide opens one: an index and JPEG files beside it.

Source: https://openslide.org/formats/hamamatsu/; the JPEGs are in strips, with restart markers.
"""

from pathlib import Path

import numpy as np
from PIL import Image

MPP = 0.5


def write_vms(path: Path, image: np.ndarray) -> Path:
    """Write RGB (h, w, 3) uint8 as two JPEGs side by side, a map and a macro image."""
    height, width = image.shape[:2]
    half = width // 2
    named = {
        "ImageFile": ("", image[:, :half]),
        "ImageFile(1,0)": ("(1,0)", image[:, half:]),
        "MapFile": ("_map2", image[::8, ::8]),
        "MacroImage": ("_macro", image[::8, ::8]),
    }
    lines = ["[Virtual Microscope Specimen]", "NoLayers=1", "NoJpegColumns=2", "NoJpegRows=1"]
    for key, (ending, pixels) in named.items():
        name = f"{path.stem}{ending}.jpg"
        Image.fromarray(np.ascontiguousarray(pixels)).save(
            path.with_name(name), "JPEG", quality=95, subsampling=0, restart_marker_rows=1
        )
        lines.append(f"{key}={name}")
    path.with_suffix(".opt").write_bytes(b"")
    lines.append(f"OptimisationFile={path.stem}.opt")
    # Nanometres of the whole slide.
    lines += [f"PhysicalWidth={width * MPP * 1000:g}", f"PhysicalHeight={height * MPP * 1000:g}"]
    path.write_bytes("\r\n".join([*lines, ""]).encode())
    return path
