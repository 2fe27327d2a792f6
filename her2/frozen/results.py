"""A frozen model out of a results folder: trained folds, and what their evaluation found.

The folds lie in `models/{task}/{encoder}/{head}`, the tables `priors`, `temperatures` and
`predictions` in `evaluation/{task}/{encoder}/{head}`. Every fold of every repeat and training seed
counts. Models and tables have to be of one training: anything else is refused by name.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch

from her2.config import EvaluationSection, Task
from her2.config.jobs import ClassBalance, EvaluateSpec
from her2.config.names import PUBLISHED, parse_run
from her2.config.validation import Final
from her2.core.errors import UserError, problem_list
from her2.core.stamps import FOLDER, read_stamp
from her2.core.tables import read_result
from her2.core.types import Floats
from her2.encoders.device import pick_device
from her2.evaluation.predictions import runs
from her2.frozen.corrections import Corrections, read_corrections
from her2.frozen.model import FrozenFold, FrozenModel, Threshold
from her2.frozen.thresholds import fold_thresholds, frozen_thresholds
from her2.mil.apply import REFIT, fold_folders
from her2.mil.fold import SavedModel, load_model
from her2.mil.priors import seen_shares
from her2.storage.cache import Cache
from her2.storage.entries import FoldEntry, read_all_entries, read_folds, untrained_folds
from her2.storage.fold_files import rows_read
from her2.storage.products import find_product

log = logging.getLogger(__name__)

ALIKE = {
    "task": "task or classes",
    "encoder_digest": "encoder",
    "dimension": "number of features",
    "tiles": "grid",
}
"""What the cards of models that are averaged must have in common."""
AGAIN = "run snakemake again, so that models and tables are of the same training"


def read_frozen(
    evaluation: Path,
    models: Path,
    *,
    task_name: str,
    encoder: str,
    head: str,
    chunks: Sequence[str] | None = None,
    section: EvaluationSection | None = None,
    threads: int,
    final: Final = "folds",
    folds: Path | None = None,
    cache: Cache | None = None,
) -> FrozenModel:
    """Read the frozen model of a task, encoder and head from a results folder.

    A fold that could not be trained is left out, and one without a tuning set keeps a temperature
    of 1; the log names them.

    With `final: refit` the model is the one that was trained on all patients. It has no tuning set,
    so its temperature is the geometric mean of the folds' (a temperature multiplies), and the
    thresholds are those of the folds.

    Args:
        evaluation: `results/evaluation/{task}/{encoder}/{head}`.
        models: `results/models/{task}/{encoder}/{head}`.
        task_name: the task's name in the config.
        encoder: the encoder's name.
        head: the head's name.
        chunks: names of the chunks' entries files; None for the runs that the evaluation names.
        section: for groupings, specificity and sensitivity; None for a model without thresholds.
        threads: number of CPU threads for torch.
        final: the mean of the folds' models, or the one model of all patients.
        folds: the task's folds table, for the patients of a refit.
        cache: where the models are; None for the links in `models`.

    Raises:
        UserError: the models and tables do not go together, were changed or are absent, or the
            head follows the published protocol.
    """
    name = f"{task_name} / {encoder} / {head}"
    if head.endswith(PUBLISHED):
        raise _published(name, head.removesuffix(PUBLISHED))
    known = read_corrections(evaluation)
    keys = {run: own.key for run, own in known.items()}
    if chunks is not None:
        keys = {run: entry.key for run, entry in read_folds(models, chunks).items()}
        for run, reason in untrained_folds(models, chunks).items():
            log.warning("%s: %s has no model and is left out: %s", name, run, reason)
    _check_same(name, keys, known, evaluation)
    for run, own in known.items():
        if own.temperature is None:
            log.warning("%s: %s has no tuning set; its temperature stays 1", name, run)
    device = pick_device(threads)
    found = (
        (_refit(models, known, folds, cache, device),)
        if final == "refit"
        else _folds(name, models, keys, known, cache, device)
    )
    task = found[0].saved.task
    _check_classes(name, task, known, evaluation)
    thresholds: tuple[Threshold, ...] = ()
    if section is not None:
        thresholds = _thresholds(evaluation, task, section, known)
    return FrozenModel(task_name, encoder, head, task, found, thresholds)


def read_folders(
    models: Sequence[Path], *, threads: int, priors: Path | None = None
) -> tuple[FrozenModel, tuple[str, ...]]:
    """Read any folders of trained folds of a task as one model.

    Folders in `results/models/{task}/{encoder}/{head}` have their corrections from the evaluation
    in the same results, and thresholds if they are all folds of it.

    Args:
        models: folders of trained folds, or of heads for all of their folds.
        threads: number of CPU threads for torch.
        priors: the table `priors` of these models' evaluation, if it lies elsewhere.

    Returns:
        The model, and what it lacks, in words: without `priors` the probabilities are as trained
        (`share` equals `seen`), without temperatures these are 1.

    Raises:
        UserError: a folder is none of a trained fold, the models cannot be averaged, or are not in
            `priors`.
    """
    folders = fold_folders(models)
    if not folders:
        raise UserError("no folder of a trained fold is given.")
    device = pick_device(threads)
    saved = {_label(folder, folders): load_model(folder, device) for folder in folders}
    _check_alike("these models", saved)
    task = next(iter(saved.values())).task
    tables = {
        label: priors.parent if priors else evaluation_of(model.folder)
        for label, model in saved.items()
    }
    known = {path: read_corrections(path, priors) for path in set(tables.values()) if path}
    notes, own = [], {}
    for label, model in saved.items():
        path = tables[label]
        by_key = {one.key: one for one in known[path].values()} if path else {}
        if model.card["key"] in by_key:
            own[label] = by_key[model.card["key"]]
        elif priors is not None:
            raise UserError(
                f"--priors {priors}: does not have the model {model.folder} (key "
                f"{model.card['key'][:12]}); give the table of the evaluation of this model."
            )
    for path, found in known.items():
        _check_classes(str(path), task, found, path)
    if len(own) < len(saved):  # all or none, since probabilities of both kinds have no mean
        notes.append(
            "the probabilities are for classes as the training weighed them (training.balance: "
            f"{next(iter(saved.values())).card['training']['balance']}), not as frequent as in the "
            "training set, and no temperature is known; to correct them, run her2 evaluate or give "
            "its table with --priors"
        )
        own = {}
    if lacking := [label for label, one in own.items() if one.temperature is None]:
        notes.append(f"no temperature is known of {', '.join(lacking)}")
    for note in notes:
        log.warning("%s", note)
    even = np.full(len(task.classes), 1 / len(task.classes))
    trained = tuple(
        FrozenFold(
            label,
            model,
            own[label].share if label in own else even,
            own[label].seen if label in own else even,
            (own[label].temperature or 1.0) if label in own else 1.0,
        )
        for label, model in saved.items()
    )
    thresholds, names = _of_whole_head(tables, own, known, task)
    return FrozenModel(*names, task, trained, thresholds), tuple(notes)


def evaluation_of(folder: Path) -> Path | None:
    """Return the folder of the evaluation of a fold in `results/models/{task}/{encoder}/{head}`."""
    head = folder.absolute().parent
    if head.parts[-4:-3] != ("models",):
        return None
    path = Path(*head.parts[:-4], "evaluation", *head.parts[-3:])
    return path if (path / "priors.parquet").exists() else None


def evaluate_spec(evaluation: Path) -> EvaluateSpec | None:
    """Return the spec that the tables of an evaluation in a results folder were made by.

    None if its stamp is absent, or of another version.
    """
    place = evaluation.absolute()
    stamp = read_stamp(Path(*place.parts[:-4], FOLDER, "evaluate", *place.parts[-3:-1],
                            f"{place.name}.json"))  # fmt: skip
    if stamp is None:
        return None
    try:
        spec = EvaluateSpec.model_validate(stamp.spec)
    except ValueError:
        return None
    return spec if spec.version == EvaluateSpec.model_fields["version"].default else None


def geometric_mean(temperatures: Iterable[float | None]) -> float:
    """Return the geometric mean of the temperatures that are known, 1 if none is."""
    known = [one for one in temperatures if one is not None]
    return float(np.exp(np.mean(np.log(known)))) if known else 1.0


def _folds(
    name: str,
    models: Path,
    keys: Mapping[str, str],
    known: Mapping[str, Corrections],
    cache: Cache | None,
    device: torch.device,
) -> tuple[FrozenFold, ...]:
    """Return the folds in the order of repeats, folds and seeds."""
    saved, problems = {}, []
    for run in sorted(keys, key=parse_run):
        try:
            saved[run] = _load(models / run, keys[run], cache, device)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise problem_list(f"{name}: models cannot be used; {AGAIN}", problems)
    _check_alike(name, saved)
    return tuple(
        FrozenFold(run, model, known[run].share, known[run].seen, known[run].temperature or 1.0)
        for run, model in saved.items()
    )


def _refit(
    models: Path,
    known: Mapping[str, Corrections],
    folds: Path | None,
    cache: Cache | None,
    device: torch.device,
) -> FrozenFold:
    """Return the model of all patients, corrected by the classes of its training set."""
    entry = read_all_entries(models, (REFIT,), FoldEntry).get(REFIT)
    if entry is None or not entry.key:
        why = f": {entry.reason}" if entry else ""
        raise UserError(
            f"{models / REFIT}.json: lists no trained model `{REFIT}`{why}. Run snakemake again, "
            "or set `final: folds`."
        )
    if folds is None:
        raise UserError(
            f"{models}: the model of all patients needs the folds table, for its training set."
        )
    saved = _load(models / REFIT, entry.key, cache, device)
    share, seen = _refit_shares(saved, folds)
    temperature = geometric_mean(own.temperature for own in known.values())
    return FrozenFold(REFIT, saved, share, seen, temperature)


def _refit_shares(saved: SavedModel, folds: Path) -> tuple[Floats, Floats]:
    """Return the shares of the classes among the patients of a refit, and as its training saw them.

    Its training set are the labelled slides that it read.
    """
    slides = read_result(folds, columns=["slide_id", "patient_id", "label"]).unique()
    slides = slides.drop_nulls("label")
    used = slides.filter(pl.col("slide_id").is_in(list(rows_read(saved.folder) or ())))
    if len(used) != saved.card["slides"]["train"]:
        raise UserError(
            f"{saved.folder}: was trained on {saved.card['slides']['train']} slides, of which "
            f"{folds} has {len(used)}; {AGAIN}."
        )
    count = len(saved.task.classes)
    in_slides = np.bincount(used["label"].to_numpy(), minlength=count)
    patients = used.unique("patient_id")["label"].to_numpy()
    share = np.bincount(patients, minlength=count) / len(patients)
    training = saved.card["training"]
    balance = ClassBalance(
        balance=training["balance"],
        label_smoothing=training["label_smoothing"],
        bags_per_batch=training["bags_per_batch"],
        fitted=not saved.head.trained_by_gradient,
    )
    return share, seen_shares(in_slides, balance)


def _load(folder: Path, key: str, cache: Cache | None, device: torch.device) -> SavedModel:
    """Return the model of a key."""
    place = folder if cache is None else find_product(cache, "models", key, folder)
    saved = load_model(place, device)
    if saved.card.get("key") != key:
        raise UserError(f"{folder}: holds the model of another training than its entries file.")
    if saved.card.get("protocol") == "published":
        raise _published(str(folder), "of the same name without it")
    return saved


def _published(name: str, instead: str) -> UserError:
    return UserError(
        f"{name}: was trained by the published protocol, which is there to compare figures with a "
        "paper: its patients are on both sides of a fold, and it has no tuning set. Take the head "
        f"{instead}."
    )


def _check_same(
    name: str, keys: Mapping[str, str], known: Mapping[str, Corrections], evaluation: Path
) -> None:
    """Check that the evaluation is of these models."""
    problems = [f"{run}: is evaluated and has no model" for run in known if run not in keys]
    problems += [f"{run}: has a model and is not evaluated" for run in keys if run not in known]
    problems += [
        f"{run}: the model is {key[:12]}, the evaluated one was {known[run].key[:12]}"
        for run, key in keys.items()
        if run in known and known[run].key != key
    ]
    if problems:
        raise problem_list(f"{name}: {evaluation} is of other models; {AGAIN}", problems)


def _check_classes(
    name: str, task: Task, known: Mapping[str, Corrections], evaluation: Path
) -> None:
    problems = [
        f"{run}: {', '.join(own.classes)}"
        for run, own in known.items()
        if own.classes != task.class_names
    ]
    if problems:
        raise problem_list(
            f"{name}: {evaluation} has other classes than the models "
            f"({', '.join(task.class_names)}); {AGAIN}",
            problems,
        )


def _check_alike(name: str, saved: Mapping[str, SavedModel]) -> None:
    """Check that models may be averaged, and that none follows the published protocol."""
    first = next(iter(saved))
    problems = []
    for run, model in saved.items():
        if model.card.get("protocol") == "published":
            raise _published(str(model.folder), "of the same name without it")
        words = [what for key, what in ALIKE.items() if model.card[key] != saved[first].card[key]]
        if words:
            problems.append(f"{run} and {first}: differ in {', '.join(words)}")
    if problems:
        raise problem_list(f"{name}: cannot be averaged", problems)


def _thresholds(
    evaluation: Path, task: Task, section: EvaluationSection, known: Mapping[str, Corrections]
) -> tuple[Threshold, ...]:
    """Return the mean thresholds of the evaluated models."""
    path = evaluation / "predictions.parquet"
    predictions = read_result(path)
    wanted = {"slide_id", "patient_id", "repeat", "fold", "seed", "role", "target",
              *(f"prob_{name}" for name in task.class_names)}  # fmt: skip
    if lacking := sorted(wanted - set(predictions.columns)):
        raise UserError(f"{path}: lacks the columns {', '.join(lacking)}; {AGAIN}.")
    if {run.name for run in runs(predictions)} != set(known):
        raise UserError(f"{path}: has predictions of other models than priors.parquet; {AGAIN}.")
    temperatures = pl.DataFrame(
        [(run, own.temperature) for run, own in known.items()],
        schema={"run": pl.String, "temperature": pl.Float64},
        orient="row",
    )
    return frozen_thresholds(fold_thresholds(predictions, temperatures, task, section))


def _of_whole_head(
    tables: Mapping[str, Path | None],
    own: Mapping[str, Corrections],
    known: Mapping[Path, Mapping[str, Corrections]],
    task: Task,
) -> tuple[tuple[Threshold, ...], tuple[str, str, str]]:
    """Return the thresholds and names of folders that are all folds of one evaluated head."""
    places = set(tables.values())
    (place,) = places if len(places) == 1 else (None,)
    if place is None or place.parts[-4:-3] != ("evaluation",):
        return (), ("", "", "")
    names = place.parts[-3], place.parts[-2], place.parts[-1]
    spec = evaluate_spec(place)
    whole = {one.key for one in own.values()} == {one.key for one in known[place].values()}
    if spec is None or not whole:
        return (), names
    return _thresholds(place, task, spec.evaluation, known[place]), names


def _label(folder: Path, folders: Sequence[Path]) -> str:
    """Return a fold's name, with those of the folders above it where others have the same."""
    parts = folder.absolute().parts
    for count in range(1, len(parts) + 1):
        others = [other for other in folders if other.absolute().parts[-count:] == parts[-count:]]
        if len(others) == 1:
            break
    return "/".join(parts[-count:])
