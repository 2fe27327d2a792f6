"""The terminal's view of a run, from its record and its jobs' events."""

import io
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import yaml

from her2.cli.inspect import _run_lines, show_status
from her2.core.errors import UserError
from her2.core.events import Event
from her2.core.pace import duration
from her2.pipeline.lines import failure_lines, stage_line, working_lines
from her2.pipeline.plan import Plan
from her2.pipeline.progress import ProgressPrinter
from her2.pipeline.record import (
    RECORD_NAME,
    Job,
    RunRecord,
    begin_run,
    planned_jobs,
    read_run,
    run_state,
)
from her2.pipeline.status import RunProgress, Stage, disk_usage, failures
from tests.workflow.project import CONFIG

BEGAN = 1_000_000.0


def began(time: float = BEGAN) -> Event:
    return Event("began", time=time)


def embedded(name: str, tiles: int) -> Event:
    return Event("embedded", name, tiles=tiles)


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    """Two embedding jobs of three and two slides, and a training job; nothing has begun."""
    (tmp_path / "tiles").mkdir()
    for name, tiles in (("a", (100, 50, 50)), ("b", (70, 30))):
        entries = {f"{name}{i}": {"status": "ok", "tiles": n} for i, n in enumerate(tiles)}
        (tmp_path / f"tiles/{name}.json").write_text(json.dumps(entries))
        os.utime(tmp_path / f"tiles/{name}.json", (1, 1))
    jobs = [
        Job("embed_bucket", f"tiny/{n}", f"logs/{n}.log", k, f"tiles/{n}.json")
        for n, k in (("a", 3), ("b", 2))
    ]
    jobs.append(Job("train_folds", "score/tiny", "logs/train.log"))
    (tmp_path / "logs").mkdir()
    return RunRecord(
        host=socket.gethostname(), pid=2**22 + 1, folder=str(tmp_path), began=time.time(),
        began_on_disk=time.time() - 60, rules=("tile_bucket", "embed_bucket", "train_folds"),
        up_to_date={"tile_bucket": 4}, jobs=tuple(jobs),
    )  # fmt: skip


def write(run: RunRecord, name: str, *events: Event) -> None:
    with Path(run.folder, f"logs/{name}.jsonl").open("a") as stream:
        stream.writelines(f"{json.dumps(asdict(event))}\n" for event in events)


NO_JOBS = SimpleNamespace(dag=SimpleNamespace(jobs=[]))


def plan_of(run: RunRecord) -> Plan:
    return cast(Plan, SimpleNamespace(config=SimpleNamespace(results=Path(run.folder))))


def stages(run: RunRecord) -> list[Stage]:
    return RunProgress(run).update()


def test_jobs_without_events_are_waiting(run: RunRecord) -> None:
    tile, embed, train = stages(run)
    assert (tile.rule, tile.up_to_date, tile.jobs) == ("tile_bucket", 4, ())
    assert (embed.count("waiting"), train.count("waiting")) == (2, 1)
    assert working_lines([tile, embed, train], time.time()) == []


def test_slides_and_tiles_of_a_running_job_are_counted(run: RunRecord) -> None:
    write(run, "a", began(), embedded("a0", 100), Event("embedded", "a1", cached=True, tiles=50))
    embed = stages(run)[1]
    assert embed.count("running") == 1
    assert embed.slides == (2, 5)
    assert embed.tiles == (150, 300)  # those of the job that waits count, once they are cut


def test_a_slide_that_is_left_out_counts_as_handled(run: RunRecord) -> None:
    write(run, "a", began(), Event("left_out", "a2", reason="9 of 50 tiles"))
    assert stages(run)[1].slides == (1, 5)


def test_time_left_is_what_remains_at_the_pace_so_far(run: RunRecord) -> None:
    write(run, "a", began(), embedded("a0", 50))
    embed = stages(run)[1]
    # 50 of the 300 tiles took 60 s, so 250 take 300 s.
    assert embed.seconds_left(BEGAN + 60) == pytest.approx(300)
    line = stage_line(embed, BEGAN + 60)
    assert line == "embed_bucket: 0 of 2 jobs, 1 of 5 slides, 50 of 300 tiles, 5 min left"


def test_time_left_goes_by_slides_while_tiles_are_still_being_cut(run: RunRecord) -> None:
    Path(run.folder, "tiles/b.json").unlink()
    write(run, "a", began(), embedded("a0", 50))
    embed = stages(run)[1]
    assert embed.seconds_left(BEGAN + 60) == pytest.approx(240)  # one of five slides took 60 s


def test_time_left_goes_by_jobs_where_they_handle_no_slides(run: RunRecord) -> None:
    drawing = replace(
        run, jobs=tuple(Job("draw", str(i), f"logs/{i}.log") for i in range(4)),
        rules=("draw",), up_to_date={},
    )  # fmt: skip
    write(drawing, "0", began(), Event("ended"))
    (draw,) = stages(drawing)
    # One of four took 30 s, so three take 90.
    assert stage_line(draw, BEGAN + 30) == "draw: 1 of 4 jobs, 2 min left"


def test_a_job_that_ended_is_done_with_all_its_slides(run: RunRecord) -> None:
    write(run, "a", began(), embedded("a0", 100), Event("ended"))
    embed = stages(run)[1]
    assert (embed.count("done"), embed.count("waiting")) == (1, 1)
    assert embed.slides == (3, 5)


def test_a_failed_job_is_named_with_its_reason_and_log(run: RunRecord) -> None:
    write(run, "a", began(), Event("failed", reason="a1: no room on the disk\n  - free some"))
    assert "\n".join(failure_lines(failures(stages(run)))) == (
        "embed_bucket tiny/a: a1: no room on the disk\n      - free some\n    log: logs/a.log"
    )


def test_another_attempt_begins_anew(run: RunRecord) -> None:
    progress = RunProgress(run)
    write(run, "a", began(), embedded("a0", 100), Event("failed", reason="out of memory"))
    assert len(failures(progress.update())) == 1
    write(run, "a", began(BEGAN + 60), Event("embedded", "a0", cached=True, tiles=100))
    embed = progress.update()[1]
    assert (embed.count("running"), embed.slides) == (1, (1, 5))
    assert embed.jobs[0].began == BEGAN + 60


def test_a_job_that_ended_without_a_word_failed_once_the_run_is_over(run: RunRecord) -> None:
    write(run, "a", began(), embedded("a0", 100))
    assert failures(stages(run)) == []
    (found,) = failures(RunProgress(run).close())
    assert "killed, or out of memory or time" in found.reason
    assert found.reason.endswith("It had finished a0.")


def test_a_job_that_could_not_start_failed_and_one_that_never_did_waits(run: RunRecord) -> None:
    Path(run.folder, "logs/a.log").write_text("bash: python: command not found\n")
    Path(run.folder, "logs/b.log").write_text("of the run before\n")
    os.utime(Path(run.folder, "logs/b.log"), (1, 1))
    embed = RunProgress(run).close()[1]
    assert [job.state for job in embed.jobs] == ["failed", "waiting"]


def test_a_file_that_cannot_be_read_hides_only_its_own_job(run: RunRecord) -> None:
    write(run, "a", began(), embedded("a0", 100))
    Path(run.folder, "logs/b.jsonl").mkdir()
    Path(run.folder, "tiles/b.json").write_text('{"b0": {"status": "ok"}}')
    embed = stages(run)[1]
    assert [job.state for job in embed.jobs] == ["running", "waiting"]
    assert embed.tiles == (100, 200)


def test_jobs_without_events_are_done_once_the_run_has_succeeded(run: RunRecord) -> None:
    Path(run.folder, "logs/train.log").write_text("of a rule that includes this workflow\n")
    ended = replace(run, ended=time.time(), succeeded=True)
    _, embed, train = RunProgress(ended).close()
    assert (embed.count("done"), embed.slides, train.count("done")) == (2, (5, 5), 1)


def test_a_job_without_a_log_that_never_started_waits(run: RunRecord) -> None:
    outer = replace(run, jobs=(Job("summary", "", ""),), rules=("summary",))
    assert [job.state for job in RunProgress(outer).close()[0].jobs] == ["waiting"]


def test_no_failed_job_is_named_after_a_run_that_succeeded(
    run: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(run.folder, "logs/train.log").write_text("of a rule that includes this workflow\n")
    monkeypatch.setattr("her2.pipeline.progress.begin_run", lambda *args: run)
    monkeypatch.setattr("her2.pipeline.progress.end_run", lambda *args: None)
    for succeeded in (True, False):
        printer = ProgressPrinter(plan_of(run), stream := io.StringIO())
        printer.begin(NO_JOBS)
        printer.end(succeeded=succeeded)
        printer.close()
        assert ("1 job(s) failed" in stream.getvalue()) is not succeeded


def test_a_run_with_a_job_without_a_log_is_recorded(tmp_path: Path) -> None:
    rule = SimpleNamespace(name="summary", norun=False)
    job = SimpleNamespace(rule=rule, wildcards_dict={}, log=[])
    dag = SimpleNamespace(jobs=[job], needrun=lambda job: True)
    workflow = SimpleNamespace(dag=dag, rules=[rule])
    ((planned, own),) = planned_jobs(workflow, cast(Plan, None))
    assert own is job
    begin_run(workflow, tmp_path, (planned,))
    assert [job.rule for job in read_run(tmp_path).jobs] == ["summary"]


def test_only_what_is_new_is_read(run: RunRecord) -> None:
    progress = RunProgress(run)
    write(run, "a", began(), embedded("a0", 100))
    progress.update()
    path = Path(run.folder, "logs/a.jsonl")
    path.write_bytes(b"x" * path.stat().st_size)  # what was read is not looked at again
    write(run, "a", embedded("a1", 50))
    assert progress.update()[1].tiles == (150, 300)


def test_a_line_that_has_no_end_yet_is_read_when_it_has(run: RunRecord) -> None:
    progress = RunProgress(run)
    path = Path(run.folder, "logs/a.jsonl")
    line = json.dumps(asdict(embedded("a0", 100))).encode()
    path.write_bytes(line[:20])
    assert progress.update()[1].slides == (0, 5)
    path.write_bytes(line + b"\n")
    assert progress.update()[1].slides == (1, 5)


def lock(run: RunRecord) -> None:
    folder = Path(run.folder, ".snakemake/locks")
    folder.mkdir(parents=True)
    (folder / "0.input.lock").write_text("x")


def test_a_run_whose_process_lives_is_running(run: RunRecord) -> None:
    with subprocess.Popen(["bash", "-c", "exec -a snakemake sleep 60"]) as process:
        try:
            deadline = time.monotonic() + 10
            alive = replace(run, pid=process.pid)
            while run_state(alive, Path(run.folder)) != "running" and time.monotonic() < deadline:
                time.sleep(0.01)
            assert run_state(alive, Path(run.folder)) == "running"
        finally:
            process.kill()


def test_how_a_run_ended(run: RunRecord) -> None:
    results = Path(run.folder)
    assert run_state(replace(run, ended=time.time(), succeeded=True), results) == "finished"
    assert run_state(replace(run, ended=time.time(), succeeded=False), results) == "failed"
    assert run_state(run, results) == "stopped"
    again = replace(run, pid=os.getpid())  # a number that is used again
    assert run_state(again, results) == "stopped"
    lock(run)
    assert run_state(run, results) == "killed"
    assert run_state(replace(run, host="another"), results) == "elsewhere"


def test_a_record_is_read_as_it_was_written(run: RunRecord, tmp_path: Path) -> None:
    (tmp_path / RECORD_NAME).write_text(json.dumps(asdict(run)))
    assert read_run(tmp_path) == run


def test_no_run_and_a_broken_record_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run of snakemake has started"):
        read_run(tmp_path)
    (tmp_path / RECORD_NAME).write_text("{")
    with pytest.raises(UserError, match="You can delete it"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"jobs": [{"rule": "tile_bucket", "name": "a", "output": "a.json"}]},  # before events
        {"jobs": None}, {"jobs": [1]}, {"rules": 3}, {"up_to_date": []}, {"began": "noon"},
        {"pid": None}, {"host": {}}, {"reasons": {"first": "killed"}},
    ],
)  # fmt: skip
def test_a_record_of_another_version_is_no_puzzle(
    run: RunRecord, tmp_path: Path, change: dict[str, object]
) -> None:
    (tmp_path / RECORD_NAME).write_text(json.dumps(asdict(run) | change))
    with pytest.raises(UserError, match="from another version of her2"):
        read_run(tmp_path)


def test_what_a_later_version_adds_to_the_record_is_ignored(run: RunRecord, tmp_path: Path) -> None:
    (tmp_path / RECORD_NAME).write_text(json.dumps(asdict(run) | {"colour": "blue"}))
    assert read_run(tmp_path) == run


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [_Terminal(), io.StringIO()])
def test_progress_is_printed_on_a_terminal_and_not_into_a_file(
    run: RunRecord, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run, "a", began(), embedded("a0", 100))
    monkeypatch.setattr("her2.pipeline.progress.begin_run", lambda *args: run)
    monkeypatch.setattr("her2.pipeline.progress.end_run", lambda *args: None)
    printer = ProgressPrinter(plan_of(run), stream, every=0.01)
    printer.begin(NO_JOBS)
    time.sleep(0.2)
    write(run, "a", Event("ended"))
    printer.end(succeeded=True)
    printer.close()
    expected = 1 if stream.isatty() else 0  # a line that has not changed is not repeated
    assert stream.getvalue().count("1 of 5 slides, 100 of 300 tiles") == expected


def test_links_into_the_cache_take_no_room(tmp_path: Path) -> None:
    cache, results = tmp_path / "cache", tmp_path / "results"
    for folder in (cache, results):
        folder.mkdir()
    (cache / "a").write_bytes(bytes(1000))
    os.link(cache / "a", results / "a")
    os.link(cache / "a", cache / "b")
    (results / "own").write_bytes(bytes(10))
    assert disk_usage(cache) == 1000
    assert disk_usage(results) == 1010
    assert disk_usage(results, without=cache) == 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (9000, "2.5 h")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config, a manifest of one slide, and the results of a run that ended well."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "slides.csv").write_text("slide_id,path,patient_id,her2\na,a.svs,p,0\n")
    (tmp_path / "results/tiles/64px-1mpp").mkdir(parents=True)
    job = Job("tile_bucket", "64px-1mpp/1-of-1", "results/logs/a.log", 1)
    record = RunRecord(
        socket.gethostname(), 2**22 + 1, str(tmp_path), BEGAN, BEGAN, ("tile_bucket",), {}, (job,),
        ended=BEGAN + 60, succeeded=True,
    )  # fmt: skip
    (tmp_path / "results" / RECORD_NAME).write_text(json.dumps(asdict(record)))
    return tmp_path


def spoil(path: Path, text: str | None = None, **changes: object) -> None:
    """Delete a file or folder, or write something else into it."""
    if changes:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    elif text is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def make_folder(path: Path) -> None:
    """Make a folder where a file belongs."""
    path.unlink(missing_ok=True)
    path.mkdir()


RECORD = f"results/{RECORD_NAME}"
UNSTAMPED = "has finished; 1 job(s) would run again"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "none": (lambda folder: None, UNSTAMPED),
    "no results": (lambda folder: spoil(folder / "results"), "no run of snakemake has started"),
    "no record": (lambda folder: spoil(folder / RECORD), "no run of snakemake has started"),
    "another version": (lambda folder: spoil(folder / RECORD, "{}"), "from another version"),
    "a cut record": (lambda folder: spoil(folder / RECORD, '{"host": "a'), "is damaged"),
    "a folder for a record": (
        lambda folder: make_folder(folder / RECORD),
        "cannot be read (Is a directory)",
    ),
    "moved": (lambda folder: spoil(folder / RECORD, folder="/nowhere/at/all"), UNSTAMPED),
    "moved while running": (
        lambda folder: spoil(folder / RECORD, folder="/nowhere", ended=None, succeeded=None),
        "was stopped",
    ),
    "unknown jobs": (
        lambda folder: spoil(folder / RECORD, reasons={"7": "x"}, finished=[9], succeeded=False),
        "ended with failed jobs",
    ),
    "broken entries": (
        lambda folder: spoil(folder / "results/tiles/64px-1mpp/0000-of-0001.json", "{"),
        "cannot be read (Expecting property name",
    ),
    "entries that are a folder": (
        lambda folder: make_folder(folder / "results/tiles/64px-1mpp/0000-of-0001.json"),
        "tiles (slides x grids): none yet",
    ),
    "broken events": (lambda folder: spoil(folder / "results/logs/a.jsonl", "?\n"), "has finished"),
    "a broken claim": (lambda folder: spoil(folder / "results/run.claim", "?"), UNSTAMPED),
    "no manifest": (lambda folder: spoil(folder / "slides.csv"), "slides.csv"),
    "links to nothing": (
        lambda folder: (folder / "results/link").symlink_to("/nowhere"), UNSTAMPED
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_status_says_what_it_can_of_damaged_results(
    project: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, expected = DAMAGE[name]
    damage(project)
    show_status(project / "config.yaml", watch=None)
    output = capsys.readouterr().out
    assert expected in output
    assert "Disk: cache" in output


def test_status_names_what_would_run_again(run: RunRecord) -> None:
    ended = replace(run, ended=time.time(), succeeded=True)
    lines = _run_lines(ended, "finished", [(f"tile_bucket {i}", "min_tissue") for i in range(12)])
    assert "has finished; 12 job(s) would run again under this config." in lines[0]
    assert lines[-11:-9] == ["    tile_bucket 0: min_tissue", "    tile_bucket 1: min_tissue"]
    assert lines[-1] == "    ... and 2 more"
    assert "again" not in "\n".join(_run_lines(ended, "finished"))
    assert "again" not in "\n".join(_run_lines(run, "running", [("tile_bucket 1", "min_tissue")]))
