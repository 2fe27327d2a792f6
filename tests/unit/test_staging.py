import errno
import logging
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from her2.core.errors import SlideError, UserError
from her2.embedding.reading import PendingSlide, TileGroup, TileQueue, read_part
from her2.slides import staging
from her2.slides.backends import slide_files
from her2.slides.slide import Slide
from her2.slides.staging import PREFIX, scratch_folder, staged
from her2.storage.spool import RowSpool
from her2.storage.tiles import TileTable
from tests.dicom import write_dicom
from tests.mirax import write_mirax
from tests.unit.tile_makers import slide_facts, tile_grid
from tests.vms import write_vms

Usage = namedtuple("Usage", "total used free")
PICTURE = np.random.default_rng(5).integers(0, 256, (256, 384, 3), np.uint8)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that counts as another disk than the slides'."""
    monkeypatch.setattr(staging, "_same_disk", lambda *_: False)
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def slides(drawn_slide: Path, tmp_path: Path) -> list[Path]:
    folder = tmp_path / "network"
    folder.mkdir()
    return [Path(shutil.copy(drawn_slide, folder / f"{name}.svs")) for name in "abc"]


def copies(scratch: Path) -> set[str]:
    return {path.name for path in scratch.rglob("*.svs")}


def settle(stage: staging.Stager) -> None:
    """Wait until the current copy is finished."""
    for future in stage._copies.values():
        future.result()


def test_a_slide_is_read_from_its_copy_and_the_copy_goes_when_it_is_closed(
    slides: list[Path], scratch: Path
) -> None:
    with staged(str(scratch), slides[:1]) as stage:
        slide = stage.open(slides[0])
        assert slide.path.is_relative_to(scratch)
        assert slide.path.name == slides[0].name
        with Slide(slides[0]) as original:
            region = (100.0, 100.0, 200.0, 200.0, (64, 64))
            np.testing.assert_array_equal(slide.region(*region), original.region(*region))
        slide.close()
        assert copies(scratch) == set()
    assert list(scratch.iterdir()) == []
    assert all(path.exists() for path in slides)


def test_the_next_slide_is_copied_while_one_is_read_and_no_more(
    slides: list[Path], scratch: Path
) -> None:
    with staged(str(scratch), slides) as stage:
        first = stage.open(slides[0])
        settle(stage)
        assert copies(scratch) == {"a.svs", "b.svs"}
        first.close()
        stage.open(slides[1])
        settle(stage)
        assert copies(scratch) == {"b.svs", "c.svs"}
    assert list(scratch.iterdir()) == []  # also of those that were not closed


def test_a_full_scratch_disk_is_named_and_the_slide_read_where_it_lies(
    slides: list[Path], scratch: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, staging.RESERVE_BYTES))
    with staged(str(scratch), slides) as stage, caplog.at_level(logging.WARNING):
        assert stage.open(slides[0]).path == slides[0]
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "a.svs: read in place" in record.message
    assert str(scratch) in record.message
    assert "0.0 GB free" in record.message


def test_room_that_comes_back_is_used(
    slides: list[Path], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [10**12, 0, 10**12, 0]  # of a; ahead of b; again, when a is closed; ahead of c
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, free.pop(0)))
    with staged(str(scratch), slides) as stage:
        first = stage.open(slides[0])
        settle(stage)
        assert copies(scratch) == {"a.svs"}
        first.close()
        assert stage.open(slides[1]).path.is_relative_to(scratch)


def test_a_copy_that_breaks_off_leaves_nothing_and_says_why(
    slides: list[Path], scratch: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:100])
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(shutil, "copyfile", half)
    with staged(str(scratch), slides[:1]) as stage, caplog.at_level(logging.WARNING):
        assert stage.open(slides[0]).path == slides[0]
        assert copies(scratch) == set()
    assert "Disk quota exceeded" in caplog.text


def test_a_slide_on_the_scratch_disk_itself_is_not_copied(
    slides: list[Path], tmp_path: Path
) -> None:
    with staged(str(tmp_path), slides) as stage:
        assert stage.open(slides[0]).path == slides[0]


def test_a_missing_slide_fails_as_it_does_without_a_stage(
    slides: list[Path], scratch: Path
) -> None:
    slides[0].unlink()
    with (
        staged(str(scratch), slides) as stage,
        pytest.raises(SlideError, match="the file does not exist"),
    ):
        stage.open(slides[0])


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_vms(folder / "a.vms", PICTURE),
        lambda folder: write_mirax(folder / "a.mrxs", PICTURE, mpp=0.5),
        lambda folder: write_dicom(folder / "a.dcm", PICTURE, mpp=0.5),
    ],
)
def test_a_slide_of_several_files_is_copied_whole(scratch: Path, tmp_path: Path, write) -> None:
    (tmp_path / "network").mkdir()
    path = write(tmp_path / "network")
    with Slide(path) as original:
        expected = original.region(10, 20, 200, 200, (200, 200))
    files = {file.relative_to(path.parent) for file in slide_files(path)}
    with staged(str(scratch), [path]) as stage, stage.open(path) as slide:
        copy = slide.path.parent
        assert copy.is_relative_to(scratch)
        assert {file.relative_to(copy) for file in copy.rglob("*") if file.is_file()} == files
        shutil.rmtree(path.parent)  # it needs nothing of the original
        np.testing.assert_array_equal(slide.region(10, 20, 200, 200, (200, 200)), expected)


def test_a_slide_of_several_files_that_lacks_one_fails_with_the_files_name(
    slides: list[Path], scratch: Path, tmp_path: Path
) -> None:
    index = write_vms(tmp_path / "a.vms", PICTURE)
    (tmp_path / "a_map2.jpg").unlink()
    with staged(str(scratch), [slides[0], index]) as stage:
        stage.open(slides[0]).close()
        with pytest.raises(SlideError, match="a.vms names a_map2.jpg, missing in its folder"):
            stage.open(index)


def test_what_a_killed_job_left_is_removed_and_a_running_jobs_copies_are_not(
    slides: list[Path], scratch: Path
) -> None:
    code = f"""if True:
        from pathlib import Path
        from her2.slides import staging
        staging._same_disk = lambda *_: False
        slides = [Path({str(slides[0])!r})]
        with staging.staged({str(scratch)!r}, slides) as stage:
            stage.open(slides[0])
            print("open", flush=True)
            input()
    """
    job = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert job.stdout.readline() == "open\n"
    with staged(str(scratch), []):
        assert copies(scratch) == {"a.svs"}  # it still runs
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert copies(scratch) == {"a.svs"}
    with staged(str(scratch), []):
        assert copies(scratch) == set()


def test_variables_are_those_of_the_machine_that_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    assert scratch_folder("$NODE_DISK") == tmp_path
    monkeypatch.delenv("NODE_DISK")
    with pytest.raises(UserError, match=r"embedding.scratch: '\$NODE_DISK'"):
        scratch_folder("$NODE_DISK")
    with pytest.raises(UserError, match="not a writable folder"):
        scratch_folder(str(tmp_path / "nowhere"))


def test_tiles_cut_from_copies_are_the_same_tiles(slides: list[Path], scratch: Path) -> None:
    facts, grid = slide_facts(width_px=768, height_px=768), tile_grid(64, 128.0, mpp=1.0)
    corners = np.array([(0, 0), (128, 128), (256, 256)], np.int32)
    table = TileTable(corners, np.ones(3, np.float32), facts, grid)
    cut = [
        [
            (group.slide.slide_id, group.rows.tolist(), group.images.tobytes())
            for group in cut_all(pendings(slides, table), folder)
        ]
        for folder in (None, str(scratch))
    ]
    assert [name for name, *_ in cut[0]] == ["a", "b", "c"]
    assert cut[0] == cut[1]
    assert list(scratch.glob(f"{PREFIX}*")) == []


def cut_all(slides: list[PendingSlide], folder: str | None) -> Iterator[TileGroup]:
    feed = TileQueue(slides)
    with staged(folder, feed.paths) as stage:
        for slide in slides:
            slide.stager = stage
        while parts := feed.take(3, across=False):
            yield read_part(*parts[0], np.empty((3, 64, 64, 3), np.uint8))


def pendings(slides: list[Path], table: TileTable) -> list[PendingSlide]:
    return [
        PendingSlide(path.stem, path, table, "key", RowSpool(3, 2, "float16", path.parent))
        for path in slides
    ]
