"""Encoder libraries, one file each: the file's name is what `source` and `model` say in a config.

The config asks these files which names are legal, in processes that must stay light: a file
imports its library and torch inside the methods that need them.
"""

import difflib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from her2.core.errors import UserError
from her2.core.types import Domain, Feature, Normalisation

if TYPE_CHECKING:
    from torch import nn

NAMES: tuple[str, ...] = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""The legal names of libraries."""


class Library(ABC):
    """What is asked of an encoder library; its file ends with `LIBRARY = Mine()`."""

    domain: ClassVar[Domain]
    """Images that its published weights were trained on, unless a config says otherwise."""

    @abstractmethod
    def names(self) -> Collection[str]:
        """Return the architectures that `build` knows, as a config writes them."""

    def knows(self, architecture: str) -> bool:
        """Tell whether `build` knows an architecture."""
        return architecture in self.names()

    @abstractmethod
    def build(
        self,
        architecture: str,
        *,
        feature: Feature,
        arguments: Mapping[str, Any],
        pretrained: bool,
    ) -> "nn.Module":
        """Build an architecture that `knows` accepts, without its classifier.

        Called with normalised patches (b, 3, h, w), the module returns floats (b, d), or under
        `flattened` the last feature maps in any shape. Where it has a class token it also has
        `forward_features`, which returns tokens (b, t, d), the class token first, and
        `num_prefix_tokens`, how many of them are no patch.

        Raises:
            UserError: the architecture does not have this feature.
            OSError, RuntimeError: the published weights could not be fetched.
        """

    @abstractmethod
    def arguments(self, architecture: str, *, feature: Feature, size_px: int) -> dict[str, Any]:
        """Return what `build` must be told for patches of `size_px` a side; JSON-able."""

    @abstractmethod
    def normalisation(self, architecture: str) -> Normalisation | None:
        """Return what the published weights were trained with; None where that is not known."""

    @abstractmethod
    def licence(self, architecture: str) -> str:
        """Return the licence of the published weights, empty where the library states none."""


@cache
def library(name: str) -> Library:
    """Return the library of that name, which is one of `NAMES`."""
    found = import_module(f"{__name__}.{name}").LIBRARY
    assert isinstance(found, Library), f"her2/libraries/{name}.py: LIBRARY is no Library"
    return found


def check_known(name: str, architecture: str) -> None:
    """Check that a library has an architecture.

    Raises:
        UserError: it has not; the nearest names are given.
    """
    if library(name).knows(architecture):
        return
    near = difflib.get_close_matches(architecture, library(name).names(), n=3)
    hint = f"; near: {', '.join(near)}" if near else ""
    raise UserError(f"encoders: {name} knows no model {architecture!r}{hint}.")
