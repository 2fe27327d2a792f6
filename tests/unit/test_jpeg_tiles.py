"""Decoding a slide's own JPEG tiles gives OpenSlide's bytes, or leaves the tile to OpenSlide."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from her2.core.errors import TileError
from her2.slides import jpeg
from her2.slides.jpeg import JpegTiles
from her2.slides.slide import Slide

SVS_TILE = 240
REAL = Path(__file__).resolve().parents[3] / "shared" / "slides" / "cmu-1-small-region.svs"


def both(path: Path) -> tuple[Slide, Slide]:
    """Open the slide through OpenSlide alone, and with direct decoding."""
    plain, direct = Slide(path), Slide(path)
    assert direct.decode_directly(0, 0, 96, 96)
    return plain, direct


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    x=st.floats(0, 700), y=st.floats(0, 700),
    side=st.floats(20, 400), out=st.integers(16, 200),
)  # fmt: skip
def test_any_region_is_the_same_both_ways(
    drawn_slide: Path, x: float, y: float, side: float, out: int
) -> None:
    """This includes regions beyond the border, resampled, and from a coarser level."""
    plain, direct = both(drawn_slide)
    with plain, direct:
        region = (x, y, side, side, (out, out))
        np.testing.assert_array_equal(direct.region(*region), plain.region(*region))


@pytest.mark.skipif(not REAL.exists(), reason="no ../shared/slides beside this checkout")
@pytest.mark.parametrize("side", [224, 224.449, 240, 512])
def test_a_real_slide_is_the_same_both_ways(side: float) -> None:
    plain, direct = both(REAL)
    with plain, direct:
        for x in range(0, 2220, 555):
            for y in range(0, 2967, 600):
                region = (x, y, side, side, (224, 224))
                np.testing.assert_array_equal(direct.region(*region), plain.region(*region))


def test_openslide_is_not_asked_where_tiles_are_plain(
    drawn_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, direct = both(drawn_slide)
    assert direct.reader == "jpeg"
    monkeypatch.setattr(
        direct._opened, "read_region", lambda *_: pytest.fail("OpenSlide was asked")
    )
    assert direct.region(100, 100, 224, 224, (224, 224)).shape == (224, 224, 3)


@pytest.mark.parametrize("compression", ["zlib", "jpeg"])
def test_only_jpeg_tiles_are_decoded_directly(write_slide, tmp_path: Path, compression) -> None:
    image = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    path = write_slide(tmp_path / "slide.tif", image, compression=compression)
    with Slide(path) as slide:
        assert slide.decode_directly(0, 0, 64, 64) == (compression == "jpeg")


def test_a_level_that_is_not_a_whole_number_of_times_smaller_is_left_to_openslide(
    write_slide, tmp_path: Path
) -> None:
    """At such levels OpenSlide interpolates between px."""
    levels = [np.zeros((side, side, 3), np.uint8) for side in (513, 128)]
    path = write_slide(tmp_path / "slide.tif", *levels, compression="jpeg")
    with Slide(path) as slide:
        tiles = JpegTiles(path, slide.level_sizes, slide.downsamples)
        assert tiles.read(0, 0, 0, (64, 64)) is not None
        assert tiles.read(1, 0, 0, (64, 64)) is None


def test_a_reader_that_decodes_otherwise_is_not_used(
    drawn_slide: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(JpegTiles):
        def read(self, level, left, top, size):
            return super().read(level, left, top, size) ^ 1

    monkeypatch.setattr(jpeg, "open_jpeg_tiles", Wrong)
    with Slide(drawn_slide) as slide:
        assert not slide.decode_directly(0, 0, 96, 96)
        assert slide.reader == "openslide"
    assert "directly decoded pixels differ from those of openslide" in caplog.text


def half_lost(content: bytearray) -> None:
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)


def end_lost(content: bytearray) -> None:
    content[-2:] = b"\0\0"


def another_marker(content: bytearray) -> None:
    content[len(content) // 2 : len(content) // 2 + 2] = b"\xff\xc4"


def restart_that_nobody_announced(content: bytearray) -> None:
    content[len(content) // 2 : len(content) // 2 + 2] = b"\xff\xd3"


def all_lost(content: bytearray) -> None:
    content[:] = bytes(len(content))


@pytest.mark.parametrize(
    "change", [half_lost, end_lost, another_marker, restart_that_nobody_announced, all_lost]
)
def test_damage_that_openslide_sees_is_seen_here(drawn_slide: Path, tmp_path: Path, change) -> None:
    """imagecodecs ignores libjpeg's warnings, so half a tile would be grey instead of failing.

    Whether OpenSlide notices a lost end depends on where the last code of the tile ends, so tiles
    are tried until it does.
    """
    for column, row in ((1, 1), (2, 2), (0, 1), (2, 1), (1, 2)):
        path = tmp_path / f"damaged-{column}-{row}.svs"
        shutil.copy(drawn_slide, path)
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            index = row * math.ceil(page.imagewidth / SVS_TILE) + column
            offset, count = page.dataoffsets[index], page.databytecounts[index]
        with path.open("r+b") as stream:
            stream.seek(offset)
            content = bytearray(stream.read(count))
            change(content)
            stream.seek(offset)
            stream.write(content)
        plain, direct = both(path)
        with plain, direct:
            region = (column * SVS_TILE, row * SVS_TILE, 96, 96, (96, 96))
            try:
                plain.region(*region)
            except TileError:
                with pytest.raises(TileError):
                    direct.region(*region)
                far = (0, 2 * SVS_TILE, 96, 96, (96, 96))
                np.testing.assert_array_equal(direct.region(*far), plain.region(*far))
                return
    pytest.fail("OpenSlide noticed the damage in no tile")


def test_a_tile_that_the_file_lacks_is_no_white_tile(drawn_slide: Path, tmp_path: Path) -> None:
    """A tile of a TIFF may have no bytes: it was not scanned, or it was lost."""
    path = tmp_path / "sparse.svs"
    shutil.copy(drawn_slide, path)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        page = tiff.pages[0]
        counts = list(page.databytecounts)
        counts[0] = 0
        page.tags["TileByteCounts"].overwrite(counts)
    with Slide(path) as slide:
        assert slide.decode_directly(2 * SVS_TILE, 0, 96, 96)
        white = slide.region(0, 0, 96, 96, (96, 96))
        assert (white == 255).all()
        with pytest.raises(TileError, match="has no image data"):
            slide.region(0, 0, 96, 96, (96, 96), scanned=True)
