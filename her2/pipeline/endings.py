"""Beside every stage: what Snakemake says when a job or a run ends, in our words.

Snakemake names what it saw; a user needs the cause and what to do. `ENDINGS` are its messages that
can end a job or a run of this workflow, from `snakemake/exceptions.py`, all that raises
`WorkflowError`, and the SLURM executor. docs/failures.md is the same list for people.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from her2.pipeline.exit_status import AGAIN, CONTINUE, exit_reason

_LOCKED = "Directory cannot be locked"
_LOG_BYTES = 200_000
_LINES_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Ending:
    """A message of Snakemake, as a pattern, and our words, which may use the pattern's groups."""

    pattern: re.Pattern[str]
    words: str


def _ending(pattern: str, words: str) -> Ending:
    return Ending(re.compile(pattern, re.DOTALL), words)


OF_SYSTEM = (
    _ending(
        r"No space left on device|Disk quota exceeded",
        "the disk is full, or your quota is used up. Free some space (`df -h`, `quota -s`; `her2 "
        f"cache prune`), or set `results` and `cache` to another disk. {AGAIN}",
    ),
    _ending(
        r"Read-only file system",
        "the disk of the results or of .snakemake can only be read (a failing disk, or an "
        "archive). Work in a folder on another disk, or set `results` and `cache`.",
    ),
    _ending(
        r"Argument list too long",
        "its command is longer than the system allows. Change cohort.slides_per_bucket: very many "
        "buckets, and very many slides in each, make long commands.",
    ),
    _ending(
        r"Too many open files",
        f"it may not open so many files at once. Raise the limit (`ulimit -n 4096`). {AGAIN}",
    ),
    _ending(
        r"Cannot allocate memory|can't start new thread|Resource temporarily unavailable",
        "the machine has no memory, or no process, left for it. Run fewer jobs at once (a smaller "
        f"`--cores`), or raise your limits (`ulimit -u`, `ulimit -v`). {AGAIN}",
    ),
    _ending(
        r"Stale file handle|Input/output error|Transport endpoint is not connected",
        "the disk, or the network to it, had an error. If it comes back, tell who looks after the "
        f"machine. {AGAIN}",
    ),
)
"""First, because what Snakemake could not do without room or a disk is named by other messages."""

OF_JOBS = (
    _ending(
        r"InputFunctionException.*?UserError: (?P<error>.*?)\n(?:Wildcards:|Traceback|$)",
        "{error}",  # a mistake that only a job's parameters showed
    ),
    _ending(
        r"Output (?P<output>\S+) has older modification time .*? than input (?P<input>\S+)",
        "{input} is dated later than {output}, which was made from it: a clock is ahead, or a file "
        "was copied from a machine whose clock is. Rerun the same command, which sets such times "
        "in the results folder to the present. If it comes back, have the clocks set.",
    ),
    _ending(
        r"some output files are missing\. Missing files after (?P<seconds>\d+) seconds.*?"
        r"--latency-wait:\n(?P<files>\S+)",
        "its command ended well, but {files} did not appear within {seconds} s. Either the shared "
        "disk shows new files late: raise `latency-wait` (in the profile, or --latency-wait). Or "
        f"something else removes files of this folder: another run, a cleaning job. {AGAIN}",
    ),
    _ending(
        r"Missing files after (?P<seconds>\d+) seconds.*?--latency-wait:\n(?P<files>\S+)",
        "{files}, which it reads, did not appear within {seconds} s. Either the shared disk shows "
        "new files late: raise `latency-wait` (in the profile, or --latency-wait). Or it was "
        f"deleted meanwhile. {AGAIN}",
    ),
    _ending(
        r"Outputs of incorrect type.*affected files:\n\s*(?P<files>\S+)",
        "{files} is a folder, where this workflow writes a file, or a file in place of a folder. "
        f"Remove or rename it. {AGAIN}",
    ),
    _ending(
        r"Write-protected output files.*affected files:\n\s*(?P<files>.+)",
        "these files of the results have to be replaced and are write-protected:\n{files}\n"
        f"Make them writable (`chmod u+w`) or delete them. {AGAIN}",
    ),
    _ending(
        r"Error recording metadata for finished job \((?P<error>.*?)\)\. Please",
        "Snakemake could not note that a job is finished: {error}. Make that file readable, or "
        f"the folder .snakemake writable, for you. {AGAIN}",
    ),
    _ending(
        r"Insufficient permissions to access (?P<file>.+?)\. Please",
        "{file} may not be read or written by you. Change its permissions, or those of the "
        f"folders above it. {AGAIN}",
    ),
    _ending(
        r"Unable to obtain modification time of file (?P<file>.+?) because of missing",
        f"{{file}} may not be read by you. Change the permissions of its folder. {AGAIN}",
    ),
    _ending(
        r"modification time of file (?P<file>.+?) although it existed",
        "{file} was deleted while the run went on: by another run, by hand or by a cleaning job. "
        f"{AGAIN}",
    ),
    _ending(
        r"Failed to create output directory (?P<folder>\S+?)\.",
        "the folder {folder} cannot be made. Check the permissions of the results folder, and "
        f"whether a file has that name. {AGAIN}",
    ),
)

ON_SLURM = (
    _ending(
        r"SLURM status is: 'OUT_OF_MEMORY'|oom[-_]kill|exceeded memory limit|Out Of Memory",
        "it used more memory than it had asked for, and SLURM killed it. Raise `mem_mb` of its "
        "rule under `set-resources` in the profile, or lower embedding.batch_size. " + AGAIN,
    ),
    _ending(
        r"SLURM status is: '(?:TIMEOUT|DEADLINE)'|DUE TO TIME LIMIT",
        f"it ran into its time limit. {CONTINUE} Or raise `runtime` of its rule under "
        "`set-resources` in the profile, or lower cohort.slides_per_bucket.",
    ),
    _ending(
        r"SLURM status is: '(?:NODE_FAIL|BOOT_FAIL)'|DUE TO NODE FAILURE",
        f"the node of the cluster failed. {CONTINUE}",
    ),
    _ending(
        r"SLURM status is: '(?:CANCELLED[^']*|PREEMPTED)'|CANCELLED AT",
        "SLURM cancelled it, for a person (`scancel`) or a job with precedence. " + CONTINUE,
    ),
    _ending(
        r"(?:sbatch|submission) failed[^'\n]*The error message was '?(?P<error>[^\n]*?)'?\.?\n",
        "SLURM did not accept it: {error}. Change the lines of your site in the profile, marked "
        "(1) to (4); docs/slurm.md says what such reasons mean. " + AGAIN,
    ),
)

OF_RUNS = (
    _ending(
        _LOCKED,
        "another run of snakemake is at work in this folder, or one was killed here and left its "
        "lock. `her2 status` says which. If none is at work: run `snakemake --unlock`, with the "
        "same --configfile, then rerun the same command.",
    ),
    _ending(
        r"files below seem to be incomplete.*Incomplete files:\n(?P<files>.+)",
        "a run was killed while these files were being made:\n{files}\nRerun the same command "
        "with `--rerun-incomplete` (this workflow's profiles do so by themselves).",
    ),
    _ending(
        r"Missing input files for rule (?P<rule>\w+):.*?affected files:\n\s*(?P<files>.+)",
        "these files, which `{rule}` reads, do not exist and no rule makes them:\n{files}\n"
        "Put them there, or name other files in the config or the manifest.",
    ),
    _ending(
        r"No rule to produce (?P<target>.+?) \(if you use",
        "{target} is neither a target nor a file that this workflow makes under this config. The "
        "targets are `features`, `train`, `report` and `all`; a file is named as it lies below "
        "`results`.",
    ),
    _ending(
        r"Target rules may not contain wildcards",
        "this rule makes many files, one for each slide, encoder or model, and cannot be a target. "
        "Name one of `features`, `train`, `report`, `all`, or a file below `results`.",
    ),
    _ending(
        r"There is no rule named (?P<rule>[^.\s]+)\.",
        "there is no rule `{rule}`. `snakemake --list` lists them.",
    ),
    _ending(
        r"child to another output:\n(?P<parent>.+?)\n(?P<child>[^\n]+)",
        "two results would have names of which one is a folder of the other ({parent} and "
        "{child}): rename the encoder, head or task of that name in the config.",
    ),
    _ending(
        r"are ambiguous for the file (?P<file>.+?)\.\n",
        "two rules make {file}: an encoder, head or task has a name that this workflow uses "
        "itself. Rename it in the config.",
    ),
    _ending(
        r"WildcardError|periodically repeated|recursion limit|Cyclic dependency",
        "a name in the config or a path has signs that Snakemake takes for its own ({{ }} or "
        "< >), or a part that repeats. Rename the file, folder, encoder, head or task.",
    ),
    _ending(
        r"Job needs (?P<needs>\S+) but only (?P<has>\S+) are available",
        "a job needs {needs} and this call allows {has}. Raise it on the command line "
        "(`--cores`, `--resources`) or in the profile.",
    ),
    _ending(
        r"\[Errno \d+\] (?P<error>[^:\n]+): '(?P<file>[^'\n]*\.snakemake\b[^'\n]*)'",
        "Snakemake's own records are damaged, or not yours to write: {file} ({error}). Change its "
        "permissions, or delete the folder .snakemake; results and cache stay valid. " + AGAIN,
    ),
    _ending(
        r"Permission denied: '(?P<file>[^'\n]+)'",
        "{file} may not be read or written by you. Change its permissions, or work in another "
        "folder.",
    ),
)

ENDINGS = (*OF_SYSTEM, *OF_JOBS, *ON_SLURM, *OF_RUNS)


def explained(said: str) -> str | None:
    """Return the cause and the fix of a message of Snakemake; None for one without our words."""
    for ending in ENDINGS:
        if found := ending.pattern.search(said):
            groups = {name: value.strip() for name, value in found.groupdict().items()}
            return ending.words.format(**groups)
    return None


def is_lock(said: str) -> bool:
    """Return whether Snakemake says that its working folder is locked."""
    return _LOCKED in said


def job_reason(said: str, logs: Iterable[Path] = ()) -> str:
    """Return why a job failed that did not say so itself; empty if nothing is known.

    Args:
        said: what Snakemake, or its executor, said of it.
        logs: files that the executor wrote about it, for a message without words of ours.
    """
    if words := explained(said):
        return words
    for log in logs:
        text = _tail(log)
        if words := explained(text) or exit_reason(text):
            return words
    return exit_reason(said) or _shortened(said)


def last_line(log: Path) -> str:
    """Return the last line of a job's log that is not empty; empty without such a line."""
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _shortened(said: str) -> str:
    """Return Snakemake's own message without the place in a Snakefile where it arose."""
    lines = [line.rstrip() for line in said.strip().splitlines()]
    lines = [line for line in lines if line and not line.startswith('  File "')]
    if not lines:
        return ""
    more = ["..."] if len(lines) > _LINES_SHOWN else []
    return "\n".join(["Snakemake says: " + lines[0], *lines[1:_LINES_SHOWN], *more])


def _tail(path: Path) -> str:
    """Return the end of a log, without what is not text; empty if it cannot be read."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _LOG_BYTES))
            return stream.read(_LOG_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
