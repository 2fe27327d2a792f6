"""Slides of several formats, for the fuzzer."""

import shutil
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from her2.config import TilingSection
from her2.core.errors import TileError
from her2.slides.fingerprint import fingerprint
from her2.slides.slide import Slide
from her2.synthetic.svs import svs_bytes
from her2.tiling.grid import tile_slide

SIDE = 320


def cases(folder: Path) -> dict[str, Path]:
    noise = np.random.default_rng(2).normal(0, 4, (SIDE, SIDE, 3))
    tissue = np.clip(np.array((200, 120, 170)) + noise, 0, 255).astype(np.uint8)
    tissue[:, : SIDE // 4] = 243
    svs = svs_bytes(tissue, mpp=0.5, app_mag=20, jpeg_quality=90, extra={})
    (folder / "slide.svs").write_bytes(svs)
    scale = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    for name, options in (
        ("zlib.tif", {"compression": "zlib"}),
        ("jpeg.tif", {"compression": "jpeg"}),
        ("big.tif", {"compression": "zlib", "bigtiff": True}),
        ("ome.tif", {"compression": "jpeg", "ome": True}),
    ):
        kinds = {key: options.pop(key) for key in ("bigtiff", "ome") if key in options}
        about = (
            {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5} if "ome" in kinds else None
        )
        with tifffile.TiffWriter(folder / name, **kinds) as tiff:
            tiff.write(tissue, tile=(64, 64), photometric="rgb", metadata=about, **options, **scale)
    for name in ("flat.png", "flat.jpg", "flat.bmp", "flat.webp", "flat.jp2"):
        Image.fromarray(tissue).save(folder / name)
    shutil.copyfile(folder / "slide.svs", folder / "named.png")
    return {path.name: path for path in sorted(folder.iterdir())}


def read(path: Path) -> None:
    """Tile a slide and read its tiles as embedding does; a tile that is damaged may be missing."""
    content = fingerprint(path)
    with Slide(path) as slide:
        tiling = TilingSection(min_tiles=1, min_tissue_um=10)
        table, _ = tile_slide(
            slide, slide.scale(0.5), mpp=0.5, size=64, tiling=tiling, fingerprint=content
        )
    with Slide(path) as slide:
        for number, (x, y) in enumerate(table.coords.tolist()):
            try:
                if number == 0:
                    slide.decode_directly(x, y, 64, 64)
                slide.region(x, y, 64, 64, (64, 64), scanned=True)
            except TileError:
                continue
