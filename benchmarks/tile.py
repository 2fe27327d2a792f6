"""Cost of tiling a slide, part by part, on a generated JPEG pyramid.

    python benchmarks/tile.py [--side 25000] [--slide FILE ...]

Each part is timed alone on one thread, as the best of three runs. The file is in the page cache, so
the times are those of the computation, not of the disk. `whole, blur of all tiles` measures blur on
every tile instead of on one tile per square (tiling.blur_step_um). `checksum` digests all bytes of
the file, once for each state of it, in a thread beside the rest.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import tifffile

from her2.config import TilingSection
from her2.filters.border import border_mask
from her2.filters.fold import fold_mask
from her2.filters.pen import pen_mask
from her2.slides.fingerprint import checksum, fingerprint
from her2.slides.slide import Slide
from her2.synthetic import slide_generator, slide_params
from her2.synthetic.tissue import draw_region
from her2.tiling.grid import tile_slide
from her2.tiling.tissue import optical_density, tissue_mask

MPP, SIZE, PATTERN_PX = 0.5, 224, 2400


def main() -> None:
    """Print a table for each slide."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=25_000, help="side of the pyramid in px")
    parser.add_argument("--slide", type=Path, nargs="*", default=[], help="further slides")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"made-{options.side}px.tif"
        write_pyramid(made, options.side)
        for path in (made, *options.slide):
            measure(path)


def write_pyramid(path: Path, side: int) -> None:
    """Write a pyramid of repeated drawn tissue, with JPEG tiles of 256 px and levels of 1/4."""
    params = slide_params(slide_id="b", patient_id="b", her2="2+", site="north", seed=1)
    pattern, _ = draw_region(slide_generator(1, "b", "b"), params, PATTERN_PX, MPP)
    repeats = -(-side // PATTERN_PX)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        step = 1
        while side // step >= 256:
            shape = (PATTERN_PX // step, PATTERN_PX // step)
            level = cv2.resize(pattern, shape, interpolation=cv2.INTER_AREA)
            tiff.write(
                np.tile(level, (repeats, repeats, 1))[: side // step, : side // step],
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 85},
                metadata=None,
                subfiletype=int(step > 1),
                resolution=(1e4 / (MPP * step), 1e4 / (MPP * step)),
                resolutionunit="CENTIMETER",
            )
            step *= 4


def measure(path: Path) -> None:
    """Time and print the parts of tiling one slide."""
    with Slide(path) as slide:
        scale = slide.scale()
        options = TilingSection()
        thumbnail = slide.thumbnail(options.thumbnail_mpp, scale)
        density = optical_density(thumbnail, mpp=options.thumbnail_mpp)
        tissue = tissue_mask(density, mpp=options.thumbnail_mpp, min_tissue_um=100)

        def whole(**changes: object) -> int:
            table, _ = tile_slide(
                slide, scale, mpp=MPP, size=SIZE, fingerprint="b" * 64,
                tiling=options.model_copy(update=changes),
            )  # fmt: skip
            return table.reads["blur"]

        mpp = options.thumbnail_mpp
        off = {"max_blur": 1.0}
        parts: list[tuple[str, Callable[[], object]]] = [
            ("reading the thumbnail", lambda: slide.thumbnail(mpp, scale)),
            ("optical density", lambda: optical_density(thumbnail, mpp=mpp)),
            ("tissue", lambda: tissue_mask(density, mpp=mpp, min_tissue_um=100)),
            ("pen", lambda: pen_mask(density, mpp=mpp)),
            ("fold", lambda: fold_mask(density, tissue, mpp=mpp)),
            ("border", lambda: border_mask(thumbnail)),
            ("fingerprint", lambda: fingerprint(path)),
            ("checksum", lambda: _whole_checksum(path)),
            ("whole, without blur", lambda: whole(**off)),
            ("whole, default options", whole),
            ("whole, blur of all tiles", lambda: whole(blur_step_um=0)),
        ]
        table, _ = tile_slide(
            slide, scale, mpp=MPP, size=SIZE, fingerprint="b" * 64, tiling=options
        )
        print(
            f"{path.name}: {slide.width_px} x {slide.height_px} px, {len(table)} tiles, "
            f"{table.reads['blur']} read for blur, {path.stat().st_size / 1e6:.1f} MB; "
            f"{os.cpu_count()} CPUs, 1 thread"
        )
        for name, part in parts:
            print(f"  {name:26} {1000 * best(part):9.1f} ms")


def _whole_checksum(path: Path) -> str:
    """Compute the checksum without an index that has it."""
    with tempfile.TemporaryDirectory() as index:
        return checksum(path, Path(index))


def best(part: Callable[[], object]) -> float:
    """Return the seconds of the fastest of three calls."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        part()
        times.append(time.perf_counter() - begin)
    return min(times)


if __name__ == "__main__":
    main()
