"""Raw slides to scores: where the results of a call go, and whether they can be written there."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from her2.cohort.manifest import Cohort
from her2.core.errors import UserError, problem_list
from her2.core.files import atomic_path, parse_json
from her2.core.reading import write_problem
from her2.core.tables import write_csv
from her2.slides.staging import scratch_folder

Format = Literal["table", "herohe"]
SLIDE, PATIENT = "slide", "patient"
"""Values of the column `level` of the table."""
FIRST_COLUMNS = ("level", "slide_id", "patient_id", "status", "reason")
"""First columns of the table, whatever the model."""
HEROHE_COLUMNS = ("caseID", "soft_prediction", "hard_prediction")


@dataclass(frozen=True, slots=True)
class Options:
    """What a call asks for, beside model and slides.

    Attributes:
        output: the table, .csv or .parquet (`herohe`: .csv); the record is `{stem}.json` beside it.
        heatmaps: folder for pictures, or None for none.
        threads: number of CPU threads.
        scratch: folder on a local disk to which slides are copied before they are embedded.
        form: the form of the table.
        grouping: which one `herohe` is about, where the model has several.
    """

    output: Path
    heatmaps: Path | None = None
    threads: int = 1
    scratch: str | None = None
    form: Format = "table"
    grouping: str | None = None

    @property
    def record(self) -> Path:
        """Return the path of the record that lies beside the table."""
        return self.output.parent / f"{self.output.stem}.json"


def check_options(options: Options, cache: Path, sources: Sequence[Path] = ()) -> None:
    """Check that everything can be written, and over nothing else, before hours of work.

    `sources` are the slides that are given.

    Raises:
        UserError: a file or folder cannot be written, or the table's suffix is of another form;
            all of it.
    """
    suffixes = (".csv",) if options.form == "herohe" else (".csv", ".parquet")
    problems = []
    if options.output.suffix not in suffixes:
        problems.append(f"--out {options.output}: the file must be a {' or '.join(suffixes)}")
    if options.output.is_dir():
        problems.append(f"--out {options.output}: is a folder; name a file in it")
    folders = {"--out": options.output.parent, "--heatmaps": options.heatmaps, "--cache": cache}
    for option, folder in folders.items():
        if folder is not None and (problem := write_problem(folder)):
            problems.append(f"{option} {folder}: {problem}")
    written = {os.path.realpath(path) for path in (options.output, options.record)}
    problems += [
        f"{source}: would be replaced by a result; name another --out"
        for source in sources
        if os.path.realpath(source) in written
    ]
    if options.record.exists() and not _is_record(options.record):
        problems.append(
            f"{options.record}: exists, and is no record of an earlier call; name another --out"
        )
    if options.output.is_file() and not _is_table(options.output):
        problems.append(
            f"--out {options.output}: exists, and is no table of an earlier call; name another file"
        )
    if options.scratch is not None:
        try:
            scratch_folder(options.scratch)
        except UserError as error:
            problems.append(f"--scratch: {str(error).removeprefix('embedding.scratch: ')}")
    if problems:
        raise problem_list("nothing was predicted; correct first", problems)


def check_pictures(options: Options, cohort: Cohort) -> None:
    """Check that no picture is drawn beside a slide or its regions, which it could replace.

    Raises:
        UserError: such files are in a folder that receives pictures; it names one of each folder.
    """
    if options.heatmaps is None:
        return
    from her2.explanation.drawing import SLIDES, STRIPS  # loads matplotlib

    drawn = {os.path.realpath(options.heatmaps / name) for name in (SLIDES, STRIPS)}
    found: dict[str, Path] = {}
    for row in cohort.rows:
        for file in (cohort.file(row), cohort.annotation_file(row), cohort.mask_file(row)):
            for path in () if file is None else (file, Path(os.path.realpath(file))):
                if (folder := os.path.realpath(path.parent)) in drawn:
                    found.setdefault(folder, path)
    if found:
        raise problem_list(
            f"--heatmaps {options.heatmaps}: pictures go into its folders {SLIDES} and {STRIPS}, "
            "and would replace files there; name another folder",
            [f"{folder}: has {path.name}" for folder, path in found.items()],
        )


def write_predictions(table: pl.DataFrame, output: Path) -> None:
    """Write a table as its suffix says."""
    if output.suffix == ".csv":
        write_csv(table, output)
        return
    with atomic_path(output) as temporary:
        table.write_parquet(temporary)


def _is_table(path: Path) -> bool:
    """Tell whether a file may be replaced: it is empty, or has the columns of either form."""
    try:
        if not path.stat().st_size:
            return True
        scan = pl.scan_parquet if path.suffix == ".parquet" else pl.scan_csv
        found = scan(path).collect_schema().names()
    except (OSError, pl.exceptions.PolarsError):
        return False
    return found[: len(FIRST_COLUMNS)] == [*FIRST_COLUMNS] or found == [*HEROHE_COLUMNS]


def _is_record(path: Path) -> bool:
    try:
        return {"her2", "table", "model"} <= parse_json(path.read_bytes()).keys()
    except (OSError, ValueError, AttributeError):
        return False
