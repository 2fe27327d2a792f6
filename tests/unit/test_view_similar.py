"""`her2 view`, similar tiles: the search equals brute force, keeps its memory, and can be ended."""

import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics.pairwise import cosine_similarity

from her2.core.errors import UserError
from her2.storage.features import write_rows
from her2.viewer.pages.similar import box_of
from her2.viewer.run import NotThereError
from her2.viewer.similar import searches
from her2.viewer.similar.jobs import Building, SimilarTiles
from her2.viewer.similar.search import MOST, PER_PATIENT, Found, Hit, cosines, read_query
from her2.viewer.similar.searches import Sample, Search, draw, in_parallel, rows_per_slide
from her2.viewer.similar.stores import EmbeddedSlide, EmbeddedSlides
from her2.viewer.state import Viewer

D = 24
PLENTY = 1 << 30


def store(
    folder: Path, name: str, features: NDArray, patient: str = "", cohort: str = "development"
) -> EmbeddedSlide:
    """A slide with a store of these features."""
    path = folder / f"{name}.zarr.zip"
    write_rows(
        path,
        [features],
        features.shape,
        features.dtype,
        np.zeros((len(features), 2), np.int32),
        lambda: {"key": name},
    )
    return EmbeddedSlide(cohort, name, patient or name, len(features), name, (path,))


def cohort(folder: Path, *, slides: int = 30, kind: str = "float16") -> list[EmbeddedSlide]:
    """Slides of 11 patients in two cohorts, with tiles that are alike in groups."""
    generator = np.random.default_rng(5)
    looks = generator.normal(size=(6, D))
    made = []
    for number in range(slides):
        size = int(generator.integers(3, 60))
        rows = looks[generator.integers(6, size=size)] + generator.normal(size=(size, D)) / 3
        lengths = generator.uniform(0.1, 9, size=(size, 1))
        where = "external:east" if number % 3 == 0 else "development"
        name = f"slide-{number:02d}"
        made.append(
            store(folder, name, (rows * lengths).astype(kind), f"patient-{number % 11}", where)
        )
    return made


def brute_force(slides: list[EmbeddedSlide], slide: int, tile: int) -> Found:
    """All cosines by scikit-learn, sorted, and the first of each list."""
    features = [one.open().features.astype(np.float64) for one in slides]
    everything = np.concatenate(features)
    values = cosine_similarity(features[slide][tile][None], everything)[0]
    owner = np.repeat(np.arange(len(slides)), [len(part) for part in features])
    row = np.concatenate([np.arange(len(part)) for part in features])
    groups: tuple[list[Hit], ...] = ([], [], [])
    seen: dict[str, int] = {}
    for i in np.argsort(-values, kind="stable"):
        if (owner[i], row[i]) == (slide, tile):
            continue
        patient = slides[owner[i]].patient_id
        group = 2 if owner[i] == slide else int(patient == slides[slide].patient_id)
        seen[patient] = seen.get(patient, 0) + 1
        if group or seen[patient] <= PER_PATIENT:
            groups[group].append(Hit(int(owner[i]), int(row[i]), float(values[i])))
    return Found(*(tuple(group[:MOST]) for group in groups), searched=None)


def same(found: tuple[Hit, ...], wanted: tuple[Hit, ...]) -> None:
    """Both lists have the same tiles in the same order, with the same cosines."""
    assert [(hit.slide, hit.tile) for hit in found] == [(hit.slide, hit.tile) for hit in wanted]
    np.testing.assert_allclose(
        [hit.similarity for hit in found], [hit.similarity for hit in wanted], atol=1e-6
    )


def sampled(slides: list[EmbeddedSlide], limit_bytes: int = PLENTY, dimension: int = D) -> Sample:
    """A sample that has been read."""
    sample = Sample(slides, dimension, limit_bytes)
    sample.build(threading.Event())
    return sample


def everything(slides: list[EmbeddedSlide], slide: int, tile: int) -> Found:
    """What a search of all tiles finds."""
    found = Search(slides, read_query(slides, slide, tile)).run()
    assert found is not None
    return found


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_both_searches_are_brute_force(tmp_path: Path, kind: str) -> None:
    slides = cohort(tmp_path, kind=kind)
    sample = sampled(slides)
    for slide, tile in ((0, 0), (7, 2), (22, 1)):
        wanted = brute_force(slides, slide, tile)
        for found in (
            sample.search(read_query(slides, slide, tile)),
            everything(slides, slide, tile),
        ):
            same(found.others, wanted.others)
            same(found.same_patient, wanted.same_patient)
            same(found.same_slide, wanted.same_slide)
            assert found.searched.whole
            assert found.searched.tiles == sum(one.tiles for one in slides)
            assert (found.searched.slides, found.searched.patients) == (30, 11)


def test_the_blocks_of_a_large_store_are_one_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("her2.viewer.similar.search.BLOCK_BYTES", 7 * 2 * D)
    slides = cohort(tmp_path)
    same(everything(slides, 4, 1).others, brute_force(slides, 4, 1).others)


def test_other_patients_come_first_with_few_tiles_of_each(tmp_path: Path) -> None:
    slides = cohort(tmp_path)
    found = everything(slides, 3, 0)
    own = slides[3].patient_id
    names = [slides[hit.slide].patient_id for hit in found.others]
    assert own not in names
    assert max(names.count(name) for name in names) == PER_PATIENT
    assert {slides[hit.slide].patient_id for hit in found.same_patient} == {own}
    assert 3 not in {hit.slide for hit in (*found.others, *found.same_patient)}
    assert {hit.slide for hit in found.same_slide} == {3}
    assert 0 not in {hit.tile for hit in found.same_slide}


def test_a_patient_is_the_same_in_every_cohort(tmp_path: Path) -> None:
    row = np.eye(D, dtype=np.float16)[:3]
    slides = [
        store(tmp_path, "a", row, "p1"),
        store(tmp_path, "b", row, "p1", "external:east"),
        store(tmp_path, "c", row, "p2"),
    ]
    found = everything(slides, 0, 0)
    assert [hit.slide for hit in found.same_patient] == [1, 1, 1]
    assert {hit.slide for hit in found.others} == {2}


@pytest.mark.parametrize("limit_bytes", [30 * 56, 200 * 56, 500 * 56, PLENTY])
def test_a_sample_stays_within_its_memory(tmp_path: Path, limit_bytes: int) -> None:
    slides = cohort(tmp_path)
    sample = sampled(slides, limit_bytes)
    assert sample.size_bytes <= limit_bytes
    assert sample.whole == (limit_bytes == PLENTY)
    found = sample.search(read_query(slides, 0, 0))
    assert found.searched.slides == 30
    assert found.searched.tiles == len(sample.rows)
    wanted = {(hit.slide, hit.tile): hit.similarity for hit in brute_force(slides, 0, 0).others}
    for hit in found.others:
        assert hit.similarity == pytest.approx(wanted.get((hit.slide, hit.tile), hit.similarity))


def test_less_memory_than_slides_samples_some_of_them(tmp_path: Path) -> None:
    slides = cohort(tmp_path)
    sample = sampled(slides, 10 * 56)
    assert len(sample.rows) == len(set(sample.slide.tolist())) == 10
    assert not sample.whole


def test_as_many_tiles_of_each_slide_as_fit() -> None:
    tiles = [10, 1000, 50]
    for memory in (3, 40, 130, 500, 1060):
        count = rows_per_slide(tiles, 100, memory * 208)
        assert sum(min(count, n) for n in tiles) <= memory
        assert count == max(tiles) or sum(min(count + 1, n) for n in tiles) > memory
    assert rows_per_slide(tiles, 100, 2 * 208) == 0


def test_a_sample_is_drawn_the_same_each_time(tmp_path: Path) -> None:
    slides = cohort(tmp_path)
    first, second = (sampled(slides, 100 * 56) for _ in range(2))
    np.testing.assert_array_equal(first.tile, second.tile)
    np.testing.assert_array_equal(first.rows, second.rows)
    drawn = [draw(one, 1000, 5).tolist() for one in slides]
    assert len({tuple(one) for one in drawn}) > 25  # each slide has tiles of its own


def test_tiles_without_a_direction_are_left_out_and_counted(tmp_path: Path) -> None:
    features = np.eye(D, dtype=np.float32)[:4]
    features[1] = 0
    slides = [store(tmp_path, "a", features), store(tmp_path, "b", features, "p2")]
    damage(slides[1], features[2], np.nan)
    for found in (sampled(slides).search(read_query(slides, 0, 0)), everything(slides, 0, 0)):
        assert found.searched.undefined == 3  # two zeros, one not finite
        assert [hit.tile for hit in found.others] == [0, 3]
        assert [hit.tile for hit in found.same_slide] == [2, 3]
    with pytest.raises(UserError, match="tile 1 is zero or not finite"):
        read_query(slides, 0, 1)
    with pytest.raises(UserError, match="tile 2 is zero or not finite"):
        read_query(slides, 1, 2)
    with pytest.raises(IndexError, match="tile 4; it has 4"):
        read_query(slides, 0, 4)


def damage(slide: EmbeddedSlide, row: NDArray[np.float32], value: float) -> None:
    """Replace a row of a store, which its writer would refuse; nobody reads its checksum."""
    path, wrong = slide.paths[0], np.full_like(row, value)
    content = path.read_bytes()
    assert content.count(row.tobytes()) == 1
    path.write_bytes(content.replace(row.tobytes(), wrong.tobytes()))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_large_and_small_features_have_the_same_cosine(scale: float) -> None:
    generator = np.random.default_rng(1)
    rows, query = generator.normal(size=(5, D)), generator.normal(size=D).astype(np.float32)
    wanted = cosine_similarity(query[None], rows)[0]
    np.testing.assert_allclose(cosines((rows * scale).astype(np.float32), query), wanted, atol=1e-6)
    np.testing.assert_allclose(
        cosines((rows * scale).astype(np.float32), query, precise=True), wanted, atol=1e-6
    )


def test_a_store_that_cannot_be_read_is_named_and_skipped(tmp_path: Path) -> None:
    slides = cohort(tmp_path, slides=12)
    slides[2].paths[0].unlink()
    slides[4].paths[0].write_bytes(b"no zip")
    slides[5] = store(tmp_path, "other", np.ones((3, D + 1), np.float16))
    content = slides[6].paths[0].read_bytes()
    slides[6].paths[0].write_bytes(content[: len(content) // 2])
    slides[7] = EmbeddedSlide("development", "swapped", "p", 9, "another key", slides[7].paths)
    for found in (sampled(slides).search(read_query(slides, 0, 0)), everything(slides, 0, 0)):
        skipped = found.searched.skipped
        assert sorted(skipped) == [2, 4, 5, 6, 7]
        assert "neither in the cache nor in the results" in skipped[2]
        assert "not a feature store" in skipped[4]
        assert f"has {D + 1} features per tile and not {D}" in skipped[5]
        assert "not a feature store" in skipped[6]
        assert "another key" in skipped[7]
        assert found.searched.slides == 7
        assert found.others


def test_a_store_that_is_replaced_after_the_sample_is_named(tmp_path: Path) -> None:
    slides = cohort(tmp_path, slides=6)
    sample = sampled(slides)
    slides[1].paths[0].unlink()
    found = sample.search(read_query(slides, 0, 0))
    assert list(found.searched.skipped) == [1]
    assert 1 not in {hit.slide for hit in found.others}


def test_a_search_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    slides = cohort(tmp_path)
    search = Search(slides, read_query(slides, 0, 0))
    search.cancelled.set()
    assert search.run() is None
    assert search.done == 0


def test_a_search_that_nobody_asks_about_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "ABANDONED_SECONDS", -1.0)
    slides = cohort(tmp_path)
    search = Search(slides, read_query(slides, 0, 0))
    assert search.run() is None
    assert search.cancelled.is_set()


def test_work_in_threads_stops_at_the_first_error_and_raises_it() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        done.append(number)
        if number == 3:
            raise ValueError("number 3")

    with pytest.raises(ValueError, match="number 3"):
        in_parallel(range(100_000), work, threading.Event())
    assert len(done) < 100_000


KNOWN = {
    "slide": {"level0_tile": [128.0, 96.0], "mpp": [0.5, 0.5], "size_px": [999, 999]},
    "target": {"px": 64, "mpp": 1.0},
}


@pytest.mark.parametrize(
    ("attributes", "box"),
    [
        (KNOWN, [10.0, 20.0, 138.0, 116.0]),
        ({**KNOWN, "given": {"positions": True}}, [10.0, 20.0, 138.0, 116.0]),
        ({**KNOWN, "given": {"positions": False}}, None),
        ({**KNOWN, "slide": {**KNOWN["slide"], "level0_tile": None}}, None),
        ({}, None),
    ],
)
def test_a_tile_has_a_place_where_its_features_tell_it(
    tmp_path: Path, attributes: dict[str, object], box: list[float] | None
) -> None:
    features, path = np.ones((2, D), np.float16), tmp_path / "a.zarr.zip"
    coords = np.array([[0, 0], [10, 20]], np.int32)
    write_rows(
        path, [features], features.shape, features.dtype, coords, lambda: {"key": "a", **attributes}
    )
    slide = EmbeddedSlide("development", "a", "p", 2, "a", (path,))
    assert box_of(slide, 1) == box
    assert box_of(slide, 2) is None  # the store was replaced by a smaller one
    path.unlink()
    assert box_of(slide, 1) is None


# What is kept while pages ask


class Jobs:
    """The searches of a viewer without a run: encoder -> its slides."""

    def __init__(self, slides: dict[str, list[EmbeddedSlide]], **options: int) -> None:
        self.slides = slides
        self.similar = SimilarTiles(Viewer(None, None, None, None), **options)

    def find(self, _: Viewer, encoder: str) -> EmbeddedSlides:
        return EmbeddedSlides(tuple(self.slides[encoder]), ())

    def sample(self, encoder: str) -> Building:
        made = self.similar.sample(encoder, self.slides[encoder][0].open())
        assert made.ready.wait(20)
        return made


def jobs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, encoders: str = "a", **options: int
) -> Jobs:
    made = {}
    for encoder in encoders:
        (folder / encoder).mkdir()
        made[encoder] = cohort(folder / encoder, slides=8)
    found = Jobs(made, **options)
    monkeypatch.setattr("her2.viewer.similar.jobs.stored_slides", found.find)
    return found


def test_samples_of_all_encoders_share_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = jobs(tmp_path, monkeypatch, "abc", limit_bytes=100 * 56)
    first = found.sample("a")
    assert found.sample("a") is first
    second = found.sample("b")
    assert first.sample.size_bytes + second.sample.size_bytes > 100 * 56
    assert second.problem is None
    assert found.sample("a") is not first  # it had to make room


def test_small_samples_are_kept_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = jobs(tmp_path, monkeypatch, "abc")
    made = {encoder: found.sample(encoder) for encoder in "abc"}
    assert all(found.sample(encoder) is made[encoder] for encoder in "abc")


def test_a_sample_that_failed_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = jobs(tmp_path, monkeypatch)

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(Sample, "build", fail)
        assert found.sample("a").problem == "no room"
    assert found.sample("a").problem is None


def test_few_searches_run_at_once_and_each_can_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, held = jobs(tmp_path, monkeypatch), threading.Event()
    query = read_query(found.slides["a"], 0, 0)
    with monkeypatch.context() as slow:
        slow.setattr(searches, "best_of", lambda *_: held.wait(20) and None)
        running = [found.similar.begin("a", query, None) for _ in range(2)]
        with pytest.raises(UserError, match="2 searches of all tiles run already"):
            found.similar.begin("a", query, None)
        for one in running:
            assert found.similar.search(one.number) is one
            one.search.cancelled.set()
        held.set()
        assert all(one.ended.wait(20) for one in running)
    assert [one.found for one in running] == [None, None]
    again = found.similar.begin("a", query, None)
    assert again.ended.wait(20)
    assert again.found is not None
    with pytest.raises(NotThereError):
        found.similar.search("99")


def test_only_the_latest_searches_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = jobs(tmp_path, monkeypatch)
    query = read_query(found.slides["a"], 0, 0)
    for _ in range(20):
        made = found.similar.begin("a", query, None)
        assert made.ended.wait(20)
    assert found.similar.search(made.number) is made
    with pytest.raises(NotThereError):
        found.similar.search("1")
