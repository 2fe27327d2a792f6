"""Tissue masks from other programs, of any size, depth and compression."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from her2.core.errors import SlideError
from her2.slides.masks import read_mask

SHAPE, SIZE_PX = (60, 80), (4000, 3000)


def half(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = True
    return mask


@pytest.mark.parametrize("size", [(60, 80), (30, 40), (240, 320), (333, 444)])
@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_mask_of_any_size_covers_the_slide(tmp_path, size, value, suffix):
    path = tmp_path / f"m{suffix}"
    Image.fromarray(half(*size).astype(np.uint8) * np.uint8(value)).save(path)
    np.testing.assert_array_equal(read_mask(path, SHAPE, size_px=SIZE_PX), half(*SHAPE))


def variants(folder):
    """Return the same mask in the forms that programs write."""
    plain = half(60, 80)
    images = {
        "one bit": Image.fromarray(plain),
        "16 bit": Image.fromarray(plain.astype(np.uint16) * 300),
        "colour": Image.fromarray(np.dstack([plain * 0, plain * 0, plain * 200]).astype(np.uint8)),
        "transparent": Image.fromarray(
            np.dstack([plain * 200, plain * 0, plain * 0, np.full((60, 80), 255)]).astype(np.uint8)
        ),
    }
    palette = Image.fromarray(plain.astype(np.uint8), "P")
    palette.putpalette([255, 255, 255, 255, 0, 0])  # index 0 is white: indices count, not colours
    images["palette"] = palette
    for name, image in images.items():
        image.save(folder / f"{name}.png")
        yield folder / f"{name}.png"
    writers = {
        "planes": {
            "data": np.stack([plain, plain * 0, plain]).astype(np.uint8),
            "photometric": "rgb", "planarconfig": "separate",
        },
        "rgba": {
            "data": np.dstack([plain * 9, plain, plain, np.full((60, 80), 255)]).astype(np.uint8),
            "photometric": "rgb", "extrasamples": ["unassalpha"],
        },
        "white is zero": {"data": (~plain * 255).astype(np.uint8), "photometric": "miniswhite"},
        "tiled": {"data": plain.astype(np.uint8), "tile": (32, 32), "compression": "zlib"},
        "labels": {"data": (plain * 70_000).astype(np.uint32)},
    }  # fmt: skip
    for name, options in writers.items():
        tifffile.imwrite(folder / f"{name}.tif", **options)
        yield folder / f"{name}.tif"


def test_a_mask_is_what_is_not_zero_in_whatever_form(tmp_path):
    paths = list(variants(tmp_path))
    assert len(paths) == 10
    for path in paths:
        found = read_mask(path, SHAPE, size_px=SIZE_PX)
        np.testing.assert_array_equal(found, half(*SHAPE), err_msg=path.name)


def test_of_a_pyramid_the_smallest_sufficient_level_is_read(tmp_path):
    """Level 0 differs, and must not be read."""
    with tifffile.TiffWriter(tmp_path / "p.tif") as tiff:
        tiff.write(np.ones((240, 320), np.uint8), tile=(64, 64), subifds=2)
        tiff.write(half(120, 160).astype(np.uint8), tile=(64, 64), subfiletype=1)
        tiff.write(np.ones((30, 40), np.uint8), tile=(32, 32), subfiletype=1)
    found = read_mask(tmp_path / "p.tif", SHAPE, size_px=SIZE_PX)
    np.testing.assert_array_equal(found, half(*SHAPE))


def test_a_mask_of_another_shape_than_the_slide_is_refused(tmp_path):
    Image.fromarray(half(80, 60)).save(tmp_path / "m.png")
    with pytest.raises(
        SlideError, match=r"m\.png \(60 x 80 px\) has another aspect ratio than the slide"
    ):
        read_mask(tmp_path / "m.png", SHAPE, size_px=SIZE_PX)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_broken_or_missing_mask_is_named(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    with pytest.raises(SlideError, match=rf"its tissue mask m\{suffix} does not exist"):
        read_mask(path, SHAPE, size_px=SIZE_PX)
    path.write_bytes(b"not an image")
    with pytest.raises(SlideError, match="is not a readable PNG or TIFF") as error:
        read_mask(path, SHAPE, size_px=SIZE_PX)
    assert str(tmp_path) not in str(error.value)
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (600, 800), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(SlideError, match="is not a readable PNG or TIFF"):
        read_mask(path, SHAPE, size_px=SIZE_PX)
