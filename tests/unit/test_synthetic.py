from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from her2.synthetic import (
    HER2_SHARE,
    SITES,
    demo_manifest,
    draw_slide,
    slide_generator,
    slide_params,
)
from her2.synthetic.nuclei import boxes
from her2.synthetic.plan import RegionPlan, TissueParams, plan_region
from her2.synthetic.tissue import draw_region

SIDE_PX, MPP = 768, 0.5


def draw(folder: Path, *, her2: str = "2+", **changed) -> tuple[Path, Path]:
    slide, mask = folder / "s.svs", folder / "s.png"
    arguments = {
        "slide_id": "demo-001-a",
        "patient_id": "demo-001",
        "her2": her2,
        "site": "north",
        "seed": 7,
        "slide_path": slide,
        "mask_path": mask,
        "side_px": SIDE_PX,
    }
    draw_slide(**(arguments | changed))
    return slide, mask


def params(number: int, her2: str, site: str = "north") -> TissueParams:
    """A slide without pen and fold, which cover tissue whatever its morphology."""
    patient = f"demo-{number:03d}"
    drawn = slide_params(slide_id=f"{patient}-a", patient_id=patient, her2=her2, site=site, seed=7)
    return replace(drawn, pen=None, fold=False)


def generator(number: int) -> np.random.Generator:
    return slide_generator(7, f"demo-{number:03d}", f"demo-{number:03d}-a")


def plan(number: int, her2: str, side_px: int = SIDE_PX) -> RegionPlan:
    return plan_region(generator(number), params(number, her2), side_px, MPP)


@pytest.fixture(scope="module")
def slide_and_mask(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return draw(tmp_path_factory.mktemp("slide"), side_px=2048)


def test_patients_are_balanced_over_scores_and_sites_within_scores():
    rows = demo_manifest()
    patients = {row["patient_id"]: (row["her2"], row["site"]) for row in rows}
    assert len(rows) == 60
    assert len(patients) == 48
    assert set(Counter(patients.values()).values()) == {6}
    assert {her2 for her2, _ in patients.values()} == set(HER2_SHARE)


def test_every_fourth_patient_of_a_score_has_two_slides_at_either_site():
    slides = Counter(row["patient_id"] for row in demo_manifest())
    twice = {
        row["patient_id"]: (row["her2"], row["site"])
        for row in demo_manifest()
        if slides[row["patient_id"]] == 2
    }
    assert Counter(her2 for her2, _ in twice.values()) == dict.fromkeys(HER2_SHARE, 3)
    assert Counter(site for _, site in twice.values()) == {"north": 6, "south": 6}


def test_the_manifest_is_reproducible_and_its_ids_do_not_order_the_scores():
    rows = demo_manifest()
    assert rows == demo_manifest()
    assert [row["her2"] for row in rows] != [row["her2"] for row in demo_manifest(seed=1)]
    scores = [list(HER2_SHARE).index(row["her2"]) for row in rows]
    assert abs(np.corrcoef(np.arange(len(scores)), scores)[0, 1]) < 0.25
    assert all(row["path"] == f"slides/{row['slide_id']}.svs" for row in rows)


def test_artefacts_and_stain_of_the_default_cohort_do_not_follow_the_score():
    looks = [
        (row["her2"], slide_params(**{k: row[k] for k in row if k != "path"}, seed=2411))
        for row in demo_manifest()
    ]
    assert {her2 for her2, look in looks if look.pen} == set(HER2_SHARE)
    assert {her2 for her2, look in looks if look.fold} == set(HER2_SHARE)
    for other in HER2_SHARE:
        row = demo_manifest()[0] | {"her2": other}
        look = slide_params(**{k: row[k] for k in row if k != "path"}, seed=2411)
        assert replace(look, her2_share=0.0) == replace(looks[0][1], her2_share=0.0)


def test_openslide_reads_an_aperio_slide_with_exact_scale(slide_and_mask: tuple[Path, Path]):
    with openslide.OpenSlide(slide_and_mask[0]) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == MPP
        assert float(slide.properties["openslide.mpp-y"]) == MPP
        assert slide.properties["openslide.objective-power"] == "20"
        assert slide.properties["aperio.Title"] == "synthetic, not a patient"
        sides = (2048, 1024, 512, 256, 128)
        assert slide.level_dimensions == tuple((side, side) for side in sides)
        assert "thumbnail" in slide.associated_images


def test_levels_are_tiled_jpeg_and_carry_no_date(slide_and_mask: tuple[Path, Path]):
    with tifffile.TiffFile(slide_and_mask[0]) as tiff:
        assert [page.is_tiled for page in tiff.pages] == [True, False, True, True, True, True]
        for page in tiff.pages:
            assert page.compression == tifffile.COMPRESSION.JPEG
            assert not {"DateTime", "Software"} & {tag.name for tag in page.tags}


def test_the_mask_is_grey_one_eighth_and_black_or_white(slide_and_mask: tuple[Path, Path]):
    mask = cv2.imread(str(slide_and_mask[1]), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (256, 256)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 255}


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path):
    first, second = draw(tmp_path / "a"), draw(tmp_path / "b")
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix not in {".svs", ".png"}]


def test_another_patient_is_another_tissue():
    assert (plan(1, "0").tissue != plan(2, "0").tissue).mean() > 0.05


def test_slides_of_one_patient_share_stain_but_not_tissue():
    a, b = (
        slide_params(
            slide_id=f"demo-001-{s}", patient_id="demo-001", her2="2+", site="north", seed=7
        )
        for s in "ab"
    )
    assert a.haematoxylin == b.haematoxylin
    assert a.eosin == b.eosin
    assert abs(a.her2_share - b.her2_share) < 0.06
    tissues = [
        plan_region(slide_generator(7, "demo-001", f"demo-001-{s}"), a, SIDE_PX, MPP).tissue
        for s in "ab"
    ]
    assert (tissues[0] != tissues[1]).mean() > 0.05


@pytest.mark.parametrize("her2", list(HER2_SHARE))
@pytest.mark.parametrize("site", list(SITES))
def test_positive_and_negative_areas_have_one_mean_colour(her2: str, site: str):
    number = 11
    look = params(number, her2, site)
    rgb, where = draw_region(generator(number), look, 1536, MPP)
    negative = where.nest & ~where.positive
    difference = rgb[where.positive].mean(axis=0) - rgb[negative].mean(axis=0)
    assert np.abs(difference).max() < 1.5


def test_positive_and_negative_areas_differ_in_texture():
    rgb, where = draw_region(generator(11), params(11, "2+"), 1536, MPP)
    mask = where.positive
    red = rgb[..., 0].astype(np.float32)
    # Nuclei 3-4 um in radius dominate this band; a pale nucleus with a thin rim is missing in it.
    band = cv2.GaussianBlur(red, (0, 0), 3) - cv2.GaussianBlur(red, (0, 0), 8)
    inside = cv2.erode(where.nest.astype(np.uint8), np.ones((25, 25))) > 0
    assert band[inside & mask].std() < 0.7 * band[inside & ~mask].std()


def test_the_positive_share_of_the_nests_is_as_documented():
    shares = []
    for her2, expected in HER2_SHARE.items():
        found = [where.positive.sum() / where.nest.sum() for where in map_plans(her2)]
        assert np.mean(found) == pytest.approx(expected, abs=0.08)
        shares.append(np.mean(found))
    assert shares == sorted(shares)


def map_plans(her2: str) -> list[RegionPlan]:
    return [plan(number, her2) for number in range(16)]


def test_positive_areas_lie_in_nests_and_nests_in_tissue():
    for where in map_plans("2+")[:4]:
        assert not (where.positive & ~where.nest).any()
        assert not (where.nest & ~where.tissue).any()
        assert 0.4 < where.tissue.mean() < 0.68
        assert 0.3 < where.nest.sum() / where.tissue.sum() < 0.52


def test_the_score_changes_nothing_outside_the_nests():
    low, high = plan(3, "0"), plan(3, "3+")
    for name in ("tissue", "nest", "fat", "nest_edge"):
        np.testing.assert_array_equal(getattr(low, name), getattr(high, name))
    images = [draw_region(generator(3), params(3, her2), SIDE_PX, MPP)[0] for her2 in ("0", "3+")]
    # Nuclei on the border of a nest reach a little beyond it.
    reach = np.ones((61, 61), np.uint8)
    outside = cv2.dilate(low.nest.astype(np.uint8), reach) == 0
    np.testing.assert_array_equal(images[0][outside], images[1][outside])


def test_an_unknown_score_or_site_is_named():
    with pytest.raises(ValueError, match="'4'"):
        slide_params(slide_id="a", patient_id="p", her2="4", site="north", seed=1)
    with pytest.raises(ValueError, match="'west'"):
        slide_params(slide_id="a", patient_id="p", her2="0", site="west", seed=1)


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 200), st.integers(1, 8))))
@settings(max_examples=50)
def test_boxes_cover_everything_that_is_not_zero_once(image: np.ndarray):
    covered = np.zeros(image.shape, int)
    for box in boxes(image):
        covered[box] += 1
    assert covered.max(initial=0) <= 1
    assert covered[image].all()
