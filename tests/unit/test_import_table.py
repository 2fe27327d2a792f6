"""A hospital's export becomes a cohort, and no label, scan or id of it is guessed."""

import csv
import hashlib
import json
import shlex
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from her2.core.errors import UserError
from her2.importing.cases import parse_columns
from her2.importing.confirm import Meaning, confirm, proposal
from her2.importing.found import Found
from her2.importing.rescans import scan_groups, scan_number
from her2.importing.sources.table import read
from tests.unit.sheet_makers import Cell, write_ods, write_xlsx
from tests.unit.test_cli import ROOT, command, failing

Slide = Callable[[str], Path]
Text = tuple[str, str, str]


@pytest.fixture
def slide(tmp_path, monkeypatch, write_slide) -> Slide:
    """Writes slides, each of another content, below `scans` of the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("scans").mkdir()

    def write(name: str) -> Path:
        path = Path("scans", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = hashlib.sha256(name.encode()).digest()[:3]
        return write_slide(path, np.full((1024, 1024, 3), list(content), np.uint8), mpp=(0.5, 0.5))

    return write


@pytest.fixture
def file(tmp_path, monkeypatch) -> Callable[[str], Path]:
    """Writes files that only have the name of a slide, each of another content."""
    monkeypatch.chdir(tmp_path)

    def write(name: str) -> Path:
        path = Path("scans", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        return path

    return write


def sheet(*rows: tuple[object, ...], name: str = "export.csv") -> Path:
    path = Path(name)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def rows_of(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8-sig", newline="") as stream:
        delimiter = ";" if ";" in stream.readline() else ","
        stream.seek(0)
        return list(csv.DictReader(stream, delimiter=delimiter))


def confirm_all(path: str | Path = "out/labels.csv", **changed: tuple[str, str]) -> None:
    """Write yes into each row; and into those of some texts another score and status."""
    rows = rows_of(path)
    for row in rows:
        row["confirmed"] = "yes"
        row["her2"], row["status"] = changed.get(row["value"], (row["her2"], row["status"]))
    with Path(path).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def imported(path: Path, *columns: str, **options: Any) -> Found:
    """Return what is found once a person has confirmed all that is proposed."""
    out = Path("out")
    found = read(path, out=out, slides=Path("scans"), column=list(columns), **options)
    if "labels.csv" in found.sheets:
        out.mkdir(exist_ok=True)
        (out / "labels.csv").write_text(found.sheets["labels.csv"], encoding="utf-8")
        confirm_all()
        found = read(path, out=out, slides=Path("scans"), column=list(columns), **options)
    return found


def labels(found: Found) -> dict[str, tuple[str, ...]]:
    return {one.slide_id: tuple(one.labels.values()) for one in found.slides}


def left_out(found: Found) -> dict[str, str]:
    assert len({one.name for one in found.left_out}) == len(found.left_out)
    return {one.name: one.reason for one in found.left_out}


BY_PATIENT = ("patient=Fall", "her2=HER2")

# The whole way


GERMAN = ("Fall-Nr.", "Patient", "HER2-Status", "FISH Ergebnis", "Eingang", "Standort", "Alter",
          "µm/px")  # fmt: skip
FRENCH = ("N° de cas", "Patiente", "Statut HER2", "Résultat FISH", "Reçu", "Hôpital", "Âge",
          "µm/px")  # fmt: skip
PORTUGUESE = ("Nº do caso", "Paciente", "Estado HER2", "Resultado FISH", "Recebido", "Serviço",
              "Idade", "µm/px")  # fmt: skip
MEANT = ("slide", "patient", "her2", "fish", None, "site", "age", "mpp")
TEXTS: tuple[tuple[str, str | None, Text], ...] = (  # HER2, FISH -> her2, her2_status, fish
    ("Score 0", None, ("0", "negative", "")),
    ("Score 1", None, ("1+", "negative", "")),
    ("HER2 2+ (FISH neg)", None, ("2+", "negative", "")),
    ("3+", None, ("3+", "positive", "")),
    ("0", None, ("0", "negative", "")),
    ("Score 1+", None, ("1+", "negative", "")),
    ("2+", "amplifiziert", ("2+", "positive", "positive")),
    ("+++", None, ("3+", "positive", "")),
)
OTHERS: tuple[tuple[str | None, str | None, Text], ...] = (
    ("negativ", None, ("", "negative", "")),
    ("HER2-low", None, ("", "", "")),
    ("1+ a 2+", None, ("", "", "")),
    ("+", None, ("", "", "")),
    ("2,0", None, ("2+", "", "")),
    (None, "non amplifié", ("", "negative", "negative")),
    ("k. A.", None, ("", "", "")),
    ("[Not Available]", None, ("", "", "")),
)


def hostile_rows(slide: Slide) -> tuple[list[list[Cell]], dict[str, Text]]:
    """Write slides with every trap; return the rows of their sheet and the labels of each case."""
    rows: list[list[Cell]] = []
    truth = {}
    for number, (her2, fish, meant) in enumerate((*TEXTS * 4, *OTHERS)):
        case = f"H23{number:05} Ä1" if number % 5 == 0 else f"H23{number:05} A1"
        patient = f"Müller {number}" if number % 2 else f"P {number}"
        site = "Zürich" if number % 2 else "Köln"
        rows.append([case, patient, her2, fish, date(2023, 1, 1 + number % 28), site, 50.5, 0.25])
        slide((f"2023/{case} HE.svs", f"{case.replace(' ', '_')}_HE.svs")[number % 2])
        truth[case] = meant
    rows.append(["H2399999 A1", "P 999", "3+", None, date(2023, 2, 1), "Köln", 61, 0.25])
    rows.append(["H2300001 A1", "Müller 1", "3+", None, date(2023, 2, 1), "Zürich", 50.5, 0.25])
    truth["H2300001 A1"] = ("", "", "")  # Score 1 in its first row
    slide("2023/H2300002 A1 HE_rescan.svs")
    slide("H2300003_A1_HE (2).svs")
    shutil.copy("scans/2023/H2300004 A1 HE.svs", "scans/2023/Kopie von H2300004 A1 HE.svs")
    slide("2023/H2300006 A1 HER2.svs")
    slide("X99 HE.svs")
    Path("scans/H2300007_A1_HE.svs.partial").write_bytes(b"x")
    return rows, truth


def as_xlsx(header: tuple[str, ...], rows: list[list[Cell]]) -> Path:
    title: list[list[Cell]] = [["Institut für Pathologie, Mammakarzinome 2023"], []]
    sums: list[list[Cell]] = [[], ["Summe", len(rows)]]
    legend: list[list[Cell]] = [["Abkürzung", "Bedeutung"], ["HE", "Hämatoxylin-Eosin"]]
    table = [*title, list(header), *rows, *sums]
    return write_xlsx(Path("export.xlsx"), {"Legende": legend, "Fälle 2023": table})


def as_csv(header: tuple[str, ...], rows: list[list[Cell]]) -> Path:
    def text(cell: Cell) -> str:
        if isinstance(cell, date):
            return cell.strftime("%d.%m.%Y")
        return "" if cell is None else str(cell).replace(".", ",", isinstance(cell, float))

    lines = ["Service de pathologie;;;;;;;", ";".join(header)]
    lines += [";".join(map(text, row)) for row in rows]
    lines.append(f"Total;{len(rows)};;;;;;")
    Path("export.csv").write_bytes("\r\n".join(lines).encode("cp1252"))
    return Path("export.csv")


def as_ods(header: tuple[str, ...], rows: list[list[Cell]]) -> Path:
    sums: list[list[Cell]] = [["Soma", len(rows)]]
    table: list[list[Cell]] = [["Exportação"], list(header), *rows, *sums]
    return write_ods(Path("export.ods"), {"Notas": [["x"]], "Casos": table})


@pytest.mark.parametrize(
    ("header", "written"), [(GERMAN, as_xlsx), (FRENCH, as_csv), (PORTUGUESE, as_ods)]
)
def test_a_hostile_export_becomes_a_cohort_that_passes_the_check(
    header, written, slide, monkeypatch, capsys
):
    rows, truth = hostile_rows(slide)
    path = written(header, rows)
    before = {one: one.read_bytes() for one in (path, *Path("scans").rglob("*")) if one.is_file()}
    named = [f"{name}={column}" for name, column in zip(MEANT, header, strict=True) if name]
    line = ["import", "table", path, "--slides", "scans"]
    line += [part for one in named for part in ("--column", one)]

    # What a person has to decide is said at once, and no manifest is written.
    said = failing(monkeypatch, capsys, *line)
    assert "glasses that seem to have been scanned several times: 2. Add --rescans last" in said
    assert "2023/H2300002 A1 HE.svs, 2023/H2300002 A1 HE_rescan.svs" in said
    assert f"16 different texts of {header[2]!r}, {header[3]!r} have to be confirmed" in said
    assert "write yes under confirmed" in said
    assert sorted(one.name for one in Path("table").iterdir()) == [
        "import.json", "labels.csv", "rescans.csv",
    ]  # fmt: skip
    asked = {row["value"]: row for row in rows_of("table/labels.csv")}
    assert asked["HER2 2+ (FISH neg)"]["proposed"] == "2+ negative"
    assert asked["Score 1"]["n"] == "4"
    for text in ("HER2-low", "1+ a 2+", "k. A."):
        assert (asked[text]["proposed"], asked[text]["her2"], asked[text]["status"]) == ("",) * 3
    assert (asked["amplifiziert"]["her2"], asked["amplifiziert"]["status"]) == ("", "positive")

    # A second run without a decision says the same and changes nothing.
    state = Path("table/labels.csv").read_bytes()
    assert "16 different texts" in failing(monkeypatch, capsys, *line, "--rescans", "last")
    assert Path("table/labels.csv").read_bytes() == state

    confirm_all("table/labels.csv")
    done = command(*line, "--rescans", "last")
    assert done.exit_code == 0, done.output
    shown = " ".join(done.output.split())
    assert "table: 40 slides of 40 patients" in shown
    assert "um/px 0.25 (manifest): 40" in shown
    assert f"{header[0]!r} is what file names begin with: of 41 in the sheet, 1 have no s" in shown
    assert "of the files, 1 have no row" in shown
    assert "copies of other files that were left out: 1" in shown
    assert "'H2300001 A1' (rows " in shown
    assert "her2 1+ and 3+ ('Score 1', '3+'); left without labels" in shown
    assert "H2399999 A1" in shown
    assert "sums of others" in shown

    record = json.loads(Path("table/import.json").read_text())
    reasons = {one["name"]: one["reason"] for one in record["left_out"]}
    assert reasons["X99 HE.svs"] == "has no row in the sheet"
    assert "is not H&E by its name (HER2)" in reasons["2023/H2300006 A1 HER2.svs"]
    copied = reasons["2023/Kopie von H2300004 A1 HE.svs"]
    assert copied == "is a copy of 2023/H2300004 A1 HE.svs, to the byte"
    assert reasons["2023/H2300002 A1 HE.svs"].startswith("is another scan of a glass")
    assert reasons["H2300007_A1_HE.svs.partial"] == "its download is not finished"
    assert {one["path"] for one in record["inputs"]} == {str(path), "table/labels.csv"}

    back = {row["slide_id"]: row for row in rows_of("table/ids.csv")}
    manifest = rows_of("table/slides.csv")
    assert {
        back[row["slide_id"]]["slide"]: (row["her2"], row["her2_status"], row["fish"])
        for row in manifest
    } == truth
    assert back["H2300005_Ae1_HE"]["patient"] == "Müller 5"
    assert {row["age"] for row in manifest} == {"50.5"}
    assert {row["site"] for row in manifest} == {"Köln", "Zürich"}
    for row in manifest:
        assert Path("scans", row["path"]).is_file()
        assert back[row["slide_id"]]["file"] == row["path"]
    checked = command("cohort", "check", "table/slides.csv", "--config", "table/table.yaml")
    assert checked.exit_code == 0, checked.output
    assert "40 slides of 40 patients, no problems found" in checked.output
    assert before == {one: one.read_bytes() for one in before}


def test_the_commands_of_the_page_lead_to_a_cohort(slide, monkeypatch, capsys):
    page = (ROOT / "docs/table.md").read_text()
    asks, imports = (
        shlex.split(line.partition(" # ")[0])[1:]
        for line in page.partition("```bash\n")[2].partition("```")[0].splitlines()
    )
    rows: list[list[Cell]] = [["Fall-Nr.", "Patient", "HER2"]]
    for number in range(20):
        rows.append([f"H{number} A1", f"p{number}", f"Score {number % 4}"])
        slide(f"H{number}_A1_HE.svs")
    write_xlsx(Path("export.xlsx"), {"Export": rows})
    said = failing(monkeypatch, capsys, *asks)
    assert "say which column is patient" in said
    assert "'Fall-Nr.', such as H0 A1, H1 A1, H2 A1" in said
    assert "labels.csv" in failing(monkeypatch, capsys, *imports)
    confirm_all("table/labels.csv")
    assert "written: table/ids.csv, table/slides.csv" in command(*imports).output


# Labels


@pytest.mark.parametrize(
    ("column", "text", "meant"),
    [
        ("her2", "HER2 2+ (FISH neg)", ("2+", "negative")),
        ("her2", "2+", ("2+", "")),
        ("her2", "Score 1", ("1+", "negative")),
        ("her2", "3+", ("3+", "positive")),
        ("her2", "negativ", ("", "negative")),
        ("her2", "HER2-low", ("", "")),
        ("her2", "1+ a 2+", ("", "")),
        ("her2", "2023-03-02", ("", "")),
        ("her2", "3+ (FISH neg)", ("3+", "")),
        ("her2", "1+, FISH positiv", ("1+", "")),
        ("fish", "negativ", ("", "negative")),
        ("fish", "2+ amplified", ("", "positive")),
        ("fish", "ratio 1.2", ("", "")),
        ("her2_status", "positiv (3+)", ("", "positive")),
    ],
)
def test_only_what_is_certain_is_proposed_and_a_status_is_no_score(column, text, meant):
    assert proposal(column, text) == Meaning(*meant)


@pytest.fixture
def asked(tmp_path, monkeypatch) -> Path:
    """The file with the rows of three texts that a person has confirmed, one of them empty."""
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    path = Path("out/labels.csv")
    made = confirm(path, {"her2": Counter({"1+": 2, "low": 3}), "fish": Counter({"neg": 1})})
    path.write_text(made.text, encoding="utf-8")
    confirm_all()
    return path


TEXTS_ASKED = {"her2": Counter({"1+": 2, "low": 3}), "fish": Counter({"neg": 1})}


def test_what_a_person_confirmed_is_read_and_an_empty_row_means_no_label(asked):
    found = confirm(asked, TEXTS_ASKED)
    assert found.meanings == {
        ("her2", "1+"): Meaning("1+", "negative"),
        ("her2", "low"): Meaning(),
        ("fish", "neg"): Meaning("", "negative"),
    }
    assert (found.waiting, found.text, found.n_new) == ({}, "", 0)


@pytest.mark.parametrize("word", ["", "no", "?", "later"])
def test_a_row_counts_only_when_it_says_yes(word, asked):
    asked.write_text(asked.read_text().replace("her2,low,3,,,,yes", f"her2,low,3,,,,{word}"))
    found = confirm(asked, TEXTS_ASKED)
    assert found.waiting == {("her2", "low"): ""}
    assert ("her2", "low") not in found.meanings
    assert found.text == ""


def test_new_texts_are_added_below_what_a_person_wrote(asked):
    said = asked.read_text(encoding="utf-8-sig").replace("low,3,,,,yes", "low,3,,1,neg,ja")
    asked.write_text(said, encoding="utf-8")
    found = confirm(asked, {"her2": Counter({"1+": 9, "low": 9, "3+": 1}), "fish": Counter()})
    assert found.text == f"\ufeff{said}her2,3+,1,3+ positive,3+,positive,\n"
    assert found.waiting == {("her2", "3+"): "3+ positive"}
    assert found.meanings["her2", "low"] == Meaning("1+", "negative")
    assert found.unused == ("fish 'neg'",)


def test_a_file_saved_by_a_german_excel_is_read_and_keeps_its_delimiter_and_notes(asked):
    rows = rows_of(asked)
    lines = ["column;value;n;proposed;her2;status;confirmed;Bemerkung"]
    lines += [";".join([*row.values(), "geprüft von Müller"]) for row in rows]
    asked.write_bytes("\r\n".join([*lines, ""]).encode("cp1252"))
    found = confirm(asked, {**TEXTS_ASKED, "her2": Counter({"1+": 2, "low": 3, "äqu": 1})})
    assert found.meanings["her2", "1+"] == Meaning("1+", "negative")
    assert found.text == "\ufeff" + "\n".join([*lines, "her2;äqu;1;;;;;", ""])


@pytest.mark.parametrize("text", ["+++", "-", "=1", "'x", "1-2", "2/3", "2,0", "2.0", "1:2"])
def test_a_text_that_a_spreadsheet_would_change_is_written_so_that_it_does_not(
    text, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    path = Path("out/labels.csv")
    path.write_text(confirm(path, {"her2": Counter({text: 1})}).text, encoding="utf-8")
    (row,) = rows_of(path)
    assert row["value"] == f"'{text}"
    confirm_all()
    assert ("her2", text) in confirm(path, {"her2": Counter({text: 1})}).meanings


def test_spellings_of_one_text_are_one_row(tmp_path):
    counted = Counter({"Negativ": 1, "negativ": 3, "NEGATIV ": 1})
    found = confirm(tmp_path / "labels.csv", {"her2": counted})
    assert "her2,negativ,5,negative,,negative,\n" in found.text
    assert found.n_new == 1


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("low,3,,,,yes", "low,3,,4+,,yes", r"row 3 \(her2 'low'\): her2 is '4\+'; write 0, 1\+"),
        ("low,3,,,,yes", "low,3,,low,,yes", "her2 is 'low'"),
        ("low,3,,,,yes", "low,3,,,maybe,yes", "status is 'maybe'; write negative"),
        ("neg,1,negative,,", "neg,1,negative,2+,", r"her2 is '2\+', but 'fish' says nothing of"),
        ("her2,low,3,,,,yes", "her2,1+,2,,3+,,yes", "rows 2, 3: say different things of '1"),
    ],
)
def test_an_entry_that_is_no_label_is_named_with_its_row(before, after, words, asked):
    text = asked.read_text()
    assert before in text
    asked.write_text(text.replace(before, after))
    with pytest.raises(UserError, match=words):
        confirm(asked, TEXTS_ASKED)


def test_a_file_that_lost_its_columns_can_be_written_anew(asked):
    asked.write_text('"column,value,n,proposed,her2,status,confirmed"\n"her2,1+,2,,,,yes"\n')
    with pytest.raises(UserError, match=r"has no column .* delete it, and the next run"):
        confirm(asked, TEXTS_ASKED)


def test_texts_that_came_in_later_stop_the_import_again(file):
    file("a.svs"), file("b.svs")
    path = sheet(("Fall", "HER2"), ("a", "1+"), ("b", ""))
    assert labels(imported(path, *BY_PATIENT)) == {"a": ("1+", "negative"), "b": ("", "")}
    sheet(("Fall", "HER2"), ("a", "1+"), ("b", "low"))
    found = read(path, out=Path("out"), slides=Path("scans"), column=[*BY_PATIENT])
    assert found.slides == ()
    assert "1 different texts of 'HER2' have to be confirmed by a person; 1 came in" in found.stops
    assert "her2 'low': ambiguous, so nothing is proposed" in found.stops
    assert found.sheets["labels.csv"].count("\n") == 3


def test_only_texts_of_cases_with_slides_are_asked_for(file):
    file("a.svs")
    path = sheet(("Fall", "HER2"), ("a", "1+"), ("b", "low"), ("c", "?"))
    found = read(path, out=Path("out"), slides=Path("scans"), column=[*BY_PATIENT])
    assert "her2 '1+'" in found.stops
    assert "low" not in found.stops


def test_fish_sets_the_status_alone_and_a_contradiction_is_no_label(file):
    for name in "abcde":
        file(f"{name}.svs")
    path = sheet(
        ("Fall", "HER2", "FISH"),
        ("a", "2+", "positiv"), ("b", "", "negativ"), ("c", "3+", "negativ"), ("d", "2+", ""),
        ("e", "2+", ""), ("e", "", "amplified"),
    )  # fmt: skip
    found = imported(path, *BY_PATIENT, "fish=FISH")
    assert labels(found) == {
        "a": ("2+", "positive", "positive"),
        "b": ("", "negative", "negative"),
        "c": ("3+", "", "negative"),
        "d": ("2+", "", ""),
        "e": ("2+", "positive", "positive"),
    }
    assert found.conflicts == (
        "'c' (row 4): negative and positive ('3+', 'negativ'); left without her2_status",
    )


def test_rows_of_one_case_that_differ_are_listed_and_left_empty(file):
    file("a 1.svs"), file("a 2.svs"), file("b.svs")
    path = sheet(
        ("Fall", "HER2", "Ort"), ("a", "1+", "x"), ("b", "0", "y"), ("a", "2+", "y"),
        ("b", "0", "y"),
    )  # fmt: skip
    found = imported(path, *BY_PATIENT, "site=Ort")
    assert labels(found) == {"a-1": ("", ""), "a-2": ("", ""), "b": ("0", "negative")}
    assert [one.site for one in found.slides] == ["", "", "y"]
    assert found.conflicts == (
        "'a' (rows 2, 4): her2 1+ and 2+ ('1+', '2+'); left without labels",
        "'a' (rows 2, 4): site 'x' and 'y'; left empty",
    )


def test_slides_of_a_patient_with_different_labels_keep_them_and_are_listed(file):
    file("a.svs"), file("b.svs")
    path = sheet(("Block", "Pat", "HER2"), ("a", "p", "1+"), ("b", "p", "0"))
    found = imported(path, "slide=Block", "patient=Pat", "her2=HER2")
    assert labels(found) == {"a": ("1+", "negative"), "b": ("0", "negative")}
    assert found.conflicts == (
        "patient p: her2 1+ (a) and 0 (b); each slide keeps its label, and cohort.patient_label "
        "of the config says which one counts",
    )


def test_slides_without_a_single_patient_are_left_out(file):
    file("a.svs"), file("b.svs"), file("c.svs")
    path = sheet(
        ("Block", "Pat", "HER2"), ("a", "p", "1+"), ("a", "q", "1+"), ("b", "NA", "0"),
        ("c", "r", "0"), ("", "s", "0"),
    )  # fmt: skip
    found = imported(path, "slide=Block", "patient=Pat", "her2=HER2")
    assert [one.slide_id for one in found.slides] == ["c"]
    reasons = left_out(found)
    assert reasons["'a' (rows 2, 3)"] == "is of several: p, q ('Pat'), so its slides were left out"
    assert reasons["'b' (row 4)"].startswith("has no patient")
    assert reasons["row 6"].startswith("'Block' is empty; in a sheet with merged cells")


# Scans and copies


@pytest.mark.parametrize(
    ("name", "number"),
    [("A", 0), ("A_rescan", 1), ("A_rescan2", 2), ("A (2)", 2), ("Kopie von A", 1),
     ("A - Kopie", 1), ("Kopie von A_rescan", 2), ("A1 2", 0)],
)  # fmt: skip
def test_scans_of_a_glass_are_numbered_by_their_names(name, number):
    assert scan_number(Path(f"{name}.svs")) == number


def test_scans_are_grouped_within_a_case_and_lone_ones_are_none():
    files = {"p": ["A", "A_rescan", "B_rescan", "C 1", "C 2"], "q": ["D (2)"]}
    groups = scan_groups({name: [Path(f"{n}.svs") for n in names] for name, names in files.items()})
    assert [[path.stem for path in one.files] for one in groups] == [["A", "A_rescan"]]


@pytest.mark.parametrize(
    ("choice", "kept"),
    [("first", ["a", "b"]), ("last", ["a_rescan2", "b-2"]),
     ("all", ["a", "a_rescan", "a_rescan2", "b", "b-2"])],
)  # fmt: skip
def test_the_scans_that_were_chosen_are_used(choice, kept, file):
    for name in ("a", "a_rescan", "a_rescan2", "b", "b (2)"):
        file(f"{name}.svs")
    path = sheet(("Fall", "HER2"), ("a", "1+"), ("b", "0"))
    found = imported(path, *BY_PATIENT, rescans=choice)
    assert sorted(one.slide_id for one in found.slides) == kept
    assert len(found.left_out) == 5 - len(kept)
    used = [
        line.split(",")[2] for line in found.sheets["rescans.csv"].splitlines() if "yes" in line
    ]
    assert len(used) == len(kept)


def test_scans_whose_order_is_not_clear_are_refused(file):
    for name in ("a", "a_rescan", "a (1)"):
        file(f"{name}.svs")
    path = sheet(("Fall", "HER2"), ("a", "1+"))
    assert "a: a (1).svs, a_rescan.svs" in imported(path, *BY_PATIENT, rescans="last").stops
    assert imported(path, *BY_PATIENT, rescans="first").stops == ""


def test_copies_are_no_scans_and_those_of_two_patients_are_left_to_their_opening(file):
    first = file("a.svs")
    for name in ("a (2)", "Kopie von a", "b"):
        shutil.copy(first, f"scans/{name}.svs")
    path = sheet(("Fall", "HER2"), ("a", "1+"), ("b", "0"))
    found = imported(path, *BY_PATIENT)
    # Whose slide it is, nobody can say: `her2 import` leaves out both, as a conflict.
    assert sorted(one.slide_id for one in found.slides) == ["a", "b"]
    Path("scans/b.svs").write_text("other")
    found = imported(path, *BY_PATIENT)
    assert sorted(one.slide_id for one in found.slides) == ["a", "b"]
    assert left_out(found)["a (2).svs"] == "is a copy of a.svs, to the byte"


@pytest.mark.parametrize(
    ("name", "is_used"),
    [("a HE", True), ("a HER2", False), ("a_Ki67", False), ("a ER", False), ("a IHC_HER2", False),
     ("a HER2-study HE", True), ("a block 3", True)],
)  # fmt: skip
def test_a_slide_of_another_stain_by_its_name_is_left_out(name, is_used, file):
    file(f"{name}.svs"), file("a.svs")
    path = sheet(("Fall", "HER2"), ("a", "1+"))
    found = imported(path, *BY_PATIENT)
    assert len(found.slides) == 1 + is_used
    assert (f"{name}.svs" in left_out(found)) is not is_used


def test_a_slide_of_another_stain_that_the_sheet_names_is_used_and_said(file):
    file("a HE.svs"), file("a HER2.svs"), file("HER2-7.svs")
    path = sheet(
        ("Datei", "Pat", "HER2"), ("a HE", "p", ""), ("a HER2", "p", ""), ("HER2-7", "q", "")
    )
    found = imported(path, "slide=Datei", "patient=Pat", "her2=HER2")
    assert len(found.slides) == 3
    assert found.conflicts == (
        "a HER2.svs: its name says HER2, and the sheet has it as a slide; if it is not H&E, take "
        "its row out",
    )


# Ids


@pytest.mark.parametrize(
    ("names", "rows", "words"),
    [
        (("a.svs", "b.svs"), (("a", "Müller"), ("b", "Mueller")),
         "patients 'Müller' and 'Mueller' would both be 'Mueller'"),
        (("a.svs", "b.svs"), (("a", "7"), ("b", "007")), "patients '7' and '007' would both be"),
        (("a.svs", "b.svs"), (("a", "???"), ("b", "x")), "patient '???': no letter or digit"),
        (("a Ä.svs", "a Ae.svs"), (("a", "p"),), "a Ae.svs and a Ä.svs would both be slide 'a-Ae'"),
        (("1/a.svs", "2/a.svs"), (("a", "p"),), "1/a.svs and 2/a.svs would both be slide 'a'"),
        (("a.svs", "a.jpg"), (("a", "p"),), "a.jpg and a.svs would both be slide 'a'; rename one"),
        (("a b HE.svs",), (("a b", "p"), ("a-b", "q")), "fits equally well to 'a b' (row 2) and"),
    ],
)  # fmt: skip
def test_what_would_become_one_id_is_refused_by_name(names, rows, words, file):
    for name in names:
        file(name)
    path = sheet(("Block", "Pat", "HER2"), *((*row, "") for row in rows))
    with pytest.raises(UserError) as caught:
        imported(path, "slide=Block", "patient=Pat", "her2=HER2")
    assert words in str(caught.value)


def test_a_suffix_says_which_files_are_slides(file):
    file("a.svs"), file("a.jpg")
    path = sheet(("Fall", "HER2"), ("a", "1+"))
    assert [one.path.name for one in imported(path, *BY_PATIENT, suffix=["SVS"]).slides] == [
        "a.svs"
    ]


def test_the_column_of_slides_may_have_paths_and_suffixes(file):
    file("2023/a HE.svs"), file("b.svs")
    path = sheet(("Datei", "Pat", "HER2"), (r"D:\scans\a HE.svs", "p", ""), ("b.SVS", "q", ""))
    found = imported(path, "slide=Datei", "patient=Pat", "her2=HER2")
    assert {one.patient_id: one.path.name for one in found.slides} == {
        "p": "a HE.svs", "q": "b.svs",
    }  # fmt: skip
    assert found.sheets["ids.csv"].split("\n")[1] == "a-HE,p,a HE,p,2023/a HE.svs"


def test_folders_called_after_cases_are_taken_where_no_file_is(file):
    for name in ("Ä 1/HE/scan1.svs", "Ä 1/scan2.svs", "b/scan1.svs", "b/HER2.svs", "c/scan1.svs"):
        file(name)
    path = sheet(("Fall", "HER2"), ("Ä 1", "1+"), ("b", "0"))
    found = imported(path, *BY_PATIENT)
    assert {one.slide_id: one.patient_id for one in found.slides} == {
        "Ae-1-scan1": "Ae-1", "Ae-1-scan2": "Ae-1", "b-scan1": "b",
    }  # fmt: skip
    assert "no file begins with such a text, so the names of folders were taken" in found.rules
    assert left_out(found)["c/scan1.svs"] == "has no row in the sheet"
    assert "is not H&E by its name (HER2)" in left_out(found)["b/HER2.svs"]


def test_a_folder_is_not_taken_for_a_case_where_files_are_called_after_cases(file):
    file("1/2 HE.svs"), file("1/x HE.svs")
    path = sheet(("Fall", "HER2"), ("1", "1+"), ("2", "0"))
    found = imported(path, *BY_PATIENT)
    assert [one.patient_id for one in found.slides] == ["2"]
    assert left_out(found)["1/x HE.svs"] == "has no row in the sheet"


# Mistakes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["her2"], "'her2': write NAME=COLUMN"),
        (["her2=a", "her2=b"], "'her2' is there twice"),
        (["patient_id=x"], "write patient='x'"),
        (["path=x"], "write slide='x'"),
        (["annotation=x"], "'annotation' cannot be the name"),
        (["my age=x"], "'my age' cannot be the name"),
        (["Her2=x"], "did you mean 'her2'?"),
        (["pateint=x"], "did you mean 'patient'?"),
    ],
)
def test_a_column_that_cannot_be_meant_is_refused(given, words):
    with pytest.raises(UserError) as caught:
        parse_columns(given)
    assert words in str(caught.value)


def test_further_columns_are_taken_as_they_are():
    assert parse_columns(["age=Alter = J.", "er=ER"]) == {"age": "Alter = J.", "er": "ER"}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ((), "say which column is patient and which is her2 (or her2_status, or fish)"),
        (("her2=HER2",), "say which column is patient: add"),
        (("patient=Fall",), "say which column is her2 (or"),
        (("patient=Fal", "her2=HER2"), "has no column 'Fal' (did you mean 'Fall'?)"),
        (("patient=HER2", "her2=HER2"), "no file or folder below scans begins with a text"),
        (("patient=Fall", "her2=HER2", "mpp=HER2"), "row 2: 'HER2' '1+' is not a um/px between"),
    ],
)
def test_what_is_lacking_is_said_with_what_there_is(columns, words, file):
    file("a.svs")
    path = sheet(("Fall", "HER2"), ("a", "1+"))
    with pytest.raises(UserError) as caught:
        imported(path, *columns)
    assert words in str(caught.value)
    if words.startswith("say"):
        assert "'Fall', such as a" in str(caught.value)


def test_no_folder_of_slides_is_written_into(file):
    file("a.svs")
    path = sheet(("Fall", "HER2"), ("a", "1+"))
    with pytest.raises(UserError, match="lies in scans, whose files are only read"):
        read(path, out=Path("scans/out"), slides=Path("scans"), column=[*BY_PATIENT])
    with pytest.raises(UserError, match="--slides nowhere: does not exist"):
        read(path, out=Path("out"), slides=Path("nowhere"), column=[*BY_PATIENT])
    with pytest.raises(UserError, match=r"has no file with the suffix \.ndpi"):
        imported(path, *BY_PATIENT, suffix=["ndpi"])
