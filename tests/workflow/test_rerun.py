"""Only what changed runs again: the rules that Snakemake ran, and the work they really did."""

import shutil

import pytest

from tests.workflow.project import Project

pytestmark = pytest.mark.xdist_group("workflow")

EVALUATION = {"evaluate", "compare_encoders", "draw_heatmaps", "build_report"}


def test_the_first_run_does_each_thing_once(finished: Project) -> None:
    work = finished._work()
    slides = sorted(row.split(",")[0] for row in finished.rows())
    assert work["tiled"] == slides
    assert work["embedded"] == slides
    assert work["trained"] == ["r0f0", "r0f1"]
    assert (finished.folder / "results/report/report.html").stat().st_size > 10_000


def test_a_second_run_has_nothing_to_do(project: Project) -> None:
    run = project.snakemake()
    assert run.idle, run.output
    assert run.code == 0


def test_a_head_option_trains_and_what_follows(project: Project) -> None:
    project.edit(heads={"abmil": {"attention": 8}})
    run = project.snakemake()
    assert run.code == 0, run.output
    assert set(run.rules) == {"train_folds", *EVALUATION}
    assert run.work == {"tiled": [], "embedded": [], "trained": ["r0f0", "r0f1"]}


def test_a_head_option_changed_back_trains_nothing(project: Project) -> None:
    project.edit(heads={"abmil": {"attention": 8}})
    project.snakemake()
    project.edit(heads={"abmil": {"attention": 16}})
    run = project.snakemake()
    assert run.code == 0, run.output
    assert run.work["trained"] == []


def test_an_added_slide_is_tiled_and_embedded_alone(project: Project) -> None:
    project.write_rows([*project.rows(), "spare-a,slides/spare-a.svs,spare,0,north"])
    run = project.snakemake()
    assert run.code == 0, run.output
    assert run.work["tiled"] == ["spare-a"]
    assert run.work["embedded"] == ["spare-a"]


def test_deleted_results_cost_no_stage_1_and_no_training(project: Project) -> None:
    shutil.rmtree(project.folder / "results")
    run = project.snakemake()
    assert run.code == 0, run.output
    assert run.rules["embed_bucket"] == 2
    assert run.work == {"tiled": [], "embedded": [], "trained": []}


def test_a_touched_slide_costs_no_work(project: Project) -> None:
    next((project.folder / "slides").glob("*.svs")).touch()
    run = project.snakemake()
    assert run.code == 0, run.output
    assert run.work == {"tiled": [], "embedded": [], "trained": []}


def test_a_report_title_rebuilds_the_report_alone(project: Project) -> None:
    project.edit(report={"title": "Another title"})
    run = project.snakemake()
    assert run.code == 0, run.output
    assert set(run.rules) == {"build_report"}


def test_the_manifests_order_changes_nothing(project: Project) -> None:
    project.write_rows(project.rows()[::-1])
    run = project.snakemake()
    assert run.idle, run.output


def test_the_default_profile_is_not_needed(project: Project) -> None:
    run = project.snakemake("--workflow-profile", "none")
    assert run.idle, run.output


def test_named_targets_stop_where_they_say(project: Project) -> None:
    shutil.rmtree(project.folder / "results")
    run = project.snakemake("features")
    assert run.code == 0, run.output
    assert set(run.rules) == {
        "tile_bucket", "audit_cohort", "materialise_encoder", "embed_bucket", "features",
    }  # fmt: skip
