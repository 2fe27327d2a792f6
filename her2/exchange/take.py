"""Stage 1, features computed elsewhere: taken in, with the entries that tiling and embedding make.

What follows (checks, folds, training, report) reads these entries and stores like any others. What
neither the file nor a slide tells, such as the area of tissue, is None and never guessed.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from her2.cohort.manifest import Cohort, SlideRow
from her2.config.jobs import TakeSpec
from her2.core.crashes import reading
from her2.core.errors import SlideError, SlideUnfit, blamed_on
from her2.core.events import write_event
from her2.core.files import digest, link
from her2.encoders.card import read_card
from her2.exchange.matching import MatchedFiles
from her2.exchange.slides import folders_in, match_slides
from her2.exchange.taking import Taking
from her2.storage.cache import Cache, Kind
from her2.storage.entries import FeatureEntry, Status, TileEntry, write_entries

log = logging.getLogger(__name__)


def take_features(
    spec: TakeSpec,
    cohort: Cohort,
    cache: Cache,
    *,
    folders: str,
    encoder: Path,
    tiles: Path,
    output: Path,
) -> dict[str, FeatureEntry]:
    """Take in the features of a bucket of slides; one that fails becomes an entry with its reason.

    Args:
        spec: the job.
        cohort: the cohort, all of whose slides are matched with the files.
        cache: receives the stores and tile tables.
        folders: the folders of feature files, a JSON list.
        encoder: the encoder's folder, for its card.
        tiles: the entries file of the tiles to write; tile tables are linked beside it.
        output: the entries file of the features to write; stores are linked beside it.
    """
    card = read_card(encoder)
    matched = match_slides(cohort, folders_in(folders), spec.format)
    entries: dict[str, FeatureEntry] = {}
    tile_entries: dict[str, TileEntry] = {}
    for row in cohort.bucket(spec.bucket):
        name = row.slide_id
        try:
            with blamed_on(name), reading(name):
                taken = Taking(spec, card, cache, _file_of(matched, name), cohort, row)
                tile_entries[name], entries[name] = taken.result()
        except SlideError as error:
            tile_entries[name], entries[name] = _left_out(name, error)
    _link_all(cache, tile_entries, entries, tiles.parent, output.parent)
    write_entries(tiles, tile_entries)
    write_entries(output, entries)
    return entries


def key_now(
    spec: TakeSpec, cohort: Cohort, cache: Cache, row: SlideRow, *, folders: list[Path], card: Path
) -> str:
    """Return the key that a slide's features have by the files as they are now.

    Args:
        spec: the job.
        cohort: the cohort, all of whose slides are matched with the files.
        cache: keeps digests of files.
        row: the slide.
        folders: the folders of feature files.
        card: the encoder's folder.

    Raises:
        SlideError: the slide's file cannot be used.
    """
    path = _file_of(match_slides(cohort, folders, spec.format), row.slide_id)
    with reading(row.slide_id):
        return digest(
            Taking(spec, read_card(card), cache, path, cohort, row).asked().store_identity
        )


def _file_of(matched: MatchedFiles, slide_id: str) -> Path:
    path = matched.files.get(slide_id)
    if path is None:
        why = "no feature file has its id, its file's name or its barcode"
        raise SlideUnfit(matched.ambiguous.get(slide_id, why))
    return path


def _left_out(name: str, error: SlideError) -> tuple[TileEntry, FeatureEntry]:
    status: Status = "excluded" if isinstance(error, SlideUnfit) else "failed"
    log.warning("%s: %s: %s", name, status, error)
    write_event("left_out", name, reason=str(error))
    return TileEntry(status, str(error)), FeatureEntry(status, str(error))


def _link_all(
    cache: Cache,
    tables: Mapping[str, TileEntry],
    stores: Mapping[str, FeatureEntry],
    tiles: Path,
    features: Path,
) -> None:
    """Link each product under its slide's name; those of slides that fail now go away."""
    for name, entry in tables.items():
        _link_one(cache, "tiles", entry.key, tiles / f"{name}.parquet")
        _link_one(cache, "features", stores[name].key, features / f"{name}.zarr.zip")


def _link_one(cache: Cache, kind: Kind, key: str | None, name: Path) -> None:
    if key is None:
        name.unlink(missing_ok=True)
    else:
        link(cache.path(kind, key), name)
