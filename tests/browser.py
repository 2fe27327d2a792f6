"""A real Chromium, driven through its pipe: what a page does, not what its source says."""

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 60.0
"""How long the browser may take for one answer, on a machine with other work."""

_MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}
_KEYS = {
    "Backspace": 8, "Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "PageUp": 33, "PageDown": 34,
    "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
    "Delete": 46, "+": 187, "=": 187, ",": 188, "-": 189, ".": 190, "/": 191, "?": 191, "[": 219,
    "]": 221,
}  # fmt: skip
"""Virtual key codes; those of letters, digits and F-keys follow a rule."""


class BrowserError(AssertionError):
    """The browser could not do what a test asked of it."""


class Tab:
    """One page of a headless browser.

    Since the last `open`, it has `requests` (the addresses that the page asked for), `errors` (of
    its scripts, of its console and of its policy) and `failures` (requests without a good answer;
    those that the page itself gave up are none).
    """

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._last = write, read, 0
        self._received = bytearray()
        self._session: str | None = None
        self._loaded = False
        self._address_of: dict[str, str] = {}
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.failures: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its answer."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        number = self._last
        answer = self._await(lambda message: message.get("id") == number, method)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def open(
        self,
        page: Path | str,
        *,
        size_px: tuple[int, int] = (1280, 900),
        dark: bool = False,
        media: str = "screen",
    ) -> None:
        """Load a file or an address and wait for it, see `look`."""
        self.look(size_px=size_px, dark=dark, media=media)
        self.requests.clear()
        self.errors.clear()
        self.failures.clear()
        self._loaded = False
        found = self.call("Page.navigate", url=page.as_uri() if isinstance(page, Path) else page)
        if "errorText" in found:
            raise BrowserError(f"{page}: {found['errorText']}")
        if not self._loaded and "loaderId" in found:  # without one, only what follows # changed
            self._await(lambda _: self._loaded, f"the load of {page}")

    def look(
        self,
        *,
        size_px: tuple[int, int] = (1280, 900),
        dark: bool = False,
        media: str = "screen",
    ) -> None:
        """Change the window's size, the colour scheme that its user prefers, or print it."""
        width, height = size_px
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited; past its policy, as a debugger is."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise BrowserError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait_for(self, script: str, seconds: float = 20.0) -> Any:
        """The value of an expression once it is true; what fails meanwhile is tried again."""
        deadline = time.monotonic() + seconds
        last: object = None
        while time.monotonic() < deadline:
            try:  # what is true is for the page to say: an element comes as {}
                true, last = self.run(
                    f"(async () => {{ const it = await ({script}); return [Boolean(it), it]; }})()"
                )
                if true:
                    return last
            except BrowserError as error:  # no such element yet, or the page is changing
                last = error
            time.sleep(0.02)
        raise BrowserError(
            f"waited {seconds:g} s for {script}; it is {last!r}\n"
            f"errors of the page: {self.errors}\nfailed requests: {self.failures}"
        )

    def press(self, key: str, *held: str, times: int = 1) -> None:
        """A key as a person presses it, such as "a", "Enter" or "Tab"; `held` as "Shift"."""
        common = {"modifiers": sum(_MODIFIERS[one] for one in held), **_key(key)}
        typed = "\r" if key == "Enter" else key if len(key) == 1 else ""
        text = "" if set(held) - {"Shift"} else typed
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
            self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Type into whatever has the focus."""
        for character in text:
            self.press("Enter" if character == "\n" else character)

    def click(self, x: float, y: float, *, times: int = 1, button: str = "left") -> None:
        """Click at a point of the window, in CSS px."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for count in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button,
                          clickCount=count)  # fmt: skip

    def drag(self, points: Sequence[tuple[float, float]]) -> None:
        """Press at the first of the points, move over the others and let go at the last."""
        x, y = points[0]
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left",
                  clickCount=1)  # fmt: skip
        for x, y in points[1:]:
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left",
                      buttons=1)  # fmt: skip
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left",
                  clickCount=1)  # fmt: skip

    def click_on(self, selector: str) -> None:
        """Click on the middle of an element, once it is there; a covered one is an error."""
        quoted = json.dumps(selector)
        self.wait_for(f"document.querySelector({quoted}) !== null")
        x, y, on_top = self.run(
            f"""(() => {{
                const one = document.querySelector({quoted});
                one.scrollIntoView({{block: 'center', inline: 'center', behavior: 'instant'}});
                const box = one.getBoundingClientRect();
                const x = box.x + box.width / 2, y = box.y + box.height / 2;
                const top = document.elementFromPoint(x, y);
                const labelled = top?.closest('label')?.control === one;
                return [x, y, one.contains(top) || labelled];
            }})()"""
        )
        if not on_top:
            raise BrowserError(f"{selector}: is covered by something else, or out of the window")
        self.click(x, y)

    def screenshot(self, path: Path, *, full: bool = False) -> None:
        """A PNG of the window, or of the full page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(found["data"]))

    def spoken(self) -> list[tuple[str, str]]:
        """Role and name of everything that a screen reader finds on the page, in order."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]

    def _await(self, is_it: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Read messages until the one that is waited for, and note what the others say."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            searched = 0
            while (end := self._received.find(0, searched)) < 0:
                searched = len(self._received)
                ready, _, _ = select.select([self._read], [], [], deadline - time.monotonic())
                if not ready:
                    raise BrowserError(f"{what}: no answer within {PATIENCE_SECONDS:g} s")
                got = os.read(self._read, 1 << 20)
                if not got:
                    raise BrowserError("the browser ended")
                self._received += got
            message: dict[str, Any] = json.loads(self._received[:end])
            del self._received[: end + 1]
            self._note(message.get("method", ""), message.get("params", {}))
            if is_it(message):
                return message

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            address = params["request"]["url"]
            self._address_of[params["requestId"]] = address
            if not address.startswith("data:"):  # which is asked of nobody
                self.requests.append(address)
        elif method == "Network.responseReceived" and params["response"]["status"] >= 400:
            self.failures.append(f"{params['response']['url']}: {params['response']['status']}")
        elif method == "Network.loadingFailed" and not params.get("canceled"):
            address = self._address_of.get(params["requestId"], "?")
            reason = params.get("blockedReason", params["errorText"])
            self.failures.append(f"{address}: {reason}")
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            thrown = details.get("exception", {}).get("description", "")
            self.errors.append(f"{details['text']} {thrown}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            words = (str(one.get("value", one.get("description"))) for one in params["args"])
            self.errors.append(" ".join(words))
        elif method == "Log.entryAdded":
            entry = params["entry"]
            if entry["level"] == "error" and entry["source"] != "network":  # that is in `failures`
                self.errors.append(entry["text"])


def _key(key: str) -> dict[str, Any]:
    if len(key) == 1 and key.isalpha():
        code, number = f"Key{key.upper()}", ord(key.upper())
    elif len(key) == 1 and key.isdigit():
        code, number = f"Digit{key}", ord(key)
    elif key[0] == "F" and key[1:].isdigit():
        code, number = key, 111 + int(key[1:])
    else:
        code, number = {" ": "Space"}.get(key, key), _KEYS.get(key, 0)
        if not number and len(key) > 1:
            raise BrowserError(f"{key}: is no key that is known here")
    return {"key": key, "code": code, "windowsVirtualKeyCode": number}


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
    try:
        yield Tab(to_browser[1], from_browser[0])
    finally:
        process.terminate()
        process.wait(timeout=30)
        os.close(to_browser[1])
        os.close(from_browser[0])
