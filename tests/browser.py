"""A real Chromium, driven through its pipe: what a page does, not what its source says."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


class Tab:
    """One page of a headless browser; `size_px` is its window."""

    def __init__(self, write: BinaryIO, read: BinaryIO) -> None:
        self._write, self._read, self._last = write, read, 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its answer."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while (answer := self._next()).get("id") != self._last:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path, *, size_px: tuple[int, int] = (1280, 900)) -> None:
        """Load a file and wait for it."""
        width, height = size_px
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.call("Page.navigate", url=path.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        """The value of an expression in the page; past its policy, as a debugger is."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """A key, as a person presses it."""
        for kind in ("keyDown", "keyUp"):
            text = {"Enter": "\r"}.get(key, "") if kind == "keyDown" else ""
            code = {"Enter": 13, "Escape": 27}[key]
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text,
                      windowsVirtualKeyCode=code)  # fmt: skip

    def _next(self) -> dict[str, Any]:
        found = b""
        while not found.endswith(b"\0"):
            byte = self._read.read(1)
            assert byte, "the browser ended"
            found += byte
        message: dict[str, Any] = json.loads(found[:-1])
        return message


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A tab of a browser of one's own."""
    to_browser, from_browser = os.pipe(), os.pipe()
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-sync", "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
    ]  # fmt: skip
    # The browser reads its file 3 and writes its file 4.
    shell = f'exec "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "chromium", *command],
        pass_fds=(to_browser[0], from_browser[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser[0])
    os.close(from_browser[1])
    with os.fdopen(to_browser[1], "wb") as write, os.fdopen(from_browser[0], "rb") as read:
        try:
            yield Tab(write, read)
        finally:
            process.terminate()
            process.wait(timeout=30)
