"""External cohorts in a run: other truths, no labels, a model of all patients, and leaks."""

import shutil

import polars as pl
import pytest

from tests.workflow.conftest import elsewhere
from tests.workflow.project import Project, Run

STATUS = {
    "of": "score",
    "label": "status",
    "classes": {"negative": ["Negative"], "positive": ["Positive"]},
    "positive": ["high"],
}


@pytest.fixture(scope="module")
def cohorts(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Run]:
    """One run with three cohorts: a status as truth, no labels, and one with a model of all."""
    folder = tmp_path_factory.mktemp("cohorts") / "project"
    shutil.copytree(finished.folder, folder, copy_function=shutil.copy2, symlinks=True)
    project = Project(folder, finished.warm)
    rows = elsewhere()[:4]
    project.write_rows([",".join(row.values()) for row in rows], "east.csv")
    texts = ["slide_id,path,patient_id,status"]
    texts += [
        f"{row['slide_id']},{row['path']},{row['patient_id']},{status}"
        for row, status in zip(rows, ("Negative", "Negative", "Positive", ""), strict=True)
    ]
    (folder / "yale.csv").write_text("\n".join(texts) + "\n")
    plain = [f"{row['slide_id']},{row['path']},{row['patient_id']}" for row in rows[:2]]
    (folder / "plain.csv").write_text("\n".join(["slide_id,path,patient_id", *plain]) + "\n")
    project.edit(
        validation={
            "yale": {"slides": "yale.csv", "tasks": {"status": STATUS}},
            "plain": {"slides": "plain.csv"},
            "whole": {"slides": "east.csv", "final": "refit"},
        }
    )
    return project, project.snakemake()


def table(project: Project, path: str) -> pl.DataFrame:
    return pl.read_parquet(project.folder / "results/validation" / path)


def test_nothing_of_the_development_runs_again(cohorts: tuple[Project, Run]) -> None:
    project, run = cohorts
    assert run.code == 0, run.output
    assert not run.work["trained"] or run.work["trained"] == ["refit"]
    assert run.rules["train_folds"] == run.rules["evaluate"] == 0
    assert sorted(set(run.work["embedded"])) == [f"east-{n}" for n in range(4)]
    assert len(run.work["embedded"]) == 4  # the cohorts share slides, and the cache the features
    assert project.snakemake("--dry-run").idle


def test_two_classes_are_the_truth_of_a_model_of_others(cohorts: tuple[Project, Run]) -> None:
    project, _ = cohorts
    given = table(project, "yale/predictions/score/tiny/abmil/predictions.parquet")
    found = table(project, "yale/evaluation/status/tiny/abmil/predictions.parquet")
    both = found.join(given, on="slide_id")
    assert len(both) == 4
    for row in both.iter_rows(named=True):
        assert row["prob_positive"] == pytest.approx(row["prob_high"])
        assert row["prob_negative"] == pytest.approx(row["prob_low"])
    roles = dict(found.select("slide_id", "role").iter_rows())
    assert roles == {"east-0": "test", "east-1": "test", "east-2": "test", "east-3": "predict"}


def test_slides_without_labels_are_predicted_and_not_evaluated(
    cohorts: tuple[Project, Run],
) -> None:
    project, _ = cohorts
    assert len(table(project, "plain/predictions/score/tiny/abmil/predictions.parquet")) == 2
    metrics = table(project, "plain/evaluation/score/tiny/abmil/metrics.parquet")
    assert metrics["value"].is_null().all()
    assert metrics["note"].str.contains("not defined").all()


def test_a_model_of_all_patients_predicts_where_it_is_asked_for(
    cohorts: tuple[Project, Run],
) -> None:
    project, run = cohorts
    assert run.rules["refit_model"] == 1
    each = table(project, "whole/predictions/score/tiny/abmil/each.parquet")
    assert set(each["run"]) == {"refit"}
    assert set(table(project, "yale/predictions/score/tiny/abmil/each.parquet")["run"]) == {
        "r0f0",
        "r0f1",
    }


def test_the_page_shows_every_cohort(cohorts: tuple[Project, Run]) -> None:
    project, _ = cohorts
    page = (project.folder / "results/report/report.html").read_text()
    assert "External validation" in page
    for name in ("yale", "plain", "whole"):
        assert name in page


def test_a_patient_of_both_cohorts_stops_the_run_before_any_job(project: Project) -> None:
    first = project.rows()[0].split(",")
    row = {**elsewhere()[0], "patient_id": first[2]}
    project.write_rows([",".join(row.values())], "east.csv")
    project.edit(validation={"east": {"slides": "east.csv"}})
    run = project.snakemake()
    assert run.code == 1
    assert not run.rules
    assert "validation.east: shares patients" in run.output
    assert f"east-0 here, and {first[0]} in development" in run.output
    assert "Traceback" not in run.output


def test_a_copied_slide_stops_the_run_with_both_names(project: Project) -> None:
    first = project.rows()[0].split(",")
    shutil.copyfile(project.folder / first[1], project.folder / "slides/copy.svs")
    row = {**elsewhere()[0], "slide_id": "copy", "path": "slides/copy.svs"}
    project.write_rows([",".join(row.values())], "east.csv")
    project.edit(validation={"east": {"slides": "east.csv"}})
    run = project.snakemake("results/validation/east/cohort/apart.json")
    assert run.code == 1
    assert f"slide copy (patient e0) has the same content as slide {first[0]}" in run.output
