"""What a person at the terminal is told of a run, from its record and its jobs' logs."""

import io
import json
import os
import socket
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from her2.core.errors import UserError
from her2.pipeline.progress import Watch, duration, failure_lines, stage_line, working_lines
from her2.pipeline.record import RECORD_NAME, Job, RunRecord, life, read_run
from her2.pipeline.status import disk_usage, failure, failures, inodes, stages

STAMP = "2026-11-25 07:14:55,123 INFO "


def log(*lines: str) -> str:
    return "".join(f"{STAMP}{line}\n" for line in lines)


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    """Two embedding jobs of three and two slides, and a training job; nothing has begun."""
    (tmp_path / "tiles").mkdir()
    for name, tiles in (("a", (100, 50, 50)), ("b", (70, 30))):
        entries = {f"{name}{i}": {"status": "ok", "tiles": n} for i, n in enumerate(tiles)}
        (tmp_path / f"tiles/{name}.json").write_text(json.dumps(entries))
        os.utime(tmp_path / f"tiles/{name}.json", (1, 1))
    jobs = [
        Job("embed_bucket", f"tiny/{n}", f"out/{n}.json", f"logs/{n}.log", k, f"tiles/{n}.json")
        for n, k in (("a", 3), ("b", 2))
    ]
    jobs.append(Job("train_folds", "score/tiny", "out/models.json", "logs/train.log"))
    for folder in ("out", "logs"):
        (tmp_path / folder).mkdir()
    return RunRecord(
        host=socket.gethostname(), pid=2**22 + 1, folder=str(tmp_path), began=time.time(),
        began_on_disk=time.time() - 60, rules=("tile_bucket", "embed_bucket", "train_folds"),
        up_to_date={"tile_bucket": 4}, jobs=tuple(jobs),
    )  # fmt: skip


def write(run: RunRecord, name: str, text: str) -> None:
    Path(run.folder, name).write_text(text)


def test_jobs_that_have_no_log_of_this_run_are_waiting(run: RunRecord) -> None:
    write(run, "logs/a.log", log("a0: 100 patches embedded, 0 failed"))
    os.utime(Path(run.folder, "logs/a.log"), (1, 1))  # of the run before
    tile, embed, train = stages(run, over=False)
    assert (tile.rule, tile.up_to_date, tile.jobs) == ("tile_bucket", 4, ())
    assert (embed.count("waiting"), train.count("waiting")) == (2, 1)
    assert working_lines([tile, embed, train], time.time()) == []


def test_slides_and_tiles_are_counted_from_the_log_of_a_running_job(run: RunRecord) -> None:
    write(run, "logs/a.log", log("device: CPU", "a0: 100 patches embedded, 0 failed",
                                 "a1: 50 features from the cache"))  # fmt: skip
    embed = stages(run, over=False)[1]
    assert embed.count("running") == 1
    assert embed.slides == (2, 5)
    assert embed.tiles == (150, 300)  # those of the job that waits count, once they are cut


def test_a_slide_that_is_left_out_counts_as_handled(run: RunRecord) -> None:
    write(run, "logs/a.log", STAMP.replace("INFO", "WARNING") + "a2: excluded: 9 of 50 tiles\n")
    assert stages(run, over=False)[1].slides == (1, 5)


def test_time_left_is_what_remains_at_the_pace_so_far(run: RunRecord) -> None:
    write(run, "logs/a.log", log("a0: 50 patches embedded, 0 failed"))
    embed = stages(run, over=False)[1]
    began = time.mktime(time.strptime("2026-11-25 07:14:55", "%Y-%m-%d %H:%M:%S"))
    # 50 of the 300 tiles took 60 s, so 250 take 300 s.
    assert embed.seconds_left(began + 60) == pytest.approx(300)
    line = stage_line(embed, began + 60)
    assert line == "embed_bucket: 0 of 2 jobs, 1 of 5 slides, 50 of 300 tiles, 5 min left"


def test_time_left_goes_by_slides_while_tiles_are_still_being_cut(run: RunRecord) -> None:
    Path(run.folder, "tiles/b.json").unlink()
    write(run, "logs/a.log", log("a0: 50 patches embedded, 0 failed"))
    embed = stages(run, over=False)[1]
    began = time.mktime(time.strptime("2026-11-25 07:14:55", "%Y-%m-%d %H:%M:%S"))
    assert embed.seconds_left(began + 60) == pytest.approx(240)  # one of five slides took 60 s


def test_jobs_that_say_nothing_are_timed_from_when_their_logs_were_opened(run: RunRecord) -> None:
    silent = replace(
        run, jobs=tuple(Job("draw", str(i), f"out/{i}", f"logs/{i}.log") for i in range(4)),
        rules=("draw",), up_to_date={},
    )  # fmt: skip
    write(silent, "logs/0.log", "")
    os.utime(Path(run.folder, "logs/0.log"), (run.began - 30, run.began - 30))
    write(silent, "out/0", "made")
    (draw,) = stages(silent, over=False)
    # One of four took 30 s, so three take 90.
    assert stage_line(draw, run.began) == "draw: 1 of 4 jobs, 2 min left"


def test_a_job_is_done_when_its_output_is_of_this_run(run: RunRecord) -> None:
    write(run, "logs/a.log", log("a0: 100 patches embedded, 0 failed"))
    write(run, "out/a.json", "{}")
    embed = stages(run, over=False)[1]
    assert (embed.count("done"), embed.count("waiting")) == (1, 1)
    assert embed.slides == (3, 5)


def test_a_failed_job_is_named_with_its_reason_and_log(run: RunRecord) -> None:
    write(run, "logs/a.log", log("device: CPU") + "her2: a1: no room on the disk\n  - free some\n")
    found = failures(stages(run, over=False))
    assert "\n".join(failure_lines(found)) == (
        "embed_bucket tiny/a: a1: no room on the disk\n      - free some\n    log: logs/a.log"
    )


def test_a_job_that_ended_without_a_word_failed_once_the_run_is_over(run: RunRecord) -> None:
    write(run, "logs/a.log", log("a0: 100 patches embedded, 0 failed"))
    assert failures(stages(run, over=False)) == []
    (found,) = failures(stages(run, over=True))
    assert "killed, or out of memory or time" in found.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (log("x: 1 tiles cut"), ""),
        ("her2: a: bad\n", "a: bad"),
        ("her2: first\nher2: second\n", "second"),
        ("Traceback (most recent call last):\n  x\nValueError: b: no\n", "ValueError: b: no"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_reason_is_the_last_thing_a_log_says(text: str, reason: str) -> None:
    assert failure(text) == reason


def lock(run: RunRecord) -> None:
    folder = Path(run.folder, ".snakemake/locks")
    folder.mkdir(parents=True)
    (folder / "0.input.lock").write_text("x")


def test_a_run_whose_process_lives_is_running(run: RunRecord) -> None:
    with subprocess.Popen(["bash", "-c", "exec -a snakemake sleep 60"]) as process:
        try:
            deadline = time.monotonic() + 10
            alive = replace(run, pid=process.pid)
            while life(alive) != "running" and time.monotonic() < deadline:
                time.sleep(0.01)
            assert life(alive) == "running"
        finally:
            process.kill()


def test_how_a_run_ended(run: RunRecord) -> None:
    assert life(replace(run, ended=time.time(), succeeded=True)) == "finished"
    assert life(replace(run, ended=time.time(), succeeded=False)) == "failed"
    assert life(run) == "stopped"
    assert life(replace(run, pid=os.getpid())) == "stopped"  # a number that is used again
    lock(run)
    assert life(run) == "killed"
    assert life(replace(run, host="another")) == "elsewhere"


def test_a_record_is_read_as_it_was_written(run: RunRecord, tmp_path: Path) -> None:
    (tmp_path / RECORD_NAME).write_text(json.dumps(asdict(run)))
    assert read_run(tmp_path) == run


def test_no_run_and_a_broken_record_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run of snakemake has begun"):
        read_run(tmp_path)
    (tmp_path / RECORD_NAME).write_text("{")
    with pytest.raises(UserError, match="delete it"):
        read_run(tmp_path)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [_Terminal(), io.StringIO()])
def test_progress_is_printed_on_a_terminal_and_not_into_a_file(
    run: RunRecord, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run, "logs/a.log", log("a0: 100 patches embedded, 0 failed"))
    monkeypatch.setattr("her2.pipeline.progress.begin_run", lambda workflow, plan: run)
    monkeypatch.setattr("her2.pipeline.progress.end_run", lambda *args, **kwargs: None)
    watch = Watch(_PlanOfResults(), stream, every=0.01)
    watch.begin(None)
    time.sleep(0.2)
    write(run, "out/a.json", "{}")
    watch.end(succeeded=True)
    expected = 1 if stream.isatty() else 0  # a line that has not changed is not repeated
    assert stream.getvalue().count("1 of 5 slides, 100 of 300 tiles") == expected


class _PlanOfResults:
    class config:
        results = Path()


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
    assert disk_usage(results, without=inodes(cache)) == 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (9000, "2.5 h")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
