"""Order and errors of embedding on a CUDA device, tested on a stand-in without a device.

Where there is a GPU, `test_a_gpu_gives_the_features_of_the_cpu` of test_embed.py runs it.
"""

import contextlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from her2.core.errors import SlideError, TileError, UserError
from her2.embedding import reading, run, session
from her2.embedding.cuda import READ_GROUP, run_on_cuda
from her2.embedding.reading import PendingSlide, TileQueue
from her2.embedding.session import Embedder
from her2.storage.spool import RowSpool
from her2.storage.tiles import TileTable
from tests.unit.tile_makers import slide_facts, tile_grid

SIZE, DIMENSION = 16, 3


class Event:
    """An event of a device that does everything immediately."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.recorded = False

    def record(self, stream: object) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded

    def elapsed_time(self, other: "Event") -> float:
        return 250.0  # ms


class FakeSlide:
    """A slide whose pixels are column, row and slide number; its tile at (0, 0) can be damaged."""

    reader = "fake"

    def __init__(self, path: Path) -> None:
        if path.name == "absent":
            raise SlideError("the file does not exist")
        self.number = int(path.name)

    def region(self, x: float, y: float, *_: object, scanned: bool) -> np.ndarray:
        if self.number == 2 and x == y == 0:
            raise TileError("damaged")
        return np.full((SIZE, SIZE, 3), (x / SIZE, y / SIZE, self.number), np.uint8)

    def decode_directly(self, *_: object) -> bool:
        return False

    def close(self) -> None:
        pass


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "Slide", FakeSlide)
    for name, value in {
        "Stream": lambda _: SimpleNamespace(),
        "Event": Event,
        "current_stream": lambda _: SimpleNamespace(wait_stream=lambda _: None),
        "stream": lambda _: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(run, "run_on_cpu", run_on_cuda)
    monkeypatch.setattr(
        session,
        "read_encoder",
        lambda _: (encoder(), SimpleNamespace(patch_px=SIZE, storage="float32")),
    )
    monkeypatch.setattr(session, "prepare", lambda made, *_: made)


def encoder() -> torch.nn.Module:
    class Corner(torch.nn.Module):
        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            assert patches.dtype == torch.uint8
            return patches[:, 0, 0, :].float()

    return Corner()


def pending(name: str, columns: int, rows: int) -> PendingSlide:
    y, x = np.mgrid[:rows, :columns].reshape(2, -1)
    coords = np.stack([x, y], 1).astype(np.int32) * SIZE
    table = TileTable(coords, np.ones(x.size), slide_facts(), tile_grid(SIZE))
    return PendingSlide(
        name, Path(name), table, name, RowSpool(x.size, DIMENSION, "float32", Path())
    )


def embedded(
    slides: list[PendingSlide], batch_size: int, threads: int = 3
) -> dict[str, np.ndarray]:
    """Return the published rows by slide."""
    found: dict[str, np.ndarray] = {}

    def publish(slide: PendingSlide, pace: object) -> None:
        found[slide.slide_id] = np.concatenate([*slide.spool.blocks(slide.readable)])

    device = torch.device("cpu")
    made = Embedder(
        Path(), device, "float32", batch_size=batch_size, threads=threads, compiling="never",
        publish=publish,
    )  # fmt: skip
    run.embed_slides(made, slides)
    return found


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("batch_size", [1, 7, READ_GROUP, 64, 1000])
def test_every_tile_of_every_slide_lands_in_its_row(batch_size: int) -> None:
    slides = [pending("1", 9, 5), pending("3", 4, 4), pending("7", 1, 1), pending("9", 20, 11)]
    found = embedded(slides, batch_size)
    assert set(found) == {"1", "3", "7", "9"}
    for slide in slides:
        expected = np.column_stack(
            [slide.table.coords / SIZE, np.full(len(slide.table), int(slide.slide_id))]
        )
        np.testing.assert_array_equal(found[slide.slide_id], expected)


@pytest.mark.usefixtures("stand_in")
def test_what_cannot_be_read_is_left_out_and_the_rest_lands() -> None:
    slides = [pending("2", 5, 5), pending("absent", 3, 3), pending("4", 3, 3)]
    found = embedded(slides, 8)
    assert len(found["2"]) == 24
    assert (slides[0].readable == [False] + [True] * 24).all()
    assert slides[1].error == "the file does not exist"
    assert len(found["absent"]) == 0
    assert len(found["4"]) == 9


@pytest.mark.usefixtures("stand_in")
def test_the_device_s_time_is_shared_out_to_the_slides() -> None:
    slides = [pending("1", 8, 8), pending("3", 4, 4)]
    embedded(slides, 16)
    # 80 tiles in 5 batches of 0.25 s, and as much between them.
    assert sum(slide.seconds["encoding"] for slide in slides) == pytest.approx(5 * 0.25)
    assert sum(slide.seconds["waiting"] for slide in slides) == pytest.approx(4 * 0.25)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("where", ["reader", "device", "writer"])
def test_an_error_anywhere_ends_the_job(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UserError(f"the {where} failed")

    target = {
        "reader": (FakeSlide, "region"),
        "device": (Embedder, "encode"),
        "writer": (RowSpool, "blocks"),
    }[where]
    monkeypatch.setattr(*target, fail)
    with pytest.raises(UserError, match=f"the {where} failed"):
        embedded([pending("1", 40, 40), pending("3", 4, 4)], 8)


def test_the_feed_is_what_readers_share() -> None:
    queue = TileQueue([pending("1", 3, 3)])
    assert queue.paths == [Path("1")]
