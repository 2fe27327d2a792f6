"""`her2 view` as people have it: a process of its own, and a browser that looks at it."""

import http.client
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.browser import Tab, browser

REPOSITORY = Path(__file__).resolve().parents[1]
_START_SECONDS = 120


@dataclass(frozen=True)
class Answer:
    """What the server said; names in `headers` are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as words."""
        return self.body.decode()

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Viewing:
    """A server that runs: its printed address, with the token, and all that it says."""

    process: "subprocess.Popen[bytes]"
    address: str
    _log: Path
    _stack: ExitStack = field(default_factory=ExitStack)

    @property
    def port(self) -> int:
        """The port on which it listens."""
        port = urlsplit(self.address).port
        assert port
        return port

    @property
    def host(self) -> str:
        """The name in its address."""
        return urlsplit(self.address).hostname or ""

    @property
    def token(self) -> str:
        """What lets a browser in."""
        return urlsplit(self.address).query.partition("token=")[2]

    @property
    def cookie(self) -> str:
        """What a browser sends that was let in."""
        return f"her2-view-{self.port}={self.token}"

    @property
    def log(self) -> str:
        """All that it has written, to either output."""
        return self._log.read_text(errors="replace")

    @cached_property
    def tab(self) -> Tab:
        """A browser that has opened the printed address; it starts when it is first asked for."""
        profile = self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix="profile-", ignore_cleanup_errors=True)
        )
        tab = self._stack.enter_context(browser(Path(profile)))
        tab.open(self.address)
        return tab

    def url(self, path: str) -> str:
        """The address of a page, without the token."""
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.netloc}{path}"

    def open(self, path: str, *, size_px: tuple[int, int] = (1280, 900), dark: bool = False) -> Tab:
        """Open a page in the browser that was let in, and return its tab."""
        self.tab.open(self.url(path), size_px=size_px, dark=dark)
        return self.tab

    def get(self, path: str, **headers: str) -> Answer:
        """Ask for exactly this path with the cookie; a header of None is left out."""
        return self.ask("GET", path, headers=headers)

    def send(self, method: str, path: str, body: object) -> Answer:
        """Send a change as JSON, as a page of the server does."""
        headers = {"Origin": self.url(""), "Content-Type": "application/json"}
        return self.ask(method, path, headers=headers, body=json.dumps(body).encode())

    def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str | None] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """Send a request as it is, with the cookie unless `headers` has another, or None."""
        sent = {"Host": urlsplit(self.address).netloc, "Cookie": self.cookie, **(headers or {})}
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def end(self, number: int = signal.SIGINT, seconds: float = 30) -> int:
        """Send Ctrl-C, or another signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


@contextmanager
def viewing(
    folder: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    program: tuple[str, ...] = ("-m", "her2"),
) -> Iterator[Viewing]:
    """`her2 view` in a project's folder, until the block ends.

    Args:
        folder: where it is started.
        arguments: those of `her2 view`, which looks at the folder `results` by default.
        environment: variables beside those of the tests.
        program: what Python runs, before `view`.
    """
    command = [sys.executable, *program, "view", *arguments, "--no-browser"]
    with ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="viewing-"))
        log = Path(temporary) / "log"
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
        )
        stack.callback(_end, process)
        address = wait_for_address(process, log)
        with ExitStack() as tabs:
            yield Viewing(process, address, log, tabs)


def wait_for_address(process: "subprocess.Popen[bytes]", log: Path, count: int = 1) -> str:
    """The address that the server has printed, the latest of `count`."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        text = log.read_text(errors="replace")
        found = re.findall(r"^ *(http://\S+token=\S+)$", text, re.MULTILINE)
        if len(found) >= count:
            return str(found[-1])
        if process.poll() is not None:
            raise AssertionError(f"her2 view ended with {process.returncode}:\n{text}")
        select.select([], [], [], 0.02)
    raise AssertionError(f"her2 view printed no address:\n{log.read_text(errors='replace')}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the server, by force if need be."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
            raise
