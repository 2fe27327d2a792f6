"""Stage 1, tile: what an artefact filter declares, and what it is given to work on."""

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
"""The config's values of a filter's own keys of `tiling:`, its `max_<name>` among them."""


class Where(IntEnum):
    """What an area filter looks for, in the order in which the filters run."""

    OUTSIDE = 0
    """Glass that was not scanned. It is not tissue; its share is of the whole slide."""
    OVER = 1
    """Lies on glass and tissue and hides both. It is not tissue; its share is of all that is
    tissue or hidden in this way."""
    WITHIN = 2
    """Spoilt tissue. It stays tissue; its share is of the same area."""


@dataclass(frozen=True, slots=True)
class Option:
    """A key that a filter adds to `tiling:`, and its bounds (inclusive; None: no upper bound)."""

    default: float
    description: str
    at_least: float = 0
    at_most: float | None = None


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """The thumbnail of a slide, for a filter that finds an area; all arrays are (h, w).

    `density` is the optical density of `rgb`, smoothed, with glass at 0. `outside` is what filters
    `OUTSIDE` found. `tissue` is known to filters `WITHIN` alone (without what filters `OVER`
    found); for others it is all False.
    """

    rgb: RGB
    density: Density
    mpp: float
    outside: Mask
    tissue: Mask


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tiles (n) of a slide that no earlier filter rejected, for a filter that reads tiles.

    `centres_um` is (n, 2), x and y. `mpp` and `size_px` are those of a tile as the encoder sees it,
    `spacing_um` the distance between neighbours. `read(tile, side_px)` returns a tile by its number
    as RGB (side, side, 3) and raises `her2.core.errors.TileError` where it cannot be read: such a
    tile's value is NaN, or the whole slide counts as damaged.
    """

    centres_um: NDArray[np.float64]
    mpp: float
    size_px: int
    spacing_um: float
    read: Callable[[int, int], RGB]


class Measured(NamedTuple):
    """What a filter says of tiles: values (n,), NaN where unknown, and whether each was read.

    A value that was not measured on the tile itself comes from a neighbour.
    """

    values: NDArray[np.float32]
    read: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What every filter declares.

    Attributes:
        name: that of its module, and of its column in the tile table.
        limit: default of `tiling.max_<name>`, 0 to 1. A tile with more is rejected; 1 rejects none.
        description: of that key in the config.
        options: further keys of `tiling:`.
        colour: R, G and B of its outline and of rejected tiles in QC pictures.
        legend: what the legend of the gallery calls it; also "most <legend>" among its sort orders.
        references: works that `methods` cites, "Authors year" -> where they appeared.
        listing: its place where filters are listed for people; equal numbers go by name.
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
        """The key of `tiling:` that holds the limit."""
        return f"max_{self.name}"

    @property
    def keys(self) -> dict[str, Option]:
        """Every key that the filter adds to `tiling:`."""
        limit = Option(self.limit, self.description, at_most=1)
        return {self.limit_key: limit, **self.options}

    def chosen(self, tiling: object) -> dict[str, float]:
        """Return the values of the filter's keys in a config's `tiling:`."""
        return {key: getattr(tiling, key) for key in self.keys}


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaFilter(Filter):
    """A filter that finds an artefact on the thumbnail; a tile's value is its share under it.

    Attributes:
        where: what kind of area it is.
        find: returns the mask (h, w) of the artefact on a thumbnail.
        methods: completes "at most 5 % of a kept tile was ..." in the methods text.
    """

    where: Where
    find: Callable[[Thumbnail, Options], Mask]
    methods: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TileFilter(Filter):
    """A filter that reads tiles and gives each a value from 0 to 1, the higher the worse.

    It runs after the area filters, on tiles that none of them rejected, and not at all where its
    limit is 1.

    Attributes:
        measure: returns the values of tiles.
        methods: returns the clause about a kept tile in the methods text, from the options.
    """

    measure: Callable[[Tiles, Options], Measured]
    methods: Callable[[Options], str]
