"""A case that is also in the cohort stops the run with its name, unless the config allows it."""

from pathlib import Path

import polars as pl
import pytest

from her2.config.jobs import OverlapSpec, dump
from her2.core.errors import UserError
from her2.encoders.card import EncoderCard, write_card
from her2.pretraining.overlap import Overlap, audit_overlap, read_overlap


def encoder(folder: Path, source: str = "pretrain", **provenance: object) -> Path:
    card = EncoderCard(
        source=source, library="timm", architecture="resnet18", arguments={}, feature="pooled",
        dimension=512, size=96, mpp=1.0, mean=(0.5,) * 3, std=(0.2,) * 3, precision="auto",
        storage="float16", licence="", weights_sha256="0" * 64, provenance=dict(provenance),
    )  # fmt: skip
    write_card(folder / "he", card)
    return folder / "he"


COHORT = pl.DataFrame(
    {
        "slide_id": ["S1-a", "S1-b", "S2", "S3"],
        "patient_id": ["P1", "P1", "P2", "P3"],
        "fingerprint": ["f1", "f2", "f3", "f4"],
        "label_her2": ["0", "0", "3+", None],
    }
)


def audit(
    folder: Path,
    where: Path,
    *,
    allow: bool = False,
    domain: str = "he",
    cohort: str = "",
    table: pl.DataFrame = COHORT,
) -> Overlap:
    spec = OverlapSpec.model_validate({"domain": domain, "allow_overlap": allow, "cohort": cohort})
    table.write_parquet(where / "audited.parquet")
    return audit_overlap(spec, folder, where / "audited.parquet", where / "overlap.json")


@pytest.mark.parametrize(
    "provenance",
    [{"cases": ["x", "P1"]}, {"cases": ["p1"]}, {"cases": ["s1-b"]}, {"cases": ["S1\u2011B "]},
     {"slide_fingerprints": ["f2"]}],
)  # fmt: skip
def test_a_shared_case_stops_the_run_and_names_the_patient(tmp_path: Path, provenance) -> None:
    with pytest.raises(UserError, match="patient P1: .*") as caught:
        audit(encoder(tmp_path, **provenance), tmp_path)
    assert "allow_overlap: true" in str(caught.value)
    assert "P2" not in str(caught.value)
    assert not (tmp_path / "overlap.json").exists()


def test_an_allowed_overlap_is_recorded(tmp_path: Path) -> None:
    audit(encoder(tmp_path, cases=["P1", "P2"]), tmp_path, allow=True)
    found = read_overlap(tmp_path / "overlap.json")
    assert (found.known, found.patients, found.allowed) == (True, ("P1", "P2"), True)


def test_other_patients_pass(tmp_path: Path) -> None:
    found = audit(encoder(tmp_path, cases=["pre-001"]), tmp_path)
    assert (found.known, found.patients) == (True, ())


def test_a_patient_nobody_tests_on_does_not_count(tmp_path: Path) -> None:
    assert audit(encoder(tmp_path, cases=["P3"]), tmp_path).patients == ()


def test_data_without_cases_are_said_to_be_unknown(tmp_path: Path) -> None:
    assert not audit(encoder(tmp_path, cases=[]), tmp_path).known
    assert not audit(encoder(tmp_path, source="catalogue"), tmp_path).known


@pytest.mark.parametrize("domain", ["natural", "none"])
def test_photographs_hold_no_patients(tmp_path: Path, domain: str) -> None:
    assert audit(encoder(tmp_path, source="timm"), tmp_path, domain=domain).known


def test_an_encoder_inherits_the_overlap_of_the_one_it_began_from(tmp_path: Path) -> None:
    first = encoder(tmp_path, cases=["P2"])
    second = encoder(tmp_path / "second", cases=["pre-1"], init={"from": "he"})
    second.rename(first.with_name("child"))
    with pytest.raises(UserError, match="patient P2"):
        audit(first.with_name("child"), tmp_path)


def test_an_overlap_with_an_external_cohort_names_that_cohort(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError) as caught:
        audit(encoder(tmp_path, cases=["P1"]), tmp_path, cohort="yale")
    assert "patients that validation.yale tests on" in str(caught.value)
    assert "remove them from its manifest" in str(caught.value)
    assert "patient P1: case 'P1'" in str(caught.value)
    audit(tmp_path / "he", tmp_path, cohort="yale", allow=True)
    assert "patients of validation.yale (1), which" in caplog.text


def test_the_development_cohort_is_what_an_overlap_is_with_where_none_is_named() -> None:
    """Its jobs are asked for with the same words as before there were external cohorts."""
    spec = OverlapSpec(domain="he", allow_overlap=False)
    assert dump(spec) == '{"allow_overlap":false,"domain":"he","version":1}'


@pytest.mark.parametrize("labels", [{}, {"label_her2": pl.lit(None, pl.String)}])
def test_nobody_is_tested_on_in_a_cohort_without_labels(tmp_path: Path, labels) -> None:
    table = COHORT.drop("label_her2").with_columns(**labels)
    found = audit(encoder(tmp_path, cases=["P1"]), tmp_path, cohort="yale", table=table)
    assert found.patients == ()
