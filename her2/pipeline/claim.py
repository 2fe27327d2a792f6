"""Beside every stage: one run at a time on a results folder, also from different folders.

Snakemake's lock is in the working folder. Two runs from two folders on the same results would
delete each other's outputs, so a run claims the results folder with a file, `results/run.claim`,
and gives signs of life by its modification time. The clock is that of the folder's file system. A
claim whose process is known to be dead, or that gave no sign of life for `SILENT_SECONDS`, is void.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from her2.core.errors import UserError

CLAIM_NAME = "run.claim"
BEAT_SECONDS = 20.0
SILENT_SECONDS = 300.0
"""Many beats, and longer than a network file system may show an old modification time."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Which process works on a results folder.

    `pid` and `born` (its start, in ticks since boot) mean something on `machine` alone: a boot of a
    machine, and there a space of process ids, which containers have of their own.
    """

    host: str
    pid: int
    folder: str
    began: float
    machine: str
    born: str
    token: str


_SETTLE_SECONDS = 0.2


class HeldClaim:
    """The claim of this process, with a thread that gives its signs of life."""

    def __init__(self, path: Path, claim: Claim, say: Callable[[str], None]) -> None:
        self._path, self.claim, self._say = path, claim, say
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="claim", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the folder up, unless another run has taken it over."""
        self._over.set()
        self._thread.join()
        if read_claim(self._path.parent) == self.claim:
            self._path.unlink(missing_ok=True)

    def _live(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            found = read_claim(self._path.parent)
            if found == self.claim:
                with suppress(OSError):  # a full or absent disk: the next beat may succeed
                    os.utime(self._path)
            elif found is not None:
                self._say(
                    f"{self._path}: another run has taken the results over ({_who(found)}), since "
                    f"this one gave no sign of life for {SILENT_SECONDS / 60:.0f} min. Stop this "
                    "run (Ctrl-C): two runs delete each other's files."
                )
                return


def claim_results(results: Path, say: Callable[[str], None]) -> HeldClaim:
    """Claim a results folder for the run of this process.

    Args:
        results: the folder; it is made.
        say: is told when the claim of a run that is over is taken.

    Raises:
        UserError: another run is at work there, or the folder cannot be written.
    """
    path = results / CLAIM_NAME
    pid = os.getpid()
    own = Claim(
        host=socket.gethostname(),
        pid=pid,
        folder=str(Path.cwd()),
        began=time.time(),
        machine=_machine(),
        born=_born(pid),
        token=secrets.token_hex(8),
    )
    try:
        results.mkdir(parents=True, exist_ok=True)
        took = False
        for _ in range(3):  # each time another run may be quicker
            if _create(path, own):
                time.sleep(_SETTLE_SECONDS if took else 0.0)
                if read_claim(results) == own:
                    return HeldClaim(path, own, say)
            other, seconds = read_claim(results), seconds_silent(results)
            if is_alive(other, seconds):
                raise UserError(_refusal(results, other, seconds))
            if _take_away(path, other):
                took = True
                who = f"process {other.pid} on {other.host}" if other else "unknown"
                say(f"{path}: belonged to a run that is over ({who}), and is taken over.")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}). Check the folder's permissions and the "
            "free space (df -h), or set another `results` in the config."
        ) from None
    raise UserError(
        f"{results}: several runs of snakemake are starting here at once. Wait for them to end."
    )


def release_claim_of(results: Path, folder: Path) -> None:
    """Remove the claim of a run from `folder`, of which the user says that it is over.

    The claim stays if its process is known to be alive.
    """
    found = read_claim(results)
    if found is not None and found.folder == str(folder) and _process_lives(found) is not True:
        with suppress(OSError):
            (results / CLAIM_NAME).unlink(missing_ok=True)


def read_claim(results: Path) -> Claim | None:
    """Return the claim on a results folder; None if there is none, or none that can be read."""
    try:
        return _claim_type().validate_json((results / CLAIM_NAME).read_bytes())
    except (OSError, ValidationError):
        return None


def seconds_silent(results: Path) -> float | None:
    """Return how long ago the claim's last sign of life was, by the clock of its file system.

    None if there is no claim. A time in the future, of a folder that was copied from a machine
    whose clock is ahead, is as far from a sign of life as one in the past.
    """
    probe = results / f".{secrets.token_hex(6)}.tmp.clock"
    try:
        probe.touch()
        try:
            return abs(probe.stat().st_mtime - (results / CLAIM_NAME).stat().st_mtime)
        finally:
            probe.unlink()
    except FileNotFoundError:
        return None
    except OSError:  # a folder that may only be read
        with suppress(OSError):
            return abs(time.time() - (results / CLAIM_NAME).stat().st_mtime)
        return None


def is_alive(claim: Claim | None, seconds: float | None) -> bool:
    """Return whether the run of a claim must be taken for at work.

    Args:
        claim: None for a claim that cannot be read: it is being written just now, or damaged.
        seconds: since its last sign of life; None if the claim has gone.
    """
    if seconds is None:
        return False
    lives = None if claim is None else _process_lives(claim)
    return seconds < SILENT_SECONDS if lives is None else lives


def _process_lives(claim: Claim) -> bool | None:
    """Return whether the claim's process is alive, or None if that cannot be known from here."""
    if not claim.born or claim.machine != _machine():
        return None
    return _born(claim.pid) == claim.born


@cache  # not at the start of every job, which imports this module
def _claim_type() -> TypeAdapter[Claim]:
    return TypeAdapter(Claim)


def _create(path: Path, own: Claim) -> bool:
    """Write a claim if there is none; of several processes one succeeds."""
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(number, "w", encoding="utf-8") as stream:
            json.dump(asdict(own), stream)
    except OSError:  # a full disk
        path.unlink()
        raise
    return True


def _take_away(path: Path, judged: Claim | None) -> bool:
    """Remove a void claim, and return whether it was this process that did.

    Of several processes one moves it away. One that was late, and moved the claim of the first,
    puts that back unless a third has claimed meanwhile: who took over looks again a moment later.
    """
    aside = path.with_name(f".{secrets.token_hex(6)}.tmp.{path.name}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    try:
        moved = _claim_type().validate_json(aside.read_bytes())
    except ValidationError:
        moved = None
    if moved != judged:
        with suppress(OSError):
            os.link(aside, path)
    aside.unlink()
    return moved == judged


def lock_words(results: Path) -> str | None:
    """Return who holds Snakemake's lock on a working folder and what to do, if a claim says so."""
    found = read_claim(results)
    if found is None or found.folder != str(Path.cwd()):
        return None
    if is_alive(found, seconds_silent(results)):
        return (
            f"another run of snakemake is at work in this folder: {_who(found)}. Wait until it "
            "ends (`her2 status` says how far it is), or stop it there with Ctrl-C."
        )
    return (
        f"a run of snakemake was killed here and left its lock: {_who(found)}. Run `snakemake "
        "--unlock`, with the same --configfile, then rerun the same command: finished work is not "
        "repeated."
    )


def _refusal(results: Path, other: Claim | None, seconds: float | None) -> str:
    if other is None:
        return (
            f"{results}: another run of snakemake is just starting here. Wait until it ends. If "
            f"there is none, delete {results / CLAIM_NAME}."
        )
    return (
        f"{results}: another run of snakemake is at work here: {_who(other)}, in {other.folder}; "
        f"last sign of life {seconds:.0f} s ago. Two runs would delete each other's files. Wait "
        "until it ends (`her2 status` says how far it is), or stop it there with Ctrl-C. If that "
        f"machine is down, the results are free {SILENT_SECONDS / 60:.0f} min after the last sign "
        f"of life, or when you delete {results / CLAIM_NAME}."
    )


def _who(claim: Claim) -> str:
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(claim.began))
    return f"process {claim.pid} on {claim.host}, started {began}"


def _machine() -> str:
    """Return what process ids are relative to; empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """Return when a process started, which tells it from another with its id; empty if none has."""
    try:
        # The second field, a name in brackets, may contain spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
