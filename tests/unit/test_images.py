"""A file that somebody else has made starts no program, opens no other file and blocks nothing."""

import ast
import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from her2.core import images
from her2.core.errors import SlideError
from her2.core.images import FORMATS, open_image
from her2.core.reading import check_regular
from her2.pretraining.patches import read_rgb
from her2.slides.annotations import read_regions
from her2.slides.backends.openslide import _ome_mpp
from her2.slides.fingerprint import fingerprint
from her2.slides.masks import read_mask
from her2.slides.slide import Slide

PACKAGE = Path(__file__).parents[2] / "her2"
SHAPE, SIZE_PX = (60, 80), (4000, 3000)
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 60\n%%EndComments\nshowpage\n%%EOF\n"
OPENERS = {
    "Image.open": "core/images.py",
    "tifffile.TiffFile": {"slides/masks.py", "slides/jpeg.py"},
    "openslide.OpenSlide": "slides/backends/openslide.py",
    "cv2.imdecode": "tiling/segmentation.py",  # of what it has encoded itself
    "np.load": "exchange/content/npy_file.py",  # without pickles
    "subprocess.run": {"cli/doctor/checks/gpu.py", "cli/doctor/checks/slurm.py"},
    "urllib.request.urlopen": "cli/doctor/base.py",  # is the hub there?
}
NEVER = {
    "cv2.imread", "cv2.VideoCapture", "tifffile.imread", "tifffile.TiffSequence",
    "openslide.open_slide", "plt.imread", "mpl.image.imread", "pickle.load", "pickle.loads",
    "os.system", "os.popen", "subprocess.Popen", "subprocess.call",
    "subprocess.check_output", "numpy.load",
}  # fmt: skip
"""Calls that guess a format, follow a path in a file, start a program or reach the network."""


def calls(path: Path) -> set[str]:
    """Return the dotted names that a module calls."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_images_are_opened_in_one_place_and_no_call_guesses_a_format_or_starts_a_program():
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for name in calls(path):
            found.setdefault(name, set()).add(path.relative_to(PACKAGE).as_posix())
    for name, places in OPENERS.items():
        assert found[name] <= ({places} if isinstance(places, str) else places), name
    assert NEVER & found.keys() == set()


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """Stand-ins for Ghostscript first on the path; each writes a file when it is started."""
    folder, started = tmp_path / "bin", tmp_path / "started"
    folder.mkdir()
    for name in ("gs", "gswin32c", "gswin64c"):
        (folder / name).write_text(f"#!/bin/sh\ntouch {started}\n")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    return started


def test_the_stand_in_would_be_started(tmp_path, programs):
    """Else the next tests could not fail."""
    (tmp_path / "a.eps").write_bytes(POSTSCRIPT)
    with pytest.raises(OSError, match="cannot|truncated|identify|exist"):
        Image.open(tmp_path / "a.eps").load()
    assert programs.exists()


@pytest.mark.parametrize(
    ("read", "suffixes", "error"),
    [
        (lambda path: Slide(path), (".svs", ".png", ".tif"), SlideError),
        (lambda path: read_mask(path, SHAPE, size_px=SIZE_PX), (".png", ".tif"), SlideError),
        (lambda path: read_rgb(path), (".png", ".tif", ".eps"), ValueError),
    ],
    ids=["slides", "masks", "patches"],
)
def test_postscript_under_another_name_starts_no_program(tmp_path, programs, read, suffixes, error):
    for suffix in suffixes:
        path = tmp_path / f"a{suffix}"
        path.write_bytes(POSTSCRIPT)
        with pytest.raises(error):
            read(path)
    assert not programs.exists()


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"WEBP", "JPEG"}))
def test_the_named_formats_are_opened(tmp_path, name):
    px = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    Image.fromarray(px).save(tmp_path / "x", name)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "x")), px)


def test_a_mask_or_patch_that_would_fill_the_memory_is_refused_by_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "LARGEST_PX", 10_000)
    for name, size in (("fits.png", (100, 100)), ("large.png", (100, 101))):
        Image.new("RGB", size).save(tmp_path / name)
    read_rgb(tmp_path / "fits.png")
    read_mask(tmp_path / "fits.png", (100, 100), size_px=(4000, 4000))
    with pytest.raises(ValueError, match="has 100 x 101 px, which take"):
        read_rgb(tmp_path / "large.png")
    with pytest.raises(SlideError, match="10,000 px of its kind; save it smaller"):
        read_mask(tmp_path / "large.png", (100, 100), size_px=(4000, 4000))


@pytest.mark.parametrize("name", ["GIF", "EPS", "PDF", "ICO", "TGA", "PCX", "SGI"])
def test_other_formats_are_not(tmp_path, name):
    px = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    Image.fromarray(px).save(tmp_path / "x.png", name)
    with pytest.raises(SlideError, match="not a slide"):
        Slide(tmp_path / "x.png")


def test_an_ome_tiff_that_names_another_file_is_read_without_it(tmp_path):
    """Its OME-XML says that the image is in a file of another folder."""
    (tmp_path / "secret").mkdir()
    half = np.zeros(SHAPE, np.uint8)
    half[:, :40] = 1
    other = tmp_path / "secret" / "other.ome.tif"
    tifffile.imwrite(other, np.ones(SHAPE, np.uint8), ome=True, metadata={"axes": "YX"})
    uuid = "urn:uuid:00000000-0000-0000-0000-000000000001"
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'UUID="urn:uuid:00000000-0000-0000-0000-000000000002"><Image ID="Image:0"><Pixels '
        'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="80" SizeY="60" SizeC="1" '
        'SizeZ="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData IFD="0" '
        f'PlaneCount="1"><UUID FileName="secret/other.ome.tif">{uuid}</UUID></TiffData></Pixels>'
        "</Image></OME>"
    )
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, half, description=xml, metadata=None)
    with tifffile.TiffFile(path) as tiff:  # as tifffile reads it by itself, or this cannot fail
        assert not np.array_equal(tiff.series[0].asarray(), half)
    np.testing.assert_array_equal(read_mask(path, SHAPE, size_px=SIZE_PX), half > 0)


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    for suffix, read in (
        (".png", lambda path: read_mask(path, SHAPE, size_px=SIZE_PX)),
        (".tif", lambda path: read_mask(path, SHAPE, size_px=SIZE_PX)),
        (".geojson", read_regions),
        (".xml", read_regions),
        (".svs", Slide),
        (".jpg", fingerprint),
    ):
        path = tmp_path / f"pipe{suffix}"
        os.mkfifo(path)
        with pytest.raises(SlideError, match="named pipe|empty"):
            read(path)
    with pytest.raises(OSError, match="named pipe"):
        check_regular(path)
    with pytest.raises(OSError, match="named pipe"):
        open_image(path)


@pytest.mark.parametrize(
    "text",
    [
        "<OME>" + "<Pixels " * 300_000,
        "<OME " + "<a" * 500_000,
        "<OME>" + "<" + "a" * 1_000_000,
        "<OME><Pixels " + "PhysicalSizeX='" * 200_000 + ">",
    ],
    ids=["elements", "names", "a name", "attributes"],
)
def test_a_description_that_never_ends_is_read_in_a_moment(text):
    begin = time.process_time()
    assert _ome_mpp(text) is None
    assert time.process_time() - begin < 1
