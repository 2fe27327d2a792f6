"""Checkpoint from which a killed job resumes, written after every epoch.

It is a safetensors file with the tensors of the model, of its best epoch and of the optimiser, and
with the history as JSON in the header. Nothing is pickled. Random numbers are drawn from
(seed, epoch), so the state of a generator is not needed. By default the file is not synced to the
disk, because on a busy disk that takes longer than a short epoch. A killed process still loses
nothing, and a file torn by a power cut is recognised by its checksum.
"""

import json
import logging
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from her2.core.files import atomic_path
from her2.training.state import TrainingState

log = logging.getLogger(__name__)

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Checkpoint(Generic[E]):
    """The checkpoint file of one training.

    `epoch_type` is the dataclass of its history. `identity` stands for everything the training
    depends on beyond what the path tells; a checkpoint with another identity is not resumed from.
    `sync` forces the file to the disk at once.
    """

    path: Path
    epoch_type: type[E]
    identity: str = ""
    sync: bool = False

    def save(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, state: TrainingState[E]
    ) -> None:
        """Replace the file by one with the current state."""
        tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in state.best_state.items()}
        for index, values in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{index}/{name}": tensor for name, tensor in values.items()}
        facts = {
            "identity": self.identity,
            "history": [asdict(epoch) for epoch in state.history],  # type: ignore[call-overload]
            "best_epoch": state.best_epoch,
        }
        # save_file refuses tensors that share memory, as tied weights do; hence the copies.
        copies = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        text = json.dumps(facts)
        metadata = {"state": text, "checksum": str(_checksum(copies, text))}
        with atomic_path(self.path, sync=self.sync) as temporary:
            safetensors.torch.save_file(copies, temporary, metadata=metadata)

    def load(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> TrainingState[E]:
        """Restore model and optimiser to the state in which a killed job left them.

        Without a file, or with one that is damaged, of an older version or of another training,
        the returned state is empty and nothing is changed. The reason is logged.
        """
        if not self.path.exists():
            return TrainingState()
        try:
            state = self._restore(model, optimiser)
        except Exception as error:  # of a file that is damaged or that somebody else made
            log.warning(
                "the checkpoint %s cannot be used (%s); training starts over", self.path, error
            )
            return TrainingState()
        log.info("resuming after %d epochs, from %s", len(state.history), self.path)
        return state

    def _restore(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> TrainingState[E]:
        with safetensors.safe_open(self.path, framework="pt") as stream:
            text = stream.metadata()["state"]
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            checksum = stream.metadata()["checksum"]
        if str(_checksum(tensors, text)) != checksum:
            raise ValueError("its checksum does not match")
        facts = json.loads(text)
        if facts["identity"] != self.identity:
            raise ValueError("it was written with other data or settings")
        state = TrainingState(
            TypeAdapter(list[self.epoch_type]).validate_python(facts["history"]),  # type: ignore[name-defined]
            facts["best_epoch"],
            _under("best/", tensors),
        )
        weights = _under("model/", tensors)
        # Compare everything before copying anything, so that no model is restored in part.
        shapes = [
            {name: (t.shape, t.dtype) for name, t in found.items()}
            for found in (model.state_dict(), weights, state.best_state)
        ]
        if shapes[0] != shapes[1] or shapes[0] != shapes[2] or not state.history:
            raise ValueError("it belongs to another model")
        model.load_state_dict(weights)
        groups = optimiser.state_dict()["param_groups"]
        states = _optimiser_states(tensors)
        optimiser.load_state_dict({"state": states, "param_groups": groups})
        return state


def _checksum(tensors: Mapping[str, Tensor], text: str) -> int:
    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        values = tensors[name].reshape(-1).view(torch.uint8).numpy().data
        total = zlib.crc32(values, zlib.crc32(name.encode(), total))
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
