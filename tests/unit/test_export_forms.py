"""What each form has of a store, read as the program of that form reads it.

The layouts are facts about the readers that each writer names with repository and commit; TRIDENT's
files are also read by torchmil's data set of them, and all that her2 reads by its own readers.
"""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from torchmil.datasets import ProcessedMILDataset, TridentWSIDataset

import her2.exchange.slide_features
import her2.exchange.writers._hdf5
import her2.storage.features
from her2.exchange.checks import check_given, finite_blocks
from her2.exchange.export import Exported, export_features
from her2.exchange.given import read_given
from her2.exchange.matching import match_given
from her2.exchange.writers.stamp import coords_um
from her2.exchange.writers.trident import magnification
from tests.unit.export_makers import CARD, SIZE, Made, make, matrix

EXTRACTOR = f"her2-mine-{CARD.digest[:8]}"
GRID = "20x_256px_0px_overlap"
KINDS = ("float16", "float32", "float64")
every_kind = pytest.mark.parametrize("kind", KINDS)


def hdf5(name: str, path: str) -> Callable[[Path, str], NDArray[Any]]:
    def read(out: Path, slide_id: str) -> NDArray[Any]:
        with h5py.File(out / path.format(slide_id)) as file:
            return file[name][:]

    return read


def tensor(out: Path, slide_id: str) -> NDArray[Any]:
    return torch.load(out / "pt_files" / f"{slide_id}.pt", weights_only=True).numpy()


def table(out: Path, slide_id: str) -> NDArray[Any]:
    found = pq.read_table(out / "features" / f"{slide_id}.parquet")["features"].combine_chunks()
    return found.flatten().to_numpy().reshape(len(found), -1)


def zarr_x(out: Path, slide_id: str) -> NDArray[Any]:
    return anndata.read_zarr(out / f"{slide_id}.zarr" / "tables" / "features").X


READERS = {
    "trident": hdf5("features", GRID + "/features_mine/{}.h5"),
    "stamp": hdf5("feats", EXTRACTOR + "/{}.h5"),
    "anndata": lambda out, slide_id: anndata.read_h5ad(out / f"{slide_id}.h5ad").X,
    "spatialdata": zarr_x,
    "parquet": table,
}
CLAM = {"h5": hdf5("features", "h5_files/{}.h5"), "pt": tensor}


def export(made: Made, form: str, *slides: str) -> tuple[Path, Exported]:
    out = made.root.parent / form
    return out, export_features(made.root, out, form, slides=slides or None)


# The same bits


@every_kind
@pytest.mark.parametrize("form", READERS)
def test_features_keep_every_bit_and_their_type(tmp_path: Path, form: str, kind: str) -> None:
    made = make(tmp_path, kind)
    out, _ = export(made, form, "A-1")
    found, values = READERS[form](out, "A-1"), made.features["A-1"]
    assert (found.dtype, found.shape) == (values.dtype, values.shape)
    assert found.tobytes() == values.tobytes()


@every_kind
@pytest.mark.parametrize("reader", CLAM)
def test_clam_has_float32_and_what_that_rounds_is_said(
    tmp_path: Path, reader: str, kind: str
) -> None:
    made = make(tmp_path, kind)
    out, done = export(made, "clam")
    for slide_id, values in made.features.items():
        found = CLAM[reader](out, slide_id)
        assert found.dtype == np.float32
        assert found.tobytes() == values.astype(np.float32).tobytes()
        exact = bool((found.astype(kind) == values).all())
        assert exact == (kind != "float64")
    said = [what for what in done.losses if what.startswith("features are rounded from float64")]
    assert len(said) == (kind == "float64")


@pytest.mark.parametrize("form", [*READERS, "clam"])
def test_a_store_of_several_chunks_is_written_in_blocks(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (her2.storage.features, her2.exchange.slide_features):
        monkeypatch.setattr(module, "BLOCK_BYTES", 60)  # five rows
    monkeypatch.setattr(her2.exchange.writers._hdf5, "_CHUNK_BYTES", 40)
    monkeypatch.setattr(her2.storage.features, "CHUNK_BYTES", 12 * 8)  # eight rows
    made = make(tmp_path)
    made.embed("A-1", matrix(3, 21))
    out, _ = export(made, form, "A-1")
    found = (READERS | {"clam": tensor})[form](out, "A-1")
    np.testing.assert_array_equal(found, made.features["A-1"])


@pytest.mark.parametrize("form", ["clam", "anndata", "spatialdata"])
def test_memory_does_not_grow_with_the_slide(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (her2.storage.features, her2.exchange.slide_features):
        monkeypatch.setattr(module, "BLOCK_BYTES", 1 << 18)
    made = make(tmp_path)
    wide = np.ones((1_000, 6_000), np.float16)  # 12 MB
    made.embed("A-1", wide)
    export_features(made.root, tmp_path / "first", form, slides=["B-1"])  # its imports
    tracemalloc.start()
    export_features(made.root, tmp_path / "second", form, slides=["A-1"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < wide.nbytes / 2


# TRIDENT


def test_trident_has_the_attributes_and_types_of_its_own_files(tmp_path: Path) -> None:
    made = make(tmp_path)
    out, _ = export(made, "trident")
    expected = {
        "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40,
        "target_magnification": 20, "overlap": 0, "name": "A-1", "savetodir": GRID,
        "level0_width": SIZE[0], "level0_height": SIZE[1],
    }  # fmt: skip
    for path in (f"{GRID}/features_mine/A-1.h5", f"{GRID}/patches/A-1_patches.h5"):
        with h5py.File(out / path) as file:
            assert dict(file["coords"].attrs) == expected
            assert file["coords"].dtype == np.int64
            np.testing.assert_array_equal(file["coords"][:], made.coords["A-1"])
            assert json.loads(file.attrs["her2"])["slide"]["um_per_px"] == [0.25, 0.25]
    with h5py.File(out / f"{GRID}/features_mine/A-1.h5") as file:
        assert dict(file["features"].attrs) == {
            "name": "A-1", "savetodir": f"{GRID}/features_mine", "encoder": "mine",
        }  # fmt: skip


def test_torchmil_reads_a_trident_export_with_its_labels(tmp_path: Path) -> None:
    made = make(tmp_path, "float32")
    out, _ = export(made, "trident")
    pl.DataFrame({"wsi": list(made.features), "label": [1, 0, 1]}).write_csv(tmp_path / "l.csv")
    found = TridentWSIDataset(
        f"{out}/{GRID}/", str(tmp_path / "l.csv"), "mine", bag_keys=["X", "Y", "coords", "adj"],
        patch_size=512, wsi_name_col="wsi", wsi_label_col="label", load_at_init=False,
    )  # fmt: skip
    assert found.get_bag_names() == sorted(made.features)
    for index, name in enumerate(found.get_bag_names()):
        bag = found[index]
        np.testing.assert_array_equal(bag["X"].numpy(), made.features[name])
        np.testing.assert_array_equal(bag["coords"].numpy(), made.coords[name] // 512)
        assert bag["Y"].item() == (name != "B-1")


@pytest.mark.parametrize(
    ("mpp", "side", "scan"),
    [(0.25, 512, 40), (0.2525, 507, 20 * 256 * 0.5 / 0.2525 / 256), (0.5, 256, 20)],
)
def test_trident_cuts_the_same_squares_again(
    tmp_path: Path, mpp: float, side: int, scan: float
) -> None:
    made = make(tmp_path, mpp=(mpp, mpp))
    out, done = export(made, "trident")
    with h5py.File(out / f"{GRID}/patches/A-1_patches.h5") as file:
        found = dict(file["coords"].attrs)
    assert found["level0_magnification"] == scan
    # as `WSIPatcher` in trident/wsi_objects/WSIPatcher.py (commit ba2de3c8) does
    downsample = (10 / found["target_magnification"]) / (10 / found["level0_magnification"])
    assert round(found["patch_size"] * downsample) == found["patch_size_level0"] == side
    assert any("patch_size_level0 is rounded" in what for what in done.losses) == (mpp == 0.2525)


def test_magnifications_are_those_that_trident_takes_um_per_px_for() -> None:
    found = {mpp: magnification(mpp) for mpp in (0.12, 0.17, 0.25, 0.5, 0.59, 1.0, 2.0, 4.0)}
    assert list(found.values()) == [80, 60, 40, 20, 20, 10, 5, 2.5]


# CLAM


def test_clam_has_its_folders_tables_and_the_attributes_of_patches(tmp_path: Path) -> None:
    made = make(tmp_path)
    out, _ = export(made, "clam")
    for folder in ("h5_files", "patches"):
        with h5py.File(out / folder / "A-1.h5") as file:
            assert file["coords"].dtype == np.int32
            np.testing.assert_array_equal(file["coords"][:], made.coords["A-1"])
    with h5py.File(out / "patches" / "A-1.h5") as file:
        assert (file["coords"].attrs["patch_size"], file["coords"].attrs["patch_level"]) == (512, 0)
    assert pl.read_csv(out / "dataset_her2.csv").rows() == [
        ("P1", "A-1", "3+"), ("P1", "A-2", "3+"), ("P2", "B-1", "0")
    ]  # fmt: skip


def test_torchmil_reads_the_hdf5_files_of_a_clam_export(tmp_path: Path) -> None:
    made = make(tmp_path)
    out, _ = export(made, "clam")
    folder = str(out / "h5_files")
    found = ProcessedMILDataset(
        folder, coords_path=folder, bag_keys=["X", "coords"], file_ext=".h5", verbose=False
    )
    assert found.get_bag_names() == sorted(made.features)
    np.testing.assert_array_equal(found[0]["X"].numpy(), made.features["A-1"])


def test_slide_ids_that_pandas_takes_for_numbers_are_said(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert not any("numbers" in what for what in export(made, "clam")[1].losses)
    made.embed("007", matrix(4, 3))
    losses = export(made, "clam")[1].losses
    assert [count for what, count in losses.items() if "for numbers" in what] == [1]


def test_a_slide_without_a_label_is_in_no_table_of_clam(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.tabulate({"A-1": ("P1", None), "B-1": ("P2", "0"), "A-2": ("P1", "3+")})
    out, _ = export(made, "clam")
    assert pl.read_csv(out / "dataset_her2.csv")["slide_id"].to_list() == ["A-2", "B-1"]


# STAMP


def test_stamp_has_um_and_its_file_attributes_and_claims_no_stamp(tmp_path: Path) -> None:
    made = make(tmp_path)
    out, _ = export(made, "stamp")
    with h5py.File(out / EXTRACTOR / "A-1.h5") as file:
        found = {name: value for name, value in file.attrs.items() if name != "her2"}
        assert found == {
            "extractor": EXTRACTOR, "unit": "um", "tile_size_um": 128.0, "tile_size_px": 256,
            "feat_type": "tile",
        }  # fmt: skip
        assert file["coords"].dtype == np.float32
        np.testing.assert_array_equal(file["coords"][:], made.coords["A-1"] * 0.25)


def test_px_come_back_exactly_from_stamps_um_on_any_slide_that_there_is() -> None:
    class Slide:
        coords = np.array([[0, 1], [999_983, 1_048_575], [3, 777_777]], np.int32)
        slide_mpp = (0.1213, 0.2527)

    back = np.rint(coords_um(Slide).astype(np.float64) / Slide.slide_mpp)
    np.testing.assert_array_equal(back, Slide.coords)


def test_slides_of_a_patient_stand_together_in_stamps_slide_table(tmp_path: Path) -> None:
    # `filter_complete_patient_data_` groups neighbours and takes the last group of a patient.
    made = make(tmp_path)
    made.tabulate({"A-1": ("P2", "0"), "A-2": ("P1", "3+"), "B-1": ("P2", "0")})
    out, _ = export(made, "stamp")
    assert pl.read_csv(out / "slide.csv").rows() == [
        ("P1", "A-2.h5"), ("P2", "A-1.h5"), ("P2", "B-1.h5")
    ]  # fmt: skip
    names = pl.read_csv(out / "slide.csv")["FILENAME"]
    assert all((out / EXTRACTOR / name).is_file() for name in names)


def test_clini_has_a_row_for_each_patient_and_guesses_no_label(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.tabulate(
        {"A-1": ("P1", "0"), "A-2": ("P1", "3+"), "B-1": ("P2", "-1"), "C-1": ("P3", "0")}
    )
    out, done = export(made, "stamp")
    found = pl.read_csv(out / "clini.csv", infer_schema=False)
    assert (found.columns, found.rows()) == (["PATIENT", "her2"], [("P1", None), ("P2", "-1")])
    assert [
        count for what, count in done.losses.items() if "where those of the slides" in what
    ] == [2]


@pytest.mark.parametrize("source", ["metadata", "manifest"])
def test_um_per_px_that_stamp_would_not_find_in_the_slide_are_said(
    tmp_path: Path, source: str
) -> None:
    done = export(make(tmp_path, source=source), "stamp")[1]
    assert any("default_slide_mpp" in what for what in done.losses) == (source == "manifest")


@every_kind
def test_stamp_is_said_to_round_what_it_reads_as_float32(tmp_path: Path, kind: str) -> None:
    done = export(make(tmp_path, kind), "stamp")[1]
    assert any("STAMP rounds" in what for what in done.losses) == (kind == "float64")


# AnnData and Parquet


def test_anndata_has_tiles_as_observations_with_centres_and_provenance(tmp_path: Path) -> None:
    made = make(tmp_path)
    out, _ = export(made, "anndata")
    found = anndata.read_h5ad(out / "A-1.h5ad", backed="r")
    assert found.shape == (5, 6)
    corners = made.coords["A-1"]
    np.testing.assert_array_equal(found.obs[["x_level0_px", "y_level0_px"]], corners)
    np.testing.assert_array_equal(found.obsm["spatial"], corners + 256)
    assert list(found.obs["slide_id"].unique()) == ["A-1"]
    about = found.uns["her2"]
    assert (about["mpp"], about["tile_px"], about["encoder"]) == (0.5, 256, CARD.digest)
    stated = json.loads(about["export"])
    assert stated["slide"]["um_per_px"] == [0.25, 0.25]
    assert stated["encoder"]["name"] == "mine"
    found.file.close()
    both = anndata.concat([anndata.read_h5ad(out / f"{name}.h5ad") for name in ("A-1", "B-1")])
    assert both.obs_names.is_unique
    np.testing.assert_array_equal(
        both.X, np.concatenate([made.features["A-1"], made.features["B-1"]])
    )


def test_parquet_has_a_row_for_each_tile_and_a_table_of_slides(tmp_path: Path) -> None:
    made = make(tmp_path, "float32")
    out, _ = export(made, "parquet")
    found = pl.read_parquet(out / "features" / "*.parquet")
    assert found.columns == ["slide_id", "x", "y", "features"]
    assert found.schema["features"] == pl.Array(pl.Float32, 6)
    for slide_id, corners in made.coords.items():
        own = found.filter(slide_id=slide_id)
        np.testing.assert_array_equal(own.select("x", "y").to_numpy(), corners)
        np.testing.assert_array_equal(own["features"].to_numpy(), made.features[slide_id])
    stated = json.loads(pq.read_schema(out / "features" / "A-1.parquet").metadata[b"her2"])
    assert stated["tile"] == {"um_per_px": 0.5, "px": 256, "level0_px": [512.0, 512.0]}
    assert pl.read_parquet(out / "slides.parquet").filter(slide_id="A-1").rows() == [
        ("A-1", "P1", "3+")
    ]


# Our own readers


@every_kind
@pytest.mark.parametrize(
    ("form", "path", "recognised"),
    [
        ("trident", f"{GRID}/features_mine", "trident"),
        ("clam", "h5_files", "clam-h5"),
        ("clam", "pt_files", "clam-pt"),
        ("stamp", EXTRACTOR, "stamp"),
    ],
)
def test_what_is_exported_comes_back(
    tmp_path: Path, form: str, path: str, recognised: str, kind: str
) -> None:
    made = make(tmp_path, kind)
    out, _ = export(made, form)
    files = match_given(dict.fromkeys(made.features), sorted((out / path).iterdir())).files
    assert set(files) == set(made.features)
    for slide_id, file in files.items():
        given = read_given(file)
        assert (given.form, given.level, given.rows) == (
            recognised, "tile", len(made.features[slide_id])
        )  # fmt: skip
        assert (
            check_given(given, names=frozenset({slide_id}), size_px=SIZE, mpp=0.25).problems == ()
        )
        values = np.concatenate(list(finite_blocks(given)))
        expected = made.features[slide_id]
        if form == "clam":
            expected = expected.astype(np.float32)
        assert values.tobytes() == expected.tobytes()
        if given.coords is None:
            assert recognised == "clam-pt"
            continue
        scale = 0.25 if given.unit == "um" else 1
        np.testing.assert_array_equal(np.rint(given.coords / scale), made.coords[slide_id])
        assert given.tile in (None, 512 * scale)


# Features that were not computed here

WHERE = {"level0_tile": (512, 512)}
SIZED = {"size_px": SIZE}
SCALED = {"mpp": (0.25, 0.25), "mpp_source": "manifest"}
AS_SEEN = {"target": {"mpp": 0.5, "px": 256}}
NEEDS: dict[str, dict[str, Any]] = {
    "trident": WHERE | SIZED | SCALED | AS_SEEN,
    "clam": WHERE | SIZED,
    "stamp": SCALED | AS_SEEN,
    "spatialdata": WHERE | SCALED,
    "anndata": {},
    "parquet": {},
}
WORDS = {
    "level0_tile": "the side of its tiles in level-0 px",
    "size_px": "its width and height",
    "mpp": "the um/px of its level-0 px",
    "target": "the um/px of its tiles",
}


@pytest.mark.parametrize("form", NEEDS)
def test_features_from_elsewhere_need_what_the_form_has_and_no_more(
    tmp_path: Path, form: str
) -> None:
    made = make(tmp_path)
    made.take("A-1", matrix(1, 4), **NEEDS[form])
    for number, (missing, words) in enumerate(WORDS.items()):
        if missing in NEEDS[form]:
            facts = {name: value for name, value in NEEDS[form].items() if name != missing}
            made.take(f"lacks-{number}", matrix(1, 4), **facts)
            _, done = export(made, form, "A-1", f"lacks-{number}")
            assert done.failed == {f"lacks-{number}": f"{words} is not known"}
    _, done = export(made, form, "A-1")
    assert {*done.written, *done.kept} == {"A-1"}


def test_features_without_positions_have_none_in_any_form(tmp_path: Path) -> None:
    made = make(tmp_path)
    vector = {"given": {"level": "slide", "positions": False}, **NEEDS["trident"]}
    nowhere = {"given": {"level": "tile", "positions": False}, **NEEDS["trident"]}
    made.take("A-1", matrix(1, 1), **vector)
    made.take("A-2", matrix(1, 1), **nowhere)
    for form in ("trident", "clam", "stamp", "spatialdata"):
        done = export(made, form, "A-1", "A-2", "B-1")[1]
        assert "one vector of the whole slide" in done.failed["A-1"]
        assert "where its tiles are is not known" in done.failed["A-2"]
    out, _ = export(made, "anndata")
    found = anndata.read_h5ad(out / "A-1.h5ad")
    assert (list(found.obs.columns), list(found.obsm)) == (["slide_id"], [])
    out, _ = export(made, "parquet")
    assert pl.read_parquet(out / "features" / "A-1.parquet").select("x", "y").rows() == [
        (None, None)
    ]
