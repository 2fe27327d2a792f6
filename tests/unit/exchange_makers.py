"""Feature files as other programs write them; `her2.exchange.forms` names the code of each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

Features = NDArray[Any]
TILE = 512
"""Side of a tile of `corners`, level-0 px."""
SIZE = (40_000, 30_000)


def features_of(rows: int, dimension: int, dtype: str = "float32", seed: int = 0) -> Features:
    return np.random.default_rng(seed).normal(size=(rows, dimension)).astype(dtype)


def corners(rows: int) -> NDArray[np.int64]:
    """Return (rows, 2) corners of different tiles, level-0 px."""
    return np.stack([np.arange(rows) % 60, np.arange(rows) // 60], axis=1) * TILE


def appended(file: h5py.File, name: str, values: Features, /, **attributes: Any) -> h5py.Dataset:
    """Write an array as TRIDENT's and CLAM's writers do, in chunks of one row."""
    made = file.create_dataset(
        name,
        data=values,
        chunks=(1, *values.shape[1:]) if values.size else None,
        maxshape=(None, *values.shape[1:]) if values.size else None,
    )
    made.attrs.update(attributes)
    return made


def write_trident(
    path: Path, features: Features, coords: Features | None = None, **of: Any
) -> Path:
    coords = corners(len(features)) if coords is None else coords
    stated = {
        "patch_size": 256, "patch_size_level0": TILE, "level0_magnification": 40,
        "target_magnification": 20, "overlap": 0, "name": path.stem,
        "savetodir": "/somewhere/20x_256px_0px_overlap", "level0_width": SIZE[0],
        "level0_height": SIZE[1],
    } | of  # fmt: skip
    with h5py.File(path, "w") as file:
        appended(
            file, "features", features,
            name=path.stem, savetodir="/somewhere/features_uni_v1", encoder="uni_v1",
        )  # fmt: skip
        appended(file, "coords", coords.astype(np.int64), **stated)
    return path


def write_clam_h5(path: Path, features: Features, coords: Features | None = None) -> Path:
    coords = corners(len(features)) if coords is None else coords
    with h5py.File(path, "w") as file:
        appended(file, "features", features)
        appended(file, "coords", coords.astype(np.int32))
    return path


def write_torch(path: Path, features: Any, *, old: bool = False) -> Path:
    import torch

    values = torch.from_numpy(features) if isinstance(features, np.ndarray) else features
    torch.save(values, path, _use_new_zipfile_serialization=not old)
    return path


def write_stamp(
    path: Path, features: Features, coords_um: Features | None = None, **of: Any
) -> Path:
    coords_um = corners(len(features)) / TILE * 256.0 if coords_um is None else coords_um
    stated = {
        "stamp_version": "2.4.0", "extractor": "uni2", "unit": "um", "tile_size_um": 256.0,
        "tile_size_px": 224, "code_hash": "0a1b2c3d", "feat_type": "tile",
    } | of  # fmt: skip
    with h5py.File(path, "w") as file:
        file["coords"] = coords_um.astype(np.float32)
        file["feats"] = features
        file.attrs.update({name: value for name, value in stated.items() if value is not None})
    return path


def write_hub_h5(path: Path, features: Features) -> Path:
    with h5py.File(path, "w") as file:
        appended(file, "features", features[None])
        appended(file, "coords", corners(len(features))[None])
    return path


def write_trident_slide(path: Path, features: Features) -> Path:
    """Write the vector of TRIDENT's slide encoders: with the coordinates of the tiles it saw."""
    with h5py.File(path, "w") as file:
        appended(file, "features", features.reshape(-1), name=path.stem, savetodir="/somewhere")
        appended(file, "coords", corners(70), patch_size_level0=TILE, name=path.stem)
    return path


def write_stamp_slide(path: Path, features: Features, feat_type: str = "slide") -> Path:
    with h5py.File(path, "w") as file:
        file["feats"] = features
        file.attrs.update({"encoder": "titan", "stamp_version": "2.4.0", "feat_type": feat_type})
    return path


def write_npy(path: Path, features: Features) -> Path:
    np.save(path, features)
    return path


TILES: dict[str, tuple[str, Callable[[Path, Features], Path]]] = {
    "trident": (".h5", write_trident),
    "clam-h5": (".h5", write_clam_h5),
    "clam-pt": (".pt", write_torch),
    "stamp": (".h5", write_stamp),
    "hub-h5": (".h5", write_hub_h5),
}
"""Forms of tiles: suffix of the files, and what writes one."""
VECTORS: dict[str, tuple[str, Callable[[Path, Features], Path]]] = {
    "TRIDENT": (".h5", write_trident_slide),
    "STAMP": (".h5", write_stamp_slide),
    "torch": (".pt", write_torch),
    "npy": (".npy", write_npy),
}
"""Files of slide encoders: suffix, and what writes one."""
