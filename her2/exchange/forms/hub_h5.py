"""Form `hub-h5`: features of tiles with a batch axis, as MahmoodLab/UNI2-h-features on the hub.

`features` (1, n, d), `coords` (1, n, 2) in level-0 px.
"""

from her2.exchange.content import Content
from her2.exchange.form import Form, Given, described


def recognise(content: Content) -> bool:
    """Return whether the features have a batch axis."""
    features = content.arrays.get("features")
    return content.kind == "HDF5" and features is not None and len(features.shape) == 3


def read(content: Content) -> Given:
    """Return what a file says: rows, and corners where it has them."""
    features = content.array("features")
    coords = content.array("coords") if content.has("coords") else None
    return described(
        content,
        FORM.name,
        features,
        coords=None if coords is None else coords.pairs(),
        stated={**(coords.stated if coords else {}), **features.stated, **content.stated},
    )


FORM = Form("hub-h5", "features of tiles with a batch axis", (".h5",), recognise, read)
