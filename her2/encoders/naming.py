"""Stage 1, encoder: which tensor of somebody's file is which of an architecture.

Names decide, without the prefixes that training code puts before them. Where no name is the
architecture's, the order of the tensors may decide, if nothing speaks against it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

PREFIXES = (
    "module.", "backbone.", "model.", "encoder.", "_orig_mod.", "teacher.", "student.", "features.",
)  # fmt: skip
"""What training code puts before every name, also several in a row; the first that fits is taken.

`features.` is before the part of a whole network that `feature: flattened` takes.

A teacher comes before its student: it is their average over the steps, and what is published.
"""

_NUMBERED = re.compile(r"(.*?)(\d{1,9})")
_SHOWN = 120
_MOST_PREFIXES = 8
"""Prefixes in a row that are taken off."""


@dataclass(frozen=True, slots=True)
class Prefixed:
    """The tensors of a file whose names begin with `prefix`, without it."""

    prefix: str
    state: dict[str, Tensor]


def under_prefixes(
    state: Mapping[str, Tensor], prefix: str = "", depth: int = 0
) -> Iterator[Prefixed]:
    """Yield the tensors as they are, then those under each of `PREFIXES`, in all combinations."""
    yield Prefixed(prefix, dict(state))
    for one in PREFIXES if depth < _MOST_PREFIXES else ():
        inner = {n.removeprefix(one): t for n, t in state.items() if n.startswith(one)}
        if inner:
            yield from under_prefixes(inner, prefix + one, depth + 1)


def by_name(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[Prefixed, list[str]]:
    """Return the tensors under the prefix that fits the architecture best.

    Also return the other prefixes under which the file has as many, with other values.
    """
    found = list(under_prefixes(state))
    best = max(found, key=lambda one: _agreement(one.state, own))  # the first of equals
    most = _agreement(best.state, own)
    rivals = [
        one.prefix
        for one in found
        if one is not best and any(most) and _agreement(one.state, own) == most
        and any(_differ(one.state[n], best.state[n]) for n in set(own) & set(one.state))
    ]  # fmt: skip
    return best, rivals


def _differ(one: Tensor, other: Tensor) -> bool:
    return one.dtype != other.dtype or not torch.equal(one, other)


def _agreement(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return how many tensors have a name and shape of the architecture's, and how many a name."""
    names = [name for name in state if name in own]
    return sum(state[name].shape == own[name].shape for name in names), len(names)


def by_order(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path
) -> tuple[Prefixed, str | None]:
    """Return a file's tensors under the architecture's names, the first for the first, and so on.

    Also return None, or the reason why the order does not tell which is which; the tensors then
    keep their names.
    """
    reason = None
    for given in under_prefixes(state):
        why = against_order(given.state, own, path)
        if why is None:
            renamed = dict(zip(own, given.state.values(), strict=False))
            rest = list(given.state.items())[len(own) :]
            return Prefixed(given.prefix, renamed | dict(rest)), None
        reason = reason or why
    return Prefixed("", dict(state)), reason


def against_order(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> str | None:
    """Return what speaks against taking tensors by their order, or None.

    Refused are: files that hold their tensors sorted; other numbers, shapes or last parts of names
    (such as `weight`), also of one tensor; modules that end elsewhere; numbers in names that do not
    ascend; words of both programs that they use for different modules of equal shapes; and siblings
    of equal shapes that nothing in the file's names tells apart.
    """
    if path.suffix == ".safetensors" or (len(state) > 1 and sorted(state) == list(state)):
        return "they are sorted by name, so that their order says nothing"
    theirs, ours = list(state), list(own)
    if len(theirs) < len(ours) or not _is_linear(list(state.values())[len(ours) :]):
        return f"there are {len(theirs)}, and the architecture has {len(ours)}"
    for n, (given, name) in enumerate(zip(theirs, ours, strict=False), 1):
        shapes = tuple(state[given].shape), tuple(own[name].shape)
        if shapes[0] != shapes[1]:
            return f"number {n}, {shown(given)}, has shape {shapes[0]}, and {name} has {shapes[1]}"
        if given.rpartition(".")[2] != name.rpartition(".")[2]:
            return f"number {n} is {shown(given)}, and the architecture has {name} there"
    return _modules_against(theirs[: len(ours)], ours, own) or _alike(theirs, ours, own)


def _is_linear(rest: Sequence[Tensor]) -> bool:
    """Tell whether the tensors after the architecture's are none, or one linear classifier."""
    if not rest:
        return True
    return rest[0].ndim == 2 and [t.shape for t in rest[1:]] in ([], [rest[0].shape[:1]])


def _modules_against(
    theirs: Sequence[str], ours: Sequence[str], own: Mapping[str, Tensor]
) -> str | None:
    """Return what the modules and the numbers and words in the names say against their order."""
    last: dict[tuple[str, str], tuple[int, str]] = {}
    kinds: dict[str, tuple[object, ...]] = {}
    for n, (given, name) in enumerate(zip(theirs, ours, strict=True)):
        if n and (_module(given) == _module(theirs[n - 1])) != (
            _module(name) == _module(ours[n - 1])
        ):
            return (
                f"{shown(theirs[n - 1])} and {shown(given)} are not of one module where the "
                "architecture's are"
            )
        parts = given.split(".")
        for depth, part in enumerate(parts[:-1]):
            if (numbered := _NUMBERED.fullmatch(part)) is None:
                continue
            key, number = (".".join(parts[:depth]), numbered[1]), int(numbered[2])
            before, earlier = last.get(key, (-1, ""))
            if number < before:
                return f"{shown(given)} comes after {shown(earlier)}"
            last[key] = (number, given)
        shape = tuple(own[name].shape)
        kinds[_module(name)] = (*kinds.get(_module(name), ()), name.rpartition(".")[2], shape)
    # Words decide between modules of the same shapes; elsewhere the shapes have decided.
    ours_of: dict[object, set[str]] = {}
    theirs_of: dict[object, set[str]] = {}
    for given, name in zip(theirs, ours, strict=True):
        ours_of.setdefault(kinds[_module(name)], set()).update(_words(name))
        theirs_of.setdefault(kinds[_module(name)], set()).update(_words(given))
    for given, name in zip(theirs, ours, strict=True):
        kind = kinds[_module(name)]
        if differing := (_words(given) ^ _words(name)) & ours_of[kind] & theirs_of[kind]:
            word = min(differing)
            return f"{shown(given)} would be {name}, and both programs know the word {word!r}"
    return None


def _alike(theirs: Sequence[str], ours: Sequence[str], own: Mapping[str, Tensor]) -> str | None:
    """Return two of the file's modules that could be exchanged, if nothing tells them apart."""
    common = set().union(*map(_words, theirs)) & set().union(*map(_words, ours))
    children: dict[str, dict[str, list[int]]] = {}
    for n, name in enumerate(ours):
        parts = name.split(".")
        for depth in range(len(parts) - 1):
            siblings = children.setdefault(".".join(parts[:depth]), {})
            siblings.setdefault(parts[depth], []).append(n)
    for parent, siblings in children.items():
        seen: dict[tuple[object, ...], int] = {}
        for child, places in siblings.items():
            inside = len(f"{parent}.{child}".lstrip("."))
            kind = tuple((ours[n][inside:], own[ours[n]].shape) for n in places)
            first, second = theirs[seen.get(kind, places[0])], theirs[places[0]]
            if kind in seen and not _told_apart(first, second, common):
                return (
                    f"nothing says which of {shown(first)} and {shown(second)}, of equal shapes, "
                    "comes first"
                )
            seen[kind] = places[0]
    return None


def _told_apart(first: str, second: str, common: set[str]) -> bool:
    """Tell whether two names differ by ascending numbers, or by a word of both programs."""
    a, b = next(
        (pair for pair in zip(first.split("."), second.split("."), strict=False)
         if pair[0] != pair[1]), ("", ""),
    )  # fmt: skip
    one, other = _NUMBERED.fullmatch(a), _NUMBERED.fullmatch(b)
    if one is not None and other is not None and one[1] == other[1]:
        return int(one[2]) < int(other[2])
    return bool((_words(first) ^ _words(second)) & common)


def shown(name: str) -> str:
    """Return a name as messages show it: a stranger's may have any length."""
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _words(name: str) -> frozenset[str]:
    """Return the words in a name, without numbers: `_blocks.0._bn1.bias` -> blocks, bn, bias."""
    return frozenset(re.findall(r"[a-z]+", name.lower()))
