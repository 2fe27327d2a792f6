"""Annotated regions: read from QuPath and ImageScope, and rasterised."""

import json
import math
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2.core.errors import SlideError, SlideUnfit
from her2.slides.annotations import Region, chosen_regions, read_regions, region_mask

SQUARE = [[100, 100], [300, 100], [300, 300], [100, 300], [100, 100]]
HOLE = [[150, 150], [250, 150], [250, 250], [150, 250], [150, 150]]


def feature(kind: str, coordinates: object, **properties: object) -> dict[str, object]:
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {"objectType": "annotation", **properties},
    }


def tumour(ring: object) -> dict[str, object]:
    return feature("Polygon", [ring], classification={"name": "Tumor", "color": [200, 0, 0]})


def write(tmp_path: Path, value: object, name: str = "roi.geojson") -> Path:
    path = tmp_path / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def filled(regions: tuple[Region, ...], side: int = 400, **options: object) -> np.ndarray:
    return region_mask(regions, (side, side), size_px=(400, 400), **options)


# QuPath


@pytest.mark.parametrize(
    "whole",
    [
        lambda found: {"type": "FeatureCollection", "features": found},
        lambda found: found,
        lambda found: found[0],
        lambda found: found[0]["geometry"],
        lambda found: {
            "type": "GeometryCollection",
            "geometries": [item["geometry"] for item in found],
        },
    ],
)
def test_every_form_of_geojson_is_read(tmp_path, whole):
    path = write(tmp_path, whole([feature("Polygon", [SQUARE, HOLE])]))
    (region,) = read_regions(path)
    mask = filled((region,))
    assert mask.sum() == pytest.approx(200**2 - 100**2, rel=0.01)
    assert mask[120, 120]
    assert not mask[200, 200]


def test_a_multipolygon_is_its_polygons_each_with_its_holes(tmp_path):
    other = [[320, 320], [380, 320], [380, 380], [320, 380]]
    path = write(tmp_path, [feature("MultiPolygon", [[SQUARE, HOLE], [other]])])
    mask = filled(read_regions(path))
    assert mask.sum() == pytest.approx(200**2 - 100**2 + 60**2, rel=0.01)
    assert mask[350, 350]


def test_a_hole_is_no_hole_in_another_region(tmp_path):
    path = write(tmp_path, [feature("Polygon", [SQUARE, HOLE]), feature("Polygon", [HOLE])])
    assert filled(read_regions(path)).sum() == pytest.approx(200**2, rel=0.01)


def test_points_lines_and_cells_are_left_out(tmp_path):
    cell = feature("Polygon", [SQUARE])
    cell["properties"] = {"objectType": "cell"}
    path = write(
        tmp_path,
        [feature("Point", [1, 1]), feature("LineString", [[1, 1], [2, 2]]), cell, tumour(HOLE)],
    )
    assert [region.name for region in read_regions(path)] == ["Tumor"]


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"classification": {"name": "Tumor"}}, "Tumor"),
        ({"classification": {"names": ["Tumor", "Positive"]}}, "Tumor: Positive"),
        ({"classification": "Stroma"}, "Stroma"),
        ({"name": "ROI 1"}, "ROI 1"),
        ({"classification": {"names": 5}}, "5"),
        ({"classification": {"name": 7}}, "7"),
        ({"classification": 3}, "3"),
        ({"name": 1}, "1"),
        ({"classification": ["a"]}, "['a']"),
        ({}, ""),
    ],
)
def test_a_class_is_where_qupath_s_versions_write_it(tmp_path, properties, name):
    (region,) = read_regions(write(tmp_path, [feature("Polygon", [SQUARE], **properties)]))
    assert region.name == name


# ImageScope


def imagescope(*regions: str, layer: str = "Layer 1") -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<Annotations MicronsPerPixel="0.25">'
        f'<Annotation Id="1" Name="{layer}" LineColor="65280"><Regions>{"".join(regions)}</Regions>'
        "</Annotation></Annotations>"
    )


def xml_region(points: list[list[int]], **attributes: object) -> str:
    words = "".join(f' {name}="{value}"' for name, value in attributes.items())
    vertices = "".join(f'<Vertex X="{x}.0" Y="{y}.0" Z="0"/>' for x, y in points)
    return f"<Region{words}><Vertices>{vertices}</Vertices></Region>"


def test_a_negative_region_is_taken_away_from_all_others(tmp_path):
    text = imagescope(
        xml_region(SQUARE, Type=0, NegativeROA=0), xml_region(HOLE, Type=0, NegativeROA=1)
    )
    path = write(tmp_path, text, "roi.xml")
    regions = read_regions(path)
    assert [region.negative for region in regions] == [False, True]
    assert filled(regions).sum() == pytest.approx(200**2 - 100**2, rel=0.01)
    assert [one.negative for one in chosen_regions(path, ["Layer 1"])] == [False, True]


def test_ellipses_and_rectangles_are_given_by_two_corners(tmp_path):
    text = imagescope(
        xml_region([[100, 100], [200, 160]], Type=2),
        xml_region([[300, 300], [250, 380]], Type=1),
        xml_region([[0, 0], [400, 400]], Type=3),
        xml_region([[0, 0], [400, 400]], Type=4),
    )
    ellipse, rectangle = read_regions(write(tmp_path, text, "roi.xml"))
    assert filled((ellipse,)).sum() == pytest.approx(math.pi * 50 * 30, rel=0.02)
    assert filled((rectangle,)).sum() == pytest.approx(50 * 80, rel=0.02)


def test_a_region_s_own_text_is_its_class_before_its_layer_s(tmp_path):
    text = imagescope(xml_region(SQUARE, Text="Invasive"), xml_region(HOLE), layer="ROI")
    regions = read_regions(write(tmp_path, text, "roi.XML"))
    assert [region.name for region in regions] == ["Invasive", "ROI"]


BILLION = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
    "<Annotations>&b;</Annotations>"
)
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><Annotations>&a;</Annotations>'


@pytest.mark.parametrize("text", [BILLION, OUTSIDE, "<!DOCTYPE Annotations><Annotations/>"])
def test_xml_with_a_document_type_is_refused(tmp_path, text):
    with pytest.raises(SlideError, match=r"roi\.xml has a document type"):
        read_regions(write(tmp_path, text, "roi.xml"))


# Malformed


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('"text"', "is not GeoJSON"),
        ({"positive": []}, "is not GeoJSON"),
        ([1, 2], "is not GeoJSON"),
        ({"type": "FeatureCollection"}, "is not GeoJSON"),
        ([{"type": "Feature"}], "feature 1 has no geometry"),
        ([feature("Circle", [1])], "'Circle' is not a GeoJSON geometry"),
        ([feature("Polygon", [])], "feature 1: its polygon has no rings"),
        ([feature("Polygon", [SQUARE]), feature("Polygon", [[[1, 2], [3, 4]]])],
         "feature 2: an outline of 2 point"),
        ([feature("Polygon", [[[1, 2], [3], [4, 5]]])], "a point is not two numbers"),
        ([feature("Polygon", [[["a", 2], [3, 1], [4, 5]]])], "a point is not two numbers"),
        ([feature("Polygon", [[[math.nan, 2], [3, 1], [4, 5]]])], "a coordinate is not finite"),
        ([feature("Polygon", [[[math.inf, 2], [3, 1], [4, 5]]])], "a coordinate is not finite"),
        ([feature("MultiPolygon", 3)], "its coordinates are not a list"),
        ([feature("Polygon", [[[1e308, 2], [3, 1e308], [4, 5]]])], "1e+308 px is on no slide"),
        ([feature("Polygon", [[[10**400, 2], [3, 1], [4, 5]]])], "a point is not two numbers"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_named_with_its_problem(tmp_path, value, problem):
    with pytest.raises(SlideError) as error:
        read_regions(write(tmp_path, value))
    assert str(error.value).startswith("its annotation roi.geojson ")
    assert problem in str(error.value)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<Annotations>", "is not XML"),
        ("<ASAP_Annotations/>", "root element is <ASAP_Annotations>"),
        (imagescope(xml_region([[1, 2]])), "region 1: an outline of 1 point"),
        (imagescope('<Region><Vertices><Vertex X="1"/></Vertices></Region>'), "not two numbers"),
    ],
)
def test_malformed_xml_is_named_with_its_problem(tmp_path, text, problem):
    with pytest.raises(SlideError, match=r"its annotation roi\.xml ") as error:
        read_regions(write(tmp_path, text, "roi.xml"))
    assert problem in str(error.value)


def test_a_missing_file_and_a_folder_are_said_to_be_so(tmp_path):
    with pytest.raises(SlideError, match="roi.geojson does not exist"):
        read_regions(tmp_path / "roi.geojson")
    with pytest.raises(SlideError, match="Is a directory"):
        read_regions(tmp_path)


def test_a_class_that_nobody_drew_excludes_the_slide_and_names_those_there_are(tmp_path):
    path = write(tmp_path, [tumour(SQUARE), feature("Polygon", [HOLE])])
    assert len(chosen_regions(path, [])) == 2
    assert len(chosen_regions(path, ["Tumor"])) == 1
    with pytest.raises(SlideUnfit, match=r"no region of class Stroma .*\(no class\), Tumor"):
        chosen_regions(path, ["Stroma"])
    with pytest.raises(SlideUnfit, match="has no region"):
        chosen_regions(write(tmp_path, []), [])


# Bounds


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
    for name, size in (("roi.geojson", 513 << 20), ("roi.xml", 129 << 20)):
        with (tmp_path / name).open("wb") as stream:
            stream.truncate(size)
        with pytest.raises(SlideError, match=rf"{name} has {size >> 20} MiB, more than"):
            read_regions(tmp_path / name)


def test_elements_in_elements_are_refused(tmp_path):
    """Each would be visited once for every one around it: 50,000 are hours."""
    deep = "<Region>" * 50_000 + "</Region>" * 50_000
    begin = time.process_time()
    with pytest.raises(SlideError, match="nests elements deeper than"):
        read_regions(write(tmp_path, f"<Annotations><Annotation>{deep}</Annotation></Annotations>",
                           "roi.xml"))  # fmt: skip
    assert time.process_time() - begin < 1


def test_regions_on_top_of_each_other_are_refused_when_they_would_take_hours():
    everything = Region((np.array([(0.0, 0), (400, 0), (400, 400), (0, 400)]),), "")
    words = "has 100,000 regions, most of them on top of each other"
    limit = mock.patch("her2.slides.annotations._MOST_FILLED", 1 << 24)
    with limit, pytest.raises(SlideError, match=words):
        filled((everything,) * 100_000)


@pytest.mark.parametrize("cells", [5000])
def test_a_cell_export_takes_a_moment(tmp_path, cells):
    """200,000 objects of 40 points are to take 20 s; 100 us each, with room for a busy machine."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring = 30 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    places = np.random.default_rng(3).uniform(50, 99_950, (cells, 2))
    path = write(tmp_path, [tumour((ring + place).round(2).tolist()) for place in places])
    begin = time.process_time()
    regions = read_regions(path)
    region_mask(regions, (3125, 3125), size_px=(100_000, 100_000))
    assert len(regions) == cells
    assert time.process_time() - begin < 3 * cells * 100e-6


# Filling


POLYGONS = st.tuples(
    st.floats(50, 350), st.floats(50, 350), st.floats(25, 120), st.integers(3, 40), st.floats(0, 6)
)


@given(POLYGONS, st.sampled_from([50, 131, 400]))
def test_the_area_filled_is_that_of_the_polygon(polygon, side):
    """The expected value is the formula for the area of a regular polygon."""
    x, y, radius, corners, turn = polygon
    angle = turn + np.arange(corners) * 2 * np.pi / corners
    ring = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)
    if ring.min() < 0 or ring.max() > 400:
        return
    area = corners / 2 * radius**2 * math.sin(2 * math.pi / corners)
    px = (400 / side) ** 2
    found = filled((Region((ring,), ""),), side).sum() * px
    # An error of a tenth of a px along the outline, and what rounding makes of small ones.
    outline = 2 * corners * radius * math.sin(math.pi / corners) * (400 / side)
    assert abs(found - area) <= 0.25 * outline + 2 * px


def test_regions_beyond_the_slide_are_cut_off():
    far = np.array([(-1e9, -1e9), (1e9, -1e9), (1e9, 200), (-1e9, 200)])
    assert filled((Region((far,), ""),))[:198].all()
    assert not filled((Region((far,), ""),))[202:].any()
    outside = np.array([(500.0, 500), (600, 500), (600, 600)])
    assert not filled((Region((outside,), ""),)).any()


def test_regions_may_count_from_the_scanned_part():
    ring = np.array(SQUARE, float) - 100
    moved = filled((Region((ring,), ""),), origin_px=(100, 100))
    np.testing.assert_array_equal(moved, filled((Region((np.array(SQUARE, float),), ""),)))
