from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from her2.core.errors import UserError
from her2.mil.bags import Bag, check_dimensions, pieces, sample_batch, statistics
from her2.storage.features import FeatureStore, open_store
from tests.unit.products import write_store


def bag(features: np.ndarray, *, name: str = "s", label: int | None = 0, encoder: str = "e") -> Bag:
    """Return a bag whose store is in memory."""
    store = FeatureStore(Path("/nowhere"), (features,), {"encoder": {"digest": encoder}})
    return Bag(name, f"patient-of-{name}", f"key-of-{name}", store, label)


def numbered(n: int, offset: int = 0, d: int = 3) -> np.ndarray:
    """Return rows of i + offset + 1, by which a row is recognised; no row is 0."""
    return np.repeat(np.arange(1, n + 1, dtype=np.float32)[:, None] + offset, d, axis=1)


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    bag_size=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_batch_holds_distinct_tiles_of_each_slide_and_masks_the_rest(
    sizes: list[int], bag_size: int, seed: int
) -> None:
    bags = [bag(numbered(n, 100 * i), label=i) for i, n in enumerate(sizes)]
    features, mask, labels = sample_batch(
        bags, bag_size=bag_size, generator=np.random.default_rng(seed)
    )
    assert features.shape == (len(bags), bag_size, 3)
    assert labels.tolist() == list(range(len(bags)))
    for i, n in enumerate(sizes):
        assert mask[i].sum() == min(n, bag_size)
        drawn = features[i][mask[i]][:, 0].numpy() - 100 * i
        assert len(set(drawn)) == len(drawn)
        assert set(drawn) <= set(range(1, n + 1))
        assert (features[i][~mask[i]] == 0).all()


def test_every_tile_is_drawn_as_often_as_any_other() -> None:
    generator = np.random.default_rng(0)
    drawn = [
        sample_batch([bag(numbered(5))], bag_size=2, generator=generator)[0][0, :, 0].numpy()
        for _ in range(4000)
    ]
    share = np.bincount(np.concatenate(drawn).astype(int), minlength=6)[1:] / 4000
    assert share == pytest.approx(np.full(5, 2 / 5), abs=0.04)


def test_a_slide_smaller_than_the_bag_gives_all_its_tiles() -> None:
    values = numbered(3)
    features, mask, _ = sample_batch([bag(values)], bag_size=8, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(features[0, :3], values)
    assert mask[0].tolist() == [True] * 3 + [False] * 5


def test_the_draws_are_those_of_the_generator() -> None:
    bags = [bag(numbered(50))]
    once, again, other = (
        sample_batch(bags, bag_size=8, generator=np.random.default_rng(seed))[0]
        for seed in (1, 1, 2)
    )
    assert (once == again).all()
    assert (once != other).any()


@pytest.mark.parametrize("rows", [1, 4, 6, 100])
def test_the_pieces_of_a_slide_are_all_of_its_tiles_in_order(tmp_path: Path, rows: int) -> None:
    values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float16)
    path = tmp_path / "s.zarr.zip"
    write_store(path, values, np.zeros((6, 2), np.int32), {"encoder": {"digest": "e"}})
    found = list(pieces(Bag("s", "p", "k", open_store(path), None), rows))
    assert max(len(piece) for piece in found) == min(rows, 6)
    np.testing.assert_array_equal(np.concatenate([piece.numpy() for piece in found]), values)


def test_a_batch_keeps_the_type_of_the_stores() -> None:
    half = bag(numbered(4).astype(np.float16))
    for bags, kind in (([half], torch.float16), ([half, bag(numbered(4))], torch.float32)):
        features, _, _ = sample_batch(bags, bag_size=2, generator=np.random.default_rng(0))
        assert features.dtype == kind


def test_statistics_are_numpys_when_slides_are_of_one_size() -> None:
    generator = np.random.default_rng(0)
    values = [generator.normal(i, 1 + i, size=(40, 5)).astype(np.float32) for i in range(3)]
    mean, std = statistics([bag(v) for v in values], per_bag=40, seed=0)
    pooled = np.concatenate(values).astype(float)
    np.testing.assert_allclose(mean, pooled.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, pooled.std(0), rtol=1e-5)


def test_statistics_count_a_small_slide_like_a_large_one() -> None:
    small, large = np.zeros((1, 2), np.float32), np.full((500, 2), 4, np.float32)
    mean, std = statistics([bag(small), bag(large)], per_bag=256, seed=0)
    assert mean.tolist() == [2, 2]
    assert std.tolist() == [2, 2]


def test_statistics_stay_exact_over_many_rows() -> None:
    # A plain float32 sum over as many rows is wrong in the third digit.
    rows = np.full((2000, 1), 30.1, np.float32)
    mean, _ = statistics([bag(rows)] * 100, per_bag=2000, seed=0)
    assert float(mean[0]) == pytest.approx(30.1, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-3, 30.1, -6e4])
def test_a_constant_feature_is_only_shifted(value: float) -> None:
    features = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    features[:, 1] = value
    mean, std = statistics([bag(features)] * 3, per_bag=64, seed=0)
    assert float(std[1]) == 1
    assert float(mean[1]) == pytest.approx(value, rel=1e-6)


def test_a_large_feature_does_not_switch_off_the_scaling_of_a_small_one() -> None:
    features = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    features[:, 0] = 6e4
    features[:, 1] *= 1e-2
    _, std = statistics([bag(features)], per_bag=64, seed=0)
    assert float(std[1]) == pytest.approx(features[:, 1].astype(float).std(), rel=1e-5)


def test_statistics_read_no_more_of_a_slide_than_they_are_told() -> None:
    mean, _ = statistics([bag(numbered(1000))], per_bag=1, seed=0)
    assert float(mean[0]).is_integer()  # one row, not a mean of several


def test_the_dimension_is_that_of_the_stores() -> None:
    assert check_dimensions([bag(numbered(2, d=3)), bag(numbered(5, d=3))]) == 3


def test_no_bag_at_all_is_an_error() -> None:
    with pytest.raises(UserError, match="no slide with features"):
        check_dimensions([])


def test_stores_of_two_encoders_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="different encoders, e.g. those of a and b"):
        check_dimensions(
            [bag(numbered(2), name="a", encoder="x"), bag(numbered(2), name="b", encoder="y")]
        )


def test_stores_of_two_dimensions_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="different.* those of a and b"):
        check_dimensions([bag(numbered(2, d=3), name="a"), bag(numbered(2, d=4), name="b")])
