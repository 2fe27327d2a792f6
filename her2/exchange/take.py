"""Stage 1, features computed elsewhere: taken in, with the entries that tiling and embedding make.

What follows (checks, folds, training, report) reads these entries and stores like any others. What
neither the file nor a slide tells, such as the area of tissue, is None and never guessed.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import her2
from her2.cohort.manifest import Cohort, SlideRow
from her2.config.jobs import DescribeSpec, TakeSpec
from her2.core.checksums import State, digest_of, state_of
from her2.core.crashes import reading
from her2.core.errors import SlideError, SlideUnfit, blamed_on, problem_list
from her2.core.events import write_event
from her2.core.files import digest, file_digest, link
from her2.encoders.card import GIVEN, EncoderCard, read_card, write_card
from her2.exchange.checks import check_given, finite_blocks, mixed_dimensions
from her2.exchange.given import Given, read_given
from her2.exchange.matching import MatchedFiles
from her2.exchange.placing import Known, Placed, place
from her2.exchange.slides import match_slides, names_of, other_names
from her2.slides.fingerprint import checksum, fingerprint
from her2.slides.slide import Slide
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, Status, TileEntry, write_entries
from her2.storage.facts import SlideFacts, TileGrid
from her2.storage.features import write_rows
from her2.storage.products import note_intact, trusted
from her2.storage.tiles import TileTable, coords_digest, write_table

log = logging.getLogger(__name__)

JSON = dict[str, Any]
NOT_RECORDED = "not recorded"
"""The precision in which another program computed."""
_OF_ONE_FILE = frozenset({"name", "level0_width", "level0_height"})
"""What a file says of its slide alone."""
ELSEWHERE = "another program"
"""Where the tissue of such a slide was found."""


def describe_features(
    spec: DescribeSpec, cohort: Cohort, folders: str, output: Path
) -> EncoderCard:
    """Write the card of an encoder whose features another program computed.

    The dimension is that of most files, and so is whether a row is a tile or a whole slide.

    Args:
        spec: the job.
        cohort: the development cohort, whose files are looked at.
        folders: the folders of feature files, a JSON list.
        output: folder for `card.json`.

    Raises:
        UserError: no file of a slide can be read.
    """
    matched = match_slides(cohort, _folders(folders), spec.format)
    found: dict[str, Given] = {}
    problems: list[str] = []
    for slide_id, path in sorted(matched.files.items()):
        try:
            with reading(slide_id):
                given = read_given(path, spec.format)
        except SlideError as error:
            problems.append(f"{slide_id}: {error}")
            continue
        if given.rows:
            found[slide_id] = given
    if not found:
        raise problem_list(
            f"{output.name}: none of its feature files can be used; correct its `path` or `format`",
            problems
            or [f"{name}: {why}" for name, why in matched.ambiguous.items()]
            or [f"{len(matched.files)} file(s) of slides, all without features"],
        )
    mixed = mixed_dimensions({name: (one.level, one.dimension) for name, one in found.items()})
    alike = [one for name, one in found.items() if name not in mixed]
    if not alike:
        raise problem_list(
            f"{output.name}: its feature files are of several encoders; name one folder in `path`",
            [f"{name}: {problem}" for name, problem in mixed.items()],
        )
    first = alike[0]
    level, dimension = first.level, first.dimension
    size, mpp = spec.size, spec.mpp
    if level == "tile":
        size = size or first.tile_px
        if mpp is None and first.unit == "um" and first.tile is not None and size:
            mpp = round(first.tile / size, 6)
    card = EncoderCard(
        source=GIVEN,
        library="computed elsewhere",
        architecture=spec.identity,
        arguments={"level": level, "dimension": dimension},
        feature="slide vector" if level == "slide" else "tile",
        dimension=dimension,
        size=size,
        mpp=mpp,
        mean=None,
        std=None,
        precision=NOT_RECORDED,
        storage=_most([one.dtype.name for one in alike]),
        licence="",
        weights_sha256="",
        provenance={
            "computed": "elsewhere",
            "form": ", ".join(sorted({one.form for one in alike})),
            **_stated_by_all(alike),
        },
    )
    write_card(output, card)
    log.info(
        "%s: %d files of %s, %d features a %s; not computed here",
        output.name, len(alike), card.provenance["form"], dimension, level,
    )  # fmt: skip
    return card


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
    matched = match_slides(cohort, _folders(folders), spec.format)
    entries: dict[str, FeatureEntry] = {}
    tile_entries: dict[str, TileEntry] = {}
    for row in cohort.bucket(spec.bucket):
        name = row.slide_id
        try:
            with blamed_on(name), reading(name):
                taken = _Take(spec, card, cache, _file_of(matched, name), cohort, row)
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
        return digest(_Take(spec, read_card(card), cache, path, cohort, row).asked().store_identity)


def _file_of(matched: MatchedFiles, slide_id: str) -> Path:
    path = matched.files.get(slide_id)
    if path is None:
        why = "no feature file has its id, its file's name or its barcode"
        raise SlideUnfit(matched.ambiguous.get(slide_id, why))
    return path


def _known(cohort: Cohort, row: SlideRow, cache: Cache) -> Known:
    """Return what the slide's file and its row tell; of an absent slide only the row.

    Raises:
        SlideError: the slide is there and cannot be read.
    """
    own = None if row.mpp is None else (row.mpp, row.mpp)
    path = cohort.present_file(row)
    if path is None:
        return Known(mpp=own, mpp_source=None if own is None else "manifest")
    try:
        with Slide(path) as slide:
            mpp, source = None, None
            with suppress(SlideUnfit):  # without um/px, the features may still be used
                scale = slide.scale(row.mpp)
                mpp, source = (scale.mpp_x, scale.mpp_y), scale.source
            return Known(
                fingerprint=fingerprint(path),
                checksum=checksum(path, cache.checksums),
                vendor=slide.vendor,
                size_px=(slide.width_px, slide.height_px),
                mpp=mpp,
                mpp_source=source,
            )
    except SlideError as error:
        raise type(error)(
            f"{error} (its slide; empty the column 'path' to use its features without it)"
        ) from None


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a slide's file and the config ask for, and the identities of its products."""

    given: Given
    placed: Placed
    facts: SlideFacts
    table_identity: JSON
    store_identity: JSON
    state: State


@dataclass(frozen=True, slots=True)
class _Take:
    """One slide's file, and all that its products depend on."""

    spec: TakeSpec
    card: EncoderCard
    cache: Cache
    path: Path
    cohort: Cohort
    row: SlideRow

    def result(self) -> tuple[TileEntry, FeatureEntry]:
        """Return the entries of the slide, whose products are then in the cache.

        Raises:
            SlideError: the file cannot be used.
        """
        asked = self.asked()
        given = asked.given
        for caution in asked.placed.cautions:
            log.warning("%s: %s", self.row.slide_id, caution)
        key = self._store(asked)
        table = self._table(asked)
        shown = replace(asked.facts, checksum=None)  # entries name the product, which has it
        return (
            TileEntry("ok", None, table, given.rows, shown),
            FeatureEntry("ok", None, key, given.rows, 0, given.dimension),
        )

    def asked(self) -> _Asked:
        """Read all of the file but its features, check it, and return what is asked for.

        Raises:
            SlideError: the file cannot be used.
        """
        known = _known(self.cohort, self.row, self.cache)
        state = self._state()
        given = read_given(self.path, self.spec.format)
        self._check(given, known)
        placed = place(given, known, mpp=self.spec.mpp, size=self.spec.size)
        content = _content(self.path, state, self.cache)
        self._still(state)
        facts = _facts(placed, known, content)
        table = {
            "stage": "take",
            "version": self.spec.version,
            "file": content,
            "fingerprint": facts.fingerprint,
            "tiles": coords_digest(placed.coords, placed.level0_tile),
            "mpp": placed.mpp and list(placed.mpp),
            "target": [placed.target_mpp, placed.target_px],
        }
        store = {
            **table,
            "encoder": self.card.digest,
            "precision": NOT_RECORDED,
            "storage": given.dtype.name,
        }
        return _Asked(given, placed, facts, table, store, state)

    def _state(self) -> State:
        try:
            return state_of([self.path], changes=True)
        except OSError as error:
            raise SlideError(f"its feature file cannot be read ({error.strerror})") from None

    def _still(self, state: State) -> None:
        """Raise a SlideError where the file is not what it was, and its digest of other bytes."""
        if self._state() != state:
            raise SlideError(
                f"{self.path.name} was changed or replaced while it was read; run again when the "
                "program that writes it has finished"
            )

    def _check(self, given: Given, known: Known) -> None:
        checked = check_given(
            given,
            names=names_of(self.row),
            others=other_names(self.cohort, self.row),
            size_px=known.size_px,
            mpp=None if known.mpp is None else known.mpp[0],
        )
        for caution in checked.cautions:
            log.warning("%s: %s", self.row.slide_id, caution)
        problems = [*checked.problems]
        level = self.card.arguments["level"]
        if given.rows and given.level != level:
            problems.append(
                f"its file holds features of a {given.level}, those of the encoder are of a "
                f"{level}; give each encoder a folder of its own, or, if it is the only tile of "
                "its slide, name the form with `format`"
            )
        elif given.rows and given.dimension != self.card.dimension:
            problems.append(
                f"it has {given.dimension} features per row, the encoder's other files have "
                f"{self.card.dimension}; keep the files of one encoder in a folder"
            )
        if not problems and level == "tile" and given.rows < self.spec.min_tiles:
            problems.append(
                f"{given.rows} tile(s), fewer than tiling.min_tiles {self.spec.min_tiles}"
            )
        if problems:
            raise SlideUnfit("; ".join(problems))

    def _store(self, asked: _Asked) -> str:
        """Return the key of the feature store, which is then in the cache."""
        name, given, placed = self.row.slide_id, asked.given, asked.placed
        key = digest(asked.store_identity)
        if trusted(self.cache, "features", key) is not None:
            log.info("%s: %d features from the cache", name, given.rows)
            write_event("embedded", name, tiles=given.rows, cached=True)
            return key
        attributes = {
            "key": key,
            "identity": asked.store_identity,
            "tiles": given.rows,
            "failed_tiles": 0,
            "dimension": given.dimension,
            "slide": {
                "fingerprint": asked.facts.fingerprint,
                "mpp": placed.mpp,
                "mpp_source": placed.mpp_source,
                "level0_tile": placed.level0_tile,
                "size_px": placed.size_px,
                "checksum": asked.facts.checksum,
            },
            "target": {"mpp": placed.target_mpp, "px": placed.target_px},
            "encoder": {
                "digest": self.card.digest,
                "architecture": self.card.architecture,
                "feature": self.card.feature,
                "weights_sha256": self.card.weights_sha256,
            },
            "precision": NOT_RECORDED,
            "software": {"her2": her2.__version__},
            "given": {
                "computed": "elsewhere",
                "identity": self.card.architecture,
                "form": given.form,
                "level": given.level,
                "positions": placed.positions,
                "stated": dict(given.stated),
            },
        }
        shape = given.rows, given.dimension
        megabytes = shape[0] * shape[1] * given.dtype.itemsize / 1e6
        with self.cache.publish("features", key, megabytes=megabytes) as temporary:
            dtype = given.dtype.newbyteorder("=")
            blocks = finite_blocks(given)
            write_rows(temporary, blocks, shape, dtype, placed.coords, lambda: attributes)
            self._still(asked.state)
        note_intact(self.cache, key)
        log.info("%s: %d features taken from %s", name, given.rows, self.path.name)
        write_event("embedded", name, tiles=given.rows)
        return key

    def _table(self, asked: _Asked) -> str | None:
        """Return the key of the tile table, which is then in the cache; None without positions."""
        placed = asked.placed
        if placed.level0_tile is None or placed.target_mpp is None or placed.target_px is None:
            return None
        key = digest(asked.table_identity)
        if trusted(self.cache, "tiles", key) is None:
            table = TileTable(
                coords=placed.coords,
                tissue=np.full(len(placed.coords), np.nan, np.float32),
                facts=asked.facts,
                grid=TileGrid(
                    target_mpp=placed.target_mpp,
                    tile_px=placed.target_px,
                    level0_width=placed.level0_tile[0],
                    level0_height=placed.level0_tile[1],
                    read_level=0,
                ),
                identity=asked.table_identity,
            )
            with self.cache.publish("tiles", key) as temporary:
                write_table(temporary, table, key)
        return key


def _facts(placed: Placed, known: Known, content: str) -> SlideFacts:
    """Return what is known of a slide; one that is absent is identified by its features."""
    mpp, size_px = placed.mpp or (None, None), placed.size_px or (None, None)
    return SlideFacts(
        fingerprint=known.fingerprint or content,
        checksum=known.checksum,
        vendor=known.vendor,
        width_px=size_px[0],
        height_px=size_px[1],
        mpp_x=mpp[0],
        mpp_y=mpp[1],
        mpp_source=placed.mpp_source,
        tissue_mm2=None,
        tissue_source=ELSEWHERE,
    )


def _folders(text: str) -> list[Path]:
    return [Path(one) for one in json.loads(text)]


def _content(path: Path, state: State, cache: Cache) -> str:
    """Return the digest of a feature file, computed once for each state of it."""
    try:
        found = digest_of(cache.checksums, path, state, lambda: file_digest(path))
    except OSError as error:
        raise SlideError(f"its feature file cannot be read ({error.strerror})") from None
    return found


def _most(values: list[str]) -> str:
    return Counter(values).most_common(1)[0][0]


def _stated_by_all(files: list[Given]) -> JSON:
    """Return what all files say alike, such as the program that made them."""
    first = files[0].stated
    return {
        name: value
        for name, value in sorted(first.items())
        if name not in _OF_ONE_FILE and all(one.stated.get(name) == value for one in files)
    }


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


def _link_one(cache: Cache, kind: Any, key: str | None, name: Path) -> None:
    if key is None:
        name.unlink(missing_ok=True)
    else:
        link(cache.path(kind, key), name)
