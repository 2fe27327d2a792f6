"""Stage 1, encoder: a backbone's weights from a file of somebody else, which is not trusted.

Nothing in the file is run, and what it declares is compared with what it holds before memory is
spent on it.
"""

import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from her2.config.catalogue import CatalogueRow
from her2.core.errors import UserError, first_line, problem_list
from her2.core.reading import path_problem
from her2.encoders.naming import Prefixed, by_name, by_order, shown
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

_WRAPPERS = (
    "state_dict", "model_state_dict", "model", "teacher", "student", "encoder", "module",
    "backbone",
)  # fmt: skip
_CLASSIFIERS = frozenset({
    "classifier", "decoder", "fc", "head", "head_dist", "heads", "last_linear", "linear", "logits",
})  # fmt: skip
_TOKENS = frozenset({"cls_token", "dist_token", "pos_embed", "reg_token", "register_tokens"})
"""Tensors of no module that change what a transformer computes."""
_DEEPEST = 8
"""Wrappers that are looked into, one inside the other; a dict may also contain itself."""
_NAMED = 8
"""Tensors that an error names."""


class Converted(Protocol):
    """What a library does with the file that it publishes (`her2.libraries.Library.converted`)."""

    def __call__(
        self, state: Mapping[str, Tensor], architecture: str, backbone: nn.Module
    ) -> tuple[dict[str, Tensor], list[str]]: ...


def load_weights(
    backbone: nn.Module,
    path: Path,
    row: CatalogueRow | None = None,
    *,
    converted: Converted | None = None,
) -> dict[str, Any]:
    """Load a backbone's weights from a local file; a classifier's weights in it are left out.

    The file is .safetensors, or a torch file that holds only tensors. The catalogue `row` of these
    weights tells how the file names its tensors. Otherwise the names are the architecture's, maybe
    after wrappers and prefixes of training code; or none is, and the order decides
    (`her2.encoders.naming` says when).

    Returns:
        What was done to find the tensors, for the card; empty if they were there by their names.

    Raises:
        UserError: the file is unreadable, holds more than tensors, belongs to another architecture
            or has values that no network can have (the first of them are named).
    """
    state, inside = _read_tensors(path)
    expected = backbone.state_dict()
    done: dict[str, Any] = {"inside": ".".join(inside)} if inside else {}
    headline = f"{path}: does not fit the architecture"
    head: list[str] = []
    if converted is not None:
        assert row is not None
        state, head, headline = _as_published(converted, row, state, backbone, path)
    elif row is None or row.layout == "timm":
        named, rivals = by_name(state, expected)
        if rivals:
            log.warning(
                "%s: the tensors under %r are taken; there are others of the same names under %s",
                path, named.prefix, ", ".join(map(repr, rivals)),
            )  # fmt: skip
        if row is None and expected and not set(expected) & set(named.state):
            named, why = by_order(state, expected, path)
            if why is None:
                done["order"] = _said_of_order(state, expected, named)
                log.warning("%s: %s", path, done["order"])
            else:
                headline += f": its names are others, and its tensors' order does not help: {why}"
        state = named.state
        if named.prefix:
            done["prefix"] = named.prefix
    if row is not None and converted is None:
        try:
            state = weights_for(row, state, backbone)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:  # of other shapes
            raise UserError(
                f"{path}: does not hold the weights of {row.name} ({first_line(error)})."
            ) from None
    given = {name: (state[name], own) for name, own in expected.items() if name in state}
    missing = [f"{name}: missing" for name in expected if name not in state]
    misfits = [f"{name}: {why}" for name, pair in given.items() if (why := _misfit(*pair))]
    unused = [name for name in state if name not in expected]
    strange = [f"{shown(name)}: unexpected, of shape {tuple(state[name].shape)}" for name in unused]
    strict = [] if converted is None else strange
    if missing or misfits or strict:
        wrong = len(missing) + len(misfits)
        counted = f"{wrong} of" if wrong else f"{len(strict)} beside"
        raise problem_list(
            f"{headline} ({counted} {len(expected)} tensors)",
            _mixed(missing, misfits, strange),
            limit=_NAMED,
        )
    if larger := _beyond({name: state[name] for name in unused}, expected):
        raise problem_list(
            f"{headline}: it is of a larger network, of which this architecture would leave out "
            f"{len(larger)} tensors. Choose the architecture that has them, or take them out of "
            "the file if they are not needed",
            [f"{name}: unexpected, of shape {tuple(state[name].shape)}" for name in larger],
            limit=_NAMED,
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
            limit=_NAMED,
        )
    if unused:
        log.warning(
            "%s: %d tensors not used: %s",
            path,
            len(unused),
            ", ".join(map(shown, sorted(unused)[:_NAMED])),
        )
    if left_out := sorted([*unused, *head]):
        more = [f"and {len(left_out) - _NAMED} more"] if len(left_out) > _NAMED else []
        done["left_out"] = [*map(shown, left_out[:_NAMED]), *more]
    backbone.load_state_dict({name: state[name] for name in expected})
    return done


def _as_published(
    converted: Converted,
    row: CatalogueRow,
    state: Mapping[str, Tensor],
    backbone: nn.Module,
    path: Path,
) -> tuple[dict[str, Tensor], list[str], str]:
    """Return a library's own file as its architecture has it, without the classifier's tensors.

    Also return the names of these, and what an error about the rest begins with.

    Raises:
        UserError: the library fails with it.
    """
    installed = f"{row.library} {version(row.library)}"
    other = f"Install another version of {row.library}, such as that of the lock file"
    try:
        found, head = converted(state, row.architecture, backbone)
    except Exception as error:  # code of the library, on tensors that it does not expect
        raise UserError(
            f"{path}: {installed} cannot take it as {row.architecture} ({first_line(error)}). "
            f"{other}."
        ) from None
    return found, head, (
        f"{path}: holds the published weights of {row.name}, which are not what {installed} builds "
        f"as {row.architecture}. {other}"
    )  # fmt: skip


def _said_of_order(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], named: Prefixed
) -> str:
    given = [name for name in state if name.startswith(named.prefix)]
    first, last = (f"{shown(given[n])} as {list(expected)[n]}" for n in (0, len(expected) - 1))
    return (
        f"none of its names is the architecture's, so the {len(expected)} tensors were taken in "
        f"their order, of which the shapes fit: {first}, ..., {last}"
    )


def _mixed(*kinds: list[str]) -> list[str]:
    """Return the problems so that the first of each kind are among the first."""
    first = _NAMED // len(kinds) + 1
    return [one for kind in kinds for one in kind[:first]][:_NAMED] + [
        one for kind in kinds for one in kind[first:]
    ]


def _beyond(unused: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return the tensors that stand in modules of the architecture, and not in a classifier.

    They are further layers, as of ResNet-34 for ResNet-18: without them the network computes
    something else. Indices and masks, which older programs saved, are recomputed.
    """
    modules = {name.split(".")[0] for name in expected if "." in name}
    return [
        name
        for name, tensor in unused.items()
        if tensor.is_floating_point()
        and not _CLASSIFIERS & set(parts := name.split("."))
        and parts[-1] != "attn_mask"
        and (name in _TOKENS if len(parts) == 1 else parts[0] in modules)
    ]


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


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a file by name, and the names of the dicts they were in."""
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
    inside: list[str] = []
    while isinstance(values, dict) and len(inside) < _DEEPEST:
        wrapper = next((n for n in _WRAPPERS if isinstance(values.get(n), dict)), None)
        if wrapper is None:
            break
        values = values[wrapper]
        inside.append(wrapper)
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
    return tensors, inside


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
