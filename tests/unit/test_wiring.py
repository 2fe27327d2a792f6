"""The names that the rules are written in."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from snakemake.logging import logger

from her2.config.jobs import ReportSpec, load
from her2.core.errors import UserError
from her2.pipeline.job_table import RULES
from her2.pipeline.wiring import (
    ResultFiles,
    growing,
    one_of,
    option,
    read_plan,
    untracked,
)

RULE_FILES = Path(__file__).parents[2] / "workflow/rules"


@pytest.fixture
def values(tmp_path, config_values, write_csv, monkeypatch):
    """A config of one slide, which is there."""
    monkeypatch.chdir(tmp_path)
    rows = [{"slide_id": "s1", "path": "s1.svs", "patient_id": "p1", "her2": "0"}]
    (tmp_path / "s1.svs").touch()
    found = yaml.safe_load(yaml.safe_dump(config_values))
    found["cohort"]["slides"] = str(write_csv(rows))
    return found


@pytest.fixture
def files(values) -> ResultFiles:
    workflow = SimpleNamespace(is_main_process=True, dag=SimpleNamespace(forcefiles=set()))
    return ResultFiles(read_plan(values, check_files=True), workflow)


def test_a_plan_is_of_the_config_s_manifest(values):
    assert list(read_plan(values, check_files=True).slides) == ["s1"]


def test_a_missing_slide_is_named_by_the_first_process_alone(values, tmp_path):
    (tmp_path / "s1.svs").unlink()
    with pytest.raises(UserError, match="s1.svs' does not exist"):
        read_plan(values, check_files=True)
    assert list(read_plan(values, check_files=False).slides) == ["s1"]


def test_the_first_process_alone_says_how_the_manifest_was_read(values, tmp_path, monkeypatch):
    path = Path(values["cohort"]["slides"])
    header, *rows = path.read_text().splitlines()
    path.write_text(
        "\n".join((f"{header},MPP", *(f"{row}," for row in rows), "")).replace(",", ";")
    )
    said: list[str] = []
    monkeypatch.setattr(logger, "warning", said.append)
    plan = read_plan(values, check_files=True)
    assert said == [
        f"{path}: was read as UTF-8, with semicolons between cells",
        "The manifest's column 'MPP' is not read. If it is meant to be 'mpp', rename it.",
    ]
    assert load(ReportSpec, plan.report_spec("")).cautions == (said[1],)
    said.clear()
    read_plan(values, check_files=False)
    assert said == []


def test_slides_that_rules_will_draw_may_be_missing(values, tmp_path):
    (tmp_path / "s1.svs").unlink()
    values["cohort"]["synthetic"] = True
    assert list(read_plan(values, check_files=True).slides) == ["s1"]


def test_missing_weights_are_named_before_anything_runs(values):
    values["encoders"] = {
        "mine": {"source": "checkpoint", "checkpoint": "none.pt", "model": "timm/resnet18"}
        | {"domain": "none", "mpp": 1.0, "size": 96}
    }
    with pytest.raises(UserError, match="none.pt"):
        read_plan(values, check_files=True)


def test_a_folder_whose_place_is_a_file_is_refused(values, tmp_path):
    (tmp_path / "file").touch()
    values["results"] = str(tmp_path / "file/results")
    with pytest.raises(
        UserError, match=r"results: .*file/results' cannot be written: .*file is not a folder"
    ):
        read_plan(values, check_files=True)


@pytest.mark.parametrize(
    ("name", "fits"), [("a.b", True), ("axb", False), ("a.b+", True), ("", False)]
)
def test_a_pattern_of_names_matches_them_alone(name, fits):
    assert bool(re.fullmatch(one_of(["a.b", "a.b+"]), name)) == fits


def test_a_pattern_of_no_names_matches_nothing():
    assert not re.fullmatch(one_of([]), "")


def test_every_attempt_gets_as_much_again():
    assert [growing(500)({}, attempt) for attempt in (1, 2, 3)] == [500, 1000, 1500]


def test_untracked_parameters_are_functions_of_input(files):
    """Snakemake tells them from tracked ones by the name of this argument."""
    for parameter in (untracked(1), option("--a", 1), files.folder("x")):
        assert parameter.__code__.co_varnames[:2] == ("wildcards", "input")


@pytest.mark.parametrize(("value", "given"), [(None, []), ("", []), (Path("x y"), ["-m", "x y"])])
def test_an_option_without_a_value_is_left_away(value, given):
    assert option("-m", value)({}, None) == given


def test_a_job_without_a_current_stamp_is_forced_by_its_stamp(files):
    wildcards = {"cohort": "", "encoder": "e", "bucket": "0000-of-0001"}
    assert files.outdated("embed_bucket")(wildcards) == []
    stamp = files.stamp("embed_bucket").format(**wildcards)
    assert files._workflow.dag.forcefiles == {stamp}
    assert stamp == f"{files.root}/stamps/embed_bucket/e/0000-of-0001.json"
    files._workflow.is_main_process = False
    files.outdated("make_folds")({"task": "score"})
    assert files._workflow.dag.forcefiles == {stamp}


def test_a_folder_has_the_job_s_wildcards(files):
    wildcards = {"task": "score", "encoder": "e"}
    assert (
        files.folder("models/{task}/{encoder}")(wildcards, None) == f"{files.root}/models/score/e"
    )


def test_a_pattern_is_filled_in_for_each_model_and_chunk(files, values):
    encoders, heads, tasks = (list(values[name]) for name in ("encoders", "heads", "tasks"))
    found = files.each_model("{task}/{encoder}/{head}")
    assert set(found) == {f"{t}/{e}/{h}" for t in tasks for e in encoders for h in heads}
    one = heads[:1]
    assert files.each_model("{head}", heads=one) == one * len(tasks) * len(encoders)
    chunks = files.each_model("{chunk}", heads=one)
    assert all(re.fullmatch(r"r\d+f\d+-r\d+f\d+", name) for name in chunks)


def test_tables_and_pictures_are_shown_in_snakemake_s_report(files):
    table = files.model_table("controls", "inputs")
    assert table == f"{files.root}/controls/{{task}}/{{encoder}}/{{head}}/inputs.csv"
    shown = table.flags["report"]
    assert (shown.category, shown.labels["table"]) == ("Controls", "inputs")
    assert files.run_table("statement").flags["report"].labels["encoder"] == "all"
    pictures = files.model_pictures("strips")
    assert pictures.flags["directory"]
    assert pictures.flags["report"].patterns == ["{picture}.png"]


def test_every_rule_has_a_stamp_and_is_checked_against_it():
    """A rule without one would be believed whatever made its results."""
    text = "".join(path.read_text() for path in sorted(RULE_FILES.glob("*.smk")))
    rules = re.split(r"(?m)^ *rule(?: (\w+):|:\n +name:\n +re\.sub\(.*f\"(\w+)_\{)", text)[1:]
    found = {named or drawn: body for named, drawn, body in zip(*[iter(rules)] * 3, strict=True)}
    assert found.keys() == RULES.keys()
    for name, body in found.items():
        for part in (f'outdated("{name}"', f'stamp("{name}"', f'spec("{name}"', "{output.stamp:q}"):
            assert part in body, (name, part)
