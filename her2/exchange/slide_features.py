"""Features out: the features of one slide, and where its tiles lie."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2.core.errors import SlideError
from her2.core.files import file_digest
from her2.storage.features import BLOCK_BYTES, FeatureStore, positions_known, read_coords


@dataclass(frozen=True)
class SlideFeatures:
    """The features of a slide, mapped, and where its tiles lie.

    Features that another program computed may lack facts; asking for one that is not known raises a
    SlideError which names it.

    Attributes:
        slide_id: the slide.
        store: features (n, d).
    """

    slide_id: str
    store: FeatureStore

    @cached_property
    def coords(self) -> NDArray[np.int32]:
        """Top left corners of the tiles, int32 (n, 2), level-0 px."""
        if self.store.attributes.get("given", {}).get("level") == "slide":
            raise SlideError("its features are one vector of the whole slide, which has no tiles")
        if not positions_known(self.store.attributes):
            raise SlideError("where its tiles are is not known, as its features came without")
        return read_coords(self.store.path)

    @property
    def fingerprint(self) -> str:
        """The slide's fingerprint."""
        return str(self.store.attributes["slide"]["fingerprint"])

    @property
    def slide_mpp(self) -> tuple[float, float]:
        """The um per level-0 px of the slide, (x, y)."""
        x, y = self._known("slide", "mpp", "the um/px of its level-0 px")
        return x, y

    @property
    def mpp_source(self) -> str:
        """Where the slide's um/px come from."""
        return str(self._known("slide", "mpp_source", "where its um/px come from"))

    @property
    def size_px(self) -> tuple[int, int]:
        """The (width, height) of the slide in level-0 px."""
        width, height = self._known("slide", "size_px", "its width and height")
        return width, height

    @property
    def level0_tile(self) -> tuple[float, float]:
        """The (width, height) of a tile in level-0 px."""
        width, height = self._known("slide", "level0_tile", "the side of its tiles in level-0 px")
        return width, height

    @property
    def mpp(self) -> float:
        """The um/px of a tile as the encoder saw it."""
        return float(self._known("target", "mpp", "the um/px of its tiles"))

    @property
    def tile_px(self) -> int:
        """The side of a tile in px as the encoder saw it."""
        return int(self._known("target", "px", "the side of its tiles in px"))

    def _known(self, part: str, name: str, words: str) -> Any:
        value = self.store.attributes.get(part, {}).get(name)
        if value is None:
            raise SlideError(f"{words} is not known")
        return value

    def knows(self, *facts: str) -> bool:
        """Return whether facts, named as the properties above, are known."""
        try:
            for name in facts:
                getattr(self, name)
        except SlideError:
            return False
        return True

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the features, in the byte order of this machine."""
        return self.store.chunks[0].dtype.newbyteorder("=")

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        return len(self.store), self.store.dimension

    @cached_property
    def seal(self) -> str:
        """The digest of the store's content, that of its file where it is older than seals."""
        found = self.store.attributes.get("seal")
        return str(found) if found else f"file {file_digest(self.store.path)}"

    @property
    def block_rows(self) -> int:
        """Number of rows in a block; the last one of a chunk has fewer."""
        return max(1, BLOCK_BYTES // (self.store.dimension * self.dtype.itemsize))

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield the features in order, in blocks of a few MiB (k, d)."""
        for chunk in self.store.chunks:
            for start in range(0, len(chunk), self.block_rows):
                yield chunk[start : start + self.block_rows]

    def provenance(self) -> dict[str, Any]:
        """Return what an export says of this slide's features, as JSON values."""
        found = self.store.attributes
        slide, target = found.get("slide", {}), found.get("target", {})
        names = ("key", "failed_tiles", "precision", "software", "given")
        known = self.knows("coords")
        return {
            "slide_id": self.slide_id,
            "seal": self.seal,
            **{name: found[name] for name in names if name in found},
            "slide": {
                "fingerprint": slide.get("fingerprint"),
                "um_per_px": slide.get("mpp"),
                "um_per_px_from": slide.get("mpp_source"),
                "size_px": slide.get("size_px"),
            },
            "tile": {
                "um_per_px": target.get("mpp"),
                "px": target.get("px"),
                "level0_px": slide.get("level0_tile"),
            },
            "coordinates": "top left corners of the tiles, level-0 px" if known else None,
        }
