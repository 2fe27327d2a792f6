"""Stage 2, train: what a killed job goes on from, written after every epoch.

One safetensors file: the tensors of the model, of its best epoch and of the optimiser, and the
history as JSON in the header. Random numbers are drawn from (seed, epoch), so no generator's state
is needed; nothing is pickled. The file is not synced to the disk, which on a busy one takes longer
than an epoch: a killed process loses nothing, and what a power cut tears is known by its checksum.
"""

import json
import logging
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from her2.config import Select
from her2.core.files import atomic_path
from her2.mil.selection import TuneFigures

log = logging.getLogger(__name__)

_DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError)
"""What reading a damaged or foreign checkpoint raises."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of a fold's history; `train_loss` is a mean cross-entropy a slide.

    `learning_rate` is that of the epoch's last step (0 for a fit that has none).
    """

    epoch: int
    learning_rate: float
    train_loss: float
    tune: TuneFigures

    def row(self) -> dict[str, float]:
        """As a row of `history.parquet`."""
        own = {key: value for key, value in asdict(self).items() if key != "tune"}
        return own | {f"tune_{key}": value for key, value in self.tune.row().items()}


@dataclass
class FoldState:
    """How far a fold's training has come."""

    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)

    def add(self, epoch: Epoch, model: nn.Module, *, select: Select, keep_last: bool) -> None:
        """Note an epoch, and keep its weights when it is the best so far."""
        self.history.append(epoch)
        best = self.history[self.best_epoch].tune.rank(select)
        if keep_last or len(self.history) == 1 or epoch.tune.rank(select) > best:
            self.best_epoch = epoch.epoch
            self.best_state = {name: t.detach().clone() for name, t in model.state_dict().items()}

    def finished(self, epochs: int, patience: int | None) -> bool:
        """Whether no epoch is left, or `patience` of them were no better than the best."""
        done = len(self.history)
        stale = patience is not None and done > 0 and done - 1 - self.best_epoch >= patience
        return done >= epochs or stale


def save_checkpoint(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, progress: FoldState
) -> None:
    """Replace the checkpoint by one of now."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in progress.best_state.items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{name}": tensor for name, tensor in state.items()}
    facts = {
        "history": [asdict(epoch) | {"tune": epoch.tune.row()} for epoch in progress.history],
        "best_epoch": progress.best_epoch,
    }
    # The optimiser counts steps on the CPU, and save_file wants tensors of their own.
    values = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"progress": json.dumps(facts), "checksum": str(_checksum(values))}
    with atomic_path(path, sync=False) as temporary:
        safetensors.torch.save_file(values, temporary, metadata=metadata)


def load_checkpoint(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer
) -> FoldState | None:
    """Put model and optimiser where a killed job left them; None (and no change) without one.

    A damaged checkpoint is said aloud and not used.
    """
    if not path.exists():
        return None
    device = next(model.parameters()).device
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as stream:
            facts = json.loads(stream.metadata()["progress"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            if str(_checksum(tensors)) != stream.metadata()["checksum"]:
                raise ValueError("it is torn")
        progress = FoldState(
            history=[
                Epoch(**{**fields, "tune": TuneFigures.from_row(fields["tune"])})
                for fields in facts["history"]
            ],
            best_epoch=facts["best_epoch"],
            best_state=_under("best/", tensors),
        )
        weights, states = _under("model/", tensors), _optimiser_states(tensors)
        # Before anything is copied: half a model would be worse than none.
        shapes = [
            {name: (t.shape, t.dtype) for name, t in found.items()}
            for found in (model.state_dict(), weights, progress.best_state)
        ]
        if shapes[0] != shapes[1] or shapes[0] != shapes[2] or not progress.history:
            raise ValueError("it is of another model")
        model.load_state_dict(weights)
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": states, "param_groups": groups})
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        safetensors.SafetensorError,
    ) as error:
        log.warning("the checkpoint %s cannot be used (%s); training begins anew", path, error)
        return None
    return progress


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].cpu().numpy().tobytes(), zlib.crc32(name.encode(), total))
    return total


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _optimiser_states(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Any]]:
    states: dict[int, dict[str, Any]] = {}
    for name, tensor in _under("optimiser/", tensors).items():
        index, key = name.split("/")
        states.setdefault(int(index), {})[key] = tensor
    return states
