"""Snakemake's messages in our words, the claim on a results folder, and clocks."""

import errno
import importlib.util
import json
import multiprocessing
import os
import re
import socket
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import snakemake.api  # noqa: F401  # before its parts, which import each other
from snakemake import exceptions

from her2.core.errors import UserError
from her2.pipeline import claim as claims
from her2.pipeline.claim import CLAIM_NAME, Claim, claim_results, read_claim
from her2.pipeline.clocks import set_back
from her2.pipeline.endings import ENDINGS, explained, job_reason
from her2.pipeline.exit_status import exit_reason


class Rule:
    """What Snakemake's exceptions ask of a rule."""

    lineno, snakefile = 1, "embed.smk"

    def __str__(self) -> str:
        return "embed_bucket"


def of_job(exception: type[exceptions.IOException], *files: str) -> str:
    """What Snakemake says when it raises this about a job."""
    job: Any = SimpleNamespace(rule=Rule(), output=["results/a.json"], wildcards={})
    return str(exception(job, list(files)))


WAIT = (
    "Missing files after 5 seconds. This might be due to filesystem latency. If that is the case, "
    "consider to increase the wait time with --latency-wait:\nresults/a.json (missing locally)"
)
SAID = {
    "clock": (
        "Output results/b.json has older modification time (2026-01-01 00:00:00) than input "
        "results/a.json (2026-01-02 00:00:00). This could indicate a clock skew problem",
        "results/a.json is dated later than results/b.json",
    ),
    "latency": (str(exceptions.MissingOutputException(WAIT, jobid="7")), "a.json did not appear"),
    "input latency": (WAIT, "results/a.json, which it reads, did not appear within 5 s"),
    "type": (of_job(exceptions.ImproperOutputException, "results/a.json"), "a.json is a folder"),
    "protected": (
        of_job(exceptions.ProtectedOutputException, "results/a.json", "results/b.json"),
        "results/a.json\n        results/b.json\nMake them writable (`chmod u+w`)",
    ),
    "metadata": (
        "Error recording metadata for finished job ([Errno 13] Permission denied: 'x.geojson'). "
        "Please ensure write permissions for the directory /data/.snakemake",
        "finished: [Errno 13] Permission denied: 'x.geojson'. Make that file readable",
    ),
    "metadata, disk full": (
        "Error recording metadata for finished job ([Errno 28] No space left on device). Please "
        "ensure write permissions for the directory /data/.snakemake",
        "the disk is full",
    ),
    "folder, read-only": (
        "Failed to create output directory results/tiles.\nOSError: [Errno 30] Read-only file "
        "system: 'results/tiles'",
        "can only be read",
    ),
    "files": (str(OSError(errno.EMFILE, os.strerror(errno.EMFILE))), "`ulimit -n 4096`"),
    "threads": ("RuntimeError: can't start new thread", "Run fewer jobs at once"),
    "fork": (str(OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))), "`ulimit -u`"),
    "no memory": (str(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))), "no memory"),
    "network disk": (str(OSError(errno.ESTALE, os.strerror(errno.ESTALE))), "network to it"),
    "bad disk": (str(OSError(errno.EIO, os.strerror(errno.EIO), "a")), "had an error"),
    "damaged records": (
        str(IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), "/w/.snakemake/metadata/a")),
        "records are damaged, or not yours to write: /w/.snakemake/metadata/a (Is a directory)",
    ),
    "access": (
        "Insufficient permissions to access results/a.json. Please make sure that all accessed",
        "results/a.json may not be read or written by you. Change its permissions",
    ),
    "time unreadable": (
        "Unable to obtain modification time of file results/a.json because of missing read "
        "permissions.",
        "results/a.json may not be read by you",
    ),
    "deleted": (
        "Unable to obtain modification time of file results/a.json although it existed before. It",
        "results/a.json was deleted while the run went on",
    ),
    "folder": (
        "Failed to create output directory results/tiles.\nFileExistsError: [Errno 17] File exists",
        "the folder results/tiles cannot be made",
    ),
    "disk": (str(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))), "the disk is full"),
    "quota": (str(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))), "`quota -s`"),
    "read-only": (str(OSError(errno.EROFS, os.strerror(errno.EROFS), "a")), "can only be read"),
    "long": (str(OSError(errno.E2BIG, os.strerror(errno.E2BIG), "bash")), "slides_per_bucket"),
    "memory": ("SLURM-job '8' failed, SLURM status is: 'OUT_OF_MEMORY'. ", "Raise `mem_mb`"),
    "memory, on the node": (
        "slurmstepd: error: Detected 1 oom_kill event in StepId=8.0. Some of the step tasks",
        "used more memory than it had asked for",
    ),
    "time": ("SLURM-job '8' failed, SLURM status is: 'TIMEOUT'. ", "raise `runtime`"),
    "time, on the node": ("JOB 8 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***", "time limit"),
    "node": ("failed due to a node failure, SLURM status is: 'NODE_FAIL'. ", "node of the cluster"),
    "cancelled": ("SLURM status is: 'CANCELLED by 1000'. ", "SLURM cancelled it"),
    "not accepted": (
        "SLURM sbatch failed. The error message was 'sbatch: error: invalid partition "
        "specified: gpu'.\n    sbatch call:\n        sbatch",
        "did not accept it: sbatch: error: invalid partition specified: gpu. Change the lines",
    ),
    "lock": (str(exceptions.LockException()), "`snakemake --unlock`"),
    "incomplete": (
        str(exceptions.IncompleteFilesException(["results/a.json"])),
        "being made:\nresults/a.json\nRerun the same command with `--rerun-incomplete`",
    ),
    "mistake in a parameter": (
        "InputFunctionException in rule draw in file x.smk, line 7:\nError:\n  UserError: masks of "
        "A-1: no such folder. Check `cohort.masks`.\nWildcards:\n  chunk=a\nTraceback:\n  File x",
        "masks of A-1: no such folder. Check `cohort.masks`.",
    ),
    "input": (
        of_job(exceptions.MissingInputException, "slides/a.svs"),
        "which `embed_bucket` reads, do not exist and no rule makes them:\nslides/a.svs\nPut them",
    ),
    "target": (str(exceptions.MissingRuleException("featurs")), "featurs is neither a target"),
    "wildcard target": ("Target rules may not contain wildcards. Please", "cannot be a target"),
    "rule": (str(exceptions.UnknownRuleException("tiles")), "there is no rule `tiles`"),
    "child": (
        str(exceptions.ChildIOException(parent="results/c", child="results/c/d.csv")),
        "(results/c and results/c/d.csv): rename the encoder",
    ),
    "two rules": ("Rules a and b are ambiguous for the file r/x.csv.\nCons", "rules make r/x.csv"),
    "wildcard": ("WildcardError in rule all:\n'rescan'", "signs that Snakemake takes for its own"),
    "cycle": (str(exceptions.CyclicGraphException("a", "b")), "a part that repeats"),
    "resources": (
        "Job needs gpu=1 but only gpu=0 are available. This is likely because",
        "needs gpu=1 and this call allows gpu=0",
    ),
    "denied": (
        str(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "masks/a.png")),
        "masks/a.png may not be read or written by you",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_what_snakemake_says_is_told_with_its_cause_and_what_to_do(name: str) -> None:
    said, expected = SAID[name]
    for text in (said, f'WorkflowError in rule x in file "x.smk", line 7:\n{said}\n'):
        words = explained(text)
        assert words is not None
        assert expected in words
        assert not re.search(r"\{\w*\}", words)  # each group was filled in


def test_every_ending_has_an_example() -> None:
    firsts = [next(e for e in ENDINGS if e.pattern.search(said)) for said, _ in SAID.values()]
    assert set(ENDINGS) == set(firsts)


def test_the_slurm_executor_still_speaks_as_expected() -> None:
    spec = importlib.util.find_spec("snakemake_executor_plugin_slurm")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    for words in ("SLURM status is: ", "SLURM sbatch failed. ", "The error message was '"):
        assert words in source


def test_snakemakes_own_classes_of_errors_are_all_known() -> None:
    """A new version of Snakemake with another way to end a run is noticed here."""
    ours = {
        "WorkflowError", "WildcardError", "RuleException", "IOException", "LockException",
        "InputFunctionException", "ChildIOException", "MissingOutputException",
        "MissingInputException", "PeriodicWildcardError", "ProtectedOutputException",
        "ImproperOutputException", "AmbiguousRuleException", "CyclicGraphException",
        "MissingRuleException", "UnknownRuleException", "IncompleteFilesException",
    }  # fmt: skip
    not_here = {  # of what this workflow does not use, or of mistakes in a Snakefile
        "ApiError", "CliException", "SourceFileError", "UndefinedPathvarException",
        "ImproperShadowException", "NoRulesException", "IOFileException", "RemoteFileException",
        "HTTPFileException", "FTPFileException", "S3FileException", "AzureFileException",
        "SFTPFileException", "DropboxFileException", "XRootDFileException", "NCBIFileException",
        "WebDAVFileException", "ZenodoFileException", "ClusterJobException", "CreateRuleException",
        "TerminatedException", "CreateCondaEnvironmentException", "SpawnedJobError",
        "CheckSumMismatchException", "NestedCoroutineError", "IncompleteCheckpointException",
        "InputOpenException", "CacheMissException", "ResourceError", "ResourceInsufficiencyError",
        "ResourceScopesException", "ResourceValidationError", "ResourceConstraintError",
        "ResourceConversionError", "ResourceDuplicationError", "LookupError",
        "MissingOutputFileCachePathException", "FileOrDirectoryNotFoundError",
    }  # fmt: skip
    found = {
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and issubclass(value, Exception) and name != "TokenError"
    }
    assert found == ours | not_here


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("returned non-zero exit status 137.", "SIGKILL"),
        ("died with <Signals.SIGKILL: 9>.", "SIGKILL"),
        ("returned non-zero exit status 139.", "crashed in a library, with signal SIGSEGV"),
        ("died with <Signals.SIGBUS: 7>.", "SIGBUS"),
        ("returned non-zero exit status 132.", "SIGILL"),
        ("returned non-zero exit status 143.", "SIGTERM"),
        ("died with <Signals.SIGXFSZ: 25>.", "`ulimit -f`"),
        ("died with unknown signal 40.", "signal 40"),
        ("returned non-zero exit status 127.", "not found"),
        ("returned non-zero exit status 126.", "may not be executed"),
        ("returned non-zero exit status 1.", "exit status 1"),
        ("returned non-zero exit status 200.", "exit status 200"),
    ],
)
def test_an_exit_status_says_why(status: str, expected: str) -> None:
    assert expected in exit_reason(f"Command 'set -e; python -m her2 tile\n --out a' {status}")


def test_a_message_without_words_of_ours_is_shown_as_it_is() -> None:
    said = 'Something new.\n  File "x.smk", line 7, in f\n' + "\n".join("abcdefgh")
    assert job_reason(said) == "Snakemake says: Something new.\na\nb\nc\nd\ne\n..."
    assert job_reason("") == ""


def test_the_nodes_log_says_what_the_cluster_does_not(tmp_path: Path) -> None:
    log = tmp_path / "8.log"
    log.write_bytes(b"\xff noise\nslurmstepd: error: Detected 1 oom_kill event in StepId=8.0.\n")
    said = "SLURM-job '8' failed, SLURM status is: 'FAILED'. Detailed failure reason unavailable"
    assert "Raise `mem_mb`" in job_reason(said, [tmp_path / "absent.log", log])
    log.write_text("Command 'python -m her2 embed' died with <Signals.SIGSEGV: 11>.\n")
    assert "SIGSEGV" in job_reason(said, [log])
    log.write_text("all is well\n")
    assert job_reason(said, [log]).startswith("Snakemake says: SLURM-job '8' failed")


def held_elsewhere(results: Path, *, seconds: float = 0, **changes: Any) -> Claim:
    """A claim as a run on another machine leaves it, `seconds` after its last sign of life."""
    other = replace(
        Claim("node7", 4242, "/home/ada/work", time.time(), "another machine", "1", "t"), **changes
    )
    path = results / CLAIM_NAME
    path.write_text(json.dumps(asdict(other)))
    os.utime(path, (time.time() - seconds,) * 2)
    return other


def test_a_claim_of_another_machine_is_respected_while_it_gives_signs_of_life(
    tmp_path: Path,
) -> None:
    other = held_elsewhere(tmp_path, seconds=100)
    with pytest.raises(UserError, match="process 4242 on node7") as refused:
        claim_results(tmp_path, print)
    for part in ("/home/ada/work", "last sign of life 1", "free 5 min after", "run.claim"):
        assert part in str(refused.value)
    assert read_claim(tmp_path) == other


@pytest.mark.parametrize("seconds", [301, 86_400, -86_400])
def test_a_claim_without_signs_of_life_is_taken_over_and_said(
    tmp_path: Path, seconds: float
) -> None:
    held_elsewhere(tmp_path, seconds=seconds)
    said: list[str] = []
    held = claim_results(tmp_path, said.append)
    assert "process 4242 on node7" in said[0]
    found = read_claim(tmp_path)
    assert found is not None
    assert (found.host, found.pid) == (socket.gethostname(), os.getpid())
    held.release()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_of_a_process_that_has_gone_is_taken_over_at_once(tmp_path: Path) -> None:
    own = claim_results(tmp_path, print)
    own.release()
    for gone in ({"pid": 2**22 + 1}, {"born": "12"}):  # no such process; its number used again
        held_elsewhere(tmp_path, **asdict(own.claim) | gone)
        claim_results(tmp_path, print).release()
    held_elsewhere(tmp_path, seconds=9000, **asdict(own.claim))  # suspended: silent, and alive
    with pytest.raises(UserError, match="at work here"):
        claim_results(tmp_path, print)


@pytest.mark.parametrize("content", [b"", b"{", b'{"host": "a"}', b"\xff\xfe"])
def test_a_damaged_claim_counts_for_five_minutes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / CLAIM_NAME
    path.write_bytes(content)  # or one that is just being written
    with pytest.raises(UserError, match="just starting here.*delete"):
        claim_results(tmp_path, print)
    os.utime(path, (time.time() - 400,) * 2)
    claim_results(tmp_path, print).release()


def test_a_claim_that_cannot_be_written_is_explained_and_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("json.dump", full)
        with pytest.raises(UserError, match="cannot be written .No space left on device"):
            claim_results(tmp_path, print)
    claim_results(tmp_path, print).release()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="File exists"):
        claim_results(tmp_path / "file", print)


def _race(results: Path, start: Any, won: Any) -> None:
    start.wait()
    try:
        claim_results(results, lambda text: None)
        won.put(1)
    except UserError:
        won.put(0)
    start.wait()  # nobody ends before all have tried


@pytest.mark.parametrize("stale", [False, True])
def test_of_runs_that_start_at_the_same_instant_one_begins(tmp_path: Path, stale: bool) -> None:
    fork = multiprocessing.get_context("fork")
    for _ in range(5):
        (tmp_path / CLAIM_NAME).unlink(missing_ok=True)
        if stale:
            held_elsewhere(tmp_path, seconds=1000)
        start, won = fork.Barrier(6), fork.SimpleQueue()
        racers = [fork.Process(target=_race, args=(tmp_path, start, won)) for _ in range(6)]
        for racer in racers:
            racer.start()
        assert sum(won.get() for _ in racers) == 1
        for racer in racers:
            racer.join()


def test_a_run_gives_signs_of_life_and_leaves_a_claim_that_was_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.01)
    held = claim_results(tmp_path, print)
    path = tmp_path / CLAIM_NAME
    os.utime(path, (1, 1))
    deadline = time.monotonic() + 5
    while path.stat().st_mtime < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime > 2
    other = held_elsewhere(tmp_path, seconds=50)
    held.release()
    assert read_claim(tmp_path) == other


def test_files_from_the_future_are_set_to_the_present_and_others_are_left(tmp_path: Path) -> None:
    now = time.time_ns() + 10**11  # later than anything that this test makes
    times = {"past": -1, "now": 0, "ahead": 1, "far": 10**15}
    for name, offset in times.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(now + offset, now + offset))
    (tmp_path / "user.svs").touch()
    os.utime(tmp_path / "user.svs", ns=(now + 10**15,) * 2)
    (tmp_path / "link").symlink_to("user.svs")
    os.utime(tmp_path / "link", ns=(now + 10**15,) * 2, follow_symlinks=False)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/.snakemake_timestamp").touch()
    os.utime(tmp_path / "folder/.snakemake_timestamp", ns=(now + 10**15,) * 2)
    names = [*times, "link", "folder", "absent"]
    found = set_back([tmp_path / name for name in names], now)
    assert {path.relative_to(tmp_path).as_posix() for path in found} == {
        "ahead", "far", "link", "folder/.snakemake_timestamp",
    }  # fmt: skip
    for name, offset in times.items():
        assert (tmp_path / name).stat().st_mtime_ns == now + min(offset, 0)
    assert (tmp_path / "user.svs").stat().st_mtime_ns == now + 10**15  # through no link
