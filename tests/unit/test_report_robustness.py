"""What the report says of the features of encoders beside the label."""

from pathlib import Path

import polars as pl
import pytest

from her2.core.plot_style import FigureContext
from her2.report.figures.base import draw_figure
from her2.report.figures.robustness import RobustModel, robustness_figure
from her2.report.results import Results, read_results
from her2.report.sections import robustness
from her2.report.sections.paper.methods_robustness import robustness as methods
from tests.unit.report_maker import Cohort, build_page

TWO = ("plain", "other")


def results(folder: Path, cohort: Cohort) -> Results:
    return read_results(cohort.write(folder), folder)


def test_a_site_that_features_tell_as_well_as_the_label_is_a_caution(tmp_path: Path) -> None:
    bound = robustness.cautions(results(tmp_path / "a", Cohort(encoders=TWO, site_bound=True)))
    assert bound == [
        "score: the site is predicted from the features of plain (0.750 against 0.750) and other "
        "(0.750 against 0.750) as well as the label (AUC of a linear model of patients' mean "
        "embeddings). A model can learn the site wherever it is associated with the label."
    ]
    assert robustness.cautions(results(tmp_path / "b", Cohort(encoders=TWO))) == []


def test_the_page_has_the_section_the_picture_and_the_tables(tmp_path: Path) -> None:
    spec = Cohort(encoders=TWO, site_bound=True).write(tmp_path / "results")
    build_page(spec, tmp_path / "results", tmp_path / "report" / "report.html")
    page = (tmp_path / "report" / "report.html").read_text()
    assert 'id="robustness"' in page
    assert "Macro AUC against the robustness index for the site, of 2 models" in page
    assert page.count("A model can learn the site wherever") == 2  # a warning, and in the section
    for name in ("encoders", "probes", "neighbours", "similarity"):
        assert (tmp_path / "report" / "tables" / f"robustness_{name}.csv").exists()


@pytest.mark.parametrize("sites", [(None,), ("north",)])
def test_what_was_not_measured_is_said_and_shown_nowhere_as_a_figure(
    tmp_path: Path, sites: tuple[str | None, ...]
) -> None:
    found = robustness._collect(results(tmp_path, Cohort(sites=sites)))
    assert found.unknown == ["site: not in the manifest.", "scanner: not in the manifest."]
    assert found.neighbours is None
    assert found.similarity is None
    assert found.figures == {}
    assert [row[1].value for row in found.probes.rows] == ["Task score"]


def test_the_table_of_similarities_has_each_pair_once(tmp_path: Path) -> None:
    found = robustness._similarity(results(tmp_path, Cohort(encoders=("a", "b", "c"))))
    assert found is not None
    assert [[cell.value for cell in row] for row in found.rows] == [
        ["b", "0.50", ""],
        ["c", "0.50", "0.50"],
    ]


def test_the_methods_say_what_was_measured_and_no_more(tmp_path: Path) -> None:
    both = methods(results(tmp_path / "a", Cohort(encoders=TWO)))
    assert "the site and the class of score were predicted" in both
    assert "another site" in both
    assert "Kornblith" in both
    alone = methods(results(tmp_path / "b", Cohort(sites=(None,))))
    assert "the class of score was predicted" in alone
    assert "index" not in alone
    assert "Kornblith" not in alone


def test_the_picture_tells_each_model_in_words_and_draws_without_limits() -> None:
    models = [
        RobustModel("plain", "abmil", (0.25, 0.125, 0.5), (0.75, None, None)),
        RobustModel("plain", "mean", (0.25, 0.125, 0.5), (0.625, 0.5, 0.75)),
    ]
    figure = robustness_figure(models, "score", "site", FigureContext(synthetic=True))
    assert "plain / abmil index 0.250, AUC 0.750" in figure.alt
    assert "synthetic" in figure.alt
    assert b"<svg" in draw_figure(figure)["svg"]


def test_encoders_come_in_the_order_of_the_config(tmp_path: Path) -> None:
    found = results(tmp_path, Cohort(encoders=("b", "a")))
    assert [row["encoder"] for row in robustness._in_order(found, "encoders")] == ["b", "a"]
    assert pl.read_parquet(tmp_path / "robustness" / "encoders.parquet").height == 2
