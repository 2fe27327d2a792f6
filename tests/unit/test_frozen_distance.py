"""New slides like those of development are as far away as these; others are not."""

import numpy as np
import pytest

from her2.frozen.distance import LEAST_PATIENTS, embedding_reference, mean_embedding, reference_of
from tests.unit.bag_makers import bag


def drawn(count: int, d: int, generator: np.random.Generator) -> np.ndarray:
    """Draw mean embeddings: a few strong directions and noise in all."""
    loadings = np.random.default_rng(7).normal(size=(10, d)) * np.linspace(3, 0.3, 10)[:, None]
    return generator.normal(size=(count, 10)) @ loadings + generator.normal(size=(count, d)) + 5


@pytest.mark.parametrize(("slides", "d"), [(60, 20), (80, 200)], ids=["few", "more than slides"])
def test_fresh_slides_of_the_same_kind_have_uniform_percentiles(slides: int, d: int) -> None:
    generator = np.random.default_rng(1)
    found = []
    for _ in range(6):
        reference = reference_of(drawn(slides, d, generator), np.arange(slides) // 2)
        assert reference is not None
        fresh = reference.distance(drawn(100, d, generator))
        found += [reference.distances.percentile(value) for value in fresh]
    shares = np.histogram(found, bins=4, range=(0, 100))[0] / len(found)
    assert shares == pytest.approx(np.full(4, 0.25), abs=0.06)
    assert np.mean(np.array(found) > 99) < 0.04


def test_a_fit_on_the_slides_themselves_would_flag_half_of_the_new_ones() -> None:
    """Why the quantiles are of slides that were left out."""
    generator = np.random.default_rng(2)
    means = drawn(40, 400, generator)
    reference = reference_of(means, np.arange(40))
    assert reference is not None
    fresh, own = reference.distance(drawn(200, 400, generator)), reference.distance(means)
    assert np.mean(fresh > own.max()) > 0.3
    assert np.mean(fresh > reference.distances.highest) < 0.1
    assert np.median(fresh) == pytest.approx(1, abs=0.15)


def shifted(means: np.ndarray, kind: str) -> np.ndarray:
    loadings = np.random.default_rng(7).normal(size=(10, means.shape[1]))
    if kind == "along what varies":
        return means + 30 * loadings[0]
    if kind == "where nothing varies":
        beside = np.random.default_rng(8).normal(size=means.shape[1])
        return means + 3 * beside
    return 5 + 3 * (means - 5)


@pytest.mark.parametrize("kind", ["along what varies", "where nothing varies", "wider"])
def test_slides_that_are_shifted_are_beyond_development(kind: str) -> None:
    generator = np.random.default_rng(3)
    reference = reference_of(drawn(80, 100, generator), np.arange(80))
    assert reference is not None
    found = reference.distance(shifted(drawn(50, 100, generator), kind))
    assert np.mean(found > reference.distances.at(99)) > 0.9


def test_a_patient_never_describes_its_own_slides() -> None:
    """A patient's two slides are alike; either would make the other one near."""
    generator = np.random.default_rng(4)
    own = np.repeat(drawn(40, 100, generator), 2, axis=0)
    own += 0.01 * generator.normal(size=own.shape)
    by_patient = reference_of(own, np.arange(80) // 2)
    by_slide = reference_of(own, np.arange(80))
    assert by_patient is not None
    assert by_slide is not None
    fresh = drawn(200, 100, generator)

    def beyond(reference) -> float:
        distances = reference.distance(fresh)
        return float(np.mean(distances > reference.distances.at(95)))

    assert beyond(by_patient) < 0.15
    assert beyond(by_slide) > 2 * beyond(by_patient)


def test_the_distance_is_its_equation() -> None:
    generator = np.random.default_rng(5)
    means = drawn(60, 12, generator)
    reference = reference_of(means, np.arange(60))
    assert reference is not None
    x = drawn(3, 12, generator)
    x[0, 0] += 1000  # is cut off at 5 standard deviations
    z = np.clip((x - np.array(reference.mean)) / np.array(reference.scale), -5, 5)
    axes = np.array(reference.components)
    scores = z @ axes.T
    inside = (scores**2 / np.array(reference.variances)).sum(axis=1)
    rest = z - scores @ axes
    outside = (rest**2).sum(axis=1)
    expected = np.sqrt((inside / reference.inside + outside / reference.outside) / 2)
    np.testing.assert_allclose(reference.distance(x), expected, rtol=1e-4)
    np.testing.assert_allclose(axes @ axes.T, np.eye(len(axes)), atol=1e-4)
    np.testing.assert_allclose(reference.mean, means.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(reference.scale, means.std(axis=0, ddof=1), rtol=1e-5)
    assert len(axes) == 11  # one less than features


def test_components_are_fewer_than_a_third_of_the_slides_and_at_most_32() -> None:
    generator = np.random.default_rng(5)
    for slides, count in ((30, 8), (60, 17), (150, 32)):
        reference = reference_of(drawn(slides, 100, generator), np.arange(slides))
        assert reference is not None
        assert len(reference.components) == len(reference.variances) == count < slides / 3


def test_features_that_are_copies_of_others_change_little() -> None:
    """The rest outside of the components is then nothing, and a slide that has one is far away."""
    means = drawn(60, 4, np.random.default_rng(5))
    copies = np.concatenate([means, means], axis=1)
    reference = reference_of(copies, np.arange(60))
    assert reference is not None
    assert reference.distances.at(50) == pytest.approx(1, abs=0.01)
    other = copies.copy()
    other[:, 0] += 40 * copies[:, 0].std()
    assert (reference.distance(other) > reference.distances.highest).all()


def test_the_same_slides_in_another_order_give_the_same_bytes() -> None:
    means = drawn(30, 40, np.random.default_rng(6)).astype(np.float16)
    slides = {f"s{i:02d}": bag(f"s{i}", np.stack([row, row]), None).store
              for i, row in enumerate(means)}  # fmt: skip
    patients = {name: f"p{name}" for name in slides}
    first = embedding_reference(slides, patients)
    again = embedding_reference(dict(reversed(slides.items())), patients)
    assert first is not None
    assert again is not None
    assert first.model_dump_json() == again.model_dump_json()
    assert type(first).model_validate_json(first.model_dump_json()) == first


def test_no_slide_can_be_told_from_the_reference() -> None:
    """Neither its embedding nor its name is in it."""
    means = drawn(30, 40, np.random.default_rng(6))
    reference = reference_of(means, np.array([f"patient-{i}" for i in range(30)]))
    assert reference is not None
    text = reference.model_dump_json()
    assert "patient-" not in text
    assert len(reference.components) <= 9
    rows = np.array([reference.mean, *reference.components])
    for row in means:
        assert not np.isclose(rows, row, rtol=1e-3).all(axis=1).any()


def test_constant_features_do_not_count_and_slides_that_do_not_vary_have_no_reference() -> None:
    generator = np.random.default_rng(9)
    means = drawn(40, 20, generator)
    constant = np.concatenate([means, np.full((40, 5), 0.3)], axis=1)
    plain, more = (reference_of(one, np.arange(40)) for one in (means, constant))
    assert plain is not None
    assert more is not None
    np.testing.assert_allclose(more.distances.values, plain.distances.values, rtol=1e-4)
    assert reference_of(np.ones((40, 6)), np.arange(40)) is None


def test_a_feature_that_is_zero_on_nearly_all_slides_does_not_make_one_of_them_the_farthest() -> (
    None
):
    """Before, it was 20 times as far away as the next, and no other slide could be beyond it."""
    generator = np.random.default_rng(10)
    means = drawn(60, 50, generator)
    means[:, 0] = 0.001 * np.abs(generator.normal(size=60))
    means[0, 0] = 1.0
    reference = reference_of(means, np.arange(60))
    assert reference is not None
    assert reference.distances.highest < 2
    far = reference.distance(shifted(drawn(50, 50, generator), "where nothing varies"))
    assert np.mean(far > reference.distances.highest) > 0.9


def test_too_few_patients_have_no_reference() -> None:
    slides = {f"s{i}": bag(f"s{i}", np.random.default_rng(i).normal(size=(3, 4)), None).store
              for i in range(2 * LEAST_PATIENTS)}  # fmt: skip
    few = {name: f"p{int(name[1:]) % (LEAST_PATIENTS - 1)}" for name in slides}
    enough = {name: f"p{int(name[1:]) % LEAST_PATIENTS}" for name in slides}
    assert embedding_reference(slides, few) is None
    found = embedding_reference(slides, enough)
    assert found is not None
    assert (found.slides, found.patients) == (2 * LEAST_PATIENTS, LEAST_PATIENTS)


@pytest.mark.parametrize("tiles", [1, 5, 1000])
def test_a_slide_is_the_mean_of_evenly_spaced_tiles(tiles: int) -> None:
    features = np.arange(tiles, dtype=np.float32)[:, None] * np.array([[1, 2]], np.float32)
    found = mean_embedding(bag("s", features, None).store)
    np.testing.assert_allclose(found, (tiles - 1) / 2 * np.array([1, 2]), atol=1.5)
