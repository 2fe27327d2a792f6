"""Features out: the folders and files of CLAM.

The layout is that of `extract_features_fp.py` (mahmoodlab/CLAM, commit 14fbcc4b), read by
`Generic_MIL_Dataset` in `dataset_modules/dataset_generic.py` (commit 0534d4e9); the attributes of
`patches` are those that `Whole_Slide_Bag_FP` in `dataset_modules/dataset_h5.py` reads.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from her2.exchange.outgoing import Outgoing
from her2.exchange.record import ROWS_SUFFIX
from her2.exchange.slide_features import SlideFeatures
from her2.exchange.writers import Writer
from her2.exchange.writers._hdf5 import write_hdf5

_TYPE = np.dtype(np.float32)
"""CLAM's models have float32 weights, and its reader converts nothing."""


def _files(outgoing: Outgoing, slide: SlideFeatures) -> dict[str, str]:
    return {
        "h5": f"h5_files/{slide.slide_id}.h5",
        "pt": f"pt_files/{slide.slide_id}.pt",
        "patches": f"patches/{slide.slide_id}.h5",
    }


def _write(outgoing: Outgoing, slide: SlideFeatures, paths: Mapping[str, Path]) -> None:
    write_hdf5(paths["h5"], outgoing, slide, features="features", dtype=_TYPE, coords=slide.coords)
    write_hdf5(
        paths["patches"],
        outgoing,
        slide,
        features=None,
        coords=slide.coords,
        of_coords={
            "patch_size": round(slide.level0_tile[0]),
            "patch_level": 0,
            "downsample": np.ones(2),
            "downsampled_level_dim": np.array(slide.size_px),
            "level_dim": np.array(slide.size_px),
            "name": slide.slide_id,
            "save_path": "patches",
        },
    )
    _write_tensor(slide, paths["pt"])


def _write_tensor(slide: SlideFeatures, path: Path) -> None:
    """Write a tensor (n, d) of float32 that is never all in memory."""
    import torch

    rows = path.with_name(f"{path.name}{ROWS_SUFFIX}")
    try:
        with rows.open("wb") as stream:
            for block in slide.blocks():
                stream.write(np.ascontiguousarray(block, _TYPE).tobytes())
        count = slide.shape[0] * slide.shape[1]
        mapped = torch.from_file(str(rows), shared=False, size=count, dtype=torch.float32)
        with path.open("wb") as stream:  # by a path, torch would put the temporary name into it
            torch.save(mapped.reshape(slide.shape), stream)
    finally:
        rows.unlink(missing_ok=True)


def _tables(outgoing: Outgoing, slides: Sequence[str]) -> dict[str, pl.DataFrame]:
    """Return a table for each label column, of the slides that have a label in it."""
    rows = outgoing.rows or {}
    labels = sorted({name for row in rows.values() for name in row.labels})
    found = {}
    for name in labels:
        labelled = [
            (rows[slide].patient_id, slide, rows[slide].labels[name])
            for slide in slides
            if slide in rows and rows[slide].labels.get(name) is not None
        ]
        schema = dict.fromkeys(("case_id", "slide_id", "label"), pl.String)
        found[f"dataset_{name}.csv"] = pl.DataFrame(labelled, schema=schema, orient="row")
    return found


def _losses(outgoing: Outgoing, slide: SlideFeatures) -> list[str]:
    found = [
        "um/px is only in the attribute 'her2' of the HDF5 files, and pt_files have no coordinates"
    ]
    if slide.dtype.itemsize > _TYPE.itemsize:
        found.append(f"features are rounded from {slide.dtype} to the float32 that CLAM takes")
    if not all(round(side) == side for side in slide.level0_tile):
        found.append("patch_size is rounded: the side of a tile is no whole number of level-0 px")
    if _is_number(slide.slide_id):
        found.append(
            "pandas takes these slide ids for numbers, so CLAM looks for files of other names: "
            "give read_csv in dataset_generic.py dtype={'slide_id': str}"
        )
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _advice(outgoing: Outgoing, slides: Sequence[str], out: Path) -> tuple[str, ...]:
    tables = list(_tables(outgoing, ())) or ["dataset.csv"]
    return (
        f"CLAM: in main.py, a task whose dataset has csv_path='{out}/{tables[0]}'"
        + (f" (or {', '.join(tables[1:])})" if tables[1:] else "")
        + f", data_dir='{out}' and a label_dict of the classes; then",
        f"  --embed_dim {outgoing.card.dimension}",
    )


WRITER = Writer(
    name="clam",
    words="CLAM: h5_files, pt_files and patches",
    files=_files,
    write=_write,
    losses=_losses,
    tables=_tables,
    advice=_advice,
    needs=("coords", "level0_tile", "size_px"),
)
