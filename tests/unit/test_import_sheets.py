"""Sheets of other people are read as they mean them, and what was made of them is said."""

import base64
import zipfile
import zlib
from datetime import date
from pathlib import Path

import pytest

from her2.core.errors import UserError
from her2.core.spelling import is_failed
from her2.importing.sheets import read_sheet_file
from tests.unit.sheet_makers import Rows, write_ods, write_xlsx

XLS = """
eNrtWE1oE0EU/maTND80fzUVWiGEgrW/0KYXL21U0jQeUmI9qEXQ1IZaGhMJ8aAHrdYcBcGT4qVQD16iXvxBD4oePAgVPQiC
kKgnPQkKHtqsb152MYkKDWghst8yb2bevG/nzb752d2Xq97i8p3OEuowBhPKqh0tVTpBya5XPKB2VZVFPbdRUg00Few2CmSLBQ+d
L6wyhjLeJSi4bX5CEnhP6TBOYjKTTgY2EXvYh4SQPoySFLhOGhc62Ks2lsdYbmF5iy0fsdzFmkssR8m2KKaxGprs26nN4oNKF7e5
IO97jzlvWTOMdjyXs/jcZVGxtWB3dj6RarIGv7kVK6CATiTTyaysu3EDDuAQYTAWGwyHi/BRsFfwTQ0AX/VV/Thg6DdXL0D677V6
6x/0Ngpivf6KYgYWoR7lRZKHE0Nm2WJB5GMqlVxDVM4DThT/eCJ3PJPKzM0nySiSSKUoi45PBS1AOJE7dYKWfzQ4Eng27ASC/YGe
yN790UA6OddL82vIIfd/3i88NfuFk9dRK8lZuLns5dXkIYfXbn55FZuJh46wZpHPiMpJsl06DhXnJYPILm5h3+nsAfqY0c/yAt91
G5c7WfpogJR3x9u1QmSJbS5yazf1M8J4HdpRVe6hcv7zvvv+/IdQL5ULE6UzvsKb0DK66GSbJb68ljAgBsS1qxIPQnoutF3nHcuO
X3Ygm+LRxqZqx6Ub6/KZE7wspYXg0dVaCLaQslLTn1+lplDNpLGV37AVZps1+8rTp3DirCJrCnn96anCbFMdW1qYmO3X2CZmt2hs
E7MLxB5T2nBXdkR76084YMCAAQMGDBgwYKDZIN86Fe2N28yfDZV3eqv2X2edUtn4TfLfYgoZunL0UTmONOVZnG5o/myFRej3Ehvk
6P8LJQ5Q71ksYIb9WGh4/tI3magez4aJnr+3hBrtv9yIn/+4/x80e+Ex
"""
"""An XLS (BIFF8) of 5,632 bytes, compressed, with the cells of `CASES` on a sheet `Fälle`."""

CASES: Rows = [
    ["Pathologie"],
    ["Fall", "HER2", "Datum"],
    ["H23 Ä1", "2+ (FISH neg)", date(2024, 1, 15)],
    [7, "0", date(2023, 12, 31)],
]
READ = (("H23 Ä1", "2+ (FISH neg)", "2024-01-15"), ("7", "0", "2023-12-31"))


def workbook(kind: str, folder: Path) -> Path:
    path = folder / f"cases.{kind}"
    if kind == "xls":
        path.write_bytes(zlib.decompress(base64.b64decode(XLS)))
        return path
    if kind == "ods":
        return write_ods(path, {"Fälle": CASES})
    return write_xlsx(folder / "cases.xlsx", {"Fälle": CASES}, strict=kind == "strict")


@pytest.mark.parametrize("kind", ["xlsx", "strict", "ods", "xls"])
def test_every_kind_of_workbook_has_the_same_cells(kind, tmp_path):
    """Numbers without `.0`, days without a time, and rows counted as the spreadsheet does."""
    read = read_sheet_file(workbook(kind, tmp_path))
    assert read.header == ("Fall", "HER2", "Datum")
    assert read.rows == READ
    assert read.numbers == (3, 4)
    assert read.said == ("the header is row 2; what is above it was left out",)


def test_a_workbook_may_have_any_name(tmp_path):
    path = workbook("strict", tmp_path).rename(tmp_path / "export.csv")
    assert read_sheet_file(path).rows == READ


def test_titles_sums_repeated_headers_and_empty_rows_are_left_out_and_said(tmp_path):
    rows = [
        [None],
        ["Export vom", date(2024, 1, 2)],
        [],
        ["Case", "HER2", "Anteil"],
        ["sum-3", "0", "12,5"],
        [],
        ["Case", "HER2", "Anteil"],
        [None, "Mittelwert", "50"],
        ["total", "3+", 1],
        ["Summe der Fälle: 2", None, None],
    ]
    read = read_sheet_file(write_xlsx(tmp_path / "a.xlsx", {"A": rows}))
    assert read.rows == (("sum-3", "0", "12,5"),)
    assert read.numbers == (5,)
    assert read.said == (
        "the header is row 4; what is above it was left out",
        "rows 8, 9, 10: left out, as sums of others",
        "row 7: left out, as the header once more",
        "decimal commas in 'Anteil'",
    )
    assert read.decimals("anteil") == ["12.5"]


@pytest.mark.parametrize("word", ["Total", "TOTAL:", "Summe (n)", "Insgesamt 86", "Grand total"])
def test_a_row_of_sums_is_known_by_its_first_word(word, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"case,her2\n1,0\n{word},86\n")
    assert read_sheet_file(path).rows == (("1", "0"),)


@pytest.mark.parametrize("name", ["sum-3", "Count7", "totalis", "media_2", "Somme1"])
def test_an_id_that_begins_like_a_sum_is_kept(name, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"case,her2\n{name},0\n")
    assert read_sheet_file(path).rows == ((name, "0"),)


# Several sheets


SHEETS: dict[str, Rows] = {
    "Legende": [["Kürzel", "Bedeutung"], ["x", "y"]],
    "Leer": [],
    "Fälle": [["Fall", "HER2"], ["1", "0"]],
}


def test_the_sheet_with_the_wanted_columns_is_found_and_said(tmp_path):
    path = write_xlsx(tmp_path / "a.xlsx", SHEETS)
    read = read_sheet_file(path, wanted=("fall", "her2"))
    assert read.rows == (("1", "0"),)
    assert read.said == ("sheet 'Fälle' of 3",)


def test_the_only_sheet_with_rows_is_taken(tmp_path):
    path = write_xlsx(tmp_path / "a.xlsx", {"Leer": [], "Fälle": SHEETS["Fälle"]})
    assert read_sheet_file(path).rows == (("1", "0"),)


def test_several_sheets_with_rows_are_asked_for(tmp_path):
    path = write_xlsx(tmp_path / "a.xlsx", SHEETS)
    with pytest.raises(UserError, match=r"2 sheets with rows \(Legende, Fälle\); delete"):
        read_sheet_file(path)
    assert read_sheet_file(path, sheet="Fälle").rows == (("1", "0"),)
    with pytest.raises(
        UserError, match="has no sheet 'Falle'; its sheets are Legende, Leer, Fälle"
    ):
        read_sheet_file(path, sheet="Falle")


def test_a_column_that_no_sheet_has_is_named_rather_than_the_sheets(tmp_path):
    path = write_xlsx(tmp_path / "a.xlsx", SHEETS)
    with pytest.raises(UserError, match=r"has no column 'HER2 IHC'; .* has Fall, HER2\."):
        read_sheet_file(path, wanted=("Fall", "HER2 IHC"))


def test_several_sheets_with_the_wanted_columns_are_named_without_the_others(tmp_path):
    path = write_xlsx(tmp_path / "a.xlsx", {**SHEETS, "2024": SHEETS["Fälle"]})
    with pytest.raises(UserError, match=r"2 sheets with these columns \(Fälle, 2024\)"):
        read_sheet_file(path, wanted=("HER2",))


@pytest.mark.parametrize("wanted", [(), ("HER2",), ("HER2 IHC",)])
@pytest.mark.parametrize("choosable", [True, False])
def test_options_are_offered_only_where_the_command_has_them(wanted, choosable, tmp_path):
    path = write_xlsx(tmp_path / "a.xlsx", {**SHEETS, "2024": SHEETS["Fälle"]})
    with pytest.raises(UserError) as error:
        read_sheet_file(path, wanted=wanted, choosable=choosable)
    assert ("--sheet" in str(error.value) or "--header" in str(error.value)) is choosable
    assert "in a copy of the file" in str(error.value) or choosable


# What a spreadsheet has spoilt


@pytest.mark.parametrize("kind", ["xlsx", "csv"])
def test_errors_of_formulas_are_empty_and_said_by_column_and_row(kind, tmp_path):
    errors = [("1", "#N/A", "3"), ("#REF!", "3+", "#DIV/0!"), ("#NAME?", "0", "x"), ("9", "1+", "")]
    rows = [("title #REF!",), (), ("Fall", "HER2", "n"), *errors, ("Summe", "#VALUE!", None)]
    path = tmp_path / f"a.{kind}"
    if kind == "xlsx":
        write_xlsx(path, {"A": rows})
    else:
        path.write_text("\n".join(";".join(one or "" for one in row) for row in rows))
    read = read_sheet_file(path, wanted=("Fall", "HER2"))
    assert read.rows == (("1", "", "3"), ("", "3+", ""), ("", "0", "x"), ("9", "1+", ""))
    failed = "an error of the spreadsheet, such as #N/A; read as empty"
    for said in (
        f"rows 5, 6, 'Fall': {failed}",
        f"row 4, 'HER2': {failed}",
        f"row 5, 'n': {failed}",
    ):
        assert said in read.said
    assert sum(failed in one for one in read.said) == 3


@pytest.mark.parametrize(
    "cell", ["#N/A", "#n/a", "#NV", "#N/D", "#BEZUG!", "#¡REF!", "#VALEUR!", "#NOM?", "#DIV/0!",
             "####", "Err:502"]
)  # fmt: skip
def test_an_error_is_known_in_every_language(cell):
    assert is_failed(cell)


@pytest.mark.parametrize("cell", ["#1", "#12-A", "# 3", "#N", "Error", "Err:5", "N/A", "E502", ""])
def test_an_id_with_a_hash_is_no_error(cell):
    assert not is_failed(cell)


@pytest.mark.parametrize(
    ("cells", "rounded"),
    [
        ([12345678901234567], [2]),  # numbers
        ([123456789012345], []),
        (["12345678901234567", 1234567890123456], [3]),  # the first is a text
        ([2.5, "12345678901234500"], []),
    ],
)
def test_long_numbers_of_a_workbook_are_rounded_and_texts_are_not(cells, rounded, tmp_path):
    rows = [("Fall", "HER2"), *((cell, "3+") for cell in cells)]
    read = read_sheet_file(write_xlsx(tmp_path / "a.xlsx", {"A": rows}))
    assert read.rounded == ({0: rounded} if rounded else {})
    assert any("a spreadsheet has rounded them" in one for one in read.said) is bool(rounded)
    if rounded:
        with pytest.raises(UserError, match=rf"row {rounded[0]}, 'Fall', such as .* as text"):
            read.identifiers("fall")
        assert read.identifiers("HER2") == read.column("HER2")
    else:
        assert read.identifiers("Fall") == read.column("Fall")


@pytest.mark.parametrize(
    ("cells", "rounded"),
    [
        (["1.23457E+17"], [2]),
        (["7", "1,23457E+11"], [3]),
        (["12345678901234500"], [2]),
        (["12345678901234500", "12345678901234501"], []),
        (["1234567890123450"], []),  # one in ten
        (["12E5", "1E5", "1.5E+05", "H1E+11"], []),
    ],
)
def test_long_numbers_of_a_text_are_rounded_where_they_look_so(cells, rounded, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["Fall;HER2", *(f"{cell};3+" for cell in cells)]))
    assert read_sheet_file(path).rounded == ({0: rounded} if rounded else {})


def with_cell(path: Path, place: str, value: str) -> Path:
    """Add a cell far below to the only sheet of a workbook."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = "xl/worksheets/sheet1.xml"
    number = place.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    row = f'<row r="{number}"><c r="{place}">{value}</c></row></sheetData>'
    parts[name] = parts[name].replace(b"</sheetData>", row.encode())
    with zipfile.ZipFile(path, "w") as archive:
        for one, content in parts.items():
            archive.writestr(one, content)
    return path


@pytest.mark.parametrize("place", ["XFD1048576", "ZZ900000", "AAA80000"])
def test_a_cell_far_from_the_table_is_named_before_it_takes_the_memory(place, tmp_path):
    path = with_cell(workbook("xlsx", tmp_path), place, "<v>1</v>")
    with pytest.raises(UserError, match=f"as far as the cell {place} .* delete the cells"):
        read_sheet_file(path)


def test_a_cell_somewhat_away_from_the_table_is_of_no_matter(tmp_path):
    path = with_cell(workbook("xlsx", tmp_path), "AAA70", "")
    assert read_sheet_file(path).rows == READ


# Texts


GERMAN = "Fall;Alter;Ki67\r\nMüller;53;12,5\r\nWeiß;61;3,0\r\n"
ROWS = (("Müller", "53", "12,5"), ("Weiß", "61", "3,0"))


@pytest.mark.parametrize(
    ("encoding", "said"),
    [("utf-8", None), ("utf-8-sig", None), ("cp1252", "read as cp1252"),
     ("utf-16", "read as utf-16"), ("utf-16-le", "read as utf-16-le"),
     ("utf-16-be", "read as utf-16-be")],
)  # fmt: skip
def test_the_encoding_of_a_text_is_found_and_said(encoding, said, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(GERMAN.encode(encoding))
    read = read_sheet_file(path)
    assert read.header == ("Fall", "Alter", "Ki67")
    assert read.rows == ROWS
    semicolons = ("semicolons between cells", "decimal commas in 'Ki67'")
    assert read.said == ((said, *semicolons) if said else semicolons)


def test_rows_of_another_encoding_in_a_text_are_named_before_umlauts_become_others(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(GERMAN.encode() + "Köhl;7;1\r\n".encode("cp1252"))
    with pytest.raises(UserError, match="is UTF-8, but for row 4 and maybe others"):
        read_sheet_file(path)
    path.write_bytes(GERMAN.encode("cp1252") + "AÃ¶;7;1\r\n".encode("cp1252"))
    assert read_sheet_file(path).rows[-1] == ("AÃ¶", "7", "1")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_that_which_gives_rows_of_one_width(delimiter, tmp_path):
    path = tmp_path / "a.txt"
    rows = [["case", "note", "her2"], ["1", "a", "0"], ["2", "b", "1+"]]
    text = "\n".join(delimiter.join(row) for row in rows)
    path.write_text(f"A title, with commas; and more\n{text}\n")
    assert read_sheet_file(path).rows == (("1", "a", "0"), ("2", "b", "1+"))


def test_decimal_commas_do_not_make_commas_the_delimiter(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Fall;Ki67;ER\n1;0,5;1,5\n2;0,5;2,5\n")
    assert read_sheet_file(path, wanted=("Ki67",)).decimals("ki67") == ["0.5", "0.5"]


def test_a_cell_with_delimiter_and_line_break_in_quotes_is_one_cell(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('case,note\n1,"a, ""b""\nc"\n2,d\n')
    assert read_sheet_file(path).rows == (("1", 'a, "b"\nc'), ("2", "d"))


def test_a_quote_that_is_never_closed_swallows_no_row(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('case\tnote\n1\t"5 mm\n2\tb\n')
    read = read_sheet_file(path)
    assert read.rows == (("1", '"5 mm'), ("2", "b"))
    assert "quotes were read as letters, since they do not come in pairs" in read.said


def test_cells_beyond_the_header_are_refused_since_all_may_be_shifted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("case,note,her2\n1,a,0\n2,a, b,0\n")
    with pytest.raises(UserError, match="row 3: more cells than the header has"):
        read_sheet_file(path)


def test_cells_that_a_row_lacks_at_its_end_are_empty(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("case,her2,,\n1\n2,0,,\n")
    assert read_sheet_file(path).rows == (("1", ""), ("2", "0"))


# Columns


@pytest.fixture
def biotab(tmp_path) -> Path:
    path = tmp_path / "a.tsv"
    path.write_text("Case No\tHER2 Score\tHER2 Score\n1\t0\t1+\n")
    return path


def test_a_column_is_found_whatever_its_case_and_spaces(biotab):
    read = read_sheet_file(biotab, wanted=("case no",))
    assert read.column("patient", " CASE  no") == ["1"]
    assert read.find("patient") is None


def test_a_column_that_is_there_twice_is_refused_when_it_is_asked_for(biotab):
    with pytest.raises(UserError, match="'HER2 Score' is there twice"):
        read_sheet_file(biotab, wanted=("HER2 Score",))
    with pytest.raises(UserError, match="'her2 score' is there twice"):
        read_sheet_file(biotab).column("HER2 score")


def test_an_absent_column_is_named_with_the_nearest_and_all_others(biotab):
    told = r"no column 'Case Nr' \(did you mean 'Case No'\?\).* Case No, HER2 Score"
    with pytest.raises(UserError, match=told):
        read_sheet_file(biotab).column("Case Nr")
    with pytest.raises(UserError, match=told):
        read_sheet_file(biotab, wanted=("Case Nr",))


def test_the_header_may_be_said(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\nc,d\n1,2\n")
    assert read_sheet_file(path, header=2).rows == (("1", "2"),)
    with pytest.raises(UserError, match="has 3 rows, so row 9 cannot be the header"):
        read_sheet_file(path, header=9)
    with pytest.raises(UserError, match="has no row below the header"):
        read_sheet_file(path, header=3)


# What is no sheet


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no cell with a value"),
        (b"\n \n\t\n", "has no cell with a value"),
        (b"%PDF-1.7 ...", "is a PDF"),
        (b"\x1f\x8b\x08\x00", "compressed by gzip"),
        (b"PAR1....", "a Parquet"),
        (b"case,her2\n1,\x81\n", "is no text in cp1252"),
        (b"case,her2\n1,0\0\n", "null characters"),
        (b"PK\x03\x04 cut off", "is not a readable workbook .* save it as XLSX"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "is not a readable workbook"),
        (b"\xd0\xcf\x11\xe0" + "EncryptedPackage".encode("utf-16-le"), "by a password; save it"),
    ],
)
def test_what_is_no_sheet_is_said_to_be_none(content, words, tmp_path):
    path = tmp_path / "a.xlsx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_sheet_file(path)


def test_a_workbook_that_makes_the_library_panic_is_a_user_s_damaged_file(tmp_path, capfd):
    content = workbook("xls", tmp_path).read_bytes()
    (tmp_path / "cut.xls").write_bytes(content[:-700])
    with pytest.raises(UserError, match="is not a readable workbook"):
        read_sheet_file(tmp_path / "cut.xls")


def test_a_text_has_no_sheets(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is a text without sheets"):
        read_sheet_file(path, sheet="A")


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: None])
def test_a_folder_and_nothing_are_refused(make, tmp_path):
    make(tmp_path / "a")
    with pytest.raises(UserError, match="is a folder|does not exist"):
        read_sheet_file(tmp_path / "a")
