"""Before every stage: whether the files that a config and its manifest name can be read.

The first process of a run asks for every file before any job begins, so that all that is absent,
closed to this user or no file at all is named in one message.
"""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from her2.cohort.manifest import Cohort
from her2.config import (
    AnyEncoder,
    CohortSection,
    Config,
    EncoderSection,
    PatchesSection,
)
from her2.config.encoders import WEIGHTS_FILES
from her2.core.consent import consent_problem
from her2.core.errors import UserError, problem_list
from her2.core.paths import check_name
from her2.core.reading import Kind, path_problem, write_problem
from her2.core.settings import parse_yaml, read_config
from her2.pipeline.given import given_problems
from her2.segmenters import chosen
from her2.slides.backends import planned_files

TARGETS = frozenset({"all", "features", "train", "report"})
"""The rules that are targets."""


def check_inputs(
    config: Config,
    cohort: Cohort,
    external: Mapping[str, tuple[CohortSection, Cohort]] | None = None,
) -> None:
    """Look up every file and folder that the jobs will read or write.

    `external` has the external cohorts by name, each with its files as a section `cohort`.

    Raises:
        UserError: some cannot be used; the message names them all, by slide or key.
    """
    cohorts = {"cohort": (config.cohort, cohort)}
    cohorts |= {f"validation.{name}": found for name, found in (external or {}).items()}
    problems = [*_config_problems(config)]
    lacking: list[str] = []
    if not config.cohort.synthetic:  # the demo's slides do not exist yet, since rules draw them
        for where, (section, own) in cohorts.items():
            problems += _folder_problems(where, section)
            count = 0
            for row, found in _slide_problems(own, where, section.tissue_masks):
                of = "" if where == "cohort" else f" of {where}"
                problems += [f"slide {row!r}{of}, {problem}" for problem in found]
                count += bool(found)
            if count:
                lacking.append(
                    f"{count} of {len(own.rows)} slides; correct the paths, or `{where}.root` "
                    f"(now {str(own.root)!r})"
                )
    if not problems:
        given = [
            problem
            for where, (_, own) in cohorts.items()
            for problem in given_problems(config, own, where)
        ]
        if given:
            raise problem_list("features computed elsewhere cannot be used", dict.fromkeys(given))
        return
    headline = f"{len(problems)} file(s) or folder(s) cannot be used"
    raise problem_list(", of ".join((headline, *lacking)), problems)


def setup_problems(config: Config, sections: Mapping[str, CohortSection]) -> list[str]:
    """Return which files and folders that a config itself names cannot be used.

    `sections` has the cohorts by their section of the config. Their slides are not looked up.
    """
    folders = [one for where, own in sections.items() for one in _folder_problems(where, own)]
    return [*_config_problems(config), *folders]


def check_config_files(files: Iterable[Path | str], results: Path = Path("results")) -> None:
    """Read Snakemake's config files again, strictly: it keeps the last of a key that is twice.

    Raises:
        UserError: files cannot be read, hold a key twice, or are targets (rules, files below
            `results`) that Snakemake took for config files; the message names them all.
    """
    paths = [Path(file) for file in files]
    if targets := [_shown(path) for path in paths[1:] if _is_target(path, results)]:
        named = shlex.join(targets)
        raise UserError(
            f"{named}: Snakemake took this for another config file, as `--configfile` takes every "
            f"word that follows. Put targets first: `snakemake --cores all {named} --configfile "
            f"{shlex.quote(_shown(paths[0]))}`."
        )
    problems = []
    for path in paths:
        try:
            read_config(path)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def _is_target(path: Path, results: Path) -> bool:
    """Return whether what was given as a config file is a rule's name or lies in the results."""
    return path.name in TARGETS or path.absolute().is_relative_to(results.absolute())


def _shown(path: Path) -> str:
    """Return a path as it was given: Snakemake makes it absolute."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path)


def check_arguments(arguments: Sequence[str]) -> None:
    """Check the values after `--config` on Snakemake's command line, which win over the files.

    Raises:
        UserError: a key is there twice, of which Snakemake keeps the last.
    """
    given: list[str] = []
    reading = False
    for argument in arguments:
        flag, _, first = argument.partition("=")
        if flag in ("--config", "-C"):  # the last of several counts alone
            given, reading = [first] if first else [], True
        elif argument.startswith("-"):
            reading = False
        elif reading:
            given.append(argument)
    keys = [value.partition("=")[0] for value in given]
    problems = [
        f"--config {key}: is there twice, and the last would be used alone; delete one of them"
        for key in dict.fromkeys(keys)
        if keys.count(key) > 1
    ]
    for key, _, text in (value.partition("=") for value in given):
        try:
            parse_yaml(text, source=f"--config {key}")
        except UserError as error:
            problems += [str(error)] if "is there twice" in str(error) else []
    if problems:
        raise UserError("\n".join(problems))


def check_folders(*folders: Path) -> None:
    """Check the working folder and that of the workflow, whose paths are parts of commands.

    Raises:
        UserError: their names contain what Snakemake takes for a pattern.
    """
    for folder in folders:
        try:
            check_name(str(folder))
        except ValueError as problem:
            raise UserError(f"the folder of this project: {problem}.") from None


def _slide_problems(
    cohort: Cohort, where: str, tissue_masks: Path | None
) -> Iterator[tuple[str, list[str]]]:
    """Yield each slide's id and what is wrong with its own files, annotation and mask."""
    for row in cohort.rows:
        own = "column 'mask'" if row.mask is not None else f"`{where}.tissue_masks`"
        slide = cohort.present_file(row)
        files = {} if slide is None else {slide: "column 'path'"}
        if slide and path_problem(slide) is None:  # the first of several files names the others
            files |= dict.fromkeys(planned_files(slide), "column 'path'")
        further = {
            cohort.annotation_file(row): "column 'annotation'",
            cohort.mask_file(row, tissue_masks): own,
        }
        files |= {path: what for path, what in further.items() if path is not None}
        found = [(what, path, path_problem(path)) for path, what in files.items()]
        yield row.slide_id, [f"{what}: {str(path)!r} {why}" for what, path, why in found if why]


def _folder_problems(where: str, cohort: CohortSection) -> Iterator[str]:
    names = ("root", "masks", "tissue_masks")
    return _place_problems((f"{where}.{name}", getattr(cohort, name), "folder") for name in names)


def _place_problems(places: Iterable[tuple[str, Path | None, Kind]]) -> Iterator[str]:
    for key, path, kind in places:
        problem = None if path is None else path_problem(path, kind)
        if problem:
            yield f"{key}: {str(path)!r} {problem}"


def _config_problems(config: Config) -> Iterator[str]:
    places: list[tuple[str, Path | None, Kind]] = []
    if not config.cohort.synthetic:
        asked = {e.data for e in config.encoders.values() if e.data is not None}
        for name in sorted(asked):
            places += _patch_files(f"patches.{name}", config.patches[name])
    yield from _place_problems(places)
    for name, encoder in config.encoders.items():
        problem = _weights_problem(encoder)
        if problem:
            key = "checkpoint" if encoder.module is None else "module"
            yield f"encoders.{name}.{key}: {problem}"
    yield from _place_problems(
        (f"tiling.{one.path_key}", getattr(config.tiling, one.path_key), "file")
        for one in chosen(config.tiling)
    )
    yield from _place_problems(
        (f"encoders.{name}.path", folder, "folder")
        for name, section in config.given.items()
        for folder in section.path
    )
    cache = "cache" if config.cache_folder == config.cache else "HER2_CACHE"
    for key, folder in (("results", config.results), (cache, config.cache_folder)):
        problem = write_problem(folder)
        if problem:
            yield f"{key}: {str(folder)!r} {problem}"


def _weights_problem(encoder: AnyEncoder) -> str | None:
    """Return what is wrong with the local weights or the code of an encoder, if it has any."""
    if not isinstance(encoder, EncoderSection):
        return None
    if encoder.module is not None:
        path = encoder.local_weights()
        assert path is not None
        problem = path_problem(path) or consent_problem()
        return f"{str(path)!r} {problem}" if problem else None
    path = encoder.checkpoint
    if path is None:
        return None
    problem = path_problem(path, "file or folder")
    if problem is not None:
        return f"{str(path)!r} {problem}"
    try:
        file = encoder.local_weights()
    except UserError:
        return f"{str(path)!r} is a folder without {' or '.join(WEIGHTS_FILES)}"
    problem = None if file is None else path_problem(file)
    return f"{str(file)!r} {problem}" if problem else None


def _patch_files(key: str, section: PatchesSection) -> list[tuple[str, Path | None, Kind]]:
    return [
        (f"{key}.path", section.path, "file" if section.format == "csv" else "folder"),
        (f"{key}.labels", section.labels, "file"),
        (f"{key}.slides", section.slides, "file"),
    ]
