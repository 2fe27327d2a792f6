"""What a job prints and writes shows no password, no signed address and no token."""

import logging
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from her2.config import jobs
from her2.core import events
from her2.core.events import read_events, write_event
from her2.core.logs import HIDDEN, redacted, redacted_stderr

SECRET = "s3cr3tPa55"
TOKEN = "hf_" + "aBcD1234" * 4


@pytest.mark.parametrize(
    "text",
    [
        f"HTTP Request: GET https://me:{SECRET}@hub.example/a/b 'HTTP/1.1 200 OK'",
        f"https://me:{SECRET}%40{SECRET}@hub.example:8080/a",
        f"https://me:x/{SECRET}@hub.example/a",
        f"https://me:x#{SECRET}@hub.example/a",
        f"https://{SECRET}@hub.example/a",
        f"see <https://cdn.example/file.bin?X-Amz-Signature={SECRET}&Expires=1>",
        f"https://cdn.example/file.bin#{SECRET}",
        f"Max retries exceeded with url: /file.bin?Policy=x&Signature={SECRET} (Caused by ...)",
        f'"GET /file.bin?sig={SECRET} HTTP/1.1" 302 0',
        f"Authorization: Bearer {SECRET}",
        f"{{'authorization': 'Basic {SECRET}=='}}",
        f"{{'proxy-authorization': 'bearer': '{SECRET}'}}",
    ],
)
def test_a_secret_in_an_address_is_not_shown(text):
    assert SECRET in text
    assert SECRET not in redacted(text)
    assert HIDDEN in redacted(text)


def test_a_token_is_not_shown_wherever_it_stands():
    assert redacted(f"token {TOKEN} is not valid") == f"token {HIDDEN} is not valid"


@pytest.mark.parametrize("name", ["HF_ENDPOINT", "https_proxy", "ALL_PROXY"])
def test_the_password_of_an_address_in_the_environment_is_hidden_outside_it_too(monkeypatch, name):
    monkeypatch.setenv(name, f"http://me:{SECRET}%21@host:1/")
    assert redacted(f"cannot log in as me with {SECRET}!") == f"cannot log in as me with {HIDDEN}"


def test_a_token_of_the_environment_is_hidden_in_any_form(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert redacted(f"({SECRET})") == f"({HIDDEN})"


@pytest.mark.parametrize(
    "text",
    [
        "https://hub.example:8080/org/model/resolve/main/model.safetensors",
        "s1.svs: cannot be read (/slides/a b/s1.svs); is it a slide?",
        "encoders: hf_hub_download of hf_transfer",
        "r0f3: trained 20 epochs in 1.2 s, of which 3.0 % waiting for data",
        "ask me@host.example at C:/slides/x@2.svs",
        "the basic question, the bearer certificate",
        "/a/b" * 100_000,  # in no time
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_secret_is_printed_as_it_is(text):
    assert redacted(text) == text


def test_every_way_of_printing_to_stderr_is_redacted(capsys):
    def fail():
        raise OSError(f"https://me:{SECRET}@host/x?sig={SECRET}")

    with redacted_stderr():
        handler = logging.StreamHandler()
        library = logging.getLogger("a_library_with_a_handler_of_its_own")
        library.addHandler(handler)
        library.propagate = False
        try:
            fail()
        except OSError:
            library.exception("GET https://cdn/x?sig=%s", SECRET)
            sys.excepthook(*sys.exc_info())
        print("token", TOKEN, file=sys.stderr)
        thread = threading.Thread(target=fail)
        hook, threading.excepthook = threading.excepthook, threading.__excepthook__
        thread.start()
        thread.join()
        threading.excepthook = hook
        library.removeHandler(handler)
    shown = capsys.readouterr().err
    assert shown.count(HIDDEN) >= 5
    assert SECRET not in shown
    assert TOKEN not in shown


def test_an_event_has_no_secret(tmp_path, monkeypatch):
    output = os.open(tmp_path / "x.jsonl", os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr(events, "_output", output)
    write_event("failed", reason=f"https://me:{SECRET}@host/x?sig={SECRET}")
    os.close(output)
    (event,), _ = read_events(tmp_path / "x.jsonl")
    assert event.reason == f"https://{HIDDEN}@host/x?{HIDDEN}"


class _Hub(BaseHTTPRequestHandler):
    """A hub that sends a client on to a signed address, which then refuses it."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.asked.append(self.path)
        signed = self.path.startswith("/signed")
        self.send_response(403 if signed else 302)
        if not signed:
            self.send_header("Location", f"/signed/file?Signature={SECRET}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    _Hub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_job_that_fetches_weights_shows_neither_password_nor_signed_address(tmp_path, hub):
    spec = jobs.dump(
        jobs.EncoderSpec.model_validate(
            {"encoder": {"source": "catalogue", "model": "phikon", "mpp": 0.5}, "seed": 0}
        )
    )
    code = "import time; time.sleep = lambda _: None; from her2.cli.main import main; main()"
    log = tmp_path / "x.log"
    with log.open("w") as stream:
        done = subprocess.run(
            [sys.executable, "-c", code, "encoder", "--spec", spec, "--out", tmp_path / "e"],
            stderr=stream,
            stdout=stream,
            cwd=Path(__file__).parents[2],
            env=os.environ
            | {
                "HF_ENDPOINT": f"http://me:{SECRET}@127.0.0.1:{hub}",
                "HF_TOKEN": TOKEN,
                "HF_HOME": str(tmp_path / "hf"),
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_VERBOSITY": "info",
            },
        )
    shown = log.read_text() + (tmp_path / "x.jsonl").read_text()
    assert done.returncode == 1, shown
    assert any(SECRET in path for path in _Hub.asked), shown
    assert "could not be fetched" in shown
    assert SECRET not in shown
    assert TOKEN not in shown
    assert "HTTP Request" not in shown
