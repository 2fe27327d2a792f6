"""Beside the stages: a feature store as AnnData, for scanpy, squidpy and their relatives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from her2.core.errors import UserError

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


def to_anndata(
    features: NDArray[Any], coords: NDArray[np.int32] | None, attributes: Mapping[str, Any]
) -> AnnData:
    """Return a feature store as AnnData, all of it in memory.

    Args:
        features: (n, d).
        coords: (n, 2), top left corners of the tiles in level-0 px; None: not known.
        attributes: those of the store.

    Returns:
        `X` (n, d), a copy of the features in their own type. `obs`: `x_level0_px` and
        `y_level0_px`, the top left corner of each tile. `obsm["spatial"]` (n, 2): its centre in
        level-0 px, which is what squidpy draws; the corner where the store does not say how large
        tiles are. Without `coords` there are neither. `uns["her2"]`: the store's attributes as JSON
        under `attributes`, and of them `key`, `encoder` (its digest), `mpp`, `tile_px` and
        `tile_level0_px` (width, height), as far as they are known.

    Raises:
        UserError: anndata is not installed.
    """
    try:
        from anndata import AnnData
    except ImportError:
        raise UserError(
            "to_anndata: needs the package anndata; install it with `pip install '.[exchange]'` in "
            "her2's folder."
        ) from None
    return AnnData(X=np.array(features), **described(features.shape, coords, attributes))


def described(
    shape: tuple[int, ...], coords: NDArray[np.int32] | None, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `obs`, `var`, `obsm` and `uns` of a store, see `to_anndata`; `shape` is (n, d)."""
    import pandas as pd  # anndata brings it

    found = attributes
    side = found.get("slide", {}).get("level0_tile")
    # Of type object: what pandas 3 makes of texts, anndata 0.12 cannot write.
    names = pd.Index([f"tile-{row}" for row in range(shape[0])], dtype=object)
    columns = pd.Index([f"feature-{column}" for column in range(shape[1])], dtype=object)
    target = found.get("target") or {}
    facts: dict[str, Any] = {
        "key": found.get("key"),
        "encoder": (found.get("encoder") or {}).get("digest"),
        "mpp": target.get("mpp"),
        "tile_px": target.get("px"),
        "tile_level0_px": None if side is None else np.asarray(side, np.float64),
        "attributes": json.dumps(dict(found), sort_keys=True),
    }
    places, spatial = {}, {}
    if coords is not None:
        places = {"x_level0_px": coords[:, 0], "y_level0_px": coords[:, 1]}
        spatial = {"spatial": coords + (np.zeros(2) if side is None else np.asarray(side) / 2)}
    return {
        "obs": pd.DataFrame(places, index=names),
        "var": pd.DataFrame(index=columns),
        "obsm": spatial,
        "uns": {"her2": {name: value for name, value in facts.items() if value is not None}},
    }
