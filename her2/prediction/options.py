"""Raw slides to scores: where the results of a call go, and whether they can be written there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from her2.core.errors import UserError, problem_list
from her2.core.files import atomic_path, parse_json
from her2.core.reading import write_problem
from her2.core.tables import write_csv
from her2.slides.staging import scratch_folder

Format = Literal["table", "herohe"]


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
        return self.output.with_suffix(".json")


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
    written = {options.output.absolute(), options.record.absolute()}
    problems += [
        f"{source}: would be replaced by a result; name another --out"
        for source in sources
        if source.absolute() in written
    ]
    if options.record.exists() and not _is_record(options.record):
        problems.append(
            f"{options.record}: exists, and is no record of an earlier call; name another --out"
        )
    if options.scratch is not None:
        try:
            scratch_folder(options.scratch)
        except UserError as error:
            problems.append(f"--scratch: {str(error).removeprefix('embedding.scratch: ')}")
    if problems:
        raise problem_list("nothing was predicted; correct first", problems)


def write_predictions(table: pl.DataFrame, output: Path) -> None:
    """Write a table as its suffix says."""
    if output.suffix == ".csv":
        write_csv(table, output)
        return
    with atomic_path(output) as temporary:
        table.write_parquet(temporary)


def _is_record(path: Path) -> bool:
    try:
        return {"her2", "table", "model"} <= parse_json(path.read_bytes()).keys()
    except (OSError, ValueError, AttributeError):
        return False
