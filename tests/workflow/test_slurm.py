"""The shipped SLURM profile on a real cluster: nodes, GPUs, what is killed, and equal results."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from her2.storage.features import open_store, read_coords
from her2.synthetic import demo_manifest, draw_slide
from tests.workflow.cluster import GPUS, NODES, Cluster, NoCluster, cluster, why_not
from tests.workflow.conftest import copy
from tests.workflow.project import CONFIG, REPOSITORY, Project, _rules
from tests.workflow.test_endings import SNAKEFILE

pytestmark = [pytest.mark.slurm, pytest.mark.nightly]

PROFILE = REPOSITORY / "profiles" / "slurm"
LATE, CANCELLED = "0000-of-0002", "0001-of-0002"
"""The bucket that runs out of time, and the one that someone cancels."""

PYTHON = '''#!{python} -IS
"""Stands before the real one on the PATH: notes each stage, and lets the first try of some fail."""
import json, os, signal, sys
from pathlib import Path

real, notes = {python!r}, Path({notes!r})
arguments = sys.argv[1:]
stage = arguments[2] if arguments[:2] == ["-m", "her2"] else None
job = os.environ.get("SLURM_JOB_ID")
if stage and job:
    note = {{name: os.environ.get(name) for name in ("SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES")}}
    (notes / f"{{job}}.json").write_text(json.dumps({{"stage": stage, **note}}))
    output = Path(arguments[arguments.index("--out") + 1]).name
    first = notes / f"{{stage}}-{{output}}.tried"
    if stage in ("embed", "folds") and not first.exists():
        first.touch()
        if stage == "folds":
            hoard = b"x" * (2300 << 20)  # more than the rule's 2000 MB
            signal.pause()
        stuck = str(notes / f"{{output}}.stuck")
        os.execv(real, [real, "-c", {stuck!r}, stuck, *arguments[2:]])
os.execv(real, [real, *arguments])
'''

STUCK = """
import logging, os, sys, time
from pathlib import Path
from her2.cli.main import main

class Stop(logging.Handler):
    def emit(self, record):
        if "patches embedded" in record.getMessage():
            Path(mark).write_text(os.environ["SLURM_JOB_ID"])
            time.sleep(3600)

mark = sys.argv.pop(1)
logging.getLogger("her2.embedding.stage").addHandler(Stop())
main()
"""
"""The real command, which gets stuck once its first slide is in the cache."""


@dataclass(frozen=True)
class Ran:
    """The same cohort through SLURM and on this machine alone."""

    slurm: Project
    local: Project
    output: str
    code: int
    rest: Counter[str]
    jobs: tuple[dict[str, str], ...]
    notes: dict[str, dict[str, str | None]]

    def of(self, rule: str) -> list[dict[str, str]]:
        """The SLURM jobs of a rule, in order."""
        return [job for job in self.jobs if job["Comment"].startswith(f"rule_{rule}")]


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    reason = why_not()
    if reason is not None:
        # In CI a skipped cluster would look like a tested one.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no SLURM cluster: {reason}")
    try:
        with cluster() as made:
            yield made
    except NoCluster as error:
        pytest.fail(f"the SLURM cluster did not start: {error}")


@pytest.fixture(scope="module")
def ran(running: Cluster, warm: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One run through the shipped profile, with three accidents, and one without SLURM."""
    folder = tmp_path_factory.mktemp("slurm")
    local, slurm = (Project(folder / name) for name in ("local", "slurm"))
    draw(local)
    shutil.copytree(local.folder, slurm.folder)
    if other := other_disk(folder):
        slurm.edit(embedding={"scratch": str(other)})
    notes = folder / "notes"
    notes.mkdir()
    hooks = folder / "bin"
    hooks.mkdir()
    (hooks / "python").write_text(
        PYTHON.format(python=sys.executable, notes=str(notes), stuck=STUCK)
    )
    (hooks / "python").chmod(0o755)
    run = start(slurm, folder / "output.txt", hooks)
    try:
        baseline = start(local, folder / "local.txt", warm, nodes=False)
        try:
            accidents(running, notes, run)
            code = run.wait(480)
            jobs = tuple(running.jobs())
            assert running.ask("squeue", "--noheader").strip() == ""
            assert baseline.wait(480) == 0, (folder / "local.txt").read_text()
        finally:
            baseline.kill()
    finally:
        run.kill()
    rest = start(slurm, folder / "rest.txt", warm, nodes=False)
    assert rest.wait(480) == 0, (folder / "rest.txt").read_text()
    return Ran(
        slurm,
        local,
        (folder / "output.txt").read_text(),
        code,
        _rules((folder / "rest.txt").read_text()),
        jobs,
        {path.stem: json.loads(path.read_text()) for path in notes.glob("*.json")},
    )


def draw(project: Project) -> None:
    """Twelve small slides and one file that is none."""
    project.folder.mkdir()
    rows = demo_manifest(12, seed=7)
    for row in rows:
        draw_slide(
            **{name: row[name] for name in ("slide_id", "patient_id", "her2", "site")},
            seed=7,
            slide_path=project.folder / row["path"],
            mask_path=project.folder / "masks" / f"{row['slide_id']}.png",
            side_px=768,
        )
    (project.folder / "slides/text.svs").write_text("this is not a slide\n" * 50)
    project.write_rows([*(",".join(row.values()) for row in rows), "text,slides/text.svs,p,0,x"])
    (project.folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))


def other_disk(folder: Path) -> Path | None:
    """A folder on another disk than this one, with room for the slides."""
    for path in map(Path, ("/dev/shm", "/run", "/var/tmp", "/root", "/tmp")):
        other = path.is_dir() and path.stat().st_dev != folder.stat().st_dev
        if other and shutil.disk_usage(path).free > 1 << 30:
            return path
    return None


def start(
    project: Project, output: Path, first: Path, *, nodes: bool = True
) -> subprocess.Popen[bytes]:
    """Snakemake as docs/slurm.md calls it, as far as the models, with `first` first on the PATH;
    or, without `nodes`, everything on this machine."""
    binaries = Path(sys.executable).parent
    # Only the pace is another one: a look after 2 s and then after 12, when short jobs are done.
    pace = ("init-seconds-before-status-checks", "seconds-between-status-checks")
    profile = ("--workflow-profile", str(PROFILE), f"--slurm-{pace[0]}=2", f"--{pace[1]}=2")
    how = (*profile, "train") if nodes else ("--cores", "2")
    with output.open("wb") as stream:
        return subprocess.Popen(
            [str(binaries / "snakemake"), "--snakefile", str(REPOSITORY / "Snakefile"), *how,
             "--configfile", "config.yaml"],
            cwd=project.folder, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL,
            env={
                "PATH": f"{first}:{binaries}:/usr/local/bin:/usr/bin:/bin:/usr/sbin",
                "HOME": str(project.folder),
                "OMP_NUM_THREADS": "1",
            },
        )  # fmt: skip


def accidents(made: Cluster, notes: Path, run: subprocess.Popen[bytes]) -> None:
    """Once both buckets are stuck halfway: one is cancelled, of the other the time is up."""
    waiting = {LATE, CANCELLED}
    deadline = time.monotonic() + 240
    while waiting and run.poll() is None and time.monotonic() < deadline:
        for bucket in sorted(waiting):
            stuck = notes / f"{bucket}.json.stuck"
            job = stuck.read_text() if stuck.exists() else ""
            if not job:
                continue
            if bucket == CANCELLED:
                made.ask("scancel", job)
            else:  # instead of waiting for hours: its limit is now
                made.ask("scontrol", "update", f"JobId={job}", "EndTime=now+2")
            waiting.discard(bucket)
        time.sleep(0.3)


def test_the_run_ends_well_after_all_accidents(ran: Ran) -> None:
    assert ran.code == 0, ran.output
    rules = _rules(ran.output)
    assert rules == {
        "materialise_encoder": 1, "tile_bucket": 2, "audit_cohort": 1, "embed_bucket": 2,
        "audit_overlap": 1, "find_similar_slides": 1, "make_folds": 1, "train_folds": 1, "train": 1,
    }  # fmt: skip
    assert len(ran.jobs) == 7 + 3  # three local rules, three jobs that are tried twice


def test_both_nodes_worked(ran: Ran) -> None:
    nodes = {note["SLURMD_NODENAME"] for note in ran.notes.values()}
    assert nodes == set(NODES)


def test_a_cancelled_job_is_tried_again_with_more(ran: Ran) -> None:
    first, second = [job for job in ran.of("embed_bucket") if CANCELLED in job["Comment"]]
    assert (first["JobState"], second["JobState"]) == ("CANCELLED", "COMPLETED")
    assert f"SLURM-job '{first['JobId']}' failed, SLURM status is: 'CANCELLED'" in ran.output
    assert (first["MinMemoryNode"], second["MinMemoryNode"]) == ("8000M", "16000M")
    assert (first["TimeLimit"], second["TimeLimit"]) == ("02:00:00", "04:00:00")


def test_a_job_out_of_time_is_tried_again_with_more(ran: Ran) -> None:
    first, second = [job for job in ran.of("embed_bucket") if LATE in job["Comment"]]
    assert (first["JobState"], second["JobState"]) == ("TIMEOUT", "COMPLETED")
    assert f"SLURM-job '{first['JobId']}' failed, SLURM status is: 'TIMEOUT'" in ran.output
    assert second["TimeLimit"] == "04:00:00"


@pytest.mark.parametrize("bucket", [LATE, CANCELLED])
def test_the_retry_goes_on_where_the_killed_job_stopped(ran: Ran, bucket: str) -> None:
    log = (ran.slurm.folder / f"results/logs/embed_bucket/tiny/{bucket}.log").read_text()
    kept = re.findall(r"(\S+): \d+ features from the cache", log)
    made = re.findall(r"(\S+): \d+ patches embedded", log)
    assert len(kept) == 1
    assert len(made) >= 4
    features = json.loads((ran.slurm.folder / f"results/features/tiny/{bucket}.json").read_text())
    assert sorted(kept + made) == sorted(
        name for name, entry in features.items() if entry["status"] == "ok"
    )


def test_slides_are_read_from_the_nodes_disk_and_nothing_stays_there(ran: Ran) -> None:
    scratch = other_disk(ran.slurm.folder)
    if scratch is None:
        pytest.skip("this machine has no second disk with 1 GB of room")
    for bucket in (LATE, CANCELLED):
        log = (ran.slurm.folder / f"results/logs/embed_bucket/tiny/{bucket}.log").read_text()
        (copied, opened) = re.findall(
            rf"scratch disk {scratch}: (\d+) of (\d+) slides were read from copies there", log
        )[0]
        assert copied == opened
        assert int(opened) == len(re.findall(r"patches embedded", log))
    # The killed jobs' copies as well: those that came after them removed them.
    assert list(scratch.glob("her2-slides-*")) == []


def test_a_job_out_of_memory_is_reported_with_its_log_and_gets_more(ran: Ran) -> None:
    first, second = ran.of("make_folds")
    assert (first["JobState"], second["JobState"]) == ("FAILED", "COMPLETED")
    assert (first["MinMemoryNode"], second["MinMemoryNode"]) == ("2000M", "4000M")
    log = Path(".snakemake/slurm_logs/rule_make_folds/score") / f"{first['JobId']}.log"
    assert str(log) in ran.output
    assert "exceeded memory limit" in (ran.slurm.folder / log).read_text()
    assert "results/logs/make_folds/score.log" in ran.output


def test_a_slide_that_is_none_is_left_out_with_its_reason_and_log(ran: Ran) -> None:
    table = pl.read_parquet(ran.slurm.folder / "results/cohort/slides.parquet")
    unusable = table.filter(pl.col("status") != "ok")
    assert unusable["slide_id"].to_list() == ["text"]
    assert unusable["reason"].item().startswith("not a slide")
    logs = (ran.slurm.folder / "results/logs/tile_bucket").rglob("*.log")
    assert sum("text: " in log.read_text() for log in logs) == 1


def test_rules_that_can_use_a_gpu_ask_for_one_and_the_others_for_none(ran: Ran) -> None:
    for job in ran.jobs:
        gpu = job["Comment"].startswith("rule_embed_bucket")
        assert job.get("TresPerJob") == ("gres:gpu:1" if gpu else None), job["Comment"]
        assert job["Partition"] == ("gpu" if gpu else "cpu")
    devices: dict[str | None, set[str | None]] = {}
    for note in ran.notes.values():
        devices.setdefault(note["stage"], set()).add(note["CUDA_VISIBLE_DEVICES"])
    assert devices.pop("embed") <= {"0", "1"}
    assert set().union(*devices.values()) == {None}


def test_two_jobs_side_by_side_have_each_its_own_gpu(ran: Ran) -> None:
    first = [
        ran.notes[next(job["JobId"] for job in ran.of("embed_bucket") if bucket in job["Comment"])]
        for bucket in (LATE, CANCELLED)
    ]
    # Both were stuck at the same time, on the one node that has GPUs.
    assert {note["SLURMD_NODENAME"] for note in first} == set(GPUS)
    assert {note["CUDA_VISIBLE_DEVICES"] for note in first} == {"0", "1"}


def test_a_gpu_that_cannot_be_used_is_said_out_loud(ran: Ran) -> None:
    for bucket in (LATE, CANCELLED):
        log = (ran.slurm.folder / f"results/logs/embed_bucket/tiny/{bucket}.log").read_text()
        assert re.search(r"WARNING device: CPU.*CUDA_VISIBLE_DEVICES='[01]'", log), log


def test_manifests_and_tables_are_those_of_a_local_run(ran: Ran) -> None:
    bytewise = ("tiles/*/*.json", "features/*/*.json", "models/*/*/*/*.json", "report/tables/*.csv")
    tables = (
        "cohort/*.parquet",
        "folds/*.parquet",
        "evaluation/*/*/*/*.parquet",
        "attention/*/*/*/*.parquet",
    )
    for pattern in (*bytewise, *tables):
        paths = sorted((ran.local.folder / "results").glob(pattern))
        assert paths, pattern
        for path in paths:
            other = ran.slurm.folder / path.relative_to(ran.local.folder)
            if path.name == "throughput.csv":
                continue  # of seconds, not of slides
            if pattern in bytewise:
                assert other.read_bytes() == path.read_bytes(), path
            else:
                assert pl.read_parquet(other).equals(pl.read_parquet(path)), path


def test_feature_stores_hold_what_a_local_run_stores(ran: Ran) -> None:
    stores = sorted((ran.local.folder / "results/features/tiny").glob("*.zarr.zip"))
    assert len(stores) == 12
    for path in stores:
        other = ran.slurm.folder / path.relative_to(ran.local.folder)
        np.testing.assert_array_equal(read_coords(other), read_coords(path))
        np.testing.assert_array_equal(open_store(other).features, open_store(path).features)


def test_what_the_cluster_began_one_machine_finishes(ran: Ran) -> None:
    assert set(ran.rest) == {
        "tabulate_cohort", "evaluate", "compare_encoders", "measure_robustness", "control",
        "draw_heatmaps", "measure_attention", "build_report",
    }  # fmt: skip
    assert (ran.slurm.folder / "results/report/report.html").stat().st_size > 10_000


def test_ctrl_c_cancels_what_is_in_the_queue_and_leaves_no_lock(
    ran: Ran, running: Cluster, tmp_path: Path
) -> None:
    project = copy(ran.slurm, tmp_path / "project")
    project.edit(heads={"abmil": {"attention": 8}})
    before = len(running.jobs())
    run = start(project, tmp_path / "output.txt", ran.slurm.folder.parent / "bin")
    try:
        wait_for(lambda: any(job["JobState"] == "RUNNING" for job in running.jobs()[before:]))
        run.send_signal(signal.SIGINT)
        assert run.wait(120) != 0
    finally:
        run.kill()
    wait_for(lambda: not running.ask("squeue", "--noheader").strip())
    (job,) = running.jobs()[before:]
    assert job["Comment"].startswith("rule_train_folds")
    assert job["JobState"] == "CANCELLED"
    again = project.snakemake("--dry-run")
    assert again.code == 0, again.output
    assert "train_folds" in again.output


ENDS = {
    "cancelled": ("scancel $SLURM_JOB_ID; sleep 60", "SLURM cancelled it"),
    "hoards": (
        "python -c 'import time; kept = bytes(1 << 30) + bytes(1 << 30); time.sleep(120)'",
        "it used more memory than it had asked for, and SLURM killed it. Raise `mem_mb`",
    ),
    "killed": ("kill -9 $$", "it was killed (signal SIGKILL)"),
    "refused": ("echo > {output}", "SLURM did not accept it: sbatch: error: invalid partition"),
    "made_nothing": (":", "its command ended well, but results/made_nothing.json did not"),
    "node_behind": ("touch -d '+10 minutes' results/first.json; echo > {output}", None),
}
"""Rule -> its command, and what the list of failed jobs says of it; None: it does not fail."""

RULE = """
rule {name}:
    input: "results/first.json"
    output: "results/{name}.json"
    log: "results/logs/{name}.log"
    resources: slurm_partition={partition!r}, mem_mb=500, runtime=5
    shell: {command!r}
"""


def test_how_a_job_on_a_node_ended_is_told(running: Cluster, tmp_path: Path) -> None:
    rules = [
        RULE.format(name=name, command=command, partition="none" if name == "refused" else "cpu")
        for name, (command, _) in ENDS.items()
    ]
    (tmp_path / "Snakefile").write_text(SNAKEFILE + "".join(rules))
    done = subprocess.run(
        [str(Path(sys.executable).with_name("snakemake")), "--executor", "slurm", "--jobs", "8",
         "--slurm-status-command", "squeue", "--slurm-no-account", "--keep-going",
         "--slurm-init-seconds-before-status-checks=2", "--seconds-between-status-checks=2",
         "--latency-wait", "2", *ENDS],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin",
            "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY),
        },
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == 1
    failed = {name: words for name, (_, words) in ENDS.items() if words}
    assert f"\n{len(failed)} job(s) failed:" in output, output
    for name, words in failed.items():
        assert f"\n{name}: {words}" in output, output
    assert (tmp_path / "results/node_behind.json").exists()


def wait_for(happened: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.3)
