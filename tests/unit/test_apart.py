"""A patient or slide of the development cohort in an external one stops the run, by name."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from her2.cohort.apart import check_apart, doubtful_ids, read_apart, shared_patients
from her2.cohort.manifest import Cohort, SlideRow
from her2.config.external_jobs import ApartSpec
from her2.core.errors import UserError

DEVELOPMENT = [("D1", "P1", "f1"), ("D2", "P1", "f2"), ("D3", "P2", "f3"), ("D4", "007", None)]


def check(folder: Path, external: list[tuple], development: list[tuple] = DEVELOPMENT):
    paths = folder / "external.parquet", folder / "development.parquet"
    for path, rows in zip(paths, (external, development), strict=True):
        pl.DataFrame(
            rows, schema=dict.fromkeys(("slide_id", "patient_id", "fingerprint"), pl.String),
            orient="row",
        ).write_parquet(path)  # fmt: skip
    output = folder / "apart.json"
    check_apart(ApartSpec(cohort="yale"), cohort=paths[0], development=paths[1], output=output)
    return read_apart(output)


def refusal(folder: Path, external: list[tuple], development: list[tuple] = DEVELOPMENT) -> str:
    with pytest.raises(UserError) as caught:
        check(folder, external, development)
    assert not (folder / "apart.json").exists()
    return str(caught.value)


def cohort(*slides: tuple[str, str]) -> Cohort:
    return Cohort(tuple(SlideRow(s, f"{s}.svs", p, {}) for s, p in slides), Path("/nowhere"))


def test_cohorts_apart_pass_and_the_file_says_what_was_compared(tmp_path: Path) -> None:
    found = check(tmp_path, [("E1", "Q1", "g1"), ("E2", "Q1", "g2"), ("E3", "Q2", None)])
    assert (found.cohort, found.slides, found.patients, found.contents) == ("yale", 3, 2, 2)
    assert found.development_slides == 4
    assert (found.development_patients, found.development_contents) == (3, 3)
    assert found.cautions == ()


def test_all_findings_are_in_one_message_that_names_the_slides_of_both(tmp_path: Path) -> None:
    text = refusal(tmp_path, [("E1", "P1", "g1"), ("E2", "P2", "g2"), ("E3", "Q", "f2")])
    assert text.startswith("validation.yale: ")
    assert "patient 'P1': slides E1 here, and D1, D2 in development" in text
    assert "patient 'P2': slides E2 here, and D3 in development" in text
    assert "slide E3 (patient Q) has the same content as slide D2 (patient P1) of devel" in text
    assert text.count("\n  - ") == 3
    assert "put a prefix before the patient ids of one cohort" in text


def test_slides_that_could_not_be_read_do_not_count_as_the_same_content(tmp_path: Path) -> None:
    assert check(tmp_path, [("E1", "Q", None), ("E2", "R", None)]).contents == 0


def test_a_slide_of_the_same_name_and_other_content_is_a_caution(tmp_path: Path) -> None:
    (caution,) = check(tmp_path, [("D1", "Q", "g1"), ("E2", "R", "g2")]).cautions
    assert "same id, but other content: D1." in caution


@pytest.mark.parametrize("other", ["7", "0007", "7.0", " 007 ", "\uff10\uff10\uff17"])
def test_numbers_that_differ_in_zeros_are_a_caution(tmp_path: Path, other: str) -> None:
    (caution,) = check(tmp_path, [("E1", other, "g1")]).cautions
    assert "'007'" in caution
    assert repr(other) in caution
    assert "write them alike" in caution


@pytest.mark.parametrize("other", ["p1", "P1\u200b", "P1 "])
def test_ids_that_differ_in_case_or_spaces_are_a_caution(tmp_path: Path, other: str) -> None:
    assert len(check(tmp_path, [("E1", other, "g1")]).cautions) == 1


@pytest.mark.parametrize("other", ["P12", "P-1", "XP1", "0070", "70"])
def test_other_ids_are_no_near_miss(tmp_path: Path, other: str) -> None:
    assert check(tmp_path, [("E1", other, "g1")]).cautions == ()


def test_many_near_misses_are_one_caution_with_some_of_them(tmp_path: Path) -> None:
    development = [(f"D{i}", f"{i:03}", None) for i in range(1, 90)]
    (caution,) = check(
        tmp_path, [(f"E{i}", f"{i}", None) for i in range(1, 90)], development
    ).cautions
    assert "and 84 more" in caution


BARCODES = [
    ("TCGA-A1-A0SB", "TCGA-A1-A0SB-01Z-00-DX1"),
    ("TCGA-A1-A0SB-01Z-00-DX1", "TCGA-A1-A0SB"),
    ("TCGA-A1-A0SB-01Z-00-DX1", "TCGA-A1-A0SB-01A-01-BS1.4F5A"),
    ("tcga-a1-a0sb", "TCGA-A1-A0SB"),
    ("TCGA.A1.A0SB", "TCGA-A1-A0SB-01"),
    ("yale_TCGA-A1-A0SB", "TCGA-A1-A0SB"),
]


@pytest.mark.parametrize(("one", "other"), BARCODES)
@pytest.mark.parametrize("places", [("p", "p"), ("p", "s"), ("s", "p"), ("s", "s")])
def test_barcodes_of_one_patient_at_any_depth_are_the_same_patient(one, other, places) -> None:
    """As a patient id or a slide id, whatever the other column says."""
    slides = [
        (text, f"q{i}") if place == "s" else (f"s{i}", text)
        for i, (place, text) in enumerate(zip(places, (one, other), strict=True))
    ]
    (text,) = shared_patients(cohort(slides[0]), cohort(slides[1]))
    assert slides[0][0] in text
    assert slides[1][0] in text


@pytest.mark.parametrize(
    "other", ["TCGA-A1-A0SC", "TCGA-A2-A0SB", "TCGA-A1-A0SBX", "TCGA-A1", "XTCGA-A1-A0SB"]
)
def test_other_barcodes_are_other_patients(other: str) -> None:
    assert shared_patients(cohort(("D1", "TCGA-A1-A0SB")), cohort((other, other))) == []


def test_manifests_are_compared_before_anything_runs_with_the_same_words(tmp_path: Path) -> None:
    external = [("E1", "P1", "g1"), ("E2", "7", "g2")]
    manifests = (
        cohort(*((slide, patient) for slide, patient, _ in rows))
        for rows in (DEVELOPMENT, external)
    )
    development, other = manifests
    (problem,) = shared_patients(development, other)
    assert problem in refusal(tmp_path, external)
    (caution,) = doubtful_ids(development, other)
    assert "'7' and '007'" in caution


def test_a_patient_who_is_found_by_id_and_by_barcode_is_one_problem() -> None:
    both = cohort(("TCGA-A1-A0SB-01Z-00-DX1", "P1"))
    assert len(shared_patients(both, both)) == 1


def test_planning_compares_manifests_without_loading_tables() -> None:
    code = "import sys, her2.cohort.apart; print('polars' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
