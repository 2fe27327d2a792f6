"""Every command: a library that crashes on one slide does not end the job, and the slide is named.

Slides, masks and patches are decoded by C libraries, and a damaged or hostile file can crash them,
which ends the process without an exception. So every command runs in a child process (`survive`),
and `reading` notes, in memory that parent and child share, which slide each thread is reading. When
the child crashes, the parent starts the job again, reading one slide at a time. The slide that is
read at a second crash is the cause. In the next attempt, `reading` refuses it with a SlideError,
and the others go on. What earlier attempts finished is in the cache.

Only what a library does counts: a fault signal, or an end of the process in the middle of Python.
SIGKILL (memory, time) and SIGTERM end the job as they would without a parent; they blame no slide.

A server goes on where it was: what it gives to `keep` is there in the next attempt (`kept`), and it
reads slides at the same time again after a while (`read_together_after`).

This module is imported, and forks, before anything else is imported: the parent stays small, and
no thread exists that a fork would lose.
"""

import errno
import logging
import math
import mmap
import os
import queue
import re
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import FrameType
from typing import NoReturn

from her2.core.errors import SlideError, TileError, UserError

log = logging.getLogger(__name__)

_FAULTS = frozenset(
    {
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGABRT,  # a failed assertion, or heap corruption that the C library noticed
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGTRAP,  # GLib's fatal errors
        signal.SIGSYS,
    }
)
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals for the job that may be sent to the parent alone."""
_ONE_CTRL_C_SECONDS = 1.0
"""A terminal sends Ctrl-C to parent and child, so the child gets it twice, within this time."""
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors of the machine, which are no slide's."""
_CV2_NO_MEMORY = -4
_PR_SET_PDEATHSIG = 1

_SLOTS = 512
_SLOT_BYTES = 1024

_LENGTH = struct.Struct("=I")
_HEAD = struct.Struct("=Qh")
"""Of a slot: the thread, and the number of bytes of the name that follows; 0 if it is empty."""
_CRASHED_THREAD = re.compile(r"^Current thread 0x([0-9a-f]+)", re.MULTILINE)
"""In what faulthandler writes."""

_ENDED, _TOGETHER, _KEPT_AT = 0, 1, 2
_KEPT_BYTES = 1024
_SLOTS_AT = _KEPT_AT + _KEPT_BYTES
_board: mmap.mmap | None = None
"""Shared with the parent: a byte that is 1 once the child has ended in Python, one that is 1 once
it reads slides at the same time again, what is kept for the next attempt, then slots, each with the
name of a slide that a thread is reading."""
_free: "queue.SimpleQueue[int]" = queue.SimpleQueue()
_one_at_a_time: AbstractContextManager[object] = nullcontext()
"""Held while a slide is read: a lock in an attempt in which slides are read one at a time."""
_refused: dict[bytes, str] = {}


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Read the files of a slide (or a patch) in this block, so that only this slide can fail.

    Every exception but a UserError and lack of memory, disk space or file handles becomes a
    SlideError, with a traceback in the log. If the process dies in the block, `survive` knows the
    slide.

    Raises:
        SlideError: the slide cannot be read, or has crashed the process in an earlier attempt.
        TileError: raised by the block.
    """
    key = os.fsencode(name)[-_SLOT_BYTES + _HEAD.size :]
    if key in _refused:
        raise SlideError(_refused[key])
    with _one_at_a_time, _noted(key):
        try:
            yield
        except (UserError, SlideError, TileError, MemoryError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _MACHINE:
                raise
            if getattr(error, "code", None) == _CV2_NO_MEMORY:
                raise
            log.warning("%s: cannot be read", name, exc_info=True)
            raise SlideError(
                f"cannot be read ({type(error).__name__}: {error}); the job's log has the details"
            ) from error


@contextmanager
def _noted(key: bytes) -> Iterator[None]:
    """Write a slide's name into a slot while the block runs."""
    if _board is None:  # not started by `survive`, as in a notebook
        yield
        return
    slot = _free.get()
    start = _SLOTS_AT + slot * _SLOT_BYTES
    _board[start + _HEAD.size : start + _HEAD.size + len(key)] = key
    _HEAD.pack_into(_board, start, threading.get_ident(), len(key))
    try:
        yield
    finally:
        _HEAD.pack_into(_board, start, 0, 0)
        _free.put(slot)


def keep(data: bytes) -> None:
    """Keep a few bytes (at most 1,000) for the next attempt, should this one crash."""
    assert len(data) <= _KEPT_BYTES - _LENGTH.size
    if _board is not None:
        _board[_KEPT_AT + _LENGTH.size : _KEPT_AT + _LENGTH.size + len(data)] = data
        _LENGTH.pack_into(_board, _KEPT_AT, len(data))


def kept() -> bytes:
    """Return what an attempt that crashed has kept; nothing in the first."""
    if _board is None:
        return b""
    (length,) = _LENGTH.unpack_from(_board, _KEPT_AT)
    return _board[_KEPT_AT + _LENGTH.size : _KEPT_AT + _LENGTH.size + length]


def read_together_after(seconds: float) -> None:
    """End, after some time, an attempt's reading of one slide at a time; for a server.

    Its work has no end, and a slide that crashed once may never be asked for again. A crash after
    that time is judged as the first one was.
    """

    def together() -> None:
        global _one_at_a_time
        assert _board is not None
        _board[_TOGETHER] = 1  # first: a crash from here on may be that of any slide
        _one_at_a_time = nullcontext()

    if _board is not None and not isinstance(_one_at_a_time, nullcontext):
        timer = threading.Timer(seconds, together)
        timer.daemon = True
        timer.start()


def end_now(code: int) -> NoReturn:
    """End the process, though threads are at work; for a server, whose user waits for none."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _board is not None:
        _board[_ENDED] = 1
    os._exit(code)


def survive(work: Callable[[], object]) -> None:
    """Run `work` in a child process and exit as it does; run it again after a slide's crash.

    Returns in the child only, when `work` has returned.
    """
    if sys.platform != "linux":  # no other system kills a child together with its parent
        work()
        return
    board = mmap.mmap(-1, _SLOTS_AT + _SLOTS * _SLOT_BYTES)
    refused: dict[bytes, str] = {}
    alone, parent = False, os.getpid()
    while True:
        board[:_KEPT_AT] = bytes(_KEPT_AT)
        board[_SLOTS_AT:] = bytes(len(board) - _SLOTS_AT)
        stack = os.memfd_create("stack")
        child = _fork()
        if child == 0:
            _begin_child(board, stack, refused, alone=alone, parent=parent)
            try:
                work()
            finally:
                board[_ENDED] = 1
            return
        code = os.waitstatus_to_exitcode(_wait(child))
        if code >= 0 and board[_ENDED]:
            sys.exit(code)
        how = _words(code)
        if -code in {int(number) for number in _FAULTS} or code >= 0:
            names = _suspects(board, _print_stack(stack))
            if not names or names & refused.keys():
                _fail(f"a library ended the process ({how}); the log has the stack", code)
            shown = ", ".join(sorted(os.fsdecode(name) for name in names))
            alone = alone and not board[_TOGETHER]
            if alone:
                refused |= dict.fromkeys(
                    names,
                    f"crashes the library that reads it ({how}, twice); compare it with the "
                    "original and copy it again, or convert it",
                )
                _say(f"{shown}: crashed the process again ({how}) and is left out")
            else:
                _say(
                    f"the process crashed ({how}) while it read {shown}; the job begins again and "
                    "reads one slide at a time, to find the cause"
                )
            alone = not alone
        elif -code == signal.SIGKILL:
            _fail(f"killed, or out of memory or time ({how})", code)
        else:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)


def _fork() -> int:
    """Fork with all signals blocked; both processes unblock them when they are ready."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    return os.fork()


def _begin_child(
    board: mmap.mmap, stack: int, refused: dict[bytes, str], *, alone: bool, parent: int
) -> None:
    import ctypes
    import faulthandler

    global _board, _one_at_a_time
    _board = board
    if alone:
        _one_at_a_time = threading.RLock()
    _refused.update(refused)
    for slot in range(_SLOTS):
        _free.put(slot)
    for number in _FORWARDED:
        signal.signal(number, _INHERITED[number])
    if _INHERITED[signal.SIGINT] is signal.default_int_handler:
        _interrupt_once()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # the parent died before that
        os._exit(1)
    faulthandler.enable(stack)


_INHERITED = {number: signal.getsignal(number) for number in _FORWARDED}


def _interrupt_once() -> None:
    """Raise one KeyboardInterrupt for the two signals of one Ctrl-C."""
    last = -math.inf

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if (now := time.monotonic()) - last > _ONE_CTRL_C_SECONDS:
            last = now
            signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)


def _wait(child: int) -> int:
    """Wait for the child, passing on signals, and return its status."""

    def forward(number: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in _FORWARDED:
        if _INHERITED[number] != signal.SIG_IGN:  # as by nohup
            signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    _, status = os.waitpid(child, 0)
    return status


def _print_stack(stack: int) -> str:
    """Print what faulthandler wrote as the child crashed, and return it."""
    with open(stack, "rb") as stream:
        stream.seek(0)
        text = stream.read().decode(errors="replace")
    print(text, end="", file=sys.stderr, flush=True)
    return text


def _suspects(board: mmap.mmap, stack: str) -> set[bytes]:
    """Return the slide that the crashed thread was reading, if any.

    Without a stack (a library called `exit`), all slides that were being read are suspects.
    """
    being_read: dict[int, bytes] = {}
    for start in range(_SLOTS_AT, len(board), _SLOT_BYTES):
        thread, length = _HEAD.unpack_from(board, start)
        if length:
            being_read[thread] = board[start + _HEAD.size : start + _HEAD.size + length]
    crashed = _CRASHED_THREAD.search(stack)
    if crashed is None:
        return set(being_read.values())
    return {name for thread, name in being_read.items() if thread == int(crashed[1], 16)}


def _words(code: int) -> str:
    if code >= 0:
        return f"it exited with {code}"
    name = signal.Signals(-code).name
    about = signal.strsignal(-code)
    return f"{name}: {about.lower()}" if about else name


def _say(text: str) -> None:
    print(f"her2: {text}", file=sys.stderr, flush=True)


def _fail(reason: str, code: int) -> NoReturn:
    from her2.core.events import resume_events, write_event

    _say(reason)
    resume_events()
    write_event("failed", reason=reason)
    sys.exit(code if code > 0 else 128 - code)
