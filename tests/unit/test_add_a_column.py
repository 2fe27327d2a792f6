"""A column of the manifest is one declaration for reader, plan, table, controls and report."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from her2.cohort import columns
from her2.cohort.audit import read_cohort_table, tabulate_cohort
from her2.cohort.columns import COLUMNS, Column, number, text
from her2.cohort.manifest import Cohort, SlideRow
from her2.cohort.reading import read_cohort
from her2.config import Task
from her2.config.jobs import CohortSpec
from her2.core.errors import UserError
from her2.core.files import digest
from her2.evaluation.controls.covariates import covariates_of
from her2.storage.entries import TileEntry, write_entries
from tests.unit.prediction_makers import cohort_of, predictions
from tests.unit.test_plan import ROWS, plan, stages_that_change
from tests.unit.tile_makers import slide_facts

ROOT = Path(__file__).parents[2]
TASKS = {"score": Task(label="her2", classes={"0": ["0"], "1+": ["1"]})}
LAB = Column(
    name="lab",
    parse=text,
    read_by=("cohort",),
    in_table=True,
    covariate="category",
    subgroup=True,
    label="laboratory",
)
THICKNESS = Column(
    name="thickness_um",
    parse=number,
    read_by=("tile", "cohort"),
    in_table=True,
    covariate="number",
    label="section thickness",
)
CONTROLS_AND_REPORT = """
import sys
from pathlib import Path
from her2.cohort import columns
from tests.unit.test_add_a_column import LAB, THICKNESS
columns.COLUMNS = (*columns.COLUMNS, LAB, THICKNESS)

import polars as pl
from her2.core.tables import write_table
from her2.config.jobs import ControlSpec
from her2.evaluation.controls.stage import control_tables
from her2.report.build import build_report
from tests.unit.report_maker import Cohort

folder = Path(sys.argv[1])
spec = Cohort().write(folder)
slides = pl.read_parquet(folder / "cohort/slides.parquet")
n = len(slides)
slides = slides.with_columns(
    lab=pl.Series(["east", "west"] * n)[:n], thickness_um=pl.Series([3.0, 4.0, None] * n)[:n]
)
slides.write_parquet(folder / "cohort/slides.parquet")
config = spec.config
where = Path("score/plain/abmil")
tables = control_tables(
    ControlSpec(
        task=config.tasks["score"], grid="224px-0.5mpp", evaluation=config.evaluation, seed=1
    ),
    pl.read_parquet(folder / "evaluation" / where / "predictions.parquet"),
    pl.read_parquet(folder / "folds/score.parquet"),
    slides,
)
for name, table in tables.items():
    write_table(table, folder / "controls" / where / name)
inputs = {row["covariate"]: row for row in tables["inputs"].to_dicts()}
assert inputs["laboratory"]["kind"] == "category" and inputs["laboratory"]["used"], inputs
assert inputs["section thickness"]["kind"] == "number", inputs
assert inputs["section thickness"]["used"] and inputs["section thickness"]["missing"] == n // 3
parts = tables["subgroups"].filter(pl.col("by") == "lab")
assert set(parts["group"]) == {"east", "west"}
assert parts.filter(pl.col("class") == "macro")["n"].sum() == n
build_report(spec, folder, folder / "report/report.html")
page = (folder / "report/report.html").read_text()
assert page.count("laboratory") >= 2 and "section thickness" in page
methods = (folder / "report/methods.txt").read_text()
assert "(section thickness, site and laboratory)" in methods, methods
assert "AUC is also reported by site and laboratory." in methods, methods
"""


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "COLUMNS", (*COLUMNS, LAB, THICKNESS))


def manifest(folder: Path, **added: str) -> Path:
    """Two slides, of which the first has a value in the added columns."""
    path = folder / "slides.csv"
    table = [
        ("slide_id", "path", "patient_id", "her2", *added),
        ("s1", "s1.svs", "p1", "0", *added.values()),
        ("s2", "s2.svs", "p2", "1", *("" for _ in added)),
    ]
    path.write_text("".join(",".join(line) + "\n" for line in table))
    return path


@pytest.mark.usefixtures("declared")
def test_a_declared_column_is_read_and_stands_in_the_cohort_table(tmp_path: Path) -> None:
    cohort = read_cohort(manifest(tmp_path, lab=" east ", thickness_um="3.5"), tasks=TASKS)
    assert cohort.rows[0].other == {"lab": "east", "thickness_um": 3.5}
    assert cohort.rows[1].other == {}
    entries = {
        row.slide_id: TileEntry("ok", None, f"{i:064x}", 10, slide_facts(fingerprint=f"f{i}"))
        for i, row in enumerate(cohort.rows)
    }
    write_entries(tmp_path / "tiles" / "g" / "b.json", entries)
    spec = CohortSpec(rows="", buckets=("b",), grids=("g",), labels=("her2",))
    tabulate_cohort(spec, cohort, tmp_path / "tiles", tmp_path / "cohort")
    table = read_cohort_table(tmp_path / "cohort")
    assert table.select("lab", "thickness_um").rows() == [("east", 3.5), (None, None)]
    names = table.columns
    assert names[: names.index("grid")] == [
        "slide_id", "patient_id", "label_her2", "site", "scanner", "split", "annotation", "mask",
        "lab", "thickness_um",
    ]  # fmt: skip


@pytest.mark.usefixtures("declared")
def test_a_cell_that_does_not_parse_is_named_with_its_row_and_column(tmp_path: Path) -> None:
    path = manifest(tmp_path, thickness_um="thick")
    with pytest.raises(UserError, match="row 2: column 'thickness_um': 'thick' is not a number"):
        read_cohort(path, tasks=TASKS)


@pytest.mark.usefixtures("declared")
def test_a_value_that_changes_makes_exactly_the_declared_jobs_run_again() -> None:
    def rows(**other: object) -> tuple[SlideRow, ...]:
        return (replace(ROWS[0], other=other), *ROWS[1:])

    before = plan(rows=rows(lab="east", thickness_um=3.0))
    assert stages_that_change(plan(rows=rows(lab="west", thickness_um=3.0)), before) == {"cohort"}
    thicker = plan(rows=rows(lab="east", thickness_um=4.0))
    assert stages_that_change(thicker, before) == {"tile", "cohort"}
    assert stages_that_change(before, plan(rows=rows(lab="east"))) == {"tile", "cohort"}


def test_a_declaration_changes_no_spec_of_a_cohort_without_the_column(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = plan()
    specs = {bucket: first.tile_spec("224px-0.5mpp", bucket) for bucket in first.buckets}
    cohort = first.cohort_spec()
    monkeypatch.setattr(columns, "COLUMNS", (*COLUMNS, LAB, THICKNESS))
    assert stages_that_change(plan(), first) == set()
    assert specs == {bucket: plan().tile_spec("224px-0.5mpp", bucket) for bucket in first.buckets}
    assert plan().cohort_spec() == cohort


@pytest.mark.usefixtures("declared")
def test_rows_are_digested_as_values_by_the_alphabet_then_what_was_declared_since() -> None:
    """The columns determine cache keys: another list would invalidate every cache."""
    row = SlideRow("s", "s.svs", "p", {"her2": "0"}, mpp=0.5, site="north", other={"lab": "east"})
    cohort = Cohort((row,), Path())
    names = ("slide_id", "path", "mpp", "annotation", "mask")
    assert cohort.digest((row,), names) == digest([[None, None, 0.5, "s.svs", "s"]])
    assert cohort.digest((row,), (*names, "lab")) == digest(
        [[None, None, 0.5, "s.svs", "s", {"lab": "east"}]]
    )
    assert cohort.digest((row,), ("her2", "site")) == digest([["0", "north"]])


def test_the_controls_and_the_report_take_a_declared_column(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONTROLS_AND_REPORT, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"in_table": False}, "need `in_table`"),
        ({"label": ""}, "a `label`"),
        ({"read_by": ("tile",)}, "needs the job `cohort`"),
        ({"covariate": "number"}, "a number cannot be a `subgroup`"),
    ],
)
def test_a_declaration_that_the_controls_cannot_follow_is_refused(
    changed: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(LAB, **changed)


def test_a_column_that_nobody_has_is_in_no_table_of_inputs() -> None:
    table = cohort_of(predictions(12))
    plain = covariates_of(table, table["slide_id"].to_list()).inputs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "COLUMNS", (*COLUMNS, LAB, THICKNESS))
        assert covariates_of(table, table["slide_id"].to_list()).inputs.equals(plain)
        filled = table.with_columns(lab=pl.lit("east"))
        found = covariates_of(filled, table["slide_id"].to_list()).inputs
    assert found.filter(pl.col("covariate") == "laboratory")["note"].item() == (
        "the same for every slide"
    )
