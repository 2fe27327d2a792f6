"""After stage 2: a trained model from wherever it lies, for scripts and notebooks."""

from pathlib import Path

from her2.core.errors import UserError
from her2.core.hardware import allowed_cpus
from her2.frozen.bundle.asked import find_model
from her2.frozen.bundle.read import read_bundle
from her2.frozen.bundle.schema import SCHEMA_NAME
from her2.frozen.folders import read_folders
from her2.frozen.model import FrozenModel
from her2.frozen.results import evaluate_spec, read_frozen
from her2.storage.fold_files import CARD_NAME


def load_model(
    path: Path | str,
    *,
    task: str | None = None,
    encoder: str | None = None,
    head: str | None = None,
    threads: int | None = None,
) -> FrozenModel:
    """Return the trained models of a task, encoder and head as one fixed predictor.

    Probabilities are calibrated by what the evaluation of these models found. Folders of folds
    without an evaluation are as they were trained; the log says so.

    Args:
        path: the results folder of a finished run; a bundle, folder or .zip; or a folder of
            trained folds, such as `results/models/score/uni2/abmil`, or of one of them.
        task, encoder, head: names of the config, for a results folder; one may be left out where
            there is only one.
        threads: CPU threads; default: all that there are.

    Raises:
        UserError: there is no such model (the message names those that there are), or it was
            changed.

    >>> import her2
    >>> her2.load_model("results", head="abmil")
    <FrozenModel score / tiny / abmil: 2 models, low, high>
    >>> her2.load_model("results/models/score/tiny/abmil/r0f0").task.class_names
    ('low', 'high')
    """
    path, threads = Path(path), threads or allowed_cpus()
    names = {"task": task, "encoder": encoder, "head": head}
    if (path / "evaluation").is_dir() or (path / "models").is_dir():
        wanted = find_model(path, task, encoder, head)
        evaluation = wanted.folder("evaluation")
        spec = evaluate_spec(evaluation)
        return read_frozen(
            evaluation,
            wanted.folder("models"),
            task_name=wanted.task,
            encoder=wanted.encoder,
            head=wanted.head,
            section=None if spec is None else spec.evaluation,
            threads=threads,
        )
    if given := [name for name, value in names.items() if value is not None]:
        raise UserError(
            f"{path}: is no results folder, and {', '.join(given)} choose a model of one. Give the "
            "results folder, or leave them out."
        )
    if path.suffix == ".zip" or (path / SCHEMA_NAME).exists():
        return read_bundle(path, threads=threads).model
    if not ((path / CARD_NAME).exists() or any(path.glob(f"*/{CARD_NAME}"))):
        raise UserError(
            f"{path}: holds no trained model. Give the results folder of a finished run, a bundle, "
            "or a folder of trained folds (results/models/TASK/ENCODER/HEAD)."
        )
    return read_folders([path], threads=threads).model
