import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr
import zarr.storage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from her2.core.errors import UserError
from her2.storage import features as store_module
from her2.storage.features import open_store, read_attributes, read_coords, store_problems
from tests.unit.products import write_store

ATTRIBUTES = {"key": "ab" * 32, "tiles": 7, "encoder": {"digest": "cd" * 32}, "mpp": [0.5, 0.25]}


def features(n: int = 7, d: int = 5, dtype: str = "float16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


def coords(n: int = 7) -> np.ndarray:
    return np.arange(2 * n, dtype=np.int32).reshape(n, 2)


def written(folder: Path, values: np.ndarray) -> Path:
    path = folder / "slide.zarr.zip"
    write_store(path, values, coords(len(values)), ATTRIBUTES)
    return path


def read_with_zarr(path: Path) -> tuple[np.ndarray, np.ndarray, dict]:
    with zarr.storage.ZipStore(path, mode="r") as archive:
        group = zarr.open_group(archive, mode="r")
        features, coords = (np.asarray(group[name][:]) for name in ("features", "coords"))
        return features, coords, dict(group.attrs)


def flip_byte(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("n", [1, 7])
def test_zarr_itself_reads_back_what_was_written(tmp_path: Path, n: int, dtype: str) -> None:
    values = features(n, dtype=dtype)
    read, where, attributes = read_with_zarr(written(tmp_path, values))
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values)
    assert where.dtype == np.int32
    np.testing.assert_array_equal(where, coords(n))
    assert attributes == ATTRIBUTES | {"seal": attributes["seal"]}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("n", [1, 7])
def test_the_mapped_rows_are_the_written_ones(tmp_path: Path, n: int, dtype: str) -> None:
    values = features(n, dtype=dtype)
    opened = open_store(written(tmp_path, values))
    assert isinstance(opened.chunks[0], np.memmap)
    assert len(opened) == n
    assert opened.dimension == values.shape[1]
    assert opened.features.dtype == values.dtype
    np.testing.assert_array_equal(opened.features, values)
    assert opened.attributes == ATTRIBUTES | {"seal": opened.attributes["seal"]}
    np.testing.assert_array_equal(read_coords(opened.path), coords(n))
    assert read_attributes(opened.path) == opened.attributes


def test_a_mapped_store_cannot_be_written_to(tmp_path: Path) -> None:
    opened = open_store(written(tmp_path, features()))
    with pytest.raises(ValueError, match="read-only"):
        opened.features[0, 0] = 1


@pytest.mark.parametrize("n", [8, 9, 11])
def test_several_chunks_gather_in_the_order_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    values = features(n, d=5, dtype="float32")
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 4 * 5 * 4)  # four rows
    path = written(tmp_path, values)
    opened = open_store(path)
    assert [len(chunk) for chunk in opened.chunks] == {8: [4, 4], 9: [4, 4, 1], 11: [4, 4, 3]}[n]
    rows = np.array([n - 1, 0, 4, 3, 7, 0])
    np.testing.assert_array_equal(opened.gather(rows), values[rows])
    np.testing.assert_array_equal(opened.features, values)
    np.testing.assert_array_equal(read_with_zarr(path)[0], values)
    assert store_problems(path) == []


def test_one_chunk_gathers_in_the_order_asked_for(tmp_path: Path) -> None:
    values = features()
    rows = np.array([6, 0, 3, 3])
    np.testing.assert_array_equal(open_store(written(tmp_path, values)).gather(rows), values[rows])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=hnp.arrays(
        st.sampled_from([np.float16, np.float32]),
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    chunk_bytes=st.integers(1, 200),
)
def test_any_finite_matrix_survives_the_store(
    tmp_path: Path, values: np.ndarray, chunk_bytes: int
) -> None:
    path = tmp_path / "slide.zarr.zip"
    path.unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "CHUNK_BYTES", chunk_bytes)
        write_store(path, values, coords(len(values)), {})
    np.testing.assert_array_equal(open_store(path).features, values)
    np.testing.assert_array_equal(read_with_zarr(path)[0], values)


def test_features_that_are_all_zero_can_be_mapped(tmp_path: Path) -> None:
    # zarr leaves out chunks that hold the fill value alone, unless told otherwise.
    opened = open_store(written(tmp_path, np.zeros((3, 4), np.float16)))
    np.testing.assert_array_equal(opened.features, np.zeros((3, 4)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    values = features()
    values[3, 2] = value
    with pytest.raises(ValueError, match="1 values are not finite"):
        written(tmp_path, values)
    assert not (tmp_path / "slide.zarr.zip").exists()


@pytest.mark.parametrize(
    ("values", "where"),
    [
        (features(3), coords(4)),
        (features(0), coords(0)),
        (features(3)[:, 0], coords(3)),
    ],
    ids=["more coords than features", "no row", "one axis"],
)
def test_shapes_that_do_not_agree_are_refused(
    tmp_path: Path, values: np.ndarray, where: np.ndarray
) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        write_store(tmp_path / "slide.zarr.zip", values, where, {})


def test_a_sound_store_has_no_problems(tmp_path: Path) -> None:
    assert store_problems(written(tmp_path, features())) == []


@pytest.mark.parametrize("array", ["features", "coords"])
def test_a_flipped_byte_is_found(tmp_path: Path, array: str) -> None:
    values = features()
    path = written(tmp_path, values)
    content = (values if array == "features" else coords()).tobytes()
    flip_byte(path, path.read_bytes().index(content) + 9)
    assert store_problems(path) == [f"has a wrong checksum in {array}/c/0/0"]


def test_non_finite_values_that_another_program_stored_are_found(tmp_path: Path) -> None:
    path = tmp_path / "slide.zarr.zip"
    with zarr.storage.ZipStore(path, mode="w", compression=zipfile.ZIP_STORED) as archive:
        group = zarr.create_group(archive, zarr_format=3, attributes={})
        for name, values in (("features", np.full((2, 3), np.nan)), ("coords", coords(2))):
            group.create_array(name, data=values, chunks=values.shape, compressors=None)
    assert store_problems(path) == ["contains values that are not finite"]


def test_rows_without_coordinates_are_found(tmp_path: Path) -> None:
    path = tmp_path / "slide.zarr.zip"
    with zarr.storage.ZipStore(path, mode="w", compression=zipfile.ZIP_STORED) as archive:
        group = zarr.create_group(archive, zarr_format=3, attributes={})
        for name, values in (("features", features(3)), ("coords", coords(2))):
            group.create_array(name, data=values, chunks=values.shape, compressors=None)
    assert store_problems(path) == ["has 3 rows of features for 2 coordinates"]


def test_a_text_file_is_not_a_store(tmp_path: Path) -> None:
    path = tmp_path / "slide.zarr.zip"
    path.write_text("slide_id,path\n")
    for read in (open_store, read_attributes):
        with pytest.raises(UserError, match=r"slide\.zarr\.zip: is not a feature store"):
            read(path)
    assert store_problems(path)[0].startswith("cannot be read")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_store_is_refused(tmp_path: Path, share: float) -> None:
    path = written(tmp_path, features())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="Delete it"):
        open_store(path)
    assert store_problems(path)


def test_an_absent_store_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run snakemake again"):
        open_store(tmp_path / "slide.zarr.zip")


def test_another_zip_is_not_a_store(tmp_path: Path) -> None:
    path = tmp_path / "slide.zarr.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("zarr.json", json.dumps({"zarr_format": 3}))
    with pytest.raises(UserError, match="attributes"):
        open_store(path)


def test_a_compressed_store_is_refused_and_not_misread(tmp_path: Path) -> None:
    path = written(tmp_path, np.ones((64, 8), np.float16))
    packed = tmp_path / "packed.zarr.zip"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match=r"features/c/0/0 is compressed"):
        open_store(packed)


def test_a_store_without_a_tile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr.zip"
    with zarr.storage.ZipStore(path, mode="w") as store:
        group = zarr.create_group(store, zarr_format=3, attributes={})
        group.create_array("features", shape=(0, 4), dtype="float16", chunks=(1, 4))
    with pytest.raises(UserError, match="has no tiles"):
        open_store(path)
