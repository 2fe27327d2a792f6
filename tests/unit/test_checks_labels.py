"""Words for a missing value, labels that no task has, and sheets as Excel saves them."""

from pathlib import Path
from typing import Any

import pytest

from her2.cohort.folds import class_of
from her2.cohort.reading import configured_cohort, read_labels
from her2.config import Task, parse_config
from her2.core.errors import UserError
from her2.core.sheets import read_sheet
from her2.pipeline.external import configured_plan

MISSING = ["[Not Available]", "[not evaluated]", "Unknown", "NA", "n/a", "N/A", "-", "--", "\u2013",
           "", "NULL", "not reported"]  # fmt: skip


@pytest.fixture
def read(tmp_path: Path, config_values: dict[str, Any], write_csv: Any) -> Any:
    """Read a manifest with labels, with changes to the section `cohort` and the classes."""

    def reading(
        labels: list[str], classes: dict[str, list[str]] | None = None, **cohort: object
    ) -> Any:
        rows = [
            {"slide_id": f"s{n:02}", "path": f"s{n}.svs", "patient_id": f"p{n:02}", "her2": label}
            for n, label in enumerate(["0", "1+", *labels])
        ]
        config_values["cohort"] |= {"slides": str(write_csv(rows))} | cohort
        if classes:
            config_values["tasks"]["score"]["classes"] = classes
        config = parse_config(config_values)
        return configured_cohort(config, config.cohort.slides, None)

    return reading


def known(cohort: Any, task: Task | None = None) -> int:
    classes = {"0": ["0"], "1+": ["1+"], "2+": ["2+"], "3+": ["3+"]}
    task = task or Task(label="her2", classes=classes)
    return sum(class_of(task, row.labels) is not None for row in cohort.rows)


def test_every_word_for_a_missing_label_is_one_in_any_case(read):
    cohort = read(MISSING)
    assert known(cohort) == 2
    (said,) = cohort.remarks
    assert f"2 of {len(MISSING) + 2} slides have a label; the others are predicted only" in said
    for word in MISSING[:-1]:
        assert (repr(word) if word else "1 empty") in said


def test_the_config_adds_words_for_a_missing_label(read):
    with pytest.raises(UserError, match=r"'k\.A\.' is in no task's classes.*cohort\.missing"):
        read(["k.A.", "pending"])
    cohort = read(["K.a.", "pending"], missing=["k.A.", "Pending"])
    assert known(cohort) == 2
    assert "2 of 4 slides have a label" in cohort.remarks[0]


def test_a_word_cannot_be_missing_and_a_label(read):
    with pytest.raises(UserError, match="`cohort.missing`: '3\\+' is a label of the task 'score'"):
        read([], missing=["3+"])


def test_a_dash_is_a_label_where_a_task_has_it_and_jobs_agree(read, tmp_path):
    classes = {"neg": ["-", "0"], "pos": ["+", "1+"]}
    cohort = read(["-", "+", ""], classes)
    task = Task(label="her2", classes=classes)
    assert known(cohort, task) == 4
    assert "4 of 5 slides have a label" in cohort.remarks[0]
    assert known(read_labels(tmp_path / "slides.csv", labels=["her2"]), task) == 4


@pytest.mark.parametrize("column", ["mpp", "annotation", "mask", "site"])
@pytest.mark.parametrize("word", ["-", "\u2014", "n/a"])
def test_a_dash_is_missing_in_other_columns_too(column, word, write_csv):
    row = {"slide_id": "a", "path": "a.svs", "patient_id": "p", column: word}
    assert read_labels(write_csv([row]), labels=[]).rows[0].value(column) is None


def test_labels_of_no_task_stop_the_run_or_are_left_out_and_counted(read):
    labels = ["Equivocal", "Equivocal", "Indeterminate", "[Not Available]"]
    with pytest.raises(UserError, match="'Equivocal' is in no task's classes.*unmapped_labels"):
        read(labels)
    cohort = read(labels, unmapped_labels="leave_out")
    assert known(cohort) == 2
    assert cohort.cautions == (
        "The manifest's column 'her2' has 3 labels of no task's classes (2 'Equivocal', 1 "
        "'Indeterminate'). Their slides are predicted only (cohort.unmapped_labels: leave_out).",
    )


def test_a_label_that_only_looks_different_is_never_left_out(read):
    with pytest.raises(UserError, match="'3\uff0b' is in no task's classes; write it as '3\\+'"):
        read(["3\uff0b"], unmapped_labels="leave_out")


def test_external_cohorts_follow_the_same_words(tmp_path, config_values, write_csv, read):
    read([])  # writes the development's manifest
    rows = [
        {"slide_id": f"y{n}", "path": f"y{n}.svs", "patient_id": f"q{n}", "her2": label}
        for n, label in enumerate(["0", "3+", "k.A.", "Equivocal"])
    ]
    config_values["validation"] = {"yale": {"slides": str(write_csv(rows, "yale.csv"))}}
    with pytest.raises(UserError) as error:
        configured_plan(parse_config(config_values))
    assert "'k.A.'" in str(error.value)
    assert "'Equivocal'" in str(error.value)
    config_values["cohort"] |= {"missing": ["k.a."], "unmapped_labels": "leave_out"}
    own = configured_plan(parse_config(config_values)).external["yale"].cohort
    assert known(own) == 2
    assert "has 1 label of no task's classes (1 'Equivocal')" in own.cautions[0]


def test_the_defaults_leave_every_spec_as_it_was(config_values):
    dumped = parse_config(config_values).cohort.model_dump()
    assert not {"missing", "unmapped_labels"} & set(dumped)


# A manifest as Excel saves it

SHEET = "slide_id;path;patient_id;her2;site\r\na;a.svs;p;0;K\u00f6ln\r\nb;b.svs;q;3+;\u00c5rhus\r\n"


@pytest.mark.parametrize("said", ["", "sep=;\r\n"], ids=["", "sep"])
@pytest.mark.parametrize("ends", ["\r\n", "\r", "\n"], ids=repr)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8", "utf-16"])
def test_a_sheet_of_excel_is_read_and_how_is_said(tmp_path, encoding, ends, said):
    path = tmp_path / "slides.csv"
    path.write_bytes((said + SHEET).replace("\r\n", ends).encode(encoding))
    cohort = read_labels(path, labels=["her2"])
    assert [(row.site, row.number) for row in cohort.rows] == [
        ("K\u00f6ln", 2 + bool(said)),
        ("\u00c5rhus", 3 + bool(said)),
    ]
    sheet = read_sheet(path, ["slide_id", "path"], key="cohort.slides")
    kind = encoding.removesuffix("-sig").upper()
    assert sheet.remarks == (f"{path}: was read as {kind}, with semicolons between cells",)


@pytest.mark.parametrize("said", ["", "sep=;\r\n"], ids=["", "sep"])
@pytest.mark.parametrize("ends", ["\r\n", "\r"], ids=repr)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_a_sheet_of_an_old_encoding_is_refused_with_the_encoding_and_delimiter(
    tmp_path, encoding, ends, said
):
    path = tmp_path / "slides.csv"
    path.write_bytes((said + SHEET).replace("\r\n", ends).encode(encoding))
    with pytest.raises(UserError) as error:
        read_labels(path, labels=["her2"])
    assert (
        f"row {2 + bool(said)} is not in UTF-8; in Windows-1252 it would have 'K\u00f6ln' (with "
        "semicolons between cells)" in str(error.value)
    )


def test_problems_below_a_line_that_names_the_delimiter_have_the_rows_of_the_file(tmp_path):
    path = tmp_path / "slides.csv"
    path.write_text('sep=;\n"slide_id";path;patient_id\na;a.svs;p\nb;b.svs\n')
    with pytest.raises(UserError, match=r"row 4: has fewer cells than the header \(2 for 3\)"):
        read_labels(path, labels=[])
    path.write_text('sep=;\nslide_id;path;patient_id\na;"a.svs;p\n')
    with pytest.raises(UserError, match="row 3: is not a readable table from here on"):
        read_labels(path, labels=[])
