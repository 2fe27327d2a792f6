"""The report says what choosing the best model is worth, and what the number of patients gives."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from her2.evaluation.power import Design, precision
from her2.evaluation.selection import CORRECTED, HIGHEST, NESTED
from her2.pretraining.overlap import Overlap
from her2.report.format import interval, number
from her2.report.results import Results, read_results
from her2.report.sections import selection
from her2.report.sections.overlap import MARK
from her2.report.sections.paper import checklist, methods_figures, methods_models
from her2.report.sections.paper.sample_size import sample_size
from tests.unit.report_maker import Cohort

LABELS = ("0", "0", "0", "1", "1", "2") * 6


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("several")
    values = {"evaluation": {"bootstrap": 100, "selection": "nested"}}
    cohort = Cohort(encoders=("one", "two"), labels=LABELS, values=values, signal=0.2)
    return read_results(cohort.write(folder), folder)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("single")
    return read_results(Cohort(labels=LABELS, signal=0.2).write(folder), folder)


def test_the_rows_are_those_of_the_table(several: Results) -> None:
    rows = selection.selection_rows(several, "score")
    written = pl.read_parquet(several.folder / "evaluation" / "selection.parquet")
    assert rows == written.drop("task").to_dicts()
    assert [row["method"] for row in rows] == [HIGHEST, CORRECTED, NESTED]


def test_the_highest_is_named_and_the_ways_of_choosing_are_not_a_model(several: Results) -> None:
    found = selection.selection_page_table(several, "score")
    assert found is not None
    rows = selection.selection_rows(several, "score")
    names = [cells[1].value for cells in found.rows]
    assert names == [f"{rows[0]['encoder']} / abmil", "as chosen", "as chosen"]
    for cells, row in zip(found.rows, rows, strict=True):
        assert cells[2].value == number(row["value"])
        assert cells[2].interval == interval(row["low"], row["high"])


def test_figures_that_may_be_of_an_encoder_that_saw_patients_are_marked(several: Results) -> None:
    best = selection.selection_rows(several, "score")[0]["encoder"]
    other = next(name for name in several.config.encoders if name != best)
    for seen, expected in ((best, [True] * 3), (other, [False, True, True])):
        overlaps = {seen: Overlap(known=True, patients=("p1",), allowed=True)}
        results = replace(several, overlaps=overlaps)
        found = selection.selection_page_table(results, "score")
        assert found is not None
        assert [cells[2].value.endswith(MARK) for cells in found.rows] == expected
        assert selection.selection_sentence(results, "score").count(MARK) == 2
    assert MARK not in selection.selection_sentence(several, "score")


def test_the_sentence_has_the_corrected_and_the_nested_figure(several: Results) -> None:
    rows = {row["method"]: row for row in selection.selection_rows(several, "score")}
    words = selection.selection_sentence(several, "score")
    assert words.startswith("Corrected for choosing the highest of 2 models, the macro AUC is ")
    for method in (CORRECTED, NESTED):
        row = rows[method]
        assert f"{number(row['value'])} {interval(row['low'], row['high'])}" in words


def test_an_undefined_correction_is_no_sentence(several: Results) -> None:
    table = several.selections["score"].with_columns(value=pl.lit(None, pl.Float64))
    assert (
        selection.selection_sentence(replace(several, selections={"score": table}), "score") == ""
    )


def test_a_single_model_was_not_chosen(single: Results) -> None:
    assert selection.selection_rows(single, "score") == []
    assert selection.selection_page_table(single, "score") is None
    assert selection.selection_sentence(single, "score") == ""
    assert "highest" not in methods_figures.comparison(single)


def test_the_picks_have_their_task(several: Results, single: Results) -> None:
    picks = selection.picks_table(several)
    assert picks is not None
    assert picks["task"].unique().to_list() == ["score"]
    assert picks["run"].to_list() == ["r0f0", "r0f1", "r0f2"]
    assert selection.picks_table(single) is None


def test_the_methods_say_how_the_best_model_is_corrected(several: Results) -> None:
    words = methods_figures.comparison(several)
    assert "choosing the highest of 2 models is worth was estimated by bootstrap" in words
    assert "in each of 100 resamples" in words
    assert "picks encoder and head by the macro AUC on the tuning set of each fold" in words
    table = several.selections["score"].filter(pl.col("method") != NESTED)
    assert "picks" not in methods_figures.comparison(replace(several, selections={"score": table}))


def test_the_sample_size_is_what_her2_power_says_of_the_evaluated_patients(
    several: Results,
) -> None:
    words = sample_size(several)
    macro, first, _, last = precision(Design((18, 12, 6), folds=3))
    assert "evaluated on 18 patients of 0, 12 of 1+ and 6 of 2+." in words
    assert f"95 % intervals with an expected width of {macro.width:.2f} for the macro AUC" in words
    assert f"{first.width:.2f} for the AUC of 0 and {last.width:.2f} for that of 2+" in words
    assert f"a difference of {macro.difference:.2f} between two models" in words
    assert "[author: how the number of patients was determined" in words


def test_one_model_has_no_difference_to_show(single: Results) -> None:
    assert "a difference of" not in sample_size(single)


def test_a_fixed_split_is_one_test_set(several: Results) -> None:
    macro = precision(Design((18, 12, 6), folds=1))[0]
    assert f"width of {macro.width:.2f} for" in sample_size(replace(several, split=True))


def test_a_class_of_one_patient_has_no_precision(tmp_path: Path) -> None:
    cohort = Cohort(labels=("0", "1") * 9 + ("2",))
    words = sample_size(read_results(cohort.write(tmp_path), tmp_path))
    assert "1 of 2+, too few in some class for an interval. [author:" in words
    assert "expected width" not in words
    assert "simulated" not in words


def test_repeats_narrow_the_expected_intervals(several: Results) -> None:
    folds = several.config.folds.model_copy(update={"repeats": 3})
    config = several.config.model_copy(update={"folds": folds})
    macro = precision(Design((18, 12, 6), folds=3, repeats=3))[0]
    assert f"width of {macro.width:.2f} for" in sample_size(replace(several, config=config))
    assert macro.width < precision(Design((18, 12, 6), folds=3))[0].width


def test_the_tuning_set_picked_models_where_a_pipeline_did(
    several: Results, single: Results
) -> None:
    words = "the thresholds and the model of the pipeline that picks one; nothing was chosen"
    assert words in methods_models.folds(several)
    assert "the temperature and the thresholds; nothing" in methods_models.folds(single)


def test_item_10_of_the_checklist_is_the_same_text(several: Results) -> None:
    (item,) = (one for one in checklist.checklist(several) if one.number == "10")
    assert item.content == sample_size(several).removeprefix("Sample size. ")
    assert item.filled_by == "pipeline, author"
