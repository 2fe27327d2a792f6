"""Before every stage: `slides.csv` -> `Cohort`, validated, with all problems in one message.

Every Snakemake job does this when it parses the workflow, so it goes through columns, looks at
equal cells once, and imports nothing heavy.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from her2.cohort import columns, faults
from her2.cohort.columns import Value, label, text
from her2.cohort.fixed_split import split_problem
from her2.cohort.labels import refusal
from her2.cohort.manifest import FIELDS, Cohort, SlideRow
from her2.config import Config, PatientLabel, Task
from her2.core.errors import UserError, problem_list
from her2.core.sheets import Sheet, read_sheet, rows_in_words
from her2.core.spelling import printable

PATIENT, SLIDE = "patient_id", "path"
_ROW = tuple(one.name for one in fields(SlideRow))


def configured_cohort(
    config: Config,
    slides: Path,
    root: Path | None,
    *,
    tasks: Mapping[str, Task] | None = None,
    asked: Mapping[str, str] | None = None,
    where: str = "cohort",
) -> Cohort:
    """Read and check a manifest, as `read_cohort` does, with the tasks and columns of a config.

    For an external cohort, `tasks` has its own label columns and `where` its section. Columns of
    labels, subgroups and covariates may then be absent, but for the label columns in `asked`.
    """
    computing = [name for name in config.encoders if name not in config.given]
    return read_cohort(
        slides,
        root=root,
        slides_for=computing if config.given else None,
        tasks=config.tasks if tasks is None else tasks,
        patient_label=config.cohort.patient_label,
        named=config.evaluation.columns,
        rules=faults.LabelRules(config.cohort.missing, config.cohort.unmapped_labels),
        fixed_split=config.folds.split == "use" and tasks is None,
        asked=asked,
        where=where,
    )


def read_cohort(
    slides: Path | str,
    *,
    root: Path | None = None,
    tasks: Mapping[str, Task] = MappingProxyType({}),
    patient_label: PatientLabel = "refuse",
    named: Mapping[str, str] | None = None,
    rules: faults.LabelRules = faults.STRICT,
    fixed_split: bool = False,
    asked: Mapping[str, str] | None = None,
    slides_for: Collection[str] | None = None,
    where: str = "cohort",
) -> Cohort:
    """Read and check a manifest.

    Args:
        slides: .csv (UTF-8, one header row) or .parquet.
        root: folder where relative paths start; default: the manifest's folder.
        tasks: tasks whose label columns and classes the manifest must fit; default: none, and
            labels are not read.
        patient_label: the config's `cohort.patient_label`.
        named: further columns to read as text -> the config's key that names each.
        rules: what becomes of labels that no task has.
        fixed_split: whether the column `split`, where it has a value, must fit `folds.split: use`.
        asked: label columns that the manifest must have wherever it is named -> the config's key
            that names each.
        slides_for: the encoders that read slides, where others do not: only if there are none may
            slides be absent (`path` empty, or no such column). None: all do.
        where: section of the config; a cohort other than `cohort` may lack the other label columns
            of `tasks`, and `named` ones.

    Raises:
        UserError: the manifest has problems; the message lists all of them with row, column, value
            and fix. Whether the files exist is checked in `her2.pipeline.inputs`.

    >>> import her2
    >>> cohort = her2.read_cohort("slides.csv", tasks=her2.load_config("config.yaml").tasks)
    >>> row = cohort.rows[0]
    >>> len(cohort.rows), row.slide_id, row.labels, cohort.file(row).name
    (12, 'demo-001-a', {'her2': '3+'}, 'demo-001-a.svs')
    """
    slides = Path(slides)
    labels, named = {task.label for task in tasks.values()}, named or {}
    absent = slides_for is not None
    sheet, rows, problems = _read_rows(slides, labels, named, where=where, absent=absent)
    if slides_for and (lacking := [row.slide_id for row in rows if not row.path]):
        problems.append(
            f"column 'path': is empty for {len(lacking)} slide(s) ({', '.join(lacking[:5])}"
            f"{', ...' if len(lacking) > 5 else ''}), but the encoders {', '.join(slides_for)} "
            "read slides; enter the paths, or keep only encoders with `source: features`"
        )
    if where != "cohort":
        tasks = {name: task for name, task in tasks.items() if task.label in sheet.header}
        labels &= set(sheet.header)
        named = {name: key for name, key in named.items() if name in sheet.header}
    found = ", ".join(filter(None, sheet.header))
    problems += [
        f"column {name!r} is missing, which {key} names; the columns are {found}"
        for name, key in (asked or {}).items()
        if name not in sheet.header
    ]
    problems += faults.label_problems(sheet, tasks, rules)
    patients = [row for row in rows if _identified(row)] if problems else rows
    whole = Cohort(tuple(patients), slides.parent)
    problems += [
        f"task {name!r}, column {task.label!r}: {problem}"
        for name, task in tasks.items()
        if (problem := refusal(whole.conflicts(task), task, patient_label))
    ]
    if fixed_split and (problem := split_problem(patients)):
        problems.append(problem)
    known = {*labels, *named, *(column.name for column in columns.COLUMNS)}
    return _cohort(
        slides,
        root,
        rows,
        problems,
        cautions=(
            *faults.overlooked_columns(sheet.header, known),
            *faults.doubtful_values(sheet, named),
            *faults.left_out_labels(sheet, tasks, rules),
            *_absent(rows),
        ),
        remarks=(*sheet.remarks, *faults.missing_labels(sheet, labels, tasks, rules)),
    )


def read_labels(
    slides: Path,
    *,
    root: Path | None = None,
    labels: Collection[str],
    named: Collection[str] = (),
) -> Cohort:
    """Read a manifest for a job: with some label and further columns, which are not checked.

    Raises:
        UserError: ids, paths or um/px have problems; the message lists all of them.
    """
    names = dict.fromkeys(named, "evaluation")
    _, rows, problems = _read_rows(slides, labels, names, absent=True)
    return _cohort(slides, root, rows, problems)


def read_slides(slides: Path, *, root: Path | None = None, absent: bool = False) -> Cohort:
    """Read a manifest of slides to predict: without labels, and `patient_id` is optional.

    A slide without a patient is its own. With `absent`, slides need no file.

    Raises:
        UserError: ids, paths or um/px have problems; the message lists all of them.
    """
    sheet, rows, problems = _read_rows(slides, (), {}, own_patients=True, absent=absent)
    known = {column.name for column in columns.COLUMNS}
    return _cohort(
        slides,
        root,
        rows,
        problems,
        cautions=faults.overlooked_columns(sheet.header, known),
        remarks=sheet.remarks,
    )


def _absent(rows: Sequence[SlideRow]) -> list[str]:
    """Return a sentence on slides of which there are only features, if there are any."""
    number = sum(not row.path for row in rows)
    if not number:
        return []
    return [
        f"{number} of {len(rows)} slides are absent (column 'path' is empty): their features are "
        "used, and no pictures of them are drawn."
    ]


def _identified(row: SlideRow) -> bool:
    try:
        return bool(columns.identifier(row.slide_id) and columns.identifier(row.patient_id))
    except ValueError:
        return False


def _cohort(
    slides: Path,
    root: Path | None,
    rows: list[SlideRow],
    problems: list[str],
    *,
    cautions: Iterable[str] = (),
    remarks: Iterable[str] = (),
) -> Cohort:
    if problems:
        raise problem_list(f"{slides}: {len(problems)} problem(s)", faults.few_of_a_kind(problems))
    ordered = tuple(sorted(rows, key=lambda row: row.slide_id))
    where = slides.parent if root is None else root
    return Cohort(ordered, where, tuple(cautions), tuple(remarks))


def _read_rows(
    slides: Path,
    labels: Collection[str],
    named: Mapping[str, str],
    *,
    where: str = "cohort",
    own_patients: bool = False,
    absent: bool = False,
) -> tuple[Sheet, list[SlideRow], list[str]]:
    """Return the manifest's sheet, its rows, and their problems but for those of labels.

    Columns of `labels` and `named` may be absent from an external cohort. With `own_patients`, a
    slide without a patient is its own. With `absent`, slides need no file.

    Raises:
        UserError: columns are missing or cannot be read, or there is no row.
    """
    declared = columns.COLUMNS
    wanted = {*(column.name for column in declared), *labels, *named}
    texts = {column.name for column in declared if column.required or column.parse is text}
    sheet = read_sheet(slides, wanted, numeric=wanted - texts - set(labels), key=f"{where}.slides")
    if where != "cohort":
        labels = [name for name in labels if name in sheet.header]
        named = {name: key for name, key in named.items() if name in sheet.header}
    required = [
        name
        for name in columns.required_columns()
        if not (own_patients and name == PATIENT) and not (absent and name == SLIDE)
    ]
    lacking = faults.column_problems(sheet, labels, named, required)
    if wrong := [*sheet.wrong_columns, *lacking]:
        found = printable(", ".join(filter(None, sheet.header))) or "(none)"
        raise problem_list(f"{slides}: found columns {found}", wrong)
    if not sheet.numbers and not sheet.wrong_rows:
        raise UserError(f"{slides}: lists no slides. Write one row per slide below the header.")
    problems = list(sheet.wrong_rows)
    further = columns.further_columns(named, labels)
    values = {name: _parsed(sheet, name, text, problems) for name in further}
    for column in declared:
        parse: Callable[[str], Value] = column.parse
        if own_patients and column.name == PATIENT:
            parse = columns.if_given(parse)
        if absent and column.name == SLIDE:
            parse = columns.slide_file_if_any
        values[column.name] = _parsed(
            sheet, column.name, parse, problems, keep=column.name in required
        )
    if own_patients:
        problems += _fill_in_patients(sheet.numbers, values)
    found_labels = {name: _parsed(sheet, name, label, problems) for name in sorted(labels)}
    rows = _rows(sheet.numbers, values, found_labels)
    return sheet, rows, [*problems, *faults.row_problems(sheet, further)]


def _fill_in_patients(numbers: Sequence[int], values: dict[str, list[Any]]) -> list[str]:
    """Make each slide without a patient its own, and return where other slides have that name."""
    given, slides = values[PATIENT], values["slide_id"]
    named = {patient for patient in given if patient is not None}
    values[PATIENT] = [own or slide for own, slide in zip(given, slides, strict=True)]
    return [
        f"row {number}, column {PATIENT!r}: is empty, so slide {slide!r} would be its own "
        "patient, but other slides have a patient of this name; enter the patient"
        for number, own, slide in zip(numbers, given, slides, strict=True)
        if own is None and slide in named
    ]


def _parsed(
    sheet: Sheet,
    name: str,
    parse: Callable[[str], Value],
    problems: list[str],
    *,
    keep: bool = False,
) -> list[Any]:
    """Return a column's values, and add its problems to `problems`.

    A cell that does not parse is None, or stays if `keep` is set.
    """
    cells = sheet.cells.get(name) or [""] * len(sheet.numbers)
    values: dict[str, Value] = {}
    wrong: dict[str, str] = {}
    for cell in dict.fromkeys(cells):
        try:
            values[cell] = parse(cell)
        except ValueError as problem:
            values[cell] = cell if keep else None
            wrong[cell] = str(problem)
    if wrong:
        rows = faults.places(sheet.numbers, cells)
        problems += [
            f"{rows_in_words(rows[cell])}: column {name!r}: {problem}"
            for cell, problem in wrong.items()
        ]
    return [values[cell] for cell in cells]


def _rows(
    numbers: Sequence[int], values: Mapping[str, list[Any]], labels: Mapping[str, list[Any]]
) -> list[SlideRow]:
    further = [name for name in values if name not in FIELDS]
    made: dict[str, Sequence[Any]] = {
        **values,
        "labels": _without_missing(labels, len(numbers)),
        "other": _without_missing({name: values[name] for name in further}, len(numbers)),
        "number": numbers,
    }
    return [SlideRow(*record) for record in zip(*(made[name] for name in _ROW), strict=True)]


def _without_missing(values: Mapping[str, list[Any]], count: int) -> list[dict[str, Any]]:
    """Return a mapping name -> value for each row, without the names whose value is None."""
    if not values:
        return [{} for _ in range(count)]
    return [
        {name: value for name, value in zip(values, record, strict=True) if value is not None}
        for record in zip(*values.values(), strict=True)
    ]
