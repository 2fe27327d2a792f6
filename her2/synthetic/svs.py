"""Demo cohort: an RGB image as a pyramidal SVS like those of an Aperio scanner."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

TILE_PX = 240
LEVEL_STEP = 2
MIN_LEVEL_PX = 128
THUMBNAIL_PX = 512
# OpenSlide recognises the vendor by these words.
LIBRARY = "Aperio Image Library v12.0.0"


def svs_bytes(
    rgb: NDArray[np.uint8], *, mpp: float, app_mag: float, jpeg_quality: int, extra: dict[str, str]
) -> bytes:
    """Encode RGB (h, w, 3) uint8 as SVS: full size, thumbnail, then levels of 1/2, 1/4 and so on.

    Aperio scans have levels of 1/4; with those of 1/2, the tiles of the demo (twice the um/px) are
    read as they are stored, in an eighth of the time.

    The order of pages and their descriptions follow Aperio's (see OpenSlide's page on the format);
    `extra` becomes `|key = value` in the first description. No date or software tag is written:
    one image gives one file, byte for byte.
    """
    h, w = rgb.shape[:2]
    properties = {"AppMag": f"{app_mag:g}", "MPP": f"{mpp:.6g}", **extra}
    fields = "".join(f"|{key} = {value}" for key, value in properties.items())
    codec = f"JPEG/RGB Q={jpeg_quality}"
    tiling = f"({TILE_PX}x{TILE_PX}) {codec}"
    jpeg: dict[str, Any] = {
        "compression": "jpeg",
        "compressionargs": {"level": jpeg_quality},
        "photometric": "rgb",
        "metadata": None,
        "software": False,
    }
    thumb_px = min(THUMBNAIL_PX, w // 2)
    thumbnail = _shrink(rgb, thumb_px, round(h * thumb_px / w))
    out = io.BytesIO()
    with tifffile.TiffWriter(out, bigtiff=False) as tiff:
        tile = (TILE_PX, TILE_PX)
        description = f"{LIBRARY}\r\n{w}x{h} [0,0 {w}x{h}] {tiling}{fields}"
        tiff.write(rgb, tile=tile, description=description, **jpeg)
        th, tw = thumbnail.shape[:2]
        description = f"{LIBRARY}\r\n{w}x{h} -> {tw}x{th} - {fields}"
        tiff.write(thumbnail, rowsperstrip=16, description=description, **jpeg)
        level = rgb
        while min(level.shape[:2]) // LEVEL_STEP >= MIN_LEVEL_PX:
            lh, lw = level.shape[0] // LEVEL_STEP, level.shape[1] // LEVEL_STEP
            level = _shrink(level, lw, lh)
            description = (
                f"{LIBRARY}\r\n{w}x{h} [0,0 {w}x{h}] {tiling} -> {lw}x{lh} {codec}{fields}"
            )
            tiff.write(level, tile=tile, description=description, **jpeg)
    return out.getvalue()


def mask_png_bytes(mask: NDArray[np.bool_], downsample: int) -> bytes:
    """Encode a mask (h, w) at 1/downsample as an 8-bit grey PNG, 255 where most pixels are set."""
    h, w = mask.shape
    small = _shrink(mask.astype(np.uint8) * np.uint8(255), w // downsample, h // downsample)
    ok, png = cv2.imencode(".png", np.where(small >= 128, 255, 0).astype(np.uint8))
    if not ok:
        raise RuntimeError("the mask could not be encoded as PNG")
    return png.tobytes()


def _shrink(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
