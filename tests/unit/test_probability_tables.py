"""The page's tables of calibration and operating points."""

import polars as pl
import pytest

from her2.config import EvaluationSection
from her2.config.jobs import EvaluateSpec
from her2.evaluation.stage import evaluation_tables
from her2.mil.priors import PRIORS
from her2.report.results import EvaluatedModel
from her2.report.sections.probabilities import (
    calibration_page_table,
    class_calibration_page_table,
    operating_page_table,
)
from tests.unit.prediction_makers import SCORE, predictions

GROUPING = "0/1+ vs 2+/3+"


def model(priors: pl.DataFrame | None = None, **evaluation: object) -> EvaluatedModel:
    spec = EvaluateSpec(
        task=SCORE, chunks=(), evaluation=EvaluationSection(bootstrap=100, **evaluation), seed=1
    )
    tables = evaluation_tables(spec, predictions(80), priors)
    return EvaluatedModel(
        task_name="score", encoder="e", head="h", task=SCORE, **tables, controls={}, attention={},
        folds={}, histories={}, heatmaps=[], scores=[], pictures=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> EvaluatedModel:
    return model()


def test_the_ece_has_no_interval_and_its_reason_stands_once(plain: EvaluatedModel) -> None:
    table = calibration_page_table(plain)
    cells = {row[0].value: row[1:] for row in table.rows}
    assert all(not cell.interval and not cell.note for cell in cells["Expected calibration error"])
    assert table.note.count("biased upwards") == 1
    assert all(cell.interval for cell in cells["Brier score"])
    assert list(cells) == ["Expected calibration error", "Brier score", "Log loss"]


def test_each_score_has_its_ratio_and_slope_in_both_states(plain: EvaluatedModel) -> None:
    table = class_calibration_page_table(plain)
    assert [row[0].value for row in table.rows] == list(SCORE.class_names)
    row = plain.calibration.row(
        by_predicate=(pl.col("level") == "patient")
        & (pl.col("class") == "3+")
        & (pl.col("metric") == "slope")
        & (pl.col("state") == "temperature"),
        named=True,
    )
    shown = table.rows[3][4]
    assert shown.value == f"{row['value']:.2f}"
    assert shown.interval == f"[{row['low']:.2f}, {row['high']:.2f}]"
    assert len({*table.columns}) == len(table.columns) == 5


def test_the_prior_of_training_stands_beside_calibration(plain: EvaluatedModel) -> None:
    assert "as frequent as" not in calibration_page_table(plain).note
    rows = [
        (f"r0f{fold}", "k", name, 1, 1, share + fold / 100, 0.25, "")
        for fold in range(2)
        for name, share in zip(SCORE.class_names, (0.4, 0.3, 0.2, 0.09), strict=True)
    ]
    note = calibration_page_table(model(pl.DataFrame(rows, schema=PRIORS, orient="row"))).note
    words = note.replace("\N{NO-BREAK SPACE}", " ")
    assert "3+: 9 % to 10 %, in training 25 %)" in words


def test_a_prevalence_has_columns_only_where_one_is_stated(plain: EvaluatedModel) -> None:
    table = operating_page_table(plain)
    assert table is not None
    assert [name for name in table.columns if "stated" in name] == []
    assert all(cell.interval for row in table.rows for cell in row[2:6])

    stated = operating_page_table(model(prevalence={GROUPING: 0.15}))
    assert stated is not None
    where = [index for index, name in enumerate(stated.columns) if "stated" in name]
    assert len(where) == 2
    for row in stated.rows:
        for index in where:
            own = row[0].value == GROUPING
            assert row[index].note.replace("\N{NO-BREAK SPACE}", " ") == ("at 15 %" if own else "")
            assert (row[index].value == "NA") is not own
