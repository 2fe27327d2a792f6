"""A hospital's export: a sheet with a row for each case or slide, and a folder of slides.

Which column means what is said by `--column`, what the texts of label columns mean by a person in
`labels.csv`, and which scan of a glass counts by `--rescans`. Nothing of it is guessed: as long as
a decision is open, the import stops and says what to do.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from her2.core.errors import UserError, problem_list
from her2.core.reading import path_problem
from her2.core.spelling import folded, printable
from her2.importing.case_slides import (
    RESCANS,
    CaseSlides,
    below,
    choose_scans,
    csv_text,
    examples_of,
    find_case_slides,
    id_problems,
    leave_out_copies,
    listed,
    rescans_text,
    without_row,
)
from her2.importing.cases import (
    LABEL_COLUMNS,
    Case,
    labels_of,
    parse_columns,
    read_cases,
    single_values,
)
from her2.importing.confirm import LABELS, Confirmed, confirm, delimiter_of
from her2.importing.found import Found, ImportedSlide, LeftOut, Source
from her2.importing.labels import legal_ids
from her2.importing.rescans import Choice, scan_groups
from her2.importing.sheets import SheetTable, read_sheet_file

IDS = "ids.csv"
_MANIFEST = ("site", "scanner", "split", "mpp")


def read(
    file: Path,
    *,
    out: Path,
    slides: Path,
    column: list[str] | None = None,
    sheet: str | None = None,
    header: int | None = None,
    suffix: list[str] | None = None,
    rescans: Choice | None = None,
) -> Found:
    """Read a hospital's sheet and find the slides of its rows.

    Args:
        file: the sheet, as XLSX, XLS, ODS, CSV or TSV.
        out: where `labels.csv` is read from, once it has been filled in.
        slides: the folder with the slides.
        column: what a column of the sheet means, as NAME=COLUMN, such as her2="Statut HER2"; once
            for each column; without any, the sheet's columns are shown. NAME is patient (required),
            slide (what the file names begin with; without it that is patient), her2, her2_status
            or fish (at least one of these), site, scanner, split, mpp, or a name of your own.
        sheet: the sheet of a workbook with several.
        header: number of the row with the names of the columns, where it is not found.
        suffix: only files with this suffix, such as .svs; may be given several times.
        rescans: which scans of a glass with several are used.
    """
    _check_folders(out, slides)
    columns = parse_columns(column or ())
    wanted = tuple({folded(name): name for name in columns.values()}.values())
    table = read_sheet_file(file, wanted=wanted, sheet=sheet, header=header, choosable=True)
    _check_columns(table, columns)
    cases, left_out = read_cases(table, columns)
    key = "slide" if "slide" in columns else "patient"
    files = find_case_slides(cases, slides, suffix, columns[key])
    leave_out_copies(files, slides)
    groups = scan_groups(files.of)
    unclear = choose_scans(files, groups, rescans, slides)
    with_slides = [case for case in cases if case.name in files.of]
    usable = _with_patient(with_slides, files, columns["patient"])
    problems = [*files.problems, *id_problems(usable, files, slides)]
    labels = out / LABELS
    texts = _label_texts(usable, files, columns)
    confirmed = confirm(labels, texts, delimiter=delimiter_of(file))
    sheets = {RESCANS: rescans_text(groups, files, slides)} if groups else {}
    if confirmed.text:
        sheets[LABELS] = confirmed.text
    stops = [*listed("these have to be mended first:", problems, shown=50), *unclear]
    stops += _unconfirmed(labels, confirmed, columns)
    if stops and not sheets:
        raise UserError(f"{file}:\n" + "\n".join(stops))
    found = Found(slides=()) if stops else _found(usable, files, confirmed, columns, slides)
    without = [
        LeftOut(str(case), f"has no slide below {slides}")
        for case in cases
        if case.name in files.without
    ]
    return Found(
        slides=found.slides,
        left_out=(*left_out, *without, *files.left_out),
        conflicts=found.conflicts,
        rules=(
            *(f"{file.name}: {said}" for said in table.said),
            "columns: " + ", ".join(f"{name} is {one!r}" for name, one in columns.items()),
            f"{columns[key]!r} is what file names begin with: of {len(cases):,} in the sheet, "
            f"{len(without):,} have no slide; of the files, {without_row(files):,} have no row "
            "(named in import.json)",
            *files.rules,
            *found.rules,
        ),
        inputs=(file, labels) if labels.exists() else (file,),
        sheets={**sheets, **found.sheets},
        root=slides,
        stops="\n".join(stops),
    )


def _check_folders(out: Path, slides: Path) -> None:
    if problem := path_problem(slides, "folder"):
        raise UserError(f"--slides {slides}: {problem}. Name the folder that the slides are in.")
    if out.resolve().is_relative_to(slides.resolve()):
        raise UserError(
            f"--out {out}: lies in {slides}, whose files are only read. Name a folder elsewhere."
        )


def _check_columns(table: SheetTable, columns: Mapping[str, str]) -> None:
    """Say which columns there are, where the user has not said what they mean."""
    lacking = ["patient"] if "patient" not in columns else []
    if not columns.keys() & set(LABEL_COLUMNS):
        lacking.append("her2 (or her2_status, or fish)")
    if lacking:
        shown = [
            f"{name!r}, such as {', '.join(examples) or 'nothing'}"
            for at, name in enumerate(table.header)
            if name
            for examples in [examples_of(row[at] for row in table.rows)]
        ]
        raise problem_list(
            f"{table.path}: say which column is {' and which is '.join(lacking)}: add, for each, "
            "--column NAME='COLUMN'. Where each slide is a patient of its own, patient and slide "
            "may be the same column. The sheet has",
            [printable(one) for one in shown],
        )


def _with_patient(cases: Sequence[Case], files: CaseSlides, column: str) -> list[Case]:
    """Return the cases of one patient; the others' slides are left out."""
    usable = []
    for case in cases:
        patients = case.texts["patient"]
        if len(patients) == 1:
            usable.append(case)
            continue
        why = "has no patient" if not patients else f"is of several: {', '.join(patients)}"
        files.left_out.append(
            LeftOut(str(case), f"{why} ({column!r}), so its slides were left out")
        )
        del files.of[case.name]
    return usable


def _label_texts(
    cases: Sequence[Case], files: CaseSlides, columns: Mapping[str, str]
) -> dict[str, Counter[str]]:
    """Return label column -> its texts -> number of slides."""
    found = {name: Counter[str]() for name in LABEL_COLUMNS if name in columns}
    for case in cases:
        for name, counted in found.items():
            counted.update(dict.fromkeys(case.texts[name], len(files.of[case.name])))
    return found


def _unconfirmed(labels: Path, confirmed: Confirmed, columns: Mapping[str, str]) -> list[str]:
    """Say which texts a person still has to confirm, and how."""
    if not confirmed.waiting:
        return []
    new = f"; {confirmed.n_new:,} came in since" if confirmed.meanings and confirmed.n_new else ""
    said = [
        f"{name} {printable(text)!r}: {words or 'ambiguous, so nothing is proposed'}"
        for (name, text), words in confirmed.waiting.items()
    ]
    unused = (
        f" (It has {len(confirmed.unused):,} that no slide has, such as {confirmed.unused[0]}: a "
        "spreadsheet may have changed them.)"
        if confirmed.unused
        else ""
    )
    sources = ", ".join(repr(columns[name]) for name in LABEL_COLUMNS if name in columns)
    return listed(
        f"{len(said):,} different texts of {sources} have to be confirmed by a person{new}. Open "
        f"{labels} in a spreadsheet. In each row, correct her2 (0, 1+, 2+, 3+ or empty) and status "
        "(negative, positive or empty) where they are wrong, and write yes under confirmed; a row "
        "with both empty and yes means: no label. Save it as CSV under the same name, and run the "
        f"same command again.{unused}",
        said,
    )


def _found(
    cases: Sequence[Case],
    files: CaseSlides,
    confirmed: Confirmed,
    columns: Mapping[str, str],
    folder: Path,
) -> Found:
    """Return the rows of the manifest, once all is decided."""
    patients, _ = legal_ids([case.patient for case in cases])
    paths = [path for case in cases for path in files.of[case.name]]
    names, _ = legal_ids([files.names[path] for path in paths])
    others = [name for name in columns if name not in (*LABEL_COLUMNS, "patient", "slide")]
    slides, conflicts, ids = [], [*files.conflicts], []
    for case in cases:
        labels, contradictory = labels_of(case, confirmed.meanings)
        values, different = single_values(case, others)
        conflicts += [*contradictory, *different]
        patient = patients[case.patient]
        mpp = values.get("mpp", "")
        for path in files.of[case.name]:
            slides.append(
                ImportedSlide(
                    slide_id=names[files.names[path]],
                    path=path,
                    patient_id=patient,
                    site=values.get("site", ""),
                    scanner=values.get("scanner", ""),
                    split=values.get("split", ""),
                    mpp=float(mpp) if mpp else None,
                    labels=labels,
                    further={name: values[name] for name in others if name not in _MANIFEST},
                )
            )
            ids.append(
                (names[files.names[path]], patient, case.name, case.patient, below(path, folder))
            )
    return Found(
        slides=tuple(slides),
        conflicts=(*conflicts, *_differing_patients(slides)),
        rules=tuple(_label_rules(confirmed)),
        sheets={IDS: csv_text([("slide_id", "patient_id", "slide", "patient", "file"), *ids])},
    )


def _differing_patients(slides: Iterable[ImportedSlide]) -> Iterator[str]:
    """Yield the patients whose slides have different labels; each slide keeps that of its row."""
    found: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for one in slides:
        for name, value in one.labels.items():
            if value and name != "fish":
                found[one.patient_id, name][value].append(one.slide_id)
    for (patient, name), values in found.items():
        if len(values) > 1:
            said = " and ".join(f"{value} ({', '.join(ids)})" for value, ids in values.items())
            yield (
                f"patient {patient}: {name} {said}; each slide keeps its label, and "
                "cohort.patient_label of the config says which one counts"
            )


def _label_rules(confirmed: Confirmed) -> Iterator[str]:
    counts = Counter(column for column, _ in confirmed.meanings)
    empty = sum(not (one.her2 or one.status) for one in confirmed.meanings.values())
    said = ", ".join(f"{n:,} of {column}" for column, n in counts.items())
    yield f"labels: {said} as confirmed in {LABELS}; {empty:,} mean no label"
    yield (
        "her2_status: what all confirmed texts of a case agree on; proposed were negative for 0 "
        "and 1+, positive for 3+, for 2+ the result of hybridisation (Wolff et al. 2018)"
    )


SOURCE = Source(
    name="table",
    title="A hospital's export: any sheet with a row for each case or slide, and its slides.",
    preset="table.yaml",
    read=read,
)
