"""PatchCamelyon from a stranger: any damaged or hostile HDF5 is read, or refused by name."""

import gzip
import os

import h5py
import numpy as np
import pytest

from her2.config import PatchesSection
from her2.core import hdf5
from her2.core.errors import UserError
from her2.pretraining.patches import read_patch_set
from tests.fuzz.faults import campaign, damaged, read_or_refused

STEM = "camelyonpatch_level_2_split_train"
N = 6


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Return the bytes of x and y, of three layouts each."""
    folder = tmp_path_factory.mktemp("pcam")
    images = np.random.default_rng(0).integers(0, 255, (N, 8, 8, 3), dtype=np.uint8)
    labels = np.array([0, 1] * (N // 2), np.uint8).reshape(-1, 1, 1, 1)
    layouts = [{}, {"chunks": True, "compression": "gzip"}, {"chunks": True, "shuffle": True}]
    found = {}
    for what, values in (("x", images), ("y", labels)):
        for number, layout in enumerate(layouts):
            with h5py.File(folder / "one.h5", "w") as file:
                file.create_dataset(what, data=values, **layout)
            found[what, number] = (folder / "one.h5").read_bytes()
    return found


def place(folder, good, **changed):
    """Write a pair; `x` or `y` in place of the good bytes."""
    for what in ("x", "y"):
        (folder / f"{STEM}_{what}.h5").write_bytes(changed.get(what, good[what, 0]))


def read_all(folder):
    found = read_patch_set(
        "set",
        PatchesSection(format="pcam", path=folder, mpp=1.0),
        scratch=folder / "scratch",
    )
    for index in range(len(found)):
        found.read(index)


@pytest.mark.parametrize("seeds", campaign(60, 3000))
def test_any_damaged_pcam_is_read_or_refused_by_name(tmp_path, good, seeds):
    outcomes = set()
    for seed in seeds:
        what = "xy"[seed % 2]
        place(tmp_path, good, **{what: damaged(good[what, seed // 2 % 3], seed)})
        path = tmp_path / f"{STEM}_{what}.h5"
        outcomes.add(
            read_or_refused(
                lambda _: read_all(tmp_path),
                path,
                f"seed {seed} ({what})",
                or_says="patches.set: " + str(tmp_path) + ": has only one class",
            )
        )
    assert outcomes == {True, False}


def h5(path, make):
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        make(file)


def soft_loop(name):
    def make(file):
        file[name] = h5py.SoftLink("/other")
        file["other"] = h5py.SoftLink(f"/{name}")

    return make


def raw(name, shape, dtype, secret):
    """Make a dataset whose values are the bytes of another file."""

    def make(file):
        file.create_dataset(name, shape, dtype, external=[(secret, 0, h5py.h5f.UNLIMITED)])

    return make


def virtual(name, shape, dtype):
    def make(file):
        layout = h5py.VirtualLayout(shape, dtype)
        layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape)
        file.create_virtual_dataset(name, layout)

    return make


X, Y = (N, 8, 8, 3), (N, 1, 1, 1)


def array(name, *given, **options):
    return lambda file: file.create_dataset(name, *given, **options)


def item(name, value):
    return lambda file: file.__setitem__(name, value)


def group(name):
    return lambda file: file.create_group(name)


PAIR = [("a", int), ("b", int)]
BOTH = {
    "text": lambda n, _: array(n, data=[b"tumour"] * N),
    "variable text": lambda n, _: array(n, data=["normal"] * N, dtype=h5py.string_dtype()),
    "complex numbers": lambda n, shape: array(n, data=np.ones(shape, complex)),
    "pairs": lambda n, shape: array(n, data=np.ones(shape, PAIR)),
    "references": lambda n, _: array(n, (N,), h5py.ref_dtype),
    "nothing": lambda n, _: array(n, data=h5py.Empty("u1")),
    "one number": lambda n, _: array(n, data=np.uint8(1)),
    "a group": lambda n, _: group(n),
    "a type": lambda n, _: item(n, np.dtype("u1")),
    "another name": lambda _, shape: array("z", data=np.zeros(shape, "u1")),
    "a loop of links": lambda n, _: soft_loop(n),
    "a link to another file": lambda n, _: item(n, h5py.ExternalLink("/etc/x.h5", n)),
    "the bytes of another file": lambda n, shape: raw(n, shape, "u1", "/etc/hostname"),
    "a virtual array": lambda n, shape: virtual(n, shape, "u1"),
    "a billion rows": lambda n, shape: array(n, (10**9, *shape[1:]), "u1", chunks=True),
    "rows of a billion": lambda n, _: array(n, (N, 10**5, 10**4, 3), "u1", chunks=True),
    "values never written": lambda n, shape: array(n, (10**6, *shape[1:]), "u1", chunks=True),
}
HOSTILE = {f"{name} of {what}": (name, make(name, shape))
           for name, shape in (("x", X), ("y", Y)) for what, make in BOTH.items()} | {
    "y of NaN": ("y", array("y", data=np.full(Y, np.nan))),
    "y of halves": ("y", array("y", data=np.full(Y, 0.5))),
    "y of two numbers a row": ("y", array("y", data=np.ones((N, 2), int))),
    "y of other labels": ("y", array("y", data=np.full(Y, 7))),
    "x of floats": ("x", array("x", data=np.zeros(X))),
    "x of four colours": ("x", array("x", data=np.zeros((N, 8, 8, 4), "u1"))),
    "x of a huge chunk": (
        "x", array("x", (N, 40000, 40000, 3), "u1", chunks=(1, 30000, 30000, 3))
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_pcam_is_refused_by_name(tmp_path, good, case):
    place(tmp_path, good)
    what, make = HOSTILE[case]
    path = tmp_path / f"{STEM}_{what}.h5"
    h5(path, make)
    assert not read_or_refused(lambda _: read_all(tmp_path), path, case)


def test_a_named_pipe_and_a_pointer_of_git_lfs_are_refused_by_name(tmp_path, good):
    place(tmp_path, good)
    path = tmp_path / f"{STEM}_x.h5"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match=r"_x\.h5: is a Git LFS pointer.*git lfs pull"):
        read_all(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"_x\.h5"):
        read_all(tmp_path)


@pytest.mark.parametrize("content", ["zeros", "hdf5 and zeros", "text", "good and noise"])
def test_a_gzip_bomb_leaves_no_scratch(tmp_path, good, monkeypatch, content):
    monkeypatch.setattr(hdf5, "_SMALL", 1 << 20)
    place(tmp_path, good)
    (tmp_path / f"{STEM}_x.h5").unlink()
    head = {"hdf5 and zeros": b"\x89HDF\r\n\x1a\n", "text": b"hello", "zeros": b""}.get(content)
    body = good["x", 0][:200] + b"noise" * 99 if head is None else head + bytes(20 << 20)
    packed = tmp_path / f"{STEM}_x.h5.gz"
    packed.write_bytes(gzip.compress(body, 1))
    assert not read_or_refused(lambda _: read_all(tmp_path), packed, content)
    assert not list((tmp_path / "scratch").rglob("*.h5*"))
