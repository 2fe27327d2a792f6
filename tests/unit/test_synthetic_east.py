"""The demo's second cohort, from another hospital; and that it changed nothing of the first."""

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import yaml

from her2.cohort.reading import read_cohort
from her2.config import parse_config
from her2.slides.slide import Slide
from her2.synthetic import (
    DEVELOPMENT_SITES,
    EAST_PATIENTS,
    HER2_SHARE,
    SITES,
    demo_manifest,
    draw_slide,
    east_manifest,
)
from her2.synthetic.patches import draw_patch_set

REPOSITORY = Path(__file__).resolve().parents[2]
SIDE_PX, MPP = 768, 0.5

NORTH = [
    [[226, 213, 224], [176, 147, 184], [233, 227, 233]],
    [[170, 140, 180], [219, 195, 215], [228, 211, 224]],
    [[230, 224, 231], [228, 210, 223], [239, 231, 236]],
]
SOUTH = [
    [[229, 213, 226], [179, 149, 196], [235, 228, 232]],
    [[173, 142, 193], [222, 194, 218], [231, 210, 225]],
    [[232, 225, 231], [231, 208, 224], [241, 230, 234]],
]


def draw(folder: Path, site: str, side_px: int = SIDE_PX) -> Path:
    slide = folder / f"{site}.svs"
    draw_slide(
        slide_id="demo-001-a", patient_id="demo-001", her2="2+", site=site, seed=7,
        slide_path=slide, mask_path=folder / f"{site}.png", side_px=side_px,
    )  # fmt: skip
    return slide


def pixels(path: Path) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same patient's slide from each laboratory."""
    folder = tmp_path_factory.mktemp("slides")
    return {site: draw(folder, site) for site in SITES}


@pytest.mark.parametrize(("name", "rows"), [("slides", demo_manifest()), ("east", east_manifest())])
def test_a_committed_manifest_is_the_one_that_the_command_prints(
    name: str, rows: list[dict[str, str]]
):
    with (REPOSITORY / f"workflow/demo/{name}.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream)) == rows


def test_the_demo_names_the_other_hospital_and_its_manifest_is_legal():
    config = parse_config(yaml.safe_load((REPOSITORY / "config.yaml").read_text()))
    section = config.validation["east"]
    # Its slides must lie elsewhere: masks and slides are named by id, in one folder a cohort.
    assert section.root is not None
    assert section.root != config.cohort.root
    assert section.masks == section.root / "masks"
    assert section.tasks == {}  # the development's label column, and its classes
    cohort = read_cohort(REPOSITORY / section.slides, root=section.root, tasks=config.tasks)
    assert [row.labels["her2"] for row in cohort.rows] == [row["her2"] for row in east_manifest()]


def test_it_shares_no_patient_slide_or_site_with_the_development():
    here, there = demo_manifest(), east_manifest()
    for column in ("slide_id", "patient_id", "site"):
        assert not {row[column] for row in here} & {row[column] for row in there}
    assert {row["site"] for row in here} == set(DEVELOPMENT_SITES)


def test_it_has_one_slide_a_patient_and_class_shares_of_its_own():
    rows = east_manifest()
    assert len({row["patient_id"] for row in rows}) == len({row["slide_id"] for row in rows}) == 24
    counts = Counter(row["her2"] for row in rows)
    assert counts == EAST_PATIENTS
    assert counts["0"] > 1.5 * counts["3+"]  # while those of the development are equal
    scores = [list(HER2_SHARE).index(row["her2"]) for row in rows]
    assert abs(np.corrcoef(np.arange(len(scores)), scores)[0, 1]) < 0.5


def test_a_slide_of_each_laboratory_is_read_at_its_own_scale(slides: dict[str, Path]):
    for site, path in slides.items():
        look = SITES[site]
        with Slide(path) as slide:
            assert slide.vendor == "aperio"
            scale = slide.scale()
            assert (scale.mpp_x, scale.mpp_y) == (look.mpp, look.mpp)
            side_um = slide.width_px * look.mpp
        assert side_um == pytest.approx(SIDE_PX * MPP * look.slide_size, abs=look.mpp)
        with openslide.OpenSlide(path) as opened:
            assert float(opened.properties["openslide.objective-power"]) == look.magnification
            assert opened.properties["aperio.ScanScope ID"] == f"demo-{site}"
    assert {SITES[site].mpp for site in DEVELOPMENT_SITES} == {MPP}
    assert SITES["east"].mpp != MPP


def test_its_slides_differ_from_the_developments_in_stain_and_glass(slides: dict[str, Path]):
    tissue, glass = {}, {}
    for site, path in slides.items():
        rgb = pixels(path).astype(np.float32)
        tissue[site] = np.median(rgb[rgb.min(axis=2) < 200], axis=0)
        glass[site] = rgb[:8, :8].mean(axis=(0, 1))
    for site in DEVELOPMENT_SITES:
        assert np.abs(tissue["east"] - tissue[site]).max() > 10
        assert np.abs(glass["east"] - glass[site]).max() > 5


def test_a_further_laboratory_changes_neither_patients_nor_patches_of_the_development(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def drawn(folder: str) -> list[bytes]:
        table = draw_patch_set("he", tmp_path / folder, n_per_class=12, size_px=24, mpp=4.0, seed=3)
        return [path.read_bytes() for path in sorted(table.parent.rglob("*.*"))]

    rows, patches = demo_manifest(), drawn("known")
    assert len(patches) == 3 * 12 + 1
    monkeypatch.setitem(SITES, "west", replace(SITES["east"], mpp=1.0))
    assert demo_manifest() == rows
    assert drawn("more") == patches


@pytest.mark.parametrize(("site", "colours"), [("north", NORTH), ("south", SOUTH)])
def test_slides_of_the_development_look_as_ever(
    slides: dict[str, Path], site: str, colours: list[list[list[int]]]
):
    """Or every demo draws, tiles and embeds them anew. Processors round, so no digest of bytes."""
    rgb = pixels(slides[site])
    assert rgb.shape == (SIDE_PX, SIDE_PX, 3)
    found = cv2.resize(rgb, (3, 3), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(found, colours, atol=1)
