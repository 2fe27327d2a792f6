"""Columns of the manifest that only the config names, from the file to the cohort's table."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from her2.cohort.audit import tabulate_cohort
from her2.cohort.manifest import SlideRow
from her2.cohort.reading import read_cohort, read_labels
from her2.config import Task, load_config, parse_config
from her2.config.jobs import CohortSpec, ControlSpec, load
from her2.core.errors import UserError
from her2.pipeline.plan import Plan
from her2.storage.entries import TileEntry, write_entries
from tests.unit.test_plan import ROWS, VALUES, plan, stages_that_change
from tests.unit.tile_makers import slide_facts

TASKS = {"score": Task(label="her2", classes={"0": ["0"], "1+": ["1"]})}
ASKED = {"evaluation/subgroups": ["year"], "evaluation/covariates": ["ki67"]}


def manifest(folder: Path) -> Path:
    path = folder / "slides.csv"
    path.write_text(
        "slide_id,path,patient_id,her2,year,ki67,tiles\n"
        "s1,s1.svs,p1,0, 2001 ,0.3,few\n"
        "s2,s2.svs,p2,1,,NA,many\n"
    )
    return path


def rows(**other: str) -> tuple[SlideRow, ...]:
    return (replace(ROWS[0], other=other), *ROWS[1:])


def test_a_column_is_read_as_text_only_if_the_config_names_it(tmp_path: Path) -> None:
    path = manifest(tmp_path)
    assert read_cohort(path, tasks=TASKS).rows[0].other == {}
    named = {"year": "evaluation.subgroups", "ki67": "evaluation.covariates"}
    found = read_cohort(path, tasks=TASKS, named=named).rows
    assert [row.other for row in found] == [{"year": "2001", "ki67": "0.3"}, {}]
    assert read_labels(path, labels=(), named=("year",)).rows[0].other == {"year": "2001"}


def test_a_column_that_the_manifest_lacks_is_refused_with_its_key_and_the_columns(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError) as caught:
        read_cohort(manifest(tmp_path), tasks=TASKS, named={"yaer": "evaluation.subgroups"})
    message = str(caught.value)
    assert "`evaluation.subgroups`: there is no column 'yaer'" in message
    assert "slide_id, path, patient_id, her2, year, ki67, tiles" in message


@pytest.mark.parametrize("name", ["slide_id", "path", "patient_id"])
def test_a_column_that_tells_slides_or_patients_apart_is_refused(name: str, tmp_path: Path) -> None:
    named = {name: "evaluation.covariates"}
    with pytest.raises(UserError, match=f"`evaluation.covariates`: column '{name}' tells"):
        read_cohort(manifest(tmp_path), tasks=TASKS, named=named)


def test_the_table_of_the_cohort_has_it_under_a_name_of_its_own(tmp_path: Path) -> None:
    """The table has the number of tiles under `tiles` already."""
    names = ("tiles", "year")
    cohort = read_labels(manifest(tmp_path), labels=("her2",), named=names)
    entries = {
        row.slide_id: TileEntry("ok", None, f"{i:064x}", 10, slide_facts(fingerprint=f"f{i}"))
        for i, row in enumerate(cohort.rows)
    }
    write_entries(tmp_path / "tiles" / "g" / "b.json", entries)
    spec = CohortSpec(rows="", buckets=("b",), grids=("g",), labels=("her2",), columns=names)
    table = tabulate_cohort(spec, cohort, tmp_path / "tiles", tmp_path / "cohort")
    assert table["column_year"].to_list() == ["2001", None]
    assert table["column_tiles"].to_list() == ["few", "many"]
    assert table["tiles"].to_list() == [10, 10]


def test_naming_columns_runs_the_table_the_controls_and_the_report_again_alone() -> None:
    with_values = rows(year="2001", ki67="0.3")
    before, after = plan(rows=with_values), plan(ASKED, rows=with_values)
    assert stages_that_change(after, before) == {"cohort", "report"}
    assert after.control_spec("score", "fine") != before.control_spec("score", "fine")
    spec = load(ControlSpec, after.control_spec("score", "fine"))
    assert spec.evaluation.subgroups == ("year",)
    assert spec.evaluation.covariates == ("ki67",)


def test_without_them_no_spec_mentions_them() -> None:
    first = plan()
    texts = (first.cohort_spec(), first.control_spec("score", "fine"), first.compare_spec())
    for text in texts:
        spec = json.loads(text)
        assert "columns" not in spec
        assert not {"subgroups", "covariates"} & set(spec.get("evaluation", {}))


def test_a_value_that_changes_runs_the_table_again_alone() -> None:
    before = plan(ASKED, rows=rows(year="2001", ki67="0.3"))
    after = plan(ASKED, rows=rows(year="2002", ki67="0.3"))
    assert stages_that_change(after, before) == {"cohort"}


def test_a_label_column_or_a_declared_one_is_in_the_table_already() -> None:
    found = plan({"evaluation/subgroups": ["er", "site", "mpp"]})
    assert load(CohortSpec, found.cohort_spec()).columns == ("mpp",)


@pytest.mark.parametrize("key", ["subgroups", "covariates"])
def test_a_column_named_twice_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"evaluation: {key}: 'year' is listed twice"):
        parse_config({**VALUES, "evaluation": {key: ["year", "year"]}})


def test_a_subgroup_named_as_the_amount_of_tissue_is_refused() -> None:
    with pytest.raises(UserError, match="subgroups: 'amount of tissue' is the name of a property"):
        parse_config({**VALUES, "evaluation": {"subgroups": ["amount of tissue"]}})
    parse_config({**VALUES, "evaluation": {"covariates": ["amount of tissue"]}})


def test_the_check_of_the_manifest_names_an_unknown_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from her2.cli.main import app

    config = tmp_path / "mine.yaml"
    config.write_text(json.dumps({**VALUES, "evaluation": {"subgroups": ["yaer"]}}))
    assert load_config(config).evaluation.columns == {"yaer": "evaluation.subgroups"}
    header = "slide_id,path,patient_id,her2,er\ns1,s1.svs,p1,0,1\n"
    (tmp_path / "slides.csv").write_text(header)
    done = CliRunner().invoke(
        app, ["cohort", "check", str(tmp_path / "slides.csv"), "--config", str(config)]
    )
    assert isinstance(done.exception, UserError)
    assert "there is no column 'yaer'" in str(done.exception)


def test_the_plan_of_a_manifest_reads_what_the_config_names(tmp_path: Path) -> None:
    config = parse_config({**VALUES, "evaluation": {"subgroups": ["year"]}})
    (tmp_path / "slides.csv").write_text(
        "slide_id,path,patient_id,her2,er,year\ns1,s1.svs,p1,0,1,2001\n"
    )
    cohort = read_cohort(
        tmp_path / "slides.csv", tasks=config.tasks, named=config.evaluation.columns
    )
    spec = load(CohortSpec, Plan(config, cohort).cohort_spec())
    assert spec.columns == ("year",)
