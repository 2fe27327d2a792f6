"""Ground truth: a picture, QuPath's regions and ImageScope's say the same of the same area."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import DTypeLike
from PIL import Image

from her2.core.errors import SlideError
from her2.explanation.localisation import inside_tiles, mask_shape
from her2.explanation.truth import find_truth, truth_mask

SIZE_PX, TILE = (2000, 1600), (100.0, 100.0)
BOX = (310, 240, 1160, 870)
"""Left, top, right, bottom of the positive area in level-0 px; it cuts through tiles."""
GRID = np.array([(x, y) for y in range(0, 1600, 100) for x in range(0, 2000, 100)], np.int32)


def corners(box: tuple[int, int, int, int]) -> list[list[int]]:
    left, top, right, bottom = box
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def picture(
    path: Path, *, downsample: int = 5, white: int = 255, kind: DTypeLike = np.uint8
) -> Path:
    mask = np.zeros((SIZE_PX[1] // downsample, SIZE_PX[0] // downsample), kind)
    left, top, right, bottom = (value // downsample for value in BOX)
    mask[top:bottom, left:right] = white
    if path.suffix == ".png":
        Image.fromarray(mask).save(path)
    else:
        tifffile.imwrite(path, mask)
    return path


def qupath(path: Path, *, name: str = "Tumor", others: tuple[str, ...] = ()) -> Path:
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [corners(box)]},
            "properties": {"objectType": "annotation", "classification": {"name": label}},
        }
        for label, box in [(name, BOX), *((other, (0, 0, 2000, 200)) for other in others)]
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def imagescope(path: Path) -> Path:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners(BOX)[:4])
    path.write_text(
        '<Annotations MicronsPerPixel="0.5"><Annotation Id="1" Name="Layer 1"><Regions>'
        f'<Region Id="1" Type="0" NegativeROA="0"><Vertices>{vertices}</Vertices></Region>'
        "</Regions></Annotation></Annotations>"
    )
    return path


def inside(path: Path, **options: object) -> set[tuple[int, int]]:
    mask = truth_mask(path, mask_shape(SIZE_PX, TILE), size_px=SIZE_PX, **options)
    found = inside_tiles(mask, GRID, TILE, SIZE_PX)
    return {(int(x), int(y)) for x, y in GRID[found]}


# Columns 300 (310 to 400: 0.9 of it) to 1100 (60 px of 100), rows 200 (60 px) to 800 (70 px); the
# corners by the product of both: 1100, 200 has 0.6 * 0.6 = 0.36.
EXPECTED = {
    (x, y)
    for x, share_x in ((300, 0.9), *((v, 1.0) for v in range(400, 1100, 100)), (1100, 0.6))
    for y, share_y in ((200, 0.6), *((v, 1.0) for v in range(300, 800, 100)), (800, 0.7))
    if share_x * share_y >= 0.5
}


def test_a_tile_is_inside_when_half_of_it_is(tmp_path):
    assert (1100, 200) not in EXPECTED
    assert (300, 200) in EXPECTED
    assert inside(picture(tmp_path / "s.png")) == EXPECTED


@pytest.mark.parametrize(
    ("kind", "white"), [(np.uint8, 255), (np.uint8, 1), (np.uint8, 128), (np.uint16, 65535)]
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pictures_of_any_depth_say_the_same(tmp_path, suffix, kind, white):
    assert inside(picture(tmp_path / f"s{suffix}", white=white, kind=kind)) == EXPECTED


def test_grey_that_is_nearer_to_black_is_not_positive(tmp_path):
    assert inside(picture(tmp_path / "s.png", white=127)) == set()


def test_regions_of_qupath_and_imagescope_give_the_tiles_of_the_picture(tmp_path):
    assert inside(qupath(tmp_path / "s.geojson")) == EXPECTED
    assert inside(imagescope(tmp_path / "s.xml")) == EXPECTED


def test_only_regions_of_the_named_classes_are_positive(tmp_path):
    path = qupath(tmp_path / "s.geojson", others=("Stroma",))
    assert inside(path, classes=("Tumor",)) == EXPECTED
    assert inside(path) == EXPECTED | {(x, y) for x in range(0, 2000, 100) for y in (0, 100)}
    with pytest.raises(SlideError, match=r"no region of the class Necrosis \(cohort\.mask_classes"):
        inside(path, classes=("Necrosis",))


def test_regions_may_count_from_elsewhere(tmp_path):
    moved = inside(qupath(tmp_path / "s.geojson"), origin_px=(200, 100))
    assert moved == {(x + 200, y + 100) for x, y in EXPECTED}


@pytest.mark.parametrize("name", ["s.png", "s.tif", "s.geojson", "s.xml"])
def test_a_corrupt_truth_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00 not what it says")
    with pytest.raises(SlideError, match=name) as error:
        inside(tmp_path / name)
    assert str(tmp_path) not in str(error.value)


def test_a_picture_of_another_shape_or_of_fractions_is_refused(tmp_path):
    Image.fromarray(np.zeros((200, 100), np.uint8)).save(tmp_path / "s.png")
    with pytest.raises(SlideError, match=r"ground truth s\.png .* has not the shape of the slide"):
        inside(tmp_path / "s.png")
    tifffile.imwrite(tmp_path / "s.tif", np.ones((160, 200), np.float32) * 0.9)
    with pytest.raises(SlideError, match=r"s\.tif holds float32 values"):
        inside(tmp_path / "s.tif")


def test_a_truth_is_found_by_the_slide_s_name_and_two_are_refused(tmp_path):
    assert find_truth(tmp_path, "s") is None
    path = qupath(tmp_path / "s.geojson")
    picture(tmp_path / "s2.png")
    assert find_truth(tmp_path, "s") == path
    picture(tmp_path / "s.png")
    with pytest.raises(SlideError, match=r"several ground truths \(s\.png, s\.geojson\)"):
        find_truth(tmp_path, "s")
