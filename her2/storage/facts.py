"""Between the stages: the facts that tiling determines about a slide, and their forms on disk.

A tile table stores these facts. The entries of a tiling job, the cohort's table and the feature
stores take them from there.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter

from her2.filters.base import CLASS_PREFIX, AreaFilter
from her2.filters.registry import FILTERS, LISTED


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideFacts:
    """The facts about a slide and its tiling.

    `shares` has each area filter's share, as `her2.filters.base.Where` defines it. `rejected`
    counts the tiles with enough tissue that each filter rejected, `not_drawn` those that
    `tiling.max_tiles` left out. `regions` is None if the slide has no annotation. `checksum` is
    that of the whole files (`her2.slides.fingerprint`), a proof that only products record: None in
    older ones, and in entries. `brown` is the share of the tissue that is brown by DAB
    (`her2.tiling.brown`), None in older ones. `file_mpp` is the um/px (x, y) of the file where the
    manifest's counts, None where the file has none; only entries have it. `artefact_source` names
    the network that found artefacts, None without one; then `shares` and `rejected` have its
    artefacts as well, with their shares of the tiles that it saw. Where the features came
    from another program, what neither it nor a slide tells is None (`her2.exchange.take`).
    """

    fingerprint: str
    checksum: str | None = None
    vendor: str | None
    width_px: int | None
    height_px: int | None
    mpp_x: float | None
    mpp_y: float | None
    mpp_source: str | None
    tissue_mm2: float | None
    tissue_source: str = "detected"
    regions: int | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    not_drawn: int = 0
    brown: float | None = None
    file_mpp: tuple[float, float] | None = None
    artefact_source: str | None = None

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Return its um/px (x, y), None where it is not known."""
        return None if self.mpp_x is None or self.mpp_y is None else (self.mpp_x, self.mpp_y)

    @property
    def size_px(self) -> tuple[int, int] | None:
        """Return its (width, height), None where it is not known."""
        known = self.width_px is not None and self.height_px is not None
        return (self.width_px, self.height_px) if known else None  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGrid:
    """The grid on a slide: the requested tile, its size in level-0 px, and the level to read."""

    target_mpp: float
    tile_px: int
    level0_width: float
    level0_height: float
    read_level: int


@dataclass(frozen=True, slots=True)
class StoredSlide:
    """The slide of a feature store, under `slide` in its attributes.

    `mpp` is (x, y) in um/px. `level0_tile` and `size_px` are (width, height) in level-0 px, of a
    tile and of the slide. Older stores have no `checksum`.
    """

    fingerprint: str
    mpp: tuple[float, float]
    mpp_source: str
    level0_tile: tuple[float, float]
    size_px: tuple[int, int]
    checksum: str | None = None

    @classmethod
    def of(cls, facts: SlideFacts, grid: TileGrid) -> "StoredSlide":
        """Return the facts of a tile table that a feature store needs.

        Raises:
            ValueError: the table is of features from elsewhere, which do not tell all of them.
        """
        if facts.mpp is None or facts.size_px is None or facts.mpp_source is None:
            raise ValueError("the slide's um/px or size is not known")
        return cls(
            fingerprint=facts.fingerprint,
            mpp=facts.mpp,
            mpp_source=facts.mpp_source,
            level0_tile=(grid.level0_width, grid.level0_height),
            size_px=facts.size_px,
            checksum=facts.checksum,
        )

    @classmethod
    def read(cls, attributes: Mapping[str, Any]) -> "StoredSlide":
        """Read the slide from the attributes of a store.

        Raises:
            KeyError, ValueError: a part is missing.
        """
        return TypeAdapter(cls).validate_python(attributes["slide"])


_SHARES = tuple(one.name for one in LISTED if isinstance(one, AreaFilter))
_REJECTED = {f"rejected_{one.name}": one.name for one in FILTERS}
_APART = (
    "checksum", "shares", "rejected", "not_drawn", "brown", "file_mpp", "artefact_source",
)  # fmt: skip
_PLAIN = tuple(item.name for item in fields(SlideFacts) if item.name not in _APART)
_GRID = tuple(item.name for item in fields(TileGrid))
_READS = "_reads"
LATER = ("brown", "file_mpp_x", "file_mpp_y", "artefact_source")
"""Columns that an entry has only where they are known, so that older ones stay as they are. Those
of a network's artefacts (`is_of_network`) are such as well, and follow."""
_REJECTED_PREFIX = f"rejected_{CLASS_PREFIX}"


def is_of_network(column: str) -> bool:
    """Tell whether a column is of an artefact that a network found."""
    return column not in LATER and column.startswith((CLASS_PREFIX, _REJECTED_PREFIX))


def fact_columns(facts: SlideFacts | None) -> dict[str, Any]:
    """Return flat facts in the column order of the cohort's table; None or 0 if there are none."""
    shares, rejected = (facts.shares, facts.rejected) if facts else ({}, {})
    return {
        **{name: getattr(facts, name, None) for name in _PLAIN},
        **{name: shares.get(name) for name in _SHARES},
        **{column: rejected.get(name, 0) for column, name in _REJECTED.items()},
        "not_drawn": facts.not_drawn if facts else 0,
        **(_later_columns(facts) if facts else {}),
    }


def _later_columns(facts: SlideFacts) -> dict[str, Any]:
    values = (facts.brown, *(facts.file_mpp or (None, None)), facts.artefact_source)
    rejected = {f"rejected_{name}": number for name, number in facts.rejected.items()}
    return {
        **{name: v for name, v in zip(LATER, values, strict=True) if v is not None},
        **{name: value for name, value in facts.shares.items() if is_of_network(name)},
        **{name: value for name, value in rejected.items() if is_of_network(name)},
    }


def facts_of_columns(columns: Mapping[str, Any]) -> SlideFacts | None:
    """Return the facts from the columns of `fact_columns`; None for a slide without facts.

    Raises:
        TypeError: a column is unknown or missing.
    """
    plain: dict[str, Any] = dict(columns)
    shares = {name: plain.pop(name, None) for name in _SHARES}
    rejected = {name: plain.pop(column, 0) for column, name in _REJECTED.items()}
    brown, *scale, artefact_source = (plain.pop(name, None) for name in LATER)
    file_mpp = None if None in scale else (scale[0], scale[1])
    for name in [name for name in plain if is_of_network(name)]:
        own = rejected if name.startswith(_REJECTED_PREFIX) else shares
        own[name.removeprefix("rejected_")] = plain.pop(name)
    known = {name: share for name, share in shares.items() if share is not None}
    tiled = plain.get("fingerprint") is not None
    facts = SlideFacts(
        shares=known, rejected=rejected, brown=brown, file_mpp=file_mpp,
        artefact_source=artefact_source, **plain,
    )  # fmt: skip
    return facts if tiled else None


def table_metadata(facts: SlideFacts, grid: TileGrid, reads: Mapping[str, int]) -> dict[str, Any]:
    """Return the metadata of a tile table; `reads` counts the tiles that each filter read."""
    return {
        **{name: getattr(facts, name) for name in _PLAIN},
        **facts.shares,
        "rejected": dict(facts.rejected),
        "not_drawn": facts.not_drawn,
        **({"checksum": facts.checksum} if facts.checksum else {}),
        **({} if facts.brown is None else {"brown": facts.brown}),
        **({} if facts.artefact_source is None else {"artefact_source": facts.artefact_source}),
        **asdict(grid),
        **{f"{name}{_READS}": number for name, number in reads.items()},
    }


def of_table_metadata(values: Mapping[str, Any]) -> tuple[SlideFacts, TileGrid, dict[str, int]]:
    """Return the facts, grid and reads from the metadata of `table_metadata`.

    The installed filters do not matter: a table made with other filters can be read as well.

    Raises:
        KeyError, TypeError: a fact is missing.
    """
    plain = {name: values[name] for name in _PLAIN if name in values}
    grid = TileGrid(**{name: values[name] for name in _GRID})
    known = {*_PLAIN, *_GRID, *_APART}
    others = {name: value for name, value in values.items() if name not in known}
    reads = {name.removesuffix(_READS): n for name, n in others.items() if name.endswith(_READS)}
    facts = SlideFacts(
        shares={name: share for name, share in others.items() if not name.endswith(_READS)},
        rejected=values.get("rejected", {}),
        not_drawn=values.get("not_drawn", 0),
        checksum=values.get("checksum"),
        brown=values.get("brown"),
        artefact_source=values.get("artefact_source"),
        **plain,
    )
    return facts, grid, reads
