"""`her2 view`: the server: where it listens, what it prints, and its end."""

import errno
import ipaddress
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from her2.core.crashes import end_now, keep, kept, read_together_after
from her2.core.errors import UserError
from her2.viewer.app import make_app
from her2.viewer.guard import TOKEN, Guard, new_token
from her2.viewer.open_slides import Slides
from her2.viewer.run import ViewedRun
from her2.viewer.state import Viewer

LOOPBACK = "127.0.0.1"
_ALONE_SECONDS = 30.0
"""After a crash, how long slides are read one at a time to find the cause."""
_LAST_ANSWERS_SECONDS = 2
"""After Ctrl-C, how long answers that have begun may take."""
_BACKLOG = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the server listens; port 0 is a free one.

    `names` are further ones (with a port, where it is another) under which a browser may ask;
    `exposed` is the consent that other machines may.
    """

    host: str = LOOPBACK
    port: int = 0
    open_browser: bool = True
    names: tuple[str, ...] = ()
    exposed: bool = False

    @property
    def addresses(self) -> list[str]:
        """Return the IP addresses of the host.

        Raises:
            UserError: it has none.
        """
        try:
            found = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise UserError(f"--host {self.host}: is no address of this machine.") from None
        return list(dict.fromkeys(str(one[4][0]).partition("%")[0] for one in found))

    @property
    def is_local(self) -> bool:
        """Return whether only programs of this machine can ask."""
        return all(ipaddress.ip_address(one).is_loopback for one in self.addresses)


def check_place(place: Place) -> None:
    """Check that a host other than this machine's own has been consented to.

    Raises:
        UserError: it has not, or there is no such host.
    """
    if not place.is_local and not place.exposed:
        raise UserError(
            f"--host {place.host}: lets other machines ask, and nothing is encrypted: whoever can "
            "listen on the network can see the slides, and the token with which to change notes. "
            "From another machine, an ssh tunnel to the default host is safe (docs/viewer.md). To "
            "do it nevertheless, add --yes-expose."
        )


def serve(
    run: ViewedRun,
    notes: Path,
    place: Place,
    *,
    path: str = "/",
    say: Callable[[str], None] = print,
) -> None:
    """Serve a run until Ctrl-C.

    A process that begins again after a library's crash (`her2.core.crashes`) is found under the
    same address.

    Args:
        run: what is looked at.
        notes: folder of notes; made with the first.
        place: where to listen.
        path: the page of the address that is printed, quoted.
        say: told the address.

    Raises:
        UserError: it cannot listen there.
    """
    before = json.loads(kept() or b"{}")
    listening = _listen(place, before.get("port", place.port))
    port = listening.getsockname()[1]
    token = before.get("token") or new_token()
    read_together_after(_ALONE_SECONDS)
    if "temporary" in before:
        shutil.rmtree(before["temporary"], ignore_errors=True)
    with (
        _cleared_up(),
        tempfile.TemporaryDirectory(prefix="her2-view-", ignore_cleanup_errors=True) as temporary,
        run.places.cache(Path(temporary)) as cache,
    ):
        left = {"port": port, "token": token, "temporary": temporary}
        keep(json.dumps(left).encode())
        app = make_app(Viewer(run, cache, Slides(), notes))
        names = browser_names(place, port)
        guarded = Guard(app, token=token, hosts=names, port=port, any_ip=not place.is_local)
        address = f"http://{_shown(place)}:{port}{path}?{TOKEN}={token}"

        def begin() -> None:
            if before:
                say("The server runs again, under the same address.")
                return
            for line in _words(place, port, address):
                say(line)
            if place.open_browser and _has_screen():
                # The arguments of a browser are seen by all users of a machine.
                once = address.replace(token, guarded.ticket())
                threading.Thread(target=webbrowser.open, args=(once,), daemon=True).start()

        config = uvicorn.Config(
            guarded,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # else a header says who asks, instead of the connection
            lifespan="off",
            ws="none",
            http="h11",
            timeout_graceful_shutdown=_LAST_ANSWERS_SECONDS,
        )
        with suppress(KeyboardInterrupt):  # which uvicorn raises again after its end
            _Server(config, begin, Path(temporary)).run(sockets=[listening])


@contextmanager
def _cleared_up() -> Iterator[None]:
    """Let SIGTERM, and a terminal that is closed, end the block as Ctrl-C does.

    By default either ends the process at once, and its temporary folder stays. uvicorn raises a
    SIGTERM again when it has ended.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def hang_up(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, hang_up)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    """A server whose end waits for no thread, as a read from a slow disk may take minutes.

    It says where it is (`begin`) once it answers, and ends as it should by Ctrl-C.
    """

    def __init__(self, config: uvicorn.Config, begin: Callable[[], None], temporary: Path) -> None:
        super().__init__(config)
        self._begin, self._temporary = begin, temporary

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._begin()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.server_state.tasks:  # cancelled, but a thread ends only by itself
            shutil.rmtree(self._temporary, ignore_errors=True)
            end_now(0)


def _listen(place: Place, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: the port is taken or reserved, or the host is none of this machine.
    """
    address = place.addresses[0]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                said = f"--port {port}: another program listens there; without --port it is a free"
                raise UserError(f"{said} one.") from None
            case errno.EACCES:
                raise UserError(
                    f"--port {port}: is reserved for the system; name one above 1023."
                ) from None
            case errno.EADDRNOTAVAIL:
                raise UserError(
                    f"--host {place.host}: is the address of another machine; name one of this, or "
                    f"leave --host out for {LOOPBACK}."
                ) from None
        raise


def browser_names(place: Place, port: int) -> list[str]:
    """Return the legal headers Host, in lower case."""
    own = [_bracketed(one) for one in place.addresses]
    own.append(_shown(place))
    if place.is_local:
        own.append("localhost")
    else:
        own += [socket.gethostname(), socket.getfqdn()]
    names = [f"{name}:{port}" for name in own]
    names += [name if _has_port(name) else f"{name}:{port}" for name in place.names]
    return [name.lower() for name in names]


def _has_port(name: str) -> bool:
    return name.rpartition("]")[2].rpartition(":")[2].isdigit() and ":" in name.rpartition("]")[2]


def _shown(place: Place) -> str:
    """Return the host in the address that is printed."""
    if ipaddress.ip_address(place.addresses[0]).is_unspecified:  # 0.0.0.0 is no place to go to
        return socket.gethostname()
    return _bracketed(place.host)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _words(place: Place, port: int, address: str) -> list[str]:
    """Return what is printed at the beginning."""
    lines = ["her2 view: open this address in a browser; Ctrl-C ends.", f"  {address}"]
    if place.is_local and not _has_screen():
        lines += [
            "From another machine, first open a tunnel there, then the same address:",
            f"  ssh -N -L {port}:{_bracketed(place.addresses[0])}:{port} {socket.gethostname()}",
        ]
    if not place.is_local:
        lines.append(
            f"Exposed by --yes-expose: every machine that reaches {_shown(place)}, port {port}, "
            "can ask. Who has the address with its token sees all slides, labels, predictions and "
            "notes of this run, and can change notes. Nothing is encrypted, so that who listens on "
            "the network has the token too."
        )
    return lines


def _has_screen() -> bool:
    if "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform != "linux" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
