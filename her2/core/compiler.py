"""torch's compiler stays out of processes that compile nothing.

timm, torchvision's operators and torch's optimisers import `torch._dynamo`, but outside of compiled
code only to mark functions that it must not compile. The import takes more than a CPU second, a
quarter of the start of a job that embeds or trains.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

COMPILER, UTILITIES = "torch._dynamo", "torch._dynamo.utils"


@contextmanager
def compiler_deferred() -> Iterator[None]:
    """Import or train in this block without `torch._dynamo`; compile after it, not inside.

    Two modules take its place that know what uncompiled code asks of it. Whatever else they are
    asked, as by other versions of these libraries, imports the compiler after all and is answered
    by it. Where the compiler is loaded already, nothing is changed.
    """
    if COMPILER in sys.modules:
        yield
        return
    places = {COMPILER: _Place(COMPILER), UTILITIES: _Place(UTILITIES)}
    vars(places[COMPILER]).update(disable=_disable, graph_break=_do_nothing)
    vars(places[UTILITIES]).update(is_compile_supported=_is_compile_supported)
    sys.modules.update(places)
    try:
        yield
    finally:
        _remove_places()


class _Place(ModuleType):
    """A module in the place of one of the compiler's, which answers other questions by it."""

    def __getattr__(self, name: str) -> Any:
        # The import system asks for names of this form, and for a path to find other submodules.
        of_package = name == "__path__" and self.__name__ == COMPILER
        if name.startswith("__") and name.endswith("__") and not of_package:
            raise AttributeError(name)
        _remove_places()
        return getattr(importlib.import_module(self.__name__), name)


def _remove_places() -> None:
    for name in (COMPILER, UTILITIES):
        if isinstance(sys.modules.get(name), _Place):
            del sys.modules[name]


def _disable(
    function: Callable[..., Any] | None = None,
    recursive: bool = True,
    *,
    wrapping: bool = True,
    **_: object,
) -> Any:
    """Mark a function, like `torch._dynamo.disable`, at its first call."""
    from torch._compile import _disable_dynamo

    if wrapping or function is None:
        return _disable_dynamo(function, recursive)
    return function  # it is that first call


def _do_nothing(*_: object, **__: object) -> None:
    """Break no graph, as there is none."""


def _is_compile_supported(device_type: str) -> bool:
    """Ask the compiler: only torchvision's detection models do so, when they run."""
    found: bool = importlib.import_module(UTILITIES).is_compile_supported(device_type)
    return found
