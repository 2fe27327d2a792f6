"""`her2 cohort check`: what a run would reject, found before the run."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from her2.core.errors import UserError

if TYPE_CHECKING:
    from her2.cohort.manifest import Cohort
    from her2.importing.checks import Checked, Part
    from her2.importing.opening import Opening
    from her2.pipeline.plan import Plan

cohort_app = typer.Typer(help="Check a manifest.", no_args_is_help=True)


@cohort_app.callback()
def _keep_the_name_of_the_command() -> None:
    """Check a manifest."""


@cohort_app.command("check")
def cohort_check(
    slides: Annotated[Path, typer.Argument(help="the manifest, .csv or .parquet")],
    config: Annotated[
        Path | None,
        typer.Option(help="config whose tasks the labels must fit; default: config.yaml"),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="where relative paths start")] = None,
    validation: Annotated[
        str | None, typer.Option(help="check it as this external cohort of the config")
    ] = None,
    open_: Annotated[
        bool,
        typer.Option(
            "--open",
            help="also list what each slide's file says of itself, and look at its stain. Flat "
            "images are then not decoded",
        ),
    ] = False,
    threads: Annotated[
        int, typer.Option(min=1, max=256, help="slides that are opened at the same time")
    ] = 4,
) -> None:
    """Check a manifest: columns, ids, labels, folds, files, annotations, masks and duplicates.

    With a config, also whatever a run with it would reject before its first result: the files and
    folders that it names, its external cohorts, and slides that it would leave out.
    """
    from her2.cohort.labels import decision_lines
    from her2.cohort.reading import configured_cohort
    from her2.config import load_config
    from her2.importing.checks import check_files
    from her2.pipeline.external import read_external
    from her2.pipeline.plan import Plan

    settings = load_config(config or Path("config.yaml"))
    if root is None and config is not None:
        root = settings.cohort.root  # the default config's root is the demo's, useless here
    problems: list[str] = []
    plans: dict[str, Plan] = {}
    if validation is not None:
        where = f"validation.{validation}"
        plans[where] = read_external(settings, validation, slides)
    else:
        where = "cohort"
        try:
            cohort = configured_cohort(settings, slides, root)
        except UserError as error:  # labels may be wrong and slides too: all is told at once
            problems.append(str(error))
            cohort = _without_labels(slides, root, error)
        plans[where] = Plan(settings, cohort)
    sound = not problems
    own, shown = plans[where], settings if config is not None or validation is not None else None
    if config is not None and validation is None:
        if sound:
            problems += _add_external(plans)
        problems += _setup_problems(plans, folds=sound)
    parts = [_part(name, plan, files=shown is not None) for name, plan in plans.items()]
    checked = check_files(
        parts,
        config=shown,
        classes=settings.tiling.annotation_classes,
        metadata_only=open_,
        threads=threads,
    )
    for one in checked:
        if open_:
            print("\n".join(_table(one)))
        _print_cautions(one)
    found = [problem for one in checked for problem in one.problems]
    if found:
        listed = "\n".join(f"  - {problem}" for problem in found)
        problems.append(f"{len(found)} problem(s) with the slides' files\n{listed}")
    if problems:
        raise UserError("\n".join(problems))
    patients = len({row.patient_id for row in own.cohort.rows})
    print(f"{slides}: {len(own.cohort.rows)} slides of {patients} patients, no problems found")
    for name, plan in plans.items():
        if plan is not own:
            print(f"{name}: {len(plan.cohort.rows)} slides, no problems found")
    tasks = own.config.tasks
    conflicts = {name: own.cohort.conflicts(task) for name, task in tasks.items()}
    for line in decision_lines(tasks, conflicts, settings.cohort.patient_label):
        print(line)


def _add_external(plans: "dict[str, Plan]") -> Iterator[str]:
    """Add the plans of the external cohorts, and yield why any cannot be read."""
    from her2.pipeline.external import external_plan

    own = plans["cohort"]
    for name in own.config.validation:
        try:
            plans[f"validation.{name}"] = external_plan(own.config, name, own.cohort)
        except UserError as error:
            yield str(error)


def _without_labels(slides: Path, root: Path | None, error: UserError) -> "Cohort":
    """Read the ids, paths and um/px of a manifest with other mistakes; raise `error` if it has not.

    Raises:
        UserError: `error`.
    """
    from her2.cohort.reading import read_labels

    try:
        return read_labels(slides, root=root, labels=())
    except UserError:
        raise error from None


def _setup_problems(plans: "dict[str, Plan]", *, folds: bool) -> Iterator[str]:
    """Yield what the first process of a run, and its folds, would refuse."""
    from her2.pipeline.given import file_problems, given_problems
    from her2.pipeline.inputs import setup_problems
    from her2.pipeline.trial import plan_problems

    own = plans["cohort"]
    setup = setup_problems(own.config, {name: p.config.cohort for name, p in plans.items()})
    yield from setup
    if not setup:
        for where, plan in plans.items():
            given = [*given_problems(own.config, plan.cohort, where)]
            yield from given or file_problems(own.config, plan.cohort)
    checks: tuple[Callable[[], object], ...] = (lambda: own.local_weights, lambda: own.chunks)
    for check in checks:
        try:
            check()
        except UserError as error:
            yield str(error)
    if folds:
        yield from plan_problems(own)


def _part(where: str, plan: "Plan", *, files: bool) -> "Part":
    """Return a cohort to check; the default config's folders are the demo's."""
    from her2.importing.checks import Part

    section = plan.config.cohort
    masks, truths = (section.tissue_masks, section.masks) if files else (None, None)
    return Part(plan.cohort, where, masks, truths)


def _print_cautions(one: "Checked") -> None:
    cohort, where = one.part.cohort, one.part.where
    for text in (*cohort.remarks, *cohort.cautions, *one.cautions):
        print(text if where == "cohort" else f"{where}: {text}")


def _table(one: "Checked") -> list[str]:
    """Return a line for each slide: what its file says of itself, and what becomes of it."""
    header = ("slide", "reader", "px", "levels", "um/px", "brown", "in a run")
    rows = [header, *map(_cells, one.openings)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(header))]
    where = [] if one.part.where == "cohort" else [f"{one.part.where}:"]
    return [*where, *(_line(row, widths) for row in rows)]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
    return "  ".join(padded).rstrip()


def _cells(one: "Opening") -> tuple[str, ...]:
    from her2.core.spelling import printable

    if one.problem:
        return one.slide_id, "-", "-", "-", "-", "-", "cannot be read"
    mpp = "none"
    if one.mpp is not None:
        x, y = (f"{value:.4g}" for value in one.mpp)
        mpp = f"{x if x == y else f'{x} x {y}'} ({one.mpp_source})"
    return (
        one.slide_id,
        printable(one.reader),
        f"{one.width_px:,} x {one.height_px:,}",
        str(one.levels),
        mpp,
        "-" if one.brown is None else f"{one.brown:.0%}",
        "left out" if one.excluded else "used",
    )
