"""Stage 1, pre-training: a backbone learns the classes of a labelled patch set.

The result is the backbone without its classifier, with the normalisation of its training patches.
It is used like any other encoder.
"""

import logging
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from her2.config import Feature, PretrainingSection
from her2.core.compiler import compiler_deferred
from her2.core.errors import UserError, first_line
from her2.core.files import digest
from her2.encoders.backbones import Encoder
from her2.encoders.device import DTYPES, resolve_precision
from her2.encoders.stage import weights_digest
from her2.pretraining.loop import (
    Classifier,
    Epoch,
    PatchBatches,
    learning_rate,
    train_epoch,
    validate,
)
from her2.pretraining.patch_set import PatchSet
from her2.pretraining.split import Split, split_patches
from her2.training.checkpoint import Checkpoint
from her2.training.loop import train_epochs
from her2.training.state import TrainingState

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
COVERAGE = 0.9
"""Smallest share of the side of the encoder's window that a patch must cover."""


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A trained backbone (its best epoch), its normalisation and its history."""

    state: dict[str, Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    history: tuple[Epoch, ...]
    best_epoch: int
    facts: dict[str, Any]
    """Provenance for the encoder's card, as JSON, without times or host names."""


@compiler_deferred()
def pretrain(
    patches: PatchSet,
    *,
    backbone: nn.Module,
    feature: Feature,
    size_px: int,
    mpp: float,
    init: Mapping[str, Any],
    settings: PretrainingSection,
    seed: int,
    device: torch.device,
    checkpoint_dir: Path,
    threads: int = 1,
) -> Pretrained:
    """Train a backbone to classify the patches of a set.

    The epoch with the highest balanced accuracy on the validation part is kept; a tie goes to the
    lower loss. A killed training resumes from the checkpoint of its last epoch and ends with the
    same weights as an uninterrupted one. On one machine and with the same number of torch threads,
    equal arguments give equal weights.

    Args:
        patches: the labelled patches.
        backbone: a backbone without classifier, with its starting weights; changed in place.
        feature: the part of the backbone's output that the encoder keeps and the classifier sees.
        size_px: side of the backbone's input in px.
        mpp: um/px of that input; used where the um/px of the patches is known.
        init: description of the starting weights, for the facts.
        settings: the `pretraining` section of the config.
        seed: seed of the split, the order, the augmentation and the classifier's first weights.
        device: device to train on.
        checkpoint_dir: this training's own folder; remove it once the result is stored.
        threads: number of threads that read and augment patches.

    Raises:
        UserError: the set cannot be split, its patches are too small, the backbone does not take
            them, or the loss is not finite.
    """
    split = split_patches(patches, share=settings.validation, seed=seed)
    window_px = _window(patches, size_px, mpp)
    mean, std = channel_statistics(patches, split.train, threads=threads)
    precision = _precision(settings, device)
    dtype = DTYPES[precision]
    init = {**init, "weights_sha256": weights_digest(backbone.state_dict())}
    identity = digest(
        {
            "data": patches.digest,
            "classes": list(patches.class_names),
            "window_px": window_px,
            "size_px": size_px,
            "feature": feature,
            "init": init["weights_sha256"],
            "settings": settings.model_dump(mode="json"),
            "precision": precision,
            "seed": seed,
        }
    )
    batches = PatchBatches(
        patches, size_px, window_px, settings.batch_size, settings.augmentation, threads
    )
    cuda = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(cuda),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        torch.manual_seed(seed)
        encoder = Encoder(backbone, feature=feature, mean=mean, std=std)
        model = Classifier(encoder, _dimension(encoder, size_px), len(patches.class_names))
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = torch.optim.AdamW(_groups(model, settings.weight_decay))
        state = train_epochs(
            model,
            optimiser,
            partial(
                _run_epoch, model, optimiser, batches, split, settings,
                seed=seed, device=device, dtype=dtype,
            ),
            rank=lambda epoch: epoch.rank,
            epochs=settings.epochs,
            patience=settings.patience,
            checkpoint=_checkpoint(checkpoint_dir, identity),
        )  # fmt: skip
        test = None
        if len(split.test):
            figures = validate(model, batches.validation(split.test), device=device, dtype=dtype)
            known = [value if math.isfinite(value) else None for value in figures]
            test = dict(zip(("loss", "balanced_accuracy", "mean_auc"), known, strict=True))
    facts = _facts(patches, split, state) | {
        "settings": settings.model_dump(mode="json"),
        "precision": precision,
        "seed": seed,
        "init": init,
    }
    if test is not None:
        facts["test"] = test
    weights = {name: value.cpu().contiguous() for name, value in backbone.state_dict().items()}
    return Pretrained(weights, mean, std, tuple(state.history), state.best_epoch, facts)


def _checkpoint(folder: Path, identity: str) -> Checkpoint[Epoch]:
    """Return the training's checkpoint, and remove other files of killed jobs or old versions."""
    for leftover in folder.glob("*"):
        if leftover.name != CHECKPOINT:
            log.warning(
                "%s: is not a complete checkpoint of this version and was removed", leftover
            )
            leftover.unlink()
    return Checkpoint(folder / CHECKPOINT, Epoch, identity, sync=True)


def channel_statistics(
    patches: PatchSet, indices: NDArray[np.int64], *, threads: int = 1
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation of R, G, B in [0, 1] over whole patches.

    They are computed from counts of the 256 values, so they do not depend on the order of patches.
    """
    levels = np.arange(256) / 255

    def count(part: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.zeros((3, 256), np.int64)
        for image in map(patches.read, part.tolist()):
            for c in range(3):
                found[c] += np.bincount(image[..., c].ravel(), minlength=256)
        return found

    totals = np.zeros((3, 256), np.int64)
    parts = np.array_split(indices, max(1, len(indices) // 64))
    with ThreadPoolExecutor(threads, thread_name_prefix="reader") as pool:
        for found in tqdm(pool.map(count, parts), "colours", len(parts), leave=False, disable=None):
            totals += found
    n = totals.sum(axis=1)
    mean = totals @ levels / n
    variance = (totals * (levels - mean[:, None]) ** 2).sum(axis=1) / n
    # A channel that never varies carries no information, and must not be divided by zero.
    std = np.where(variance > 1e-12, np.sqrt(variance), 1.0)
    r, g, b = mean.tolist()
    sr, sg, sb = std.tolist()
    return (r, g, b), (sr, sg, sb)


def _run_epoch(
    model: Classifier,
    optimiser: torch.optim.Optimizer,
    batches: PatchBatches,
    split: Split,
    settings: PretrainingSection,
    epoch: int,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Epoch:
    name = f"{batches.patches.name}, epoch {epoch + 1} of {settings.epochs}"
    steps = batches.steps(len(split.train))
    rates = [
        learning_rate(
            step,
            settings.epochs * steps,
            peak=settings.learning_rate,
            warmup=settings.warmup,
        )
        for step in range(epoch * steps, (epoch + 1) * steps)
    ]
    torch.manual_seed(seed * 100_003 + epoch)  # dropout and the like
    loss = train_epoch(
        model, optimiser, batches.training(split.train, seed, epoch), rates,
        device=device, dtype=dtype, name=name,
    )  # fmt: skip
    figures = validate(model, batches.validation(split.validation), device=device, dtype=dtype)
    log.info(
        "%s: training loss %.4f, validation loss %.4f, balanced accuracy %.3f, mean AUC %.3f",
        name, loss, *figures,
    )  # fmt: skip
    return Epoch(epoch, loss, *figures)


def _facts(patches: PatchSet, split: Split, state: TrainingState[Epoch]) -> dict[str, Any]:
    seen = np.concatenate([split.train, split.validation]).tolist()
    cases = sorted({str(patches.cases[i]) for i in seen}) if patches.cases_known else []
    return {
        "data": patches.name,
        "data_digest": patches.digest,
        "format": patches.format,
        "classes": patches.counts,
        "left_out": dict(patches.left_out),
        "unusable": {"count": len(patches.unusable), "first": list(patches.unusable[:10])},
        "split_by": split.split_by,
        "patches": {
            "train": len(split.train),
            "validation": len(split.validation),
            "test": len(split.test),
        },
        "cases": cases,
        "chosen_by": "balanced accuracy",
        "epochs": len(state.history),
        "best": asdict(state.history[state.best_epoch]),
    }


def _window(patches: PatchSet, size_px: int, mpp: float) -> float | None:
    """Return the side of the encoder's window in px of the patches; None: the whole patch."""
    if patches.mpp is None:
        return None
    wanted = size_px * mpp / patches.mpp
    side = min(patches.read(0).shape[:2])
    if side < COVERAGE * wanted:
        raise UserError(
            f"patches.{patches.name}: a patch of {side} px at {patches.mpp:g} um/px covers "
            f"{side * patches.mpp:.0f} um, but the encoder sees {size_px} px at {mpp:g} um/px = "
            f"{size_px * mpp:.0f} um. Lower the encoder's `size` or `mpp`, or remove the "
            "patches' `mpp` to scale them to fit."
        )
    return wanted


def _precision(settings: PretrainingSection, device: torch.device) -> str:
    """Return the precision; float32 in place of float16, whose gradients would need scaling."""
    found = resolve_precision(settings.precision, device)
    return "float32" if found == "float16" else found


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


@torch.inference_mode()
def _dimension(encoder: Encoder, size_px: int) -> int:
    blank = torch.zeros(1, size_px, size_px, 3, dtype=torch.uint8)
    try:
        return int(encoder.eval()(blank).shape[1])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"pretraining: the backbone cannot take patches of {size_px} px "
            f"({first_line(error)}); set `size` to a size that it supports."
        ) from None
