"""Features out: the folders and files of TRIDENT.

The layout is that of `save_h5` and `coords_to_h5` in `trident/IO.py` (mahmoodlab/TRIDENT, commit
98de6dbb) and of `extract_patch_features` in `trident/wsi_objects/WSI.py` (commit ac5f46e7), read by
`extract_slide_features` there and by `torchmil.datasets.TridentWSIDataset`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from her2.exchange.outgoing import Outgoing
from her2.exchange.slide_features import SlideFeatures
from her2.exchange.writers import Writer
from her2.exchange.writers._hdf5 import write_hdf5

_MAGNIFICATIONS = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5))
"""Magnification of a scan with fewer um/px than this, as TRIDENT counts it."""


def magnification(mpp: float) -> float:
    """Return the magnification that TRIDENT takes um/px for; by definition 10 um/px are 1x."""
    nominal = (times for limit, times in _MAGNIFICATIONS if mpp < limit)
    return next(nominal, 10 / mpp)


def _folder(outgoing: Outgoing, slide: SlideFeatures) -> str:
    overlap = _overlap_px(outgoing, slide)
    return f"{magnification(slide.mpp):g}x_{slide.tile_px}px_{overlap}px_overlap"


def _overlap_px(outgoing: Outgoing, slide: SlideFeatures) -> int:
    return round((outgoing.overlap or 0) * slide.tile_px)


def _files(outgoing: Outgoing, slide: SlideFeatures) -> dict[str, str]:
    folder = _folder(outgoing, slide)
    return {
        "features": f"{folder}/features_{outgoing.encoder}/{slide.slide_id}.h5",
        "patches": f"{folder}/patches/{slide.slide_id}_patches.h5",
    }


def _side(slide: SlideFeatures) -> int:
    return round(slide.level0_tile[0])


def _of_coords(outgoing: Outgoing, slide: SlideFeatures) -> dict[str, Any]:
    target = magnification(slide.mpp)
    scan = magnification(slide.slide_mpp[0])
    if round(slide.tile_px * scan / target) != _side(slide):
        # TRIDENT cuts patch_size * level0 / target px: with this, the squares that these tiles are.
        scan = target * slide.level0_tile[0] / slide.tile_px
    width, height = slide.size_px
    return {
        "patch_size": slide.tile_px,
        "patch_size_level0": _side(slide),
        "level0_magnification": _whole(scan),
        "target_magnification": _whole(target),
        "overlap": _overlap_px(outgoing, slide),
        "name": slide.slide_id,
        "savetodir": _folder(outgoing, slide),
        "level0_width": width,
        "level0_height": height,
    }


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _write(outgoing: Outgoing, slide: SlideFeatures, paths: Mapping[str, Path]) -> None:
    places = slide.coords.astype(np.int64)
    of_coords = _of_coords(outgoing, slide)
    write_hdf5(
        paths["features"],
        outgoing,
        slide,
        features="features",
        coords=places,
        of_features={
            "name": slide.slide_id,
            "savetodir": f"{_folder(outgoing, slide)}/features_{outgoing.encoder}",
            "encoder": outgoing.encoder,
        },
        of_coords=of_coords,
    )
    write_hdf5(paths["patches"], outgoing, slide, features=None, coords=places, of_coords=of_coords)


def _losses(outgoing: Outgoing, slide: SlideFeatures) -> list[str]:
    found = [
        "TRIDENT has magnifications in place of um/px, which is only in the attribute 'her2' of "
        "each file"
    ]
    if slide.level0_tile != (_side(slide), _side(slide)):
        found.append(
            "patch_size_level0 is rounded: the side of a tile is no whole number of level-0 px (it "
            "is exact in the attribute 'her2')"
        )
    if outgoing.overlap is None:
        found.append("the results do not tell the overlap of tiles; 0 is written")
    return found


def _advice(outgoing: Outgoing, slides: Sequence[str], out: Path) -> tuple[str, ...]:
    (folder,) = sorted({path.parent.parent.name for path in out.glob("*/*/*.h5")})[:1]
    return (
        "TRIDENT: give this folder as --job_dir, and the next as --coords_dir:",
        f"  --job_dir {quote(str(out))} --coords_dir {folder}",
        "torchmil:",
        f"  TridentWSIDataset(base_path='{out}/{folder}/', feature_extractor='{outgoing.encoder}', "
        "...)",
    )


WRITER = Writer(
    name="trident",
    words="TRIDENT: HDF5 files of features and of patches",
    files=_files,
    write=_write,
    losses=_losses,
    advice=_advice,
    needs=("coords", "level0_tile", "size_px", "slide_mpp", "mpp", "tile_px"),
)
