"""Stage 1, pretrain: a patch set and a backbone -> an encoder's folder, through the cache."""

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import polars as pl
import safetensors.torch
import torch
from torch import nn

from her2.config import EncoderSection, PatchesSection, PretrainingSection
from her2.config.jobs import EncoderSpec
from her2.core.crashes import reading
from her2.core.errors import SlideError, UserError, problem_list
from her2.core.files import WRITTEN, copy, digest
from her2.encoders.backbones import build_backbone, default_arguments, with_published
from her2.encoders.card import (
    CARD_NAME,
    WEIGHTS_NAME,
    EncoderCard,
    read_card,
    write_card,
    write_encoder_identity,
)
from her2.encoders.device import pick_device
from her2.encoders.stage import feature_dimension, read_encoder, weights_digest
from her2.pretraining.formats import read_csv
from her2.pretraining.patch_set import PatchSet
from her2.pretraining.patches import read_patch_set
from her2.pretraining.pretrain import Pretrained, pretrain
from her2.slides.fingerprint import fingerprint
from her2.storage.cache import Cache
from her2.storage.products import trusted

log = logging.getLogger(__name__)

HISTORY_NAME = "history.parquet"


def pretrain_encoder(
    spec: EncoderSpec, cache: Cache, output: Path, *, init: Path | None = None, threads: int = 1
) -> EncoderCard:
    """Pre-train an encoder unless the cache holds it, and copy it into its folder.

    Args:
        spec: the job's spec.
        cache: receives the encoder, and checkpoints while it is unfinished.
        output: folder for `weights.safetensors`, `history.parquet` and then `card.json`.
        init: folder of the encoder to start from, where the config names one.
        threads: number of threads that read patches, and of CPU threads for torch.

    Raises:
        UserError: the patch set is invalid, the starting weights do not fit, or training fails.
    """
    encoder, name = spec.encoder, spec.encoder.data
    if name is None or spec.patches is None or spec.pretraining is None:
        raise UserError("--spec: does not describe an encoder with `source: pretrain`.")
    device = pick_device(threads)
    cv2.setNumThreads(1)  # the pools that read and augment use all of the job's threads
    patches = read_patch_set(name, spec.patches, scratch=cache.root / "scratch", threads=threads)
    backbone, arguments, start = _starting_weights(encoder, spec.seed, init)
    slides = slide_fingerprints(spec.patches)
    identity = encoder_identity(spec, patches, start, slides)
    key = digest(identity)
    if trusted(cache, "encoders", key) is None:
        checkpoints = cache.root / "unfinished" / key
        trained = pretrain(
            patches,
            backbone=backbone,
            feature=encoder.feature,
            size_px=encoder.size,
            mpp=encoder.mpp,
            init=start,
            settings=spec.pretraining,
            seed=spec.seed,
            device=device,
            checkpoint_dir=checkpoints,
            threads=threads,
        )
        with cache.publish("encoders", key) as product:
            facts = {"key": key, **({"slide_fingerprints": slides} if slides else {})}
            _write(product, facts, encoder, arguments, trained)
            write_encoder_identity(product, identity)
        shutil.rmtree(checkpoints, ignore_errors=True)
        log.info("encoder pre-trained on %s: %d epochs", name, len(trained.history))
    else:
        log.info("encoder pre-trained on %s: found in the cache", name)
    product = cache.path("encoders", key)
    for item in (WEIGHTS_NAME, HISTORY_NAME, CARD_NAME):  # the card last, since jobs wait for it
        copy(product / item, output / item)
    WRITTEN.add(output / CARD_NAME)
    return read_card(output)


def slide_fingerprints(section: PatchesSection) -> list[str]:
    """Return the fingerprints of the patches' source slides, where the config names the slides.

    Raises:
        UserError: the table or some slides cannot be read; the message names all of them.
    """
    if section.slides is None:
        return []
    sheet, problems = read_csv(section.slides, ("path",))
    found = []
    for name in sheet.cells.get("path", []):
        try:
            with reading(name):
                found.append(fingerprint(section.slides.parent / name))
        except SlideError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise problem_list(f"{section.slides}: {len(problems)} problem(s)", problems)
    return sorted(found)


def encoder_identity(
    spec: EncoderSpec, patches: PatchSet, start: dict[str, Any], slides: list[str]
) -> dict[str, Any]:
    """Return everything that determines a pre-trained encoder; its digest is the cache key."""
    encoder = spec.encoder
    return {
        "stage": "pretrain",
        "version": spec.version,
        "data": patches.digest,
        "classes": list(patches.class_names),
        "patches_mpp": patches.mpp,
        "slides": slides,
        "model": [encoder.library, encoder.architecture, encoder.feature],
        "target": [encoder.mpp, encoder.size],
        # Not only the weights: the overlap audit follows the name to the encoder's origin.
        "start": [start["from"], start["weights_sha256"]],
        "settings": (spec.pretraining or PretrainingSection()).model_dump(mode="json"),
        "card": [encoder.precision, encoder.storage],
        "seed": spec.seed,
    }


def _starting_weights(
    encoder: EncoderSection, seed: int, init: Path | None
) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """Return the backbone, its arguments, and a description of its weights for the card."""
    library, architecture = encoder.library, encoder.architecture
    arguments = default_arguments(
        library, architecture, feature=encoder.feature, size_px=encoder.size
    )
    if init is not None:
        loaded, card = read_encoder(init)
        if card.feature != encoder.feature or card.arguments != arguments:
            raise UserError(
                f"encoders: {init.name} was built for another `feature` or `size` "
                f"({card.feature}, {card.size} px); set the same for both encoders."
            )
        backbone = loaded.backbone.requires_grad_(True)
        start = {"from": init.name}
    else:
        torch.manual_seed(seed)
        build = partial(
            build_backbone, library, architecture, feature=encoder.feature, arguments=arguments
        )
        if encoder.init == "published":
            backbone = with_published(
                partial(build, pretrained=True), library, architecture,
                otherwise="Set `init` to an encoder with `source: timm` or `checkpoint`, which can "
                "be made once on a machine with a network.",
            )  # fmt: skip
        else:
            backbone = build()
        start = {"from": encoder.init or "random"}
    return backbone, arguments, {**start, "weights_sha256": weights_digest(backbone.state_dict())}


def _write(
    product: Path,
    facts: dict[str, Any],
    encoder: EncoderSection,
    arguments: dict[str, Any],
    trained: Pretrained,
) -> None:
    state = {name: value.clone() for name, value in trained.state.items()}
    backbone = build_backbone(
        encoder.library, encoder.architecture, feature=encoder.feature, arguments=arguments
    )
    safetensors.torch.save_file(state, product / WEIGHTS_NAME)
    pl.DataFrame(
        [
            {
                "epoch": epoch.epoch,
                "train_loss": epoch.train_loss,
                "validation_loss": epoch.validation_loss,
                "balanced_accuracy": epoch.balanced_accuracy,
                "mean_auc": epoch.mean_auc,
            }
            for epoch in trained.history
        ]
    ).write_parquet(product / HISTORY_NAME)
    card = EncoderCard(
        source="pretrain",
        library=encoder.library,
        architecture=encoder.architecture,
        arguments=arguments,
        feature=encoder.feature,
        dimension=feature_dimension(backbone, encoder, trained.mean, trained.std),
        size=encoder.size,
        mpp=encoder.mpp,
        mean=trained.mean,
        std=trained.std,
        precision=encoder.precision,
        storage=encoder.storage,
        licence="",
        weights_sha256=weights_digest(state),
        # Without the set's name: the same patches under another name give the same encoder.
        provenance={k: v for k, v in trained.facts.items() if k != "data"} | facts,
    )
    write_card(product, card)
