import ast
import errno
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tifffile
import torch

from her2.cohort.manifest import Cohort, SlideRow, bucket_of
from her2.config import EncoderSection, TilingSection
from her2.config.jobs import EmbedSpec, TileSpec, dump
from her2.core import checksums
from her2.core.errors import TileError, UserError
from her2.embedding import session as embedder_module
from her2.embedding.identity import feature_key
from her2.embedding.stage import embed_bucket
from her2.encoders.backbones import Encoder
from her2.encoders.card import read_card
from her2.encoders.stage import read_encoder
from her2.slides import fingerprint as fingerprint_module
from her2.slides.fingerprint import fingerprint
from her2.slides.slide import Slide
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, TileEntry, read_entries, write_entries
from her2.storage.features import open_store, read_attributes, read_coords, store_problems
from her2.storage.tiles import read_table
from her2.storage.upkeep import forget_slides, unused_products
from her2.storage.verify import broken_products
from her2.synthetic import draw_slide, svs
from her2.tiling.stage import tile_bucket
from tests.unit.products import materialise

BUCKET = "0000-of-0001"
MPP, SIZE, SVS_TILE = 1.0, 64, 240
IDS = ("demo-001-a", "demo-002-a", "demo-003-a")


@pytest.fixture(autouse=True)
def _keep_threads() -> None:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write drawn slides of 768 px at 0.5 um/px, which have 6 x 6 tiles of 64 px at 1 um/px.

    As in scans of Aperio, there is no level of 1/2, so that tiles are cut from level 0.
    """
    folder = tmp_path_factory.mktemp("slides")
    with mock.patch.object(svs, "LEVEL_STEP", 4):
        for slide_id, her2 in zip(IDS, ("0", "2+", "3+"), strict=True):
            draw_slide(
                slide_id=slide_id,
                patient_id=slide_id[:-2],
                her2=her2,
                site="north",
                seed=7,
                slide_path=folder / f"{slide_id}.svs",
                mask_path=folder / f"{slide_id}.png",
                side_px=768,
            )
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the folder of a random encoder with these options, made only once."""
    root = tmp_path_factory.mktemp("encoders")

    def make(model: str = "resnet10t", seed: int = 1, **options: object) -> Path:
        values = {"precision": "float32", "storage": "float32"} | options
        folder = root / "-".join([model, str(seed), *map(str, values.values())])
        if not folder.exists():
            section = EncoderSection(
                source="random", model=f"timm/{model}", mpp=MPP, size=SIZE, **values
            )
            materialise(section, seed, folder)
        return folder

    return make


@dataclass
class Job:
    """A bucket of tiled slides, ready to be embedded."""

    root: Path
    cohort: Cohort
    encoder: Path
    bucket: str = BUCKET

    @property
    def cache(self) -> Cache:
        return Cache(self.root / "cache")

    @property
    def tiles(self) -> Path:
        return self.root / "tiles" / "grid" / f"{self.bucket}.json"

    @property
    def output(self) -> Path:
        return self.root / "features" / "tiny" / f"{self.bucket}.json"

    def tile(self) -> "Job":
        tiling = TilingSection(min_tiles=1)
        spec = TileSpec(bucket=self.bucket, rows="", mpp=MPP, size=SIZE, tiling=tiling)
        tile_bucket(spec, self.cohort, self.cache, self.tiles)
        return self

    def embed(
        self,
        *,
        batch_size: int = 16,
        threads: int = 1,
        max_failed_tiles: float = 0.05,
        **views: int,
    ):
        return embed_bucket(
            EmbedSpec(bucket=self.bucket, rows="", max_failed_tiles=max_failed_tiles, **views),
            self.cohort,
            self.cache,
            tiles=self.tiles,
            encoder=self.encoder,
            output=self.output,
            batch_size=batch_size,
            threads=threads,
        )

    def table(self, slide_id: str):
        entry = read_entries(self.tiles, TileEntry)[slide_id]
        return read_table(self.cache.path("tiles", entry.key))

    def features(self, entry: FeatureEntry) -> np.ndarray:
        return np.array(open_store(self.cache.path("features", entry.key)).features)

    def coords(self, entry: FeatureEntry) -> np.ndarray:
        return read_coords(self.cache.path("features", entry.key))

    def one_by_one(self, slide_id: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the features of each tile, read and encoded one by one."""
        table = self.table(slide_id)
        coords = table.coords if rows is None else table.coords[rows]
        encoder, _ = read_encoder(self.encoder)
        found = []
        with Slide(self.cohort.root / f"{slide_id}.svs") as slide, torch.inference_mode():
            for x, y in coords:
                side = table.grid.level0_width
                patch = slide.region(float(x), float(y), side, side, (SIZE, SIZE))
                found.append(encoder(torch.from_numpy(patch.copy())[None])[0].numpy())
        return np.stack(found)


def rows(ids: tuple[str, ...] = IDS) -> tuple[SlideRow, ...]:
    return tuple(SlideRow(name, f"{name}.svs", name[:-2], {}) for name in sorted(ids))


@pytest.fixture(scope="module")
def tiled(
    slides: Path, encoders: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Job:
    """Tile the slides once; tests work on copies."""
    return Job(tmp_path_factory.mktemp("tiled"), Cohort(rows(), slides), encoders()).tile()


@pytest.fixture(scope="module")
def embedded(tiled: Job, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Embed the slides once, for tests that only read."""
    job = copy_of(tiled, tmp_path_factory.mktemp("embedded"))
    job.embed()
    return job


@pytest.fixture
def job(tiled: Job, tmp_path: Path) -> Job:
    return copy_of(tiled, tmp_path / "job")


@pytest.fixture
def own_slides(tiled: Job, tmp_path: Path) -> Job:
    """Return a job like `job`, not yet tiled, with copies of the slides that a test may damage."""
    shutil.copytree(tiled.cohort.root, tmp_path / "slides")
    return replace(tiled, root=tmp_path / "job", cohort=Cohort(rows(), tmp_path / "slides"))


def copy_of(job: Job, root: Path) -> Job:
    shutil.copytree(job.root, root, dirs_exist_ok=True)
    return replace(job, root=root)


def entries(job: Job) -> dict[str, FeatureEntry]:
    return read_entries(job.output, FeatureEntry)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("the encoder was loaded")


def spoil_output(monkeypatch: pytest.MonkeyPatch, change: Callable) -> None:
    """Change the output of the encoder."""
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, patches: change(forward(self, patches)))


def output_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many features the encoder gave at each call from now on."""
    sizes: list[int] = []

    def noted(result: torch.Tensor) -> torch.Tensor:
        sizes.append(len(result))
        return result

    spoil_output(monkeypatch, noted)
    return sizes


def damage(path: Path, column: int, row: int) -> None:
    """Overwrite one 240 px JPEG tile of level 0."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        index = row * math.ceil(page.imagewidth / SVS_TILE) + column
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(bytes(count))


def touching(job: Job, slide_id: str, column: int, row: int) -> np.ndarray:
    """Return the tiles of a slide that overlap a 240 px JPEG tile."""
    table = job.table(slide_id)
    side = table.grid.level0_width
    low = np.array([column, row]) * SVS_TILE
    return ((table.coords < low + SVS_TILE) & (table.coords + side > low)).all(axis=1)


def test_rows_are_in_tile_table_order_and_each_is_its_tile_encoded_alone(embedded: Job) -> None:
    for slide_id, entry in entries(embedded).items():
        table = embedded.table(slide_id)
        assert len(table) > 4
        assert entry == FeatureEntry("ok", None, entry.key, len(table), 0, 512)
        np.testing.assert_array_equal(embedded.coords(entry), table.coords)
        expected = embedded.one_by_one(slide_id)
        # Float noise, well below what tells two tiles of a slide apart.
        noise = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(embedded.features(entry), expected, atol=noise, rtol=0)
        assert np.abs(expected[0] - expected[1]).max() > 10 * noise


@pytest.mark.parametrize(("batch_size", "threads"), [(7, 1), (16, 3), (500, 2)])
def test_batch_size_and_threads_change_nothing_but_float_noise(
    job: Job, embedded: Job, batch_size: int, threads: int
) -> None:
    job.embed(batch_size=batch_size, threads=threads)
    assert job.output.read_bytes() == embedded.output.read_bytes()
    for entry in entries(job).values():
        expected = embedded.features(entry)
        np.testing.assert_allclose(
            job.features(entry), expected, atol=1e-4 * np.abs(expected).max(), rtol=0
        )
        np.testing.assert_array_equal(job.coords(entry), embedded.coords(entry))


@pytest.mark.parametrize("batch_size", [5, 16, 1000])
def test_batches_cross_slide_borders(
    job: Job, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    sizes = output_sizes(monkeypatch)
    total = sum(entry.tiles for entry in job.embed(batch_size=batch_size).values())
    assert len(sizes) == math.ceil(total / batch_size)
    assert set(sizes[:-1]) <= {batch_size}
    assert sum(sizes) == total


def test_the_second_call_embeds_nothing_and_writes_the_same_bytes(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.embed()
    before = job.output.read_bytes()
    job.output.unlink()
    monkeypatch.setattr(embedder_module, "read_encoder", refuse)
    job.embed()
    assert job.output.read_bytes() == before


def test_only_the_slide_that_the_cache_lacks_is_embedded(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job.embed()
    job.cache.path("features", first[IDS[1]].key).unlink()
    rows_seen = output_sizes(monkeypatch)
    assert job.embed() == first
    assert sum(rows_seen) == first[IDS[1]].tiles


def test_a_file_under_another_id_in_another_bucket_reuses_the_store(
    tiled: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [next(f"x{i}" for i in range(99) if bucket_of(f"x{i}", 2) == f"000{b}-of-0002")
             for b in (0, 1)]  # fmt: skip
    same = tuple(SlideRow(name, f"{IDS[0]}.svs", name, {}) for name in sorted(names))
    first, second = (
        replace(
            tiled,
            root=tmp_path,
            cohort=Cohort(same, tiled.cohort.root),
            bucket=f"000{bucket}-of-0002",
        ).tile()
        for bucket in (0, 1)
    )
    made = first.embed()
    monkeypatch.setattr(embedder_module, "read_encoder", refuse)
    again = second.embed()
    assert (list(made), list(again)) == ([names[0]], [names[1]])
    assert made[names[0]] == again[names[1]]
    links = [first.output.parent / f"{name}.zarr.zip" for name in names]
    assert links[0].samefile(links[1])


def test_other_weights_and_another_precision_are_other_keys(
    job: Job, encoders: Callable[..., Path]
) -> None:
    folders = [
        encoders(),
        encoders(seed=2),
        encoders(precision="bfloat16"),
        encoders(storage="float16"),
    ]
    keys = [replace(job, encoder=folder).embed()[IDS[0]].key for folder in folders]
    assert len(set(keys)) == 4


def test_a_renamed_encoder_is_the_same_encoder(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = job.embed()
    shutil.copytree(job.encoder, tmp_path / "another-name")
    monkeypatch.setattr(embedder_module, "read_encoder", refuse)
    assert replace(job, encoder=tmp_path / "another-name").embed() == before


def test_stores_are_sound_and_say_what_they_are(embedded: Job) -> None:
    for slide_id, entry in entries(embedded).items():
        path = embedded.cache.path("features", entry.key)
        assert store_problems(path) == []
        table, found = embedded.table(slide_id), read_attributes(path)
        assert found["key"] == entry.key
        assert found["slide"]["fingerprint"] == table.facts.fingerprint
        assert found["slide"]["level0_tile"] == [128.0, 128.0]
        assert found["slide"]["size_px"] == [768, 768]
        assert found["slide"]["mpp"] == pytest.approx([0.5, 0.5])
        assert found["target"] == {"mpp": MPP, "px": SIZE}
        assert found["precision"] == "float32"
        link = embedded.output.parent / f"{slide_id}.zarr.zip"
        assert link.samefile(path)


def test_features_are_stored_in_the_type_that_the_encoder_asks_for(
    job: Job, embedded: Job, encoders: Callable[..., Path]
) -> None:
    half = replace(job, encoder=encoders(storage="float16"))
    for slide_id, entry in half.embed().items():
        expected = embedded.features(entries(embedded)[slide_id])
        found = half.features(entry)
        assert (found.dtype.name, expected.dtype.name) == ("float16", "float32")
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_an_unreadable_tile_is_left_out_and_counted(own_slides: Job) -> None:
    damage(own_slides.cohort.root / f"{IDS[1]}.svs", 1, 1)
    job = own_slides.tile()
    lost = touching(job, IDS[1], 1, 1)
    assert 0 < lost.sum() < len(lost)
    entry = job.embed(max_failed_tiles=0.9)[IDS[1]]
    assert (entry.status, entry.tiles, entry.failed_tiles) == ("ok", (~lost).sum(), lost.sum())
    np.testing.assert_array_equal(job.coords(entry), job.table(IDS[1]).coords[~lost])
    expected = job.one_by_one(IDS[1], np.flatnonzero(~lost))
    np.testing.assert_allclose(
        job.features(entry), expected, atol=1e-4 * np.abs(expected).max(), rtol=0
    )


def damage_between_samples(path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Damage a slide where the fingerprint does not look; return what it was.

    The fingerprint samples this small slide as it does those of more than 6 MiB.
    """
    for name, value in (("_HEAD_BYTES", 256), ("_BLOCK_BYTES", 16), ("_BLOCKS", 2)):
        monkeypatch.setattr(fingerprint_module, name, value)
    good, before = path.read_bytes(), fingerprint(path)
    damage(path, 1, 1)
    assert fingerprint(path) == before
    return good


@pytest.mark.parametrize("settled", [True, False], ids=["index", "no index"])
def test_a_copy_damaged_between_the_samples_and_then_replaced_gets_all_its_tiles(
    own_slides: Job, monkeypatch: pytest.MonkeyPatch, settled: bool
) -> None:
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", 0 if settled else 3600)
    path = own_slides.cohort.root / f"{IDS[1]}.svs"
    good = damage_between_samples(path, monkeypatch)
    bad, state = path.read_bytes(), path.stat()
    first = own_slides.tile().embed(max_failed_tiles=0.9)
    assert first[IDS[1]].failed_tiles > 0
    path.write_bytes(good)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as cp -p and rsync do
    second = own_slides.tile().embed(max_failed_tiles=0.9)
    assert second[IDS[1]].failed_tiles == 0
    assert second[IDS[1]].tiles == len(own_slides.table(IDS[1]))
    assert {name for name in IDS if first[name].key != second[name].key} == {IDS[1]}
    assert broken_products(own_slides.cache)[1] == []
    path.write_bytes(bad)
    monkeypatch.setattr(embedder_module, "read_encoder", refuse)
    assert own_slides.tile().embed(max_failed_tiles=0.9) == first


def test_features_of_other_bytes_are_told_apart_though_the_tiles_are_of_none(
    own_slides: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Because the tile table of the damaged copy was pruned, for example."""
    path = own_slides.cohort.root / f"{IDS[1]}.svs"
    good = damage_between_samples(path, monkeypatch)
    first = own_slides.tile().embed(max_failed_tiles=0.9)
    shutil.rmtree(own_slides.cache.root / "tiles")
    path.write_bytes(good)
    second = own_slides.tile().embed(max_failed_tiles=0.9)
    assert second[IDS[1]].failed_tiles == 0
    assert {name for name in IDS if first[name].key != second[name].key} == {IDS[1]}
    assert broken_products(own_slides.cache)[1] == []


def test_a_slide_replaced_after_tiling_fails_and_the_others_do_not(
    own_slides: Job, embedded: Job
) -> None:
    job = own_slides.tile()
    shutil.copyfile(job.cohort.root / f"{IDS[0]}.svs", job.cohort.root / f"{IDS[1]}.svs")
    found = job.embed()
    assert found[IDS[1]].status == "failed"
    assert "its file changed after it was tiled; run snakemake again" in found[IDS[1]].reason
    for slide_id in (IDS[0], IDS[2]):
        assert found[slide_id] == entries(embedded)[slide_id]


def test_swapped_stores_are_embedded_again(job: Job, embedded: Job) -> None:
    shutil.copytree(embedded.cache.root / "features", job.cache.root / "features")
    one, other = (job.cache.path("features", entries(embedded)[name].key) for name in IDS[:2])
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)
    assert job.embed() == entries(embedded)
    assert broken_products(job.cache)[1] == []
    assert len(job.cache.quarantined()) == 2


def test_a_forgotten_slide_is_tried_again_and_the_others_are_not(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E.g. a network disk could not read some tiles of a slide that is good."""
    job = job.tile()
    region = Slide.region

    def failing(slide: Slide, x: float, y: float, *size: object, **options: object):
        if slide.path.stem == IDS[1] and x < 200:
            raise TileError("the network disk is gone")
        return region(slide, x, y, *size, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Slide, "region", failing)
        first = job.embed(max_failed_tiles=0.9)
    assert [first[name].failed_tiles > 0 for name in IDS] == [False, True, False]
    assert job.embed(max_failed_tiles=0.9) == first
    with pytest.raises(UserError, match=r"1 slide\(s\) are in no entries file(.|\n)*nobody"):
        forget_slides(job.cache, [IDS[1], "nobody"], [job.root])
    found = forget_slides(job.cache, [IDS[1]], [job.root])
    assert set(found.entries) == {job.tiles, job.output}
    assert len(found.products) == 3
    kept = {product.key for product in job.cache.products() if product.kind == "features"}
    assert kept == {first[IDS[0]].key, first[IDS[2]].key}
    assert {p.key for p in unused_products(job.cache, [job.root])} == set()
    second = job.tile().embed(max_failed_tiles=0.9)
    assert [second[name].failed_tiles for name in IDS] == [0, 0, 0]
    assert broken_products(job.cache)[1] == []


def test_a_slide_with_too_many_unreadable_tiles_is_excluded_and_the_others_are_not(
    own_slides: Job, embedded: Job
) -> None:
    damage(own_slides.cohort.root / f"{IDS[1]}.svs", 1, 1)
    job = own_slides.tile()
    found = job.embed()
    lost, total = touching(job, IDS[1], 1, 1).sum(), len(job.table(IDS[1]))
    reason = f"{lost} of {total} tiles cannot be read (embedding.max_failed_tiles 0.05)"
    assert found[IDS[1]] == FeatureEntry("excluded", reason, failed_tiles=int(lost))
    assert not (job.output.parent / f"{IDS[1]}.zarr.zip").exists()
    for slide_id in (IDS[0], IDS[2]):
        known = entries(embedded)[slide_id]
        assert found[slide_id] == known
        np.testing.assert_allclose(
            job.features(known), embedded.features(known), rtol=1e-3, atol=1e-3
        )


def test_a_stricter_limit_excludes_the_same_from_the_cache_as_from_the_slide(
    own_slides: Job, tmp_path: Path
) -> None:
    damage(own_slides.cohort.root / f"{IDS[1]}.svs", 1, 1)
    fresh = own_slides.tile()
    cached = copy_of(fresh, tmp_path / "cached")
    cached.embed(max_failed_tiles=0.9)
    cached.embed()
    fresh.embed()
    assert cached.output.read_bytes() == fresh.output.read_bytes()


def test_a_slide_deleted_after_tiling_fails_and_the_others_do_not(
    own_slides: Job, embedded: Job
) -> None:
    job = own_slides.tile()
    (job.cohort.root / f"{IDS[1]}.svs").unlink()
    found = job.embed()
    assert found[IDS[1]] == FeatureEntry("failed", "the file does not exist")
    for slide_id in (IDS[0], IDS[2]):
        assert found[slide_id] == entries(embedded)[slide_id]


def test_a_bucket_of_nothing_but_lost_slides_still_has_its_entries(own_slides: Job) -> None:
    job = own_slides.tile()
    for slide_id in IDS:
        (job.cohort.root / f"{slide_id}.svs").unlink()
    assert {entry.status for entry in job.embed().values()} == {"failed"}
    assert sorted(entries(job)) == sorted(IDS)


def test_a_slide_that_tiling_left_out_passes_through_with_its_reason(job: Job) -> None:
    tiles = read_entries(job.tiles, TileEntry)
    tiles[IDS[0]] = TileEntry("excluded", "no tissue found", "00" * 32)
    tiles[IDS[2]] = TileEntry("failed", "the file is empty")
    write_entries(job.tiles, tiles)
    found = job.embed()
    assert found[IDS[0]] == FeatureEntry("excluded", "no tissue found")
    assert found[IDS[2]] == FeatureEntry("failed", "the file is empty")
    assert found[IDS[1]].status == "ok"


def test_a_tile_table_that_left_the_cache_is_an_error_with_its_mend(job: Job) -> None:
    job.cache.path("tiles", read_entries(job.tiles, TileEntry)[IDS[1]].key).unlink()
    (job.tiles.parent / f"{IDS[1]}.parquet").unlink()
    with pytest.raises(UserError, match=f"{IDS[1]}.*is not in the cache.*run snakemake again"):
        job.embed()


def test_a_cache_that_cannot_be_written_stops_the_job(job: Job) -> None:
    (job.cache.root / "features").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot be written"):
        job.embed()
    assert not job.output.exists()


def test_an_encoder_whose_weights_changed_stops_the_job(job: Job, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(job.encoder, folder)
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match="other weights than its card says"):
        replace(job, encoder=folder).embed()
    assert not job.output.exists()


def test_values_beyond_float16_stop_the_job_naming_slide_and_mend(
    job: Job, encoders: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_output(monkeypatch, lambda result: result + 70_000)
    with pytest.raises(UserError, match=r"demo-00\d-a: .*range of float16.*`storage: float32`"):
        replace(job, encoder=encoders(storage="float16")).embed()
    assert list(job.cache.products())  # tiles
    assert not [p for p in job.cache.products() if p.kind == "features"]
    assert {entry.status for entry in job.embed().values()} == {"ok"}  # the mend works


def test_values_that_are_not_finite_stop_the_job_naming_slide_and_mend(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_output(monkeypatch, lambda result: result * torch.nan)
    with pytest.raises(UserError, match=r"demo-00\d-a: .*not finite in float32.*intact weights"):
        job.embed()
    assert not job.output.exists()


def test_bfloat16_features_point_where_float32_ones_do(
    job: Job, encoders: Callable[..., Path]
) -> None:
    exact, rough = (
        replace(job, encoder=encoders("resnet18", precision=precision))
        for precision in ("float32", "bfloat16")
    )
    slide_id = IDS[0]
    a, b = (each.features(each.embed()[slide_id]) for each in (exact, rough))
    assert not np.array_equal(a, b)
    assert cosine(a, b).min() >= 0.999
    # The features of a random network share a large mean, which alone would pass: without it,
    # two tiles point elsewhere, and the two precisions still do not.
    a, b = a - a.mean(0), b - a.mean(0)
    assert np.median(cosine(a[1:], a[:-1])) < 0.9
    assert np.median(cosine(a, b)) >= 0.999
    assert cosine(a, b).min() >= 0.99


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


# What the cache holds is looked up without torch.


def test_a_job_whose_stores_are_all_in_the_cache_does_not_load_torch(embedded: Job) -> None:
    """Loading torch would take seconds per bucket."""
    manifest = embedded.root / "slides.csv"
    lines = [f"{row.slide_id},{row.path},{row.patient_id}" for row in embedded.cohort.rows]
    manifest.write_text("\n".join(["slide_id,path,patient_id", *lines]) + "\n")
    spec = EmbedSpec(bucket=BUCKET, rows="", max_failed_tiles=0.05)
    before = embedded.output.read_bytes()
    code = (
        "import sys; from her2.cli.main import app; app(sys.argv[1:], standalone_mode=False); "
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [
            sys.executable, "-c", code, "embed", "--spec", dump(spec), "--slides", manifest,
            "--root", embedded.cohort.root, "--cache", embedded.cache.root,
            "--tiles", embedded.tiles, "--encoder", embedded.encoder, "--out", embedded.output,
        ],
        capture_output=True, text=True, check=False, cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    assert "her2" in loaded
    assert loaded & {"torch", "torchvision", "timm", "zarr"} == set()
    assert embedded.output.read_bytes() == before


# Identity: what changes a feature's bits changes the key, and nothing else does.


def keys(found: dict[str, FeatureEntry]) -> list[str | None]:
    return [found[slide_id].key for slide_id in sorted(found)]


@pytest.mark.parametrize("change", ["renamed", "moved", "touched", "reordered", "batch", "threads"])
def test_names_places_times_orders_and_sizes_of_a_job_are_not_identity(
    own_slides: Job, embedded: Job, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The stores of `embedded` are used, so the encoder is not even loaded."""
    monkeypatch.setattr(embedder_module, "read_encoder", refuse)
    folder, options = own_slides.cohort.root, {}
    ordered = rows()
    if change == "renamed":
        ordered = tuple(replace(row, path=f"new-{row.path}") for row in ordered)
        for row in ordered:
            (folder / row.path.removeprefix("new-")).rename(folder / row.path)
    elif change == "moved":
        folder = folder.rename(folder.with_name("elsewhere"))
    elif change == "touched":
        for row in ordered:
            os.utime(folder / row.path, (0, 0))
    elif change == "reordered":
        ordered = ordered[::-1]
    else:
        options = {"batch_size": 3} if change == "batch" else {"threads": 2}
    shutil.copytree(embedded.cache.root / "features", own_slides.cache.root / "features")
    job = replace(own_slides, cohort=Cohort(ordered, folder)).tile()
    assert keys(job.embed(**options)) == keys(entries(embedded))


def test_all_that_changes_features_is_identity(embedded: Job) -> None:
    """The tile table, the encoder's card and the precision are changed one at a time."""
    spec = EmbedSpec(bucket=BUCKET, rows="", max_failed_tiles=0.05)
    table, card = embedded.table(IDS[0]), read_card(embedded.encoder)
    assert feature_key(spec, table, card, "float32") == entries(embedded)[IDS[0]].key

    def of_facts(**fields: object) -> str:
        changed = replace(table, facts=replace(table.facts, **fields))
        return feature_key(spec, changed, card, "float32")

    def of_grid(**fields: object) -> str:
        changed = replace(table, grid=replace(table.grid, **fields))
        return feature_key(spec, changed, card, "float32")

    def of_card(**fields: object) -> str:
        return feature_key(spec, table, replace(card, **fields), "float32")

    found = {
        "as it is": feature_key(spec, table, card, "float32"),
        "slide": of_facts(fingerprint="ff" * 32),
        "um/px": of_grid(level0_width=256.0, level0_height=256.0),
        "tiles": feature_key(spec, replace(table, coords=table.coords[1:]), card, "float32"),
        "order": feature_key(spec, replace(table, coords=table.coords[::-1]), card, "float32"),
        "weights": of_card(weights_sha256="ee" * 32),
        "normalisation": of_card(std=(0.5, 0.5, 0.5)),
        "architecture": of_card(architecture="resnet18"),
        "feature": of_card(feature="flattened"),
        "size": of_card(size=96),
        "storage": of_card(storage="float16"),
        "precision": feature_key(spec, table, card, "bfloat16"),
        "version": feature_key(spec.model_copy(update={"version": 99}), table, card, "float32"),
    }
    assert len(set(found.values())) == len(found)
    same = {
        of_card(source="timm"), of_card(licence="MIT"), of_card(provenance={"seed": 2}),
        of_facts(vendor="other"), of_facts(mpp_source="manifest"), of_grid(read_level=1),
        feature_key(spec.model_copy(update={"bucket": "0001-of-0002"}), table, card, "float32"),
    }  # fmt: skip
    assert same == {found["as it is"]}


# Speed and receipts.


def test_the_longest_slide_is_published_before_the_others_begin(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        found = job.embed(batch_size=1)
    lines = [record.getMessage() for record in caplog.records]
    done = [line.split(":")[0] for line in lines if "patches embedded" in line]
    assert done == sorted(done, key=lambda slide_id: (-found[slide_id].tiles, slide_id))


def test_a_store_has_a_receipt_of_its_making(embedded: Job) -> None:
    for entry in entries(embedded).values():
        found = read_attributes(embedded.cache.path("features", entry.key))["receipt"]
        assert found["precision"] == "float32"
        assert (found["threads"], found["workers"], found["batch_size"]) == (1, 1, 16)
        assert found["reader"] == "jpeg"
        assert found["compiled"] is False
        assert found["cold"] in (None, True, False)
        spent = [found[f"seconds_{name}"] for name in ("reading", "encoding", "writing", "waiting")]
        assert all(seconds > 0 for seconds in spent[:2])
        assert found["patches_per_second"] == pytest.approx(entry.tiles / sum(spent), rel=0.1)


def test_what_is_finished_is_published_although_another_slide_stops_the_job(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = max(len(job.table(slide_id)) for slide_id in IDS)
    seen = []

    def stop_late(result: torch.Tensor) -> torch.Tensor:
        seen.append(len(result))
        return result * torch.nan if sum(seen) > longest else result

    spoil_output(monkeypatch, stop_late)
    with pytest.raises(UserError, match="not finite"):
        job.embed(batch_size=1)
    assert [product.kind for product in job.cache.products()].count("features") == 1
    assert not job.output.exists()


# Other filesystems.


def test_a_cache_on_another_filesystem_gives_copies_instead_of_links(
    job: Job, embedded: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def across(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    shutil.copytree(embedded.cache.root / "features", job.cache.root / "features")
    monkeypatch.setattr(os, "link", across)
    for slide_id, entry in job.embed().items():
        name = job.output.parent / f"{slide_id}.zarr.zip"
        product = job.cache.path("features", entry.key)
        assert not name.samefile(product)
        assert name.read_bytes() == product.read_bytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_features_of_the_cpu(
    job: Job, embedded: Job, encoders: Callable[..., Path]
) -> None:
    for folder in (job.encoder, encoders(precision="auto")):
        for slide_id, entry in replace(job, encoder=folder).embed().items():
            expected = embedded.features(entries(embedded)[slide_id])
            assert cosine(job.features(entry), expected).min() >= 0.999
            found = read_attributes(job.cache.path("features", entry.key))["receipt"]
            assert found["device"] == torch.cuda.get_device_name(0)
