"""What an augmented view does to a tile: the changes of the published code of arXiv 2411.05028."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as published

from her2.embedding import augment
from her2.embedding.augment import augmented
from her2.embedding.views import AUGMENTATION

pytestmark = pytest.mark.usefixtures("one_thread")

STD = (0.229, 0.224, 0.225)


def tissue(side: int = 96) -> np.ndarray:
    """Return a smooth picture of tissue and glass."""
    rows, columns = np.mgrid[:side, :side] / side
    wave = np.sin(9 * rows + 4 * columns)[..., None] * (40, 60, 30)
    return np.clip(np.array((200, 130, 180)) + wave, 0, 255).astype(np.uint8)


class Drawn:
    """A generator that draws given numbers, and says which ranges it was asked for."""

    def __init__(self, *, noisy: bool = False, **values: Any) -> None:
        plain = {"jitter": [1.0, 1.0, 1.0], "hue": 0.0, "angle": 0.0, "shift": [0.0, 0.0]}
        self.values = {**plain, "scale": 1.0, "shear": 0.0, "order": [0, 1, 2, 3], **values}
        self.noisy = noisy
        self.asked: list[tuple[float, float, int | None]] = []
        self.left = iter(("jitter", "hue", "angle", "shift", "scale", "shear"))

    def uniform(self, low: float, high: float, size: int | None = None) -> Any:
        self.asked.append((low, high, size))
        found = self.values[next(self.left)]
        return np.array(found) if size else found

    def permutation(self, n: int) -> list[int]:
        assert n == 4
        return self.values["order"]

    def random(self) -> float:
        return 0.0 if self.noisy else 1.0

    def standard_normal(self, shape: Any, kind: Any) -> np.ndarray:
        return np.random.default_rng(4).standard_normal(shape, kind)


def changed(tile: np.ndarray, **values: Any) -> np.ndarray:
    return augmented(tile, Drawn(**values), STD)


def test_numbers_are_drawn_from_the_published_ranges() -> None:
    drawn = Drawn()
    augmented(tissue(), drawn, STD)
    assert drawn.asked == [
        (0.9, 1.1, 3), (-0.1, 0.1, None), (-10, 10, None), (-0.1 * 96, 0.1 * 96, 2),
        (0.8, 1.2, None), (-10, 10, None),
    ]  # fmt: skip


def test_a_view_without_changes_is_the_tile() -> None:
    np.testing.assert_array_equal(changed(tissue()), tissue())


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_colours_change_as_torchvision_changes_pictures(order: list[int]) -> None:
    found = changed(tissue(), jitter=[1.08, 0.93, 1.1], hue=0.07, order=order).astype(int)
    image = Image.fromarray(tissue())
    changes = (
        lambda x: published.adjust_brightness(x, 1.08),
        lambda x: published.adjust_contrast(x, 0.93),
        lambda x: published.adjust_saturation(x, 1.1),
        lambda x: published.adjust_hue(x, 0.07),
    )
    for index in order:
        image = changes[index](image)
    apart = np.abs(found - np.asarray(image).astype(int))
    assert apart.mean() < 2  # PIL has whole numbers of hue and saturation
    assert np.abs(found - tissue()).mean() > 10


@pytest.mark.parametrize(
    "map_", [{"angle": 8.0}, {"shift": [9.0, -6.0]}, {"scale": 0.8}, {"scale": 1.2},
             {"shear": 10.0}, {"angle": -7.0, "shift": [-4.0, 3.0], "scale": 0.9, "shear": -6.0}],
    ids=str,
)  # fmt: skip
def test_a_tile_is_moved_as_torchvision_moves_pictures(map_: dict[str, Any]) -> None:
    found = changed(tissue(), **map_)
    values = {"angle": 0.0, "shift": [0, 0], "scale": 1.0, "shear": 0.0, **map_}
    expected = np.asarray(
        published.affine(
            Image.fromarray(tissue()), angle=values["angle"],
            translate=[int(one) for one in values["shift"]], scale=values["scale"],
            shear=[values["shear"], 0.0], fill=[245, 245, 245],
        )
    )  # fmt: skip
    same = (np.abs(found.astype(int) - expected) <= 6).all(axis=2)
    assert same.mean() > 0.97  # at borders the nearest px may be the next one


def test_outside_of_the_tile_there_is_glass() -> None:
    dark = np.zeros((96, 96, 3), np.uint8)
    found = changed(dark, scale=0.8)
    assert set(np.unique(found)) == {0, 245}
    assert 0.3 < (found == 245).mean() < 0.4  # 1 - 0.8 ** 2


@pytest.mark.parametrize("std", [STD, (0.5, 0.1, 1.0)])
def test_noise_has_a_tenth_of_the_encoders_units(std: tuple[float, ...]) -> None:
    """After normalisation, where the published code adds it."""
    tile = np.full((96, 96, 3), 128, np.uint8)
    found = augmented(tile, Drawn(noisy=True), std).astype(float)
    normalised = (found - tile) / (255 * np.array(std))
    np.testing.assert_allclose(normalised.std(axis=(0, 1)), 0.1, rtol=0.05)
    np.testing.assert_allclose(normalised.mean(axis=(0, 1)), 0, atol=0.01)


def test_half_of_the_views_have_noise_and_none_changes_the_tile_itself() -> None:
    tile = np.full((64, 64, 3), (200, 120, 160), np.uint8)
    before = tile.copy()
    found = [augmented(tile, np.random.default_rng(seed), STD) for seed in range(300)]
    np.testing.assert_array_equal(tile, before)
    inner = np.stack([one[24:40, 24:40].astype(float) for one in found])
    noisy = inner.std(axis=(1, 2)).mean(axis=1) > 1
    assert 0.4 < noisy.mean() < 0.6
    assert (inner[~noisy].mean(axis=(1, 2)).std(axis=0) > 3).all()


def test_another_augmentation_needs_another_name() -> None:
    """The name stands for these numbers in the keys of views."""
    own = SimpleNamespace(**{name: getattr(augment, name) for name in dir(augment)})
    assert (AUGMENTATION, own.JITTER, own.DEGREES, own.SHIFT, own.SCALE, own.SHEAR, own.FILL,
            own.NOISE, own.NOISE_SHARE) == (
        "paper-2", 0.1, 10.0, 0.1, (0.8, 1.2), 10.0, 245.0, 0.1, 0.5,
    )  # fmt: skip
