"""The patients that models got wrong: which, in which order, with which links."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from her2.report.results import Results, read_results
from her2.report.sections import failures, gallery
from her2.report.sections.pictures import all_pictures
from tests.unit.report_maker import HOSTILE, Cohort, build_page

ENCODERS = ("one", "two", "six", "ten")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("failures")
    cohort = Cohort(encoders=ENCODERS, labels=("0", "1", "2") * 10, signal=0.1, compared=False)
    return read_results(cohort.write(folder), folder)


def with_patients(results: Results, rows: list[tuple[object, ...]]) -> Results:
    """Give the first model these patients: id, true class, three probabilities."""
    columns = ["prob_0", "prob_1+", "prob_2+"]
    patients = pl.DataFrame(rows, schema=["patient_id", "target", *columns], orient="row")
    predicted = patients.select(columns).to_numpy().argmax(axis=1)
    patients = patients.with_columns(pl.Series("predicted", predicted, pl.Int32))
    first, *others = results.models
    return replace(results, models=(replace(first, patients=patients), *others))


def test_the_wrong_patients_are_those_of_the_predictions(results: Results) -> None:
    for model in results.models:
        expected = {}
        for (patient,), rows in model.predictions.filter(role="test").group_by("patient_id"):
            means = [rows[f"prob_{name}"].mean() for name in model.task.class_names]
            true = rows["target"][0]
            if means[true] < max(means):
                expected[patient] = (max(means), means[true])
        table = failures.failures_table(model)
        found = {row["patient_id"]: row for row in table.to_dicts()}
        assert found.keys() == expected.keys()
        for patient, (of_predicted, of_true) in expected.items():
            assert found[patient]["prob_predicted"] == pytest.approx(of_predicted)
            assert found[patient]["prob_true"] == pytest.approx(of_true)


def test_the_most_certain_error_comes_first_and_the_less_likely_truth_before_equals(
    results: Results,
) -> None:
    rows = [
        ("right", 0, 0.9, 0.05, 0.05), ("unsure", 0, 0.3, 0.4, 0.3), ("b", 2, 0.8, 0.1, 0.1),
        ("a", 2, 0.8, 0.1, 0.1), ("worse", 1, 0.8, 0.0, 0.2),
    ]  # fmt: skip
    table = failures.failures_table(with_patients(results, rows).models[0])
    assert table["patient_id"].to_list() == ["worse", "a", "b", "unsure"]
    assert table["rank"].to_list() == [1, 2, 3, 4]
    assert table.row(0, named=True)["true"] == "1+"
    assert table.row(0, named=True)["predicted"] == "0"


def test_without_an_error_the_table_is_empty_and_the_page_says_none(results: Results) -> None:
    flawless = with_patients(results, [("a", 0, 0.8, 0.1, 0.1)])
    table = failures.failures_table(flawless.models[0])
    assert (len(table), table.schema) == (0, failures.failures_table(results.models[1]).schema)
    found = failures.model_failures(flawless, flawless.models[0])
    assert (found.rows, found.wrong, found.patients) == ((), 0, 1)


def test_the_page_has_ten_patients_of_the_three_models_with_the_highest_macro_auc(
    results: Results,
) -> None:
    data = failures.SECTION.collect(results)
    areas = {
        model.name: model.level("patient")
        .filter(metric="auc")
        .filter(pl.col("class") == "macro")["value"][0]
        for model in results.models
    }
    assert [model.name for model in data.models] == sorted(areas, key=lambda name: -areas[name])[:3]
    assert data.left_out == 1
    assert max(model.wrong for model in data.models) > failures.PATIENTS_SHOWN
    for model in data.models:
        assert len(model.rows) == min(model.wrong, failures.PATIENTS_SHOWN)
    exported = failures.SECTION.tables["failures"](results)
    assert exported is not None
    assert set(exported["encoder"]) == set(ENCODERS)


def test_a_slide_leads_to_its_attention_picture_or_to_its_card(results: Results) -> None:
    (model,) = (item for item in results.models if item.encoder == "one")
    (drawn,) = next(item for item in all_pictures(results) if item.name == model.name).pictures
    patients = [("p0", 2, 0.8, 0.1, 0.1), ("p4", 2, 0.7, 0.2, 0.1)]
    found = failures.model_failures(wrong := with_patients(results, patients), wrong.models[0]).rows
    assert [row.slides for row in found] == [
        (failures.SlideLink("slide-00", drawn.anchor, True),),
        (failures.SlideLink("slide-04", "slide/slide-04", False),),
    ]


def test_a_slide_that_the_page_does_not_show_has_no_link(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "SHOWN", 0)
    wrong = with_patients(results, [("p4", 2, 0.7, 0.2, 0.1)])
    (row,) = failures.model_failures(wrong, wrong.models[0]).rows
    assert row.slides == (failures.SlideLink("slide-04", "", False),)


def test_the_page_says_that_they_were_selected_for_being_wrong(tmp_path: Path) -> None:
    cohort = Cohort(title=HOSTILE, signal=0.0)
    build_page(cohort.write(tmp_path / "results"), tmp_path / "results", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    section = page[page.index('id="failures"') : page.index('id="controls"')]
    assert "selected for being wrong" in section
    table = pl.read_csv(tmp_path / "tables" / "failures.csv")
    assert len(table) > 0
    for patient in table["patient_id"].head(failures.PATIENTS_SHOWN):
        assert f'<th scope="row">{patient}</th>' in section
