"""Stage 1, tile: the declaration of an artefact filter, and its inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # a config is parsed without numpy
    import numpy as np
    from numpy.typing import NDArray

    from her2.core.types import RGB, Density, Mask

Options = Mapping[str, float]
"""Values of a filter's own keys of `tiling:` in the config, including `max_<name>`."""


class Where(IntEnum):
    """The kind of area that a filter finds, in the order in which the filters run."""

    OUTSIDE = 0
    """Glass that was not scanned. It is not tissue. Its share is relative to the whole slide."""
    OVER = 1
    """A cover over glass and tissue, such as pen. It is not tissue. Its share is relative to the
    area that is tissue or covered."""
    WITHIN = 2
    """Damaged tissue. It remains tissue. Its share is relative to the same area as for OVER."""


@dataclass(frozen=True, slots=True)
class Option:
    """A key that a filter adds to `tiling:`, with inclusive bounds."""

    default: float
    description: str
    at_least: float = 0
    at_most: float = 1_000_000


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """The thumbnail of a slide, the input of an area filter; masks are (h, w).

    `density` is the blurred optical density of `rgb`, with glass at 0. `outside` is the area that
    `OUTSIDE` filters found. `tissue` is given only to `WITHIN` filters, without the area that
    `OVER` filters found; for others it is all False.
    """

    rgb: RGB
    density: Density
    mpp: float
    outside: Mask
    tissue: Mask


@dataclass(frozen=True, slots=True)
class Tiles:
    """The n tiles of a slide that no earlier filter rejected, the input of a tile filter.

    `centres_um` is (n, 2), x and y. `mpp` and `size_px` are those of a tile as the encoder sees it,
    and `spacing_um` is the distance between neighbours. `read(tile, side_px)` returns a tile by its
    number as RGB (side, side, 3). It raises `her2.core.errors.TileError` if the tile cannot be
    read. The filter then returns NaN for it; otherwise the whole slide counts as damaged.
    """

    centres_um: NDArray[np.float64]
    mpp: float
    size_px: int
    spacing_um: float
    read: Callable[[int, int], RGB]


class Measured(NamedTuple):
    """A filter's values of tiles (n,), NaN if unknown, and a flag per tile that was read.

    The value of a tile that was not read is a neighbour's.
    """

    values: NDArray[np.float32]
    read: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """The declaration common to all filters.

    Attributes:
        name: name of the module, and of the column in the tile table.
        limit: default of `tiling.max_<name>`, 0 to 1. A tile above it is rejected; 1 rejects none.
        description: description of that key in the config.
        options: further keys of `tiling:`.
        colour: R, G and B of outlines and rejected tiles in QC pictures.
        legend: name in the gallery's legend, and in its sort order "most <legend>".
        references: publications that `methods` cites, "Authors year" -> journal.
        listing: position in lists of filters; equal numbers are sorted by name.
    """

    name: str
    limit: float
    description: str
    options: Mapping[str, Option] = field(default_factory=dict)
    colour: tuple[int, int, int]
    legend: str
    references: Mapping[str, str] = field(default_factory=dict)
    listing: int = 100

    @property
    def limit_key(self) -> str:
        return f"max_{self.name}"

    @property
    def keys(self) -> dict[str, Option]:
        """Return every key that the filter adds to `tiling:`."""
        limit = Option(self.limit, self.description, at_most=1)
        return {self.limit_key: limit, **self.options}

    def limit_in(self, tiling: object) -> float:
        """Return the limit that a config's `tiling:` sets."""
        limit: float = getattr(tiling, self.limit_key)
        return limit

    def chosen(self, tiling: object) -> dict[str, float]:
        """Return the values of the filter's keys in a config's `tiling:`."""
        return {key: getattr(tiling, key) for key in self.keys}


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaFilter(Filter):
    """A filter that finds an artefact on the thumbnail; a tile's value is the share it covers.

    `find` returns the mask (h, w) of the artefact, and `methods` completes "at most 5 % of a kept
    tile was ..." in the methods text.
    """

    where: Where
    find: Callable[[Thumbnail, Options], Mask]
    methods: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TileFilter(Filter):
    """A filter that reads tiles and gives each a value from 0 to 1, where higher is worse.

    It runs after the area filters, on tiles that none of them rejected, and only if its limit is
    below 1. `methods` returns the clause about a kept tile in the methods text.
    """

    measure: Callable[[Tiles, Options], Measured]
    methods: Callable[[Options], str]


CLASS_PREFIX = "artefact_"
"""What the names of class filters begin with, and those of no other filter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFilter(Filter):
    """A class of px that an artefact segmenter (`her2.segmenters`) tells apart.

    A tile's value is the share of its px in that class, and its limit is in
    `tiling.artefact_limits`. It runs after all other filters, where a config names its segmenter.
    `channel` is the class of the logits, and `methods` completes "at most 5 % of a kept tile was
    ..." in the methods text.
    """

    channel: int
    description: str = ""
    methods: str

    @property
    def short(self) -> str:
        """Return the name in `tiling.artefact_limits`."""
        return self.name.removeprefix(CLASS_PREFIX)

    @property
    def limit_key(self) -> str:
        return f"{CLASS_PREFIX}limits.{self.short}"

    def limit_in(self, tiling: object) -> float:
        """Return the limit that a config's `tiling:` sets."""
        limits: Mapping[str, float] = getattr(tiling, f"{CLASS_PREFIX}limits") or {}
        return limits.get(self.short, self.limit)
