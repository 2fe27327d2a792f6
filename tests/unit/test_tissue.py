import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from her2.core.masks import share_inside
from her2.tiling.tissue import DEFAULT_GLASS, glass_colour, optical_density, tissue_mask

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
    """Otsu's threshold alone would separate the two."""
    image = np.full((200, 300, 3), PALE, float)
    image[:, 150:] = (120, 60, 130)
    assert mask_of(noisy(image, np.random.default_rng(1), 3)).mean() > 0.99


# Slides of each kind, with the truth beside: (image, mask)


def section(colour: tuple[int, int, int], *, dark: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Draw a lobed piece of one colour on glass; with `dark`, half of it is dark tumour."""
    y, x = np.mgrid[:200, :300]
    angle = np.arctan2(y - 100, x - 150)
    truth = np.hypot((y - 100) / 75, (x - 150) / 115) < 1 + 0.12 * np.sin(5 * angle)
    image = np.full((200, 300, 3), GLASS, float)
    image[truth] = colour
    if dark:
        image[truth & (x > 150)] = (96, 48, 120)
    return image, truth


def with_bubbles(image: np.ndarray) -> np.ndarray:
    """Draw air under the cover slip: dark, coloured rims, a bright one inside, grey between."""
    for x, y, radius in ((60, 50, 28), (150, 90, 40), (250, 160, 30), (40, 165, 22)):
        inside = np.zeros(image.shape[:2], np.uint8)
        cv2.circle(inside, (x, y), radius, 1, -1)
        image[inside > 0] = image[inside > 0] * 0.95
        cv2.circle(image, (x, y), radius - 3, (252, 252, 252), 1)
        cv2.circle(image, (x, y), radius, (88, 84, 86), 2)
    return image


def kinds() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the slides on which a threshold on one channel fails."""
    found = {
        "ordinary": section((205, 135, 180)),
        "pale, saturation 0.07": section((238, 222, 232)),
        "pale beside dark": section((240, 222, 234), dark=True),
        "dark": section((70, 32, 92)),
    }
    image, truth = section((220, 165, 200), dark=True)
    found["bubbly"] = with_bubbles(image), truth
    image, truth = section((220, 165, 200))
    yellowed = image * np.array([1.0, 0.985, 0.93])
    found["yellowed glass"] = yellowed, truth
    shaded = image * np.linspace(0.86, 1.0, 300)[None, :, None]
    found["uneven light"] = shaded, truth
    return found


@pytest.mark.parametrize("kind", kinds())
def test_the_mask_holds_on_every_kind_of_slide(kind):
    """The intersection over union with the drawn tissue is at least 0.97."""
    image, truth = kinds()[kind]
    found = mask_of(noisy(image, np.random.default_rng(2), 2.5))
    assert (found & truth).sum() / (found | truth).sum() >= 0.97


def test_bubbles_on_glass_are_not_tissue():
    assert not mask_of(
        noisy(with_bubbles(glass(noise=0).astype(float)), np.random.default_rng(1), 2)
    ).any()


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
    """At 8 um/px, 100 um are 12.5 px, an area of 156 px."""
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
    """Return the share of each px [i, i + 1] between `start` and `end`."""
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


@pytest.mark.parametrize(
    "colour", [(243, 242, 243), (250, 249, 246), (238, 236, 226), (225, 226, 224)]
)
def test_glass_has_its_own_colour_however_much_tissue_there_is(colour):
    for share in (0.05, 0.5, 0.95):
        image = np.full((100, 200, 3), PALE, np.uint8)
        image[:, int(200 * share) :] = colour
        assert glass_colour(image) == pytest.approx(colour, abs=1)


def test_pale_tissue_is_never_taken_for_glass():
    image = np.full((50, 50, 3), (240, 222, 234), np.uint8)
    assert glass_colour(image) == DEFAULT_GLASS
