"""The methods draft and the checklist of a run with external cohorts: each number of a table."""

import re
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from her2.report.external_results import ExternalCohort
from her2.report.results import Results, read_results
from her2.report.sections.paper import checklist, methods
from her2.report.sections.paper.methods_external import external
from her2.report.sections.paper.references import known_works
from tests.unit.external_report_maker import Outside, Validated
from tests.unit.test_methods import CITATION, SLIPS

STATUS = {
    "label": "status",
    "of": "score",
    "positive": ["1+", "2+"],
    "classes": {"negative": ["Negative"], "positive": ["Positive"]},
}
RUN = Validated(
    encoders=("one", "two"),
    signal=0.5,
    external={
        "yale": Outside(
            labels=("0", "1", "2", "2") * 6 + (None, "9"),
            tile_reasons={1: ("excluded", "no tissue")},
        ),
        "herohe": Outside(
            labels=("Negative", "Positive") * 8,
            column="status",
            section={"tasks": {"status": STATUS}, "final": "refit"},
            models=1,
        ),
        "bare": Outside(labels=(None,) * 5, column=None),
    },
)
FILLED = ("4", "5a", "12a", "12d", "12e", "12f", "12g", "16", "20a", "20c", "21", "23a", "23b")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("words")
    return read_results(RUN.write(folder), folder)


def only(results: Results, *names: str) -> Results:
    return replace(results, external=tuple(one for one in results.external if one.name in names))


def named(results: Results, name: str) -> ExternalCohort:
    return next(one for one in results.external if one.name == name)


def items(results: Results) -> dict[str, checklist.Item]:
    return {item.number: item for item in checklist.checklist(results)}


@pytest.mark.parametrize("names", [("yale", "herohe", "bare"), ("yale",), ("herohe",), ("bare",)])
def test_whatever_cohorts_there_are_the_words_are_in_order(
    results: Results, names: tuple[str, ...]
) -> None:
    chosen = only(results, *names)
    words = "\n".join(methods.methods(chosen))
    assert not SLIPS.search(words), SLIPS.search(words)
    filled = "\n".join(item.content for item in checklist.checklist(chosen))
    assert not SLIPS.search(filled), SLIPS.search(filled)
    body, _, listed = words.rpartition("\nReferences. ")
    for work in CITATION.findall(body):
        assert f"{work}, {known_works()[work]}" in listed


def test_the_methods_count_the_slides_and_patients_of_each_cohort(results: Results) -> None:
    words, yale = external(results), named(results, "yale")
    one = yale.slides.unique("slide_id")
    assert (
        f"yale ({len(one)} slides of {one['patient_id'].n_unique()} patients from 2 sites" in words
    )
    assert "1 slide not usable" in words
    targets = yale.models[0].patients["target"].value_counts().sort("target")["count"].to_list()
    assert f"{sum(targets)} patients evaluated ({targets[0]} of 0, {targets[1]} of 1+ and" in words
    assert "predicted only: 1 slide without a label, 1 slide with a label of no class" in words
    assert "predicted, none evaluated (the cohort's manifest has no column 'her2')" in words


def test_the_methods_say_what_predicted_each_cohort(results: Results) -> None:
    both = external(results)
    assert "For yale and bare, a slide's probabilities are the mean of those of all trained" in both
    assert "For herohe, they are those of one more model" in both
    assert "one more model" not in external(only(results, "yale"))
    alone = external(only(results, "herohe"))
    assert "A slide's probabilities are those of one more model" in alone
    assert "the mean of those of all" not in alone


def test_the_methods_say_which_scores_a_group_stands_for(results: Results) -> None:
    words = "task score as status (negative vs positive, which is 1+ and 2+)"
    assert words in external(results)
    assert "two groups" not in external(only(results, "yale"))


def test_nothing_is_said_of_figures_that_there_are_none_of(results: Results) -> None:
    words = external(only(results, "bare"))
    assert "were compared" not in words
    assert "Calibration" not in words
    assert external(only(results)) == ""


@pytest.mark.parametrize("number", FILLED)
def test_an_item_of_the_checklist_is_filled_by_external_cohorts_alone(
    results: Results, number: str
) -> None:
    with_them, without = items(results)[number], items(only(results))[number]
    assert with_them.content != without.content
    assert "xternal" not in without.content
    if without.by_author:
        assert with_them.anchor == "external"
        assert not with_them.by_author
    else:
        assert with_them.content.startswith(without.content)
        assert with_them.anchor == without.anchor


def test_all_other_items_stay_as_they_are(results: Results) -> None:
    with_them, without = items(results), items(only(results))
    assert {name for name in with_them if with_them[name] != without[name]} == set(FILLED)


def test_the_checklist_names_the_largest_differences_in_case_mix(results: Results) -> None:
    table = named(results, "yale").case_mix.drop_nulls("difference")
    top = table.sort(pl.col("difference").abs(), descending=True).row(0, named=True)
    content = items(results)["20c"].content
    assert re.search(
        rf"case mix of yale .*largest standardised differences: {re.escape(top['what'])}", content
    )
    assert content.endswith("[author: other differences between the data sets]")


def test_the_figures_of_the_summary_are_in_the_checklist(results: Results, tmp_path: Path) -> None:
    assert "External cohort yale, task score, " in items(results)["23a"].content
