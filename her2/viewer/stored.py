"""`her2 view`: what a run stored of one slide: its entries, its tile table and its features' tiles.

Only the entries of the slide's bucket are read, and nothing is restored or moved.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2.cohort.manifest import buckets_of
from her2.config.jobs import CohortSpec
from her2.core.errors import UserError
from her2.core.reading import MAKE_AGAIN
from her2.core.stamps import FOLDER as STAMPS
from her2.explanation.tiles import NOWHERE
from her2.frozen.bundle.asked import read_spec
from her2.storage.entries import FeatureEntry, TileEntry, read_all_entries
from her2.storage.facts import StoredSlide
from her2.storage.features import places_known, read_attributes, read_coords
from her2.storage.products import present_product
from her2.storage.tiles import TileTable, read_table
from her2.viewer.drawn import DrawnSlides
from her2.viewer.kept import Kept
from her2.viewer.run import PREDICTED, NotThereError, ViewedCohort, ViewedRun
from her2.viewer.state import Viewer

_COHORTS, _SLIDES = 16, 16
_LARGEST = 1e5
"""Of the sides of tiles in px, and of um/px."""


def bucket_names(run: ViewedRun, cohort: ViewedCohort) -> tuple[str, ...]:
    """Return the buckets of a cohort; none of predictions by a bundle, which leave no features.

    They are asked of the job that made the cohort's table, which is there before anything can be
    looked at; the report is the last job of a run. Files of other buckets may be left over from
    another manifest.

    Raises:
        UserError: that job does not say, or is of another version.
    """
    if cohort.key == PREDICTED:
        return ()
    stamps = run.folder / STAMPS / cohort.folder.relative_to(run.folder)
    return read_spec(CohortSpec, stamps / "tabulate_cohort.json").buckets


def _said(
    attributes: Mapping[str, Any], store: Path
) -> tuple[StoredSlide, tuple[float | None, int]]:
    """Return what a feature store says of its slide and tiles.

    Raises:
        UserError: it does not say where its tiles are, or these are no sizes of tiles; results may
            come from anywhere, and a picture of so many px would take all memory.
    """
    try:
        if not places_known(attributes):
            raise UserError(f"{NOWHERE}.")
        slide, target = StoredSlide.read(attributes), attributes["target"]
        mpp, px = target.get("mpp"), int(target["px"])
        lengths = [*slide.level0_tile, *slide.mpp, px, *([] if mpp is None else [mpp])]
        if not all(0 < length < _LARGEST for length in lengths):  # NaN is not, either
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{store}: does not say of which size its tiles are. {MAKE_AGAIN}"
        ) from None
    return slide, (mpp, px)


@dataclass(frozen=True, slots=True)
class PlacedTiles:
    """The tiles (n) that an encoder saw of a slide, in the order of its feature store.

    `coords` int32 (n, 2) are x and y of the top left corner in level-0 px, `target` is the um/px
    and px per side as the encoder saw them.
    """

    encoder: str
    coords: NDArray[np.int32]
    slide: StoredSlide
    target: tuple[float | None, int]

    def __len__(self) -> int:
        return len(self.coords)

    def box(self, index: int) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of a tile in level-0 px.

        Raises:
            NotThereError: there is no tile of that number.
        """
        if not 0 <= index < len(self):
            raise NotThereError(f"there is no tile {index}; the slide has {len(self)} of them.")
        (x, y), (width, height) = self.coords[index].tolist(), self.slide.level0_tile
        return x, y, x + width, y + height


class Stored:
    """What was read of the slides that were looked at last. Thread-safe."""

    def __init__(self) -> None:
        self._buckets: Kept[tuple[str, ...]] = Kept(_COHORTS)
        self._tables: Kept[TileTable | None] = Kept(_SLIDES)
        self._placed: Kept[PlacedTiles] = Kept(_SLIDES)

    def forget(self, cohort: ViewedCohort, slide_id: str) -> None:
        """Read a slide again when it is asked for: the run may have been made again."""
        own = cohort.key, slide_id
        self._buckets.forget(lambda _: True)
        for kept in (self._tables, self._placed):
            kept.forget(lambda key: isinstance(key, tuple) and key[:2] == own)

    def bucket(self, viewer: Viewer, cohort: ViewedCohort, slide_id: str) -> str | None:
        """Return the bucket of a slide, None where the run had no such slide."""
        names = self._buckets.get(cohort.key, lambda: bucket_names(viewer.run, cohort))
        return next(iter(buckets_of(slide_id, names)), None)

    def tile_entry(
        self, viewer: Viewer, cohort: ViewedCohort, slide_id: str, grid: str
    ) -> TileEntry | None:
        """Return what tiling a slide on a grid gave, None where it was not tiled."""
        folder = cohort.folder / "tiles" / grid
        bucket = self.bucket(viewer, cohort, slide_id)
        if bucket is None or not (folder / f"{bucket}.json").exists():
            return None
        return read_all_entries(folder, [bucket], TileEntry).get(slide_id)

    def table(
        self, viewer: Viewer, cohort: ViewedCohort, slide_id: str, grid: str
    ) -> TileTable | None:
        """Return a slide's tile table on a grid, None where there is none.

        Raises:
            UserError: it is missing or damaged.
        """

        def read() -> TileTable | None:
            entry = self.tile_entry(viewer, cohort, slide_id, grid)
            if entry is None or not entry.key:
                return None
            name = cohort.folder / "tiles" / grid / f"{slide_id}.parquet"
            return read_table(present_product(viewer.cache, "tiles", entry.key, name), entry.key)

        return self._tables.get((cohort.key, slide_id, grid), read)

    def placed(
        self, viewer: Viewer, cohort: ViewedCohort, slide_id: str, encoder: str
    ) -> PlacedTiles:
        """Return the tiles that an encoder saw of a slide.

        Raises:
            NotThereError: the run has no such encoder.
            UserError: the slide has no features by it, or they do not tell where its tiles are.
        """
        viewer.run.check_encoder(encoder)
        if cohort.key == PREDICTED:
            tiles = viewer.part(DrawnSlides).of(cohort, slide_id)
            return PlacedTiles(encoder, tiles.coords, tiles.slide, (None, tiles.encoder_px))

        def read() -> PlacedTiles:
            store = self._store(viewer, cohort, slide_id, encoder)
            attributes: dict[str, Any] = read_attributes(store)
            return PlacedTiles(encoder, read_coords(store), *_said(attributes, store))

        return self._placed.get((cohort.key, slide_id, encoder), read)

    def _store(self, viewer: Viewer, cohort: ViewedCohort, slide_id: str, encoder: str) -> Path:
        folder = cohort.folder / "features" / encoder
        bucket = self.bucket(viewer, cohort, slide_id)
        if bucket is None or not (folder / f"{bucket}.json").exists():
            raise UserError(f"it was not embedded by {encoder}.")
        entry = read_all_entries(folder, [bucket], FeatureEntry).get(slide_id)
        if entry is None or entry.status != "ok" or not entry.key:
            reason = "it was not embedded" if entry is None else entry.reason or entry.status
            raise UserError(f"it has no features by {encoder}: {reason}")
        name = folder / f"{slide_id}.zarr.zip"
        return present_product(viewer.cache, "features", entry.key, name)
