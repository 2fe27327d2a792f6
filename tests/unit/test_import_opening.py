"""Opening a slide tells of it what tiling would, without decoding it."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from her2.config import TilingSection, parse_config
from her2.core.errors import SlideError
from her2.importing.opening import Opening, SlideToOpen, open_slides
from her2.slides.backends import open_slide, read_header
from her2.slides.slide import Slide
from her2.tiling.grid import tile_slide

PICTURE = np.full((96, 128, 3), 200, np.uint8)


def opened(path: Path, mpp: float | None = None, **further: object) -> Opening:
    [found] = open_slides([SlideToOpen(slide_id="s", path=path, mpp=mpp)], **further)
    return found


@pytest.fixture
def pyramid(tmp_path, write_slide) -> Path:
    return write_slide(tmp_path / "a.tif", PICTURE, PICTURE[::2, ::2], mpp=(0.25, 0.5))


def test_a_slide_s_facts_are_those_that_it_opens_with(pyramid):
    found = opened(pyramid)
    with Slide(pyramid) as slide:
        assert (found.width_px, found.height_px) == (slide.width_px, slide.height_px) == (128, 96)
        assert found.vendor == slide.vendor == "generic-tiff"
        assert found.levels == len(slide.downsamples) == 2
        scale = slide.scale()
        assert found.mpp == (scale.mpp_x, scale.mpp_y)
    assert found.mpp == pytest.approx((0.25, 0.5))
    assert (found.mpp_source, found.problem, found.excluded) == ("metadata", "", ())
    assert found.reader == "OpenSlide"


def test_the_manifest_s_scale_counts_and_the_file_s_is_told(pyramid):
    found = opened(pyramid, 0.4)
    assert (found.mpp, found.mpp_source) == ((0.4, 0.4), "manifest")
    assert found.file_mpp == pytest.approx((0.25, 0.5))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_flat_image_is_not_decoded(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PICTURE).save(path)

    def decoded(self: Image.Image) -> None:
        raise AssertionError("its px were decoded")

    for kind in Image.Image.__subclasses__():
        for one in (kind, *kind.__subclasses__()):
            monkeypatch.setattr(one, "load", decoded)
    found = opened(path, 0.5)
    assert (found.width_px, found.height_px, found.levels) == (128, 96, 1)
    assert (found.vendor, found.reader, found.problem) == ("flat image", "Pillow", "")
    assert found.excluded == ()


def test_a_slide_without_a_scale_would_be_left_out_and_says_how_to_mend_it(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)
    found = opened(path)
    assert (found.mpp, found.mpp_source, found.problem) == (None, "", "")
    assert found.excluded == (
        "no um/px in its metadata; set it in the manifest's column 'mpp' (um/px at full "
        "resolution)",
    )


def test_a_scale_that_is_no_number_is_none(pyramid, monkeypatch):
    broken = read_header(pyramid)
    monkeypatch.setattr(
        "her2.importing.opening.read_header",
        lambda path: type(broken)(broken.vendor, "x", broken.level_sizes, (float("nan"), 0.5)),
    )
    found = opened(pyramid)
    assert (found.mpp, found.file_mpp) == (None, None)
    assert "is outside" in found.excluded[0]


def test_too_coarse_slides_are_excluded_with_the_words_of_tiling(config_values, pyramid):
    encoders = {
        name: {"source": "random", "model": "timm/resnet18", "mpp": mpp, "size": 96}
        for name, mpp in (("fine", 0.25), ("coarse", 1.0), ("coarse-too", 1.0))
    }
    values = config_values | {"encoders": encoders, "tiling": {"min_tiles": 1}}
    config = parse_config(values)
    found = opened(pyramid, config=config)
    with Slide(pyramid) as slide, pytest.raises(SlideError) as refused:
        tile_slide(slide, slide.scale(), mpp=0.25, size=96, tiling=TilingSection(), fingerprint="f")
    assert found.excluded[0] == str(refused.value)
    (small,) = opened(pyramid, 0.25, config=config).excluded
    assert "128 x 96 px at 0.25 um/px (manifest) hold 0 tile(s) of 96 um" in small


@pytest.mark.parametrize("content", [b"no slide at all", b"II*\0", b"\x89PNG\r\n\x1a\n"], ids=repr)
def test_a_damaged_file_has_the_problem_that_opening_it_would_have(content, tmp_path):
    path = tmp_path / "a.svs"
    path.write_bytes(content)
    found = opened(path)
    with pytest.raises(SlideError) as told:
        open_slide(path)
    assert found.problem == str(told.value)
    assert (found.width_px, found.levels, found.fingerprint) == (0, 0, "")


def test_an_absent_file_a_folder_and_a_mirax_index_alone_are_problems_of_their_slides(tmp_path):
    (tmp_path / "folder.svs").mkdir()
    (tmp_path / "a.mrxs").write_bytes(b"x")
    names = ("none.svs", "folder.svs", "a.mrxs")
    slides = [SlideToOpen(slide_id=name, path=tmp_path / name) for name in names]
    none, folder, mirax = open_slides(slides)
    assert none.problem == "the file cannot be read (No such file or directory)"
    assert "directory" in folder.problem
    assert "the folder a with the image data of a.mrxs is missing" in mirax.problem


def test_slides_are_opened_at_the_same_time_and_told_in_their_order(tmp_path, monkeypatch):
    together = threading.Barrier(4, timeout=20)

    def header(path: Path) -> object:
        together.wait()
        raise SlideError(path.stem)

    monkeypatch.setattr("her2.importing.opening.read_header", header)
    slides = []
    for number in range(8):
        path = tmp_path / f"{number}.svs"
        path.write_bytes(b"x")
        slides.append(SlideToOpen(slide_id=str(number), path=path))
    found = open_slides(slides, threads=4)
    assert [one.problem for one in found] == [str(number) for number in range(8)]


def test_only_slides_of_one_size_are_compared_by_content(tmp_path, monkeypatch):
    """A MIRAX cohort would be read for hours."""
    names = {"a": PICTURE, "copy": PICTURE, "other": PICTURE[::2]}
    for name, picture in names.items():
        Image.fromarray(picture).save(tmp_path / f"{name}.bmp")
    read = []

    def identify(path: Path) -> str:
        read.append(path.stem)
        return path.stem

    monkeypatch.setattr("her2.importing.opening.fingerprint", identify)
    found = open_slides([SlideToOpen(slide_id=n, path=tmp_path / f"{n}.bmp") for n in names])
    assert sorted(read) == ["a", "copy"]
    assert [one.fingerprint for one in found] == ["a", "copy", ""]
    assert found[2].size_bytes == (tmp_path / "other.bmp").stat().st_size


def test_the_share_of_brown_is_measured_where_it_is_asked_for(pyramid):
    assert opened(pyramid).brown is None
    seen = []

    def brown(path: Path, mpp: float | None) -> float:
        seen.append((path, mpp))
        return 0.25

    assert opened(pyramid, 0.5, brown=brown).brown == 0.25
    assert seen == [(pyramid, 0.5)]


def test_ctrl_c_does_not_wait_for_the_slides_to_come(tmp_path, monkeypatch):
    asked = []

    def header(path: Path) -> object:
        asked.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr("her2.importing.opening.read_header", header)
    path = tmp_path / "a.svs"
    path.write_bytes(b"x")
    with pytest.raises(KeyboardInterrupt):
        open_slides([SlideToOpen(slide_id=str(n), path=path) for n in range(500)], threads=1)
    assert len(asked) < 500
