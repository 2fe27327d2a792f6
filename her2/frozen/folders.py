"""A frozen model out of any folders of trained folds, as `her2 predict` takes them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from her2.core.errors import UserError
from her2.encoders.device import pick_device
from her2.frozen.corrections import Corrections, read_corrections
from her2.frozen.model import FrozenFold, FrozenModel, Threshold
from her2.frozen.results import (
    check_alike,
    check_classes,
    evaluate_spec,
    geometric_mean,
    is_refit,
    read_thresholds,
)
from her2.mil.apply import fold_folders
from her2.mil.fold import SavedModel, load_model
from her2.mil.refit import refit_shares
from her2.storage.fold_files import CARD_NAME

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Folders:
    """Folders of trained folds as one model, and what is known of their probabilities.

    `corrected`: for classes as frequent as in the training sets, else as trained (`share` equals
    `seen`). `calibrated`: every model has a temperature, else it is 1. `notes` say in words what is
    lacking.
    """

    model: FrozenModel
    corrected: bool
    calibrated: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """A trained fold, the evaluation that it belongs to and what that found for it.

    `of_head` is True for a fold that was found in the folder of its head.
    """

    saved: SavedModel
    of_head: bool
    evaluation: Path | None
    corrections: Corrections | None


def read_folders(models: Sequence[Path], *, threads: int, priors: Path | None = None) -> Folders:
    """Read any folders of trained folds of a task as one model.

    Folders in `results/models/{task}/{encoder}/{head}` have their corrections from the evaluation
    in the same results, and thresholds if they are all folds of it, or the model of all patients.
    Of a head's folder, folds that are left over from before, and were not evaluated, are left out.

    Args:
        models: folders of trained folds, or of heads for all of their folds.
        threads: number of CPU threads for torch.
        priors: the table `priors` of these models' evaluation, if it lies elsewhere.

    Raises:
        UserError: a folder is none of a trained fold, the models cannot be averaged, or are not in
            `priors`.
    """
    folders = fold_folders(models)
    if not folders:
        raise UserError("no folder of a trained fold is given.")
    device = pick_device(threads)
    saved = {_label(folder, folders): load_model(folder, device) for folder in folders}
    given = {path.absolute() for path in models if (path / CARD_NAME).exists()}
    tables = {
        label: priors.parent if priors else evaluation_of(one.folder)
        for label, one in saved.items()
    }
    known = {path: read_corrections(path, priors) for path in set(tables.values()) if path}
    by_key = {
        path: {one.key: one for one in corrections.values()} for path, corrections in known.items()
    }
    found = {
        label: _Found(
            saved=one,
            of_head=one.folder.absolute() not in given,
            evaluation=(path := tables[label]),
            corrections=_of_refit(one, known.get(path) if path else None)
            if is_refit(one)
            else by_key[path].get(one.card["key"])
            if path
            else None,
        )
        for label, one in saved.items()
    }
    found, notes = _evaluated(found, known, priors)
    check_alike("these models", {label: one.saved for label, one in found.items()})
    task = next(iter(found.values())).saved.task
    for path, corrections in known.items():
        check_classes(str(path), task, corrections, path)
    for note in notes:
        log.warning("%s", note)
    folds = tuple(_fold(label, one) for label, one in found.items())
    thresholds, names = _of_whole_head(found, known)
    return Folders(
        model=FrozenModel(*names, task, folds, thresholds),
        corrected=all(one.corrections for one in found.values()),
        calibrated=all(_temperature(one) is not None for one in found.values()),
        notes=tuple(notes),
    )


def evaluation_of(folder: Path) -> Path | None:
    """Return the folder of the evaluation of a fold in `results/models/{task}/{encoder}/{head}`."""
    head = folder.absolute().parent
    if head.parts[-4:-3] != ("models",):
        return None
    path = Path(*head.parts[:-4], "evaluation", *head.parts[-3:])
    return path if (path / "priors.parquet").exists() else None


def _of_refit(saved: SavedModel, known: Mapping[str, Corrections] | None) -> Corrections:
    """Return the corrections of the model of all patients, which was not evaluated itself."""
    share, seen = refit_shares(saved.folder)
    mean = geometric_mean(one.temperature for one in known.values()) if known else None
    return Corrections(saved.card["key"], saved.task.class_names, share, seen, mean)


def _evaluated(
    found: Mapping[str, _Found],
    known: Mapping[Path, Mapping[str, Corrections]],
    priors: Path | None,
) -> tuple[dict[str, _Found], list[str]]:
    """Return the folds to use, and what they lack.

    Either all have corrections or none, since probabilities of both kinds have no mean.
    """
    notes = []
    left_over = [label for label, one in found.items() if one.of_head and not one.corrections]
    if priors is None and any(one.of_head and one.corrections for one in found.values()):
        found = {label: one for label, one in found.items() if label not in left_over}
        if left_over:
            notes.append(f"left out, as they were not evaluated: {', '.join(left_over)}")
        keys = {one.saved.card["key"] for one in found.values()}
        gone = [
            run
            for path in {one.evaluation for one in found.values() if one.of_head and one.evaluation}
            for run, corrections in known.get(path, {}).items()
            if corrections.key not in keys
        ]
        if gone:
            notes.append(f"evaluated, but not in the folder: {', '.join(gone)}")
    lacking = [one for one in found.values() if not one.corrections]
    if lacking and priors is not None:
        card, folder = lacking[0].saved.card, lacking[0].saved.folder
        raise UserError(
            f"--priors {priors}: does not have the model {folder} (key {card['key'][:12]}); give "
            "the table of the evaluation of this model."
        )
    if lacking:
        balance = lacking[0].saved.card["training"]["balance"]
        notes.append(
            f"the probabilities are for classes as the training weighed them (training.balance: "
            f"{balance}), not as frequent as in the training set, and no temperature is known; to "
            "correct them, run her2 evaluate or give its table with --priors"
        )
        return {
            label: _Found(one.saved, one.of_head, None, None) for label, one in found.items()
        }, notes
    cold = [label for label, one in found.items() if _temperature(one) is None]
    if cold:
        notes.append(f"no temperature is known of {', '.join(cold)}")
    return dict(found), notes


def _temperature(one: _Found) -> float | None:
    return one.corrections.temperature if one.corrections else None


def _fold(label: str, one: _Found) -> FrozenFold:
    """Return a fold with its corrections, or with those that change nothing."""
    count = len(one.saved.task.classes)
    even = np.full(count, 1 / count)
    share, seen = (one.corrections.share, one.corrections.seen) if one.corrections else (even, even)
    return FrozenFold(label, one.saved, share, seen, _temperature(one) or 1.0)


def _of_whole_head(
    found: Mapping[str, _Found], known: Mapping[Path, Mapping[str, Corrections]]
) -> tuple[tuple[Threshold, ...], tuple[str, str, str]]:
    """Return the thresholds and names of folders that are all folds of one evaluated head."""
    places = {one.evaluation for one in found.values()}
    (place,) = places if len(places) == 1 else (None,)
    if place is None or place.absolute().parts[-4:-3] != ("evaluation",):
        return (), ("", "", "")
    task_name, encoder, head = place.absolute().parts[-3:]
    keys = {one.saved.card["key"] for one in found.values()}
    whole = keys == {one.key for one in known[place].values()}
    spec = evaluate_spec(place)
    if spec is None or not (whole or all(is_refit(one.saved) for one in found.values())):
        return (), (task_name, encoder, head)
    task = next(iter(found.values())).saved.task
    thresholds = read_thresholds(place, task, spec.evaluation, known[place])
    return thresholds, (task_name, encoder, head)


def _label(folder: Path, folders: Sequence[Path]) -> str:
    """Return a fold's name, with those of the folders above it where others have the same."""
    parts = folder.absolute().parts
    for count in range(1, len(parts) + 1):
        others = [other for other in folders if other.absolute().parts[-count:] == parts[-count:]]
        if len(others) == 1:
            break
    return "/".join(parts[-count:])
