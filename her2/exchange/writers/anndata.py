"""Features out: AnnData, one `.h5ad` for each slide, for scanpy, squidpy and their relatives.

The layout is that of anndata's published on-disk format, see `_anndata.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py

from her2.exchange.outgoing import Outgoing
from her2.exchange.slide_features import SlideFeatures
from her2.exchange.writers import Writer
from her2.exchange.writers._anndata import X_ATTRIBUTES, write_elements
from her2.exchange.writers._hdf5 import write_features


def _files(outgoing: Outgoing, slide: SlideFeatures) -> dict[str, str]:
    return {"features": f"{slide.slide_id}.h5ad"}


def _write(outgoing: Outgoing, slide: SlideFeatures, paths: Mapping[str, Path]) -> None:
    with h5py.File(paths["features"], "w") as file:
        write_elements(file, outgoing, slide, obs={}, uns={})
        write_features(file, "X", slide, slide.dtype).attrs.update(X_ATTRIBUTES)


def _losses(outgoing: Outgoing, slide: SlideFeatures) -> list[str]:
    return []


def _advice(outgoing: Outgoing, slides: Sequence[str], out: Path) -> tuple[str, ...]:
    return (f"anndata: anndata.read_h5ad('{out}/SLIDE.h5ad', backed='r')",)


WRITER = Writer(
    name="anndata",
    words="AnnData: a .h5ad for each slide, a tile for each observation",
    files=_files,
    write=_write,
    losses=_losses,
    advice=_advice,
    package="anndata",
)
