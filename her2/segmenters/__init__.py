"""Tissue segmenters, one file each: published networks that find the tissue of a slide.

`tiling.segmenter` names the file, which ends with `SEGMENTER = Segmenter(...)`. The config asks for
the names in processes that must stay light, so a file imports torch and the network's library
inside `build`.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

NAMES: tuple[str, ...] = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""The legal names of segmenters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmenter:
    """A published network, with what its authors feed it and where they put its weights.

    `build` returns the network; with `logits`, windows (b, 3, window_px, window_px) give
    (b, classes, window_px, window_px). Raise `version` when the same weights find another mask.
    """

    name: str
    """That of the module."""
    title: str
    """The network and its training data, in a few words."""
    architecture: str
    """What `build` builds, in its library's words; part of the identity."""
    version: int = 1
    hub: str
    """Hugging Face repository of the weights."""
    file: str
    revision: str | None
    """Commit of the repository; of one with fewer than 40 digits only the beginning is known."""
    sha256: str | None
    """Digest of the file, or its beginning; None if `unpinned` says why it is not known."""
    unpinned: str | None = None
    card: str
    """Page of the published weights."""
    ask_at: str | None = None
    """Page to request access, where that is not `card`."""
    licence: str
    commercial: bool
    """Whether the licence allows commercial use."""
    mpp: float
    """um/px of the windows."""
    window_px: int
    """Px per side of a window, as in training."""
    margin_px: int
    """Px at each side of a window that only give context; windows overlap by twice as much."""
    kept_px: int
    """The mask is kept at one px for so many of a window; divides `window_px - 2 * margin_px`."""
    tissue_class: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    jpeg_quality: int | None = None
    """Quality at which windows are compressed and decoded first, as in training."""
    reference: tuple[str, str]
    """Short and full citation, for the report."""
    build: "Callable[[], nn.Module]"
    logits: "Callable[[nn.Module, Tensor], Tensor]"

    @property
    def place(self) -> str:
        """Return what errors about the weights begin with."""
        return f"tiling.segmenter: {self.name}"

    @property
    def path_key(self) -> str:
        """Return the key of a local file of the weights."""
        return "segmenter_weights"

    @property
    def digest_key(self) -> str:
        """Return the key that states the digest of other weights."""
        return "segmenter_sha256"

    @property
    def section(self) -> str:
        """Return where these keys are."""
        return "under `tiling`"

    @property
    def also_sha256(self) -> dict[str, str]:
        """Return digests of other files with the same weights: none is known."""
        return {}

    def pins(self, digest: str) -> bool:
        """Tell whether a file with this SHA-256 (hex) holds the weights, as far as known."""
        return self.sha256 is None or digest.startswith(self.sha256)

    def identity(self, weights_sha256: str) -> dict[str, Any]:
        """Return all that determines the mask of a slide, for keys."""
        return {
            "architecture": self.architecture,
            "version": self.version,
            "weights": weights_sha256,
            "input": [self.mpp, self.window_px, self.margin_px, self.kept_px, self.jpeg_quality],
            "normalisation": [list(self.mean), list(self.std)],
            "tissue_class": self.tissue_class,
        }


@cache
def segmenter(name: str) -> Segmenter:
    """Return the segmenter of that name, which is one of `NAMES`."""
    found = import_module(f"{__name__}.{name}").SEGMENTER
    assert isinstance(found, Segmenter), f"her2/segmenters/{name}.py: SEGMENTER is no Segmenter"
    assert found.name == name, f"her2/segmenters/{name}.py: is named {found.name}"
    return found
