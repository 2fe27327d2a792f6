"""A form of feature files is one file: it is found, listed, read and named in errors from there."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORM = '''
"""Form `paired-npy`: features of tiles in an npy file whose first two columns are corners, in px.

No program writes such files; a test does.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2.exchange.content import Array, Content
from her2.exchange.form import Form, Given, described


def recognise(content: Content) -> bool:
    """Return whether there are several rows."""
    shape = content.array("").shape if content.kind == "npy" else ()
    return len(shape) == 2 and shape[0] > 1


def read(content: Content) -> Given:
    """Return what a file says; the corners are columns of it."""
    both = content.array("")
    rows, columns = both.table()
    if columns < 3:
        raise ValueError(f"it has {columns} columns, and two are the corners")

    def blocks() -> Iterator[NDArray[Any]]:
        for block in both.blocks():
            yield block[:, 2:]

    corners = np.concatenate([block[:, :2] for block in both.blocks()]).astype(np.float64)
    features = Array("", (rows, columns - 2), both.dtype, {}, blocks)
    return described(content, FORM.name, features, coords=corners, tile=512, tile_px=256, stated={})


FORM = Form("paired-npy", "corners and features of tiles", (".npy",), recognise, read)
'''
USE = """
from pathlib import Path
import numpy as np
from her2.core.errors import SlideError
from her2.exchange.checks import check_given, finite_blocks
from her2.exchange.given import form_names, given_files, read_given

assert form_names() == ["clam-h5", "clam-pt", "hub-h5", "paired-npy", "stamp", "trident", "vector"]
table = np.arange(60, dtype=np.float32).reshape(10, 6)
np.save("A-001.npy", table)
assert [path.name for path in given_files([Path(".")], "paired-npy")] == ["A-001.npy"]
given = read_given(Path("A-001.npy"))
assert (given.form, given.level, given.rows, given.dimension) == ("paired-npy", "tile", 10, 4)
assert np.array_equal(given.coords, table[:, :2]) and given.tile == 512
assert np.array_equal(np.concatenate(list(finite_blocks(given))), table[:, 2:])
assert check_given(given, size_px=(100, 100)).problems == ()
np.save("B.npy", table[:, :2])
try:
    read_given(Path("B.npy"))
except SlideError as error:
    assert "B.npy: as paired-npy (corners and features of tiles): it has 2 columns" in str(error)
else:
    raise AssertionError
np.save("C.npy", table[0])
assert read_given(Path("C.npy")).form == "vector"
print("read")
"""


def copied(tmp_path, name, text):
    """Copy the package, with one more module among the forms."""
    shutil.copytree(
        ROOT / "her2", tmp_path / "her2", ignore=shutil.ignore_patterns("__pycache__", "report")
    )
    (tmp_path / "her2/exchange/forms" / name).write_text(text)


def run(tmp_path, code):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_a_form_of_one_file_is_found_listed_read_and_checked(tmp_path):
    copied(tmp_path, "paired_npy.py", FORM)
    done = run(tmp_path, USE)
    assert done.stdout == "read\n", done.stderr


def test_a_module_without_a_form_of_its_name_is_an_error_that_names_it(tmp_path):
    copied(tmp_path, "mine.py", FORM)
    done = run(tmp_path, "from her2.exchange.given import form_names; form_names()")
    assert "her2.exchange.forms.mine does not define FORM of name 'mine'" in done.stderr


def test_listing_the_forms_is_light():
    code = (
        "import sys; from her2.exchange.given import form_names; form_names()\n"
        "print(*{'torch', 'h5py', 'zarr', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"
