"""Form `clam-pt`: features of tiles by CLAM (mahmoodlab/CLAM, extract_features_fp.py).

A torch file of one tensor (n, d), without coordinates. A tensor of one row is taken for the vector
of a slide (form `vector`) unless the user names this form.
"""

from her2.exchange.content import Content
from her2.exchange.form import Form, Given, described


def recognise(content: Content) -> bool:
    """Return whether it is a torch file with a row for each of several tiles, or for none."""
    tensor = content.arrays.get("")
    if content.kind != "torch" or tensor is None:
        return False
    return tensor.shape == (0,) or (len(tensor.shape) == 2 and not tensor.is_vector())


def read(content: Content) -> Given:
    """Return what a file says, which is the rows alone."""
    return described(content, FORM.name, content.array(""), stated={})


FORM = Form(
    "clam-pt", "CLAM, features of tiles without coordinates", (".pt", ".pth"), recognise, read
)
