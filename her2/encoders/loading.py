"""Stage 1, encoder: a backbone's weights from a file of somebody else, which is not trusted.

Nothing in the file is run, and what it declares is compared with what it holds before memory is
spent on it.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from her2.config.catalogue import CatalogueRow
from her2.core.errors import UserError, first_line, problem_list
from her2.core.reading import path_problem
from her2.encoders.untrusted import (
    inflated,
    more_than_tensors,
    torch_reason,
    type_name,
    valueless,
)
from her2.encoders.weights import weights_for

log = logging.getLogger(__name__)

WEIGHTS_BYTES = 64 << 30
"""Largest weights file that is read; the largest of the catalogue has 5 GB."""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "student", "encoder")
_DEEPEST = 8
"""Wrappers that are looked into, one inside the other; a dict may also contain itself."""
_PREFIXES = ("module.", "backbone.", "model.", "encoder.", "_orig_mod.")


def load_weights(backbone: nn.Module, path: Path, row: CatalogueRow | None = None) -> None:
    """Load a backbone's weights from a local file; a classifier's weights in it are left out.

    The file is .safetensors, or a torch file that holds only tensors. The catalogue `row` of these
    weights tells how the file names its tensors.

    Raises:
        UserError: the file is unreadable, holds more than tensors, belongs to another architecture
            or has values that no network can have (the first of them are named).
    """
    state = _read_tensors(path)
    if row is None or row.layout == "timm":
        state = _strip_prefixes(state, backbone)
    if row is not None:
        try:
            state = weights_for(row, state, backbone)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:  # of other shapes
            raise UserError(
                f"{path}: does not hold the weights of {row.name} ({first_line(error)})."
            ) from None
    expected = backbone.state_dict()
    problems = [f"{name}: missing" for name in expected if name not in state]
    given = {name: (state[name], own) for name, own in expected.items() if name in state}
    problems += [f"{name}: {why}" for name, pair in given.items() if (why := _misfit(*pair))]
    if problems:
        raise problem_list(
            f"{path}: does not fit the architecture ({len(problems)} of {len(expected)} tensors)",
            problems,
            limit=8,
        )
    lost = {name: count for name, pair in given.items() if (count := _not_finite(*pair))}
    if lost:
        raise problem_list(
            f"{path}: has values that are not finite, so that every feature would be NaN. The file "
            "is damaged, or its training failed: download it again, or take another epoch",
            [
                f"{name}: {count:,} of {state[name].numel():,} values"
                for name, count in lost.items()
            ],
            limit=8,
        )
    unused = sorted(set(state) - set(expected))
    if unused:
        log.warning("%s: %d tensors not used: %s", path, len(unused), ", ".join(unused[:8]))
    backbone.load_state_dict({name: state[name] for name in expected})


def _misfit(found: Tensor, expected: Tensor) -> str | None:
    """Return why a tensor cannot take the place of the architecture's own."""
    if found.shape != expected.shape:
        return f"shape {tuple(found.shape)}, the architecture has {tuple(expected.shape)}"
    if found.is_complex() or (expected.is_floating_point() and not found.is_floating_point()):
        return f"type {type_name(found.dtype)}, the architecture has {type_name(expected.dtype)}"
    return None


def _not_finite(found: Tensor, expected: Tensor) -> int:
    """Count the values that are not finite in the architecture's type, where its own are."""
    if not expected.is_floating_point():
        return 0
    return int((~torch.isfinite(found.to(expected.dtype)) & torch.isfinite(expected)).sum())


def _read_tensors(path: Path) -> dict[str, Tensor]:
    problem = path_problem(path, limit_bytes=WEIGHTS_BYTES) or inflated(path)
    if problem is not None:
        raise UserError(f"{path}: {problem}.")
    try:
        if path.suffix == ".safetensors":
            values: Any = safetensors.torch.load_file(path)
        else:
            values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises any type of error on bytes that are no weights
        raise UserError(_refusal(path, error)) from None
    for _ in range(_DEEPEST):
        if not isinstance(values, dict):
            break
        inner = next((values[n] for n in _WRAPPERS if isinstance(values.get(n), dict)), None)
        if inner is None:
            break
        values = inner
    found = values if isinstance(values, dict) else {}
    tensors = {
        name: value
        for name, value in found.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise UserError(f"{path}: holds no named tensors; save a state_dict.")
    problems = [f"{name}: {why}" for name, one in tensors.items() if (why := valueless(one))]
    if problems:
        raise problem_list(
            f"{path}: holds tensors that are no plain arrays of numbers; save the state_dict of "
            "the network itself, in full and on the CPU",
            problems,
            limit=8,
        )
    return tensors


def _refusal(path: Path, error: Exception) -> str:
    """Return why torch or safetensors refused a file, without their advice to load it unsafely."""
    if (code := more_than_tensors(path, error)) is not None:
        return (
            f"{path}: {code}, and code in a weights file is never run. Save its state_dict as "
            ".safetensors."
        )
    return (
        f"{path}: is not a weights file ({torch_reason(path, error)}). Download it again, or give "
        "its state_dict."
    )


def _strip_prefixes(state: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Remove the prefixes, such as `module.`, that training wrappers put before every name."""
    expected = set(backbone.state_dict())
    found = dict(state)
    while not expected & set(found):
        prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in found)), None)
        if prefix is None:
            break
        found = {n.removeprefix(prefix): t for n, t in found.items() if n.startswith(prefix)}
    return found
