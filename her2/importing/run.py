"""An import, from the source's folder to files that are complete, checked and ready for a run."""

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from her2.cohort.reading import configured_cohort, read_labels
from her2.config import NAME_PATTERN, Config, parse_config
from her2.core.errors import UserError, problem_list
from her2.core.paths import check_name, check_text
from her2.core.reading import path_problem, write_problem
from her2.core.settings import parse_yaml
from her2.core.spelling import printable
from her2.importing import words
from her2.importing.found import Found, ImportedSlide, LeftOut, Source
from her2.importing.opening import Opening, SlideToOpen, open_slides
from her2.importing.preset import read_preset, with_values, without_tasks, written_value
from her2.importing.record import asked_record, opened_record
from her2.importing.result import (
    MANIFEST,
    RECORD,
    check_free,
    manifest_text,
    publish,
    slide_problems,
)


@dataclass(frozen=True, slots=True)
class Imported:
    """What was written, in words.

    Attributes:
        lines: what was found.
        mends: what has to be mended before a run with the config that was written; it would stop.
    """

    lines: tuple[str, ...]
    mends: tuple[str, ...]


def import_cohort(
    source: Source,
    folder: Path,
    out: Path,
    options: Mapping[str, Any],
    *,
    threads: int = 4,
    force: bool = False,
    external: bool = False,
) -> Imported:
    """Import a cohort: read it, open its slides, and write the manifest and what belongs to it.

    Args:
        source: the source.
        folder: what its `read` is given first.
        out: folder for what is written; made if it is not there.
        options: further arguments of `read`.
        threads: slides that are opened at the same time.
        force: write over files in `out` that others made or changed.
        external: models of another cohort are to be tested on it, so that it needs no folds and
            has no config of its own.

    Raises:
        UserError: the folder cannot be read, the source found mistakes or waits for a person, or
            no slide is left. The manifest is not written then.
    """
    _check_places(folder, out)
    found = source.read(folder, out=out, **options)
    starter = f"{source.name}.yaml"
    taken = {MANIFEST, RECORD, starter}
    if wrong := [name for name in found.sheets if name in taken or Path(name).name != name]:
        raise ValueError(f"source {source.name!r}: no sheet can be called {', '.join(wrong)}")
    record = asked_record(source, folder, options, found) | {"external": external}
    if found.stops:
        publish(out, found.sheets, {**record, "stops": found.stops}, found, force=force)
        raise UserError(f"{found.stops}\nWritten: {_names(out, found.sheets)}")
    root = found.root or _root(folder, out, found.slides)
    if problems := slide_problems(found.slides, root):
        raise problem_list(f"{folder}: {len(problems)} problem(s)", problems)
    if not found.slides:
        raise _nothing_left(folder, found)
    written = [MANIFEST] if external else [MANIFEST, starter]
    if not force:
        check_free(out, dict.fromkeys((*found.sheets, *written), ""), found.inputs)
    preset = None if external else read_preset(source.preset)
    config = None
    if preset is not None:
        config, _ = _parsed(*_config_text(source, preset, out, root, found))
    opened = open_slides(
        [SlideToOpen(slide_id=one.slide_id, path=one.path, mpp=one.mpp) for one in found.slides],
        threads=threads,
        config=config,
    )
    found = _usable(found, opened)
    if not found.slides:
        raise _nothing_left(folder, found)
    texts = {**found.sheets, MANIFEST: manifest_text(found.slides, root)}
    dropped: list[str] = []
    mends: list[str] = []
    if preset is not None:
        texts[starter], dropped = _config_text(source, preset, out, root, found)
        config, mends = _parsed(texts[starter], dropped)
    if config is not None:
        mends += _too_many_excluded(found, opened, config)
    mends += _manifest_problems(texts[MANIFEST], found, root, out / MANIFEST, config)
    record |= opened_record(found, opened) | {"tasks_without_labels": dropped, "mends": mends}
    publish(out, texts, record, found, force=force)
    lines = [
        *words.summary(source.name, found, opened),
        *(f"task {name!r} is a comment in the config: no slide has its label" for name in dropped),
        f"written: {_names(out, [*texts, RECORD])}",
        *([f"run it: {_command(out / starter)}"] if preset is not None and not mends else ()),
        *(_external_section(source, out, root, found) if external else ()),
    ]
    return Imported(tuple(lines), tuple(mends))


def _check_places(folder: Path, out: Path) -> None:
    if problem := path_problem(folder, "file or folder"):
        raise UserError(f"{folder}: {problem}. Name the folder that the data are in.")
    if problem := write_problem(out):
        raise UserError(f"--out {out}: {problem}. Name another folder.")
    for what, place in {"--out ": out, "": folder if folder.is_dir() else out}.items():
        try:  # it becomes a path of the config
            check_text(str(place))
            check_name(str(place))
        except ValueError as error:
            raise UserError(f"{what}{printable(str(place))}: {error}.") from None
    if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"--out {out}: lies in {folder}, whose files are only read. Name a folder elsewhere."
        )


def _nothing_left(folder: Path, found: Found) -> UserError:
    reasons = [f"{one.name}: {one.reason}" for one in found.left_out]
    return problem_list(
        f"{folder}: no slide is left to import", reasons or ["nothing in it looks like a slide"]
    )


def _names(out: Path, names: Iterable[str]) -> str:
    return ", ".join(str(out / name) for name in names)


def _root(folder: Path, out: Path, slides: Sequence[ImportedSlide]) -> Path:
    """Return where the manifest's paths start: `out` if all slides were converted to there."""
    if slides and all(one.path.is_relative_to(out) for one in slides):
        return out
    return folder if folder.is_dir() else folder.parent


def _usable(found: Found, opened: Sequence[Opening]) -> Found:
    """Leave out the slides that cannot be opened, and further copies of one file."""
    slides = dict(zip((one.slide_id for one in found.slides), found.slides, strict=True))
    reasons = {one.slide_id: one.problem for one in opened if one.problem}
    conflicts = []
    copies = defaultdict(list)
    for one in opened:
        if one.fingerprint:
            copies[one.fingerprint].append(one.slide_id)
    for first, *others in copies.values():
        same = [slides[name] for name in (first, *others)]
        if len({(one.patient_id, tuple(sorted(one.labels.items()))) for one in same}) == 1:
            reasons |= dict.fromkeys(others, f"is a copy of {first}: the same content")
        else:
            names = ", ".join(f"{one.slide_id} (patient {one.patient_id})" for one in same)
            conflicts.append(
                f"slides {names} are one file under several names, with different patients or "
                "labels; all of them were left out"
            )
            reasons |= dict.fromkeys((first, *others), f"has the same content as another: {names}")
    return replace(
        found,
        slides=tuple(one for one in found.slides if one.slide_id not in reasons),
        left_out=(
            *found.left_out,
            *(LeftOut(f"{name} ({slides[name].path})", why) for name, why in reasons.items()),
        ),
        conflicts=(*found.conflicts, *conflicts),
    )


def _config_text(
    source: Source, preset: str, out: Path, root: Path, found: Found
) -> tuple[str, list[str]]:
    """Return the starter config, and the preset's tasks that this cohort has no labels for."""
    labels = {name for one in found.slides for name, value in one.labels.items() if value}
    text, dropped = without_tasks(preset, labels)
    places = {"results": out / "results", "cohort.slides": out / MANIFEST, "cohort.root": root}
    return with_values(text, {**places, **found.config}), dropped


def _command(config: Path) -> str:
    return f"snakemake --cores all --configfile={shlex.quote(str(config))}"


def _external_section(source: Source, out: Path, root: Path, found: Found) -> list[str]:
    """Return what the config has to say whose models are tested on this cohort."""
    own = out.resolve().name
    name = own if re.fullmatch(NAME_PATTERN, own) else source.name
    keys: dict[str, object] = {"slides": out / MANIFEST, "root": root}
    keys |= {
        key: found.config[f"cohort.{key}"]
        for key in ("masks", "tissue_masks")
        if found.config.get(f"cohort.{key}")
    }
    return [
        "for the config whose models are to be tested on this cohort (docs/validation.md):",
        "validation:",
        f"  {name}:",
        *(f"    {key}: {written_value(value)}" for key, value in keys.items()),
    ]


def _parsed(text: str, dropped: Sequence[str]) -> tuple[Config | None, list[str]]:
    """Return the config, or what is wrong with it for this cohort."""
    try:
        return parse_config(parse_yaml(text, source="the config"), source="the config"), []
    except UserError as error:
        more = f" (no slide has a label for the tasks {', '.join(dropped)})" if dropped else ""
        return None, [f"{error}{more}"]


def _too_many_excluded(found: Found, opened: Sequence[Opening], config: Config) -> list[str]:
    """Return that a run would stop since it cannot use too many of the slides, if it would."""
    kept = {one.slide_id for one in found.slides}
    excluded = [one for one in opened if one.slide_id in kept and one.excluded]
    if len(excluded) <= config.cohort.max_excluded * len(kept):
        return []
    first = excluded[0]
    return [
        f"{len(excluded):,} of {len(kept):,} slides would be left out, more than "
        f"cohort.max_excluded {config.cohort.max_excluded:g}; such as {first.slide_id}: "
        f"{first.excluded[0]}"
    ]


def _manifest_problems(
    text: str, found: Found, root: Path, name: Path, config: Config | None
) -> list[str]:
    """Return what stops a run with this manifest although every cell of it is legal.

    Raises:
        UserError: cells are not legal.
    """
    from her2.pipeline.inputs import setup_problems
    from her2.pipeline.plan import Plan
    from her2.pipeline.trial import plan_problems

    labels = {label for one in found.slides for label in one.labels}
    further = {column for one in found.slides for column, cell in one.further.items() if cell}
    with TemporaryDirectory() as folder:
        path = Path(folder, MANIFEST)
        path.write_text(text, encoding="utf-8")
        try:
            read_labels(path, root=root, labels=labels, named=further)
        except UserError as error:
            raise UserError(
                f"the manifest was not written; of the one that would be, "
                f"{str(error).replace(str(path), str(name))}"
            ) from None
        if config is None:
            return []
        problems = setup_problems(config, {"cohort": config.cohort})
        try:
            return problems + plan_problems(Plan(config, configured_cohort(config, path, root)))
        except UserError as error:
            return [*problems, str(error).replace(str(path), str(name))]
