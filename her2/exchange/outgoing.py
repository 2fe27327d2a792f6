"""Features out: what a results folder has to export, slide by slide, and what is said of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from her2 import __version__
from her2.config.names import cohort_folder
from her2.core.errors import UserError
from her2.core.stamps import FOLDER, read_stamp
from her2.core.tables import read_result
from her2.encoders.card import GIVEN, EncoderCard
from her2.exchange.slide_features import SlideFeatures
from her2.frozen.bundle.licence import may_be_passed_on
from her2.frozen.stores import bucket_names
from her2.pretraining.overlap import lineage
from her2.storage.entries import FeatureEntry, read_all_entries
from her2.storage.features import open_store, read_coords

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
                "computed": "elsewhere" if self.card.source == GIVEN else "here",
                "architecture": f"{self.card.library}/{self.card.architecture}",
                "feature": self.card.feature,
                "dimension": self.card.dimension,
                "weights_sha256": self.card.weights_sha256,
                "licence": self.card.licence or "not stated",
            },
            **({"licence_caution": self.caution} if self.caution else {}),
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
        UserError: the store is absent or damaged, or contains the features of another slide or
            encoder.
    """
    path = outgoing.features / f"{slide_id}.zarr.zip"
    store = open_store(path, key)
    of = store.attributes.get("encoder", {}).get("digest")
    if of is not None and of != outgoing.card.digest:
        raise UserError(
            f"{path}: is of the encoder {of[:12]}, but {outgoing.encoder} is now "
            f"{outgoing.card.digest[:12]}. Run snakemake again."
        )
    found = SlideFeatures(slide_id, store)
    if (rows := len(read_coords(path))) != len(store):
        raise UserError(
            f"{path}: has {len(store)} rows of features for {rows} tiles. Delete it and run "
            "snakemake again."
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
    advice = (
        "Some licences count features among what is derived from the weights, and forbid "
        "commercial use of them or passing them on: read it before you do either."
    )
    if cards[0].source == GIVEN:
        return (
            f"the features of {encoder!r} were not computed here, and the licence of the weights "
            f"is not known. {advice}"
        )
    stamp = read_stamp(results / FOLDER / "materialise_encoder" / f"{encoder}.json")
    row = None
    if stamp is not None and cards[0].source == "catalogue":
        row = stamp.spec.get("encoder", {}).get("model")
    found = may_be_passed_on(cards, row)
    if found.allowed:
        return None
    return f"the weights of the encoder {encoder!r} may not be passed on ({found.why}). {advice}"


def _overlap(results: Path, cohort: str, card: EncoderCard) -> float | None:
    """Return the overlap of tiles, which the stamp of any tiling job of the grid has."""
    if card.source == GIVEN or card.mpp is None:
        return None
    folder = results / FOLDER / (cohort_folder(cohort) if cohort else "") / "tile_bucket"
    grid = folder / f"{card.size}px-{card.mpp:.10g}mpp"
    stamp = next(filter(None, map(read_stamp, sorted(grid.glob("*.json")))), None)
    return None if stamp is None else stamp.spec.get("tiling", {}).get("overlap")
