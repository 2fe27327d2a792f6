"""Yale's collection becomes a manifest with two tasks, and TCGA's patients are not among it."""

import json
from pathlib import Path

import pytest

from her2.core.errors import UserError
from her2.slides.annotations import chosen_regions, region_mask
from tests.unit.cohort_makers import assert_checked, manifest_rows, put_slide
from tests.unit.sheet_makers import write_xlsx
from tests.unit.test_cli import command

PACKAGE = Path("PKG-HER2tumorROIs_v3")
HER2 = PACKAGE / "Yale_HER2_cohort"
RESPONSE = PACKAGE / "Yale_trastuzumab_response_cohort"
SHEET = RESPONSE / "Yale_trastuzumab_response_cohort_metadata_clean.xlsx"
STEMS = [f"Her2{side}_Case_{n:02}" for n in range(1, 8) for side in ("Neg", "Pos")]
PATIENTS = [f"Pt {n}" for n in range(1, 13)]
TCGA = "TCGA-A1-A0SB-01Z-00-DX1.B34C267B-CAC5-415F-8D23-1F0B5A4CAE1C"


def region(negative: int, *points: tuple[int, int]) -> str:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    return (
        f'<Region Id="1" Type="0" NegativeROA="{negative}"><Vertices>{vertices}</Vertices></Region>'
    )


def box(low: int, high: int) -> tuple[tuple[int, int], ...]:
    return (low, low), (high, low), (high, high), (low, high)


ROI = (
    '<?xml version="1.0"?><Annotations MicronsPerPixel="0.5"><Annotation Id="1"><Regions>'
    f"{region(0, *box(100, 400))}{region(1, *box(200, 300))}</Regions></Annotation></Annotations>"
)


def put_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def put_sheet(rows: list[tuple[str | int, str]], *above: tuple[str, ...]) -> Path:
    SHEET.parent.mkdir(parents=True, exist_ok=True)
    return write_xlsx(SHEET, {"Sheet1": [*above, ("Patient", "Responder"), *rows]}, strict=True)


@pytest.fixture(params=["Annotations", "Annotation"])
def spelling(request) -> str:
    return str(request.param)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """14 slides of the HER2 cohort with regions and 12 of the response cohort."""
    monkeypatch.chdir(tmp_path)
    for n, stem in enumerate(STEMS):
        put_slide(HER2 / f"SVS/{stem}.svs", n, 0.5)
        put_text(HER2 / f"Annotations/{stem}.xml", ROI)
    for n, patient in enumerate(PATIENTS):
        put_slide(RESPONSE / f"SVS/{patient}.svs", 100 + n, 0.5)
        put_text(RESPONSE / f"Annotation/{patient}.xml", ROI)
    put_sheet([(one, ("responder", "non-responder")[n % 2]) for n, one in enumerate(PATIENTS)])
    return PACKAGE


def imported(*arguments: object) -> str:
    done = command("import", "yale", PACKAGE, *arguments)
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.output


def reasons(out: Path = Path("yale")) -> dict[str, str]:
    left = json.loads((out / "import.json").read_text())["left_out"]
    return {Path(one["name"]).name: one["reason"] for one in left}


def test_the_collection_becomes_a_manifest_that_is_accepted(package):
    said = imported()
    rows = manifest_rows(Path("yale"))
    assert list(rows) == sorted(rows)
    assert len(rows) == 26
    for stem in STEMS:
        assert rows[stem] == {
            "slide_id": stem,
            "path": f"Yale_HER2_cohort/SVS/{stem}.svs",
            "patient_id": stem,
            "her2_status": "positive" if "Pos" in stem else "negative",
            "response": "",
            "annotation": f"Yale_HER2_cohort/Annotations/{stem}.xml",
        }
    for n, patient in enumerate(PATIENTS):
        one = f"response-{patient.replace(' ', '-')}"
        assert rows[one] == {
            "slide_id": one,
            "path": f"Yale_trastuzumab_response_cohort/SVS/{patient}.svs",
            "patient_id": one,
            "her2_status": "",
            "response": ("responder", "non-responder")[n % 2],
            "annotation": f"Yale_trastuzumab_response_cohort/Annotation/{patient}.xml",
        }
    assert "26 slides of 26 patients" in said
    assert "0.5 (metadata): 26" in said
    assert "no problems found" in assert_checked(Path("yale"), "yale")


def test_regions_are_found_in_either_folder_and_negative_ones_are_holes(package, spelling):
    if spelling == "Annotation":
        (HER2 / "Annotations").rename(HER2 / "Annotation")
    (HER2 / f"{spelling}/{STEMS[0]}.xml").unlink()
    said = imported()
    rows = manifest_rows(Path("yale"))
    assert rows[STEMS[0]]["annotation"] == ""
    assert f"1 slides have no drawn region, so their whole tissue is tiled: {STEMS[0]}" in said
    drawn = package / rows[STEMS[1]]["annotation"]
    assert drawn == HER2 / f"{spelling}/{STEMS[1]}.xml"
    mask = region_mask(chosen_regions(drawn, ()), (512, 512), size_px=(512, 512))
    assert [bool(mask[at, at]) for at in (50, 150, 250, 350, 450)] == [0, 1, 0, 1, 0]
    imported("--regions", "ignore", "--out", "whole")
    assert "annotation" not in manifest_rows(Path("whole"))[STEMS[1]]


def test_patients_of_tcga_are_named_and_left_out_unless_they_are_asked_for(package):
    put_slide(PACKAGE / f"TCGA_cohort/SVS/{TCGA}.svs", 200, 0.5)
    put_slide(PACKAGE / f"TCGA_cohort/SVS/Her2Pos_{TCGA.replace('A0SB', 'A0SC')}.svs", 201, 0.5)
    put_text(PACKAGE / f"TCGA_cohort/Annotations/{TCGA}.xml", ROI)
    put_text(PACKAGE / "TCGA_cohort/Annotations/TCGA-BH-A0B3-01Z-00-DX1.xml", ROI)
    imported()
    why = reasons()
    assert "is of TCGA-A1-A0SB, a patient of TCGA-BRCA" in why[f"{TCGA}.svs"]
    assert "--tcga take" in why[f"{TCGA}.svs"]
    assert f"{TCGA}.xml" not in why
    assert "is an annotation without a slide; it is of TCGA-BH-A0B3" in why[
        "TCGA-BH-A0B3-01Z-00-DX1.xml"
    ]  # fmt: skip
    assert not any("TCGA" in name for name in manifest_rows(Path("yale")))
    imported("--tcga", "take", "--out", "both")
    row = manifest_rows(Path("both"))[TCGA]
    assert (row["patient_id"], row["her2_status"]) == ("TCGA-A1-A0SB", "")
    assert row["annotation"] == f"TCGA_cohort/Annotations/{TCGA}.xml"


def test_no_slide_gets_the_regions_of_another_cohorts_slide(package):
    same = f"{STEMS[0]}.svs"
    put_slide(RESPONSE / "SVS" / same, 230, 0.5)
    put_sheet([(STEMS[0], "yes"), *((one, ("yes", "no")[n % 2]) for n, one in enumerate(PATIENTS))])
    said = imported()
    rows = manifest_rows(Path("yale"))
    assert rows[STEMS[0]]["annotation"] == f"Yale_HER2_cohort/Annotations/{STEMS[0]}.xml"
    assert rows[f"response-{STEMS[0]}"]["annotation"] == ""
    assert rows[f"response-{STEMS[0]}"]["her2_status"] == ""
    assert f"their whole tissue is tiled: response-{STEMS[0]}" in said


def test_copies_are_left_out_and_two_slides_of_one_name_are_not_told_apart(package):
    put_slide(HER2 / f"Kopie von SVS/{STEMS[12]}.svs", 12, 0.5)
    put_slide(HER2 / f"Kopie von SVS/{STEMS[13]}.svs", 240, 0.5)
    imported()
    rows = manifest_rows(Path("yale"))
    assert STEMS[12] in rows
    assert STEMS[13] not in rows
    left = json.loads(Path("yale/import.json").read_text())["left_out"]
    why = {one["name"]: one["reason"] for one in left}
    place = "Yale_HER2_cohort/{}/{}.svs"
    first, copy = (place.format(name, STEMS[12]) for name in ("Kopie von SVS", "SVS"))
    assert why == {
        copy: f"is a copy of {first}: the same content",
        **{
            place.format(here, STEMS[13]): (
                f"would have the id of {place.format(there, STEMS[13])}, whose content is another; "
                "delete the wrong one, or rename one of them"
            )
            for here, there in (("SVS", "Kopie von SVS"), ("Kopie von SVS", "SVS"))
        },
    }


def test_several_slides_of_a_patient_stay_together(package):
    put_slide(HER2 / "SVS/Her2Pos_Case_01 (2).svs", 210, 0.5)
    put_slide(HER2 / "SVS/HER2pos_case_1_level 3.svs", 211, 0.5)
    put_slide(RESPONSE / "SVS/Pt 1 block B.svs", 212, 0.5)
    imported()
    rows = manifest_rows(Path("yale"))
    same = [name for name, row in rows.items() if row["patient_id"] == "Her2Pos_Case_01"]
    assert sorted(same) == ["HER2pos_case_1_level-3", "Her2Pos_Case_01", "Her2Pos_Case_01-2"]
    assert {rows[one]["her2_status"] for one in same} == {"positive"}
    assert rows["response-Pt-1-block-B"]["patient_id"] == "response-Pt-1"
    assert rows["response-Pt-10"]["patient_id"] == "response-Pt-10"


def test_a_response_is_read_where_it_is_clear_and_else_left_empty(package):
    answers = {
        "Responder": "responder", "Non-Responder": "non-responder", "yes": "responder",
        "No": "non-responder", "1": "responder", "0": "non-responder", "nonresponder":
        "non-responder", "Y": "responder", "TRUE": "responder", "partial": "", "NA": "", "": "",
    }  # fmt: skip
    rows = list(zip(PATIENTS, answers, strict=True))
    more = [f"Pt {n}" for n in range(20, 22)]
    for n, patient in enumerate(more):
        put_slide(RESPONSE / f"SVS/{patient}.svs", 300 + n, 0.5)
    put_sheet([*rows, *((one, "Non-responder") for one in more), ("Pt 99", "yes")], ("Table S3",))
    said = imported()
    found = manifest_rows(Path("yale"))
    for patient, answer in rows:
        one = f"response-{patient.replace(' ', '-')}"
        assert found[one]["response"] == answers[answer], answer
    assert "response of patient Pt 10: 'partial' is no answer that is known: left empty" in said
    assert "1 conflict" in said
    assert "has no slide" in reasons()[f"patient Pt 99 of {SHEET.name}"]
    assert "the header is row 2" in said


def test_a_patient_with_two_answers_has_none(package):
    put_sheet([(PATIENTS[0], "Responder"), *((one, "Responder") for one in PATIENTS[1:]),
               (PATIENTS[0], "Non-responder")])  # fmt: skip
    done = command("import", "yale", PACKAGE)
    assert "rows differ ('Non-responder', 'Responder')" in done.output
    assert manifest_rows(Path("yale"))["response-Pt-1"]["response"] == ""


def test_a_slide_that_is_in_no_cohort_or_cannot_be_used_is_named(package):
    put_slide(HER2 / "SVS/Bräuer 7.svs", 220, 0.5)
    put_text(HER2 / "SVS/Her2Pos_Case_93.svs", "not a slide")
    put_slide(HER2 / "SVS/Her2Pos_Case_92.svs.part", 221, 0.5)
    put_text(HER2 / f"Annotations/{STEMS[2]}.xml", "<Annotations>")
    put_text(HER2 / f"Annotations/{STEMS[3]}.xml", "<Annotations/>")
    put_text(HER2 / f"Annotation/{STEMS[4]}.xml", ROI.replace("400", "401"))
    put_text(HER2 / f"Annotation/{STEMS[5]}.xml", ROI)
    imported()
    why = reasons()
    assert "is neither named like Her2Pos_Case_01 nor like a patient of" in why["Bräuer 7.svs"]
    assert "unfinished download" in why["Her2Pos_Case_92.svs.part"]
    assert any("Her2Pos_Case_93" in name for name in why)
    assert "its annotation" in why[f"{STEMS[2]}.svs"]
    assert "has no region with an area" in why[f"{STEMS[3]}.svs"]
    assert "has different annotations" in why[f"{STEMS[4]}.svs"]
    rows = manifest_rows(Path("yale"))
    assert rows[STEMS[5]]["annotation"]
    assert not {"Her2Pos_Case_93", STEMS[2], STEMS[3], STEMS[4]} & rows.keys()


def test_one_cohort_alone_is_imported_with_its_own_task(package):
    done = command("import", "yale", HER2)
    assert done.exit_code == 0, done.output
    assert "task 'response' is a comment in the config" in done.output
    done = command("import", "yale", RESPONSE, "--out", "response")
    assert done.exit_code == 0, done.output
    assert "task 'status' is a comment in the config" in done.output
    assert len(manifest_rows(Path("response"))) == 12
    assert_checked(Path("response"), "yale")
    moved = SHEET.rename("answers.xlsx")
    done = command("import", "yale", RESPONSE, "--out", "response", "--response", moved)
    assert done.exit_code == 0, done.output
    imported("--out", "her2")
    assert "no workbook of the response" in reasons(Path("her2"))["Pt 1.svs"]


def test_a_wrong_folder_is_said_with_what_is_right(package):
    Path("empty").mkdir()
    put_slide(Path("others/1.svs"), 1)
    moved = SHEET.rename("answers.xlsx")
    write_xlsx(Path("other.xlsx"), {"A": [("Case", "Answer"), (1, "yes")]})
    write_xlsx(Path("alike.xlsx"), {"A": [("Patient", "Responder"), ("a b", "yes"), ("a-b", "no")]})
    wrong = [
        (("none",), "none: does not exist"),
        (("answers.xlsx",), "Name the folder of the collection"),
        (("empty",), "has no slide of Yale's cohorts"),
        (("others",), "what it has is like '1.svs'"),
        ((RESPONSE,), "needs its workbook, too (--response)"),
        ((RESPONSE, "--response", "other.xlsx"), "has no column 'Patient'"),
        ((RESPONSE, "--response", "alike.xlsx"), "'a b' and 'a-b' become one id"),
    ]
    for arguments, words in wrong:
        done = command("import", "yale", *arguments)
        assert isinstance(done.exception, UserError), (arguments, done.output)
        assert words in str(done.exception), arguments
    moved.rename(SHEET)
    write_xlsx(PACKAGE / "old response.xlsx", {"A": [("Patient", "Responder"), (1, "yes")]})
    done = command("import", "yale", PACKAGE)
    assert "has several workbooks of the response" in str(done.exception)
    assert not Path("yale").exists()
