"""Squares of a slide: where they lie, which px they have, and what stays in memory."""

import io
import math
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from PIL import Image

from her2.core.errors import SlideError, TileError
from her2.slides.slide import Slide
from her2.viewer import open_slides, zoom
from her2.viewer.open_slides import Slides
from her2.viewer.zoom import OVERLAP_PX, TILE_PX, level_count, square_at
from tests.peak import peak_megabytes
from tests.unit.test_embed import damage
from tests.unit.test_formats import FORMATS, picture, write_svs

REAL = Path(__file__).parents[3] / "shared" / "slides" / "cmu-1-small-region.svs"
SIZES = [(1, 1), (256, 256), (257, 3), (1000, 777), (513, 70_001), (100_000, 99_999)]


def decoded(found: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(found)))


def gradient(width: int, height: int, per: float) -> np.ndarray:
    """Red is the column and green the row, in units of `per` px."""
    y, x = np.mgrid[:height, :width]
    return (np.dstack([x, y, np.zeros_like(x)]) / per).round().astype(np.uint8)


def middles(length: int, out: int, per: float) -> np.ndarray:
    """Of a level of `out` px for `length` px: the colours of `gradient` under their middles."""
    return ((np.arange(out) + 0.5) * length / out - 0.5) / per


# Geometry


@pytest.mark.parametrize("size", SIZES)
def test_squares_of_a_level_cover_a_slide_without_gaps(size):
    levels = level_count(size)
    for level in range(levels):
        step = 2 ** (levels - 1 - level)
        for axis, whole in enumerate(size):
            count = math.ceil(whole / (TILE_PX * step))
            for number in {0, 1, count - 2, count - 1} & set(range(count)):
                at = [0, 0]
                at[axis] = number
                square = square_at(size, level, *at)
                begin, length = (square.left, square.width) if axis == 0 else (
                    square.top, square.height)  # fmt: skip
                assert begin == number * TILE_PX * step
                assert square.out[axis] == math.ceil(length / step) <= TILE_PX + OVERLAP_PX
                assert begin + length == min(whole, begin + (TILE_PX + OVERLAP_PX) * step)
            at[axis] = count
            with pytest.raises(IndexError):
                square_at(size, level, *at)


@pytest.mark.parametrize("size", SIZES)
def test_the_first_level_is_one_square_and_the_last_full_resolution(size):
    levels = level_count(size)
    square = square_at(size, 0, 0, 0)
    assert (square.width, square.height) == size
    assert levels == 1 or max(size) / 2 ** (levels - 2) > TILE_PX
    last = square_at(size, levels - 1, 0, 0)
    assert last.out == (last.width, last.height)
    for level in (-1, levels):
        with pytest.raises(IndexError, match="level"):
            square_at(size, level, 0, 0)


# Px


@pytest.mark.parametrize("name", [*FORMATS, "real"])
def test_full_resolution_is_that_of_the_reader_to_the_bit(name, tmp_path):
    if name == "real":
        if not REAL.is_file():
            pytest.skip("the real slide is not here")
        path = REAL
    else:
        path = FORMATS[name][0](tmp_path, picture())
    slides = Slides()
    width, height = slides.open(path, None).size_px
    column, row = (width - 1) // TILE_PX, (height - 1) // TILE_PX
    for at in {(0, 0), (1, 1), (column, row)}:
        corner = at[0] * TILE_PX, at[1] * TILE_PX
        size = tuple(
            min(TILE_PX + OVERLAP_PX, whole - begin)
            for whole, begin in zip((width, height), corner, strict=True)
        )
        with openslide.open_slide(path) as reader:
            expected = reader.read_region(corner, 0, size)
        white = Image.new("RGBA", expected.size, "white")
        white.alpha_composite(expected)
        found = slides.square(path, None, level_count((width, height)) - 1, *at)
        np.testing.assert_array_equal(decoded(found), np.asarray(white.convert("RGB")))


@pytest.mark.parametrize(
    "level_sizes",
    [
        [],
        [(503, 391), (252, 196)],  # exact halves of an odd size
        [(251, 195)],  # a downsample of 4.0018, coarser than the level of the zoom
        [(249, 194)],  # of 4.03, within the tolerance of level_for
        [(245, 191)],  # of 4.1, beyond it
        [(63, 49)],  # of 16
    ],
)
def test_squares_lie_where_they_say_whatever_levels_the_file_has(
    level_sizes, tmp_path, write_slide
):
    width, height, per = 1005, 781, 5
    whole = gradient(width, height, per)
    levels = [
        np.asarray(Image.fromarray(whole).resize(size, Image.Resampling.BOX))
        for size in level_sizes
    ]
    path = write_slide(tmp_path / "a.tif", whole, *levels)
    opened = Slides().open(path, None)
    size = opened.size_px
    for level in range(level_count(size)):
        step = 2 ** (level_count(size) - 1 - level)
        for row in range(math.ceil(height / TILE_PX / step)):
            for column in range(math.ceil(width / TILE_PX / step)):
                square = square_at(size, level, column, row)
                px = opened.px(square).astype(float)
                assert px.shape[1::-1] == square.out
                places = [
                    begin / per + middles(length, out, per)
                    for begin, length, out in (
                        (square.left, square.width, square.out[0]),
                        (square.top, square.height, square.out[1]),
                    )
                ]
                # One unit by rounding, and a quarter of a px of the level; the filter has no
                # neighbours beyond a border.
                most, inner = 1 + step / per / 4, np.s_[2:-2, 2:-2]
                for error in (px[..., 0] - places[0][None, :], px[..., 1] - places[1][:, None]):
                    # OpenSlide mixes px where two tiles of a file meet within one.
                    assert np.quantile(np.abs(error[inner]), 0.99) <= most
                    assert np.abs(error[inner]).max() <= most + 1


def test_what_was_not_scanned_is_white_on_every_level(tmp_path):
    image = np.zeros((600, 600, 4), np.uint8)
    image[:, :300] = (200, 30, 30, 255)
    Image.fromarray(image).save(tmp_path / "a.png")
    opened = Slides().open(tmp_path / "a.png", 0.5)
    for level in range(level_count(opened.size_px)):
        square = square_at(opened.size_px, level, 0, 0)
        px = opened.px(square)
        scanned = 300 * square.out[0] // square.width
        assert (px[:, : scanned - 4] == (200, 30, 30)).all()
        assert (px[:, scanned + 4 :] == 255).all()


def test_a_damaged_part_is_an_error_of_its_square_alone(tmp_path):
    path = write_svs(tmp_path, np.tile(picture(), (2, 2, 1)))
    damage(path, 0, 0)
    slides = Slides()
    last = level_count(slides.open(path, None).size_px) - 1
    with pytest.raises(TileError):
        slides.square(path, None, last, 0, 0)
    assert decoded(slides.square(path, None, last, 2, 2)).any()


def test_a_damaged_part_of_a_slide_of_one_level_leaves_the_coarse_squares(
    tmp_path, write_slide, monkeypatch
):
    monkeypatch.setattr(zoom, "_READ_PX", 240)
    image = np.full((960, 1200, 3), 200, np.uint8)
    path = write_slide(tmp_path / "a.tif", image, compression="jpeg", tile_px=240)
    damage(path, 1, 2)
    slides = Slides()
    px = decoded(slides.square(path, None, 0, 0, 0)).astype(int)  # an eighth
    spoilt = np.abs(px - 200).max(axis=2) > 30
    inside = np.zeros_like(spoilt)
    inside[480 // 8 : 720 // 8, 240 // 8 : 480 // 8] = True
    assert spoilt[inside].mean() > 0.2, "hatched"
    rows, columns = np.nonzero(spoilt)
    # Whole parts of 30 px are hatched, here those at the tile and none beyond its neighbours.
    assert rows.min() >= 30
    assert rows.max() < 120
    assert columns.max() < 90
    monkeypatch.undo()
    with pytest.raises(TileError):
        slides.square(path, None, level_count((1200, 960)) - 1, 1, 2)


def test_a_large_slide_of_one_level_is_read_once_for_all_coarse_squares(tmp_path, monkeypatch):
    monkeypatch.setattr(zoom, "_OVERVIEW_PX", 512)
    monkeypatch.setattr(zoom, "_READ_PX", 512)
    Image.fromarray(gradient(6000, 300, 30)).save(tmp_path / "a.png", compress_level=1)
    opened = Slides().open(tmp_path / "a.png", 0.5)
    read = []
    region = Slide.region

    def noted(self, x, y, width, height, out):
        read.append(width * height)
        return region(self, x, y, width, height, out)

    monkeypatch.setattr(Slide, "region", noted)
    first = opened.px(square_at(opened.size_px, 0, 0, 0))
    assert sum(read) == pytest.approx(6000 * 300)
    assert max(read) <= 512 * 512, "and in parts"
    np.testing.assert_allclose(first[3, :, 0], middles(6000, 188, 30), atol=1.6)
    read.clear()
    opened.px(square_at(opened.size_px, 0, 0, 0))
    assert not read


def test_a_thumbnail_has_the_size_asked_for_and_is_never_enlarged(tmp_path):
    path = write_svs(tmp_path, picture())  # 640 x 544 px
    slides = Slides()
    assert decoded(slides.thumbnail(path, None, 320)).shape == (272, 320, 3)
    assert decoded(slides.thumbnail(path, None, 1024)).shape == (544, 640, 3)
    assert slides.held_bytes > 0
    assert not slides.opened, "thumbnails of a cohort do not close slides that are looked at"


def test_a_thumbnail_that_would_take_a_whole_slide_is_left_to_others(tmp_path, monkeypatch):
    monkeypatch.setattr(open_slides, "_THUMBNAIL_READ_PX", 1000)
    Image.fromarray(picture()).save(tmp_path / "a.png")
    monkeypatch.setattr(open_slides, "Slide", None)  # it is not even decoded
    assert Slides().thumbnail(tmp_path / "a.png", 0.5, 64) is None
    assert Slides().thumbnail(write_svs(tmp_path, picture()), None, 64) is None


# What changes meanwhile


def test_a_deleted_slide_says_so_though_it_is_open(tmp_path):
    path = write_svs(tmp_path, picture())
    slides = Slides()
    slides.square(path, None, 0, 0, 0)
    path.unlink()
    with pytest.raises(SlideError, match=r"a\.svs is not there"):
        slides.square(path, None, 0, 0, 0)


def test_a_changed_slide_is_opened_again_and_an_old_page_is_told(tmp_path):
    path = write_svs(tmp_path, picture())
    slides = Slides()
    before = slides.open(path, None).version
    old = slides.square(path, None, 0, 0, 0, version=before)
    write_svs(tmp_path, 255 - picture()[:500])
    with pytest.raises(SlideError, match="load the page again"):
        slides.square(path, None, 0, 0, 0, version=before)
    assert decoded(slides.square(path, None, 0, 0, 0)).shape != decoded(old).shape


def test_a_file_beside_the_slide_counts_too(tmp_path):
    path = FORMATS["mirax"][0](tmp_path, picture())
    slides = Slides()
    before = slides.open(path, None).version
    (tmp_path / "a" / "Data0000.dat").touch()
    assert slides.open(path, None).version != before
    (tmp_path / "a" / "Data0000.dat").unlink()
    with pytest.raises(SlideError):
        slides.open(path, None)


def test_two_cohorts_may_know_a_file_by_different_um_per_px(tmp_path):
    path = write_svs(tmp_path, picture())
    slides = Slides()
    assert [slides.open(path, mpp).slide.scale().mpp_x for mpp in (0.25, None, 0.25)] == [
        0.25, 0.5, 0.25,
    ]  # fmt: skip


# Memory


def test_squares_stay_within_the_limit_the_latest_of_them(tmp_path):
    path = write_svs(tmp_path, picture())
    probe = Slides()
    asked = [(2, column, row) for row in range(3) for column in range(3)]
    whole = [probe.square(path, None, *one) for one in asked]
    assert probe.held_bytes == sum(map(len, whole))
    limit = len(whole[-1]) + len(whole[-2])
    slides = Slides(cache_bytes=limit)
    for one, expected in zip(asked, whole, strict=True):
        assert slides.square(path, None, *one) == expected
        assert slides.held_bytes <= limit
    assert slides.held_bytes == limit
    assert slides.square(path, None, *asked[0]) == whole[0], "one that had to go is cut again"


def test_files_are_closed_and_memory_is_flat_over_200_slides(tmp_path):
    first = write_svs(tmp_path, picture()).read_bytes()
    slides = Slides(open_slides=4, cache_bytes=1 << 20)

    handles = []

    def look(numbers: range) -> None:
        for number in numbers:
            path = tmp_path / f"{number}.svs"
            path.write_bytes(first)
            slides.square(path, None, 0, 0, 0)
            # What OpenSlide itself holds of a slide, which is freed with this object.
            opened: Any = slides.open(path, None).slide._opened
            handles.append(weakref.ref(opened._handle._osr))
            del opened
            path.unlink()

    def held() -> int:
        return sum(one() is not None for one in handles)

    look(range(20))
    assert held() == 4
    before = peak_megabytes(anew=True)
    look(range(20, 200))
    assert peak_megabytes() - before < 8
    assert held() == 4


def test_flat_images_are_open_as_far_as_memory_goes(tmp_path):
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(picture()).save(paths[-1], compress_level=1)
    each = 4 * 640 * 544
    slides = Slides(open_bytes=2 * each)
    for path in paths:
        slides.open(path, 0.5)
    assert slides.opened == [(path, 0.5) for path in paths[2:]]
    alone = Slides(open_bytes=each // 2)
    alone.open(paths[0], 0.5)
    assert len(alone.opened) == 1, "the one that is looked at stays"


def test_a_slide_that_had_to_go_is_still_read_by_those_who_have_it(tmp_path):
    (tmp_path / "b").mkdir()
    path, other = write_svs(tmp_path, picture()), write_svs(tmp_path / "b", picture())
    slides = Slides(open_slides=1)
    opened = slides.open(path, None)
    slides.open(other, None)
    assert slides.opened == [(other, None)]
    assert opened.px(square_at(opened.size_px, 0, 0, 0)).any()


# Threads


def test_a_slide_is_opened_once_however_many_ask(tmp_path, monkeypatch):
    path = write_svs(tmp_path, picture())
    opened, all_there = [], threading.Barrier(8)
    own = Slide.__init__

    def noted(self, *args):
        opened.append(args)
        own(self, *args)

    monkeypatch.setattr(Slide, "__init__", noted)
    slides = Slides()

    def ask(number: int) -> bytes:
        all_there.wait(20)
        return slides.square(path, None, 2, number % 3, 0)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert len(opened) == 1
    assert len(set(found)) == 3


def test_a_slide_that_did_not_open_is_tried_again(tmp_path):
    path = tmp_path / "a.svs"
    path.write_bytes(b"no slide")
    slides = Slides()
    for _ in range(2):
        with pytest.raises(SlideError):
            slides.open(path, None)
    write_svs(tmp_path, picture())
    assert slides.open(path, None).size_px == (640, 544)
