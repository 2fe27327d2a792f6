"""BCNB as it was published: flat JPEG, outlines, a clinical sheet, and lists of the split."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from her2.core.files import file_digest
from her2.slides.annotations import read_regions, region_mask
from her2.slides.backends import flat
from her2.slides.slide import Slide
from tests.unit.sheet_makers import write_xlsx
from tests.unit.test_cli import command, failing

CASES = range(1, 25)
HEADER = (
    "Patient ID", "Age(years)", "Tumour Size(cm)", "Tumour Type", "ER", "PR", "HER2",
    "HER2 Expression", "Histological grading", "Surgical", "Ki67", "Molecular subtype",
    "Number of lymph node metastases", "ALN status",
)  # fmt: skip
PART = {"train": range(1, 13), "val": range(13, 19), "test": range(19, 25)}
CLINICAL = "BCNB/patient-clinical-data.xlsx"
UUID = "1f0d8ab2-52ea-4d1c-9f4b-0b8bba6a3b1e"


def clinical_row(case: int) -> list[Any]:
    score = case % 4
    positive = score == 3 or (score == 2 and case % 8 == 2)
    return [case, 30 + case, 2.5, "Invasive ductal carcinoma", "Positive", "Negative",
            "Positive" if positive else "Negative", f"{score}{'+' if score else ''}", 2,
            "Surgery", "<14%", "Luminal A", 0, "N0"]  # fmt: skip


def write_clinical(rows: list[list[Any]]) -> None:
    write_xlsx(Path(CLINICAL), {"Sheet1": [HEADER, *rows]})


def write_list(part: str, cases: Any) -> None:
    path = Path(f"BCNB/dataset-splitting/{part}_id.txt")
    path.write_bytes("".join(f"{case}\r\n" for case in cases).encode())


def write_outlines(case: int | str, value: Any) -> None:
    Path(f"BCNB/WSIs/{case}.json").write_text(json.dumps(value))


@pytest.fixture
def bcnb(tmp_path, monkeypatch) -> Path:
    """The folder as it is downloaded, with slides of 1280 x 1024 px, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("WSIs", "dataset-splitting"):
        Path("BCNB", folder).mkdir(parents=True)
    square = {"vertices": [[8, 8], [40, 8], [40, 40], [8, 40]]}
    for case in CASES:
        Image.new("RGB", (1280, 1024), (200, 5 * case, 180)).save(f"BCNB/WSIs/{case}.jpg")
        write_outlines(case, {"positive": [square], "negative": [{"vertices": [[0, 0]] * 3}]})
    write_clinical([clinical_row(case) for case in CASES])
    for part, cases in PART.items():
        write_list(part, cases)
    return Path("BCNB")


def rows_of() -> list[dict[str, str]]:
    with Path("bcnb/slides.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("bcnb/import.json").read_text())
    return found


def left_out() -> dict[str, str]:
    return {one["name"]: one["reason"] for one in record()["left_out"]}


def run(*options: str) -> str:
    result = command("import", "bcnb", "BCNB", "--mpp", "0.25", *options)
    assert result.exit_code == 0, (result.output, result.exception)
    return str(result.output)


def check() -> str:
    done = command("cohort", "check", "bcnb/slides.csv", "--config", "bcnb/bcnb.yaml")
    return str(done.output)


def test_the_published_form_becomes_a_manifest_that_the_check_accepts(bcnb, tmp_path):
    Image.new("RGB", (8, 8)).save(bcnb / f"WSIs/{UUID}.jpg")
    before = {path: file_digest(path) for path in bcnb.rglob("*") if path.is_file()}
    output = run()
    splits = {case: part for part, cases in PART.items() for case in cases}
    assert rows_of() == [
        {
            "slide_id": f"bcnb-{case}",
            "path": f"WSIs/{case}.jpg",
            "patient_id": f"bcnb-{case}",
            "her2": truth[7],
            "her2_status": truth[6].lower(),
            "split": {"val": "tune"}.get(splits[case], splits[case]),
            "mpp": "0.25",
            "annotation": str(tmp_path / f"bcnb/annotations/bcnb-{case}.geojson"),
            "age": str(truth[1]),
            "er": "Positive",
            "pr": "Negative",
        }
        for case in CASES
        for truth in [clinical_row(case)]
    ]
    assert left_out() == {f"WSIs/{UUID}.jpg": "its name is not the number of a case, as in 12.jpg"}
    assert "bcnb: 24 slides of 24 patients" in output
    assert "0.25 (manifest): 24" in output
    assert [Path(one["path"]).name for one in record()["inputs"]] == [
        "patient-clinical-data.xlsx", "train_id.txt", "val_id.txt", "test_id.txt",
    ]  # fmt: skip
    assert "24 slides of 24 patients, no problems found" in check()
    assert {path: file_digest(path) for path in bcnb.rglob("*") if path.is_file()} == before


def test_the_um_px_is_asked_for_with_the_reason(bcnb, monkeypatch, capsys):
    said = failing(monkeypatch, capsys, "import", "bcnb", "BCNB")
    assert "--mpp is required" in said
    assert "published nowhere" in said
    for mpp in ("0", "nan", "50"):
        said = failing(monkeypatch, capsys, "import", "bcnb", "BCNB", "--mpp", mpp)
        assert f"--mpp {mpp}: is not between" in said
    assert not Path("bcnb").exists()


# Outlines


def test_positive_outlines_become_annotations_and_negative_ones_do_not(bcnb):
    run()
    regions = read_regions(Path("bcnb/annotations/bcnb-3.geojson"))
    assert [(one.name, one.negative) for one in regions] == [("positive", False)]
    mask = region_mask(regions, (64, 80), size_px=(80, 64))
    expected = np.zeros((64, 80), bool)
    expected[8:40, 8:40] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("value", "said", "used"),
    [
        (None, "json does not exist", False),
        ({"positive": [], "negative": []}, "no outline `positive`", False),
        ({"negative": []}, "not of BCNB's form", False),
        ([1, 2], "not of BCNB's form", False),
        ({"positive": [{"vertices": [[0, float("nan")], [1, 1], [2, 2]]}]}, "not of BCNB's", False),
        ({"positive": [{"vertices": [[1, 1], [9, 9]]}, {"vertices": [[0, 0], [9, 0], [9, 9]]}]},
         "some have fewer than 3 points, so that the others are used", True),
    ],
)  # fmt: skip
def test_slides_whose_outlines_cannot_be_used_are_named_and_stay(bcnb, value, said, used):
    if value is None:
        Path("BCNB/WSIs/3.json").unlink()
    else:
        write_outlines(3, value)
    run()
    assert len(rows_of()) == 24
    assert bool(rows_of()[2]["annotation"]) == used
    (conflict,) = record()["conflicts"]
    assert said in conflict
    assert "bcnb-3" in conflict


def test_outlines_can_be_ignored(bcnb):
    run("--outlines", "ignore")
    assert "annotation" not in rows_of()[0]
    assert not Path("bcnb/annotations").exists()


def test_outlines_that_a_person_corrected_are_never_written_over(bcnb, monkeypatch, capsys):
    run()
    mine = Path("bcnb/annotations/bcnb-3.geojson")
    mine.write_text(mine.read_text().replace("40", "44"))
    said = failing(monkeypatch, capsys, "import", "bcnb", "BCNB", "--mpp", "0.25")
    assert "these outlines were changed since they were imported" in said
    assert "bcnb-3.geojson" in said
    assert "44" in mine.read_text()
    mine.rename("corrected.geojson")
    write_outlines(4, {"positive": [{"vertices": [[1, 1], [9, 1], [9, 9]]}], "negative": []})
    run()  # an outline that the data set itself changed is written anew
    assert len(read_regions(Path("bcnb/annotations/bcnb-4.geojson"))[0].rings[0]) == 4


# Split and labels


@pytest.mark.parametrize(
    ("part", "cases", "said"),
    [
        ("val", [*PART["val"], 1], "cases in more than one list: 1 (train_id.txt and val_id.txt)"),
        ("test", [*PART["test"]][1:], "in none of the lists: 19"),
        ("test", [*PART["test"], 99], "does not have: 99"),
        ("test", [*PART["test"], "x"], "test_id.txt, line 7: 'x' is no number of a case"),
        ("test", None, "test_id.txt: is there 0 times"),
    ],
)  # fmt: skip
def test_a_split_that_is_not_the_published_one_is_refused(
    bcnb, monkeypatch, capsys, part, cases, said
):
    if cases is None:
        (bcnb / f"dataset-splitting/{part}_id.txt").unlink()
    else:
        write_list(part, cases)
    assert said in failing(monkeypatch, capsys, "import", "bcnb", "BCNB", "--mpp", "0.25")
    assert not Path("bcnb").exists()


def test_without_the_lists_slides_are_cross_validated_and_it_is_said(bcnb):
    (bcnb / "dataset-splitting").rename("lists")
    assert "no lists of the official split are here" in run()
    assert "split" not in rows_of()[0]
    assert "24 slides of 24 patients, no problems found" in check()
    run("--splits", "lists")
    assert rows_of()[12]["split"] == "tune"


def test_a_status_that_contradicts_the_score_is_listed_and_left_empty(bcnb):
    rows = [clinical_row(case) for case in CASES]
    rows[2][6] = "Negative"  # of 3+
    rows[4][7] = "1+ to 2+"
    write_clinical(rows)
    run()
    assert (rows_of()[2]["her2"], rows_of()[2]["her2_status"]) == ("3+", "")
    assert rows_of()[4]["her2"] == ""
    conflicts = record()["conflicts"]
    assert conflicts[0].startswith("bcnb-3: HER2 Expression 3+ yet HER2 negative")
    assert "case 5: HER2 Expression '1+ to 2+'" in conflicts[1]


def test_what_belongs_to_no_slide_or_is_broken_is_named(bcnb):
    (bcnb / "WSIs/1.jpg").unlink()
    write_outlines(UUID, {"positive": [], "negative": []})
    broken = bcnb / "WSIs/2.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (bcnb / "WSIs/30.jpg.part").write_bytes(b"half")
    (bcnb / "WSIs/more").mkdir()
    Image.new("RGB", (8, 8)).save(bcnb / "WSIs/more/03.jpg")
    run()
    reasons = left_out()
    assert reasons["1 case(s) of patient-clinical-data.xlsx"] == "no slide: 1"
    assert reasons["WSIs/1.json"] == "has outlines of case 1, whose slide is not here"
    assert "is not the number" in reasons[f"WSIs/{UUID}.json"]
    assert "truncated" in reasons["bcnb-2 (BCNB/WSIs/2.jpg)"]
    assert "has not finished" in reasons["WSIs/30.jpg.part"]
    assert reasons["WSIs/more/03.jpg"] == "is case 3 as WSIs/3.jpg is; keep one of them"


# Conversion


def test_converted_slides_are_pyramids_with_um_px_and_a_second_import_keeps_them(bcnb):
    (bcnb / "WSIs/2.jpg").write_bytes((bcnb / "WSIs/2.jpg").read_bytes()[:400])
    run("--convert", "--threads", "2")
    assert len(rows_of()) == 23
    assert "cannot be converted" in left_out()["bcnb-2"]
    assert rows_of()[0]["path"] == "slides/bcnb-1.tif"
    assert rows_of()[0]["annotation"] == "annotations/bcnb-1.geojson"
    with Slide(Path("bcnb/slides/bcnb-3.tif")) as slide, Slide(bcnb / "WSIs/3.jpg") as original:
        assert slide.scale().mpp_x == pytest.approx(0.25)
        found, expected = (one.region(0, 0, 80, 64, (80, 64)) for one in (slide, original))
    assert np.abs(found.astype(int) - expected).max() <= 2
    assert "23 slides of 23 patients, no problems found" in check()
    times = {path: path.stat().st_mtime_ns for path in Path("bcnb/slides").iterdir()}
    run("--convert")
    assert {path: path.stat().st_mtime_ns for path in Path("bcnb/slides").iterdir()} == times


def test_a_slide_above_the_limit_is_left_out_with_the_mend_and_converted_it_is_in(
    bcnb, monkeypatch
):
    monkeypatch.setattr(flat, "LARGEST_BYTES", 1280 * 1024 * 4)
    Image.new("RGB", (1281, 1024), (200, 100, 180)).save(bcnb / "WSIs/5.jpg")
    run()
    reason = left_out()["bcnb-5 (BCNB/WSIs/5.jpg)"]
    assert "has 1,281 x 1,024 px" in reason
    assert "1,310,720 px of its kind" in reason
    assert "her2 import bcnb --convert" in reason
    assert len(rows_of()) == 23
    run("--convert")
    assert len(rows_of()) == 24
