"""Stage 1, tile: the tiles of one open slide, for scripts and notebooks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2.config import TilingSection, parse_section
from her2.core.crashes import reading
from her2.core.errors import SlideError, TileError, UserError, check_kind
from her2.core.hardware import allowed_cpus
from her2.core.types import RGB
from her2.segmenters import chosen
from her2.slides.annotations import chosen_regions
from her2.slides.fingerprint import checksum, fingerprint
from her2.slides.slide import Slide
from her2.storage.cache import Cache
from her2.storage.tiles import TileTable
from her2.tiling.grid import Sources, tile_slide


@dataclass(frozen=True, slots=True, repr=False)
class Tiles:
    """The tiles of a slide (n), row by row from the top.

    `slide` is its file, `table` has the tiles with their values and the slide's facts, and
    `picture` uint8 (h, w, 3) shows which were kept, and why others were not.
    """

    slide: Path
    table: TileTable
    picture: RGB

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        """Return what it is: the slide, the number of tiles and their grid."""
        return (
            f"<Tiles {self.slide.name}: {len(self):,} tiles of {self.size} px at {self.mpp:g} "
            f"um/px, {self.table.facts.tissue_mm2:.3g} mm2 of tissue>"
        )

    @property
    def coords(self) -> NDArray[np.int32]:
        """Return the top left corners, int32 (n, 2): x and y in level-0 px."""
        return self.table.coords

    @property
    def mpp(self) -> float:
        """Return the um/px of the tiles."""
        return self.table.grid.target_mpp

    @property
    def size(self) -> int:
        """Return the px per side of the tiles."""
        return self.table.grid.tile_px


def tile(
    slide: Slide,
    mpp: float,
    size: int,
    *,
    tiling: TilingSection | Mapping[str, Any] | None = None,
    annotation: Path | str | None = None,
    mask: Path | str | None = None,
    seed: int | None = None,
    cache: Cache | Path | str | None = None,
) -> Tiles:
    """Find the tissue of a slide and its tiles, as a run does.

    Args:
        slide: an open slide, see `open_slide`.
        mpp: um/px of the tiles.
        size: their px per side.
        tiling: the section `tiling` of a config, such as `{"min_tissue": 0.3}`; default: its
            defaults.
        annotation: a file of regions that tiles are restricted to (.geojson, .json, .xml).
        mask: a tissue mask from another program, in place of the tissue detection.
        seed: seed of drawing `tiling.max_tiles` tiles.
        cache: where the checksums of files are kept, see `embed`.

    Raises:
        UserError: `tiling` or the grid is not possible.
        SlideError: the slide is too coarse for the target, or cannot be read.

    >>> import her2
    >>> with her2.open_slide("slides/demo-004-a.svs") as slide:
    ...     tiles = her2.tile(slide, mpp=1.0, size=64, tiling={"min_tissue": 0.3})
    >>> tiles
    <Tiles demo-004-a.svs: 18 tiles of 64 px at 1 um/px, 0.0653 mm2 of tissue>
    >>> tiles.coords.shape, tiles.picture.dtype
    ((18, 2), dtype('uint8'))
    """
    check_kind("slide", slide, Slide, fix="open it with open_slide(path)")
    if not (mpp > 0 and size >= 1):
        raise UserError(f"mpp {mpp!r}, size {size!r}: give the um/px and the px per side of tiles.")
    section = parse_section(TilingSection, tiling, name="tiling")
    networks = {}
    if chosen(section):
        from her2.tiling.segmenter import networks_of  # torch, which no other tiling needs

        networks = networks_of(section, {}, threads=allowed_cpus())
    try:
        with reading(str(slide.path)):
            regions = None
            if annotation is not None:
                regions = chosen_regions(Path(annotation), section.annotation_classes)
            table, picture = tile_slide(
                slide,
                slide.scale(),
                mpp=mpp,
                size=size,
                tiling=section,
                fingerprint=fingerprint(slide.path),
                sources=Sources(regions, None if mask is None else Path(mask), seed, networks),
            )
            proof = checksum(slide.path, Cache.given(cache).checksums)
    except (SlideError, TileError) as error:
        raise SlideError(f"{slide.path}: {error}") from None
    return Tiles(slide.path, replace(table, facts=replace(table.facts, checksum=proof)), picture)
