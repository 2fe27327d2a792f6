"""Pen, folds, borders and blur, on synthetic sections with a ground truth for every px."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2.config import TilingSection
from her2.filters.blur import blur_effect, measure_blur
from her2.filters.border import border_mask
from her2.filters.fold import fold_mask
from her2.filters.pen import pen_mask
from her2.synthetic import slide_generator, slide_params
from her2.synthetic.plan import plan_region
from her2.synthetic.tissue import draw_region
from her2.tiling.tissue import optical_density, tissue_mask

MPP, SIDE_PX, THUMBNAIL_PX = 0.5, 1536, 96
SECTIONS = ("2", "5")
MARKS: dict[str, dict[str, object]] = {
    "plain": {},
    "blue": {"pen": "blue"},
    "green": {"pen": "green"},
    "black": {"pen": "black"},
    "fold": {"fold": True},
}


@dataclass(frozen=True)
class Drawn:
    """A synthetic section: at full size, at 8 um/px, and its ground truth at 8 um/px."""

    rgb: np.ndarray
    thumbnail: np.ndarray
    tissue: np.ndarray
    fat: np.ndarray
    mark: np.ndarray

    @property
    def density(self) -> np.ndarray:
        return optical_density(self.thumbnail, mpp=8.0)


def small(mask: np.ndarray) -> np.ndarray:
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5


@pytest.fixture(scope="module")
def drawn() -> dict[tuple[str, str], Drawn]:
    """Each section with and without each mark; the ground truth is where the two differ."""
    found = {}
    for number, name in enumerate(SECTIONS):
        params = slide_params(
            slide_id=f"s{name}", patient_id=f"p{name}", her2="1+", site=("north", "south")[number],
            seed=5,
        )  # fmt: skip
        params = replace(params, pen=None, fold=False)
        plan = plan_region(slide_generator(5, f"p{name}", f"s{name}"), params, SIDE_PX, MPP)
        images = {
            mark: draw_region(
                slide_generator(5, f"p{name}", f"s{name}"), replace(params, **options), SIDE_PX, MPP
            )[0]
            for mark, options in MARKS.items()
        }
        for mark, rgb in images.items():
            difference = np.abs(rgb.astype(int) - images["plain"]).max(axis=2) > 24
            size = (THUMBNAIL_PX, THUMBNAIL_PX)
            found[name, mark] = Drawn(
                rgb,
                cv2.resize(rgb, size, interpolation=cv2.INTER_AREA),
                small(plan.tissue),
                small(plan.fat),
                small(cv2.blur(difference.astype(np.float32), (9, 9)) > 0.3),
            )
    return found


def share(part: np.ndarray, whole: np.ndarray) -> float:
    return float((part & whole).sum() / max(1, whole.sum()))


def beside(mask: np.ndarray, um: float) -> np.ndarray:
    """Return the px at most `um` away from a mask, at 8 um/px."""
    side = 2 * round(um / 8) + 1
    return cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)).astype(bool)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_without_marks_has_neither_pen_nor_fold(drawn, name):
    density = drawn[name, "plain"].density
    assert not pen_mask(density, mpp=8.0).any()
    tissue = tissue_mask(density, mpp=8.0, min_tissue_um=100)
    assert fold_mask(density, tissue, mpp=8.0).sum() <= 0.005 * tissue.sum()


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("colour", ["blue", "green", "black"])
def test_pen_is_found_on_glass_and_over_tissue(drawn, name, colour):
    """At least 0.85 of it is found, and no px further away than the stroke's margin."""
    case = drawn[name, colour]
    pen = pen_mask(case.density, mpp=8.0)
    assert share(pen, case.mark) >= 0.85
    assert share(pen, case.mark & case.tissue) >= 0.8
    assert share(beside(case.mark, 32), pen) >= 0.99


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("mark", ["plain", "blue", "green", "black", "fold"])
def test_tissue_is_found_whatever_marks_it(drawn, name, mark):
    """Recall is 0.93 on tissue that is neither fat nor under pen; precision is 0.96."""
    case = drawn[name, mark]
    pen = pen_mask(case.density, mpp=8.0)
    found = tissue_mask(case.density, mpp=8.0, min_tissue_um=100, exclude=pen)
    hidden = np.zeros_like(case.mark) if mark == "fold" else beside(case.mark, 16)
    assert share(found, case.tissue & ~case.fat & ~hidden) >= 0.93
    assert share(case.tissue, found) >= 0.96


def test_folds_are_found_where_they_are_clear(drawn):
    """Faint folds and folds in fat are missed, but every found fold is one."""
    recalls, precisions = [], []
    for name in SECTIONS:
        case = drawn[name, "fold"]
        tissue = tissue_mask(case.density, mpp=8.0, min_tissue_um=100)
        found = fold_mask(case.density, tissue, mpp=8.0)
        recalls.append(share(found, case.mark))
        precisions.append(share(case.mark, found))
    assert min(recalls) >= 0.3
    assert np.mean(recalls) >= 0.5
    assert min(precisions) >= 0.85


def test_dense_nuclei_are_no_fold():
    """A nest of lymphocytes is as dark as a fold, but by haematoxylin alone."""
    stroma, fold, nest = (0.1, 0.6), (0.2, 1.3), (1.6, 0.3)
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    amounts = np.full((120, 160, 2), stroma)
    amounts[:, 40:48] = fold
    amounts[:, 100:108] = nest
    light = np.clip(243 * np.exp(-amounts @ vectors), 0, 255).astype(np.uint8)
    density = optical_density(light, mpp=8.0)
    assert density[60, 104].mean() > density[60, 44].mean()
    found = fold_mask(density, np.ones((120, 160), bool), mpp=8.0)
    assert found[:, 42:46].mean() > 0.9
    assert not found[:, 60:].any()


def test_the_edge_of_the_tissue_is_no_fold():
    """Dark tissue beside glass stands out on one side only."""
    image = np.full((120, 160, 3), 243, np.uint8)
    image[20:100, 60:68] = (150, 40, 110)
    image[20:100, 68:120] = (200, 110, 160)
    density = optical_density(image, mpp=8.0)
    tissue = tissue_mask(density, mpp=8.0, min_tissue_um=50)
    assert not fold_mask(density, np.zeros_like(tissue), mpp=8.0).any()
    strand = tissue.copy()
    strand[:, 68:] = False
    assert not fold_mask(density, strand, mpp=8.0).any()


def test_black_is_a_border_only_at_the_edge():
    image = np.full((100, 120, 3), 240, np.uint8)
    image[:, :12] = (2, 3, 1)
    image[90:, :] = (20, 10, 14)
    image[40:50, 60:70] = 0
    found = border_mask(image)
    assert found[:, :12].all()
    assert found[90:].all()
    assert found.sum() == 100 * 12 + 10 * 120 - 10 * 12


@pytest.mark.parametrize("grey", [60, 150, 255])
def test_grey_is_neither_border_nor_pen(grey):
    image = np.full((80, 80, 3), 243, np.uint8)
    image[20:60, 20:60] = grey
    image[:5] = grey
    assert not border_mask(image).any()
    found = pen_mask(optical_density(image, mpp=8.0), mpp=8.0)
    assert found.any() == (grey == 60)  # felt pen dried out; nothing else on a slide is so dark


# Blur


def crete(grey: np.ndarray) -> float:
    """Compute the measure px by px, as defined in the paper."""
    grey = grey.astype(float)
    results = []
    for image in (grey, grey.T):
        height, width = image.shape
        padded = np.pad(image, ((0, 0), (4, 4)), mode="symmetric")
        blurred = sum(padded[:, i : i + width] for i in range(9)) / 9
        total = kept = 0.0
        for y in range(height):
            for x in range(1, width):
                before = abs(image[y, x] - image[y, x - 1])
                after = abs(blurred[y, x] - blurred[y, x - 1])
                total += before
                kept += max(0.0, before - after)
        results.append((total - kept) / total)
    return max(results)


def test_blur_is_measured_as_in_its_paper():
    generator = np.random.default_rng(4)
    for sigma in (0.5, 1.5, 3.0):
        noise = cv2.GaussianBlur(
            generator.normal(128, 60, (40, 33)).astype(np.float32), (0, 0), sigma
        )
        grey = np.clip(noise, 0, 255).astype(np.uint8)
        assert blur_effect(np.dstack([grey] * 3)) == pytest.approx(crete(grey), abs=1e-5)


def test_defocus_is_told_from_focus_in_every_section(drawn):
    """At the default limit, no sharp tile is rejected; of tiles with 1.5 um of blur 0.9 are, and
    0.85 of any one section's, which has some thirty."""
    limit = TilingSection().model_dump()["max_blur"]
    rejected: list[bool] = []
    for name in SECTIONS:
        case = drawn[name, "plain"]
        solid = cv2.erode((case.tissue & ~case.fat).astype(np.uint8), np.ones((3, 3), np.uint8))
        sharp, soft = [], []
        for y in range(0, SIDE_PX - 224, 112):
            for x in range(0, SIDE_PX - 224, 112):
                if solid[y // 16 : (y + 224) // 16, x // 16 : (x + 224) // 16].mean() < 0.9:
                    continue
                tile = case.rgb[y : y + 224, x : x + 224]
                sharp.append(blur_effect(tile))
                soft.append(blur_effect(cv2.GaussianBlur(tile, (0, 0), 1.5 / MPP)))
        assert len(sharp) >= 3
        assert max(sharp) < limit - 0.05
        assert np.mean(np.array(soft) > limit) >= 0.85
        rejected += [value > limit for value in soft]
    assert np.mean(rejected) >= 0.9


def test_an_even_surface_is_not_blurred():
    assert blur_effect(np.full((64, 64, 3), 200, np.uint8)) == 0


PLACES = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=0, max_size=60, unique=True
)


@given(PLACES, st.integers(0, 30), st.integers(1, 8))
def test_where_one_tile_a_square_is_blurred_all_around_it_are_measured(places, edge, step):
    """Everything right of `edge` is blurred, so the border is known for each tile."""
    centres = np.array(places, float).reshape(-1, 2) + 0.5
    truth = np.where(centres[:, 0] > edge, 0.9, 0.2)
    asked: list[int] = []

    def measure(tile: int) -> float:
        asked.append(tile)
        return float(truth[tile])

    blur, measured = measure_blur(centres, step, 0.65, measure)
    assert len(asked) == len(set(asked)) == measured.sum()
    np.testing.assert_allclose(blur[measured], truth[measured], atol=1e-6)
    # Whatever lies in or beside a square with a tile that was found blurred has been looked at.
    squares = np.floor(centres / step)
    for square in squares[measured & (truth > 0.65)]:
        beside = (np.abs(squares - square) <= 1).all(axis=1)
        assert measured[beside].all()
    assert np.isfinite(blur).all()


def test_a_sharp_slide_costs_one_read_a_square():
    y, x = np.mgrid[:40, :40]
    centres = np.stack([x.ravel(), y.ravel()], axis=1) * 112.0 + 56
    _, measured = measure_blur(centres, 500.0, 0.65, lambda _: 0.3)
    assert measured.sum() == 9 * 9


def test_a_tile_that_cannot_be_read_does_not_speak_for_its_square():
    centres = np.array([[5.0, 5.0], [6.0, 5.0], [7.0, 7.0]])
    blur, measured = measure_blur(centres, 10.0, 0.65, lambda tile: [np.nan, 0.4, 0.5][tile])
    assert np.isnan(blur[0])
    assert blur[1:].tolist() == pytest.approx([0.4, 0.4])
    assert measured.tolist() == [True, True, False]
