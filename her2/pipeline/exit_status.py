"""Beside every stage: why the command of a job ended, from its exit status."""

import re
import signal

AGAIN = "Then rerun the same command: finished work is not repeated."
CONTINUE = "Rerun the same command: it continues from what was finished."

_COMMAND = re.compile(
    r"Command .*(?:returned non-zero exit status (?P<code>\d+)|"
    r"died with (?:<Signals\.(?P<name>\w+): \d+>|unknown signal (?P<number>\d+)))",
    re.DOTALL,
)
"""What Python's subprocess says, which Snakemake passes on."""

_CODES = {
    126: (
        "its command may not be executed. Check that the environment's `python` is a program that "
        "you may run (`python -m her2 --version`)."
    ),
    127: (
        "its command was not found. Activate the environment in which her2 is installed (`python "
        "-m her2 --version` must work where the jobs run), then rerun the same command."
    ),
}
_SIGNALS = {
    signal.SIGKILL: (
        "it was killed (signal SIGKILL), nearly always because the machine had no memory left. "
        "Run fewer jobs at once (a smaller `--cores`) or lower embedding.batch_size; on a cluster "
        f"raise `mem_mb`. {AGAIN}"
    ),
    signal.SIGTERM: (
        "it was told to stop (signal SIGTERM), by a person, a shutdown or the cluster. " + CONTINUE
    ),
    signal.SIGINT: f"it was interrupted (Ctrl-C). {CONTINUE}",
    signal.SIGHUP: (
        f"its terminal was closed (signal SIGHUP). Start long runs in `tmux` or `screen`. {AGAIN}"
    ),
    signal.SIGXCPU: (
        "it ran into the shell's limit of CPU time (signal SIGXCPU). Raise it (`ulimit -t`). "
        f"{AGAIN}"
    ),
    signal.SIGXFSZ: (
        "it ran into the shell's limit of file size (signal SIGXFSZ). Raise it (`ulimit -f`). "
        f"{AGAIN}"
    ),
}
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
_CRASHED = (
    "it crashed in a library, with signal {}. A broken installation or faulty memory can do "
    "this; see the end of its log. Rerun the same command to try again."
)


def exit_reason(said: str) -> str:
    """Return the cause and the fix if a message has the exit status of a command, else nothing."""
    found = _COMMAND.search(said)
    if found is None:
        return ""
    if found["name"]:
        return _signal_reason(signal.Signals[found["name"]])
    if found["number"]:
        return _signal_reason(int(found["number"]))
    code = int(found["code"])
    if code in _CODES:
        return _CODES[code]
    if code - 128 in {*_SIGNALS, *_CRASHES}:  # as a shell reports the signal of its command
        return _signal_reason(code - 128)
    return f"its command ended with exit status {code} and gave no reason; see its log."


def _signal_reason(number: int) -> str:
    if number in _CRASHES:
        return _CRASHED.format(signal.Signals(number).name)
    for known, words in _SIGNALS.items():
        if number == known:
            return words
    return f"it was ended by signal {number}. Rerun the same command to try again."
