"""What a bundle says and holds, from the results of a finished run.

Only what a prediction, or a reader, needs is taken, name by name: the cards of trained folds and of
encoders also have names of files and of cases.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl

from her2 import __version__
from her2.config import GroupingSection
from her2.config.jobs import (
    VERSIONS,
    ControlSpec,
    EmbedSpec,
    EncoderSpec,
    EvaluateSpec,
    TileSpec,
    TrainSpec,
)
from her2.config.validation import Final
from her2.core.errors import UserError
from her2.core.files import file_digest
from her2.core.stamps import FOLDER
from her2.core.tables import read_result
from her2.encoders.card import WEIGHTS_NAME, EncoderCard
from her2.encoders.stage import read_encoder
from her2.evaluation.groupings import groupings_of
from her2.frozen.bundle.asked import Wanted, check_unchanged, read_spec, spec_of, spec_of_buckets
from her2.frozen.bundle.figures import figures_of
from her2.frozen.bundle.hashes import make_hashes, salt_of
from her2.frozen.bundle.licence import permission
from her2.frozen.bundle.schema import (
    ENCODER_NAME,
    SCHEMA_VERSION,
    Body,
    DevelopmentThreshold,
    Encoder,
    Fold,
    Grid,
    Hashes,
    Software,
    Tiling,
)
from her2.frozen.bundle.segmenters import segmenter_facts
from her2.frozen.development import read_development
from her2.frozen.model import FrozenFold, FrozenModel
from her2.frozen.results import read_frozen
from her2.mil.fold import MODEL_NAME
from her2.pretraining.overlap import lineage
from her2.storage.entries import FeatureEntry, read_entries
from her2.storage.features import read_attributes

PACKAGES = ("numpy", "safetensors", "scikit-learn", "timm", "torch", "torchvision")
PROVENANCE = (
    "catalogue", "hub", "revision", "sha256", "seed", "format", "data_digest", "classes",
    "split_by", "patches", "chosen_by", "epochs", "best", "settings", "precision", "init",
    "inside", "prefix", "order", "left_out",
)  # fmt: skip
"""Parts of an encoder's provenance that name no file and no case."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a bundle says, and the files of the results that it holds under other names."""

    body: Body
    weights: Mapping[str, Path]


def gather(
    wanted: Wanted, *, final: Final, licence: str, permitted: str | None, threads: int
) -> Gathered:
    """Return what the bundle of a model says and holds.

    Args:
        wanted: the model.
        final: the models of all folds, or the one of all patients.
        licence: licence of the heads, for the model card.
        permitted: the licence or permission by which an encoder without a stated licence may be
            passed on.
        threads: number of CPU threads for torch.

    Raises:
        UserError: results are missing or are not of one training, or the encoder may not be passed
            on as asked.
    """
    spec = spec_of(EvaluateSpec, wanted, "evaluate", *wanted.names)
    folds = wanted.results / "folds" / f"{wanted.task}.parquet"
    model = read_frozen(
        wanted.folder("evaluation"),
        wanted.folder("models"),
        task_name=wanted.task,
        encoder=wanted.encoder,
        head=wanted.head,
        chunks=spec.chunks,
        section=spec.evaluation,
        threads=threads,
        final=final,
    )
    buckets = spec_of(TrainSpec, wanted, "train_folds", *wanted.names, spec.chunks[0]).buckets
    encoder, weights = _encoder(wanted, model, permitted, buckets)
    grid = f"{encoder.size}px-{encoder.mpp:.10g}mpp"
    tiling = spec_of_buckets(TileSpec, wanted, "tile_bucket", grid, buckets=buckets)
    embedding = spec_of_buckets(EmbedSpec, wanted, "embed_bucket", wanted.encoder, buckets=buckets)
    stamps = wanted.results / FOLDER
    check_unchanged(
        wanted,
        [
            # Beside the segmenters' cards, whose tiles are those that are embedded.
            *(stamps / "tile_bucket" / grid / f"{name}.json" for name in buckets),
            *(stamps / "embed_bucket" / wanted.encoder / f"{name}.json" for name in buckets),
            *(
                stamps.joinpath("train_folds", *wanted.names, f"{name}.json")
                for name in spec.chunks
            ),
            stamps.joinpath("evaluate", *wanted.names[:2], f"{wanted.head}.json"),
            *(
                [stamps.joinpath("refit_model", *wanted.names[:2], f"{wanted.head}.json")]
                if final == "refit"
                else []
            ),
        ],
    )
    names = {fold.run: f"{fold.run}.safetensors" for fold in model.folds}
    weights |= {names[fold.run]: fold.saved.folder / MODEL_NAME for fold in model.folds}
    body = Body(
        schema_version=SCHEMA_VERSION,
        software=_software(),
        synthetic=not tiling.files,  # rules made the slides (`her2.config.jobs.TileSpec`)
        licence=licence,
        task_name=wanted.task,
        encoder_name=wanted.encoder,
        head_name=wanted.head,
        task=model.task,
        groupings=_groupings(spec),
        grid=Grid(mpp=tiling.mpp, size_px=tiling.size),
        tiling=Tiling(
            options=tiling.tiling,
            seed=tiling.seed,
            max_failed_tiles=embedding.max_failed_tiles,
            segmenters=segmenter_facts(wanted.results, tiling.tiling),
            **_tissue(wanted, grid),
        ),
        encoder=encoder,
        final=final,
        combined_by="mean of calibrated probabilities",
        folds=tuple(_fold(fold, names[fold.run]) for fold in model.folds),
        thresholds=tuple(
            DevelopmentThreshold(**{name: getattr(one, name) for name in one.__slots__})
            for one in model.thresholds
        ),
        development=read_development(
            folds,
            wanted.results / "cohort" / "slides.parquet",
            wanted.results / "features" / wanted.encoder,
            grid=grid,
            task=model.task,
            columns=_covariates(wanted),
            buckets=buckets,
        ),
        figures=tuple(figures_of(wanted.folder("evaluation"))),
        confidence=spec.evaluation.confidence,
        seed=spec.seed,
        hashes=_hashes(wanted, model, folds),
    )
    return Gathered(body, weights)


def _covariates(wanted: Wanted) -> tuple[str, ...]:
    """Return the further columns of the manifest that the controls predict the classes from."""
    path = wanted.folder(f"{FOLDER}/control")
    path = path.with_name(f"{path.name}.json")
    return read_spec(ControlSpec, path).evaluation.covariates if path.exists() else ()


def _tissue(wanted: Wanted, grid: str) -> dict[str, Any]:
    """Return how the tissue of the development's slides was found."""
    slides = read_result(wanted.results / "cohort" / "slides.parquet")
    slides = slides.filter(pl.col("grid") == grid, pl.col("tissue_source").is_not_null())
    counts = slides["tissue_source"].value_counts().sort("tissue_source")
    return {
        "tissue": dict(counts.iter_rows()),
        "annotated": slides["regions"].is_not_null().sum(),
    }


def _precisions(features: Path, buckets: Iterable[str]) -> tuple[str, ...]:
    """Return the precisions of the features, from one store of each job."""
    found = set()
    for bucket in buckets:
        entries = read_entries(features / f"{bucket}.json", FeatureEntry)
        slide = next((name for name, entry in entries.items() if entry.status == "ok"), None)
        if slide is not None:
            attributes = read_attributes(features / f"{slide}.zarr.zip", entries[slide].key)
            found.add(str(attributes.get("precision", "not recorded")))
    return tuple(sorted(found))


def _software() -> Software:
    return Software(
        her2=__version__,
        packages={name: metadata.version(name) for name in PACKAGES},
        stages={name: VERSIONS[name] for name in ("tile", "embed", "train")},
    )


def _groupings(spec: EvaluateSpec) -> dict[str, GroupingSection]:
    classes = spec.task.class_names
    return {
        one.name: GroupingSection(
            negative=tuple(classes[i] for i in one.negative),
            positive=tuple(classes[i] for i in one.positive),
        )
        for one in groupings_of(spec.task, spec.evaluation)
    }


def _encoder(
    wanted: Wanted, model: FrozenModel, permitted: str | None, buckets: tuple[str, ...]
) -> tuple[Encoder, dict[str, Path]]:
    """Return the encoder, and the file of its weights if they may be in the bundle."""
    folder = wanted.results / "encoders" / wanted.encoder
    cards = lineage(folder)
    card = cards[0]
    if not card.computed_here:
        raise UserError(
            f"{wanted.encoder}: its features were computed elsewhere ({card.architecture}), so "
            "there are no weights that a bundle could run on slides. Predict features of the same "
            "program with `her2 predict MODEL --features`, or train with an encoder that is run "
            "here."
        )
    if (trained := model.first.card["encoder_digest"]) != card.digest:
        raise UserError(
            f"{folder}: is the encoder {card.digest}, but the models were trained on features of "
            f"{trained}. Run snakemake again."
        )
    rule = "pretrain_encoder" if card.source == "pretrain" else "materialise_encoder"
    section = spec_of(EncoderSpec, wanted, rule, wanted.encoder).encoder
    row = section.model if section.source == "catalogue" else None
    found = permission(cards, row, permitted)
    if found.allowed:
        read_encoder(folder)  # its weights are those of its card
    own = {name: getattr(card, name) for name in EncoderCard.__dataclass_fields__}
    encoder = Encoder(
        **{**own, "provenance": _provenance(card.provenance)},
        name=wanted.encoder,
        model=row or f"{card.library}/{card.architecture}",
        domain=section.domain or "none",
        ran_in=_precisions(wanted.results / "features" / wanted.encoder, buckets),
        digest=card.digest,
        revision=card.provenance.get("revision"),
        included=found.allowed,
        why=found.why,
    )
    return encoder, {ENCODER_NAME: folder / WEIGHTS_NAME} if found.allowed else {}


def _provenance(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in PROVENANCE if name in values}


def _fold(fold: FrozenFold, weights: str) -> Fold:
    card = fold.saved.card
    names = ("key", "head", "loss", "training", "protocol", "dimension", "seed", "slides",
             "best_epoch", "epochs", "tune_loss")  # fmt: skip
    return Fold(
        run=fold.run,
        weights=weights,
        share=tuple(map(float, fold.share)),
        seen=tuple(map(float, fold.seen)),
        temperature=fold.temperature,
        **{name: card[name] for name in names},
    )


def _hashes(wanted: Wanted, model: FrozenModel, folds: Path) -> Hashes:
    """Return the hashes of the patients and slides that trained or tuned a fold's model.

    They are also those that a refit learns from (`her2.mil.refit`).
    """
    table = read_result(folds).filter(pl.col("role").is_in(["train", "tune"]))
    slides = read_result(wanted.results / "cohort" / "slides.parquet")
    used = slides.filter(pl.col("slide_id").is_in(table["slide_id"].implode()))
    cards = lineage(wanted.results / "encoders" / wanted.encoder)
    models = [file_digest(fold.saved.folder / MODEL_NAME) for fold in model.folds]
    return make_hashes(
        salt_of(models, cards[0].digest),
        patients=table["patient_id"].unique(),
        slides=used["fingerprint"].drop_nulls().unique(),
        cases=_known(cards, "cases"),
        pretraining_slides=_known(cards, "slide_fingerprints"),
    )


def _known(cards: Iterable[EncoderCard], name: str) -> list[str]:
    return [str(one) for card in cards for one in card.provenance.get(name, [])]
