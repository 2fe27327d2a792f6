"""The controls on the page: both models of covariates, pairs within groups, differences, chance."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from her2.evaluation.controls.covariate_models import FOREST, LOGISTIC
from her2.report.results import Results, read_results
from her2.report.sections import controls
from her2.report.sections.covariate_tables import covariates_cell
from her2.report.tables import PageTable
from tests.unit.report_maker import HOSTILE, Cohort, build_page


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("run")
    return read_results(Cohort(labels=("0", "1", "2") * 12).write(folder), folder)


def with_controls(results: Results, **tables: pl.DataFrame) -> Results:
    """Return the results with other control tables of the first model, and that model alone."""
    model = results.models[0]
    known: Mapping[str, pl.DataFrame] = {**model.controls, **tables}
    return replace(results, models=(replace(model, controls=known),))


def column(table: PageTable | None, title: str) -> list[str]:
    assert table is not None
    index = table.columns.index(title)
    return [row[index].value for row in table.rows]


@pytest.mark.parametrize("by", [LOGISTIC, FOREST])
def test_the_model_that_gave_the_figure_of_the_covariates_is_named(
    by: str, results: Results
) -> None:
    table = (
        results.models[0]
        .controls["covariates"]
        .with_columns(by=pl.lit(by), logistic=pl.lit(0.61), forest=pl.lit(0.58), note=pl.lit(""))
    )
    shown = with_controls(results, covariates=table)
    found = controls.covariates_page_table(shown)
    for row in found.rows:
        cells = {LOGISTIC: row[3], FOREST: row[4]}
        assert (cells[LOGISTIC].value, cells[FOREST].value) == ("0.610", "0.580")
        assert {name: cell.note for name, cell in cells.items()} == {
            LOGISTIC: "the larger" if by == LOGISTIC else "",
            FOREST: "the larger" if by == FOREST else "",
        }
    assert covariates_cell(shown.models[0].controls["covariates"]).note == by
    assert "larger of two is optimistic" in found.note


def test_the_headline_s_cells_are_those_of_declared_columns_in_their_order(
    results: Results,
) -> None:
    row = {"class": "macro", "overall": 0.7, "low": 0.4, "high": 0.8, "pairs": 0.3, "n": 30}
    rows = [
        {"by": by, "value": value, "note": "", **row}
        for by, value in (("scanner", 0.55), ("site", 0.66), ("year", 0.77))
    ]
    (model,) = with_controls(results, within=pl.DataFrame(rows)).models
    assert [(title, cell.value, cell.interval) for title, cell in controls.within_cells(model)] == [
        ("Within site", "0.660", "[0.400, 0.800]"),
        ("Within scanner", "0.550", "[0.400, 0.800]"),
    ]


def test_the_pairs_of_the_same_group_stand_beside_all_pairs(results: Results) -> None:
    table = controls.within_page_table(results)
    own = results.models[0].controls["within"].filter(pl.col("class") == "macro")
    assert column(table, "Same") == ["site"]
    assert column(table, "#Pairs left") == [f"{own['pairs'][0]:.0%}"]
    assert column(table, "#All pairs") == [f"{own['overall'][0]:.3f}"]
    assert column(table, "#Same group") == [f"{own['value'][0]:.3f}"]


def test_a_difference_between_groups_names_its_ends(results: Results) -> None:
    row = {
        "by": "site", "groups": 2, "lowest_group": "north", "lowest": 0.6, "p": 0.0123,
        "highest_group": "south", "highest": 0.9, "p_holm": 0.0246, "note": "left out: west",
    }  # fmt: skip
    table = controls.interactions_page_table(
        with_controls(results, interactions=pl.DataFrame([row]))
    )
    assert table is not None
    cells = table.rows[0]
    assert (cells[1].value, cells[1].note) == ("site", "left out: west")
    assert [(cell.value, cell.note) for cell in cells[3:5]] == [
        ("0.600", "north"),
        ("0.900", "south"),
    ]
    assert [cell.value for cell in cells[5:]] == ["0.012", "0.025"]


def test_chance_has_a_p_value_on_each_side(results: Results) -> None:
    table = (
        results.models[0]
        .controls["shuffled"]
        .with_columns(mean=pl.lit(0.48), p_better=pl.lit(0.98), p_worse=pl.lit(0.03))
    )
    found = controls.shuffled_page_table(with_controls(results, shuffled=table))
    assert column(found, "#Chance: mean of shuffled") == ["0.480"]
    assert column(found, "#p, better") == ["0.980"]
    assert column(found, "#p, worse") == ["0.030"]


def test_without_a_property_of_patients_there_is_no_table_of_groups(results: Results) -> None:
    tables = {name: results.models[0].controls[name].clear() for name in ("within", "interactions")}
    bare = with_controls(results, **tables)
    assert controls.within_page_table(bare) is None
    assert controls.interactions_page_table(bare) is None
    assert controls.within_cells(bare.models[0]) == []


def test_the_page_and_its_tables_have_the_groups_and_no_markup_of_the_manifest(
    tmp_path: Path,
) -> None:
    made = Cohort(labels=("0", "1", "2") * 12, sites=(HOSTILE, HOSTILE, "b", "b"))
    build_page(made.write(tmp_path), tmp_path, tmp_path / "report/report.html")
    page = (tmp_path / "report/report.html").read_text()
    section = page[page.index('id="controls"') :].partition("</section>")[0]
    for words in ("Pairs left", "Groups tested", "random forest", "p, worse"):
        assert words in section
    assert HOSTILE not in page
    assert "&lt;script&gt;alert" in section  # as the name of a group
    tables = tmp_path / "report" / "tables"
    within = pl.read_csv(tables / "within.csv")
    assert set(within["by"]) == {"site"}
    assert "p_holm" in pl.read_csv(tables / "interactions.csv").columns
