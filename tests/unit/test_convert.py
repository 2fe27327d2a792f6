"""Flat images become pyramids: what is kept, what is lost, and what a second call does again."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from her2.core.errors import SlideError, UserError
from her2.importing import convert as module
from her2.importing.convert import Conversion, convert, convert_all
from her2.slides.slide import Slide
from tests.peak import peak_megabytes


def smooth(width: int, height: int, seed: int = 0, spots_px: int = 32) -> Image.Image:
    """Return a colourful image without noise, of which JPEG loses little."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 220, (height // spots_px + 2, width // spots_px + 2, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def px(path: Path, box: tuple[int, int, int, int], out: tuple[int, int]) -> np.ndarray:
    with Slide(path) as slide:
        return slide.region(*box, out).astype(int)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_full_resolution_loses_next_to_nothing(tmp_path, subsampling, progressive):
    """Blocks lie where they lay and have the tables they had: what is left is rounding."""
    source, target = tmp_path / "a.jpg", tmp_path / "a.tif"
    smooth(1300, 1100).save(source, quality=80, subsampling=subsampling, progressive=progressive)
    assert convert(source, target, mpp=0.25)
    whole = (0, 0, 1300, 1100), (1300, 1100)
    difference = np.abs(px(target, *whole) - px(source, *whole))
    assert difference.mean() < 0.05
    # With other tables: what any quality of a new compression loses.
    buffer = tmp_path / "again.jpg"
    Image.open(source).save(buffer, quality=90, subsampling=0)
    again = np.abs(px(buffer, *whole) - px(source, *whole))
    assert difference.mean() < again.mean() / 3


def test_levels_are_the_halved_image_with_their_um_px(tmp_path):
    source, target = tmp_path / "a.jpg", tmp_path / "a.tif"
    smooth(2501, 2101, spots_px=64).save(source, quality=95, subsampling=0)
    convert(source, target, mpp=0.25)
    with Slide(target) as slide:
        assert slide.scale().mpp_x == pytest.approx(0.25, rel=1e-4)
        assert slide.scale().mpp_y == pytest.approx(0.25, rel=1e-4)
        assert (slide.width_px, slide.height_px) == (2501, 2101)
        assert slide.downsamples == pytest.approx((1, 2, 4), rel=2e-3)
        assert slide.decode_directly(0, 0, 512, 512)
        assert slide.reader == "jpeg"
    # Also in the last corner, where px of a level with a wrong size would be 3 px aside: 3.7.
    for corner in ((0, 0), (2100, 1700)):
        part = (*corner, 400, 400), (100, 100)
        assert np.abs(px(target, *part) - px(source, *part)).mean() < 1.8
    with tifffile.TiffFile(target) as tiff:
        assert [page.is_tiled for page in tiff.pages] == [True] * 3
        widths = [page.imagewidth for page in tiff.pages]
        numbers = [page.tags["XResolution"].value for page in tiff.pages]
    assert widths == [2501, 1251, 626]
    scales = [1e4 / (number / per) for number, per in numbers]
    assert scales == pytest.approx([0.25 * 2501 / width for width in widths], rel=1e-4)


@pytest.mark.parametrize(("mode", "suffix"), [("L", ".jpg"), ("RGBA", ".png"), ("CMYK", ".jpg")])
def test_other_images_are_converted_in_colour(tmp_path, mode, suffix):
    source, target = tmp_path / f"a{suffix}", tmp_path / "a.tif"
    image = smooth(600, 200).convert(mode)
    image.save(source)
    convert(source, target, mpp=0.5)
    expected = np.asarray(Image.open(source).convert("RGB")).astype(int)
    found = px(target, (0, 0, 600, 200), (600, 200))
    assert np.abs(found - expected).mean() < 2


def test_what_is_there_of_the_same_content_and_um_px_is_kept(tmp_path):
    source, target = tmp_path / "a.jpg", tmp_path / "a.tif"
    smooth(100, 100).save(source)
    assert convert(source, target, mpp=0.25)
    first = target.read_bytes()
    os.utime(source, (1, 1))
    assert not convert(source, target, mpp=0.25)
    assert convert(source, target, mpp=0.5)
    smooth(100, 100, seed=1).save(source)
    assert convert(source, target, mpp=0.25)
    assert target.read_bytes() != first
    smooth(100, 100).save(source)
    assert convert(source, target, mpp=0.25)
    assert target.read_bytes() == first


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_a_damaged_image_leaves_no_file_and_stops_no_other(tmp_path, content):
    sources = [tmp_path / f"{name}.jpg" for name in "abc"]
    for source in sources:
        smooth(300, 200).save(source, quality=95)
    whole = sources[1].read_bytes()
    sources[1].write_bytes(whole[: len(whole) // 2] if content is None else content)
    listed = [Conversion(one.stem, one, tmp_path / f"out/{one.stem}.tif") for one in sources]
    problems = convert_all(listed, mpp=0.25, threads=2)
    assert list(problems) == ["b"]
    assert "cannot be converted" in problems["b"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.tif", "c.tif"]


def test_a_conversion_that_is_stopped_leaves_no_file_and_can_be_repeated(tmp_path, monkeypatch):
    source, target = tmp_path / "a.jpg", tmp_path / "out/a.tif"
    smooth(1300, 600).save(source)

    tiles = module._tiles

    def stopped(image: Image.Image, options: dict[str, object]) -> Iterator[bytes]:
        yield next(tiles(image, options))
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(module, "_tiles", stopped)
        with pytest.raises(KeyboardInterrupt):
            convert(source, target, mpp=0.25)
    assert list((tmp_path / "out").iterdir()) == []
    assert convert(source, target, mpp=0.25)


def test_files_of_others_are_never_converted_over(tmp_path):
    source = tmp_path / "a.jpg"
    smooth(64, 64).save(source)
    targets = [tmp_path / "a.tif", tmp_path / "b.tif"]
    targets[0].write_text("mine")
    tifffile.imwrite(targets[1], np.zeros((64, 64, 3), np.uint8), description=json.dumps({}))
    with pytest.raises(UserError) as error:
        convert_all([Conversion(one.stem, source, one) for one in targets], mpp=0.25)
    assert all(str(one) in str(error.value) for one in targets)
    assert targets[0].read_text() == "mine"


def test_no_more_images_are_converted_at_once_than_fit_into_memory(tmp_path, monkeypatch):
    sources = [tmp_path / f"{number}.jpg" for number in range(6)]
    for source in sources:
        smooth(200, 100).save(source)
    need = 200 * 100 * 4 * module._PEAK
    running, most = [0], [0]
    lock = threading.Lock()

    def counted(source: Path, target: Path, *, mpp: float) -> bool:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        threading.Event().wait(0.02)
        with lock:
            running[0] -= 1
        return True

    monkeypatch.setattr(module, "convert", counted)
    listed = [Conversion(one.stem, one, one.with_suffix(".tif")) for one in sources]
    for fitting, expected in ((2.5, 2), (0.1, 1), (100, 3)):
        most[0] = 0
        monkeypatch.setattr(module, "available_bytes", lambda n=fitting: int(need * n))
        assert convert_all(listed, mpp=0.25, threads=3) == {}
        assert most[0] == expected


def test_an_image_that_does_not_fit_into_memory_is_refused_before_it_is_decoded(
    tmp_path, monkeypatch
):
    source = tmp_path / "a.jpg"
    smooth(200, 100).save(source)
    monkeypatch.setattr(module, "available_bytes", lambda: 1000)
    with pytest.raises(SlideError, match="200 x 100 px, and to convert it takes"):
        convert(source, tmp_path / "a.tif", mpp=0.25)


def test_memory_is_that_of_the_image_and_a_level(tmp_path):
    """What `_PEAK` promises, which decides how many are converted at once."""
    source = tmp_path / "a.jpg"
    Image.new("RGB", (6000, 5000), (200, 120, 170)).save(source)
    convert(source, tmp_path / "warm.tif", mpp=0.25)
    before = peak_megabytes(anew=True)
    convert(source, tmp_path / "a.tif", mpp=0.25)
    decoded = 6000 * 5000 * 4 / (1 << 20)
    assert peak_megabytes() - before < module._PEAK * decoded + 20
