"""After stage 2: which folders are trained folds, and which features a model can predict."""

import logging
from collections.abc import Sequence
from pathlib import Path

from her2.config.names import REFIT
from her2.core.errors import UserError, problem_list
from her2.mil.fold import SavedModel
from her2.storage.entries import FoldEntry, read_entries
from her2.storage.features import FeatureStore
from her2.storage.fold_files import CARD_NAME
from her2.storage.views import is_view

log = logging.getLogger(__name__)


def mismatches(store: FeatureStore, saved: SavedModel) -> list[str]:
    """Return the reasons why a model cannot predict a store; empty if it can."""
    card, found = saved.card, store.attributes
    if is_view(found):
        return ["is an augmented view of a slide, which only training reads"]
    problems = []
    encoder = found.get("encoder")
    digest = encoder.get("digest") if isinstance(encoder, dict) else None
    if not isinstance(digest, str):
        return ["names no encoder, so it was not made by `her2 embed`"]
    if digest != card["encoder_digest"]:
        problems.append(
            f"comes from encoder {digest[:12]}, the model from {card['encoder_digest'][:12]}"
        )
    if store.dimension != card["dimension"]:
        problems.append(
            f"has {store.dimension} features per tile, the model expects {card['dimension']}"
        )
    tiles, wanted = found.get("target"), card["tiles"]
    if tiles is not None and wanted is not None and tiles != wanted:
        problems.append(
            f"has tiles of {tiles['px']} px at {tiles['mpp']:g} um/px, the model expects "
            f"{wanted['px']} px at {wanted['mpp']:g}"
        )
    if len(store) == 0:
        problems.append("contains no tiles")
    return problems


def fold_folders(models: Sequence[Path]) -> list[Path]:
    """Return the folders of single folds; a head's folder is replaced by those of its folds.

    A pattern of the shell such as `abmil/r0f*` also matches the entries files of the chunks
    (`r0f0-r0f4.json`), which lie beside the folds that they list. These are left out.

    Raises:
        UserError: something else is a file, or folds come with the model of all patients.
    """
    found: list[Path] = []
    entries: list[Path] = []
    for path in models:
        if path.is_file():
            entries.append(path)
            continue
        folds = [card.parent for card in sorted(path.glob(f"*/{CARD_NAME}"))]
        folds = [fold for fold in folds if fold.name != REFIT]
        found += [path] if (path / CARD_NAME).exists() or not folds else folds
    if wrong := [path for path in entries if not _lists_folds_of(path, found)]:
        raise problem_list(
            "her2 predict takes folders of trained folds, or a head's folder for all of its folds",
            [f"{path}: is a file; give a folder, such as {path.parent}" for path in wrong],
        )
    if entries:
        log.info("left out, as they list folds and are none: %s", ", ".join(map(str, entries)))
    found = list(dict.fromkeys(found))
    if len(found) > 1 and (whole := [path for path in found if path.name == REFIT]):
        raise UserError(
            f"{whole[0]}: is the model of all patients, which is not averaged with those of folds; "
            "give either it alone, or folds."
        )
    return found


def _lists_folds_of(path: Path, folds: Sequence[Path]) -> bool:
    """Tell whether a file is the entries file of a chunk, or of the refit, of models given too."""
    if path.suffix != ".json" or path.parent not in {fold.parent for fold in folds}:
        return False
    if path.stem == REFIT:
        return True
    try:
        return bool(read_entries(path, FoldEntry))
    except UserError:
        return False
