"""Stage 1, tile: the declaration of a published network that finds tissue or artefacts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from her2.filters.base import ClassFilter


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmenter(ABC):
    """A published network, with what its authors feed it and where they put its weights.

    `build` returns the network; with `logits`, windows (b, 3, window_px, window_px) give
    (b, classes, window_px, window_px). Raise `version` when the same weights find another mask.
    """

    key: ClassVar[str]
    """The key of `tiling:` that names it."""
    kind: ClassVar[str]
    """What people call it."""

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
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    jpeg_quality: int | None = None
    """Quality at which windows are compressed and decoded first, as in training."""
    reference: tuple[str, str]
    """Short and full citation, for the report."""
    build: "Callable[[], nn.Module]"
    logits: "Callable[[nn.Module, Tensor], Tensor]"

    @property
    @abstractmethod
    def finds(self) -> Mapping[str, int]:
        """Return what it finds -> the class of the logits; the other classes are of no interest."""

    @property
    @abstractmethod
    def folder(self) -> str:
        """Return the name of the folder of its weights, which is of no other segmenter."""

    @property
    def flag(self) -> str:
        """Return the option of `her2 tile` and `her2 predict` for its weights."""
        return flag_of(self.key)

    @property
    def place(self) -> str:
        """Return what errors about the weights begin with."""
        return f"tiling.{self.key}: {self.name}"

    @property
    def path_key(self) -> str:
        """Return the key of a local file of the weights."""
        return f"{self.key}_weights"

    @property
    def digest_key(self) -> str:
        """Return the key that states the digest of other weights."""
        return f"{self.key}_sha256"

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
            **self._identity_of_classes(),
        }

    @abstractmethod
    def _identity_of_classes(self) -> dict[str, Any]:
        """Return which of its classes count, for keys."""


def flag_of(key: str) -> str:
    """Return the option for the weights of the segmenter that a key of `tiling:` names."""
    return f"--{key.replace('_', '-')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TissueSegmenter(Segmenter):
    """A network whose class `tissue_class` is tissue."""

    key: ClassVar[str] = "segmenter"
    kind: ClassVar[str] = "tissue segmenter"
    tissue_class: int

    @property
    def finds(self) -> Mapping[str, int]:
        """Return the class of tissue."""
        return {"tissue": self.tissue_class}

    @property
    def folder(self) -> str:
        """Return its name."""
        return self.name

    def _identity_of_classes(self) -> dict[str, Any]:
        return {"tissue_class": self.tissue_class}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtefactSegmenter(Segmenter):
    """A network that tells artefacts apart; each of them is a filter with a limit of its own."""

    key: ClassVar[str] = "artefact_segmenter"
    kind: ClassVar[str] = "artefact segmenter"
    artefacts: "tuple[ClassFilter, ...]"
    """Those that a tile can be rejected for, in the order in which they are looked at."""

    @property
    def finds(self) -> Mapping[str, int]:
        """Return the classes of the artefacts, by the names of their filters."""
        return {one.name: one.channel for one in self.artefacts}

    @property
    def folder(self) -> str:
        """Return its name, marked, since a tissue segmenter may have the same."""
        return f"artefacts-{self.name}"

    def _identity_of_classes(self) -> dict[str, Any]:
        return {"classes": dict(self.finds)}
