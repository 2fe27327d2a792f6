"""A metric is one file: tables, page, methods text and training take it from there."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

AGREEMENT = '''
"""Share of rows whose most probable class is the true one."""

import numpy as np

from her2.metrics.base import Classified, Metric, mean


def accuracy(rows: Classified) -> np.ndarray:
    return mean((rows.predicted == rows.target).astype(float), rows.weights)


METRICS = (
    Metric(
        name="plain_accuracy",
        label="Plain accuracy",
        phrase="plain accuracy (Nobody 1901)",
        definition="share of rows that are right",
        overall=accuracy,
        decimals=2,
        headline=9,
        references={"Nobody 1901": "Journal of Examples 1"},
    ),
)
'''
SELECTING = '''
"""Mean probability of the true class, which also picks the epoch."""

import numpy as np

from her2.metrics.base import Classified, Metric, Selection, mean


def certainty(rows: Classified) -> np.ndarray:
    return mean(rows.probabilities[np.arange(len(rows.target)), rows.target], rows.weights)


METRICS = (
    Metric(
        name="certainty",
        label="Certainty",
        phrase="certainty",
        definition="mean probability of the true class",
        overall=certainty,
        selection=Selection(
            name="certainty",
            words="the highest certainty",
            compute=lambda rows: float(certainty(rows)[0]),
        ),
    ),
)
'''
BEGIN = """
import sys
from pathlib import Path
import her2.metrics
her2.metrics.__path__.append(sys.argv[1])
"""
REPORT = (
    BEGIN
    + """
import re

import polars as pl
from her2.report.build import build_report
from tests.unit.report_maker import Cohort

made, out = Path(sys.argv[2]), Path(sys.argv[2]) / "report"
build_report(Cohort(signal=0.3).write(made), made, out / "report.html")
table = pl.read_parquet(made / "evaluation/score/plain/abmil/metrics.parquet")
patients = pl.read_parquet(made / "evaluation/score/plain/abmil/patients.parquet")
row = table.row(
    by_predicate=(pl.col("metric") == "plain_accuracy") & (pl.col("level") == "patient"),
    named=True,
)
assert row["value"] == (patients["target"] == patients["predicted"]).mean(), row
assert row["low"] <= row["value"] <= row["high"], row
names = table["metric"].unique(maintain_order=True).to_list()
assert names.index("plain_accuracy") > names.index("ordinal_mae")
page = (out / "report.html").read_text()
assert page.count("Plain accuracy") >= 3, "headline, folds and all figures"
assert f"{row['value']:.2f}<" in page and f"[{row['low']:.2f}, {row['high']:.2f}]" in page
methods = (out / "methods.txt").read_text()
assert re.search(r"AUPRC, [^.]*plain accuracy \\(Nobody 1901\\)[^.]* are also reported", methods)
assert "Nobody 1901, Journal of Examples 1" in methods
"""
)
TRAIN = (
    BEGIN
    + """
import numpy as np
from her2.mil.selection import SELECT_WORDS
from tests.unit.bag_makers import bag, fit

assert SELECT_WORDS["certainty"] == "the highest certainty"
generator = np.random.default_rng(0)
train, tune = (
    [bag(f"{part}{i}", generator.normal(size=(3, 4)) + i % 2, i % 2) for i in range(12)]
    for part in ("train", "tune")
)
checkpoint = Path(sys.argv[2]) / "fold.ckpt"
trained = fit(
    train, tune, select="certainty", epochs=8, patience=8, learning_rate=0.02, checkpoint=checkpoint
)
rows = [epoch.row() for epoch in trained.history]
found = [row["tune_certainty"] for row in rows]
assert trained.best_epoch == found.index(max(found)), found
assert 0 < min(found) < max(found) < 1
assert checkpoint.exists()
"""
)


def run(script: str, module: str, folder: Path) -> None:
    declared = folder / "declared"
    declared.mkdir()
    (declared / "declared_there.py").write_text(module)
    done = subprocess.run(
        [sys.executable, "-c", script, str(declared), str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_new_metric_is_in_the_tables_on_the_page_and_in_the_methods(tmp_path: Path) -> None:
    run(REPORT, AGREEMENT, tmp_path)


def test_a_new_metric_picks_the_epoch(tmp_path: Path) -> None:
    run(TRAIN, SELECTING, tmp_path)


def test_a_config_may_select_by_a_new_metric_and_by_no_unknown_one(tmp_path: Path) -> None:
    script = (
        BEGIN
        + """
import pytest
from pydantic import ValidationError
from her2.config import TrainingSection
assert TrainingSection(select="certainty").select == "certainty"
with pytest.raises(ValidationError, match="'quadratic_kappa'.* 'certainty'"):
    TrainingSection(select="luck")
"""
    )
    run(script, SELECTING, tmp_path)


def test_a_metric_that_no_table_could_hold_is_refused(tmp_path: Path) -> None:
    script = BEGIN + (
        "from her2.metrics import all_metrics\n"
        "try:\n    all_metrics()\n"
        "except ValueError as error:\n    assert 'computes nothing' in str(error), error\n"
        "else:\n    raise AssertionError\n"
    )
    run(script, AGREEMENT.replace("overall=accuracy,", ""), tmp_path)


def test_two_metrics_of_one_name_are_refused(tmp_path: Path) -> None:
    script = BEGIN + (
        "from her2.metrics import all_metrics\n"
        "try:\n    all_metrics()\n"
        "except ValueError as error:\n    assert \"two metrics are called 'auc'\" in str(error)\n"
        "else:\n    raise AssertionError\n"
    )
    run(script, AGREEMENT.replace("plain_accuracy", "auc"), tmp_path)


def test_a_metric_that_would_get_the_figures_of_the_auc_is_refused(tmp_path: Path) -> None:
    script = BEGIN + (
        "from her2.metrics import all_metrics\n"
        "try:\n    all_metrics()\n"
        "except ValueError as error:\n    assert '`within_folds` is for the AUC' in str(error)\n"
        "else:\n    raise AssertionError\n"
    )
    declared = AGREEMENT.replace("overall=accuracy,", "overall=accuracy, within_folds=True,")
    assert declared != AGREEMENT
    run(script, declared, tmp_path)
