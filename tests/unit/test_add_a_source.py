"""A source of cohorts is one file: the command, its options and its help come from there."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.unit.sheet_makers import write_xlsx

ROOT = Path(__file__).parents[2]
SOURCE = '''
"""Slides named by case, and a workbook with a score for each."""

from pathlib import Path
from typing import Literal

from her2.importing.found import Found, ImportedSlide, LeftOut, Source
from her2.importing.labels import her2_score, legal_id
from her2.importing.matching import match_by_name, slide_files
from her2.importing.sheets import read_sheet_file


def read(
    folder: Path,
    *,
    out: Path,
    truth: Path,
    column: str = "HER2",
    mpp: float | None = None,
    skip: list[str] | None = None,
    keep: Literal["all", "labelled"] = "all",
    threads: int = 1,
) -> Found:
    """Read the cases of a workbook.

    Args:
        folder: the slides.
        out: where nothing is converted to.
        truth: the workbook with
            the scores.
        column: its column of scores.
        mpp: um/px of all slides; default: that of each file.
        skip: a case to leave out; may be given several times.
        keep: slides to keep.
        threads: not used.
    """
    table = read_sheet_file(truth, wanted=("Case", column))
    scores = dict(zip(table.column("Case"), table.column(column), strict=True))
    matched = match_by_name(scores, slide_files(folder))
    slides = [
        ImportedSlide(
            slide_id=legal_id(path.stem),
            path=path,
            patient_id=legal_id(case),
            mpp=mpp,
            labels={"her2": her2_score(scores[case])},
        )
        for case, paths in matched.files.items()
        if case not in (skip or [])
        for path in paths
    ]
    if keep == "labelled":
        slides = [one for one in slides if one.labels["her2"]]
    return Found(
        slides=tuple(slides),
        left_out=tuple(LeftOut(case, "has no slide") for case in matched.without),
        rules=(f"read with {threads} threads",),
        inputs=(truth,),
    )


SOURCE = Source(name="case-book", title="Cases of a workbook.", preset="paper.yaml", read=read)
'''
CRASHES = """
'''Aborts the process on the file of one name, as a decoder does that meets a damaged file.'''
import os
from types import SimpleNamespace
NAME, ORDER = "crashes", 1

def files(path):
    return None

def open_slide(path):
    if path.stem == "13":
        os.abort()
"""
RUN = """
import sys
from her2.core.crashes import survive

def work():
    import her2.importing.sources, her2.slides.backends
    her2.importing.sources.__path__.append(sys.argv.pop(1))
    if crashes := sys.argv.pop(1):
        her2.slides.backends.__path__.append(crashes)
    from her2.cli.main import main
    main()

survive(work)
"""


@pytest.fixture
def cohort(tmp_path, write_slide) -> Path:
    """A folder with slides of 20 cases, their workbook, and the file of the source."""
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources/case_book.py").write_text(SOURCE)
    (tmp_path / "crashes").mkdir()
    (tmp_path / "crashes/crashing_there.py").write_text(CRASHES)
    (tmp_path / "data").mkdir()
    for number in range(20):
        image = np.full((64, 64, 3), 10 * number, np.uint8)
        write_slide(tmp_path / f"data/{number:02}.tif", image, mpp=(0.5, 0.5))
    rows = [(number, f"Score {number % 4}+") for number in range(21)]
    write_xlsx(tmp_path / "truth.xlsx", {"A": [("Case", "HER2"), *rows]}, strict=True)
    return tmp_path


def her2(cohort: Path, *arguments: str, crashes: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", RUN, "sources", crashes, *arguments],
        capture_output=True, text=True, cwd=cohort,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "100"},
    )  # fmt: skip


def test_a_new_source_is_listed_and_its_help_is_its_docstring(cohort):
    listed = her2(cohort, "import")
    assert listed.returncode == 0, listed.stderr
    assert "case-book" in listed.stdout
    assert "Cases of a workbook." in listed.stdout
    shown = " ".join(her2(cohort, "import", "case-book", "--help").stdout.replace("│", " ").split())
    for words in (
        "folder <path> the slides [required]",
        "--truth <path> the workbook with the scores [required]",
        "--column <str> its column of scores [default: HER2]",
        "--mpp <float> um/px of all slides; default: that of each file",
        "a case to leave out; may be given several times",
        "slides to keep [default: all]",
        "--out <path> folder for what is written; default: case-book",
        "--force",
    ):
        assert words in shown
    assert shown.count("--threads") == shown.count("--out") == 1


def test_a_new_source_imports_past_a_slide_that_crashes_its_decoder(cohort):
    done = her2(
        cohort, "import", "case-book", "data", "--truth", "truth.xlsx", "--skip", "3",
        "--skip", "4", "--threads", "3", crashes="crashes",
    )  # fmt: skip
    # One slide of each of three classes is lost, so that five folds cannot be drawn.
    assert done.returncode == 1
    assert "everything is written, but a run would stop" in done.stderr
    assert "Traceback" not in done.stderr
    with (cohort / "case-book/slides.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    expected = [f"{n:02}" for n in range(20) if n not in (3, 4, 13)]
    assert [row["slide_id"] for row in rows] == expected
    assert [row["her2"] for row in rows[:3]] == ["0", "1+", "2+"]
    assert "case-book: 17 slides of 17 patients" in done.stdout
    assert "20: has no slide" in done.stdout
    assert "13 (data/13.tif): crashes the library that reads it (SIGABRT" in done.stdout
    record = json.loads((cohort / "case-book/import.json").read_text())
    assert record["options"]["skip"] == ["3", "4"]
    assert record["rules"] == ["read with 3 threads"]
    assert record["inputs"][0]["path"] == "truth.xlsx"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nowhere", "data"), 2, "No such command 'nowhere'"),
        (("case-book",), 2, "Missing argument"),
        (("case-book", "data"), 2, "Missing option '--truth'"),
        (("case-book", "data", "--truth", "none.xlsx"), 1, "none.xlsx: does not exist"),
        (("case-book", "none", "--truth", "truth.xlsx"), 1, "none: does not exist"),
        (("case-book", "data", "--truth", "truth.xlsx", "--column", "Her 2"), 1,
         "(did you mean 'HER2'?)"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_said_without_a_traceback(cohort, arguments, code, words):
    done = her2(cohort, "import", *arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (cohort / "case-book").exists()
