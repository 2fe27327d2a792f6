"""Augmented views of tiles: embedding, the cache, and the training that draws from them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl
import pytest
import torch

from her2.cohort.manifest import Cohort
from her2.config import EncoderSection, TrainingSection
from her2.config.heads import HEADS
from her2.core.errors import TileError, UserError
from her2.core.files import digest
from her2.embedding.augment import augmented, tile_generator
from her2.embedding.reading import PendingSlide, read_part
from her2.encoders.card import read_card
from her2.frozen.predict import predict_slides
from her2.heads.abmil import AttentionSection
from her2.mil.bags import Bag, sample_batch, statistics
from her2.mil.batches import bag_batches
from her2.mil.model import Model, predict, predict_bags
from her2.slides.slide import Slide
from her2.storage.entries import FeatureEntry, FoldEntry, read_entries, write_entries
from her2.storage.features import FeatureStore, open_store, read_attributes
from her2.storage.upkeep import forget, forget_slides, unused_products
from her2.storage.verify import broken_products
from her2.storage.views import view_links, view_path
from her2.synthetic import draw_slide, svs
from tests.unit.products import materialise, write_store
from tests.unit.test_embed import IDS, MPP, SIZE, Job, copy_of, output_sizes, rows
from tests.unit.test_train_folds import World, build

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Tile two drawn slides once; tests work on copies."""
    folder, encoder = tmp_path_factory.mktemp("slides"), tmp_path_factory.mktemp("encoder") / "e"
    with mock.patch.object(svs, "LEVEL_STEP", 4):
        for slide_id in IDS[:2]:
            draw_slide(
                slide_id=slide_id, patient_id=slide_id[:-2], her2="3+", site="north", seed=7,
                slide_path=folder / f"{slide_id}.svs", mask_path=folder / f"{slide_id}.png",
                side_px=512,
            )  # fmt: skip
    section = EncoderSection(
        source="random", model="timm/resnet10t", mpp=MPP, size=SIZE,
        precision="float32", storage="float32",
    )  # fmt: skip
    materialise(section, 1, encoder)
    root = tmp_path_factory.mktemp("tiled")
    return Job(root, Cohort(rows(IDS[:2]), folder), encoder).tile()


@pytest.fixture(scope="module")
def embedded(tiled: Job, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Embed with two views once, for tests that only read."""
    job = copy_of(tiled, tmp_path_factory.mktemp("embedded"))
    job.embed(views=2, seed=5)
    return job


@pytest.fixture
def job(tiled: Job, tmp_path: Path) -> Job:
    return copy_of(tiled, tmp_path / "job")


@pytest.fixture
def done(embedded: Job, tmp_path: Path) -> Job:
    return copy_of(embedded, tmp_path / "done")


def entries(job: Job) -> dict[str, FeatureEntry]:
    return read_entries(job.output, FeatureEntry)


def values(job: Job, key: str) -> np.ndarray:
    return np.array(open_store(job.cache.path("features", key), key).features)


def failing_at(monkeypatch: pytest.MonkeyPatch, slide_id: str, fails: Callable[[float], bool]):
    region = Slide.region

    def own(slide: Slide, x: float, y: float, *size: object, **options: object):
        if slide.path.stem == slide_id and fails(x):
            raise TileError("the network disk is gone")
        return region(slide, x, y, *size, **options)

    monkeypatch.setattr(Slide, "region", own)


def test_the_plain_store_is_the_same_with_and_without_views(job: Job, embedded: Job) -> None:
    plain = job.embed()
    for slide_id, entry in entries(embedded).items():
        assert replace(entry, views=()) == plain[slide_id]
        noise = 1e-4 * np.abs(values(job, entry.key)).max()
        np.testing.assert_allclose(
            values(embedded, entry.key), values(job, entry.key), atol=noise, rtol=0
        )
    assert "views" not in job.output.read_text()


def test_a_view_is_each_tile_changed_and_then_encoded(embedded: Job) -> None:
    slide_id, entry = next(iter(entries(embedded).items()))
    table = embedded.table(slide_id)
    row = embedded.cohort.rows[0]
    pending = PendingSlide(slide_id, embedded.cohort.file(row), table, entry.key, None)
    images = np.empty((len(table), SIZE, SIZE, 3), np.uint8)
    images = read_part(pending, np.arange(len(table)), images).images
    encoder, std = embedder(embedded), read_card(embedded.encoder).std
    assert std is not None
    for view, key in enumerate(entry.views, 1):
        changed = np.stack([
            augmented(image, tile_generator(5, entry.key, view, *place), std)
            for image, place in zip(images, table.coords.tolist(), strict=True)
        ])  # fmt: skip
        with torch.inference_mode():
            expected = encoder(torch.from_numpy(changed)).numpy()
        noise = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(values(embedded, key), expected, atol=noise, rtol=0)
        assert np.abs(expected - values(embedded, entry.key)).max() > 100 * noise


def embedder(job: Job) -> torch.nn.Module:
    from her2.encoders.stage import read_encoder

    return read_encoder(job.encoder)[0]


@pytest.mark.parametrize(("batch_size", "threads"), [(3, 1), (16, 2), (500, 3)])
def test_views_do_not_depend_on_batch_size_and_threads(
    job: Job, embedded: Job, batch_size: int, threads: int
) -> None:
    job.embed(views=2, seed=5, batch_size=batch_size, threads=threads)
    assert job.output.read_bytes() == embedded.output.read_bytes()
    for entry in entries(job).values():
        for key in entry.views:
            expected = values(embedded, key)
            noise = 1e-4 * np.abs(expected).max()
            np.testing.assert_allclose(values(job, key), expected, atol=noise, rtol=0)


def test_a_further_view_is_all_that_is_made(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    first = job.embed(views=1, seed=5)
    sizes = output_sizes(monkeypatch)
    second = job.embed(views=2, seed=5)
    assert sum(sizes) == sum(entry.tiles for entry in first.values())
    assert [e.views[:1] for e in second.values()] == [e.views for e in first.values()]
    assert job.embed(views=2, seed=5) == second
    assert job.embed(views=1, seed=5) == first
    assert job.embed()[IDS[0]] == replace(first[IDS[0]], views=())
    assert sum(sizes) == sum(entry.tiles for entry in first.values())
    assert view_links(job.output.parent, IDS[0]) == []


def test_each_tile_is_decoded_once_for_all_views(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[float] = []

    def note(x: float) -> bool:
        read.append(x)
        return False

    failing_at(monkeypatch, IDS[0], note)
    job.embed()
    plain = len(read)  # with the tiles that are read to find out how
    shutil.rmtree(job.cache.root / "features")
    job.embed(views=2, seed=5)
    assert len(read) - plain == plain


def test_another_seed_is_other_views_of_the_same_features(job: Job, embedded: Job) -> None:
    other = job.embed(views=1, seed=6)[IDS[0]]
    before = entries(embedded)[IDS[0]]
    assert other.key == before.key
    assert other.views[0] not in before.views
    assert not np.allclose(values(job, other.views[0]), values(embedded, before.views[0]))


def test_a_tile_that_fails_is_in_no_view(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    edge = np.median(job.table(IDS[0]).coords[:, 0])
    failing_at(monkeypatch, IDS[0], lambda x: x < edge)
    entry = job.embed(views=2, seed=5, max_failed_tiles=0.9)[IDS[0]]
    assert entry.failed_tiles > 0
    stores = [open_store(job.cache.path("features", key)) for key in (entry.key, *entry.views)]
    assert {len(store) for store in stores} == {entry.tiles}
    for store in stores:
        np.testing.assert_array_equal(store.coords, stores[0].coords)
    assert broken_products(job.cache)[1] == []


def test_later_views_have_the_tiles_of_the_plain_store(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = np.median(job.table(IDS[0]).coords[:, 0])
    with monkeypatch.context() as patch:
        failing_at(patch, IDS[0], lambda x: x < edge)
        before = job.embed(max_failed_tiles=0.9)[IDS[0]]
    entry = job.embed(views=1, seed=5, max_failed_tiles=0.9)[IDS[0]]
    assert replace(entry, views=()) == before
    np.testing.assert_array_equal(
        *(open_store(job.cache.path("features", key)).coords for key in (entry.key, *entry.views))
    )


def test_views_of_fewer_tiles_are_made_again_with_the_plain_store(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = np.median(job.table(IDS[0]).coords[:, 0])
    with monkeypatch.context() as patch:
        failing_at(patch, IDS[0], lambda x: x < edge)
        before = job.embed(views=1, seed=5, max_failed_tiles=0.9)[IDS[0]]
    job.cache.path("features", before.key).unlink()
    after = job.embed(views=1, seed=5)[IDS[0]]
    assert (after.views, after.failed_tiles) == (before.views, 0)
    assert len(values(job, after.views[0])) == after.tiles > before.tiles


def test_a_slide_whose_tiles_are_lost_before_its_views_fails_and_says_so(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.embed()
    edge = np.median(job.table(IDS[0]).coords[:, 0])
    failing_at(monkeypatch, IDS[0], lambda x: x < edge)
    found = job.embed(views=1, seed=5, max_failed_tiles=0.9)
    assert [found[name].status for name in IDS[:2]] == ["failed", "ok"]
    assert "augmented views cannot be made" in found[IDS[0]].reason
    assert "her2 cache forget demo-001-a" in found[IDS[0]].reason


def test_views_are_named_beside_the_slides_stores(embedded: Job) -> None:
    entry, folder = entries(embedded)[IDS[0]], embedded.output.parent
    names = [view_path(folder, IDS[0], view) for view in (1, 2)]
    assert view_links(folder, IDS[0]) == names
    assert {path.name for path in folder.glob("*.zarr.zip")} == {
        f"{name}.zarr.zip" for name in IDS[:2]
    }
    for name, key in zip(names, entry.views, strict=True):
        assert name.samefile(embedded.cache.path("features", key))


def test_views_of_results_are_used_and_sound(done: Job) -> None:
    assert unused_products(done.cache, [done.root]) == []
    done.output.unlink()  # while its job is to run again, the names say what is needed
    assert unused_products(done.cache, [done.root]) == []
    assert broken_products(done.cache)[1] == []


def test_a_forgotten_slide_loses_its_views(done: Job) -> None:
    before = entries(done)
    found = forget_slides(done.cache, [IDS[0]], [done.root])
    gone = {done.cache.path("features", key) for key in before[IDS[0]].views}
    assert gone < set(found.products)
    assert view_links(done.output.parent, IDS[0]) == []
    assert len(view_links(done.output.parent, IDS[1])) == 2


def test_a_broken_view_is_found_and_only_it_is_made_again(
    done: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = entries(done)[IDS[0]]
    first, second = (done.cache.path("features", key) for key in entry.views)
    first.unlink()
    shutil.copy(second, first)
    (broken,) = (product for product, _ in broken_products(done.cache)[1])
    assert broken.key == entry.views[0]
    assert forget([broken.key], [done.root]) == [done.output]
    sizes = output_sizes(monkeypatch)
    assert done.embed(views=2, seed=5)[IDS[0]] == entry
    assert sum(sizes) == entry.tiles
    assert broken_products(done.cache)[1] == []


def test_a_view_says_what_it_is_and_is_not_predicted(done: Job) -> None:
    entry = entries(done)[IDS[0]]
    attributes = read_attributes(done.cache.path("features", entry.views[1]))
    own = {"view": 2, "views_of": entry.key, "seed": 5, "augmentation": "paper-2"}
    plain = read_attributes(done.cache.path("features", entry.key))
    assert attributes["identity"] == {**plain["identity"], **own}
    assert digest(attributes["identity"]) == entry.views[1]
    assert attributes["receipt"]["views"] == 3


def test_an_encoder_s_card_knows_no_views(tiled: Job, tmp_path: Path) -> None:
    section = EncoderSection(
        source="random", model="timm/resnet10t", mpp=MPP, size=SIZE,
        precision="float32", storage="float32", augmentations=3,
    )  # fmt: skip
    materialise(section, 1, tmp_path / "e")
    assert asdict(read_card(tmp_path / "e")) == asdict(read_card(tiled.encoder))


# Training


def with_views(world: World, count: int, *, scale: float = 1.0) -> World:
    """Give each slide views: its features, shifted by 1, 2, ... times `scale`."""
    found = {}
    for slide_id, entry in world.entries().items():
        plain = open_store(world.cache.path("features", entry.key))
        keys = []
        for view in range(1, count + 1):
            attributes = {
                "tiles": len(plain), "failed_tiles": 0, "encoder": plain.attributes["encoder"],
                "identity": {"view": view, "views_of": entry.key, "tiles": "t", "scale": scale},
            }  # fmt: skip
            key = digest(attributes["identity"])
            if not world.cache.path("features", key).exists():
                with world.cache.publish("features", key) as path:
                    shifted = (plain.features + scale * view).astype(np.float16)
                    write_store(path, shifted, plain.coords, {"key": key, **attributes})
            keys.append(key)
        found[slide_id] = replace(entry, views=tuple(keys))
    world.set_entries(found)
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return a world whose plain stores say as much as those that `her2 embed` writes."""
    world = build(tmp_path)
    found = {}
    for slide_id, entry in world.entries().items():
        old = open_store(world.cache.path("features", entry.key))
        identity = {"tiles": "t", "slide": slide_id}
        key = digest(identity)
        with world.cache.publish("features", key) as path:
            write_store(path, old.features, old.coords, {
                "key": key, "identity": identity, "tiles": len(old), "failed_tiles": 0,
                "encoder": old.attributes["encoder"], "slide": {"checksum": None},
            })  # fmt: skip
        found[slide_id] = replace(entry, key=key)
    world.set_entries(found)
    return world


def keys(found: dict[str, FoldEntry]) -> set[str]:
    return {entry.key for entry in found.values()}


def test_views_are_part_of_a_fold_s_key_only_where_there_are_some(world: World) -> None:
    plain = keys(world.train())
    one = keys(with_views(world, 1).train())
    two = keys(with_views(world, 2).train())
    assert len(plain | one | two) == 9
    assert keys(with_views(world, 0).train()) == plain
    identity = json.loads((world.products(min(one)) / "identity.json").read_text())["identity"]
    learnt = {slide for slide, *_ in identity["learn"]["train"]}
    assert set(identity["views"]) == learnt
    assert len(plain & one) == 0


def test_views_change_what_is_learnt_and_not_what_is_tested(world: World) -> None:
    """A model predicts from plain stores: nothing changes when views are gone afterwards."""
    entry = with_views(world, 2).train()["r0f0"]
    table = pl.read_parquet(world.products(entry.key) / "predictions.parquet")
    attention = pl.read_parquet(world.products(entry.key) / "attention.parquet")
    tiles = {slide: one.tiles for slide, one in world.entries().items()}
    assert [len(a) for a in attention["attention"]] == [tiles[s] for s in attention["slide_id"]]
    for one in world.entries().values():
        for key in one.views:
            world.cache.path("features", key).unlink()
    folder = world.root / "plain"
    folder.mkdir()
    for slide in table["slide_id"]:
        shutil.copy(
            world.cache.path("features", world.entries()[slide].key), folder / f"{slide}.zarr.zip"
        )
    again = predict_slides(
        [world.output.parent / "r0f0"], folder, world.root / "again.csv", threads=1
    ).sort("slide_id")
    for name in ("prob_negative", "prob_positive"):
        np.testing.assert_allclose(again[name], table[name], atol=1e-6)


def test_an_augmented_view_is_refused_where_slides_are_predicted(world: World) -> None:
    with_views(world, 1).train()
    folder = world.root / "wrong"
    folder.mkdir()
    (key,) = world.entries()["n1-a"].views
    shutil.copy(world.cache.path("features", key), folder / "n1-a.zarr.zip")
    with pytest.raises(UserError, match="n1-a.*augmented view"):
        predict_slides([world.output.parent / "r0f0"], folder, world.root / "o.csv", threads=1)


def test_views_that_no_fold_trains_on_change_no_model(world: World) -> None:
    """Fitted heads read mean features of slides, and so no views."""
    head = HEADS["logistic"](head="logistic")
    spec = world.spec.model_copy(update={"head": head})
    plain = keys(world.train(spec))
    assert keys(with_views(world, 2).train(spec)) == plain


def test_a_view_of_other_tiles_is_refused_by_name(world: World) -> None:
    with_views(world, 1)
    entry = world.entries()["n1-a"]
    other = world.entries()["n2-a"]
    write_entries(
        world.features / "0000-of-0001.json",
        {**world.entries(), "n1-a": replace(entry, views=other.views)},
    )
    with pytest.raises(UserError, match=r"n1-a: its augmented view 1 has other tiles"):
        world.train()


def numbered(count: int, value: float) -> FeatureStore:
    features = np.full((count, 2), value, np.float32)
    features[:, 0] = np.arange(count)
    return FeatureStore(
        Path(f"{value}"), (features[:3], features[3:6], features[6:]), {"key": str(value)}
    )


def test_rows_of_a_training_bag_come_from_every_view_and_from_no_other_tile() -> None:
    bag = Bag("s", "p", "k", numbered(8, 0.0), 0, (numbered(8, 1.0), numbered(8, 2.0)))
    seen = np.zeros((8, 3))
    for seed in range(300):
        generator = np.random.default_rng(seed)
        features, mask, _ = sample_batch([bag], bag_size=4, generator=generator, augmented=True)
        assert mask.all()
        for row, view in features[0].numpy().astype(int):
            seen[row, view] += 1
    assert seen.sum() == 1200
    assert (np.abs(seen - 50) < 35).all()  # 8 rows x 3 views, binomial with sd 7


def test_only_training_bags_draw_from_views() -> None:
    plain = Bag("s", "p", "k", numbered(8, 0.0), 0)
    viewed = replace(plain, views=(numbered(8, 5.0),))
    for seed in range(5):
        ones = [
            sample_batch([bag], bag_size=4, generator=np.random.default_rng(seed))[0]
            for bag in (plain, viewed)
        ]
        assert torch.equal(*ones)
        drawn = [
            sample_batch([plain], bag_size=4, generator=np.random.default_rng(seed), augmented=a)[0]
            for a in (False, True)
        ]
        assert torch.equal(*drawn)  # without views, the draws of before
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            statistics([plain], per_bag=4, seed=1), statistics([viewed], per_bag=4, seed=1),
            strict=True,
        )
    )  # fmt: skip


def test_whole_slides_and_random_test_bags_are_predicted_from_plain_features() -> None:
    plain = Bag("s", "p", "k", numbered(8, 0.0), 0)
    viewed = replace(plain, views=(numbered(8, 5.0),))
    network = AttentionSection(head="abmil", attention=4).build(2, 2)
    model = Model(network, torch.zeros(2), torch.ones(2))
    found = [predict(model, bag) for bag in (plain, viewed)]
    np.testing.assert_array_equal(found[0].probabilities, found[1].probabilities)
    np.testing.assert_array_equal(found[0].attention, found[1].attention)
    bags = [predict_bags(model, [bag], count=9, bag_size=4, seed=1)[1] for bag in (plain, viewed)]
    np.testing.assert_array_equal(*bags)


def test_the_batches_that_a_head_is_trained_on_draw_from_views() -> None:
    bag = Bag("s", "p", "k", numbered(8, 0.0), 0, (numbered(8, 5.0),))
    training = TrainingSection(bag_size=8, bags_per_batch=1)
    seen = [
        tuple(batch.features[0, :, 1].tolist())
        for epoch in range(4)
        for batch in bag_batches([bag], training, seed=1, epoch=epoch)
    ]
    assert {value for row in seen for value in row} == {0.0, 5.0}
    assert len(set(seen)) > 1  # drawn anew in every epoch


@pytest.mark.parametrize("fault", ["missing", "truncated", "another slide's", "another view's"])
def test_a_view_that_is_not_there_as_it_was_made_is_named(world: World, fault: str) -> None:
    with_views(world, 2)
    (slide, entry), (_, other) = list(world.entries().items())[:2]
    path = world.cache.path("features", entry.views[1])
    content = path.read_bytes()
    path.unlink()
    if fault == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif fault != "missing":
        key = other.views[1] if "slide" in fault else entry.views[0]
        shutil.copyfile(world.cache.path("features", key), path)
    with pytest.raises(UserError) as caught:
        world.train()
    assert str(caught.value).startswith(f"{slide}.view2.zarr.zip: its product")
    assert "run snakemake again" in str(caught.value)
