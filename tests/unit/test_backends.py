"""Adding a slide reader means adding one file; its slides go through the real stages."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from her2.cohort.manifest import Cohort, SlideRow
from her2.config import EncoderSection, TilingSection
from her2.config.jobs import EmbedSpec, TileSpec
from her2.core.errors import SlideError
from her2.embedding.stage import embed_bucket
from her2.slides import backends, staging
from her2.slides.backends import slide_files
from her2.slides.fingerprint import fingerprint
from her2.slides.slide import Scale, Slide
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, TileEntry
from her2.storage.features import open_store
from her2.storage.tiles import read_table
from her2.tiling.stage import tile_bucket
from tests.unit.products import materialise

BUCKET, MPP, SIZE = "0000-of-0001", 0.5, 64
READER = '''
"""Slides of two files: a JSON file that names an array, and the array."""

import json

import numpy as np
from PIL import Image

from her2.core.errors import SlideError
from her2.slides.backends import OpenedSlide

NAME = "NumPy"
ORDER = 40


def files(path):
    if path.suffix != ".pair":
        return None
    array = path.parent / json.loads(path.read_text())["array"]
    if not array.exists():
        raise SlideError(f"{path.name} names {array.name}, which is not there; copy it")
    return [path, array]


def open_slide(path):
    return Pair(path) if path.suffix == ".pair" else None


class Pair(OpenedSlide):
    reader = vendor = "pair"
    downsamples = (1.0,)

    def __init__(self, path):
        values = json.loads(path.read_text())
        self.mpp = values["mpp"], values["mpp"]
        self._px = np.load(path.parent / values["array"], mmap_mode="r")
        self.level_sizes = (self._px.shape[1::-1],)

    def read_region(self, corner, level, size):
        whole = Image.new("RGBA", size)
        x, y = corner
        left, top = max(0, x), max(0, y)
        part = self._px[top : y + size[1], left : x + size[0]]
        whole.paste(Image.fromarray(np.ascontiguousarray(part)), (left - x, top - y))
        return whole

    def close(self):
        del self._px
'''


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a file to the package for the duration of the test."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "pair.py").write_text(READER)
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "her2.slides.backends.pair", raising=False)


@pytest.fixture
def cohort(reader: None, drawn_slide: Path, tmp_path: Path) -> Cohort:
    """Write the same px as a slide of the added reader and as a PNG."""
    with Slide(drawn_slide) as slide:
        px = slide.region(0, 0, 768, 768, (768, 768))
    folder = tmp_path / "slides"
    folder.mkdir()
    np.save(folder / "px.npy", px)
    (folder / "a.pair").write_text(json.dumps({"array": "px.npy", "mpp": MPP}))
    Image.fromarray(px).save(folder / "b.png")
    rows = SlideRow("pair", "a.pair", "p", {}), SlideRow("png", "b.png", "q", {}, mpp=MPP)
    return Cohort(rows, folder)


def tiled(cohort: Cohort, folder: Path) -> dict[str, TileEntry]:
    spec = TileSpec(bucket=BUCKET, rows="", mpp=MPP, size=SIZE, tiling=TilingSection(min_tiles=1))
    return tile_bucket(spec, cohort, Cache(folder / "cache"), folder / "tiles" / f"{BUCKET}.json")


def embedded(cohort: Cohort, folder: Path) -> dict[str, FeatureEntry]:
    """The slides are read from copies on a scratch disk."""
    section = EncoderSection(
        source="random", model="timm/resnet10t", mpp=MPP, size=SIZE, precision="float32"
    )
    materialise(section, 1, folder / "encoder")
    (folder / "scratch").mkdir()
    return embed_bucket(
        EmbedSpec(bucket=BUCKET, rows="", max_failed_tiles=0.0), cohort, Cache(folder / "cache"),
        tiles=folder / "tiles" / f"{BUCKET}.json", encoder=folder / "encoder",
        output=folder / "features" / f"{BUCKET}.json", batch_size=16, threads=1,
        scratch=str(folder / "scratch"),
    )  # fmt: skip


def test_a_slide_of_an_added_reader_is_tiled_and_embedded(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(staging, "_same_disk", lambda *_: False)
    tiles, cache = tiled(cohort, tmp_path), Cache(tmp_path / "cache")
    assert tiles["pair"].status == "ok"
    facts = tiles["pair"].facts
    assert (facts.vendor, facts.mpp_x, facts.mpp_source) == ("pair", MPP, "metadata")
    tables = [read_table(cache.path("tiles", str(tiles[name].key))) for name in ("pair", "png")]
    assert len(tables[0]) > 10
    np.testing.assert_array_equal(tables[0].coords, tables[1].coords)
    with caplog.at_level(logging.INFO):
        features = embedded(cohort, tmp_path)
    stores = [
        open_store(cache.path("features", str(features[name].key))) for name in ("pair", "png")
    ]
    assert stores[0].attributes["receipt"]["reader"] == "pair"
    np.testing.assert_allclose(stores[0].features, stores[1].features, atol=1e-3)
    assert "2 of 2 slides were read from copies there" in caplog.text


def test_a_change_of_its_second_file_is_another_slide(cohort: Cohort, tmp_path: Path) -> None:
    path, array = cohort.root / "a.pair", cohort.root / "px.npy"
    assert slide_files(path) == [path, array]
    before, key = fingerprint(path), tiled(cohort, tmp_path)["pair"].key
    px = np.load(array)
    px[0, 0, 0] ^= 1
    np.save(array, px)
    assert fingerprint(path) != before
    assert tiled(cohort, tmp_path)["pair"].key != key


def test_both_of_its_files_are_copied_to_a_scratch_disk(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_same_disk", lambda *_: False)
    path = cohort.root / "a.pair"
    with staging.staged(str(tmp_path), [path]) as stage, stage.open(path) as slide:
        names = {file.name for file in slide.path.parent.iterdir()}
        assert names == {"a.pair", "px.npy"}
        assert slide.path.parent != cohort.root


def test_a_file_that_it_misses_fails_the_slide_alone(cohort: Cohort, tmp_path: Path) -> None:
    (cohort.root / "px.npy").unlink()
    tiles = tiled(cohort, tmp_path)
    assert tiles["png"].status == "ok"
    assert tiles["pair"].status == "failed"
    assert tiles["pair"].reason == "a.pair names px.npy, which is not there; copy it"


def test_a_file_of_no_reader_names_all_of_them(reader: None, tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_text("no slide")
    with pytest.raises(SlideError, match="not a slide that .*NumPy, .*OpenSlide.* can open"):
        Slide(tmp_path / "a.svs")


def test_readers_are_asked_in_their_order(reader: None) -> None:
    names = [backend.NAME for backend in backends.backends()]
    assert [name for name in names if name in ("NumPy", "OpenSlide", "Pillow")] == [
        "NumPy", "OpenSlide", "Pillow",
    ]  # fmt: skip


def test_beyond_the_border_an_added_reader_is_white_too(cohort: Cohort) -> None:
    with Slide(cohort.root / "a.pair") as pair, Slide(cohort.root / "b.png") as png:
        assert pair.scale() == Scale(MPP, MPP, "metadata")
        for region in ((-20.5, 700, 200, 200, (64, 64)), (100, -30, 50, 60, (50, 60))):
            np.testing.assert_array_equal(pair.region(*region), png.region(*region))


def test_readers_are_imported_when_a_slide_is_asked_for() -> None:
    """Parsing a config and jobs that open no slide do not import the readers' libraries."""
    code = (
        "import sys, her2.slides.slide, her2.slides.fingerprint, her2.slides.staging\n"
        "print(*sorted({'openslide', 'tifffile', 'imagecodecs'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
