"""Warwick's contest becomes a manifest of H&E slides, in which no IHC slide tells the answer."""

import json
from pathlib import Path

import pytest

from her2.core.errors import UserError
from tests.unit.cohort_makers import assert_checked, manifest_rows, put_slide
from tests.unit.sheet_makers import Cell, write_xlsx
from tests.unit.test_cli import command

PERCENTAGE = "PERCENTAGE CELLS WITH COMPLETE MEMBRANE STAINING IRRESPECTIVE OF INTENSITY"
FOLDER = Path("HER2 contest (Ärzte)")
CASES = range(1, 33)


def put_truth(*rows: tuple[Cell, ...], path: Path = FOLDER / "groundTruth.xlsx") -> Path:
    return write_xlsx(path, {"Sheet1": [("CaseNo", "HeR2 SCORE", PERCENTAGE), *rows]})


def usual(case: int) -> tuple[Cell, ...]:
    return case, case % 4, 10 * (case % 4)


@pytest.fixture
def contest(tmp_path, monkeypatch) -> Path:
    """32 cases with an H&E slide and an IHC slide each; OpenSlide reads them by content."""
    monkeypatch.chdir(tmp_path)
    for case in CASES:
        put_slide(FOLDER / f"{case:02}_HE.ndpi", case)
        ihc = "Her2" if case % 3 == 0 else "HER2"
        put_slide(FOLDER / f"{case:02}_{ihc}.ndpi", 100 + case)
    put_truth(*map(usual, CASES))
    return FOLDER


def imported(*arguments: object) -> str:
    done = command("import", "warwick", FOLDER, *arguments)
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.output


def reasons(out: Path = Path("warwick")) -> dict[str, str]:
    left = json.loads((out / "import.json").read_text())["left_out"]
    return {one["name"]: one["reason"] for one in left}


def test_the_contest_becomes_a_manifest_that_is_accepted(contest):
    said = imported()
    rows = manifest_rows(Path("warwick"))
    assert list(rows) == [f"warwick-{case:02}_HE" for case in CASES]
    for case in CASES:
        assert rows[f"warwick-{case:02}_HE"] == {
            "slide_id": f"warwick-{case:02}_HE",
            "path": f"{case:02}_HE.ndpi",
            "patient_id": f"warwick-{case:02}",
            "her2": ("0", "1+", "2+", "3+")[case % 4],
            "her2_status": ("negative", "negative", "", "positive")[case % 4],
            "her2_percent": str(10 * (case % 4)),
        }
    assert "32 slides of 32 patients" in said
    assert "no problems found" in assert_checked(Path("warwick"), "warwick")


def test_no_slide_is_taken_for_he_that_is_not_called_so(contest):
    ihc = ["HER2", "Her2", "HeR2", "HER-2", "HER2 (2)", "HER2_rescan", "IHC", "HE_HER2", "HER2_HE"]
    unclear = ["HE2", "H", "HEX", "Kopie"]
    for n, name in enumerate([*ihc, *unclear]):
        put_slide(contest / f"01_{name}.svs", 300 + n)
    imported()
    assert all(row["path"].endswith("_HE.ndpi") for row in manifest_rows(Path("warwick")).values())
    for name in ihc:
        assert reasons()[f"01_{name}.svs"] == "is the IHC slide, which shows the answer"
    for name in unclear:
        assert "does not say that it is H&E" in reasons()[f"01_{name}.svs"]


def test_several_slides_of_a_case_are_one_patients(contest):
    names = ["HE (2)", "he", "H&E", "H_E", "HE_2", "HE_rescan"]
    for n, name in enumerate(names):
        put_slide(contest / f"1_{name}.svs", 300 + n)
    imported()
    rows = manifest_rows(Path("warwick"))
    assert len(rows) == len(CASES) + len(names)
    same = [row["her2"] for row in rows.values() if row["patient_id"] == "warwick-01"]
    assert same == ["1+"] * (1 + len(names))


def test_copies_in_another_folder_are_left_out(contest):
    put_slide(contest / "training/01_HE.ndpi", 1)
    put_slide(contest / "test/02_HE.ndpi", 320)
    imported()
    rows = manifest_rows(Path("warwick"))
    assert rows["warwick-01_HE"]["path"] == "01_HE.ndpi"
    assert "warwick-02_HE" not in rows
    why = reasons()
    assert why["training/01_HE.ndpi"] == "is a copy of 01_HE.ndpi: the same content"
    assert "whose content is another" in why["02_HE.ndpi"]
    assert "whose content is another" in why["test/02_HE.ndpi"]


def test_cases_without_truth_or_without_he_are_named(contest):
    (contest / "02_HE.ndpi").unlink()
    put_slide(contest / "90_HE.ndpi", 310)
    put_slide(contest / "91_Her2.ndpi", 311)
    put_slide(contest / "92_HE.ndpi.part", 312)
    put_truth(*map(usual, CASES), (50, 1, 5), (50, 1, 5))
    (contest / "06_HE.ndpi").rename(contest / "86_HE.ndpi")
    said = imported()
    rows = manifest_rows(Path("warwick"))
    assert rows["warwick-90_HE"]["her2"] == rows["warwick-86_HE"]["her2"] == ""
    assert "groundTruth.xlsx does not have were taken without a label: 86, 90" in said
    why = reasons()
    assert why["case 02"] == why["case 06"] == why["case 91"] == "has no H&E slide in the folder"
    assert why["case 50 of groundTruth.xlsx"] == "has no slide in the folder"
    assert "unfinished" in why["92_HE.ndpi.part"]
    assert why["03_Her2.ndpi"] == why["04_HER2.ndpi"] == "is the IHC slide, which shows the answer"


def test_a_cell_is_read_where_it_is_clear_and_else_left_empty(contest):
    rows: list[tuple[tuple[Cell, ...], str, str, str]] = [
        (("1.0", "3", "80%"), "3+", "80", ""),
        (("02", 2.0, "12,5"), "2+", "12.5", ""),
        (("Case 3", "NA", "NA"), "", "", ""),
        ((4, None, None), "", "", ""),
        ((5, 4, 10), "", "10", "case 05: score '4' is none of 0 to 3"),
        ((6, "1 or 2", 10), "", "10", "case 06: score '1 or 2' is none of 0 to 3"),
        ((7, 3, 800), "3+", "", "case 07: percentage '800' is none"),
        ((8, 3, "> 10"), "3+", "", "case 08: percentage '> 10' is none"),
    ]
    put_truth(*(row for row, *_ in rows), *map(usual, CASES[8:]))
    output = imported()
    for number, (_, her2, percent, said) in enumerate(rows, start=1):
        found = manifest_rows(Path("warwick"))[f"warwick-{number:02}_HE"]
        assert (found["her2"], found["her2_percent"]) == (her2, percent)
        assert said in output
        assert bool(said) == (f"case {number:02}:" in output)


def test_rows_that_contradict_each_other_or_have_no_case_give_no_label(contest):
    put_truth(*map(usual, CASES), (1, 3, 90), ("unknown", 3, 90))
    said = imported()
    assert manifest_rows(Path("warwick"))["warwick-01_HE"]["her2"] == ""
    assert "case 01: has different rows (1 / 10; 3 / 90): no label" in said
    assert "row 35: CaseNo 'unknown' is no number" in said


def test_a_wrong_folder_or_truth_is_said_with_what_is_right(contest):
    Path("empty").mkdir()
    put_slide(Path("others/H23 1 HE.svs"), 1)
    put_truth((901, 1, 1), path=Path("disjoint.xlsx"))
    write_xlsx(Path("other.xlsx"), {"A": [("Case", "Score"), (1, 2)]})
    wrong = [
        (("none",), "none: does not exist"),
        ((FOLDER / "groundTruth.xlsx",), "Name the folder of the contest's slides"),
        (("empty",), "has no slide of the contest"),
        (("others",), "what it has is like 'H23 1 HE.svs'"),
        ((FOLDER, "--truth", "other.xlsx"), "has no column"),
        ((FOLDER, "--truth", "none.xlsx"), "none.xlsx: does not exist"),
        ((FOLDER, "--truth", "disjoint.xlsx"), "has none of the 32 cases with slides"),
    ]
    for arguments, words in wrong:
        done = command("import", "warwick", *arguments)
        assert isinstance(done.exception, UserError), (arguments, done.output)
        assert words in str(done.exception), arguments
    put_truth((1, 1, 1), path=FOLDER / "Ground Truth.xlsx")
    done = command("import", "warwick", FOLDER)
    assert "there is several (" in str(done.exception)
    for path in FOLDER.glob("*.xlsx"):
        path.unlink()
    done = command("import", "warwick", FOLDER)
    assert "there is none; name the file with --truth" in str(done.exception)
    assert not Path("warwick").exists()
