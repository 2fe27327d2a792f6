"""TCGA-BRCA as the GDC gives it becomes a manifest in which no label is another tissue's."""

import hashlib
import itertools
import json
from pathlib import Path
from uuid import UUID

import pytest

from her2.core.barcodes import slide_name
from her2.core.errors import UserError
from her2.importing.sources.tcga_brca import read
from her2.importing.tcga import Results, her2_labels, read_clinical
from tests.unit.cohort_makers import assert_checked, manifest_rows, put_slide
from tests.unit.sheet_makers import write_xlsx
from tests.unit.test_cli import command

SITES = ("A1", "A2", "A7", "BH", "E2", "GM")
BIOTAB = "nationwidechildrens.org_clinical_patient_brca.txt"
HEADERS = (
    ("bcr_patient_uuid", "bcr_patient_barcode", "tissue_source_site", "her2_status_by_ihc",
     "her2_ihc_score", "her2_fish_status", "nte_her2_status_ihc_score"),
    ("bcr_patient_uuid", "bcr_patient_barcode", "tissue_source_site",
     "lab_proc_her2_neu_immunohistochemistry_receptor_status",
     "her2_immunohistochemistry_level_result",
     "lab_procedure_her2_neu_in_situ_hybrid_outcome_type",
     "nte_her2_immunohistochemistry_level_result"),
    ("CDE_ID:", "CDE_ID:2003301", "CDE_ID:", "CDE_ID:2957563", "CDE_ID:2178402",
     "CDE_ID:2854089", "CDE_ID:"),
)  # fmt: skip
STATED = {"0": "Negative", "1+": "Negative", "2+": "Equivocal", "3+": "Positive"}
FISH = {"2+": "Positive"}
USUAL = [
    (f"TCGA-{site}-{n:04}", score, STATED[score], FISH.get(score, "[Not Evaluated]"))
    for n, (site, score) in enumerate(itertools.product(SITES, STATED))
]


def barcode(patient: str, end: str = "01Z-00-DX1") -> str:
    return f"{patient}-{end}.{str(UUID(int=hash_of(patient + end))).upper()}.svs"


def hash_of(text: str) -> int:
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), 16)


def biotab(path: Path, patients: list[tuple[str, str, str, str]]) -> Path:
    rows = [
        (str(UUID(int=hash_of(one))), one, one[5:7], stated, score, fish, "3+")
        for one, score, stated, fish in patients
    ]
    text = "\n".join("\t".join(row) for row in (*HEADERS, *rows))
    path.write_text(text + "\n")
    return path


def put(folder: Path, name: str, number: int) -> Path:
    """Write a slide into a folder of its own, as gdc-client does, with the client's log."""
    place = folder / str(UUID(int=hash_of(name)))
    (place / "logs").mkdir(parents=True, exist_ok=True)
    (place / "logs" / f"{name}.parcel").write_bytes(b"\0")
    return put_slide(place / name, number)


def gdc_manifest(path: Path, files: list[Path]) -> Path:
    lines = ["id\tfilename\tmd5\tsize\tstate"]
    for one in files:
        content = one.read_bytes()
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        lines.append(f"{one.parent.name}\t{one.name}\t{digest}\t{len(content)}\treleased")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def download(here) -> Path:
    """24 patients of six sites with a diagnostic slide each; the first has two."""
    folder = here / "gdc"
    for n, (patient, *_) in enumerate(USUAL):
        put(folder, barcode(patient), n)
    put(folder, barcode(USUAL[0][0], "01Z-00-DX2"), 100)
    biotab(here / BIOTAB, USUAL)
    return folder


def reasons(out: Path = Path("tcga-brca")) -> dict[str, str]:
    record = json.loads((out / "import.json").read_text())
    return {Path(one["name"]).name: one["reason"] for one in record["left_out"]}


def imported(*arguments: object) -> str:
    done = command("import", "tcga-brca", "gdc", *arguments)
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.output


def test_a_download_becomes_a_manifest_that_is_accepted(download):
    listed = gdc_manifest(Path("gdc_manifest.txt"), sorted(download.glob("*/*.svs")))
    said = imported("--clinical", BIOTAB, "--manifest", listed)
    rows = manifest_rows(Path("tcga-brca"))
    assert list(rows) == sorted(rows)
    assert len(rows) == 25
    for patient, score, _, _ in USUAL:
        row = rows[f"{patient}-01Z-00-DX1"]
        assert row == {
            "slide_id": f"{patient}-01Z-00-DX1",
            "path": f"{UUID(int=hash_of(barcode(patient)))}/{barcode(patient)}",
            "patient_id": patient,
            "her2": score,
            "her2_status": "negative" if score in ("0", "1+") else "positive",
            "fish": "positive" if score == "2+" else "",
            "site": patient[5:7],
        }
    assert rows["TCGA-A1-0000-01Z-00-DX2"]["patient_id"] == "TCGA-A1-0000"
    assert "25 slides of 24 patients" in said
    assert "sizes and MD5 of 25 slides are those of gdc_manifest.txt" in said
    assert "0.25 (metadata): 25" in said
    assert "no problems found" in assert_checked(Path("tcga-brca"), "tcga-brca")


def test_no_slide_inherits_the_label_of_another_tissue(download):
    one = USUAL[3][0]
    ends = {
        "11A-01-TS1": "normal tissue (sample type 11)",
        "10A-01-BS1": "normal tissue (sample type 10)",
        "06A-01-TS1": "a metastasis (sample type 06)",
        "06Z-00-DX1": "a metastasis (sample type 06)",
        "02A-01-TS1": "no primary tumour (sample type 02)",
        "01A-01-TS1": "is a frozen slide",
    }
    for n, end in enumerate(ends):
        put(download, barcode(one, end), 200 + n)
    before = len(USUAL) + 1
    imported("--clinical", BIOTAB)
    assert len(manifest_rows(Path("tcga-brca"))) == before
    for end, reason in ends.items():
        assert reason in reasons()[barcode(one, end)]
    imported("--clinical", BIOTAB, "--slides", "all", "--out", "all")
    rows = manifest_rows(Path("all"))
    assert len(rows) == before + 1
    assert rows[f"{one}-01A-01-TS1"]["her2"] == "3+"
    assert barcode(one, "11A-01-TS1") in reasons(Path("all"))
    done = command("import", "tcga-brca", "gdc", "--clinical", BIOTAB, "--slides", "frozen",
                   "--out", "frozen")  # fmt: skip
    assert "a run would stop" in str(done.exception)  # one patient cannot be divided into folds
    assert list(manifest_rows(Path("frozen"))) == [f"{one}-01A-01-TS1"]


def test_damaged_unfinished_and_absent_files_are_named_and_the_others_kept(download):
    files = sorted(download.glob("*/*.svs"))
    listed = gdc_manifest(Path("m.txt"), files)
    extra = put(download, barcode("TCGA-A1-0000", "01Z-00-DX3"), 300)
    short, flipped, gone, partial = files[:4]
    short.write_bytes(short.read_bytes()[:-10])
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    gone.unlink()
    partial.rename(partial.with_name(partial.name + ".partial"))
    said = imported("--clinical", BIOTAB, "--manifest", listed, "--threads", "2")
    why = reasons()
    assert "bytes, and" in why[short.name]
    assert "MD5" in why[flipped.name]
    assert "in the manifest, and not in the folder" in why[gone.name]
    assert "unfinished download" in why[f"{partial.name}.partial"]
    assert partial.name not in why
    assert f"1 are not in it and were not checked: {extra.name}" in said
    assert len(manifest_rows(Path("tcga-brca"))) == len(files) + 1 - 4
    said = imported("--clinical", BIOTAB, "--manifest", listed, "--skip-md5", "--out", "quick")
    assert "sizes, but not contents," in said
    assert "bytes, and" in reasons(Path("quick"))[short.name]
    assert flipped.name not in reasons(Path("quick"))


def test_slides_of_other_projects_and_unknown_patients_are_left_out(download):
    files = sorted(download.glob("*/*.svs"))
    lung = put(download, barcode("TCGA-05-4244"), 310)
    head = "File ID\tFile Name\tData Category\tData Type\tProject ID\tCase ID\tSample ID\t"
    rows = [
        (f"{one.parent.name}\t{one.name}\tBiospecimen\tSlide Image\t{project}\t{one.name[:12]}\t"
         f"{one.name[:16]}\t{kind}")
        for one, project, kind in [
            *((one, "TCGA-BRCA", "Primary Tumor") for one in files[2:]),
            (files[1], "TCGA-BRCA", "Solid Tissue Normal"),
            (lung, "TCGA-LUAD", "Primary Tumor"),
        ]
    ]  # fmt: skip
    Path("sheet.tsv").write_text("\n".join([head + "Sample Type", *rows]) + "\n")
    said = imported("--clinical", BIOTAB, "--sample-sheet", "sheet.tsv")
    assert "project TCGA-LUAD" in reasons()[lung.name]
    assert "Solid Tissue Normal by the sample sheet" in reasons()[files[1].name]
    assert f"1 are not in it and were taken: {files[0].name}" in said
    imported("--clinical", BIOTAB, "--out", "plain")
    assert "TCGA-05-4244, who is not in the clinical file" in reasons(Path("plain"))[lung.name]


def test_one_file_in_two_places_is_one_slide_and_two_scans_are_two(download):
    first = barcode(USUAL[0][0])
    put_slide(download / "copy of slides" / first, 0)
    scan = first.replace(".svs", "0.svs")  # another UUID
    put(download, scan, 320)
    put_slide(download / "Müller (2)" / barcode(USUAL[1][0]), 1).open("ab").write(b"more")
    imported("--clinical", BIOTAB)
    rows = manifest_rows(Path("tcga-brca"))
    ids = {name for name in rows if name.startswith(f"{USUAL[0][0]}-01Z-00-DX1")}
    assert ids == {first[:-4], scan[:-4]}
    record = json.loads(Path("tcga-brca/import.json").read_text())
    why = [one["reason"] for one in record["left_out"]]
    assert sum("is a copy of" in one for one in why) == 1
    assert sum("whose content is another" in one for one in why) == 2


CASES = [
    # score, IHC status, FISH -> her2, her2_status: unlabelled, ihc, fish
    (("0", "Negative", "[Not Evaluated]"), [("0", "negative")] * 3),
    (("1+", "Negative", "Negative"), [("1+", "negative")] * 3),
    (("3+", "Positive", "Positive"), [("3+", "positive")] * 3),
    (("3+", "Positive", "Equivocal"), [("3+", "positive")] * 3),
    (("2+", "Equivocal", "Positive"), [("2+", "positive")] * 3),
    (("2+", "Negative", "Positive"), [("2+", "positive")] * 3),
    (("2+", "Equivocal", "[Not Available]"), [("2+", "")] * 3),
    (("2+", "Positive", "Indeterminate"), [("2+", "")] * 3),
    (("[Not Available]", "Negative", "[Not Evaluated]"), [("", "negative")] * 3),
    (("[Not Available]", "Equivocal", "Negative"), [("", "negative")] * 3),
    (("[Not Available]", "[Not Evaluated]", "Positive"), [("", "positive")] * 3),
    (("[Not Available]", "Indeterminate", "[Not Available]"), [("", "")] * 3),
    # the contradictions of the published file: 11, 2 and 12 patients
    (("1+", "Positive", "[Not Evaluated]"), [("", ""), ("1+", "negative"), ("", "")]),
    (("3+", "Negative", "Negative"), [("", ""), ("3+", "positive"), ("", "negative")]),
    (("[Not Available]", "Positive", "Negative"), [("", ""), ("", "positive"), ("", "negative")]),
    # their relatives
    (("0", "Equivocal", "Positive"), [("", ""), ("0", "negative"), ("", "positive")]),
    (("3+", "Positive", "Negative"), [("3+", ""), ("3+", "positive"), ("3+", "negative")]),
    (("0", "Negative", "Positive"), [("0", ""), ("0", "negative"), ("0", "positive")]),
]  # fmt: skip


@pytest.mark.parametrize(("cells", "expected"), CASES)
def test_the_status_follows_from_ihc_and_fish_and_contradictions_are_chosen(
    tmp_path, cells, expected
):
    path = biotab(tmp_path / "c.txt", [("TCGA-A1-A0SB", *cells)])
    for trust, (her2, status) in zip(("unlabelled", "ihc", "fish"), expected, strict=True):
        found = read_clinical(path, trust)
        labels = found.labels["TCGA-A1-A0SB"]
        assert (labels["her2"], labels["her2_status"]) == (her2, status), trust
        assert bool(found.conflicts) == (len(set(expected)) > 1)


def test_without_a_contradiction_no_choice_changes_a_label():
    for one in itertools.product(
        ("", *STATED), ("", "negative", "positive", "equivocal"), ("", "negative", "positive")
    ):
        results = Results(*one)
        labels = [her2_labels(results, trust) for trust in ("unlabelled", "ihc", "fish")]
        if not (results.contradiction or results.discordance):
            assert labels[0] == labels[1] == labels[2]
        assert labels[0]["her2_status"] in ("", labels[1]["her2_status"])


def test_conflicts_and_unknown_results_are_listed_for_the_patients_that_have_slides(here):
    patients = [
        *USUAL,
        ("TCGA-A1-9001", "1+", "Positive", "[Not Evaluated]"),
        ("TCGA-A1-9002", "4+", "Maybe", "[Discrepancy]"),
        ("TCGA-A1-9003", "3+", "Negative", "[Not Evaluated]"),  # has no slide
    ]
    biotab(here / BIOTAB, patients)
    for n, (patient, *_) in enumerate(patients[:-1]):
        put(here / "gdc", barcode(patient), n)
    said = imported("--clinical", BIOTAB)
    rows = manifest_rows(Path("tcga-brca"))
    assert rows["TCGA-A1-9001-01Z-00-DX1"]["her2"] == ""
    assert rows["TCGA-A1-9001-01Z-00-DX1"]["her2_status"] == ""
    assert (
        "patient TCGA-A1-9001: IHC score 1+, yet IHC status positive: her2 empty, her2_status empty"
        in said
    )
    assert "her2_ihc_score '4+' is no result that is known: left empty" in said
    assert "her2_status_by_ihc 'Maybe' is no result that is known" in said
    assert "2 conflicts" in said
    assert reasons()["patient TCGA-A1-9003"] == "has no slide that was taken"
    imported("--clinical", BIOTAB, "--conflicts", "ihc")  # our own files are written again
    assert manifest_rows(Path("tcga-brca"))["TCGA-A1-9001-01Z-00-DX1"]["her2"] == "1+"


@pytest.mark.parametrize("form", ["tsv", "datahub", "xlsx"])
def test_the_tables_of_cbioportal_give_the_same_labels(download, form):
    score = {"0": "0", "1+": "1.0", "2+": "2.0", "3+": "3"}
    names = ["Study ID", "Patient ID", "Sample ID", "IHC-HER2", "HER2 ihc score",
             "HER2 fish status"]  # fmt: skip
    rows = [
        ["brca_tcga", one, f"{one}-{end}", stated, score[her2], "" if fish[0] == "[" else fish]
        for one, her2, stated, fish in USUAL
        for end in ("01", "06")  # a row for each sample of a patient
    ]
    path = Path("brca_tcga_clinical_data.tsv")
    if form == "xlsx":
        write_xlsx(path, {"clinical": [names, *rows]})
    else:
        above = []
        if form == "datahub":
            above = [["#" + names[0], *names[1:]], ["#STRING"] * 6, ["#1"] * 6]
            names = ["STUDY", "PATIENT_ID", "SAMPLE_ID", "IHC_HER2", "HER2_IHC_SCORE",
                     "HER2_FISH_STATUS"]  # fmt: skip
        path.write_text("\n".join("\t".join(row) for row in [*above, names, *rows]) + "\n")
    imported("--clinical", path)
    imported("--clinical", BIOTAB, "--out", "other")
    assert manifest_rows(Path("tcga-brca")) == manifest_rows(Path("other"))


def test_a_patient_with_two_different_rows_has_no_label(tmp_path):
    path = biotab(
        tmp_path / "c.txt",
        [("TCGA-A1-A0SB", "1+", "Negative", ""), ("TCGA-A1-A0SB", "3+", "Positive", "")],
    )
    found = read_clinical(path, "ihc")
    assert set(found.labels["TCGA-A1-A0SB"].values()) == {""}
    assert "rows with different results" in found.conflicts["TCGA-A1-A0SB"]


WRONG = {
    "folder": (("none", "--clinical", BIOTAB), "none: does not exist"),
    "a file": ((BIOTAB, "--clinical", BIOTAB), "Name the folder that gdc-client filled"),
    "empty": (("empty", "--clinical", BIOTAB), "has no slide of TCGA"),
    "others": (("others", "--clinical", BIOTAB), "what it has is like 'H23 1 HE.svs'"),
    "no clinical": (("gdc", "--clinical", "none.txt"), "--clinical none.txt: does not exist"),
    "other table": (("gdc", "--clinical", "other.csv"), "--clinical other.csv: has no column"),
    "other project": (("gdc", "--clinical", "luad.txt"), "but no column 'her2_ihc_score'"),
    "other cohort": (("gdc", "--clinical", "hospital.csv"), "no row has a TCGA barcode"),
    "other patients": (
        ("gdc", "--clinical", "disjoint.txt"),
        "has none of the 25 slides' patients",
    ),
    "sample sheet": (
        ("gdc", "--clinical", BIOTAB, "--manifest", BIOTAB),
        "A sample sheet is given as --sample-sheet",
    ),
    "manifest": (
        ("gdc", "--clinical", BIOTAB, "--manifest", "broken.txt"),
        "row 2: md5 'xyz' is not 32 hexadecimal digits",
    ),
    "manifest as sheet": (
        ("gdc", "--clinical", BIOTAB, "--sample-sheet", "broken.txt"),
        "has the columns File Name, Project ID",
    ),
}


def test_a_wrong_folder_or_file_is_said_with_what_is_right(download):
    Path("empty").mkdir()
    put_slide(Path("others/H23 1 HE.svs"), 1)
    Path("other.csv").write_text("Case,HER2\n1,2\n2,3\n")
    Path("luad.txt").write_text("bcr_patient_uuid\tbcr_patient_barcode\tegfr\nx\tTCGA-05-4244\t1\n")
    Path("hospital.csv").write_text("Patient ID,HER2 ihc score\nH23,1\n")
    biotab(Path("disjoint.txt"), [("TCGA-ZZ-0001", "0", "Negative", "")])
    Path("broken.txt").write_text("id\tfilename\tmd5\tsize\tstate\na\tb.svs\txyz\t12\treleased\n")
    for name, (arguments, words) in WRONG.items():
        done = command("import", "tcga-brca", *arguments)
        assert isinstance(done.exception, UserError), (name, done.output)
        assert words in str(done.exception), name
    assert not Path("tcga-brca").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("TCGA-A1-A0SB-01Z-00-DX1.B34C267B.svs", "diagnostic"),
        ("tcga-a1-a0sb-01z-00-dx1.svs", "diagnostic"),
        ("TCGA-A1-A0SB-01A-01-TSA.x.svs", "frozen"),
        ("TCGA-A1-A0SB-01A-01-BS1.x.svs", "frozen"),
        ("TCGA-A1-A0SB.svs", None),
        ("TCGA-A1-A0SB-01A-01-RNA.svs", None),
        ("H23-TCGA-A1-A0SB-01Z-00-DX1.svs", None),
    ],
)
def test_a_name_says_how_the_slide_was_made_or_is_none(name, kind):
    found = slide_name(name)
    assert (found and found.kind) == kind
    if found:
        assert (found.patient, found.site, found.sample_type) == ("TCGA-A1-A0SB", "A1", 1)


def test_reading_changes_no_file(download):
    before = {path: path.stat().st_mtime_ns for path in download.rglob("*")}
    read(download, out=Path("out"), clinical=Path(BIOTAB))
    assert {path: path.stat().st_mtime_ns for path in download.rglob("*")} == before
