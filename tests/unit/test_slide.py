import os
import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import ExifTags, Image

from her2.core.errors import SlideError, SlideUnfit, TileError, UserError
from her2.core.images import open_image
from her2.slides.backends import flat, read_header
from her2.slides.fingerprint import fingerprint
from her2.slides.slide import Scale, Slide, open_slide
from her2.synthetic.svs import svs_bytes
from her2.tiling.one_slide import tile

SIDE = 240
PERIOD = 24


def ramps(width: int = SIDE, height: int = SIDE, blue: int = 0) -> np.ndarray:
    """Return an image whose red is the column and green the row: colours encode positions."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return np.dstack([x, y, np.full_like(x, blue)])


def place(start: float, length: float, out: int) -> np.ndarray:
    """Return the column (or row) under the centre of each px of a region; px i is [i, i + 1]."""
    return start + (np.arange(out) + 0.5) * length / out - 0.5


def check_place(region: np.ndarray, x: float, y: float, width: float, height: float) -> None:
    """Check that the colours of a region of `ramps` are its positions, up to rounding."""
    rows, columns = region.shape[:2]
    # The filter has no neighbours beyond a region's border; inside, only rounding is left.
    inner = np.s_[2:-2, 2:-2]
    red = region[..., 0] - place(x, width, columns)[None, :]
    green = region[..., 1] - place(y, height, rows)[:, None]
    for error in (red, green):
        assert np.abs(error[inner]).max() <= 0.6
        assert np.abs(error).max() <= 2


@pytest.fixture(scope="module")
def ramp_slide(tmp_path_factory, write_slide) -> Path:
    return write_slide(tmp_path_factory.mktemp("ramp") / "ramp.tif", ramps(), mpp=(0.25, 0.25))


@pytest.fixture(scope="module")
def wave_slide(tmp_path_factory, write_slide) -> Path:
    """Return cosines over x (red) and y (green), whose phase gives positions to 0.01 px."""
    wave = 127.5 + 120 * np.cos(2 * np.pi * np.arange(SIDE) / PERIOD)
    red, green = np.meshgrid(wave, wave)
    image = np.dstack([red, green, green]).round().astype(np.uint8)
    return write_slide(tmp_path_factory.mktemp("wave") / "wave.tif", image)


def shift_px(profile: np.ndarray, places: np.ndarray) -> float:
    """Return the offset of a wave in px, by least squares."""
    angle = 2 * np.pi * places / PERIOD
    design = np.stack([np.cos(angle), np.sin(angle), np.ones_like(angle)], axis=1)
    (cosine, sine, mean), *_ = np.linalg.lstsq(design, profile, rcond=None)
    assert np.hypot(cosine, sine) == pytest.approx(120, rel=0.05)
    assert mean == pytest.approx(127.5, abs=1)
    return float(np.arctan2(sine, cosine) * PERIOD / (2 * np.pi))


@pytest.mark.parametrize(
    ("mpp_x", "mpp_y", "target"),
    [
        (0.25, 0.25, 0.5),
        (0.499, 0.499, 0.5),
        (0.5, 0.5, 1.0),
        (0.5, 0.5, 0.5),
        (0.263, 0.263, 0.5),
        (0.25, 0.5, 0.5),
        (0.503, 0.497, 0.5),
        (0.55, 0.55, 0.5),
    ],
)
@pytest.mark.parametrize(("x", "y"), [(0, 0), (37, 101)])
def test_a_region_shows_its_place_at_the_target_scale(
    ramp_slide, wave_slide, mpp_x, mpp_y, target, x, y
):
    size = 48
    width, height = size * target / mpp_x, size * target / mpp_y
    with Slide(ramp_slide) as slide:
        region = slide.region(x, y, width, height, (size, size))
    assert region.shape == (size, size, 3)
    assert region.dtype == np.uint8
    check_place(region, x, y, width, height)
    check_phase(wave_slide, x, y, width, height, size)


@pytest.mark.parametrize(("x", "y"), [(10.25, 20.75), (10.5, 20.99), (10.999, 20.001)])
def test_fractions_of_a_px_are_honoured(wave_slide, x, y):
    check_phase(wave_slide, x, y, 96.5, 97.25, 48)


def check_phase(path: Path, x: float, y: float, width: float, height: float, size: int) -> None:
    with Slide(path) as slide:
        region = slide.region(x, y, width, height, (size, size)).astype(float)
    inner = slice(2, -2)
    columns, rows = place(x, width, size)[inner], place(y, height, size)[inner]
    assert abs(shift_px(region[inner, inner, 0].mean(axis=0), columns)) < 0.03
    assert abs(shift_px(region[inner, inner, 1].mean(axis=1), rows)) < 0.03


def test_a_region_of_equal_size_is_the_file_s_own_px(ramp_slide):
    with Slide(ramp_slide) as slide:
        region = slide.region(60, 33, 50, 40, (50, 40))
    np.testing.assert_array_equal(region, ramps()[33:73, 60:110])


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory, write_slide) -> Path:
    """Write three levels (1, 1/2, 1/4.02) of the same image; blue is 0, 100, 200 by level."""
    levels = []
    for blue, side in ((0, 240), (100, 120), (200, 60)):
        position = place(0, 240, side).round().astype(np.uint8)
        red, green = np.meshgrid(position, position)
        levels.append(np.dstack([red, green, np.full_like(red, blue)]))
    path = tmp_path_factory.mktemp("pyramid") / "pyramid.tif"
    return write_slide(path, *levels, mpp=(0.25, 0.25))


@pytest.mark.parametrize(
    ("downsample", "level"),
    [(1, 0), (1.9, 0), (1.985, 1), (2, 1), (3.9, 1), (3.97, 2), (4, 2), (9, 2), (0.5, 0)],
)
def test_a_region_comes_from_the_coarsest_level_that_need_not_be_enlarged(
    pyramid, downsample, level
):
    with Slide(pyramid) as slide:
        out = int(160 / downsample)
        width = out * downsample
        region = slide.region(20, 40, width, width, (out, out))
        assert slide.read_level(0.25 * downsample, Scale(0.25, 0.25, "metadata")) == level
    np.testing.assert_array_equal(region[..., 2], (0, 100, 200)[level])
    for channel, start in ((0, 20), (1, 40)):
        middle = region[..., channel].mean(axis=channel)[2:-2]
        # The lower levels know a place to half of one of their px.
        np.testing.assert_allclose(
            middle, place(start, width, out)[2:-2], atol=(0.6, 1.1, 2.1)[level]
        )
        assert abs((middle - place(start, width, out)[2:-2]).mean()) < 0.6


def test_anisotropic_px_are_read_where_neither_axis_is_enlarged(pyramid):
    with Slide(pyramid) as slide:
        assert slide.read_level(0.5, Scale(0.25, 0.125, "manifest")) == 1
        assert slide.read_level(0.5, Scale(0.5, 0.125, "manifest")) == 0


@pytest.mark.parametrize("factor", [2, 2.004, 3.3, 4])
def test_a_reduction_is_antialiased(tmp_path, write_slide, factor):
    """A chequerboard of 1 px has only frequencies that the result cannot represent."""
    y, x = np.mgrid[:256, :256]
    board = np.repeat((((x + y) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    with Slide(write_slide(tmp_path / "board.tif", board)) as slide:
        out = int(200 / factor)
        region = slide.region(8, 8, out * factor, out * factor, (out, out))
    assert np.abs(region[2:-2, 2:-2] - 127.5).max() < 6


def test_a_slide_that_was_closed_says_so(ramp_slide):
    """As in the next cell of a notebook, after the `with` block."""
    with open_slide(ramp_slide) as slide:
        scale = slide.scale()
    for read in (
        lambda: slide.region(0, 0, 8, 8, (8, 8)),
        lambda: slide.thumbnail(1.0, scale),
        lambda: tile(slide, 1.0, 16),
    ):
        with pytest.raises(UserError, match=r"is closed; read it inside `with open_slide"):
            read()


def test_a_thumbnail_is_the_whole_slide_at_the_asked_scale(ramp_slide):
    with Slide(ramp_slide) as slide:
        thumbnail = slide.thumbnail(1.0, slide.scale())
    assert thumbnail.shape == (60, 60, 3)
    check_place(thumbnail, 0, 0, SIDE, SIDE)


def test_a_thumbnail_of_anisotropic_px_has_square_um(tmp_path, write_slide):
    path = write_slide(tmp_path / "a.tif", ramps(), mpp=(0.25, 0.5))
    with Slide(path) as slide:
        thumbnail = slide.thumbnail(2.0, slide.scale())
    # 240 px of 0.25 um are 60 um, of 0.5 um 120 um.
    assert thumbnail.shape == (60, 30, 3)
    check_place(thumbnail, 0, 0, SIDE, SIDE)


def test_a_thumbnail_read_in_pieces_has_no_seams(ramp_slide, monkeypatch):
    monkeypatch.setattr("her2.slides.slide._STRIP_PX", 80)
    with Slide(ramp_slide) as slide:
        thumbnail = slide.thumbnail(0.5, slide.scale())
    assert thumbnail.shape == (120, 120, 3)
    expected = place(0, SIDE, 120)
    assert np.abs(thumbnail[..., 0] - expected[None, :]).max() <= 1
    assert np.abs(thumbnail[..., 1] - expected[:, None]).max() <= 1


def test_a_thumbnail_has_a_px_whatever_the_scale(ramp_slide):
    with Slide(ramp_slide) as slide:
        assert slide.thumbnail(500, slide.scale()).shape == (1, 1, 3)


# um/px


def test_um_per_px_come_from_the_metadata_exactly(tmp_path, write_slide):
    with Slide(write_slide(tmp_path / "a.tif", ramps(), mpp=(0.499, 0.25))) as slide:
        scale = slide.scale()
    assert scale.source == "metadata"
    assert (scale.mpp_x, scale.mpp_y) == pytest.approx((0.499, 0.25), rel=1e-6)


def test_um_per_px_of_an_svs_are_its_own_words(drawn_slide):
    with Slide(drawn_slide) as slide:
        assert slide.scale() == Scale(0.5, 0.5, "metadata")
        assert slide.vendor == "aperio"
        assert (slide.width_px, slide.height_px) == (768, 768)


def test_the_manifest_s_um_per_px_win(drawn_slide):
    with Slide(drawn_slide) as slide:
        assert slide.scale(0.2501) == Scale(0.2501, 0.2501, "manifest")


def test_a_slide_without_um_per_px_says_where_to_write_them(tmp_path, write_slide):
    with Slide(write_slide(tmp_path / "a.tif", ramps())) as slide:
        with pytest.raises(SlideUnfit, match="set it in the manifest's column 'mpp'"):
            slide.scale()
        assert slide.scale(0.5).source == "manifest"


@pytest.mark.parametrize("mpp", [0, 50, float("nan"), -1, 0.01, float("inf")])
def test_absurd_um_per_px_are_refused_and_the_manifest_mends_them(tmp_path, mpp):
    path = tmp_path / "a.svs"
    path.write_bytes(svs_bytes(ramps(), mpp=mpp, app_mag=20, jpeg_quality=90, extra={}))
    with Slide(path) as slide:
        with pytest.raises(SlideUnfit, match="column 'mpp'"):
            slide.scale()
        assert slide.scale(0.5) == Scale(0.5, 0.5, "manifest")


def test_the_objective_s_power_is_never_turned_into_um_per_px(tmp_path):
    path = tmp_path / "a.svs"
    content = svs_bytes(ramps(), mpp=0.5, app_mag=20, jpeg_quality=90, extra={})
    assert content.count(b"|MPP = 0.5") == 2
    path.write_bytes(content.replace(b"|MPP = 0.5", b"|XYZ = 0.5"))
    with Slide(path) as slide, pytest.raises(SlideUnfit, match="no um/px"):
        slide.scale()


# Flat and transparent images


@pytest.mark.parametrize("name", ["a.png", "a.bmp"])
def test_a_flat_image_is_a_slide_when_the_manifest_gives_um_per_px(tmp_path, name):
    Image.fromarray(ramps()).save(tmp_path / name)
    with Slide(tmp_path / name) as slide:
        assert slide.scale(0.5).source == "manifest"
        check_place(slide.region(30, 50, 96, 96, (48, 48)), 30, 50, 96, 96)
        with pytest.raises(SlideUnfit, match="column 'mpp'"):
            slide.scale()


def test_a_flat_jpeg_reads_as_pillow_decodes_it(tmp_path):
    Image.fromarray(ramps()).save(tmp_path / "a.jpg", quality=90)
    expected = np.asarray(Image.open(tmp_path / "a.jpg"))
    with Slide(tmp_path / "a.jpg") as slide:
        region = slide.region(7, 9, 40, 30, (40, 30))
    np.testing.assert_array_equal(region, expected[9:39, 7:47])


def test_a_flat_image_is_read_by_many_threads_at_once(tmp_path):
    """Pillow decodes at the first access, which is not thread-safe."""
    image = np.random.default_rng(1).integers(0, 256, (700, 700, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    barrier = threading.Barrier(8)

    def read(number: int) -> bool:
        x, y = 70 * number, 650 - 80 * number
        barrier.wait()
        region = slide.region(x, y, 40, 40, (40, 40))
        return np.array_equal(region, image[y : y + 40, x : x + 40])

    with Slide(tmp_path / "a.png") as slide, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


def test_what_is_transparent_is_white(tmp_path):
    image = np.zeros((100, 100, 4), np.uint8)
    image[:, 50:] = (10, 20, 30, 255)
    Image.fromarray(image).save(tmp_path / "a.png")
    with Slide(tmp_path / "a.png") as slide:
        region = slide.region(0, 0, 100, 100, (100, 100))
    np.testing.assert_array_equal(region[:, :50], 255)
    np.testing.assert_array_equal(region[:, 50:], np.broadcast_to((10, 20, 30), (100, 50, 3)))


def test_half_transparent_px_are_mixed_with_white(tmp_path):
    Image.new("RGBA", (64, 64), (0, 0, 0, 128)).save(tmp_path / "a.png")
    with Slide(tmp_path / "a.png") as slide:
        region = slide.region(0, 0, 64, 64, (64, 64))
    np.testing.assert_allclose(region, 255 * (1 - 128 / 255), atol=1)


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
@pytest.mark.parametrize(
    ("corner", "inside"),
    [
        ((-20, 0), np.s_[:, 20:]),
        ((0, -20), np.s_[20:, :]),
        ((220, 0), np.s_[:, :20]),
        ((0, 220), np.s_[:20, :]),
        ((300, 300), np.s_[:0, :0]),
    ],
)
def test_beyond_the_slide_it_is_white(tmp_path, write_slide, name, corner, inside):
    if name == "a.tif":
        write_slide(tmp_path / name, ramps())
    else:
        Image.fromarray(ramps()).save(tmp_path / name)
    padded = np.full((400, 400, 3), 255, np.uint8)
    padded[20:260, 20:260] = ramps()
    x, y = corner
    with Slide(tmp_path / name) as slide:
        region = slide.region(x, y, 40, 40, (40, 40))
    np.testing.assert_array_equal(region, padded[y + 20 : y + 60, x + 20 : x + 60])
    outside = np.ones((40, 40), bool)
    outside[inside] = False
    assert (region[outside] == 255).all()


def test_a_tile_at_the_border_shows_no_white_where_a_level_was_rounded_down(tmp_path, write_slide):
    """A level 0 of odd size is half a px larger than its level 1."""
    dark = np.full((241, 241, 3), 40, np.uint8)
    with Slide(write_slide(tmp_path / "a.tif", dark, dark[:120, :120])) as slide:
        assert slide.downsamples[1] == pytest.approx(241 / 120)
        region = slide.region(241 - 96.6, 241 - 96.6, 96.6, 96.6, (48, 48))
    assert region.max() <= 41


# Damage


@pytest.fixture
def damaged(tmp_path, write_slide) -> tuple[Path, Path]:
    """Write a slide of 3 x 3 JPEG tiles of 128 px, and one whose middle tile is zeros."""
    image = np.random.default_rng(3).integers(0, 256, (384, 384, 3), np.uint8)
    whole = write_slide(tmp_path / "whole.tif", image, compression="jpeg", tile_px=128)
    with tifffile.TiffFile(whole) as tiff:
        page = tiff.pages[0]
        assert len(page.dataoffsets) == 9
        offset, length = page.dataoffsets[4], page.databytecounts[4]
    content = bytearray(whole.read_bytes())
    content[offset : offset + length] = bytes(length)
    broken = tmp_path / "broken.tif"
    broken.write_bytes(content)
    return whole, broken


def read_tile(slide: Slide, number: int) -> np.ndarray:
    """Read one of the 3 x 3 JPEG tiles."""
    return slide.region(128 * (number % 3), 128 * (number // 3), 128, 128, (128, 128))


def test_a_bad_tile_does_not_spoil_those_after_it(damaged):
    """An OpenSlide handle answers every read after an error with that error."""
    whole, broken = damaged
    with Slide(whole) as good, Slide(broken) as slide:
        for number in (0, 4, 4, 1, 8, 4, 3):
            if number == 4:
                with pytest.raises(TileError, match=r"level 0 at \(128, 128\)"):
                    read_tile(slide, number)
            else:
                np.testing.assert_array_equal(read_tile(slide, number), read_tile(good, number))


def test_a_bad_tile_costs_two_openings_and_later_reads_none(damaged, monkeypatch):
    opened = []
    plain = openslide.OpenSlide

    def noted(path):
        opened.append(path)
        return plain(path)

    monkeypatch.setattr(openslide, "OpenSlide", noted)
    with Slide(damaged[1]) as slide:
        with pytest.raises(TileError):
            read_tile(slide, 4)
        for number in (0, 1, 2, 3, 5, 6, 7, 8):
            read_tile(slide, number)
    assert len(opened) == 1 + 2


def test_a_bad_tile_does_not_spoil_those_of_other_threads(damaged):
    whole, broken = damaged
    with Slide(whole) as good:
        expected = [read_tile(good, number) for number in range(9)]

    def outcome(number: int) -> str:
        try:
            right = np.array_equal(read_tile(slide, number), expected[number])
        except TileError:
            return "damaged"
        return "right" if right else "wrong"

    numbers = list(range(9)) * 20
    with Slide(broken) as slide, ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(outcome, numbers))
    assert outcomes == ["damaged" if number == 4 else "right" for number in numbers]


def test_many_bad_tiles_under_many_threads_spoil_no_good_one(tmp_path, damaged):
    """Handles are reopened repeatedly while other threads read."""
    whole, broken = damaged
    content = bytearray(broken.read_bytes())
    with tifffile.TiffFile(whole) as tiff:
        page = tiff.pages[0]
        for number in (0, 7):
            offset, length = page.dataoffsets[number], page.databytecounts[number]
            content[offset : offset + length] = bytes(length)
    worse = tmp_path / "worse.tif"
    worse.write_bytes(content)
    with Slide(whole) as good:
        expected = [read_tile(good, number) for number in range(9)]

    def outcome(number: int) -> str:
        try:
            right = np.array_equal(read_tile(slide, number), expected[number])
        except TileError:
            return "damaged"
        return "right" if right else "wrong"

    numbers = np.random.default_rng(3).permutation(np.repeat(np.arange(9), 30)).tolist()
    with Slide(worse) as slide, ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(outcome, numbers))
    assert outcomes == ["damaged" if n in (0, 4, 7) else "right" for n in numbers]


def test_a_slide_that_goes_away_while_it_is_read_says_so(tmp_path, damaged):
    gone = Path(shutil.copy(damaged[1], tmp_path / "gone.tif"))
    with Slide(gone) as slide:
        expected = read_tile(slide, 0)
        gone.unlink()
        with pytest.raises(SlideError, match="does not exist"):
            read_tile(slide, 4)
    with Slide(damaged[1]) as slide:
        np.testing.assert_array_equal(read_tile(slide, 0), expected)


def test_a_text_file_named_svs_is_not_a_slide(tmp_path):
    (tmp_path / "a.svs").write_text("slide_id,path\n" * 100)
    with pytest.raises(SlideError, match="not a slide that .*OpenSlide.* can open") as error:
        Slide(tmp_path / "a.svs")
    assert "copy it again" in str(error.value)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("share", [0.05, 0.4, 0.8, 0.9, 0.95, 0.99])
def test_a_truncated_svs_is_not_taken_for_a_flat_image(tmp_path, drawn_slide, share):
    """Pillow would open the first page of a truncated SVS, without um/px and without its end."""
    content = drawn_slide.read_bytes()
    (tmp_path / "a.svs").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SlideError, match="truncated") as error:
        Slide(tmp_path / "a.svs")
    assert "copy it again" in str(error.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_truncated_flat_image_is_not_a_slide(tmp_path, name):
    image = np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(SlideError, match="truncated"):
        Slide(tmp_path / name)


@pytest.mark.parametrize(("mode", "fits"), [("RGB", 2048), ("L", 8192), ("I;16", 4096)])
def test_a_flat_image_is_refused_by_the_memory_that_it_takes(tmp_path, monkeypatch, mode, fits):
    monkeypatch.setattr(flat, "LARGEST_BYTES", 2048 * 4)
    for height in (32, 33):
        Image.new(mode, (fits // 32, height)).save(tmp_path / f"{height}.png")
    Slide(tmp_path / "32.png").close()
    for read in (Slide, read_header):
        with pytest.raises(SlideError) as error:
            read(tmp_path / "33.png")
        assert f"has {fits // 32:,} x 33 px" in str(error.value)
        assert f"{fits:,} px of its kind" in str(error.value)
        assert "make a pyramidal TIFF of it" in str(error.value)
        assert "truncated" not in str(error.value)


def test_a_flat_image_above_the_limit_of_pillow_is_a_slide(tmp_path):
    """BCNB has regions of 17,408 x 18,944 px; of one bit, they are small enough for a test."""
    size = (17_408, 18_944)
    assert size[0] * size[1] * 4 <= flat.LARGEST_BYTES
    Image.new("1", size, 1).save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png").level_sizes == (size,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_image(tmp_path / "a.png", largest_bytes=flat.LARGEST_BYTES).close()
    with pytest.raises(ValueError, match="178,956,970 px of its kind"):  # masks and patches
        open_image(tmp_path / "a.png")


def test_a_slide_that_is_not_there_is_said_not_to_exist(tmp_path):
    with pytest.raises(SlideError, match="does not exist"):
        Slide(tmp_path / "a.svs")


def test_a_folder_is_not_a_slide(tmp_path):
    with pytest.raises(SlideError):
        Slide(tmp_path)
    with pytest.raises(SlideError, match="directory"):
        fingerprint(tmp_path)


# Fingerprint


def test_a_fingerprint_knows_neither_name_nor_time(tmp_path, drawn_slide):
    copy = tmp_path / "another-name.svs"
    shutil.copyfile(drawn_slide, copy)
    os.utime(copy, (1, 1))
    assert fingerprint(copy) == fingerprint(drawn_slide)


@pytest.mark.parametrize("size", [1000, 6_300_000, 20_000_000])
def test_a_fingerprint_changes_with_content_and_size(tmp_path, size):
    path = tmp_path / "a.svs"
    content = np.random.default_rng(0).bytes(size)
    path.write_bytes(content)
    first = fingerprint(path)
    found = {first}
    for place in (0, size - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        found.add(fingerprint(path))
    path.write_bytes(content + b"\0")
    found.add(fingerprint(path))
    path.write_bytes(content[:-1])
    found.add(fingerprint(path))
    assert len(found) == 5
    path.write_bytes(content)
    assert fingerprint(path) == first


def test_another_middle_of_a_large_file_is_another_fingerprint(tmp_path):
    """Only blocks of 64 KiB are sampled, but another scan differs in all of them."""
    size = 12_000_000
    content = bytearray(size)
    prints = set()
    for part in range(6):
        changed = content.copy()
        start = 2_000_000 + part * 1_300_000
        changed[start : start + 400_000] = b"\1" * 400_000
        (tmp_path / "a.svs").write_bytes(changed)
        prints.add(fingerprint(tmp_path / "a.svs"))
    assert len(prints) == 6


def test_an_empty_file_is_told_to_be_copied_again(tmp_path):
    (tmp_path / "a.svs").touch()
    with pytest.raises(SlideError, match=r"0 bytes.*copy it again"):
        fingerprint(tmp_path / "a.svs")


def test_a_folder_beside_another_format_does_not_count(tmp_path):
    path = tmp_path / "a.svs"
    path.write_bytes(b"x")
    first = fingerprint(path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("x")
    assert fingerprint(path) == first


def test_an_exif_rotation_is_not_applied_but_said(tmp_path, caplog):
    """Annotations count px as they are stored, as OpenSlide reads every other format."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :30] = 200
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    with Slide(tmp_path / "a.png") as slide:
        assert (slide.width_px, slide.height_px) == (60, 40)
        np.testing.assert_array_equal(slide.region(0, 0, 60, 40, (60, 40)), image)
    assert "a.png: its EXIF orientation is 6" in caplog.text


def test_a_slide_of_kilometres_is_not_searched_for_tissue(tmp_path, write_slide):
    path = write_slide(tmp_path / "a.tif", np.zeros((64, 64, 3), np.uint8))
    with Slide(path) as slide:
        slide.width_px = slide.height_px = 10**8
        with pytest.raises(SlideUnfit, match="are 50,000 x 50,000 mm, too large"):
            slide.thumbnail(8, slide.scale(0.5))
