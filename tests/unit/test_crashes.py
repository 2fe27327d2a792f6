"""A library that crashes takes one slide out of a job, by name, and nothing else."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tifffile

from her2.config import EncoderSection, TilingSection
from her2.config.jobs import EmbedSpec, TileSpec, dump
from her2.core.crashes import reading
from her2.core.errors import SlideError, TileError, UserError
from her2.core.events import read_events
from her2.storage.entries import FeatureEntry, TileEntry, read_entries
from tests.conftest import WriteManifest
from tests.unit.products import materialise

ROOT = Path(__file__).parents[2]
CRASHES = {
    "segfault": "import ctypes; ctypes.string_at(0)",
    "abort": "import os; os.abort()",
    "exit": "import ctypes; ctypes.CDLL(None).exit(1)",  # as libjpeg's default error handler
}

# Jobs of a few lines, run as every command is


def job(work: str, *, wait: bool = True) -> "subprocess.Popen[str]":
    """Run `work` (the body of a function) as a command's work."""
    lines = "\n".join(f"    {line}" for line in work.splitlines())
    code = (
        "import os, signal, sys, threading, time\n"
        "from her2.core.crashes import reading, survive\n"
        "from her2.core.errors import SlideError\n"
        f"def work():\n{lines}\nsurvive(work)\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip
    if wait:
        running.wait(60)
    return running


def read_all(crash: str, *, names: str = "abcdef", bad: str = "d") -> str:
    """The work of reading slides in three threads, and printing what became of each."""
    return rf"""
def read(name):
    try:
        with reading(name):
            time.sleep(0.01)
            if name in {bad!r}:
                {crash}
    except SlideError as error:
        sys.stdout.write(name + f" {{error}}\n")
    else:
        sys.stdout.write(name + " read\n")
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(3) as pool:
    list(pool.map(read, {names!r}))
"""


@pytest.mark.parametrize("crash", CRASHES)
def test_the_slide_that_crashes_is_left_out_and_the_others_go_on(crash):
    done = job(read_all(CRASHES[crash]))
    last = done.stdout.read().splitlines()[-6:]
    assert done.returncode == 0
    assert sorted(line[0] for line in last) == list("abcdef")
    failed = [line for line in last if not line.endswith("read")]
    words = {"segfault": "SIGSEGV", "abort": "SIGABRT", "exit": "it exited with 1"}[crash]
    assert [line[0] for line in failed] == ["d"]
    assert f"crashes the library that reads it ({words}" in failed[0]


def test_several_slides_that_crash_are_all_left_out():
    done = job(read_all(CRASHES["segfault"], bad="be"))
    last = done.stdout.read().splitlines()[-6:]
    assert done.returncode == 0
    assert {line[0] for line in last if not line.endswith("read")} == {"b", "e"}


def test_a_crash_that_does_not_come_again_costs_no_slide(tmp_path):
    once = f"if not os.path.exists({str(tmp_path / 'x')!r}): open({str(tmp_path / 'x')!r}, 'w'); "
    done = job(read_all(f"{once} os.abort()"))
    assert done.returncode == 0
    assert [line[2:] for line in done.stdout.read().splitlines()[-6:]] == ["read"] * 6
    assert "reads one slide at a time" in done.stderr.read()


def test_the_stack_of_a_crash_is_in_the_log():
    message = job(read_all(CRASHES["segfault"])).stderr.read()
    assert "Fatal Python error: Segmentation fault" in message
    assert "in string_at" in message


def test_a_crash_outside_of_reading_ends_the_job_and_blames_no_slide():
    done = job("with reading('a'): pass\nos.abort()")
    assert done.returncode == 128 + signal.SIGABRT
    message = done.stderr.read()
    assert "her2: a library ended the process (SIGABRT: aborted)" in message
    assert message.count("Fatal Python error") == 1  # it is not tried again


def test_a_crash_in_another_thread_is_not_blamed_on_the_slide_that_is_read_meanwhile():
    crash = "threading.Thread(target=os.abort).start()"
    done = job(f"with reading('a'):\n    {crash}\n    time.sleep(5)")
    assert done.returncode == 128 + signal.SIGABRT
    assert "a library ended the process" in done.stderr.read()


def test_a_killed_job_is_not_blamed_on_the_slide_it_read():
    done = job("with reading('a'): os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr.read() == "her2: killed, or out of memory or time (SIGKILL: killed)\n"


def test_the_parent_is_small_and_forks_before_any_thread_or_device_exists():
    code = "import sys, her2.__main__, threading; print(threading.active_count(), *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    threads, *modules = done.stdout.split()
    assert threads == "1"
    ours = {name for name in modules if name.startswith("her2")}
    assert ours == {"her2", "her2.__main__", "her2.core", "her2.core.crashes", "her2.core.errors"}
    assert not {"numpy", "torch", "polars", "pydantic", "typer"} & set(modules)


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_job_s_exit_code_is_kept(code):
    assert job(f"sys.exit({code})").returncode == code


def test_the_processes_of_a_job_end_together():
    for number, waiting in ((signal.SIGTERM, 30), (signal.SIGKILL, 30)):
        running = job("print('on', flush=True)\ntime.sleep(60)", wait=False)
        assert running.stdout.readline() == "on\n"
        (child,) = psutil.Process(running.pid).children()
        running.send_signal(number)
        assert running.wait(waiting) == -number
        deadline = time.monotonic() + waiting
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("to", ["the terminal's group", "the parent alone"])
def test_ctrl_c_interrupts_the_job_once(to):
    work = """\
try:
    print('on', flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.3)  # cleaning up, which another interrupt would end
    sys.exit(7)"""
    running = job(work, wait=False)
    assert running.stdout.readline() == "on\n"
    if to == "the parent alone":
        running.send_signal(signal.SIGINT)
    else:
        os.killpg(running.pid, signal.SIGINT)
    assert running.wait(30) == 7


# Exceptions


@pytest.mark.parametrize(
    "error", [TypeError("an int is not iterable"), ZeroDivisionError(), KeyError("x"), OSError(5)]
)
def test_any_exception_is_the_slide_s_with_its_traceback_in_the_log(error, caplog):
    words = f"cannot be read .{type(error).__name__}: "
    with pytest.raises(SlideError, match=words), reading("a"):
        raise error
    assert caplog.records[0].exc_info[1] is error
    assert "a: cannot be read" in caplog.text


@pytest.mark.parametrize(
    "error",
    [UserError("x"), SlideError("x"), TileError("x"), MemoryError(), KeyboardInterrupt()]
    + [OSError(number, "x") for number in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE)],
    ids=repr,
)
def test_what_is_said_already_and_what_is_the_machine_s_stays_what_it_is(error):
    with pytest.raises(type(error)) as raised, reading("a"):
        raise error
    assert raised.value is error


# The stages, through the command line

READER = f"""
import sys
from her2.slides.backends.openslide import OpenSlideFile
NAME, ORDER = "a test", 1
def files(path):
    return None
def open_slide(path):
    tail = path.read_bytes()[-20:].decode(errors="ignore").split()
    if tail[-1:] == [sys.argv[1]]:
        match tail[-2]:
            case "segfault": {CRASHES["segfault"]}
            case "abort": {CRASHES["abort"]}
            case "raise": raise TypeError("a tag of the wrong type")
    return None
"""


PRELOADED = {
    "tile": "her2.tiling.stage, PIL.Image, openslide, cv2",
    "embed": "timm, her2.embedding.stage, her2.embedding.run, openslide",
}


def her2(folder: Path, command: str, spec: str, **options: object) -> str:
    """Run a stage with a reader of slides that end in e.g. `segfault tile`; return its log."""
    (folder / "readers").mkdir(exist_ok=True)
    (folder / "readers" / "crashing.py").write_text(READER)
    code = (
        f"import {PRELOADED[command]}\n"  # once, not in each of three attempts
        "import her2.slides.backends as backends\n"
        f"backends.__path__.append({str(folder / 'readers')!r})\n"
        "from her2.__main__ import run; run()"
    )
    arguments = [f"--{name}={value}" for name, value in options.items()]
    log = folder / f"{command}.log"
    with log.open("w") as stream:
        done = subprocess.run(
            [sys.executable, "-c", code, command, "--spec", spec, *arguments,
             f"--slides={folder / 'slides.csv'}", f"--cache={folder / 'cache'}"],
            stderr=stream, cwd=ROOT,
        )  # fmt: skip
    assert done.returncode == 0, log.read_text()
    return log.read_text()


def test_a_bucket_survives_slides_that_crash_tiling_and_embedding(
    tmp_path, drawn_slide, write_csv: WriteManifest
):
    content = drawn_slide.read_bytes()
    ends = {
        "bad-1": "", "bad-2": "segfault embed", "bad-3": "raise tile",
        "good-1": "", "good-2": ".",
    }  # fmt: skip
    for name, end in ends.items():
        (tmp_path / f"{name}.svs").write_bytes(content + f" {end}".encode())
    with tifffile.TiffFile(tmp_path / "bad-1.svs") as tiff:
        tags = [page.tags["TileWidth"] for page in tiff.pages if page.is_tiled]
    with (tmp_path / "bad-1.svs").open("r+b") as stream:  # for which OpenSlide has not the memory
        for tag in tags:
            stream.seek(tag.valueoffset)
            stream.write((2**31 - 1).to_bytes(4 if tag.dtype == 4 else 2, "little"))
    write_csv([{"slide_id": n, "path": f"{n}.svs", "patient_id": n, "her2": "0"} for n in ends])
    where = {"bucket": "0000-of-0001", "rows": ""}
    tiles, features = tmp_path / "tiles" / "b.json", tmp_path / "features" / "b.json"

    spec = TileSpec(**where, mpp=1.0, size=64, tiling=TilingSection(min_tiles=1))
    log = her2(tmp_path, "tile", dump(spec), out=tiles, threads=2)
    tiled = read_entries(tiles, TileEntry)
    assert {name: entry.status for name, entry in tiled.items()} == {
        "bad-1": "failed", "bad-2": "ok", "bad-3": "failed", "good-1": "ok", "good-2": "ok",
    }  # fmt: skip
    assert "crashes the library that reads it (SIGABRT" in tiled["bad-1"].reason
    assert "TypeError: a tag of the wrong type" in tiled["bad-3"].reason
    assert "Traceback" in log
    assert "bad-1: crashed the process again" in log
    events, _ = read_events(tmp_path / "tile.jsonl")
    assert events[-1].kind == "ended"

    encoder = tmp_path / "encoder"
    section = EncoderSection(source="random", model="timm/resnet10t", mpp=1.0, size=64)
    materialise(section, 1, encoder)
    her2(
        tmp_path, "embed", dump(EmbedSpec(**where, max_failed_tiles=0.05)),
        tiles=tiles, encoder=encoder, out=features, threads=2,
    )  # fmt: skip
    embedded = read_entries(features, FeatureEntry)
    assert {name: entry.status for name, entry in embedded.items()} == {
        "bad-1": "failed", "bad-2": "failed", "bad-3": "failed", "good-1": "ok", "good-2": "ok",
    }  # fmt: skip
    assert "crashes the library that reads it (SIGSEGV" in embedded["bad-2"].reason
    assert embedded["bad-1"].reason == tiled["bad-1"].reason


# Servers


def test_what_a_server_keeps_is_there_after_a_crash_and_nothing_before():
    done = job(
        "from her2.core.crashes import keep, kept\n"
        "sys.stdout.write(f'{kept()!r}\\n'); sys.stdout.flush()\n"
        "if not kept():\n"
        "    keep(b'x' * 1000); keep(b'port 1')\n"
        "    with reading('a'): os.abort()"
    )
    assert done.stdout.read().split("\n") == ["b''", "b'port 1'", ""]
    assert done.returncode == 0


TWO_AT_ONCE = """
from her2.core.crashes import keep, kept, read_together_after
count = int(kept() or b"0")
keep(str(count + 1).encode())
read_together_after({seconds})
if count == 0:
    with reading("a"): os.abort()
time.sleep(0.2)
inside = threading.Barrier(2)
def read(name):
    with reading(name):
        try: inside.wait(0.3)
        except threading.BrokenBarrierError: sys.stdout.write("alone ")
        else: sys.stdout.write("together ")
threads = [threading.Thread(target=read, args=(name,)) for name in "bc"]
for one in threads: one.start()
for one in threads: one.join()
"""


def test_a_server_reads_slides_at_the_same_time_again_after_a_while():
    assert job(TWO_AT_ONCE.format(seconds=60)).stdout.read().split() == ["alone", "alone"]
    assert job(TWO_AT_ONCE.format(seconds=0.01)).stdout.read().split() == ["together", "together"]


def test_a_crash_after_that_while_is_again_the_first_and_costs_no_slide():
    done = job(
        TWO_AT_ONCE.format(seconds=0.01)
        + """
if count < 3:
    with reading("d"): os.abort()
with reading("e"): pass
"""
    )
    said = done.stderr.read()
    assert done.returncode == 0, said
    assert said.count("reads one slide at a time, to find the cause") == 3
    assert "is left out" not in said
