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
from her2.config.jobs import EvaluateSpec
from her2.config.names import PUBLISHED, REFIT, parse_run
from her2.config.validation import Final
from her2.core.errors import UserError, problem_list
from her2.core.reading import read_json
from her2.core.stamps import FOLDER, read_stamp
from her2.core.tables import read_result
from her2.encoders.device import pick_device
from her2.evaluation.predictions import runs
from her2.frozen.corrections import Corrections, read_corrections
from her2.frozen.model import FrozenFold, FrozenModel, Threshold
from her2.frozen.thresholds import fold_thresholds, frozen_thresholds
from her2.mil.fold import SavedModel, load_model
from her2.mil.refit import refit_shares
from her2.storage.cache import Cache
from her2.storage.entries import FoldEntry, read_all_entries, read_folds, untrained_folds
from her2.storage.fold_files import IDENTITY_NAME, check_fold
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
        (_refit(models, known, cache, device),)
        if final == "refit"
        else _folds(name, models, keys, known, cache, device)
    )
    task = found[0].saved.task
    check_classes(name, task, known, evaluation)
    thresholds: tuple[Threshold, ...] = ()
    if section is not None:
        thresholds = read_thresholds(evaluation, task, section, known)
    return FrozenModel(task_name, encoder, head, task, found, thresholds)


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


def is_refit(saved: SavedModel) -> bool:
    """Tell whether a model was trained on all patients (`her2.mil.refit`), and is no fold's."""
    path = saved.folder / IDENTITY_NAME
    if not path.exists():
        return False
    check_fold(saved.folder, [IDENTITY_NAME])
    return bool(read_json(path)["identity"].get("stage") == "refit")


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
    check_alike(name, saved)
    return tuple(
        FrozenFold(run, model, known[run].share, known[run].seen, known[run].temperature or 1.0)
        for run, model in saved.items()
    )


def _refit(
    models: Path,
    known: Mapping[str, Corrections],
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
    saved = _load(models / REFIT, entry.key, cache, device)
    if not is_refit(saved):
        raise UserError(f"{models / REFIT}: is not a model of all patients; {AGAIN}.")
    share, seen = refit_shares(saved.folder)
    temperature = geometric_mean(own.temperature for own in known.values())
    return FrozenFold(REFIT, saved, share, seen, temperature)


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


def check_classes(
    name: str, task: Task, known: Mapping[str, Corrections], evaluation: Path
) -> None:
    """Check that an evaluation has the classes of a task, in its order.

    Raises:
        UserError: it has others.
    """
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


def check_alike(name: str, saved: Mapping[str, SavedModel]) -> None:
    """Check that models may be averaged, and that none follows the published protocol.

    Raises:
        UserError: they may not; the message names them.
    """
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


def read_thresholds(
    evaluation: Path, task: Task, section: EvaluationSection, known: Mapping[str, Corrections]
) -> tuple[Threshold, ...]:
    """Return the mean thresholds of the models of an evaluation.

    Raises:
        UserError: its predictions are of other models or classes.
    """
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
