"""However Snakemake ends a job or a run, the last lines name the cause and what to do.

Each case is a real Snakemake on a tiny Snakefile with this workflow's hooks.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from her2.pipeline.claim import CLAIM_NAME, read_claim
from her2.pipeline.record import read_run
from tests.workflow.project import REPOSITORY, Project

SNAKEFILE = """
from pathlib import Path
from types import SimpleNamespace
from her2.core.errors import UserError
from her2.pipeline.clocks import accept_clock_skew
from her2.pipeline.progress import ProgressPrinter

PROGRESS = ProgressPrinter(
    SimpleNamespace(config=SimpleNamespace(results=Path(config.get("results", "results"))))
)
if workflow.is_main_process:
    PROGRESS.listen()
if not config.get("strict"):
    accept_clock_skew()
R = config.get("results", "results")

onstart:
    PROGRESS.begin(workflow)
onsuccess:
    PROGRESS.end(succeeded=True)
onerror:
    PROGRESS.end(succeeded=False)

rule all:
    input: f"{R}/b.json"
rule first:
    output: f"{R}/a.json"
    log: f"{R}/logs/first.log"
    shell: config.get("first", "echo > {output}") + " 2> {log}"
rule second:
    input: f"{R}/a.json"
    output: f"{R}/b.json"
    log: f"{R}/logs/second.log"
    shell: config.get("second", "echo > {output}")
def mistake(wildcards):
    raise UserError("A-1: no mask. Check `cohort.masks`.")

rule mistaken:
    output: f"{R}/mistaken.json"
    params: spec=mistake
    shell: "touch {output}"
rule start:
    localrule: True
    output: "results/first.json"
    shell: "echo > {output}"
rule reads_absent:
    input: "absent.csv"
    output: f"{R}/c.json"
    shell: "touch {output}"
rule many:
    output: f"{R}/{{name}}.many"
    shell: "exit 3"
rule folder:
    output: f"{R}/comparison"
    shell: "touch {output}"
rule inside:
    input: f"{R}/comparison"
    output: f"{R}/comparison/auc.csv"
    shell: "touch {output}"
rule one:
    output: f"{R}/{{x}}.twice"
    shell: "touch {output}"
rule two:
    output: f"{R}/{{y}}.twice"
    shell: "touch {output}"
"""


class Folder:
    """A working folder with the tiny Snakefile."""

    def __init__(self, folder: Path, warm: Path) -> None:
        self.path, self._command = folder, [str(warm / "snakemake"), "--cores", "1"]
        folder.mkdir(exist_ok=True)
        (folder / "Snakefile").write_text(SNAKEFILE)
        self._environment = {
            "PATH": f"{warm}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, *arguments], cwd=self.path, env=self._environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output


@pytest.fixture
def folder(tmp_path: Path, warm: Path) -> Folder:
    return Folder(tmp_path / "work", warm)


def last_words(output: str, start: str) -> str:
    """What we print at the end, on one line."""
    assert start in output, output
    return " ".join(output[output.index(start) :].split())


JOBS = {
    "killed": ("kill -9 $$", ("killed (signal SIGKILL)", "smaller `--cores`")),
    "stopped": ("kill -15 $$", ("signal SIGTERM", "Rerun the same command")),
    "crashed": ("kill -11 $$", ("crashed in a library, with signal SIGSEGV", "end of its log")),
    "interpreter_gone": (
        "no_such_program 2> {log}",
        ("not found. Activate the environment", "Its log ends:", "no_such_program"),
    ),
    "gave_no_reason": ("exit 3", ("exit status 3 and gave no reason", "see its log")),
    "made_nothing": (":", ("made_nothing.json did not appear within 0 s", "raise `latency-wait`")),
    "made_a_folder": ("mkdir {output}", ("made_a_folder.json is a folder", "Remove or rename")),
    "spoke": (
        "python -c 'import sys; from her2.core.events import begin_events, write_event;"
        """ begin_events(); write_event("failed", reason="A-1: no room"); sys.exit(1)' 2> {log}""",
        ("spoke: A-1: no room",),
    ),
}
"""Rule -> its command, and what the last lines must say of it."""

FAILING = """
rule {name}:
    output: "results/{name}.json"
    log: "results/logs/{name}.log"
    shell: {command!r}
"""


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, warm: Path) -> tuple[Path, str]:
    """The results and the output of a run in which every job fails in a way of its own."""
    folder = Folder(tmp_path_factory.mktemp("failed"), warm)
    with (folder.path / "Snakefile").open("a") as stream:
        stream.writelines(
            FAILING.format(name=name, command=command) for name, (command, _) in JOBS.items()
        )
    code, output = folder.run("--keep-going", "--latency-wait", "0", "results/b.json", *JOBS)
    assert code == 1
    return folder.path / "results", output


@pytest.mark.parametrize("name", JOBS)
def test_a_failed_job_is_listed_with_snakemakes_reason_in_our_words(
    failed: tuple[Path, str], name: str
) -> None:
    results, output = failed
    (words,) = re.findall(rf"(?ms)^{name}: .*?^    log: \S+$", output)
    for part in (*JOBS[name][1], f"log: results/logs/{name}.log"):
        assert part in " ".join(words.split())
    run = read_run(results)  # `her2 status` knows it too
    (index,) = (i for i, job in enumerate(run.jobs) if job.rule == name)
    assert index in run.reasons


def test_jobs_that_ended_well_are_not_listed(failed: tuple[Path, str]) -> None:
    results, output = failed
    assert f"\n{len(JOBS)} job(s) failed:" in output
    assert not (results / CLAIM_NAME).exists()


def test_an_earlier_attempt_that_failed_is_no_reason_when_the_next_succeeds(folder: Folder) -> None:
    flaky = "test -e tried || {{ touch tried; kill -9 $$; }}; echo > {output}"
    code, output = folder.run(
        "--retries", "1", "--keep-going", "--quiet", "--config", f"second={flaky}", "--",
        "results/b.json", "results/fails.many",
    )  # fmt: skip
    assert code == 1
    assert "1 job(s) failed:\nmany fails: " in output
    run = read_run(folder.path / "results")
    assert [run.jobs[index].rule for index in run.reasons] == ["many"]
    assert {run.jobs[index].rule for index in run.finished} == {"first", "second"}


def test_an_error_that_ends_snakemake_itself_is_explained_and_the_run_recorded(
    folder: Folder,
) -> None:
    spoil = "echo > {output}; rm -rf .snakemake/metadata; touch .snakemake/metadata"
    code, output = folder.run("--config", f"second={spoil}")
    assert code == 1
    words = last_words(output, "her2: ")
    assert "could not note that a job is finished" in words
    assert ".snakemake" in words
    assert read_run(folder.path / "results").succeeded is False
    assert not (folder.path / "results" / CLAIM_NAME).exists()


RUNS = {
    "a target that is none": (("featurs",), ("featurs is neither a target", "`features`")),
    "a rule with wildcards": (("many",), ("cannot be a target", "`train`")),
    "a file that nobody makes": (("reads_absent",), ("absent.csv", "Put them there, or name")),
    "a name below a file": (("inside",), ("results/comparison/auc.csv", "rename the encoder")),
    "a mistake that a job's parameters show": (
        ("mistaken",), ("her2: A-1: no mask. Check `cohort.masks`.",)
    ),
    "a name of two rules": (("results/x.twice",), ("two rules make results/x.twice", "Rename")),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_cannot_begin_is_explained(folder: Folder, name: str) -> None:
    targets, expected = RUNS[name]
    code, output = folder.run(*targets)
    assert code == 1
    words = last_words(output, "her2: ")
    for part in expected:
        assert part in words
    assert not (folder.path / "results").exists()


def test_the_workflow_itself_listens(warm: Path, tmp_path: Path) -> None:
    folder = Folder(tmp_path, warm)
    (tmp_path / "Snakefile").write_text(f'include: "{REPOSITORY / "Snakefile"}"')
    (tmp_path / "workflow").symlink_to(REPOSITORY / "workflow")  # the demo's manifest
    code, output = folder.run("-n", "featurs", f"--configfile={REPOSITORY / 'config.yaml'}")
    assert code == 1
    assert "her2: featurs is neither a target" in output


def test_results_from_the_future_do_not_stop_the_run(folder: Folder) -> None:
    assert folder.run("results/a.json")[0] == 0
    made = folder.path / "results/a.json"
    tomorrow = time.time() + 86_400
    os.utime(made, (tomorrow, tomorrow))
    code, output = folder.run("--config", "strict=1")
    assert code == 0, output
    assert "1 file(s) of the results were dated in the future" in output
    assert made.stat().st_mtime <= time.time()
    assert "Nothing to be done" in folder.run("--config", "strict=1", "-n")[1]


def test_a_project_made_on_a_machine_that_was_a_day_ahead_goes_on(project: Project) -> None:
    results = project.folder / "results"
    for path in results.rglob("*"):
        later = path.lstat().st_mtime + 86_400
        os.utime(path, (later, later), follow_symlinks=False)
    project.edit(report={"title": "Another title"})
    run = project.snakemake()
    assert run.code == 0, run.output
    assert run.rules == {"build_report": 1}
    assert "were dated in the future" in run.output
    outputs = [results / "cohort/slides.parquet", *results.glob("models/*/*/*/r*.json")]
    assert len(outputs) > 1
    assert max(path.stat().st_mtime for path in outputs) <= time.time()
    assert project.snakemake().idle


@pytest.mark.parametrize("strict", [False, True])
def test_a_job_whose_clock_is_behind_is_not_refused(folder: Folder, strict: bool) -> None:
    # As on a node that is ten minutes behind: the input, made elsewhere, seems to be from later.
    ahead = "touch -d '+10 minutes' results/a.json; echo > {output}"
    config = [f"second={ahead}", *(["strict=1"] if strict else [])]
    code, output = folder.run("--config", *config)
    assert code == int(strict), output
    if strict:  # what Snakemake does without our help, in our words
        words = last_words(output, "1 job(s) failed:")
        assert "results/a.json is dated later than results/b.json" in words
        assert "have the clocks set" in words
    else:
        assert "Nothing to be done" in folder.run("-n", "--config", *config)[1]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_second_run_on_the_same_results_is_refused_from_wherever_it_comes(
    folder: Folder, tmp_path: Path, warm: Path
) -> None:
    results = tmp_path / "shared"
    config = ("--config", f"results={results}")
    hold = f"first=touch {tmp_path}/begun; until test -e {tmp_path}/go; do sleep 0.05; done; echo >"
    first = folder.start(*config, f"{hold} {{output}}")
    try:
        wait_for(tmp_path / "begun")
        found = read_claim(results)
        assert found is not None
        other = Folder(tmp_path / "elsewhere", warm)
        code, output = other.run(*config)
        assert code == 1
        words = " ".join(output.split())
        for part in ("another run of snakemake is at work here", f"process {found.pid} on",
                     found.host, str(folder.path), "Wait until it ends"):  # fmt: skip
            assert part in words
        assert "Execute" not in output
        assert other.run(*config, "-n")[0] == 0  # looking is free
        code, output = folder.run(*config)
        assert code == 1
        words = last_words(output, "her2: ")
        assert f"at work in this folder: process {found.pid}" in words
        assert read_claim(results) == found  # neither took it away
        record = read_run(results)
    finally:
        (tmp_path / "go").touch()
        output, _ = first.communicate(timeout=60)
    assert first.returncode == 0, output
    assert read_run(results).began == record.began
    assert other.run(*config)[0] == 0
    assert not (results / CLAIM_NAME).exists()


def test_a_killed_run_holds_nothing_but_snakemakes_lock(folder: Folder, tmp_path: Path) -> None:
    hold = f"first=touch {tmp_path}/begun; until test -e {tmp_path}/go; do sleep 0.05; done"
    process = folder.start("--config", hold)
    wait_for(tmp_path / "begun")
    found = read_claim(folder.path / "results")
    assert found is not None
    os.kill(found.pid, signal.SIGKILL)
    (tmp_path / "go").touch()  # its job outlives it
    process.communicate(timeout=60)
    code, output = folder.run()
    assert code == 1
    words = last_words(output, "her2: ")
    assert f"was killed here and left its lock: process {found.pid} on" in words
    assert "Run `snakemake --unlock`" in words
    # As if it had been on another machine, from which it may still be at work.
    claim = folder.path / "results" / CLAIM_NAME
    claim.write_text(json.dumps(json.loads(claim.read_text()) | {"machine": "another"}))
    assert folder.run("--unlock")[0] == 0
    assert not claim.exists()
    assert folder.run("--rerun-incomplete")[0] == 0
