"""Encoder libraries, one file each; `source` and `model` in a config name the file.

The config asks these files which names are legal, in processes that must stay light. So a file
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
    from pathlib import Path

    from torch import Tensor, nn

NAMES: tuple[str, ...] = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""The legal names of libraries."""


class Library(ABC):
    """Interface of an encoder library; its file ends with `LIBRARY = Mine()`."""

    domain: ClassVar[Domain]
    """Kind of images its published weights were trained on, unless a config says otherwise."""

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
        `flattened` the last feature maps in any shape. A module with a class token also has
        `forward_features`, which returns tokens (b, t, d) with the class token first, and
        `num_prefix_tokens`, the number of tokens that are not patches.

        Raises:
            UserError: the architecture does not have this feature.
            OSError, RuntimeError: the published weights could not be fetched, or do not fill the
                architecture.
        """

    def arguments(self, architecture: str, *, feature: Feature, size_px: int) -> dict[str, Any]:
        """Return the arguments of `build` for patches of `size_px` pixels per side, as JSON."""
        return {}

    @abstractmethod
    def normalisation(self, architecture: str) -> Normalisation | None:
        """Return the normalisation of the published weights; None where it is not known."""

    def licence(self, architecture: str) -> str:
        """Return the licence of the published weights; "" where the library states none."""
        return ""

    def converted(
        self, state: "Mapping[str, Tensor]", architecture: str, backbone: "nn.Module"
    ) -> "tuple[dict[str, Tensor], list[str]]":
        """Return the tensors of the file that it publishes, as `backbone` names and shapes them.

        Also return the names of those that belong to the classifier, which `build` leaves out.
        """
        return dict(state), []

    def fetch(self, architecture: str) -> "Path | None":
        """Return the file of the published weights, fetched if it is not here; None: unknown.

        Raises:
            OSError, RuntimeError: it could not be fetched.
        """
        return None

    def fetched(self, architecture: str) -> "Path | None":
        """Return where `build` has left the file of the published weights; None if not known."""
        return None


@cache
def library(name: str) -> Library:
    """Return the library of that name, which is one of `NAMES`."""
    found = import_module(f"{__name__}.{name}").LIBRARY
    assert isinstance(found, Library), f"her2/libraries/{name}.py: LIBRARY is no Library"
    return found


def library_with(name: str, architecture: str) -> Library:
    """Return the library of that name, which has the architecture.

    Raises:
        UserError: it does not have it; the message lists the nearest names.
    """
    found = library(name)
    if found.knows(architecture):
        return found
    near = difflib.get_close_matches(architecture, found.names(), n=3)
    hint = f" Similar names: {', '.join(near)}." if near else ""
    raise UserError(f"encoders: {name} has no model {architecture!r}.{hint}")
