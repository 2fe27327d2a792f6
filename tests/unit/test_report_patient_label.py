"""What the report says of patients whose slides have labels of different classes."""

from dataclasses import replace

import polars as pl
import pytest

from her2.config import parse_config
from her2.report.results import Results, read_results
from her2.report.sections import cohort, failures, flow, notices
from her2.report.sections.paper import methods
from her2.report.sections.patient_labels import Decided, decided, decided_table
from tests.unit.report_maker import Cohort

TEXTS = {
    "worst": "was given the highest of them",
    "first": "was given that of the first slide listed",
    "exclude": "was left out of task score",
}
WORDS = {
    "worst": "the highest class counts (cohort.patient_label: worst)",
    "first": "the class of the first slide in the manifest counts (cohort.patient_label: first)",
    "exclude": "left out of the task (cohort.patient_label: exclude)",
}
USED = {"worst": "2+", "first": "0", "exclude": None}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("labels")
    made = Cohort(labels=("0", "1", "2") * 6, signal=0.3, compared=False)
    return read_results(made.write(folder), folder)


def two_lesions(results: Results, rule: str) -> Results:
    """Make slides 3 (labelled 0) and 5 (2+) those of one patient, with the class of a rule."""
    both = pl.col("slide_id").is_in(["slide-03", "slide-05"])
    patient = pl.when(both).then(pl.lit("p3")).otherwise("patient_id").alias("patient_id")
    folds, table = results.folds["score"].with_columns(patient), results.cohort
    (model,) = results.models
    slides, patients = model.slides, model.patients
    gone = pl.col("patient_id") == "p3"
    if rule == "exclude":
        folds = folds.filter(~gone)
        slides = slides.with_columns(patient).filter(~gone)
        patients = patients.filter(~pl.col("patient_id").is_in(["p3", "p5"]))
    else:
        index = 2 if rule == "worst" else 0
        label = pl.when(gone).then(index).otherwise("label").cast(pl.Int32).alias("label")
        folds, slides = folds.with_columns(label), slides.with_columns(patient)
        target = pl.when(gone).then(index).otherwise("target").cast(pl.Int32).alias("target")
        patients = patients.filter(pl.col("patient_id") != "p5").with_columns(target)
    values = results.config.model_dump(mode="json")
    values["cohort"]["patient_label"] = rule
    return replace(
        results,
        config=parse_config(values),
        cohort=table.with_columns(patient),
        folds={"score": folds},
        models=(replace(model, slides=slides, patients=patients),),
    )


@pytest.mark.parametrize("rule", TEXTS)
def test_patients_with_two_classes_are_named_with_the_class_that_counts(
    plain: Results, rule: str
) -> None:
    results = two_lesions(plain, rule)
    used = USED[rule]
    assert decided(results, "score") == {"p3": Decided("score", "p3", ("0", "2"), used)}
    table = decided_table(results)
    assert table is not None
    assert [[cell.value for cell in row] for row in table.rows] == [
        ["p3", "score", "0, 2", used or "left out"]
    ]
    warnings = [item.text for item in notices.SECTION.collect(results)]
    expected = f"Task score: 1 patient with slides of different classes, {WORDS[rule]}: p3."
    assert expected in warnings
    assert TEXTS[rule] in methods.cohort(results)


def test_without_such_patients_nothing_is_said(plain: Results) -> None:
    assert decided_table(plain) is None
    assert "different classes" not in methods.cohort(plain)
    assert not any("different classes" in item.text for item in notices.SECTION.collect(plain))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("worst", [(5, 5), (6, 6), (6, 7), (0, 0), (17, 18)]),
        ("first", [(6, 7), (6, 6), (5, 5), (0, 0), (17, 18)]),
        ("exclude", [(5, 5), (6, 6), (5, 5), (1, 2), (17, 18)]),
    ],
)
def test_the_composition_counts_the_patient_once(
    plain: Results, rule: str, expected: list[tuple[int, int]]
) -> None:
    made = cohort.composition(two_lesions(plain, rule), "score")
    assert list(made.rows[-1].cells) == expected
    assert (made.missing, made.outside) == (0, 0)
    assert made.left_out == (2 if rule == "exclude" else 0)


def test_an_excluded_patient_is_listed_with_its_reason_and_the_flow_adds_up(
    plain: Results,
) -> None:
    results = two_lesions(plain, "exclude")
    rows = [row for row in cohort.excluded_slides(results) if row.stage == "folds"]
    assert [row.slide_id for row in rows] == ["slide-03", "slide-05"]
    assert rows[0].reason == (
        "left out of task score: its patient p3 has slides of different classes (0, 2)"
    )
    (found,) = flow.flows(results)
    assert [step.left for step in found.steps] == [2]
    assert "of patients with slides of different classes" in found.steps[0].reason
    assert found.steps[-1].rest == found.tested_slides == 16
    warnings = [item.text for item in notices.SECTION.collect(results)]
    assert not any("no prediction" in text or "folds stage" in text for text in warnings)


def test_an_error_on_such_a_patient_says_which_labels_it_has(plain: Results) -> None:
    results = two_lesions(plain, "worst")
    (model,) = results.models
    wrong = model.patients.with_columns(
        pl.when(pl.col("patient_id") == "p3").then(0).otherwise("predicted").alias("predicted")
    )
    found = failures.model_failures(results, replace(model, patients=wrong))
    notes = {row.patient_id: row.note for row in found.rows}
    assert notes["p3"] == "slides with the labels 0, 2"
    assert set(notes.values()) == {"", notes["p3"]}
