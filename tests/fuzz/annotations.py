"""Annotations of QuPath and ImageScope, for the fuzzer."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from her2.slides.annotations import chosen_regions, region_mask
from tests.fuzz.harness import broken
from tests.unit.test_annotation import HOLE, SQUARE, feature, imagescope, tumour, xml_region

ODD: list[Any] = [
    None, True, 0, -1, 7, 1e308, -1e308, float("nan"), float("inf"), 10**400, "", "7", "x" * 2000,
    [], [[]], {}, {"type": "Polygon"}, [None], [[1, 2]], [["a", "b"]] * 4, [[1e308, 1e308]] * 4,
]  # fmt: skip
WORDS = (b"", b"-1", b"1e308", b"-1e9", b"1e9", b"nan", b"inf", b"9" * 400, b"0x1", b"2", b"&lt;")


def cases(folder: Path) -> dict[str, Path]:
    found = {
        "collection.geojson": {
            "type": "FeatureCollection",
            "features": [
                tumour(SQUARE),
                feature("Polygon", [SQUARE, HOLE], classification={"names": ["Tumor", "A"]}),
                feature("MultiPolygon", [[SQUARE, HOLE], [HOLE]], name="ROI"),
                feature("Point", [1, 1]),
            ],
        },
        "geometries.geojson": {
            "type": "GeometryCollection",
            "geometries": [tumour(SQUARE)["geometry"], tumour(HOLE)["geometry"]],
        },
    }
    paths = {}
    for name, value in found.items():
        paths[name] = folder / name
        paths[name].write_text(json.dumps(value))
    paths["roi.xml"] = folder / "roi.xml"
    shapes = (
        xml_region(SQUARE, Type=0, NegativeROA=0),
        xml_region(HOLE, Type=0, NegativeROA=1),
        xml_region([[100, 100], [200, 160]], Type=2),
        xml_region([[300, 300], [250, 380]], Type=1),
    )
    paths["roi.xml"].write_text(imagescope(*shapes))
    return paths


def spoiled(content: bytes, generator: np.random.Generator) -> bytes:
    """Return a copy with broken bytes or, most of the time, odd values."""
    if generator.random() < 0.25:
        return broken(content, generator)
    if content[:1] == b"<":
        places = [found.span(1) for found in re.finditer(rb'="([^"]*)"', content)]
        start, end = places[generator.integers(len(places))]
        return content[:start] + WORDS[generator.integers(len(WORDS))] + content[end:]
    value = json.loads(content)
    for _ in range(int(generator.integers(1, 4))):
        _put(value, generator)
    return json.dumps(value).encode()


def _put(value: Any, generator: np.random.Generator) -> None:
    """Put an odd value somewhere into nested lists and objects."""
    while isinstance(value, dict | list) and value:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[generator.integers(len(keys))]
        inner = value[key]
        if not isinstance(inner, dict | list) or not inner or generator.random() < 0.05:
            value[key] = copy.deepcopy(ODD[generator.integers(len(ODD))])
            return
        value = inner


def read(path: Path) -> None:
    regions = chosen_regions(path, ())
    region_mask(regions, (50, 60), size_px=(600, 500))
    region_mask(regions, (50, 60), size_px=(600, 500), origin_px=(37, 11))
