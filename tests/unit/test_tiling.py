import json
import logging
import math
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from her2.cohort.manifest import Cohort, SlideRow
from her2.config import TilingSection
from her2.config.jobs import TileSpec
from her2.core.errors import SlideUnfit
from her2.filters.pen import pen_mask
from her2.slides.backends import flat
from her2.slides.fingerprint import fingerprint
from her2.slides.slide import Slide
from her2.storage.cache import Cache
from her2.storage.entries import TileEntry, read_entries
from her2.storage.tiles import TileTable, read_table, write_table
from her2.synthetic.svs import svs_bytes
from her2.tiling import stage
from her2.tiling.grid import grid_axis, tile_slide
from her2.tiling.stage import tile_bucket
from her2.tiling.tissue import optical_density, tissue_mask

PINK = (200, 120, 170)
REAL_SLIDE = Path(__file__).parents[3] / "shared" / "slides" / "cmu-1-small-region.svs"

# Grids


@given(
    st.integers(1, 200_000), st.floats(16, 4096), st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.75])
)  # fmt: skip
def test_tiles_lie_inside_cover_the_slide_and_do_not_drift(length, tile, overlap):
    starts = grid_axis(length, tile, overlap).astype(float)
    if length < tile:
        assert len(starts) == 0
        return
    stride = tile * (1 - overlap)
    assert starts[0] == 0
    assert (starts >= 0).all()
    assert starts[-1] + tile <= length + 1e-6
    ideal = np.arange(len(starts)) * stride
    assert np.abs(starts - ideal).max() < 1
    assert (starts <= ideal + 1e-6).all()
    # What is left at the end is less than a stride: no further tile fits.
    assert length - (ideal[-1] + tile) < stride
    assert (np.diff(starts) <= math.ceil(stride)).all()


@given(st.integers(1, 100_000), st.integers(16, 2048), st.sampled_from([0, 1, 2, 3]))
def test_the_number_of_tiles_is_exact(length, tile, quarters):
    stride = Fraction(tile) * (4 - quarters) / 4
    expected = 0 if length < tile else (length - tile) // stride + 1
    starts = grid_axis(length, tile, quarters / 4)
    assert len(starts) == expected
    assert starts.tolist() == [math.floor(i * stride) for i in range(expected)]


def test_a_fractional_tile_is_rounded_once():
    """224 px of 0.5 um on a slide of 0.499 um/px are 224.4489 px."""
    tile = Fraction(224) * Fraction("0.5") / Fraction("0.499")
    starts = grid_axis(100_000, float(tile), 0.0)
    assert len(starts) == math.floor(Fraction(100_000) / tile)
    assert starts.tolist() == [math.floor(i * tile) for i in range(len(starts))]


# One slide


def full_of_tissue(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(2).normal(0, 4, (height, width, 3))
    return np.clip(np.array(PINK) + noise, 0, 255).astype(np.uint8)


def cut(path: Path, *, mpp: float, size: int, slide_mpp: float | None = None, **options):
    with Slide(path) as slide:
        return tile_slide(
            slide,
            slide.scale(slide_mpp),
            mpp=mpp,
            size=size,
            tiling=TilingSection(**options),
            fingerprint="f" * 64,
        )


@pytest.fixture(scope="module")
def full_slide(tmp_path_factory, write_slide) -> Path:
    """The slide is 500 x 400 px of tissue, at 0.25 um/px across and 0.5 down."""
    path = tmp_path_factory.mktemp("full") / "full.tif"
    return write_slide(path, full_of_tissue(400, 500), mpp=(0.25, 0.5))


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_a_slide_full_of_tissue_gives_the_whole_grid(full_slide, overlap):
    table, _ = cut(full_slide, mpp=0.5, size=32, overlap=overlap, min_tissue_um=10)
    width, height = 64, 32
    assert (table.grid.level0_width, table.grid.level0_height) == pytest.approx((width, height))
    xs = [x for x in range(0, 500, int(width * (1 - overlap))) if x + width <= 500]
    ys = [y for y in range(0, 400, int(height * (1 - overlap))) if y + height <= 400]
    assert table.coords.tolist() == [[x, y] for y in ys for x in xs]
    assert table.coords.dtype == np.int32
    assert (table.tissue > 0.99).all()
    # 500 px of 0.25 um by 400 px of 0.5 um.
    assert table.facts.tissue_mm2 == pytest.approx(0.125 * 0.2, rel=0.02)
    assert table.facts.mpp_source == "metadata"


def test_only_tiles_with_enough_tissue_are_kept(tmp_path, write_slide):
    """With tissue on the left 140 of 512 px, two tiles of 64 px are full, a third to a fifth."""
    image = np.full((256, 512, 3), 243, np.uint8)
    image[:, :140] = PINK
    path = write_slide(tmp_path / "half.tif", image, mpp=(0.5, 0.5))
    columns = {}
    for share in (0.1, 0.5, 0.9):
        table, _ = cut(path, mpp=0.5, size=64, min_tissue=share, min_tissue_um=20)
        columns[share] = sorted({int(x) for x in table.coords[:, 0]})
        assert len(table) == 4 * len(columns[share])
    assert columns[0.1] == [0, 64, 128]
    assert columns[0.5] == [0, 64]
    assert columns[0.9] in ([0, 64], [0])


def test_the_manifest_s_scale_wins(full_slide):
    table, _ = cut(full_slide, mpp=0.5, size=32, slide_mpp=0.5, min_tissue_um=10)
    facts, grid = table.facts, table.grid
    assert (facts.mpp_x, facts.mpp_y, facts.mpp_source) == (0.5, 0.5, "manifest")
    assert (grid.level0_width, grid.level0_height) == (32, 32)
    assert len(table) == (500 // 32) * (400 // 32)


@pytest.mark.parametrize(("slide_mpp", "fits"), [(0.549, True), (0.551, False), (1.0, False)])
def test_a_slide_too_coarse_for_the_target_is_unfit(full_slide, slide_mpp, fits):
    if fits:
        assert len(cut(full_slide, mpp=0.5, size=32, slide_mpp=slide_mpp, min_tissue_um=10)[0])
        return
    with pytest.raises(SlideUnfit, match=r"max_enlargement 1\.1"):
        cut(full_slide, mpp=0.5, size=32, slide_mpp=slide_mpp)


def test_a_slide_smaller_than_a_tile_has_none(full_slide):
    table, picture = cut(full_slide, mpp=0.5, size=512, min_tissue_um=10)
    assert table.coords.shape == (0, 2)
    assert picture.ndim == 3


def test_a_table_is_read_as_it_was_written(tmp_path, full_slide):
    table, _ = cut(full_slide, mpp=0.5, size=32, min_tissue_um=10)
    write_table(tmp_path / "t.parquet", table, "ab" * 32)
    again = read_table(tmp_path / "t.parquet")
    np.testing.assert_array_equal(again.coords, table.coords)
    np.testing.assert_array_equal(again.tissue, table.tissue)
    assert (again.facts, again.grid) == (table.facts, table.grid)
    assert again.reads == table.reads
    assert again.coords_digest == table.coords_digest


def test_the_digest_of_coordinates_sees_place_order_and_tile_size(full_slide):
    table, _ = cut(full_slide, mpp=0.5, size=32, min_tissue_um=10)
    other, _ = cut(full_slide, mpp=0.51, size=32, min_tissue_um=10)
    moved = table.coords.copy()
    moved[0, 0] += 1
    digests = {
        TileTable(coords, table.tissue, table.facts, grid).coords_digest
        for coords, grid in (
            (table.coords, table.grid),
            (table.coords[::-1], table.grid),
            (moved, table.grid),
            (table.coords, other.grid),
        )
    }
    assert len(digests) == 4


@pytest.mark.skipif(not REAL_SLIDE.exists(), reason=f"{REAL_SLIDE} is not on this machine")
def test_a_real_slide_is_cut_on_the_exact_grid():
    """The slide is OpenSlide's CMU-1-Small-Region (Aperio, 0.499 um/px, 2220 x 2967 px)."""
    options = {"min_tissue": 0.5, "max_pen": 1, "max_fold": 1, "max_blur": 1}
    table, _ = cut(REAL_SLIDE, mpp=0.5, size=224, **options)
    facts = table.facts
    assert (facts.mpp_x, facts.mpp_y, facts.mpp_source) == (0.499, 0.499, "metadata")
    assert (facts.width_px, facts.height_px) == (2220, 2967)
    side = Fraction(224) * Fraction("0.5") / Fraction("0.499")
    assert (
        table.grid.level0_width == table.grid.level0_height == pytest.approx(float(side), rel=1e-12)
    )
    grid = [
        (math.floor(column * side), math.floor(row * side))
        for row in range(math.floor(2967 / side))
        for column in range(math.floor(2220 / side))
    ]
    assert len(grid) == 13 * 9

    with Slide(REAL_SLIDE) as slide:
        density = optical_density(slide.thumbnail(8.0, slide.scale()), mpp=8.0)
    ink = pen_mask(density, mpp=8.0)
    mask = tissue_mask(density, mpp=8.0, min_tissue_um=100, exclude=ink)
    # Every level-0 px of the mask, counted one by one.
    whole = cv2.resize(mask.astype(np.uint8), (2220, 2967), interpolation=cv2.INTER_NEAREST)
    share = [whole[y : y + 224, x : x + 224].mean() for x, y in grid]
    kept = {tuple(place) for place in table.coords.tolist()}
    clear = {place: s > 0.5 for place, s in zip(grid, share, strict=True) if abs(s - 0.5) > 0.02}
    assert kept <= set(grid)
    assert len(clear) > 100
    assert {place for place, inside in clear.items() if inside} == kept & set(clear)


@pytest.mark.skipif(not REAL_SLIDE.exists(), reason=f"{REAL_SLIDE} is not on this machine")
def test_tissue_of_a_real_slide_is_where_one_sees_it():
    """Positions (um) were picked by eye on the thumbnail; the glass has ink flecks and a lumen."""
    with Slide(REAL_SLIDE) as slide:
        density = optical_density(slide.thumbnail(8.0, slide.scale()), mpp=8.0)
    mask = tissue_mask(density, mpp=8.0, min_tissue_um=100)
    tissue = [(500, 240), (480, 700), (400, 1000), (600, 1120), (700, 1300), (860, 700),
              (240, 530), (800, 1200), (300, 1400)]  # fmt: skip
    glass = [(120, 200), (200, 1000), (960, 500), (660, 260), (1000, 1200), (900, 120),
             (300, 700), (1000, 1400), (1040, 304)]  # fmt: skip
    assert [place for place in tissue if not mask[place[1] // 8, place[0] // 8]] == []
    assert [place for place in glass if mask[place[1] // 8, place[0] // 8]] == []
    assert 0.55 < mask.sum() * 64e-6 < 0.68


# A bucket


SPEC = TileSpec(
    bucket="0000-of-0001",
    rows="",
    mpp=0.5,
    size=96,
    tiling=TilingSection(min_tiles=4),
)


def cohort_of(folder: Path, *names: str, **mpp: float) -> Cohort:
    rows = [
        SlideRow(Path(n).stem, n, f"p-{Path(n).stem}", {}, mpp=mpp.get(Path(n).stem)) for n in names
    ]
    return Cohort(tuple(sorted(rows, key=lambda r: r.slide_id)), folder)


@pytest.fixture
def bucket(tmp_path, drawn_slide) -> Path:
    """Return a folder with a good slide."""
    (tmp_path / "slides").mkdir()
    shutil.copyfile(drawn_slide, tmp_path / "slides" / "good.svs")
    return tmp_path


def run(folder: Path, cohort: Cohort, spec: TileSpec = SPEC, **options) -> dict[str, TileEntry]:
    output = folder / "results" / "tiles" / "grid" / f"{spec.bucket}.json"
    found = tile_bucket(spec, cohort, Cache(folder / "cache"), output, **options)
    assert read_entries(output, TileEntry) == found
    return found


@pytest.mark.parametrize("threads", [1, 3])
def test_bad_slides_do_not_stop_the_good_one(
    bucket, drawn_slide, write_slide, monkeypatch, threads
):
    slides, content = bucket / "slides", drawn_slide.read_bytes()
    glass = np.full((768, 768, 3), 243, np.uint8)
    four_tiles = glass.copy()
    four_tiles[200:410, 200:410] = PINK
    (slides / "text.svs").write_text("not a slide")
    (slides / "truncated.svs").write_bytes(content[: len(content) // 2])
    (slides / "empty.svs").touch()
    (slides / "folder.svs").mkdir()
    write_slide(slides / "unscaled.tif", full_of_tissue(768, 768))
    for name, mpp in (("zero", 0), ("fifty", 50), ("nan", float("nan"))):
        svs = svs_bytes(full_of_tissue(400, 400), mpp=mpp, app_mag=20, jpeg_quality=90, extra={})
        (slides / f"{name}.svs").write_bytes(svs)
    write_slide(slides / "coarse.tif", full_of_tissue(768, 768), mpp=(1, 1))
    write_slide(slides / "glass.tif", glass, mpp=(0.5, 0.5))
    write_slide(slides / "few.tif", four_tiles, mpp=(0.5, 0.5))
    write_slide(slides / "small.tif", full_of_tissue(80, 800), mpp=(0.5, 0.5))
    Image.fromarray(full_of_tissue(400, 400)).save(slides / "flat.png")
    Image.fromarray(full_of_tissue(1200, 1200)).save(slides / "bomb.png")
    monkeypatch.setattr(flat, "LARGEST_BYTES", 1_400_000 * 4)
    names = [path.name for path in slides.iterdir()]
    spec = SPEC.model_copy(update={"tiling": TilingSection(min_tiles=6)})
    found = run(bucket, cohort_of(slides, *names, "missing.svs"), spec, threads=threads)

    reasons = {
        "text": ("failed", "can open, or truncated; compare it with"),
        "truncated": ("failed", "truncated; compare it with the original and copy it again"),
        "empty": ("failed", "0 bytes); copy it again"),
        "folder": ("failed", "cannot be read (Is a directory)"),
        "missing": ("failed", "cannot be read (No such file or directory)"),
        "bomb": ("failed", "has 1,200 x 1,200 px"),
        "unscaled": ("excluded", "set it in the manifest's column 'mpp'"),
        "flat": ("excluded", "set it in the manifest's column 'mpp'"),
        "zero": ("excluded", "column 'mpp'"),
        "fifty": ("excluded", "set the right one in the manifest's column 'mpp'"),
        "nan": ("excluded", "column 'mpp'"),
        "coarse": ("excluded", "tiling.max_enlargement 1.1"),
        "glass": ("excluded", "no tissue found"),
        "few": ("excluded", "4 tile(s) with tissue, fewer than tiling.min_tiles 6"),
        "small": ("excluded", "0 tile(s) with tissue, fewer than tiling.min_tiles 6"),
    }
    assert set(found) == {"good", *reasons}
    for name, (status, reason) in reasons.items():
        assert found[name].status == status, name
        assert reason in found[name].reason, name
    good = found["good"]
    assert (good.status, good.reason) == ("ok", None)
    assert good.tiles >= 6
    facts = good.facts
    assert (facts.mpp_x, facts.mpp_y, facts.mpp_source) == (0.5, 0.5, "metadata")
    assert facts.fingerprint == fingerprint(drawn_slide)
    assert facts.vendor == "aperio"
    assert found["glass"].tiles == 0


def test_entries_tell_neither_machine_nor_time(tmp_path, drawn_slide):
    """Two runs in two folders give the same bytes."""
    contents = []
    for name in ("one", "two"):
        slides = tmp_path / name / "slides"
        slides.mkdir(parents=True)
        shutil.copyfile(drawn_slide, slides / "good.svs")
        (slides / "text.svs").write_text("not a slide")
        (slides / "cut.svs").write_bytes(drawn_slide.read_bytes()[:20_000])
        run(tmp_path / name, cohort_of(slides, "good.svs", "text.svs", "cut.svs", "gone.svs"))
        entries = tmp_path / name / "results/tiles/grid/0000-of-0001.json"
        contents.append(entries.read_bytes())
    assert contents[0] == contents[1]
    assert list(json.loads(contents[0])) == ["cut", "gone", "good", "text"]


def test_um_per_px_of_the_manifest_make_a_flat_image_and_a_bare_slide_usable(tmp_path, write_slide):
    image = full_of_tissue(400, 400)
    Image.fromarray(image).save(tmp_path / "flat.png")
    write_slide(tmp_path / "bare.tif", image)
    found = run(tmp_path, cohort_of(tmp_path, "flat.png", "bare.tif", flat=0.5, bare=0.25))
    assert {name: entry.status for name, entry in found.items()} == {"flat": "ok", "bare": "ok"}
    assert found["flat"].facts.mpp_source == found["bare"].facts.mpp_source == "manifest"
    # 96 px of 0.5 um are 96 and 192 px here.
    assert (found["flat"].tiles, found["bare"].tiles) == (16, 4)


def test_a_slide_whose_overview_is_damaged_fails_with_what_to_do(tmp_path, write_slide):
    path = write_slide(
        tmp_path / "bad.tif", full_of_tissue(256, 256), mpp=(0.5, 0.5), compression="jpeg"
    )
    with tifffile.TiffFile(path) as tiff:
        offset, length = tiff.pages[0].dataoffsets[5], tiff.pages[0].databytecounts[5]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(bytes(length))
    entry = run(tmp_path, cohort_of(tmp_path, "bad.tif"))["bad"]
    assert entry.status == "failed"
    assert entry.reason.startswith("damaged, copy it again (level 0")


def test_a_quality_picture_shows_the_tissue_outline_and_the_tiles(bucket):
    cache = Cache(bucket / "cache")
    entry = run(bucket, cohort_of(bucket / "slides", "good.svs"))["good"]
    path = cache.find("qc", entry.key)
    picture = cv2.imread(str(path)).astype(int)
    assert path.read_bytes()[:3] == b"\xff\xd8\xff"
    assert picture.shape[0] == picture.shape[1] >= 200
    blue, green, red = np.moveaxis(picture, 2, 0)
    assert ((green - red > 60) & (green - blue > 20)).any()
    assert ((blue - red > 60) & (blue - green > 40)).any()


def test_products_have_the_slide_s_name_for_people(bucket):
    cache = Cache(bucket / "cache")
    entry = run(bucket, cohort_of(bucket / "slides", "good.svs"))["good"]
    folder = bucket / "results" / "tiles" / "grid"
    assert (folder / "good.parquet").samefile(cache.find("tiles", entry.key))
    assert (folder / "good.qc.jpg").samefile(cache.find("qc", entry.key))


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a slide was cut again")


def test_a_slide_is_cut_once(bucket, monkeypatch, caplog):
    """Another name, folder or time of the file, or deleted results, do not repeat the work."""
    slides = bucket / "slides"
    first = run(bucket, cohort_of(slides, "good.svs"))["good"]
    monkeypatch.setattr(stage, "tile_slide", refuse)
    (bucket / "moved").mkdir()
    (slides / "good.svs").rename(bucket / "moved" / "other.svs")
    os.utime(bucket / "moved" / "other.svs", (1, 1))
    shutil.rmtree(bucket / "results")
    with caplog.at_level(logging.INFO):
        again = run(bucket, cohort_of(bucket / "moved", "other.svs"))["other"]
    assert again == first
    assert f"other: {first.tiles} tiles from the cache" in caplog.text


@pytest.mark.parametrize(
    ("changed", "cut_again"),
    [
        ({"min_tiles": 1}, False),
        ({"min_tissue": 0.9}, True),
        ({"overlap": 0.5}, True),
        ({"thumbnail_mpp": 4.0}, True),
    ],
)
def test_tiles_are_cut_again_when_the_grid_is_another(bucket, monkeypatch, changed, cut_again):
    cohort = cohort_of(bucket / "slides", "good.svs")
    run(bucket, cohort)
    monkeypatch.setattr(stage, "tile_slide", refuse)
    other = SPEC.model_copy(update={"tiling": SPEC.tiling.model_copy(update=changed)})
    if cut_again:
        assert "a slide was cut again" in run(bucket, cohort, other)["good"].reason
    else:
        assert run(bucket, cohort, other)["good"].status == "ok"


def test_another_scale_in_the_manifest_is_another_tiling(bucket):
    slides = bucket / "slides"
    keys = {
        run(bucket, cohort_of(slides, "good.svs", **scale))["good"].key
        for scale in ({}, {"good": 0.5}, {"good": 0.25})
    }
    assert len(keys) == 3


def test_changed_content_is_cut_again(bucket):
    slides = bucket / "slides"
    first = run(bucket, cohort_of(slides, "good.svs"))["good"]
    with (slides / "good.svs").open("ab") as stream:
        stream.write(b"\0")
    assert run(bucket, cohort_of(slides, "good.svs"))["good"].key != first.key


def test_a_lost_picture_is_drawn_again(bucket):
    cache, cohort = Cache(bucket / "cache"), cohort_of(bucket / "slides", "good.svs")
    first = run(bucket, cohort)["good"]
    cache.path("qc", first.key).unlink()
    assert run(bucket, cohort)["good"] == first
    assert cache.find("qc", first.key)


@pytest.mark.parametrize("kind", ["tiles", "qc"])
def test_a_broken_table_or_picture_is_named_and_made_again(bucket, caplog, kind):
    cache, cohort = Cache(bucket / "cache"), cohort_of(bucket / "slides", "good.svs")
    first = run(bucket, cohort)
    path = cache.path(kind, first["good"].key)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert run(bucket, cohort) == first
    assert path.read_bytes() == whole
    assert str(path) in caplog.text
    assert [item.name for item in cache.quarantined()] == [path.name]


def test_a_job_takes_the_slides_of_its_bucket_only(bucket):
    shutil.copyfile(bucket / "slides" / "good.svs", bucket / "slides" / "b.svs")
    cohort = cohort_of(bucket / "slides", "good.svs", "b.svs")
    names = {
        name: set(run(bucket, cohort, SPEC.model_copy(update={"bucket": name})))
        for name in ("0000-of-0002", "0001-of-0002")
    }
    assert sorted([*names["0000-of-0002"], *names["0001-of-0002"]]) == ["b", "good"]


FULL_DISK = """
import resource, sys
from pathlib import Path
import pyarrow.parquet, polars, safetensors.numpy
import numpy as np
from her2.storage.cache import Cache
from her2.cohort.manifest import Cohort, SlideRow
from her2.config import TilingSection
from her2.core.errors import UserError
from her2.core.files import atomic_folder, atomic_path
from her2.config.jobs import TileSpec
from tests.unit.products import write_store
from her2.tiling.stage import tile_bucket

folder, slide = map(Path, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
numbers = np.random.default_rng(0).random((500, 10)).astype("f4")
coords = np.zeros((500, 2), "i4")
spec = TileSpec(bucket="0000-of-0001", rows="", mpp=0.5, size=96, tiling=TilingSection())
cohort = Cohort((SlideRow("s", str(slide), "p", {}),), folder)
writers = {
    "bytes": lambda path: path.write_bytes(bytes(5000)),
    "store": lambda path: write_store(path, numbers, coords, {}),
    "polars.parquet": lambda path: polars.DataFrame(numbers).write_parquet(path),
    "polars.csv": lambda path: polars.DataFrame(numbers).write_csv(path),
    "safetensors": lambda path: safetensors.numpy.save_file({"x": numbers}, path),
}

def attempt(name, target, work):
    try:
        work()
        print(name, "was written")
    except UserError as error:
        print(name, "ok" if str(target) in str(error) and "df -h" in str(error) else error)

def in_file(target, write):
    with atomic_path(target) as path:
        write(path)

def in_folder(target, write):
    with atomic_folder(target) as path:
        write(path / "part")

for name, write in writers.items():
    attempt(name, folder / name, lambda: in_file(folder / name, write))
    attempt(f"{name} in a folder", folder / name, lambda: in_folder(folder / name, write))
attempt("tiles", folder, lambda: tile_bucket(spec, cohort, Cache(folder), folder / "m.json"))
print("left", sorted(str(path) for path in folder.rglob("*")
    if path.is_file() and "checksums" not in path.parts))
"""


def test_a_full_disk_is_one_message_that_names_the_file(tmp_path, drawn_slide):
    """A limit on file sizes simulates a full disk: writes fail in the same place."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(drawn_slide)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    *outcomes, left = done.stdout.splitlines()
    assert len(outcomes) == 11
    assert [line for line in outcomes if not line.endswith(" ok")] == []
    assert left == "left []"
