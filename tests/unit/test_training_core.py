"""Parts that both trainings share: checkpoints, patience, prefetching."""

import math
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from her2.training.checkpoint import Checkpoint
from her2.training.loop import train_epochs
from her2.training.prefetch import Prefetch
from her2.training.schedule import factor
from her2.training.state import TrainingState


@dataclass(frozen=True)
class Figures:
    loss: float
    auc: float


@dataclass(frozen=True)
class Line:
    epoch: int
    figures: Figures


class Tied(nn.Module):
    """A model with two layers that share a channels-last weight, and an integer counter."""

    steps: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 3, 2)
        self.two = nn.Conv2d(3, 3, 2)
        self.two.weight = self.one.weight
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x))


def made() -> tuple[Tied, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Tied()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train(
    model: Tied, optimiser: torch.optim.Optimizer, checkpoint: Checkpoint[Line], epochs: int
) -> TrainingState[Line]:
    def run_epoch(epoch: int) -> Line:
        torch.manual_seed(epoch)
        loss = model(torch.randn(4, 3, 5, 5)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.steps += 1
        return Line(epoch, Figures(loss.item(), math.nan))

    return train_epochs(
        model,
        optimiser,
        run_epoch,
        rank=lambda line: (-line.figures.loss,),
        epochs=epochs,
        patience=None,
        checkpoint=checkpoint,
    )


def test_a_resumed_training_ends_with_the_bits_of_a_whole_one(tmp_path: Path) -> None:
    whole, optimiser = made()
    expected = train(whole, optimiser, Checkpoint(tmp_path / "whole", Line), 7)
    for epochs in (2, 3, 7):  # each time in a new process, as it were
        resumed, optimiser = made()
        found = train(resumed, optimiser, Checkpoint(tmp_path / "parts", Line), epochs)
    assert repr(found.history) == repr(expected.history)  # NaN is no equal of itself
    assert found.best_epoch == expected.best_epoch
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert resumed.steps.item() == expected.best_epoch + 1


def test_a_checkpoint_of_another_training_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimiser = made()
    train(model, optimiser, Checkpoint(tmp_path / "c", Line, "data A"), 2)
    other, optimiser = made()
    found = Checkpoint(tmp_path / "c", Line, "data B").load(other, optimiser)
    assert found.history == []
    assert "it was written with other data or settings" in caplog.text
    assert torch.equal(other.one.weight, made()[0].one.weight)


@pytest.mark.parametrize(
    ("losses", "patience", "trained", "best"),
    [
        ([3, 2, 1, 4, 5, 6, 0], 3, 6, 2),
        ([3, 2, 1, 4, 5, 6, 0], None, 7, 6),
        ([1, 1, 1, 1], 2, 3, 0),  # of equals the first stays
        ([math.nan, 1, 1, 1], 2, 3, 0),  # nothing is better than what is not defined
    ],
)
def test_patience_counts_epochs_without_a_better_one(
    losses: list[float], patience: int | None, trained: int, best: int
) -> None:
    model, optimiser = made()
    state = train_epochs(
        model,
        optimiser,
        lambda epoch: losses[epoch],
        rank=lambda loss: (-loss,),
        epochs=len(losses),
        patience=patience,
        checkpoint=None,
    )
    assert (len(state.history), state.best_epoch) == (trained, best)


def test_without_a_rank_the_last_epoch_is_kept() -> None:
    model, optimiser = made()
    state = train_epochs(
        model, optimiser, float, rank=None, epochs=3, patience=None, checkpoint=None
    )
    assert state.best_epoch == 2


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_come_in_order_whichever_is_ready_first(threads: int) -> None:
    later = threading.Event()

    def load(number: int) -> int:
        if threads > 1 and number == 0:
            assert later.wait(10)  # the second batch is made before the first
        if number == 1:
            later.set()
        return number

    batches = Prefetch(load, 9, ahead=2 * threads, threads=threads)
    assert len(batches) == 9
    assert list(batches) == list(range(9))


def test_a_rate_is_the_peak_where_the_rise_ends_and_the_cosine_begins() -> None:
    rates = [factor(t, rise=11, decay_from=10, total=110) for t in range(110)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1
    assert rates[60] == pytest.approx(0.5)
    assert max(rates[:10]) < 1
    assert max(rates[11:]) < 1
