"""Stage 1, tile: tile tables of a bucket of slides, and the bucket's entries file."""

import logging
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

from her2.cohort.cautions import cautions, seen
from her2.cohort.manifest import Cohort, SlideRow
from her2.config import TilingSection
from her2.config.jobs import TileSpec
from her2.core.crashes import reading
from her2.core.errors import SlideError, SlideUnfit, TileError, blamed_on
from her2.core.events import write_event
from her2.core.files import digest, file_digest, link
from her2.core.reading import check_regular
from her2.core.types import RGB
from her2.filters.registry import FILTERS
from her2.segmenters import chosen, class_filters
from her2.slides.annotations import chosen_regions
from her2.slides.backends import read_header
from her2.slides.fingerprint import checksum, fingerprint
from her2.slides.slide import Slide
from her2.storage.cache import Cache
from her2.storage.entries import Status, TileEntry, write_entries
from her2.storage.pictures import sealed_picture
from her2.storage.products import LookUp, trusted
from her2.storage.tiles import TileTable, read_table, write_table
from her2.tiling.grid import Sources, tile_slide

if TYPE_CHECKING:
    from her2.tiling.segmentation import SegmenterNetwork

log = logging.getLogger(__name__)

_NOT_OF_TILES = {
    "min_tiles",
    "segmenter", "segmenter_weights", "segmenter_sha256",
    "artefact_segmenter", "artefact_segmenter_weights", "artefact_segmenter_sha256",
    "artefact_limits",
}  # fmt: skip
"""Keys of `tiling:` that are no part of a table's identity, or are there in another form."""


def tile_bucket(
    spec: TileSpec,
    cohort: Cohort,
    cache: Cache,
    output: Path,
    *,
    tissue_masks: Path | None = None,
    segmenter: Path | None = None,
    artefact_segmenter: Path | None = None,
    threads: int = 1,
) -> dict[str, TileEntry]:
    """Tile the slides of a bucket; a slide that fails becomes an entry with its reason.

    Args:
        spec: the job.
        cohort: the manifest, for the files of slides, annotations and masks.
        cache: cache for tile tables and QC pictures.
        output: the entries file to write; links with the slides' names are put beside it.
        tissue_masks: folder of masks that replace the tissue detection.
        segmenter: folder of the tissue segmenter's weights; default: from where they are published.
        artefact_segmenter: the same of the artefact segmenter.
        threads: number of slides tiled at the same time.
    """
    cv2.setNumThreads(1)  # the pool uses all of the job's threads
    networks: dict[str, SegmenterNetwork] = {}
    if chosen(spec.tiling):
        from her2.tiling.segmenter import networks_of  # torch, which no other tiling needs

        folders = {"segmenter": segmenter, "artefact_segmenter": artefact_segmenter}
        networks = networks_of(spec.tiling, folders, threads=threads)

    def tile(row: SlideRow) -> TileEntry:
        with blamed_on(row.slide_id):
            try:
                with reading(row.slide_id):
                    return _tile_row(spec, cohort, row, cache, tissue_masks, networks)
            except (SlideError, TileError) as error:
                return _left_out(row, error)

    rows = cohort.bucket(spec.bucket)
    with ThreadPoolExecutor(threads) as pool:
        entries = list(pool.map(tile, rows))
    found = {row.slide_id: entry for row, entry in zip(rows, entries, strict=True)}
    _name_products(found, cache, output.parent)
    write_entries(output, found)
    return found


def tile_identity(
    spec: TileSpec,
    cohort: Cohort,
    row: SlideRow,
    tissue_masks: Path | None,
    *,
    content: str,
    networks: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return everything that determines a slide's tile table; its digest is the table's key.

    `tissue_masks` is the folder of masks that replace the tissue detection, `content` the slide's
    fingerprint, `networks` the identities of the segmenters by the keys that name them. That of
    tissue only counts for slides without a mask.

    Raises:
        SlideError: the annotation or mask cannot be read.
    """
    annotation = _content(cohort.annotation_file(row), "annotation")
    mask = _content(cohort.mask_file(row, tissue_masks), "tissue mask")
    found = dict(networks or {})
    tissue, artefacts = found.pop("segmenter", None), found.pop("artefact_segmenter", None)
    if tissue is not None and mask is None:
        found["segmenter"] = tissue
    if artefacts is not None:
        limits = {one.short: one.limit_in(spec.tiling) for one in class_filters(spec.tiling)}
        found["artefacts"] = {**artefacts, "limits": limits}
    return {
        "stage": "tile",
        "version": spec.version,
        "fingerprint": content,
        "manifest_mpp": row.mpp,
        "target": [spec.mpp, spec.size],
        "tiling": spec.tiling.model_dump(exclude=_NOT_OF_TILES),
        "seed": spec.seed,
        "annotation": annotation,
        "mask": mask,
        **found,
    }


def find_tiles(
    cache: Cache, slide: Path, identity: dict[str, Any], look_up: LookUp = trusted
) -> tuple[dict[str, Any], TileTable | None]:
    """Return the tile table of a slide in the cache, or None, and the identity to ask for.

    The fingerprint samples large files. If the table under its key comes from other bytes (a copy
    that was damaged between the samples), the slide's checksum becomes part of the identity.

    Raises:
        SlideError: the slide cannot be read.
    """
    table = _cached(cache, identity, look_up)
    if table is None or table.facts.checksum is None:
        return identity, table
    own = checksum(slide, cache.checksums)
    if own == table.facts.checksum:
        return identity, table
    log.info("%s: has the samples of a slide in the cache, but other bytes", slide)
    identity = {**identity, "checksum": own}
    return identity, _cached(cache, identity, look_up)


def _cached(cache: Cache, identity: dict[str, Any], look_up: LookUp) -> TileTable | None:
    key = digest(identity)
    path, picture = look_up(cache, "tiles", key), look_up(cache, "qc", key)
    return read_table(path, key) if path and picture else None


def _tile_row(
    spec: TileSpec,
    cohort: Cohort,
    row: SlideRow,
    cache: Cache,
    tissue_masks: Path | None,
    networks: "Mapping[str, SegmenterNetwork]",
) -> TileEntry:
    try:
        slide_file = cohort.file(row)
        content = fingerprint(slide_file)
        identities = {key: network.identity for key, network in networks.items()}
        identity = tile_identity(
            spec, cohort, row, tissue_masks, content=content, networks=identities
        )
        identity, cached = find_tiles(cache, slide_file, identity)
        key = digest(identity)
        if cached is None:
            annotation, classes = cohort.annotation_file(row), spec.tiling.annotation_classes
            regions = None if annotation is None else chosen_regions(annotation, classes)
            # A second thread, since the whole file is read for it, and digests release the lock.
            with ThreadPoolExecutor(1) as beside, Slide(slide_file) as slide:
                proof = beside.submit(checksum, slide_file, cache.checksums)
                if annotation is not None:
                    _warn_of_origin(spec, row, annotation, slide)
                table, picture = tile_slide(
                    slide,
                    slide.scale(row.mpp),
                    mpp=spec.mpp,
                    size=spec.size,
                    tiling=spec.tiling,
                    fingerprint=content,
                    sources=Sources(
                        regions, cohort.mask_file(row, tissue_masks), spec.seed, networks
                    ),
                )
                facts = replace(table.facts, checksum=proof.result())
            _publish(cache, key, replace(table, facts=facts, identity=identity), picture)
            if words := _words(table.facts.rejected, spec.tiling):
                log.info("%s: tiles rejected: %s", row.slide_id, words)
            log.info("%s: %d tiles cut", row.slide_id, len(table))
            write_event("tiled", row.slide_id, tiles=len(table))
        else:
            table = cached
            log.info("%s: %d tiles from the cache", row.slide_id, len(table))
            write_event("tiled", row.slide_id, tiles=len(table), cached=True)
    except (SlideError, TileError) as error:
        return _left_out(row, error)
    table = replace(table, facts=replace(table.facts, file_mpp=_file_mpp(slide_file, row)))
    for caution in cautions([seen(row.slide_id, table.facts)]):
        log.warning(caution)
    return _entry(key, table, spec.tiling)


def _file_mpp(slide_file: Path, row: SlideRow) -> tuple[float, float] | None:
    """Return the um/px (x, y) of a file where the manifest's counts; None if the file has none.

    It is read from the file, also where the tile table is in the cache: tables do not have it.
    """
    if row.mpp is None:
        return None
    with suppress(SlideError), reading(row.slide_id):
        found = read_header(slide_file).mpp
        return found if found and all(map(math.isfinite, found)) and min(found) > 0 else None
    return None


def _left_out(row: SlideRow, error: SlideError | TileError) -> TileEntry:
    status: Status = "excluded" if isinstance(error, SlideUnfit) else "failed"
    log.warning("%s: %s: %s", row.slide_id, status, error)
    write_event("left_out", row.slide_id, reason=str(error))
    damaged = isinstance(error, TileError)
    return TileEntry(status, f"damaged, copy it again ({error})" if damaged else str(error))


def _warn_of_origin(spec: TileSpec, row: SlideRow, annotation: Path, slide: Slide) -> None:
    """Warn if QuPath may count from the scanned area, which its files do not say."""
    from_level0 = spec.tiling.annotation_origin == "level0"
    if from_level0 and slide.bounds_corner_px != (0, 0) and annotation.suffix.lower() != ".xml":
        x, y = slide.bounds_corner_px
        log.warning(
            "%s: its scanned area begins at %d, %d. QuPath's annotations count from there unless "
            "it opened the slide with --no-crop: set tiling.annotation_origin to bounds",
            row.slide_id,
            x,
            y,
        )


def _content(path: Path | None, what: str) -> str | None:
    """Return the digest of an annotation or mask, or None without one."""
    if path is None:
        return None
    try:
        check_regular(path)
        return file_digest(path)
    except FileNotFoundError:
        raise SlideError(f"its {what} {path.name} does not exist") from None
    except OSError as error:
        raise SlideError(f"its {what} {path.name} cannot be read ({error.strerror})") from None


def _entry(key: str, table: TileTable, tiling: TilingSection) -> TileEntry:
    facts, reason = table.facts, None
    words = _words(facts.rejected, tiling)
    if facts.tissue_mm2 == 0:
        reason = (
            "no tissue found"
            if facts.regions is None
            else "no tissue found in its annotated regions"
        )
    elif len(table) < tiling.min_tiles:
        found = f"{len(table)} tile(s) with tissue"
        if words:
            total = len(table) + sum(facts.rejected.values())
            found = f"{len(table)} of {total} tiles with tissue kept (rejected: {words})"
        reason = f"{found}, fewer than tiling.min_tiles {tiling.min_tiles}"
    facts = replace(facts, checksum=None)  # entries name the product, which has it
    return TileEntry("excluded" if reason else "ok", reason, key, len(table), facts)


def _words(rejected: Mapping[str, int], tiling: TilingSection) -> str:
    """Return e.g. `12 for pen, 3 for blur`, in the order of the filters; empty if all are kept."""
    filters = (*FILTERS, *class_filters(tiling))
    found = [(rejected.get(one.name, 0), one.name) for one in filters]
    return ", ".join(f"{number} for {name}" for number, name in found if number)


def _publish(cache: Cache, key: str, table: TileTable, picture: RGB) -> None:
    with cache.publish("qc", key) as path:
        # cv2.imwrite would ignore a full disk.
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
        path.write_bytes(sealed_picture(jpeg, key))
    with cache.publish("tiles", key) as path:
        write_table(path, table, key)


def _name_products(entries: dict[str, TileEntry], cache: Cache, folder: Path) -> None:
    for slide_id, entry in entries.items():
        table, picture = folder / f"{slide_id}.parquet", folder / f"{slide_id}.qc.jpg"
        if entry.key:
            link(cache.path("tiles", entry.key), table)
            link(cache.path("qc", entry.key), picture)
        else:  # old products must not look like those of a slide that now fails
            table.unlink(missing_ok=True)
            picture.unlink(missing_ok=True)
