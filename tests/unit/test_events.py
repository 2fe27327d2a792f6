"""Events that jobs write beside their logs."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from her2.config import jobs
from her2.core import events
from her2.core.events import events_path, read_events, write_event


def run(log: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `her2 ...` like a rule does."""
    with log.open("w") as stream:
        return subprocess.run(
            [sys.executable, "-m", "her2", *map(str, arguments)],
            stderr=stream, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip


def kinds(log: Path) -> list[str]:
    return [event.kind for event in read_events(events_path(log))[0]]


@pytest.fixture
def own_events(tmp_path, monkeypatch):
    """Let this process write events."""
    output = os.open(tmp_path / "x.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    monkeypatch.setattr(events, "_output", output)
    yield tmp_path / "x.jsonl"
    os.close(output)


def test_a_job_says_that_it_began_and_ended(tmp_path):
    assert run(tmp_path / "a.log", "--version").returncode == 0
    assert kinds(tmp_path / "a.log") == ["began", "ended"]


def test_a_failed_job_says_why_and_its_next_attempt_follows(tmp_path, write_csv, drawn_slide):
    log, slides = tmp_path / "a.log", tmp_path / "slides.csv"
    spec = jobs.dump(
        jobs.TileSpec.model_validate(
            {"bucket": "0000-of-0001", "rows": "", "mpp": 0.5, "size": 96, "tiling": {}}
        )
    )
    given = ["tile", "--spec", spec, "--slides", slides, "--cache", tmp_path / "c",
             "--out", tmp_path / "m.json"]  # fmt: skip
    assert run(log, *given).returncode == 1
    (_, failed), end = read_events(events_path(log))
    assert (failed.kind, failed.reason.startswith(f"{slides}: does not exist")) == ("failed", True)
    rows = [{"slide_id": "s1", "path": str(drawn_slide), "patient_id": "p"},
            {"slide_id": "s2", "path": "none.svs", "patient_id": "q"}]  # fmt: skip
    write_csv(rows).rename(slides)
    assert run(log, *given).returncode == 0
    began, *found, ended = read_events(events_path(log), end)[0]
    assert (began.kind, ended.kind) == ("began", "ended")
    tiled, left_out = sorted(found, key=lambda event: event.name)
    assert (tiled.kind, tiled.name, tiled.cached) == ("tiled", "s1", False)
    entries = json.loads((tmp_path / "m.json").read_text())
    assert tiled.tiles == entries["s1"]["tiles"] > 0
    assert (left_out.kind, left_out.reason) == ("left_out", entries["s2"]["reason"])


def test_wrong_options_are_a_failure(tmp_path):
    log = tmp_path / "a.log"
    assert run(log, "tile", "--nonsense").returncode == 2
    assert kinds(log) == ["began", "failed"]
    assert "options" in read_events(events_path(log))[0][-1].reason


WAITING = """
from her2.cli import main

@main.app.command("wait")
def wait(path: str) -> None:
    open(path).read()

main.main()
"""


def test_an_interrupted_job_says_so(tmp_path):
    log, pipe = tmp_path / "a.log", tmp_path / "pipe"
    os.mkfifo(pipe)  # nobody writes: the job waits
    with log.open("w") as stream:
        process = subprocess.Popen([sys.executable, "-c", WAITING, "wait", pipe], stderr=stream)
    with pipe.open("w"):  # returns when the job is there
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) != 0
    began, failed = read_events(events_path(log))[0]
    assert (began.kind, failed.kind, failed.reason) == ("began", "failed", "interrupted")


def test_without_a_log_nothing_is_written(tmp_path):
    assert run(tmp_path / "errors.txt", "--version").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["errors.txt"]


def test_events_of_many_threads_are_whole_lines(own_events):
    with ThreadPoolExecutor(16) as pool:
        names = [f"slide-{number}" for number in range(2000)]
        list(pool.map(lambda name: write_event("tiled", name, tiles=7), names))
    found, end = read_events(own_events)
    assert {event.name for event in found} == set(names)
    assert end == own_events.stat().st_size


def test_what_a_killed_job_said_is_there(tmp_path):
    log = tmp_path / "a.log"
    code = (
        "from her2.core.events import begin_events, write_event\n"
        "import os, signal\n"
        "begin_events(); write_event('tiled', 's1', tiles=3); os.kill(os.getpid(), signal.SIGKILL)"
    )
    with log.open("w") as stream:
        done = subprocess.run([sys.executable, "-c", code], stderr=stream)
    assert done.returncode == -signal.SIGKILL
    assert kinds(log) == ["began", "tiled"]


def test_a_full_disk_ends_the_events_and_not_the_job(monkeypatch, caplog):
    output = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(events, "_output", output)
    write_event("tiled", "s1")
    write_event("tiled", "s2")
    assert caplog.text.count("no more events are written") == 1


def test_an_events_file_that_cannot_be_written_does_not_stop_the_job(tmp_path):
    (tmp_path / "a.jsonl").mkdir()  # like another user's file, but also refused to root
    assert run(tmp_path / "a.log", "--version").returncode == 0
    assert "no events are written" in (tmp_path / "a.log").read_text()


@pytest.mark.parametrize(
    "line", ['{"kind": "embedded", "tiles": null}', '{"kind": "failed", "reason": 3}', "[]", "\0"]
)
def test_a_line_that_is_no_event_is_skipped(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f'{line}\n{{"kind": "ended"}}\n')
    assert kinds(tmp_path / "a.log") == ["ended"]
