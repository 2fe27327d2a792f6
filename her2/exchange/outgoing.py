"""Features out: what a results folder has to export, slide by slide, and what is said of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2 import __version__
from her2.config.names import cohort_folder
from her2.core.errors import UserError
from her2.core.files import file_digest
from her2.core.stamps import FOLDER, read_stamp
from her2.core.tables import read_result
from her2.encoders.card import EncoderCard
from her2.frozen.bundle.licence import may_be_passed_on
from her2.frozen.stores import bucket_names
from her2.pretraining.overlap import lineage
from her2.storage.entries import FeatureEntry, read_all_entries
from her2.storage.facts import StoredSlide
from her2.storage.features import BLOCK_BYTES, FeatureStore, open_store, read_coords

LABEL = "label_"
"""What the cohort's table has before the names of label columns."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the manifest says of a slide: its patient, and label column -> class, if it has one."""

    patient_id: str
    labels: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The features of an encoder in a results folder, and all that is said of them.

    Attributes:
        encoder: its name in the config.
        card: what is known of it.
        cohort: name of an external cohort; empty: the development cohort.
        features: the folder of the stores.
        entries: slide id -> what embedding said of it.
        rows: slide id -> what the manifest says; None where the results have no table of it.
        caution: what the licence of the encoder's weights may mean for features; None: nothing.
        overlap: share of a tile's side by which the next one covers it; None: not known.
    """

    encoder: str
    card: EncoderCard
    cohort: str
    features: Path
    entries: Mapping[str, FeatureEntry]
    rows: Mapping[str, Row] | None
    caution: str | None
    overlap: float | None

    def provenance(self) -> dict[str, Any]:
        """Return what every export says of the encoder and of the program, as JSON values."""
        return {
            "program": f"her2 {__version__}",
            "encoder": {
                "name": self.encoder,
                "digest": self.card.digest,
                "source": self.card.source,
                "architecture": f"{self.card.library}/{self.card.architecture}",
                "feature": self.card.feature,
                "dimension": self.card.dimension,
                "weights_sha256": self.card.weights_sha256,
                "licence": self.card.licence or "not stated",
            },
            **({"licence_caution": self.caution} if self.caution else {}),
        }


@dataclass(frozen=True)
class SlideFeatures:
    """The features of a slide, mapped, and where its tiles lie.

    Attributes:
        slide_id: the slide.
        store: features (n, d).
        slide: um/px, size, and side of a tile (width, height) in level-0 px.
        mpp: um/px of a tile as the encoder saw it.
        tile_px: its side in px.
    """

    slide_id: str
    store: FeatureStore
    slide: StoredSlide
    mpp: float
    tile_px: int

    @cached_property
    def coords(self) -> NDArray[np.int32]:
        """Top left corners of the tiles, int32 (n, 2), level-0 px."""
        return read_coords(self.store.path)

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
        names = ("key", "failed_tiles", "precision", "software")
        return {
            "slide_id": self.slide_id,
            "seal": self.seal,
            **{name: found[name] for name in names if name in found},
            "slide": {
                "fingerprint": self.slide.fingerprint,
                "um_per_px": list(self.slide.mpp),
                "um_per_px_from": self.slide.mpp_source,
                "size_px": list(self.slide.size_px),
            },
            "tile": {
                "um_per_px": self.mpp,
                "px": self.tile_px,
                "level0_px": list(self.slide.level0_tile),
            },
            "coordinates": "top left corners of the tiles, level-0 px",
        }


def read_outgoing(results: Path, encoder: str | None, cohort: str) -> Outgoing:
    """Read what there is to export of an encoder.

    Args:
        results: the results folder of a run.
        encoder: its name; None: the only one that has features.
        cohort: name of an external cohort; empty: the development cohort.

    Raises:
        UserError: there are no features of this encoder and cohort, or they cannot be read; it
            names those that there are.
    """
    if not results.is_dir():
        raise UserError(f"{results}: is no folder; give the results of a run.")
    part = results / (cohort_folder(cohort) if cohort else "")
    if cohort and not part.is_dir():
        known = _names(results / "validation", "features")
        raise UserError(
            f"--cohort {cohort}: {results} has no such external cohort; it has "
            f"{', '.join(known) or 'none'}. Without --cohort, the development cohort is exported."
        )
    encoder = _encoder(part / "features", encoder)
    features = part / "features" / encoder
    cards = lineage(results / "encoders" / encoder)
    return Outgoing(
        encoder=encoder,
        card=cards[0],
        cohort=cohort,
        features=features,
        entries=read_all_entries(features, bucket_names(features), FeatureEntry),
        rows=_rows(part / "cohort" / "slides.parquet"),
        caution=_caution(results, encoder, cards),
        overlap=_overlap(results, cohort, cards[0]),
    )


def open_slide_features(outgoing: Outgoing, slide_id: str, key: str) -> SlideFeatures:
    """Open the features of a slide.

    Raises:
        UserError: the store is absent or damaged, contains the features of another slide or
            encoder, or does not say where its tiles are.
    """
    path = outgoing.features / f"{slide_id}.zarr.zip"
    store = open_store(path, key)
    of = store.attributes.get("encoder", {}).get("digest")
    if of is not None and of != outgoing.card.digest:
        raise UserError(
            f"{path}: is of the encoder {of[:12]}, but {outgoing.encoder} is now "
            f"{outgoing.card.digest[:12]}. Run snakemake again."
        )
    try:
        target = store.attributes["target"]
        found = SlideFeatures(
            slide_id, store, StoredSlide.read(store.attributes), target["mpp"], target["px"]
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: does not say where its tiles are ({error}).") from None
    if len(found.coords) != len(store):
        raise UserError(
            f"{path}: has {len(store)} rows of features for {len(found.coords)} tiles. Delete it "
            "and run snakemake again."
        )
    return found


def _encoder(features: Path, name: str | None) -> str:
    known = _names(features, "*-of-*.json")
    if name in known:
        return name
    if name is None and len(known) == 1:
        return known[0]
    if not known:
        raise UserError(
            f"{features}: no encoder has features there. Make them with `snakemake --cores 1 "
            "features`."
        )
    said = "several encoders have features" if name is None else f"no features of {name!r}"
    raise UserError(f"{features}: {said}; give --encoder with one of {', '.join(known)}.")


def _names(folder: Path, content: str) -> list[str]:
    """Return the names of the folders in a folder that have such content."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if any(path.glob(content)))


def _rows(table: Path) -> dict[str, Row] | None:
    if not table.exists():
        return None
    found = read_result(table).unique("slide_id", keep="first").sort("slide_id")
    labels = [name for name in found.columns if name.startswith(LABEL)]
    return {
        row["slide_id"]: Row(
            row["patient_id"], {name.removeprefix(LABEL): row[name] for name in labels}
        )
        for row in found.select("slide_id", "patient_id", *labels).iter_rows(named=True)
    }


def _caution(results: Path, encoder: str, cards: list[EncoderCard]) -> str | None:
    """Return what the licence of the weights may mean for features that were made with them."""
    stamp = read_stamp(results / FOLDER / "materialise_encoder" / f"{encoder}.json")
    row = None
    if stamp is not None and cards[0].source == "catalogue":
        row = stamp.spec.get("encoder", {}).get("model")
    found = may_be_passed_on(cards, row)
    if found.allowed:
        return None
    return (
        f"the weights of the encoder {encoder!r} may not be passed on ({found.why}). Some licences "
        "count features among what is derived from the weights, and forbid commercial use of them "
        "or passing them on: read that of these weights before you do either."
    )


def _overlap(results: Path, cohort: str, card: EncoderCard) -> float | None:
    """Return the overlap of tiles, which the stamp of any tiling job of the grid has."""
    folder = results / FOLDER / (cohort_folder(cohort) if cohort else "") / "tile_bucket"
    grid = folder / f"{card.size}px-{card.mpp:.10g}mpp"
    stamp = next(filter(None, map(read_stamp, sorted(grid.glob("*.json")))), None)
    return None if stamp is None else stamp.spec.get("tiling", {}).get("overlap")
