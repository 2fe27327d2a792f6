"""Flat images -> pyramidal TIFF with um/px, so that a region is read without decoding the slide.

A JPEG's own quantisation tables and colour sampling are used again, on blocks that lie where they
lay, which loses least of all settings (docs/tiles.md). The image is decoded whole, since no library
here decodes parts of a JPEG; its tiles are written one by one.
"""

import io
import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, JpegImagePlugin
from tqdm import tqdm

from her2.core.crashes import reading
from her2.core.errors import SlideError, UserError, first_line, problem_list
from her2.core.files import atomic_path, file_digest
from her2.core.images import decoded_bytes, open_image
from her2.core.memory import available_bytes

TILE_PX = 512
_LAST_LEVEL_PX = 1024
"""The coarsest level is no longer than this."""
_QUALITY = 90
"""Of images that are not JPEG, and of the coarser levels."""
_IMAGE_DESCRIPTION = 270
_FORM = 1
"""Raised when the same image and um/px become another file."""
_PEAK = 1.5
"""Largest memory of a conversion, by that of the decoded image: with a level of half its size."""
_BIG_BYTES = 3 << 30


@dataclass(frozen=True, slots=True)
class Conversion:
    """An image, and where its pyramid is to be."""

    name: str
    source: Path
    target: Path


def convert_all(conversions: list[Conversion], *, mpp: float, threads: int = 1) -> dict[str, str]:
    """Convert images, as many at once as fit into memory, and return name -> problem of the others.

    An image whose pyramid is there, of the same content and um/px, is left as it is. The progress
    is shown on stderr, where that is a terminal.

    Args:
        conversions: the images.
        mpp: their um/px at full resolution.
        threads: largest number of images at once.

    Raises:
        UserError: a target is a file that no conversion wrote, or cannot be written.
    """
    if foreign := [one.target for one in conversions if _is_foreign(one.target)]:
        raise problem_list(
            "images cannot be converted to files that others made; move them away",
            map(str, foreign),
        )

    def attempt(one: Conversion) -> str:
        try:
            with reading(one.name):
                convert(one.source, one.target, mpp=mpp)
        except SlideError as error:
            return str(error)
        return ""

    needed = max((_needed(one.source) for one in conversions), default=0)
    at_once = max(1, min(threads, available_bytes() // max(1, needed)))
    with ThreadPoolExecutor(at_once) as pool:
        attempts = pool.map(attempt, conversions)
        try:
            shown = tqdm(attempts, "converting", len(conversions), unit="slide", disable=None)
            problems = [*shown]
        except BaseException:  # Ctrl-C does not wait for the slides to come
            pool.shutdown(cancel_futures=True)
            raise
    return {
        one.name: problem for one, problem in zip(conversions, problems, strict=True) if problem
    }


def convert(source: Path, target: Path, *, mpp: float) -> bool:
    """Write an image as a pyramidal TIFF of JPEG tiles with um/px; return whether it was written.

    It was not if `target` has the same content and um/px already. `target` is complete, or not
    there at all.

    Raises:
        SlideError: the image cannot be read, or does not fit into memory.
        UserError: `target` cannot be written.
    """
    try:
        origin = {"form": _FORM, "sha256": file_digest(source), "mpp": mpp}
        if target.exists() and _origin(target) == origin:
            return False
        with open_image(source, largest_bytes=1 << 62) as image:
            needed, free = _needed(source), available_bytes()
            if needed > free:
                raise SlideError(
                    f"has {image.width:,} x {image.height:,} px, and to convert it takes "
                    f"{needed / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} GB are free; "
                    "close other programs, or convert it on a larger machine"
                )
            image.load()
            _write(image, target, mpp, {"her2": origin})
    except (UserError, SlideError):
        raise
    except MemoryError:
        raise SlideError("does not fit into memory; convert it on a larger machine") from None
    except Exception as error:  # Pillow raises all kinds of errors on damaged files
        raise SlideError(
            f"cannot be converted ({first_line(error)}); compare it with the original and copy it "
            "again"
        ) from error
    return True


def _write(image: Image.Image, target: Path, mpp: float, description: Mapping[str, Any]) -> None:
    options = _jpeg_options(image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    width, height = image.size
    levels = 1 + max(0, math.ceil(math.log2(max(image.size) / _LAST_LEVEL_PX)))
    megabytes = 2 * width * height / 1e7
    with (
        atomic_path(target, megabytes=megabytes) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=width * height * 3 > _BIG_BYTES) as tiff,
    ):
        for level in range(levels):
            if level:
                image, options = _halved(image), {"quality": _QUALITY, "subsampling": 0}
            scale = mpp * width / image.width, mpp * height / image.height
            tiff.write(
                _tiles(image, options),
                shape=(image.height, image.width, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr",
                compression="jpeg",
                subsampling=_sampling(options["subsampling"]),
                subfiletype=int(level > 0),
                resolution=(1e4 / scale[0], 1e4 / scale[1]),
                resolutionunit="CENTIMETER",
                description=json.dumps(description) if level == 0 else None,
                metadata=None,
                software="her2",
            )


def _tiles(image: Image.Image, options: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield the JPEG of each tile, row by row; the border's px are repeated beyond the border."""
    width, height = image.size
    for top in range(0, height, TILE_PX):
        for left in range(0, width, TILE_PX):
            right, bottom = min(left + TILE_PX, width), min(top + TILE_PX, height)
            tile = image.crop((left, top, right, bottom))
            if tile.size != (TILE_PX, TILE_PX):
                beyond = ((0, TILE_PX - tile.height), (0, TILE_PX - tile.width), (0, 0))
                tile = Image.fromarray(np.pad(np.asarray(tile), beyond, mode="edge"))
            buffer = io.BytesIO()
            tile.save(buffer, "JPEG", **options)
            yield buffer.getvalue()


def _halved(image: Image.Image) -> Image.Image:
    """Return an image of half the size, rounded up, by the mean of the area under each px.

    It covers just what the image does, also where that has an odd number of px, since readers
    take the ratio of the sizes for that of the px. It is made in strips, to save memory.
    """
    width, height = ((side + 1) // 2 for side in image.size)
    halved = Image.new(image.mode, (width, height))
    for top in range(0, height, TILE_PX):
        bottom = min(top + TILE_PX, height)
        box = (0, image.height * top / height, image.width, image.height * bottom / height)
        strip = image.resize((width, bottom - top), Image.Resampling.BOX, box=box)
        halved.paste(strip, (0, top))
    return halved


def _jpeg_options(image: Image.Image) -> dict[str, Any]:
    """Return how tiles are compressed: as the image was, where it is a colour JPEG."""
    tables = getattr(image, "quantization", None)
    if isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode == "RGB" and tables:
        sampling = JpegImagePlugin.get_sampling(image)
        if sampling in (0, 1, 2):
            return {"qtables": [*tables.values()][:2], "subsampling": sampling}
    return {"quality": _QUALITY, "subsampling": 0}


def _sampling(number: int) -> tuple[int, int]:
    """Return TIFF's subsampling (horizontal, vertical) for Pillow's number."""
    return {0: (1, 1), 1: (2, 1), 2: (2, 2)}[number]


def _needed(source: Path) -> int:
    """Return the bytes of memory that a conversion takes, 0 for what is no image."""
    try:
        with open_image(source, largest_bytes=1 << 62) as image:
            return int(decoded_bytes(image) * _PEAK)
    except Exception:  # said when it is converted
        return 0


def _origin(target: Path) -> Any:
    """Return what a conversion noted in its file, None for any other file."""
    try:
        with open_image(target, largest_bytes=1 << 62) as image:
            return json.loads(getattr(image, "tag_v2", {})[_IMAGE_DESCRIPTION])["her2"]
    except Exception:
        return None


def _is_foreign(target: Path) -> bool:
    return target.exists() and _origin(target) is None
