"""Form `stamp`: features of tiles by STAMP (KatherLab/STAMP, stamp/preprocessing and `get_coords`).

`feats` float16 (n, d), `coords` float32 (n, 2) in um, with attributes of the file: `unit` "um", and
`tile_size_um` (before 2.1 `tile_size`). STAMP 1 states no unit; its coordinates are multiples of
224 and mean 256 um. STAMP reads features under `patch_embeddings` too.
"""

import numpy as np

from her2.core.types import Floats
from her2.exchange.content import Content
from her2.exchange.form import Form, Given, described, number

_NAMES = ("feats", "patch_embeddings")
_OLD_UM, _OLD_PX = 256.0, 224
"""Side of a tile of STAMP 1, in um and in the unit of its coordinates."""


def recognise(content: Content) -> bool:
    """Return whether there are features under STAMP's names, of tiles."""
    features = next((one for name in _NAMES if (one := content.arrays.get(name))), None)
    if content.kind != "HDF5" or features is None or not content.has("coords"):
        return False
    return content.stated.get("feat_type", "tile") == "tile"


def read(content: Content) -> Given:
    """Return what a file says.

    Raises:
        ValueError: the unit of the coordinates is not um and cannot be found.
    """
    features = content.array(next((name for name in _NAMES if content.has(name)), _NAMES[0]))
    stated = content.stated
    kind = stated.get("feat_type", "tile")
    if kind != "tile":
        raise ValueError(f"its feat_type is {kind!r}, not 'tile'")
    unit = stated.get("unit", "um")
    if unit != "um":
        raise ValueError(f"its coordinates are in {unit!r}, not 'um', as STAMP's are of H&E slides")
    coords = content.array("coords").pairs()
    tile = number(stated, "tile_size_um")
    if tile is None and "unit" in stated:
        tile = number(stated, "tile_size")
    tile_px = number(stated, "tile_size_px")
    if tile is None and len(coords):
        side = number(stated, "tile_size") or _stride(coords)
        if side is None or round(side) != _OLD_PX:
            raise ValueError(
                "it has neither tile_size_um nor a unit, and its tiles are not 224 apart as those "
                "of STAMP 1; extract it anew with `stamp preprocess`"
            )
        coords, tile, tile_px = coords / _OLD_PX * _OLD_UM, _OLD_UM, _OLD_PX
    return described(
        content, FORM.name, features, coords=coords, unit="um", tile=tile, tile_px=tile_px,
        stated=stated,
    )  # fmt: skip


def _stride(coords: Floats) -> float | None:
    """Return the least distance of two different coordinates of one axis, None if there is none."""
    steps = np.concatenate([np.diff(np.unique(coords[:, axis])) for axis in (0, 1)])
    return float(steps.min()) if len(steps) else None


FORM = Form("stamp", "STAMP, features of tiles", (".h5",), recognise, read)
