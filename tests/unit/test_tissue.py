import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from her2.tissue import optical_density, share_inside, tissue_mask

PINK, PALE, GLASS = (200, 120, 170), (228, 176, 210), (243, 242, 243)


def glass(height: int = 200, width: int = 300, noise: float = 2) -> np.ndarray:
    generator = np.random.default_rng(5)
    return noisy(np.full((height, width, 3), GLASS, float), generator, noise)


def noisy(image: np.ndarray, generator: np.random.Generator, noise: float) -> np.ndarray:
    return np.clip(image + generator.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


def mask_of(image: np.ndarray, mpp: float = 8.0, min_tissue_um: float = 100.0) -> np.ndarray:
    return tissue_mask(optical_density(image, mpp=mpp), mpp=mpp, min_tissue_um=min_tissue_um)


@pytest.mark.parametrize("noise", [0, 2, 5, 8])
def test_an_empty_slide_has_no_tissue(noise):
    assert not mask_of(glass(noise=noise)).any()


@pytest.mark.parametrize("colour", [(255, 255, 255), (180, 180, 180), (240, 245, 238), (0, 0, 0)])
def test_an_image_of_one_colour_without_stain_has_no_tissue(colour):
    assert not mask_of(np.full((50, 60, 3), colour, np.uint8)).any()


@pytest.mark.parametrize("colour", [PINK, PALE, (90, 60, 120)])
def test_a_slide_full_of_tissue_is_all_tissue(colour):
    image = noisy(np.full((200, 300, 3), colour, float), np.random.default_rng(1), 4)
    assert mask_of(image).mean() > 0.99


def test_pale_tissue_beside_dark_is_tissue_too():
    """Otsu alone would part the two."""
    image = np.full((200, 300, 3), PALE, float)
    image[:, 150:] = (120, 60, 130)
    assert mask_of(noisy(image, np.random.default_rng(1), 3)).mean() > 0.99


@pytest.mark.parametrize("mpp", [4.0, 8.0, 16.0])
def test_a_disc_of_tissue_is_found_with_its_area(mpp):
    image = glass()
    cv2.circle(image, (150, 100), 70, PINK, -1)
    mask = mask_of(image, mpp)
    assert mask.sum() == pytest.approx(math.pi * 70**2, rel=0.06)
    assert mask[100, 150]
    assert not mask[5, 5]


def test_a_black_border_and_black_pen_are_not_tissue():
    image = glass()
    image[:20] = image[:, -20:] = (3, 1, 6)
    image[100:130, 50:150] = (12, 10, 16)
    assert not mask_of(image).any()


def test_grey_dirt_is_not_tissue():
    image = glass()
    cv2.circle(image, (150, 100), 40, (150, 150, 152), -1)
    assert not mask_of(image).any()


def test_specks_are_ignored_and_pieces_are_kept():
    """At 8 um/px 100 um are 12.5 px: 156 px of area."""
    image = glass()
    for x in range(10, 290, 12):
        cv2.circle(image, (x, 20), 2, PINK, -1)
    assert not mask_of(image).any()
    image[100:120, 100:120] = PINK
    mask = mask_of(image)
    assert mask.sum() == pytest.approx(400, rel=0.3)
    assert not mask[:60].any()


def test_a_smaller_limit_keeps_smaller_pieces():
    image = glass()
    image[50:60, 50:60] = PINK
    assert not mask_of(image, min_tissue_um=150).any()
    assert mask_of(image, min_tissue_um=40).any()


def test_small_holes_are_filled_and_large_ones_stay():
    image = noisy(np.full((200, 300, 3), PINK, float), np.random.default_rng(1), 2)
    cv2.circle(image, (60, 100), 5, GLASS, -1)
    cv2.circle(image, (220, 100), 40, GLASS, -1)
    mask = mask_of(image)
    assert mask[100, 60]
    assert not mask[100, 220]
    assert (~mask).sum() == pytest.approx(math.pi * 40**2, rel=0.1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2)])
def test_a_tiny_thumbnail_has_a_mask_of_its_shape(shape):
    mask = mask_of(np.full((*shape, 3), 255, np.uint8))
    assert mask.shape == shape
    assert mask.dtype == bool
    assert not mask.any()


# Shares


def overlap(start: float, end: float, length: int) -> np.ndarray:
    """How much of each px [i, i + 1] lies between `start` and `end`."""
    edges = np.arange(length)
    return np.clip(np.minimum(end, edges + 1) - np.maximum(start, edges), 0, 1)


def brute_force_share(mask: np.ndarray, box: np.ndarray) -> float:
    left, top, right, bottom = box
    weights = np.outer(overlap(top, bottom, mask.shape[0]), overlap(left, right, mask.shape[1]))
    return float((weights * mask).sum() / weights.sum())


MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(MASKS, st.data())
def test_the_share_is_that_of_the_area(mask, data):
    height, width = mask.shape
    boxes = []
    for _ in range(4):
        left = data.draw(st.floats(0, width - 0.25))
        top = data.draw(st.floats(0, height - 0.25))
        right = data.draw(st.floats(left + 0.25, width))
        bottom = data.draw(st.floats(top + 0.25, height))
        boxes.append((left, top, right, bottom))
    found = share_inside(mask, np.array(boxes))
    expected = [brute_force_share(mask, box) for box in np.array(boxes)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@given(MASKS)
def test_whole_px_are_counted_exactly(mask):
    y, x = np.indices(mask.shape).reshape(2, -1)
    boxes = np.stack([x, y, x + 1, y + 1], axis=1).astype(float)
    np.testing.assert_array_equal(share_inside(mask, boxes), mask.ravel())


def test_what_reaches_beyond_the_mask_is_judged_by_what_is_inside():
    mask = np.ones((4, 4), bool)
    mask[:, :2] = False
    boxes = np.array([[-2, -2, 4, 6], [2, 2, 4.001, 4.001]], float)
    np.testing.assert_allclose(share_inside(mask, boxes), [0.5, 1.0], atol=1e-6)


def test_no_boxes_have_no_shares():
    assert share_inside(np.ones((4, 4), bool), np.empty((0, 4))).shape == (0,)
