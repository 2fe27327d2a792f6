"""Which model of a results folder a bundle is of, and what its jobs were asked for.

That is in their stamps (`her2.core.stamps`), and not in a config that may have been edited since.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from her2.config import Section
from her2.core.errors import UserError, problem_list
from her2.core.stamps import FOLDER, file_size, read_stamp, short_digest

AGAIN = "Run snakemake to its end, then try again."

_OWN = {"bucket", "rows", "files"}
"""What the specs of a bucket have of its own slides."""

_Spec = TypeVar("_Spec", bound=Section)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The model of a results folder that is put into a bundle."""

    results: Path
    task: str
    encoder: str
    head: str

    @property
    def names(self) -> tuple[str, str, str]:
        """Return task, encoder and head, as in the paths of the results."""
        return self.task, self.encoder, self.head

    def folder(self, stage: str) -> Path:
        """Return the model's folder of a stage."""
        return self.results.joinpath(stage, *self.names)


def find_model(results: Path, task: str | None, encoder: str | None, head: str | None) -> Wanted:
    """Return the evaluated model with these names; a name may be left out where there is only one.

    Raises:
        UserError: there is none, or several; it names them.
    """
    if not results.is_dir():
        raise UserError(f"{results}: is no folder; give the results of a run.")
    found = sorted(
        path.parent.relative_to(results / "evaluation").parts
        for path in results.glob("evaluation/*/*/*/predictions.parquet")
    )
    asked = (task, encoder, head)
    fit = [
        names
        for names in found
        if all(want in (None, name) for want, name in zip(asked, names, strict=True))
    ]
    if len(fit) == 1:
        return Wanted(results, *fit[0])
    shown = "\n".join(f"  - --task {t} --encoder {e} --head {h}" for t, e, h in (fit or found)[:50])
    if not found:
        raise UserError(f"{results}: has no evaluated model. {AGAIN}")
    wish = " ".join(
        f"--{what} {name}"
        for what, name in zip(("task", "encoder", "head"), asked, strict=True)
        if name is not None
    )
    if not fit:
        said = f"no evaluated model is {wish}"
    else:
        said = f"{len(fit)} evaluated models are {wish}" if wish else "has several evaluated models"
    raise UserError(f"{results}: {said}; name one of\n{shown}")


def spec_of(kind: type[_Spec], wanted: Wanted, *place: str) -> _Spec:
    """Return what a job was asked for, from its stamp.

    Raises:
        UserError: there is no stamp, or it is of another version of the stage.
    """
    path = wanted.results.joinpath(FOLDER, *place).with_name(f"{place[-1]}.json")
    return read_spec(kind, path)


def read_spec(kind: type[_Spec], path: Path) -> _Spec:
    """Return what a job was asked for, from the path of its stamp.

    Raises:
        UserError: there is no stamp, or it is of another version of the stage.
    """
    stamp = read_stamp(path)
    if stamp is None:
        raise UserError(f"{path}: is missing, which says what a job was asked for. {AGAIN}")
    try:
        spec = kind.model_validate(stamp.spec)
    except ValueError:
        spec = None
    fields = kind.model_fields
    if spec is None or getattr(spec, "version", None) != fields["version"].default:
        raise UserError(f"{path}: is of another version of her2. {AGAIN}")
    return spec


def check_unchanged(wanted: Wanted, stamps: Iterable[Path]) -> None:
    """Check that the results which jobs read still have the content that these jobs read.

    They have not in a model that is left over from another config or manifest, or where a run was
    interrupted: its tiles, folds or patients would be those of another training.

    Raises:
        UserError: it names what was changed, and after which jobs.
    """
    problems: dict[str, list[str]] = {}
    for path in stamps:
        stamp = read_stamp(path)
        for name, content in stamp.read.items() if stamp else ():
            file = wanted.results / name
            state = file_size if content.endswith(" bytes") else short_digest
            if not file.is_file() or state(file) != content:
                problems.setdefault(name, []).append(stamp.job if stamp else "")
    if problems:
        raise problem_list(
            f"{wanted.results}: what {'/'.join(wanted.names)} was made from was changed since, so "
            f"that a bundle would describe another model than it has. {AGAIN} If the config does "
            "not have this model any more, add it first",
            [f"{name} was changed after {', '.join(jobs)}" for name, jobs in problems.items()],
            limit=20,
        )


def spec_of_buckets(
    kind: type[_Spec], wanted: Wanted, *place: str, buckets: tuple[str, ...]
) -> _Spec:
    """Return what the jobs of all buckets were asked for, which differ in nothing but their slides.

    Args:
        kind: the class of their specs.
        wanted: the model.
        place: the folder of their stamps.
        buckets: names of the buckets; stamps of others are left over from other manifests.

    Raises:
        UserError: they differ in something else, or a stamp is missing or of another version.
    """
    found = {name: spec_of(kind, wanted, *place, name) for name in buckets}
    asked = {name: spec.model_dump(exclude=_OWN) for name, spec in found.items()}
    first, *others = buckets
    if differ := [f"{first} and {name}" for name in others if asked[name] != asked[first]]:
        folder = wanted.results.joinpath(FOLDER, *place)
        raise problem_list(f"{folder}: its jobs were asked for different things. {AGAIN}", differ)
    return found[first]
