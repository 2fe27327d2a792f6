"""Features out: the elements of an AnnData on disk, in HDF5 or Zarr, with the features in blocks.

`AnnData.write_h5ad` needs all features in memory; by the published format, `X` is an array like any
other, with the two attributes below (https://anndata.readthedocs.io/en/stable/fileformat-prose.html).
"""

from typing import Any

import numpy as np

from her2.core.files import canonical_json
from her2.exchange.outgoing import Outgoing
from her2.exchange.slide_features import SlideFeatures
from her2.storage.as_anndata import described

AT_ROOT = {"encoding-type": "anndata", "encoding-version": "0.1.0"}
X_ATTRIBUTES = {"encoding-type": "array", "encoding-version": "0.2.0"}


def write_elements(
    group: Any,
    outgoing: Outgoing,
    slide: SlideFeatures,
    *,
    obs: dict[str, Any],
    uns: dict[str, Any],
) -> None:
    """Write everything of an AnnData but `X` into a group of h5py or zarr.

    Args:
        group: an empty group.
        outgoing, slide: what is written.
        obs, uns: what the form has besides.
    """
    import pandas as pd
    from anndata.io import write_elem

    places = slide.coords if slide.knows("coords") else None
    parts = described(slide.shape, places, slide.store.attributes)
    tiles, about = parts["obs"], parts["uns"]["her2"]
    # Unique among slides; as objects, since anndata does not write the text type of pandas 3.
    tiles.index = pd.Index([f"{slide.slide_id}-{row}" for row in range(len(tiles))], dtype=object)
    tiles = tiles.assign(slide_id=one_category(slide.slide_id, len(tiles)), **obs)
    about["export"] = canonical_json({**outgoing.provenance(), **slide.provenance()})
    group.attrs.update(AT_ROOT)
    write_elem(group, "obs", tiles)
    write_elem(group, "var", parts["var"])
    write_elem(group, "obsm", parts["obsm"])
    write_elem(group, "uns", {"her2": about, **uns})
    for name in ("varm", "obsp", "varp", "layers"):
        write_elem(group, name, {})


def one_category(text: str, count: int) -> Any:
    """Return a categorical column (count,) of one text."""
    import pandas as pd

    return pd.Categorical.from_codes(
        np.zeros(count, np.int8), categories=pd.Index([text], dtype=object)
    )
