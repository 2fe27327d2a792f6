"""What jobs say of themselves, and what is made of it when Snakemake's own records are gone."""

import json
import os
import shutil
from pathlib import Path

import pytest

from her2.cohort.reading import configured_cohort
from her2.config import load_config
from her2.core.stamps import read_stamp
from her2.pipeline.current import outdated_jobs
from her2.pipeline.job_table import planned_jobs
from her2.pipeline.plan import Plan
from tests.workflow.project import Project

UNREAD = {
    "train_folds": {
        "encoders/tiny/overlap.json",
        "features/tiny/similar.parquet",
    },  # waits for the checks
    "embed_bucket": {"encoders/tiny/weights.safetensors"},  # compared with the card when loaded
}
"""Rule -> inputs that only order its jobs, or that its stamp need not name."""


@pytest.fixture
def plan(project: Project, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """That of a finished project, from inside its folder."""
    monkeypatch.chdir(project.folder)
    config = load_config(Path("config.yaml"))
    return Plan(config, configured_cohort(config, config.cohort.slides, config.cohort.root))


def test_the_job_table_has_the_jobs_and_specs_that_snakemake_ran(plan: Plan) -> None:
    jobs = {job.stamp(Path("results")): job for job in planned_jobs(plan)}
    assert jobs.keys() == set(Path("results/stamps").rglob("*.json"))
    for path, job in jobs.items():
        stamp = read_stamp(path)
        assert stamp is not None
        assert stamp.spec == json.loads(job.spec(plan))


def test_a_stamp_names_every_result_that_its_job_read(project: Project, plan: Plan) -> None:
    """As the rules' inputs say; the report also reads tables beside those that it waits for."""
    listed = project.snakemake("--detailed-summary").output.splitlines()
    rows = [line.split("\t") for line in listed if line.startswith("results/stamps")]
    made: set[str] = set()
    stamps = {}
    for output, _, rule, _, inputs, *_ in rows:
        stamp = read_stamp(Path(output))
        assert stamp is not None
        assert stamp.made
        made |= stamp.made.keys()
        declared = {name.removeprefix("results/") for name in inputs.split(",") if name}
        stamps[rule] = stamp
        assert declared - stamp.read.keys() == UNREAD.get(rule, set()), rule
        assert rule == "build_report" or stamp.read.keys() <= declared, rule
    histories = {n for n in stamps["build_report"].read if n.endswith("/history.parquet")}
    assert set().union(*(stamp.read for stamp in stamps.values())) <= made | histories


@pytest.mark.parametrize(
    ("edited", "rule"),
    [
        ("tiles/64px-1mpp/0000-of-0002.json", "tile_bucket"),
        ("encoders/tiny/card.json", "materialise_encoder"),
        ("evaluation/score/tiny/abmil/metrics.parquet", "evaluate"),
        ("cohort/slides.csv", "tabulate_cohort"),
        ("report/report.html", "build_report"),
    ],
)
def test_a_result_that_was_changed_by_hand_is_not_current(
    plan: Plan, edited: str, rule: str
) -> None:
    path = Path("results") / edited
    path.write_bytes(path.read_bytes() + b"\n")
    found = {outdated.job.rule: outdated.reason for outdated in outdated_jobs(plan)}
    assert found.pop(rule) == f"its result {edited} was changed or removed"
    assert all(reason == f"its input {edited} has changed since" for reason in found.values())


def test_a_picture_that_was_changed_or_removed_is_drawn_again(plan: Plan) -> None:
    first, second = sorted(Path("results/heatmaps").rglob("*.png"))[:2]
    first.write_bytes(b"no picture")
    assert [found.job.rule for found in outdated_jobs(plan)] == ["draw_heatmaps"]
    first.unlink()
    second.unlink()
    assert [found.job.rule for found in outdated_jobs(plan)] == ["draw_heatmaps"]


def test_weights_that_were_cut_short_are_made_again(plan: Plan) -> None:
    Path("results/encoders/tiny/weights.safetensors").write_bytes(b"")
    assert [found.job.rule for found in outdated_jobs(plan)] == ["materialise_encoder"]


@pytest.mark.parametrize(
    "spoilt",
    [b"{", b"", b"[]", b'{"job": "make_folds/score", "spec": {}, "read": null, "made": {}}', None],
)
def test_a_job_whose_stamp_cannot_be_read_is_not_current(plan: Plan, spoilt: bytes | None) -> None:
    job = next(job for job in planned_jobs(plan) if job.rule == "make_folds")
    stamp = job.stamp(Path("results"))
    stamp.unlink()
    if spoilt is not None:
        stamp.write_bytes(spoilt)
    assert outdated_jobs(plan) == []
    assert [found.reason for found in outdated_jobs(plan, unstamped=True)] == [
        "nothing says which config its results were made with"
    ]


def test_the_stamp_of_another_job_is_not_believed(plan: Plan) -> None:
    """The specs of two encoders' jobs can be the same, and a stamp names the files of its own."""
    first, second = sorted(Path("results/stamps/embed_bucket/tiny").iterdir())
    shutil.copyfile(first, second)
    assert [found.job.values[-1] for found in outdated_jobs(plan, unstamped=True)] == [second.stem]


def test_results_that_may_not_be_read_are_not_taken_for_current(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("her2.pipeline.current.short_digest", refuse)
    assert {found.job.rule for found in outdated_jobs(plan)} >= {"make_folds", "build_report"}


def test_results_of_another_config_copied_over_are_not_believed(
    project: Project, tmp_path: Path
) -> None:
    """Features made, records lost, the threshold changed."""
    other = tmp_path / "elsewhere"
    shutil.copytree(project.folder, other, ignore=shutil.ignore_patterns(".snakemake"))
    moved = Project(other, project.warm)
    moved.edit(tiling={"min_tissue": 0.9})
    run = moved.snakemake("--dry-run", "features")
    assert run.planned["tile_bucket"] == 2
    assert "build_report" not in run.planned, "a target of stage 1 does not grow into the whole run"
    state = moved.her2("status").stdout
    assert "would run again under this config" in state
    assert "tile_bucket 64px-1mpp/0000-of-0002: its results were made with another config" in state
    told = moved.her2("explain", moved.rows()[0].split(",")[0]).stdout
    assert "its results were made with another config" in told
    assert "tiling.min_tissue: 0.3 -> 0.9" in told
    said = moved.snakemake("features").output
    assert (
        "her2: tile_bucket, 2 job(s): its results were made with another config; "
        "tiling.min_tissue: 0.3 -> 0.9\n"
    ) in said


def test_a_job_that_ran_on_older_inputs_runs_again_whatever_the_times_say(
    project: Project,
) -> None:
    """Interrupted after new features, then copied: what was trained is newer by its time alone."""
    project.edit(tiling={"min_tissue": 0.5})
    assert project.snakemake("features").code == 0
    shutil.rmtree(project.folder / ".snakemake")
    for path in sorted((project.folder / "results/folds").rglob("*.parquet")):
        path.touch()
    for path in sorted((project.folder / "results/models").rglob("r*.json")):
        path.touch()
    for folder in ("evaluation", "controls", "heatmaps", "attention", "report"):
        for path in sorted((project.folder / "results" / folder).rglob("*")):
            path.touch()
    run = project.snakemake("--dry-run")
    assert {"train_folds", "evaluate", "build_report"} <= run.planned.keys()
    assert "tile_bucket" not in run.planned


def test_a_check_that_fails_makes_the_job_run_again(project: Project) -> None:
    """Snakemake takes the file of a job whose inputs cannot be told for a source, silently."""
    (project.folder / "results/stamps/make_folds/score.json").unlink()
    os.mkfifo(project.folder / "results/stamps/make_folds/score.json")
    stamp = project.folder / "results/stamps/evaluate/score/tiny/abmil.json"
    values = json.loads(stamp.read_text())
    stamp.write_text(json.dumps({**values, "made": {"x" * 5000: "y"}}))
    run = project.snakemake("--dry-run")
    assert {"make_folds", "evaluate"} <= run.planned.keys()


def test_a_slide_of_the_future_is_like_any_other(project: Project) -> None:
    """A clock ahead once failed its bucket for ever, and an archive cannot be touched."""
    slide = project.folder / project.rows()[0].split(",")[1]
    os.utime(slide, (4102444800, 4102444800))  # 2100
    run = project.snakemake()
    assert run.code == 0, run.output
    assert run.work == {"tiled": [], "embedded": [], "trained": []}
    assert project.snakemake("--dry-run").idle
