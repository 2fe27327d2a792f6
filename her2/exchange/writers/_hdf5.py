"""Features out: HDF5 files of features and coordinates, written in blocks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from her2.core.files import canonical_json
from her2.exchange.outgoing import Outgoing
from her2.exchange.slide_features import SlideFeatures

_CHUNK_BYTES = 1 << 20

Attributes = Mapping[str, Any]


def write_hdf5(
    path: Path,
    outgoing: Outgoing,
    slide: SlideFeatures,
    *,
    features: str | None,
    dtype: np.dtype[Any] | None = None,
    coords: NDArray[Any],
    attributes: Attributes | None = None,
    of_features: Attributes | None = None,
    of_coords: Attributes | None = None,
) -> None:
    """Write the features of a slide, and `coords` (n, 2) beside them, as HDF5.

    What no program of the form reads is in the file's attribute `her2`, as JSON.

    Args:
        path: the new file.
        outgoing, slide: what is written.
        features: name of the data set of features; None: coordinates alone.
        dtype: type of the features; None: that of the store.
        coords: in the unit and type of the form.
        attributes, of_features, of_coords: those of the file and of both data sets.
    """
    about = {**outgoing.provenance(), **slide.provenance()}
    with h5py.File(path, "w") as file:
        if features is not None:
            made = write_features(file, features, slide, dtype or slide.dtype)
            made.attrs.update(of_features or {})
        file.create_dataset("coords", data=coords, chunks=coords.shape, maxshape=(None, 2))
        file["coords"].attrs.update(of_coords or {})
        file.attrs.update(attributes or {})
        file.attrs["her2"] = canonical_json(about)


def write_features(file: Any, name: str, slide: SlideFeatures, dtype: np.dtype[Any]) -> Any:
    """Write the features of a slide (n, d) as a data set of a type, in blocks, and return it."""
    rows = max(1, _CHUNK_BYTES // (slide.shape[1] * dtype.itemsize))
    made = file.create_dataset(
        name,
        shape=slide.shape,
        dtype=dtype,
        chunks=(min(rows, slide.shape[0]), slide.shape[1]),
        maxshape=(None, slide.shape[1]),
    )
    start = 0
    for block in slide.blocks():
        made[start : start + len(block)] = block
        start += len(block)
    return made
