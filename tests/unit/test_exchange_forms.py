"""Feature files of other programs: read as they are, or refused by name, and never run."""

import io
import os
import pickle
import zipfile

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings

from her2.core.errors import SlideError, UserError
from her2.core.files import canonical_json
from her2.exchange import content as content_module
from her2.exchange.checks import check_given, finite_blocks, mixed_dimensions
from her2.exchange.content.opening import open_content
from her2.exchange.given import form_names, given_files, read_given
from her2.exchange.registry import installed_forms
from tests.peak import peak_megabytes
from tests.unit.exchange_makers import (
    SIZE,
    TILE,
    TILES,
    VECTORS,
    corners,
    features_of,
    write_clam_h5,
    write_hub_h5,
    write_npy,
    write_stamp,
    write_stamp_slide,
    write_torch,
    write_trident,
)


def all_rows(given):
    return np.concatenate([*given.blocks(), np.empty((0, given.dimension), given.dtype)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("given")


@pytest.mark.parametrize("form", TILES)
@hypothesis_given(
    rows=st.integers(2, 300),
    dimension=st.integers(1, 40),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    block_bytes=st.sampled_from([1, 999, 16 << 20]),
)
@settings(max_examples=12, deadline=None)
def test_a_form_is_found_by_content_and_its_rows_come_back_bit_for_bit(
    form, folder, rows, dimension, dtype, block_bytes
):
    features = features_of(rows, dimension, dtype)
    path = TILES[form][1](folder / f"A-001{TILES[form][0]}", features)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content_module, "BLOCK_BYTES", block_bytes)
        given = read_given(path)
        found = all_rows(given)
        sizes = [block.nbytes for block in given.blocks()]
    assert (given.form, given.level, given.path) == (form, "tile", path)
    assert (given.rows, given.dimension, given.dtype) == (*features.shape, np.dtype(dtype))
    assert found.dtype == features.dtype
    assert found.tobytes() == features.tobytes()
    assert max(sizes) <= max(block_bytes, features[0].nbytes)


@pytest.mark.parametrize("made", VECTORS)
@pytest.mark.parametrize("shape", [(768,), (1, 768)])
def test_one_row_for_a_slide_is_a_vector_whatever_wrote_it(tmp_path, made, shape):
    suffix, write = VECTORS[made]
    features = features_of(1, 768).reshape(shape)
    given = read_given(write(tmp_path / f"A-001{suffix}", features))
    assert (given.form, given.level, given.rows, given.dimension) == ("vector", "slide", 1, 768)
    assert given.coords is None
    assert np.array_equal(all_rows(given), features.reshape(1, 768))
    assert check_given(given) == check_given(given, size_px=(10, 10), mpp=0.5)


def test_every_sample_is_of_exactly_one_form(tmp_path):
    made = [
        write(tmp_path / f"{number}{suffix}", features_of(rows, 6))
        for number, (rows, (suffix, write)) in enumerate(
            [(rows, one) for rows in (2, 70) for one in TILES.values()]
            + [(1, one) for one in VECTORS.values()]
        )
    ]
    for path in made:
        content = open_content(path)
        assert sum(form.recognise(content) for form in installed_forms().values()) == 1, path


def test_trident_says_the_grid_the_size_and_the_slide(tmp_path):
    given = read_given(write_trident(tmp_path / "A-001.h5", features_of(70, 8)))
    assert np.array_equal(given.coords, corners(70))
    assert given.coords.dtype == np.float64
    assert (given.unit, given.tile, given.tile_px, given.size_px) == ("level0_px", TILE, 256, SIZE)
    assert given.stated["name"] == "A-001"
    assert given.stated["encoder"] == "uni_v1"
    assert "/somewhere" not in "".join(map(str, given.stated.values())), "a path of their machine"


def test_an_old_trident_file_without_the_side_of_a_tile_has_it_by_the_magnifications(tmp_path):
    path = write_trident(tmp_path / "A.h5", features_of(3, 4))
    with h5py.File(path, "a") as file:
        for name in ("patch_size_level0", "level0_width", "level0_height"):
            del file["coords"].attrs[name]
    given = read_given(path)
    assert (given.form, given.tile, given.size_px) == ("trident", 256 * 40 // 20, None)


def test_trident_on_the_coordinates_of_clam_is_trident_without_a_side(tmp_path):
    """As tests/test_legacy_coords_features.py of TRIDENT writes it."""
    with h5py.File(tmp_path / "A.h5", "w") as file:
        file["features"] = features_of(3, 3)
        file["features"].attrs.update({"name": "A", "savetodir": "/somewhere"})
        file["coords"] = corners(3)
        file["coords"].attrs.update({"patch_size": 256, "patch_level": 1})
    given = read_given(tmp_path / "A.h5")
    assert (given.form, given.tile, given.tile_px) == ("trident", None, 256)


@pytest.mark.parametrize("shape", [(0, 8), (0,)])
@pytest.mark.parametrize("form", ["trident", "clam-h5", "clam-pt", "stamp"])
def test_a_slide_without_tissue_has_no_rows_and_says_so(tmp_path, form, shape):
    suffix, write = TILES[form]
    given = read_given(write(tmp_path / f"A{suffix}", np.empty(shape, np.float32)))
    assert (given.form, given.rows) == (form, 0)
    assert list(given.blocks()) == []
    assert "has no rows" in check_given(given).problems[0]


def test_stamp_is_in_um_of_every_version(tmp_path):
    um = corners(70) / TILE * 256.0
    new = read_given(write_stamp(tmp_path / "new.h5", features_of(70, 8, "float16")))
    before_2_1 = read_given(
        write_stamp(tmp_path / "v2.h5", features_of(70, 8), tile_size_um=None, tile_size=256.0)
    )
    nothing = {"unit": None, "tile_size_um": None, "tile_size_px": None, "feat_type": None}
    first = read_given(
        write_stamp(tmp_path / "v1.h5", features_of(70, 8), um / 256 * 224, **nothing)
    )
    for given in (new, before_2_1, first):
        assert (given.form, given.unit, given.tile, given.size_px) == ("stamp", "um", 256.0, None)
        assert np.allclose(given.coords, um, atol=1e-3)
    assert (new.tile_px, first.tile_px) == (224, 224)
    assert new.stated["extractor"] == "uni2"


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ({"unit": "px"}, "coordinates are in 'px', not 'um'"),
        ({"unit": None, "tile_size_um": None}, "neither tile_size_um nor a unit"),
    ],
)
def test_stamp_coordinates_of_an_unknown_unit_are_refused(tmp_path, of, said):
    path = write_stamp(tmp_path / "A.h5", features_of(70, 8), corners(70), **of)
    with pytest.raises(SlideError, match=said):
        read_given(path)


def test_features_of_a_patient_are_not_those_of_a_slide(tmp_path):
    path = write_stamp_slide(tmp_path / "P1.h5", features_of(1, 8), "patient")
    with pytest.raises(SlideError, match=r"P1\.h5: as vector .*describes a patient"):
        read_given(path)


def test_bfloat16_becomes_float32_without_a_change(tmp_path):
    values = torch.randn(70, 8).to(torch.bfloat16)
    given = read_given(write_torch(tmp_path / "A.pt", values))
    assert given.dtype == np.float32
    assert np.array_equal(all_rows(given), values.float().numpy())


def test_bfloat16_in_hdf5_is_read_as_float32(tmp_path):
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    values = torch.randn(70, 8).to(torch.bfloat16).float().numpy()
    with h5py.File(tmp_path / "A.h5", "w") as file:
        file["coords"] = corners(70)
        space = h5py.h5s.create_simple(values.shape)
        made = h5py.h5d.create(file.id, b"features", kind, space)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
    given = read_given(tmp_path / "A.h5")
    assert given.dtype == np.float32
    assert np.array_equal(all_rows(given), values)


def test_names_and_texts_that_cannot_be_shown_do_no_harm(tmp_path):
    path = write_stamp(tmp_path / "A.h5", features_of(6, 4), extractor=b"\xff\x1b[2J uni")
    with h5py.File(path, "a") as file:
        file["\x1b[2J"] = file["x" * 5000] = np.ones(3)
        file.attrs["\x1b]0;x\x07"] = "x"
        file.attrs.create("broken", b"\xff", dtype=h5py.string_dtype())
    given = read_given(path)
    assert canonical_json(dict(given.stated)).encode()
    assert all(name.isprintable() for name in given.stated)
    with pytest.raises(SlideError) as caught:
        read_given(path, "trident")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("old", [True, False])
def test_torch_files_of_both_containers_are_read(tmp_path, old):
    features = features_of(70, 8)
    given = read_given(write_torch(tmp_path / "A.pt", features, old=old))
    assert np.array_equal(all_rows(given), features)


@pytest.mark.parametrize("layout", [{"dtype": ">f4"}, {"compression": "gzip", "shuffle": True}])
def test_byte_order_and_compression_change_nothing(tmp_path, layout):
    features = features_of(700, 8)
    with h5py.File(tmp_path / "A.h5", "w") as file:
        file.create_dataset("features", data=features, **layout)
        file["coords"] = corners(700)
    given = read_given(tmp_path / "A.h5")
    assert given.dtype.isnative
    assert np.array_equal(all_rows(given), features)


def test_the_form_can_be_named_where_content_does_not_tell(tmp_path):
    """A slide of one tile, in a form without coordinates."""
    path = write_torch(tmp_path / "A.pt", features_of(1, 8))
    assert read_given(path).level == "slide"
    assert read_given(path, "clam-pt").level == "tile"


@pytest.mark.parametrize("form", form_names())
def test_a_form_that_a_file_does_not_have_is_refused_with_what_it_lacks(tmp_path, form):
    """Forms that differ in nothing but attributes and an axis of length 1 read each other's."""
    also = {"clam-h5": ("0.h5", "4.h5"), "hub-h5": ("0.h5", "1.h5"), "trident": ("1.h5", "4.h5")}
    for number, (suffix, write) in enumerate(TILES.values()):
        path = write(tmp_path / f"{number}{suffix}", features_of(70, 8))
        if path.name in also.get(form, ()):
            assert read_given(path, form).rows == 70
        elif form != list(TILES)[number]:
            with pytest.raises(SlideError, match=f"^{path.name}: as {form} "):
                read_given(path, form)


def test_a_form_that_does_not_exist_is_the_mistake_of_the_user(tmp_path):
    with pytest.raises(UserError, match="'tridant' is no form .* did you mean 'trident'"):
        read_given(write_clam_h5(tmp_path / "A.h5", features_of(3, 3)), "tridant")
    with pytest.raises(UserError, match="the forms are clam-h5, clam-pt"):
        given_files([tmp_path], "xyz")


def test_files_are_listed_by_suffix_in_folders_below_and_not_twice(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in (
        "A.h5",
        "deep/B.H5",
        "C.pt",
        "D.npy",
        "A.h5.lock",
        "x.jpg",
        ".hidden/E.h5",
        ".F.h5",
    ):
        (tmp_path / name).touch()
    names = [path.name for path in given_files([tmp_path, tmp_path / "deep"])]
    assert names == ["A.h5", "C.pt", "D.npy", "B.H5"]
    assert [path.name for path in given_files([tmp_path], "clam-pt")] == ["C.pt"]
    with pytest.raises(UserError, match="does not exist; name the folder with the feature files"):
        given_files([tmp_path / "absent"])


class Bomb:
    """A pickle that runs code when it is read."""

    place = ""

    def __reduce__(self):
        return (os.mkdir, (f"{Bomb.place}/it-ran",))


def dataset(path, name="features", *given, **options):
    """Write a file whose `name` is made so, and that has good coordinates."""
    with h5py.File(path, "w") as file:
        file["coords"] = corners(6)
        file.create_dataset(name, *given, **options)


def link(path, target):
    with h5py.File(path, "w") as file:
        file["coords"] = corners(6)
        file["features"] = target
        file["other"] = h5py.SoftLink("/features")


def virtual(path):
    layout = h5py.VirtualLayout((6, 4), "f4")
    layout[:] = h5py.VirtualSource(path.with_name("secret.h5"), "features", (6, 4))
    with h5py.File(path, "w") as file:
        file["coords"] = corners(6)
        file.create_virtual_dataset("features", layout)


def pickled(path, value):
    path.write_bytes(pickle.dumps(value))


def zipped(path, compression, size):
    """Write a torch file whose members are compressed, of zeros."""
    plain = io.BytesIO()
    torch.save(torch.zeros(size // 16, 4), plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", compression) as out:
        for member in source.infolist():
            out.writestr(member.filename, source.read(member))


def npy_of(path, header):
    text = f"{header}\n".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)


def half(path, write):
    write(path, features_of(600, 50))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


HOSTILE = {
    # HDF5
    "text": ("A.h5", lambda p: dataset(p, data=[b"x"] * 6), "plain numbers"),
    "variable text": (
        "A.h5", lambda p: dataset(p, data=["x"] * 6, dtype=h5py.string_dtype()), "plain numbers"),
    "complex": ("A.h5", lambda p: dataset(p, data=np.ones((6, 4), complex)), "plain numbers"),
    "references": ("A.h5", lambda p: dataset(p, shape=(6,), dtype=h5py.ref_dtype), "holds 0"),
    "pairs": ("A.h5", lambda p: dataset(p, data=np.ones(6, "i4,i4")), "plain numbers"),
    "long doubles": (
        "A.h5", lambda p: dataset(p, data=np.ones((6, 4), "longdouble")), "plain numbers"),
    "integers": ("A.h5", lambda p: dataset(p, data=np.ones((6, 4), "i4")), "int32, not float16"),
    "a scalar": ("A.h5", lambda p: dataset(p, data=1.0), "no array with rows"),
    "four axes": ("A.h5", lambda p: dataset(p, data=np.ones((1, 2, 3, 4))), "none of the forms"),
    "batches": ("A.h5", lambda p: dataset(p, data=np.ones((2, 6, 4), "f4")), r"\(2, 6, 4\)"),
    "an external link": (
        "A.h5", lambda p: link(p, h5py.ExternalLink("secret.h5", "features")), "a link to another"),
    "a soft link": ("A.h5", lambda p: link(p, h5py.SoftLink("/coords")), "a link to another"),
    "a loop of links": ("A.h5", lambda p: link(p, h5py.SoftLink("/other")), "a link to another"),
    "bytes of another file": (
        "A.h5",
        lambda p: dataset(
            p, shape=(6, 4), dtype="f4", external=[(str(p.with_name("secret.h5")), 0, 96)]),
        "in other files"),
    "a virtual array": ("A.h5", virtual, "in other files"),
    "rows never written": (
        "A.h5", lambda p: dataset(p, shape=(10**6, 1024), dtype="f4", chunks=(1, 1024)), "holds 0"),
    "a billion rows": (
        "A.h5", lambda p: dataset(p, shape=(10**9, 4), dtype="f4", chunks=True), "declares"),
    "endless rows": (
        "A.h5", lambda p: dataset(p, shape=(6, 10**8), dtype="f4", chunks=(1, 10**6)), "declares"),
    "compressed zeros": (
        "A.h5",
        lambda p: dataset(p, data=np.zeros((20_000, 512), "f4"), compression="gzip"),
        "declares 40,960,000 bytes and holds"),
    "no features": ("A.h5", lambda p: dataset(p, "other", data=np.ones((6, 4))), "none of the f"),
    "half an HDF5 file": ("A.h5", lambda p: half(p, write_trident), "cannot be read"),
    # torch
    "code": ("A.pt", lambda p: torch.save(Bomb(), p), "holds more than tensors"),
    "code beside tensors": (
        "A.pt", lambda p: torch.save([torch.ones(6, 4), Bomb()], p), "holds more than tensors"),
    "a bare pickle of code": ("A.pt", lambda p: pickled(p, Bomb()), "A.pt: it "),
    "an array of numpy": ("A.pt", lambda p: torch.save(np.ones((6, 4)), p), "torch.save"),
    "a dict": (
        "A.pt", lambda p: torch.save({"features": torch.ones(6, 4)}, p), "a dict of 'features'"),
    "a sparse tensor": ("A.pt", lambda p: torch.save(torch.ones(6, 4).to_sparse(), p), "sparse"),
    "a meta tensor": ("A.pt", lambda p: torch.save(torch.ones(6, 4, device="meta"), p), "meta"),
    "a tensor of integers": ("A.pt", lambda p: torch.save(torch.ones(6, 4).int(), p), "int32"),
    "a complex tensor": (
        "A.pt", lambda p: torch.save(torch.ones(6, 4, dtype=torch.cfloat), p), "complex64"),
    "one row a billion times": (
        "A.pt", lambda p: torch.save(torch.ones(1, 64).expand(10**9, 64), p), "holds fewer"),
    "a zip bomb": ("A.pt", lambda p: zipped(p, zipfile.ZIP_DEFLATED, 1 << 24), "unpacks to"),
    "half a torch file": ("A.pt", lambda p: half(p, write_torch), "copy it again"),
    # npy
    "objects": (
        "A.npy", lambda p: np.save(p, np.array([Bomb()] * 4, object)), "holds Python objects"),
    "rows of tiles": ("A.npy", lambda p: write_npy(p, features_of(6, 4)), "none of the forms"),
    "fewer values than declared": (
        "A.npy",
        lambda p: npy_of(p, "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 10**9)}"),
        "no npy file that can be read"),
    "declared values": (
        "A.npy",
        lambda p: npy_of(p, "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000,)}"),
        "no npy file that can be read"),
    "half an npy file": (
        "A.npy", lambda p: half(p, lambda q, values: np.save(q, values[0])), "no npy file"),
    # any
    "a folder": ("A.h5", lambda p: p.mkdir(), "is a folder, not a file"),
    "a named pipe": ("A.h5", os.mkfifo, "is a named pipe"),
    "nothing": ("A.h5", lambda p: p.touch(), "it is empty"),
    "a link to nowhere": ("A.h5", lambda p: p.symlink_to("nowhere"), "does not exist"),
    "a text": ("A.h5", lambda p: p.write_text("features, coords"), "begins with b'features'"),
    "a pointer of Git LFS": (
        "A.h5", lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_name_and_neither_run_nor_followed(
    tmp_path, monkeypatch, name
):
    monkeypatch.setattr(Bomb, "place", str(tmp_path))
    write_clam_h5(tmp_path / "secret.h5", features_of(6, 4))
    file_name, make, said = HOSTILE[name]
    make(tmp_path / file_name)
    before = peak_megabytes(anew=True)
    with pytest.raises(SlideError, match=said) as caught:
        all_rows(read_given(tmp_path / file_name))
    assert peak_megabytes() - before < 200
    assert str(caught.value).startswith(f"{file_name}: ")
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "it-ran").exists()


def test_coordinates_are_guarded_as_features_are(tmp_path):
    for number, options in enumerate(
        [{"data": [b"x"] * 6}, {"data": np.ones((6, 3))}, {"shape": (10**9, 2), "dtype": "i4"}]
    ):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["features"] = features_of(6, 4)
            file.create_dataset("coords", **options)
        with pytest.raises(SlideError, match=f"{number}.h5: as clam-h5 .*coords"):
            read_given(tmp_path / f"{number}.h5")


def test_attributes_that_are_no_single_value_say_nothing(tmp_path):
    path = write_trident(
        tmp_path / "A.h5", features_of(6, 4), patch_size_level0=np.nan, long="x" * 2000,
        level0_width=-1, several=[1, 2], overlap=np.float32(np.inf), pair=np.ones(1, "i4,i4")[0],
    )  # fmt: skip
    given = read_given(path)
    assert given.size_px is None
    assert given.tile == 512
    assert not {"patch_size_level0", "long", "several", "overlap", "pair"} & set(given.stated)


def test_a_heap_of_texts_that_hdf5_would_walk_through_for_ever_is_refused(tmp_path):
    path = write_stamp(tmp_path / "A.h5", features_of(6, 4))
    heap = path.read_bytes().find(b"GCOL") + 16
    for place, value in ((8, bytes(8)), (8, b"\xff" * 8), (0, bytes(2)), (9, b"\xf0")):
        content = bytearray(write_stamp(path, features_of(6, 4)).read_bytes())
        content[heap + place : heap + place + len(value)] = value
        path.write_bytes(content)
        with pytest.raises(SlideError, match=r"A\.h5: .*the sizes of its texts are damaged"):
            read_given(path)


def test_corners_of_a_grid_may_shrink_as_far_as_they_can(tmp_path):
    rows = 60_000
    with h5py.File(tmp_path / "A.h5", "w") as file:
        file["features"] = features_of(rows, 2)
        grid = np.stack([np.arange(rows) // 16, np.arange(rows) % 16], axis=1) * 512
        made = file.create_dataset("coords", data=grid, compression="gzip", shuffle=True,
                                   compression_opts=9, chunks=(rows, 2))  # fmt: skip
        file.flush()
        assert made.nbytes > 100 * made.id.get_storage_size()
    assert np.array_equal(read_given(tmp_path / "A.h5").coords, grid)


def test_many_and_long_texts_are_no_damage(tmp_path):
    path = write_stamp(tmp_path / "A.h5", features_of(6, 4))
    with h5py.File(path, "a") as file:
        for number in range(60):
            file["feats"].attrs[f"text {number}"] = "x" * (number * 97 % 900)
        for number in range(0, 60, 3):
            del file["feats"].attrs[f"text {number}"]
            file["feats"].attrs[f"GCOL {number}"] = "GCOL" * number
    given = read_given(path)
    assert given.stated["extractor"] == "uni2"
    assert np.array_equal(all_rows(given), features_of(6, 4))


def test_chunks_of_a_whole_slide_are_unpacked_once_and_not_in_one_piece(tmp_path, monkeypatch):
    """Compressed chunks are unpacked whole; those of many rows and few columns have a limit."""
    from her2.exchange.content import hdf5_file

    monkeypatch.setattr(content_module, "BLOCK_BYTES", 1)
    features = features_of(64, 8)
    for chunks, sizes in (((64, 8), [64]), ((10, 8), [10] * 6 + [4]), ((64, 1), [64])):
        with h5py.File(tmp_path / "A.h5", "w") as file:
            file.create_dataset("features", data=features, chunks=chunks, compression="gzip")
            file["coords"] = corners(64)
        assert [len(block) for block in read_given(tmp_path / "A.h5").blocks()] == sizes
    monkeypatch.setattr(hdf5_file, "_UNPACKED_BYTES", 16 * features[0].nbytes)
    given = read_given(tmp_path / "A.h5")
    assert [len(block) for block in given.blocks()] == [16] * 4
    assert np.array_equal(all_rows(given), features)


def test_a_large_file_is_never_in_memory_whole(tmp_path):
    rows = 30_000
    path = tmp_path / "A.h5"
    with h5py.File(path, "w") as file:
        made = file.create_dataset("features", (rows, 1024), "f4")
        block = features_of(1000, 1024)
        for start in range(0, rows, 1000):
            made[start : start + 1000] = block
        file["coords"] = np.stack([np.arange(rows)] * 2, axis=1)
    before = peak_megabytes(anew=True)
    assert sum(len(one) for one in finite_blocks(read_given(path))) == rows
    assert peak_megabytes() - before < 70, "the file has 123 MB"


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write_clam_h5(tmp_path / "A.h5", features_of(70, 8))
    given = read_given(path)
    write_clam_h5(path, features_of(60, 8))
    with pytest.raises(SlideError, match=r"A\.h5: cannot be read .*changed while it was read"):
        all_rows(given)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", TILES)
def test_values_that_are_not_finite_are_found_at_their_row(tmp_path, monkeypatch, form, value):
    features = features_of(70, 8)
    features[65, 3] = value
    monkeypatch.setattr(content_module, "BLOCK_BYTES", 10 * features[0].nbytes)
    given = read_given(TILES[form][1](tmp_path / f"A{TILES[form][0]}", features))
    with pytest.raises(SlideError, match=r"A\..*: row 65 of 70 has values that are not finite"):
        list(finite_blocks(given))


def test_good_files_have_no_problems(tmp_path):
    for form, (suffix, write) in TILES.items():
        given = read_given(write(tmp_path / f"A-{form}{suffix}", features_of(70, 8)))
        found = check_given(given, names=frozenset({f"A-{form}"}), size_px=SIZE, mpp=0.5)
        assert (found.problems, found.cautions) == ((), ()), form


def moved(by):
    coords = corners(70)
    coords[7] += by
    return coords


@pytest.mark.parametrize(
    ("coords", "said"),
    [
        (corners(69), "has 70 rows of features and 69 coordinates"),
        (moved((SIZE[0], 0)), "1 of 70 coordinates are outside the slide of 40,000 x 30,000 px"),
        (moved((0, -2000)), "1 of 70 coordinates are outside"),
        (np.zeros((70, 2)), "69 of 70 coordinates repeat others"),
    ],
)
def test_coordinates_that_cannot_be_those_of_the_slide_are_problems(tmp_path, coords, said):
    given = read_given(write_clam_h5(tmp_path / "A.h5", features_of(70, 8), coords))
    problems = check_given(given, size_px=SIZE).problems
    assert len(problems) == 1
    assert said in problems[0]


def test_coordinates_are_compared_with_the_slide_in_um_too(tmp_path):
    um = corners(70) * 0.5
    um[3] = (SIZE[0] * 0.5 + 10, 0)
    given = read_given(write_stamp(tmp_path / "A.h5", features_of(70, 8), um))
    assert check_given(given, size_px=SIZE).problems == (), "without um/px nothing can be said"
    problems = check_given(given, size_px=SIZE, mpp=0.5).problems
    assert "1 of 70 coordinates are outside the slide of 20,000 x 15,000 um" in problems[0]
    assert check_given(given, size_px=SIZE, mpp=1.0).problems == ()


def test_coordinates_that_are_not_finite_are_a_problem(tmp_path):
    um = corners(70).astype(float)
    um[2, 1] = np.nan
    given = read_given(write_stamp(tmp_path / "A.h5", features_of(70, 8), um))
    assert "1 of 70 coordinates are not finite" in check_given(given).problems[0]


def test_a_few_tiles_that_count_twice_are_a_caution(tmp_path):
    coords = corners(70)
    coords[5] = coords[6]
    found = check_given(
        read_given(write_hub_h5(tmp_path / "A.h5", features_of(70, 8))), size_px=SIZE
    )
    assert found.cautions == ()
    found = check_given(read_given(write_clam_h5(tmp_path / "A.h5", features_of(70, 8), coords)))
    assert found.problems == ()
    assert "1 of 70 coordinates repeat" in found.cautions[0]


def test_the_coordinates_of_another_slide_are_a_problem_by_its_size(tmp_path):
    given = read_given(write_trident(tmp_path / "A.h5", features_of(70, 8)))
    problems = check_given(given, size_px=(41_000, 30_000)).problems
    assert "computed on a slide of 40,000 x 30,000 px, and this one has 41,000" in problems[0]


@pytest.mark.parametrize(
    ("named", "names", "is_told"),
    [
        ("A-001", {"a_1"}, False),
        ("A-002", {"A-001"}, True),
        ("A-002", set(), False),
        ("TCGA-A1-A0SB-01Z-00-DX1.B34C267B-CAAA-4AB6-AD5C-276C26F997A1",
         {"TCGA-A1-A0SB-01Z-00-DX1"}, False),
        ("TCGA-A1-A0SB-01Z-00-DX2", {"TCGA-A1-A0SB-01Z-00-DX1"}, True),
    ],
)  # fmt: skip
def test_a_file_that_names_another_slide_is_a_caution(tmp_path, named, names, is_told):
    path = write_trident(tmp_path / "renamed.h5", features_of(70, 8), name=named)
    with h5py.File(path, "a") as file:
        file["features"].attrs["name"] = named
    found = check_given(read_given(path), names=frozenset(names))
    assert found.problems == ()
    assert bool(found.cautions) == is_told


def test_files_of_another_dimension_than_most_are_named():
    kinds = {f"S{i}": ("tile", 1024) for i in range(9)} | {"S9": ("tile", 1536)}
    found = mixed_dimensions(kinds)
    assert set(found) == {"S9"}
    assert "1,536 values per tile" in found["S9"]
    assert "1,024 values per tile in 9 of 10" in found["S9"]
    assert mixed_dimensions(dict.fromkeys("abc", ("tile", 8))) == {} == mixed_dimensions({})


def test_without_a_majority_nobody_can_tell_which_dimension_was_meant():
    assert set(mixed_dimensions({"a": ("tile", 8), "b": ("tile", 9)})) == {"a", "b"}


def test_a_slide_of_one_tile_among_vectors_is_told_what_to_write():
    found = mixed_dimensions({"a": ("tile", 8), "b": ("tile", 8), "c": ("slide", 8)})
    assert set(found) == {"c"}
    assert "`format`" in found["c"]
