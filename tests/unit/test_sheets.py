"""A manifest says what was written: what is not clear is refused with row, column and fix."""

import codecs
import os
import re
import time
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2.cohort.manifest import Cohort
from her2.cohort.reading import read_cohort
from her2.config import Task
from her2.core import sheets
from her2.core.errors import UserError
from her2.core.spelling import folded, folded_id

SCORE = Task(label="her2", classes={"0": ["0"], "3+": ["3+"]})
HEADER = "slide_id,path,patient_id,her2,site"
ROWS = ("s1,s1.svs,P-1,0,Nord", "s2,s2.svs,P-2,3+,Süd")
SHEET = "\n".join((HEADER, *ROWS)) + "\n"


def read(path: Path, content: str | bytes, **options: Any) -> Cohort:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_cohort(path, tasks={"score": SCORE}, **options)


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    return tmp_path / "slides.csv"


@pytest.fixture
def refusal(sheet: Path):
    """Returns the message that refuses the rows below a header."""

    def refused(*rows: str, header: str = HEADER, **options: Any) -> str:
        with pytest.raises(UserError) as error:
            read(sheet, "\n".join((header, *rows)) + "\n", **options)
        return str(error.value)

    return refused


# Columns


@pytest.mark.parametrize("header", [f"{HEADER},her2", f"{HEADER}, her2 ", f"{HEADER},note,note"])
def test_a_column_twice_is_refused_whether_it_is_read_or_not(refusal, header):
    cells = len(header.split(",")) - 5
    message = refusal(*(f"{row}{',0' * cells}" for row in ROWS), header=header)
    assert f"column {header.split(',')[-1].strip()!r}: is there 2 times; keep one" in message


def test_columns_without_a_name_are_no_column_twice(sheet):
    assert len(read(sheet, f",{HEADER},,\n0,{ROWS[0]},,\n1,{ROWS[1]}\n").rows) == 2


def test_the_cells_of_the_header_are_stripped(sheet):
    rows = read(sheet, SHEET.replace("site", " site\t").replace("slide_id", "slide_id ")).rows
    assert [row.site for row in rows] == ["Nord", "Süd"]


@pytest.mark.parametrize(
    ("header", "meant"),
    [("MPP", "mpp"), ("Scanner ", "scanner"), ("splits", "split"), ("um/px MPP", None),
     ("annotations", "annotation"), ("ma-sk", "mask"), ("Site", "site"), ("SITE_", "site"),
     ("age", None), ("grade", None), ("patient", None)],
)  # fmt: skip
def test_a_column_named_nearly_like_one_that_is_read_is_cautioned_about(sheet, header, meant):
    content = "".join(f"{line},\n" for line in (f"{HEADER},{header}"[:-1], *ROWS))
    found = read(sheet, content.replace(f"{header[:-1]},", header, 1)).cautions
    assert found == (
        (f"The manifest's column {header.strip()!r} is not read. If it is meant to be {meant!r}, "
         "rename it.",) if meant else ()
    )  # fmt: skip


def test_a_required_column_under_another_spelling_is_suggested(refusal):
    message = refusal(*ROWS, header=HEADER.replace("patient_id", "Patient ID"))
    assert "column 'patient_id' is missing (did you mean 'Patient ID'?)" in message
    named = {"ki67": "evaluation.subgroups"}
    message = refusal(*(f"{row},1" for row in ROWS), header=f"{HEADER},Ki-67", named=named)
    assert "`evaluation.subgroups`: there is no column 'ki67' (did you mean 'Ki-67'?)" in message


# Rows


def test_rows_of_another_length_are_each_refused_with_their_number(refusal):
    message = refusal(ROWS[0], "s3,s3.svs,P-3", ROWS[1], "", "s4,a,b.svs,P-4,0,Nord", ",,,,,,")
    assert "row 3: has fewer cells than the header (3 for 5); complete it" in message
    assert "row 6: has more cells than the header (6 for 5); put cells with commas" in message
    assert message.startswith(f"{message.split(': ')[0]}: 2 problem(s)")


def test_empty_rows_are_left_out_and_do_not_shift_the_numbers_of_others(sheet):
    found = read(sheet, f"{HEADER}\n\n{ROWS[0]}\n , ,,,\n,,,,\n,\n{ROWS[1]}\n,,,,,,,\n\n")
    assert [row.number for row in found.rows] == [3, 7]
    assert found.remarks == (f"{sheet}: 6 empty rows left out",)


def test_a_quote_that_is_never_closed_is_found_where_it_was_opened(refusal):
    message = refusal(ROWS[0], 's2,"s2.svs,P-2,0,Nord', "s3,s3.svs,P-3,0,Nord", "a b,,,0,")
    assert "row 3: is not a readable table from here on (unexpected end of data)" in message


@pytest.mark.parametrize("line", ["Nord\nSüd", "Nord\u2028Süd", "Nord\x07"])
def test_a_line_break_in_a_cell_that_is_read_is_refused(refusal, line):
    message = refusal(ROWS[0], f's2,s2.svs,P-2,0,"{line}"')
    assert f"row 3: column 'site': {line!r} has a line break or another control" in message


def test_many_wrong_cells_take_no_longer_than_many_right_ones(sheet):
    rows = (f's{n},"{n}\x07",P {n},{n},N{n}\x07,{n}' for n in range(20_000))
    start = time.process_time()
    with pytest.raises(UserError, match=r"999\d\d problem\(s\)") as error:
        read(sheet, "\n".join((f"{HEADER},mpp", *rows)))
    assert time.process_time() - start < 10
    message = str(error.value)  # and none of them hides the others
    for column, number in (
        ("path", 19992),
        ("site", 19992),
        ("patient_id", 19992),
        ("her2", 19991),
    ):
        assert f"column {column!r}: {number} more like these" in message
    assert re.search("column 'mpp': 199.. more like these", message)


def test_a_line_break_in_a_cell_that_is_not_read_is_nobody_s_business(sheet):
    assert len(read(sheet, f'{HEADER},note\n{ROWS[0]},"a\nb"\n{ROWS[1]},\n').rows) == 2


def test_equal_problems_of_many_rows_are_one_line(refusal):
    """Or thousands of rows without a patient would hide everything else."""
    rows = [f"s{n},s{n}.svs,,0,Nord" for n in range(100)]
    message = refusal(*rows, "x y,x.svs,P-1,0,Nord")
    assert "rows 2, 3, 4, 5, 6, 7, 8, 9 and 92 more: column 'patient_id': is empty" in message
    assert "row 102: column 'slide_id': 'x y'" in message


# Values


@pytest.mark.parametrize("column", ["slide_id", "path", "patient_id"])
@pytest.mark.parametrize(
    "word", ["", " ", "NA", "n/a", "NaN", "None", "null", "Unknown", "[Not Available]", "missing"]
)
def test_a_missing_id_or_path_is_an_error_of_each_row(refusal, column, word):
    at = HEADER.split(",").index(column)
    rows = [[*row.split(",")[:at], word, *row.split(",")[at + 1 :]] for row in ROWS]
    message = refusal(*(",".join(row) for row in rows))
    what = f"{word.strip()!r} means a missing value" if word.strip() else "is empty"
    assert f"rows 2, 3: column {column!r}: {what}; enter" in message
    assert "1 problem(s)" in message


@pytest.mark.parametrize(
    ("cell", "hint"),
    [
        ("P\u2011003", r"'\u2011' is non-breaking hyphen"),
        ("P-\uff10", r"'\uff10' is fullwidth digit zero"),
        ("1.23457E+11", "a spreadsheet has shortened it"),
    ],
)
def test_an_illegal_id_names_the_character_that_nobody_sees(refusal, cell, hint):
    message = refusal(ROWS[0], f"s2,s2.svs,{cell},0,Nord")
    assert "row 3: column 'patient_id'" in message
    assert hint in message


@pytest.mark.parametrize(
    ("one", "other"),
    [("P-003", "p-003"), ("17", "17.0"), ("17", "0017"), ("017.0", "17"), ("0", "00"),
     ("a.b_C", "A.B_c")],
)  # fmt: skip
def test_patients_that_differ_in_spelling_alone_are_refused(refusal, one, other):
    message = refusal(f"s1,1.svs,{one},0,N", f"s2,2.svs,{other},0,N", f"s3,3.svs,{one},0,N")
    assert f"rows 2, 3, 4, column 'patient_id': {one!r} and {other!r} differ in nothing" in message


@pytest.mark.parametrize(
    ("one", "other"), [("P-003", "P-0031"), ("17", "170"), ("P3", "P03"), ("1.5", "1.50"),
                       ("P-1", "P_1")],
)  # fmt: skip
def test_patients_that_differ_in_more_are_two(sheet, one, other):
    rows = read(sheet, f"{HEADER}\ns1,1.svs,{one},0,N\ns2,2.svs,{other},0,N\n").rows
    assert {row.patient_id for row in rows} == {one, other}


@pytest.mark.parametrize("column", ["site", "scanner", "menopause"])
@pytest.mark.parametrize(
    ("one", "other"),
    [("Nord", "nord"), ("K\u00f6ln", "Ko\u0308ln"), ("Bad Ems", "Bad\u00a0 Ems"),
     ("A-1", "A\u20131"), ("Straße", "STRASSE"), ("Nord", "No\u200brd"), ("Ⅳ", "IV")],
)  # fmt: skip
def test_groups_that_look_alike_are_refused(refusal, column, one, other):
    header = f"slide_id,path,patient_id,her2,{column}"
    rows = (f"s1,1.svs,P-1,0,{one}", f"s2,2.svs,P-2,0,{other}")
    message = refusal(*rows, header=header, named={"menopause": "k"} if column[0] == "m" else {})
    assert f"rows 2, 3, column {column!r}: {one!r}" in message
    if not other.isascii():
        assert ascii(other) in message


def test_numbers_of_a_column_that_the_config_names_are_no_look_alikes(sheet):
    rows = (f"{ROWS[0]},2001", f"{ROWS[1]},2001.0")
    content = "\n".join((f"{HEADER},year", *rows))
    assert len(read(sheet, content, named={"year": "evaluation.subgroups"}).rows) == 2


def test_missing_values_are_no_look_alikes(sheet):
    rows = read(sheet, f"{HEADER}\ns1,1.svs,P-1,0,NA\ns2,2.svs,P-2,0,na\n").rows
    assert [row.site for row in rows] == [None, None]


@pytest.mark.parametrize("other", ["s1.svs", "./s1.svs", "x/../s1.svs", ".//s1.svs"])
def test_a_file_that_two_rows_name_is_refused(refusal, other):
    message = refusal(ROWS[0], f"s2,{other},P-2,0,Nord")
    assert "rows 2, 3, column 'path': 's1.svs'" in message
    assert "used 2 times; keep one row" in message


@pytest.mark.parametrize("cell", ["0,25", "0_25", "٠.٢٥"])
def test_a_um_per_px_is_a_number_in_plain_digits(refusal, cell):
    message = refusal(f'{ROWS[0]},"{cell}"', header=f"{HEADER},mpp")
    assert f"row 2: column 'mpp': {cell!r} is not a um/px" in message
    assert ("write a decimal point" in message) == ("," in cell)


@given(st.text(max_size=12), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_a_text_looks_the_same_in_every_unicode_form(text: str, form: Any) -> None:
    assert folded(unicodedata.normalize(form, text)) == folded(text)
    assert folded(folded(text)) == folded(text)
    assert folded(f"\ufeff {text}\u200b\u00a0") == folded(text)


@given(st.integers(0, 10**18), st.integers(0, 5), st.integers(0, 3))
def test_a_number_is_the_same_with_leading_zeros_and_as_a_float(
    number: int, before: int, after: int
) -> None:
    written = "0" * before + str(number) + (f".{'0' * after}" if after else "")
    assert folded_id(written) == folded_id(str(number)) == str(number)
    assert folded_id(f"{number}1") != folded_id(str(number))


# Labels


def test_missing_labels_are_counted_by_what_was_written(sheet):
    words = (
        "0",
        "3+",
        "NA",
        "[Not Available]",
        "[NOT EVALUATED]",
        "unknown",
        "",
        "",
        "Not Reported",
    )
    rows = (f"s{n},{n}.svs,p{n},{word},x" for n, word in enumerate(words))
    found = read(sheet, "\n".join((HEADER, *rows)))
    assert sum("her2" in row.labels for row in found.rows) == 2
    assert found.remarks == (
        "column 'her2': 2 of 9 slides have a label; the others are predicted only (2 empty, "
        "1 'NA', 1 '[Not Available]', 1 '[NOT EVALUATED]', 1 'unknown', 1 'Not Reported')",
    )


@pytest.mark.parametrize("word", ["+/-", "Equivocal", "Indeterminate", "?"])
def test_a_label_that_may_mean_something_is_never_taken_for_a_missing_one(refusal, word):
    assert f"row 3, column 'her2': {word!r} is in no task" in refusal(
        ROWS[0], f"s2,2.svs,P-2,{word},Nord"
    )


def test_a_label_that_only_looks_like_one_of_a_task_is_told_apart(refusal):
    message = refusal("s1,1.svs,P-1,3\uff0b,N", "s2,2.svs,P-2,0.0,N")
    assert "row 2, column 'her2': '3\uff0b' is in no task's classes; write it as '3+'" in message
    assert "row 3, column 'her2': '0.0' is in no task's classes; write it as '0'" in message


def test_a_class_of_a_word_that_means_missing_is_refused(write_csv, tmp_path):
    """Its slides would all be unlabelled."""
    necrosis = Task(label="necrosis", classes={"no": ["none"], "yes": ["focal"]})
    rows = [{"slide_id": "a", "path": "a.svs", "patient_id": "p", "necrosis": "focal"}]
    with pytest.raises(UserError, match="`tasks.n.classes`: a label 'none' means that the label"):
        read_cohort(write_csv(rows), tasks={"n": necrosis})


@pytest.mark.parametrize("word", ["Unknown", "[Not Available]", "#N/A", "#REF!"])
def test_a_site_that_may_mean_a_missing_one_is_kept_and_warned_of(sheet, word):
    """It has been a site so far, and sites have folds and figures of their own."""
    found = read(sheet, f"{HEADER}\ns1,1.svs,P-1,0,{word}\ns2,2.svs,P-2,0,NA\n")
    assert [row.site for row in found.rows] == [word, None]
    assert found.cautions == (
        f"The manifest's column 'site' has {word!r} 1 times, which counts as a value. If it means "
        "that the value is missing, leave the cells empty.",
    )


# The fixed split


def test_a_split_that_the_folds_would_refuse_is_refused_with_the_rest(refusal):
    header = f"{HEADER},split"
    rows = ("s1,1.svs,p1,0,N,train", "s2,2.svs,p1,0,N,Test", "s3,3.svs,p2,0,N,fold1",
            "s4,4.svs,p3,0,N,", "s5,5.svs,p4,,N,", "s6,6.svs,,0,N,test")  # fmt: skip
    message = refusal(*rows, header=header, fixed_split=True)
    assert "each labelled slide needs one of train, tune, val, validation, test" in message
    assert "slide s3, column 'split': 'fold1'; slide s4, column 'split': is empty" in message
    assert "patient p1: has slides in test and train" in message
    assert "s5" not in message
    assert "row 7: column 'patient_id': is empty" in message
    assert "'split'" not in refusal(*rows, header=header, fixed_split=False)


# Encodings and delimiters


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode(),
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        lambda text: text.encode("utf-32"),
    ],
)
def test_a_sheet_that_says_what_it_is_is_read_and_what_is_unusual_is_said(
    sheet, encode, delimiter, end
):
    expected = read(sheet, SHEET)
    found = read(sheet, encode(SHEET.replace(",", delimiter).replace("\n", end)))
    assert found == expected
    usual = delimiter == "," and b"\0" not in sheet.read_bytes()
    assert (found.remarks == ()) == usual
    assert usual or "was read as UTF-" in found.remarks[0]


def test_a_delimiter_inside_a_name_does_not_decide(sheet):
    rows = read(sheet, SHEET.replace("site", "site,a;b;c;d;e;f;g;h").replace("Nord", "Nord,x")
                .replace("Süd", "Süd,y")).rows  # fmt: skip
    assert [row.site for row in rows] == ["Nord", "Süd"]


def test_another_encoding_is_refused_with_what_it_would_say_and_the_fix(sheet, tmp_path):
    with pytest.raises(UserError) as error:
        read(sheet, SHEET.replace(",", ";").encode("cp1252"))
    message = str(error.value)
    assert "row 3 is not in UTF-8; in Windows-1252 it would have 'Süd' (with semicolons" in message
    assert 'Save the sheet as "CSV UTF-8' in message
    assert "iconv -f cp1252 -t utf-8" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (SHEET.encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (SHEET.encode() + b"\0", "row 4 has null characters"),
        (SHEET.encode("utf-16")[:-1], "damaged UTF-16"),
        (b"PK\x03\x04 and more", "a spreadsheet's workbook"),
        (b"\xd0\xcf\x11\xe0", "workbook of an old Excel"),
        (b"\x1f\x8b", "gzip"),
        (b"\x81\x8d", "not UTF-8"),
    ],
)
def test_what_is_no_sheet_is_named_with_the_fix(sheet, content, words):
    with pytest.raises(UserError) as error:
        read(sheet, content)
    assert words in str(error.value)
    assert "CSV UTF-8" in str(error.value)


def test_a_pipe_a_folder_and_a_giant_are_named_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name in ("pipe.csv", "folder.csv"):
        with pytest.raises(UserError, match=f"{name}: is a (folder|named pipe), not a file"):
            read_cohort(tmp_path / name, tasks={})
    monkeypatch.setattr(sheets, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="more than the 0 MB of any sheet"):
        read(tmp_path / "giant.csv", SHEET)
    monkeypatch.undo()
    monkeypatch.setattr(sheets, "MAX_COLUMNS", 4)
    with pytest.raises(UserError, match="has 5 columns, more than the 4"):
        read(tmp_path / "giant.csv", SHEET)
    monkeypatch.setattr(sheets, "MAX_ROWS", 2)
    with pytest.raises(UserError, match="has 3 rows, more than the 2"):
        read(tmp_path / "giant.csv", SHEET)


# Parquet


def parquet(folder: Path, **changed: Any) -> Path:
    columns = {"slide_id": ["s1", "s2"], "path": ["1.svs", "2.svs"], "patient_id": ["p1", "p2"],
               "her2": ["0", "3+"]}  # fmt: skip
    path = folder / "slides.parquet"
    pyarrow.parquet.write_table(pa.table(columns | changed), path)
    return path


TEXTS = {
    "text": pa.array(["7", "8"]),
    "large text": pa.array(["7", "8"], pa.large_string()),
    "whole numbers": pa.array([7, 8], pa.int16()),
    "categories": pa.array(["7", "8"]).dictionary_encode(),
    "numbered categories": pa.array([7, 8]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_whole_numbers_and_categories_of_parquet_are_their_text(tmp_path, kind):
    rows = read_cohort(parquet(tmp_path, patient_id=TEXTS[kind]), tasks={"score": SCORE}).rows
    assert [row.patient_id for row in rows] == ["7", "8"]


@pytest.mark.parametrize("column", ["slide_id", "path", "patient_id", "her2", "site"])
@pytest.mark.parametrize(
    "values",
    [pa.array([7.0, 8.0]), pa.array([True, False]), pa.array([["a"], ["b"]]),
     pa.array([b"a", b"b"]), pa.array([0, 1], pa.date32()), pa.array([{"a": 1}, {"a": 2}]),
     pa.array([7.0, 8.0]).dictionary_encode()],
    ids=lambda values: str(values.type)[:20],
)  # fmt: skip
def test_what_is_no_text_in_parquet_is_not_turned_into_one(tmp_path, column, values):
    path = parquet(tmp_path, **{column: values})
    with pytest.raises(UserError, match=f"column '{column}': is of type .* not text.*; write it"):
        read_cohort(path, tasks={"score": SCORE})


def test_numbers_of_parquet_are_read_where_numbers_are_meant(tmp_path):
    path = parquet(tmp_path, mpp=pa.array([0.25, None]), ki67=pa.array([0.5, 2.0]))
    rows = read_cohort(path, tasks={"score": SCORE}, named={"ki67": "evaluation.covariates"}).rows
    assert [row.mpp for row in rows] == [0.25, None]
    assert [row.other for row in rows] == [{"ki67": "0.5"}, {"ki67": "2.0"}]


@pytest.mark.parametrize("kind", [pa.null(), pa.float64(), pa.string(), pa.list_(pa.int8())])
def test_a_column_of_parquet_without_a_value_is_missing_whatever_its_type(tmp_path, kind):
    path = parquet(tmp_path, site=pa.nulls(2, kind), mpp=pa.nulls(2, kind))
    rows = read_cohort(path, tasks={"score": SCORE}).rows
    assert [(row.site, row.mpp) for row in rows] == [(None, None)] * 2
    with pytest.raises(UserError, match="rows 2, 3: column 'patient_id': is empty"):
        read_cohort(parquet(tmp_path, patient_id=pa.nulls(2, kind)), tasks={"score": SCORE})


def test_a_column_twice_in_parquet_is_refused(tmp_path):
    table = pa.table([pa.array(["a"])] * 5, ["slide_id", "path", "patient_id", "her2", " her2"])
    pyarrow.parquet.write_table(table, tmp_path / "slides.parquet")
    with pytest.raises(UserError, match="column 'her2': is there 2 times"):
        read_cohort(tmp_path / "slides.parquet", tasks={"score": SCORE})


def test_empty_rows_of_parquet_are_left_out(tmp_path):
    columns = ["slide_id", "path", "patient_id", "her2"]
    path = parquet(tmp_path, **{name: pa.array([None, "0"]) for name in columns})
    found = read_cohort(path, tasks={"score": SCORE})
    assert [row.number for row in found.rows] == [3]
    assert found.remarks == (f"{path}: 1 empty row left out",)


def test_the_content_says_whether_a_file_is_parquet(tmp_path):
    path = parquet(tmp_path)
    other = path.rename(tmp_path / "slides.csv")
    assert len(read_cohort(other, tasks={"score": SCORE}).rows) == 2
    with pytest.raises(UserError, match=re.escape("slides.parquet: is not a readable table")):
        read(path, SHEET)
