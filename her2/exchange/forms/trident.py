"""Form `trident`: features of tiles by TRIDENT (mahmoodlab/TRIDENT, `save_h5` of trident/IO.py).

`features` (n, d), `coords` (n, 2) in level-0 px, both with attributes. Of coordinates that came
from CLAM's patches, the attributes are CLAM's. A slide without tissue has (0, d), in old versions
(0,).
"""

from her2.exchange.content import Content
from her2.exchange.form import Form, Given, described, number

_OF_FEATURES = ("savetodir", "encoder", "name")
_OF_COORDS = ("patch_size_level0", "target_magnification", "savetodir")
_PATHS = frozenset(("savetodir", "save_path"))
"""Attributes that name a folder of the machine it was computed on."""


def recognise(content: Content) -> bool:
    """Return whether the arrays have attributes as TRIDENT writes them."""
    features, coords = (content.arrays.get(name) for name in ("features", "coords"))
    if content.kind != "HDF5" or features is None or coords is None:
        return False
    marks = [name in features.stated for name in _OF_FEATURES]
    marks += [name in coords.stated for name in _OF_COORDS]
    return any(marks) and (len(features.shape) == 2 or features.shape == (0,))


def read(content: Content) -> Given:
    """Return what a file says; the side of a tile also where an old version left it out."""
    features, coords = content.array("features"), content.array("coords")
    stated = coords.stated
    tile_px = number(stated, "patch_size")
    tile = number(stated, "patch_size_level0")
    of_slide, target = (
        number(stated, name) for name in ("level0_magnification", "target_magnification")
    )
    if tile is None and tile_px and of_slide and target:
        tile = tile_px * of_slide // target
    both = {**stated, **features.stated}
    return described(
        content,
        FORM.name,
        features,
        coords=coords.pairs(),
        tile=tile,
        tile_px=tile_px,
        size_px=(number(stated, "level0_width"), number(stated, "level0_height")),
        stated={name: value for name, value in both.items() if name not in _PATHS},
    )


FORM = Form("trident", "TRIDENT, features of tiles", (".h5",), recognise, read)
