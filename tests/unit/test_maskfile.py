"""Tissue masks from other programs, of any size, depth and compression."""

import tracemalloc
import zlib

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


# Px that are nothing


def with_transparency(folder):
    """Return masks that are white everywhere, and transparent in the right half."""
    seen = half(60, 80)
    grey = np.where(seen, 255, 7).astype(np.uint8)
    colour = np.dstack([np.full((60, 80, 3), 255), seen * 255]).astype(np.uint8)
    Image.fromarray(colour).save(folder / "rgba.png")
    Image.fromarray(colour[..., 2:]).save(folder / "la.png")
    Image.fromarray(grey).save(folder / "grey.png", transparency=7)
    palette = Image.fromarray((grey == 7).astype(np.uint8) + 1, "P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(folder / "palette.png", transparency=2)
    Image.fromarray(grey.astype(np.uint16)).save(folder / "grey16.png")
    content = (folder / "grey16.png").read_bytes()
    chunk = b"tRNS" + (7).to_bytes(2, "big")
    chunk = (2).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    place = content.index(b"IDAT") - 4
    (folder / "grey16.png").write_bytes(content[:place] + chunk + content[place:])
    tifffile.imwrite(folder / "rgba.tif", colour, photometric="rgb", extrasamples=["unassalpha"])
    return sorted(folder.iterdir())


def test_what_is_transparent_is_no_tissue_whatever_its_colour(tmp_path):
    paths = with_transparency(tmp_path)
    assert len(paths) == 6
    for path in paths:
        found = read_mask(path, SHAPE, size_px=SIZE_PX)
        np.testing.assert_array_equal(found, half(*SHAPE), err_msg=path.name)


def test_a_mask_that_is_transparent_everywhere_is_refused(tmp_path):
    Image.fromarray(np.zeros((60, 80, 4), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(SlideError, match=r"m\.png is transparent everywhere; save it without"):
        read_mask(tmp_path / "m.png", SHAPE, size_px=SIZE_PX)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_what_is_not_a_number_is_no_tissue(tmp_path, channels):
    values = np.full((60, 80, *channels), np.nan, np.float32)
    values[:, :40] = 1
    tifffile.imwrite(tmp_path / "m.tif", values, photometric="rgb" if channels else "minisblack")
    found = read_mask(tmp_path / "m.tif", SHAPE, size_px=SIZE_PX)
    np.testing.assert_array_equal(found, half(*SHAPE))


# Bounds


def retagged(path, mask, **values):
    """Write a mask as TIFF, then change the values of tags of its first page."""
    tifffile.imwrite(path, mask, compression="zlib", rowsperstrip=16)
    with tifffile.TiffFile(path) as tiff:
        tags = {name: tiff.pages[0].tags[name] for name in values}
    with path.open("r+b") as stream:
        for name, value in values.items():
            stream.seek(tags[name].valueoffset)
            stream.write(value.to_bytes({3: 2, 4: 4}[tags[name].dtype], "little"))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"ImageWidth": 0}, "is not a readable PNG or TIFF|has 0 x"),
        ({"ImageLength": 0}, "is not a readable PNG or TIFF|x 0 px"),
        ({"ImageWidth": 60_000, "ImageLength": 60_000}, "has 60,000 x 60,000 px, more than"),
        ({"RowsPerStrip": 65_535, "ImageLength": 65_535}, "aspect|damaged|readable"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name_without_the_memory(tmp_path, values, problem):
    tracemalloc.start()
    retagged(tmp_path / "m.tif", half(60, 80).astype(np.uint8), **values)
    with pytest.raises(SlideError, match=problem) as error:
        read_mask(tmp_path / "m.tif", SHAPE, size_px=SIZE_PX)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "m.tif" in str(error.value)
    assert peak < 64 << 20


def test_a_part_that_is_longer_than_the_file_is_not_allocated(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", half(60, 80).astype(np.uint8))
    retagged(tmp_path / "m.tif", half(60, 80).astype(np.uint8), Compression=8)
    with tifffile.TiffFile(tmp_path / "m.tif") as tiff:
        tag = tiff.pages[0].tags["StripByteCounts"]
    with (tmp_path / "m.tif").open("r+b") as stream:
        stream.seek(tag.valueoffset)
        stream.write(b"\xff" * (4 if tag.dtype == 4 else 2))
    with pytest.raises(SlideError, match="its parts are larger than it is"):
        read_mask(tmp_path / "m.tif", SHAPE, size_px=SIZE_PX)
