"""Form `clam-h5`: features of tiles by CLAM (mahmoodlab/CLAM, extract_features_fp.py).

`features` float32 (n, d), `coords` int32 (n, 2) in level-0 px, without attributes: the side of a
tile stands only in CLAM's patches. Others write the same with further types, or without `coords`.
"""

from her2.exchange.content import Content
from her2.exchange.form import Form, Given, described
from her2.exchange.forms import trident


def recognise(content: Content) -> bool:
    """Return whether there are features of tiles that TRIDENT did not write."""
    features = content.arrays.get("features")
    if content.kind != "HDF5" or features is None or trident.recognise(content):
        return False
    if content.has("coords"):
        return len(features.shape) == 2 or features.shape == (0,)
    return len(features.shape) == 2 and not features.is_vector()


def read(content: Content) -> Given:
    """Return what a file says: rows, and corners where it has them."""
    features = content.array("features")
    coords = content.array("coords").pairs() if content.has("coords") else None
    return described(content, FORM.name, features, coords=coords, stated=content.stated)


FORM = Form("clam-h5", "CLAM, features of tiles with coordinates", (".h5",), recognise, read)
