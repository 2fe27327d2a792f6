"""One image in every format: the same px, the right um/px, the same tiles."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from her2.config import TilingSection
from her2.core.errors import SlideUnfit, TileError
from her2.embedding.reading import PendingSlide, read_part
from her2.slides.fingerprint import fingerprint
from her2.slides.slide import Slide
from her2.storage.spool import RowSpool
from her2.synthetic.svs import svs_bytes
from her2.tiling.grid import tile_slide
from tests.dicom import write_dicom
from tests.mirax import write_mirax
from tests.vms import write_vms

WIDTH, HEIGHT, MPP = 640, 544, 0.5


def picture() -> np.ndarray:
    """Draw tissue whose colour encodes its position, smooth so that JPEG preserves it."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    tissue = np.dstack([150 + x * 50 / WIDTH, 60 + y * 50 / HEIGHT, np.full(x.shape, 150)])
    return np.where(oval()[..., None], tissue, 243).astype(np.uint8)


def oval(margin_um: float = 0) -> np.ndarray:
    """Return the mask of the tissue, grown by a margin."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    grown = margin_um / MPP
    return np.hypot((x - 320) / (290 + grown), (y - 260) / (220 + grown)) < 1


def halved(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).reduce(2))


def write_svs(folder: Path, image: np.ndarray) -> Path:
    path = folder / "a.svs"
    path.write_bytes(svs_bytes(image, mpp=MPP, app_mag=20, jpeg_quality=95, extra={}))
    return path


def write_tiff(folder: Path, image: np.ndarray) -> Path:
    path = folder / "a.tif"
    resolution = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        for number, level in enumerate((image, halved(image), halved(halved(image)))):
            tiff.write(
                level, tile=(64, 64), photometric="rgb", compression="jpeg", metadata=None,
                compressionargs={"level": 95}, subfiletype=int(number > 0),
                **(resolution if number == 0 else {}),
            )  # fmt: skip
    return path


def write_ome(folder: Path, image: np.ndarray) -> Path:
    path = folder / "a.ome.tif"
    sizes = {"PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
    units = {"PhysicalSizeXUnit": "\N{MICRO SIGN}m", "PhysicalSizeYUnit": "\N{MICRO SIGN}m"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        options = {"tile": (64, 64), "photometric": "rgb", "compression": "jpeg"}
        quality = {"compressionargs": {"level": 95}}
        metadata = {"axes": "YXS", **sizes, **units}
        tiff.write(image, subifds=1, metadata=metadata, **options, **quality)
        tiff.write(halved(image), subfiletype=1, **options, **quality)
    return path


def write_dicom_slide(folder: Path, image: np.ndarray) -> Path:
    write_dicom(folder / "level1.dcm", halved(image), mpp=2 * MPP, level=1)
    return write_dicom(folder / "level0.dcm", image, mpp=MPP)


def write_mirax_slide(folder: Path, image: np.ndarray) -> Path:
    return write_mirax(folder / "a.mrxs", image, mpp=MPP, tile=32)


def write_vms_slide(folder: Path, image: np.ndarray) -> Path:
    return write_vms(folder / "a.vms", image)


def write_flat(name: str) -> Callable[[Path, np.ndarray], Path]:
    def write(folder: Path, image: np.ndarray) -> Path:
        Image.fromarray(image).save(folder / name, quality=95)
        return folder / name

    return write


FORMATS: dict[str, tuple[Callable[[Path, np.ndarray], Path], str, int]] = {
    "svs": (write_svs, "aperio", 3),
    "tiff": (write_tiff, "generic-tiff", 3),
    "ome-tiff": (write_ome, "generic-tiff", 1),  # OpenSlide does not follow SubIFDs
    "dicom": (write_dicom_slide, "dicom", 2),
    "mirax": (write_mirax_slide, "mirax", 1),
    "vms": (write_vms_slide, "hamamatsu", 7),  # halves of its map too
    "jpg": (write_flat("a.jpg"), "flat image", 1),
    "png": (write_flat("a.png"), "flat image", 1),
}
FLAT = ("jpg", "png")


@pytest.fixture(scope="module", params=FORMATS)
def slide_file(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, FORMATS[request.param][0](folder, picture())


def manifest_mpp(name: str) -> float | None:
    return MPP if name in FLAT else None


def test_um_per_px_size_and_levels_are_known(slide_file):
    name, path = slide_file
    with Slide(path) as slide:
        scale = slide.scale(manifest_mpp(name))
        assert (scale.mpp_x, scale.mpp_y) == pytest.approx((MPP, MPP), rel=1e-6)
        assert scale.source == ("manifest" if name in FLAT else "metadata")
        assert (slide.width_px, slide.height_px) == (WIDTH, HEIGHT)
        assert (slide.vendor, len(slide.downsamples)) == FORMATS[name][1:]


def test_the_objective_is_known_where_the_file_names_it(slide_file):
    name, path = slide_file
    with Slide(path) as slide:
        assert slide.objective == {"svs": 20, "mirax": 20}.get(name)
        assert (slide.file_mpp is None) == (name in FLAT)


def test_flat_images_ask_for_um_per_px(slide_file):
    name, path = slide_file
    if name in FLAT:
        with Slide(path) as slide, pytest.raises(SlideUnfit, match="column 'mpp'"):
            slide.scale()


@pytest.mark.parametrize("corner", [(200, 150), (301, 93)])
def test_px_are_those_of_the_image(slide_file, corner):
    """The tolerance is the change by JPEG of quality 95 in a smooth image."""
    x, y = corner
    image = picture().astype(int)
    with Slide(slide_file[1]) as slide:
        full = slide.region(x, y, 128, 96, (128, 96)).astype(int)
        half = slide.region(x, y, 128, 96, (64, 48)).astype(int)
    assert np.abs(full - image[y : y + 96, x : x + 128]).max() <= 4
    expected = image[y : y + 96, x : x + 128].reshape(48, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - expected)[2:-2, 2:-2].max() <= 4


def test_every_format_gives_the_same_tiles(slide_file, tmp_path_factory):
    name, path = slide_file
    options = TilingSection.model_validate({"min_tissue_um": 20, "max_blur": 1})
    with Slide(path) as slide:
        scale = slide.scale(manifest_mpp(name))
        table, _ = tile_slide(slide, scale, mpp=MPP, size=64, tiling=options, fingerprint="f" * 64)
    places = [(x, y) for y in range(0, HEIGHT - 63, 64) for x in range(0, WIDTH - 63, 64)]

    def half_full(mask: np.ndarray) -> set[tuple[int, int]]:
        return {(x, y) for x, y in places if mask[y : y + 64, x : x + 64].mean() >= 0.5}

    # The mask is smooth: it knows the tissue's edge to 10 um.
    found = {tuple(place) for place in table.coords.tolist()}
    assert half_full(oval(-10)) <= found <= half_full(oval(10))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ('PhysicalSizeX="0.25" PhysicalSizeY="0.26"', (0.25, 0.26)),
        ('PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="0.00026" '
         'PhysicalSizeYUnit="mm"', (0.25, 0.26)),
        ('PhysicalSizeX="0.25" PhysicalSizeXUnit="pixel" PhysicalSizeY="0.25"', None),
        ('SizeX="100"', None),
    ],
)  # fmt: skip
def test_um_per_px_of_ome_xml_have_units(tmp_path, words, expected):
    schema = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    text = f'<OME xmlns="{schema}"><Image><Pixels {words}/></Image></OME>'
    tifffile.imwrite(
        tmp_path / "a.tif", picture(), tile=(64, 64), photometric="rgb", description=text,
        metadata=None,
    )  # fmt: skip
    with Slide(tmp_path / "a.tif") as slide:
        if expected is None:
            with pytest.raises(SlideUnfit, match="no um/px"):
                slide.scale()
        else:
            scale = slide.scale()
            assert (scale.mpp_x, scale.mpp_y) == pytest.approx(expected)


def test_a_dicom_slide_is_its_series_whatever_else_lies_beside_it(tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        write_dicom_slide(folder, picture())
    first = fingerprint(folders[0] / "level0.dcm")
    # Either file stands for the series, under any name.
    (folders[1] / "level1.dcm").rename(folders[1] / "a.dcm")
    assert fingerprint(folders[1] / "level0.dcm") == fingerprint(folders[1] / "a.dcm") == first
    other = write_dicom(tmp_path / "x.dcm", picture(), mpp=MPP).read_bytes()
    (folders[1] / "x.dcm").write_bytes(other.replace(b"2.25.11.1001", b"2.25.11.2001"))
    assert fingerprint(folders[1] / "level0.dcm") == first
    write_dicom(folders[1] / "a.dcm", halved(picture())[::-1], mpp=2 * MPP, level=1)
    assert fingerprint(folders[1] / "level0.dcm") != first


# Lost tiles


@pytest.fixture
def with_a_hole(tmp_path) -> Path:
    """Write an SVS of one colour whose tile of 240 px at (240, 240) has no bytes."""
    path = write_svs(tmp_path, np.full((HEIGHT, WIDTH, 3), (200, 120, 170), np.uint8))
    with tifffile.TiffFile(path) as tiff:
        counts = tiff.pages[0].tags["TileByteCounts"]
        place, size = counts.valueoffset, {3: 2, 4: 4}[counts.dtype]
    with path.open("r+b") as stream:
        stream.seek(place + size * 4)  # 3 tiles a row: the middle of the second row
        stream.write(bytes(size))
    return path


def test_a_tile_that_was_lost_is_an_error_where_tissue_is_expected(with_a_hole):
    """A tile without bytes reads as transparent and would be embedded as white."""
    with Slide(with_a_hole) as slide:
        assert (slide.region(240, 240, 96, 96, (96, 96)) == 255).all()
        with pytest.raises(TileError, match="has no image data there"):
            slide.region(240, 240, 96, 96, (96, 96), scanned=True)
        half = slide.region(192, 240, 96, 96, (96, 96), scanned=True)
        assert half[:, :40].mean() < 180
        good = slide.region(0, 0, 96, 96, (96, 96), scanned=True)
        assert np.abs(good.astype(int) - (200, 120, 170)).max() <= 4


def test_a_lost_tile_is_never_embedded_as_white(with_a_hole):
    """This also holds if JPEG tiles are decoded without OpenSlide."""
    options = TilingSection.model_validate({"min_tissue": 0, "min_tissue_um": 20, "max_blur": 1})
    with Slide(with_a_hole) as slide:
        table, _ = tile_slide(
            slide, slide.scale(), mpp=MPP, size=80, tiling=options, fingerprint="f" * 64
        )
    pending = PendingSlide("s", with_a_hole, table, "k", RowSpool(len(table), 2, "float16", Path()))
    images = np.empty((len(table), 80, 80, 3), np.uint8)
    group = read_part(pending, np.arange(len(table)), images)
    lost = {(x, y) for x, y in table.coords[group.failed].tolist()}
    assert lost == {(x, y) for x in (240, 320, 400) for y in (240, 320, 400)}
    assert len(group.images) == len(table) - 9
    assert group.images.mean(axis=(1, 2, 3)).max() < 200
