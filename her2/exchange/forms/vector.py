"""Form `vector`: the features of a whole slide by a slide encoder (TITAN, PRISM, CHIEF and others).

One row, (d,) or (1, d): `features` of TRIDENT (`extract_slide_features`), `feats` of STAMP
(`feat_type` "slide"), or the only array of a torch or npy file. TRIDENT adds the coordinates of the
tiles that the encoder saw, which are no places of this row.
"""

from her2.exchange.content import Array, Content
from her2.exchange.form import Form, Given, described

_NAMES = ("features", "feats")


def _array(content: Content) -> Array | None:
    names = _NAMES if content.kind == "HDF5" else ("",)
    return next((one for name in names if (one := content.arrays.get(name)) is not None), None)


def recognise(content: Content) -> bool:
    """Return whether there is one row, and nothing that makes it that of a tile."""
    array = _array(content)
    if array is None:
        return False
    if content.stated.get("feat_type", "tile") != "tile":
        return True
    if len(array.shape) == 1:
        return array.shape[0] > 0 and not (array.name == "feats" and content.has("coords"))
    return array.is_vector() and not content.has("coords")


def read(content: Content) -> Given:
    """Return what a file says.

    Raises:
        ValueError: it describes a patient, or has several rows.
    """
    array = _array(content)
    if array is None:
        raise ValueError(f"it has no {' or '.join(_NAMES)}; it has {content.words()}")
    if content.stated.get("feat_type") == "patient":
        raise ValueError(
            "it describes a patient (feat_type 'patient'), who may have several slides; encode "
            "slides instead"
        )
    return described(
        content, FORM.name, array, level="slide", stated={**array.stated, **content.stated}
    )


FORM = Form(
    "vector",
    "one row for a slide, by a slide encoder",
    (".h5", ".pt", ".pth", ".npy"),
    recognise,
    read,
)
