"""What `her2 view` says and opens at its beginning, without serving anything."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from her2.config import load_config
from her2.core.errors import UserError
from her2.explanation.places import RunPlaces
from her2.storage.cache import Cache
from her2.viewer import pages, server
from her2.viewer.app import make_app
from her2.viewer.open_slides import Slides
from her2.viewer.run import ViewedRun
from her2.viewer.server import Place, check_place, serve
from her2.viewer.state import Viewer

CONFIG = Path(__file__).parents[2] / "config.yaml"
Begin = Callable[..., tuple[list[str], list[str]]]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """Begin to serve, and return the lines that were said and the addresses that were opened."""
    opened: list[str] = []

    def run_briefly(self: server._Server, sockets: list[socket.socket]) -> None:
        self._begin()
        sockets[0].close()

    monkeypatch.setattr(server._Server, "run", run_briefly)
    monkeypatch.setattr("webbrowser.open", opened.append)
    for name in ("SSH_CONNECTION", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    run = ViewedRun(tmp_path, RunPlaces(load_config(CONFIG), tmp_path), {}, {})

    def act(place: Place, **environment: str) -> tuple[list[str], list[str]]:
        said: list[str] = []
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        serve(run, tmp_path / "notes", place, path="/slides/a/b", say=said.append)
        return said, opened

    return act


def test_the_browser_is_opened_where_there_is_a_screen_and_with_a_ticket(begin: Begin) -> None:
    said, opened = begin(Place(), DISPLAY=":0")
    token = said[1].partition("?token=")[2]
    assert len(token) >= 43
    while not opened:  # in a thread
        time.sleep(0.001)
    assert len(opened) == 1
    assert opened[0].partition("?token=")[0] == said[1].strip().partition("?token=")[0]
    assert token not in opened[0]  # arguments of programs are seen by all users
    assert not any("ssh" in line for line in said)


@pytest.mark.parametrize(
    ("asked", "environment"),
    [(True, {}), (True, {"DISPLAY": ":0", "SSH_CONNECTION": "1.2.3.4 1 5.6.7.8 22"}),
     (False, {"DISPLAY": ":0"})],
    ids=["no-screen", "ssh", "not-wanted"],
)  # fmt: skip
def test_elsewhere_no_browser_is_opened(
    begin: Begin, asked: bool, environment: dict[str, str]
) -> None:
    said, opened = begin(Place(open_browser=asked), **environment)
    assert opened == []
    port = said[1].partition("127.0.0.1:")[2].partition("/")[0]
    tunnel = f"  ssh -N -L {port}:127.0.0.1:{port} {socket.gethostname()}"
    assert (tunnel in said) is asked


def test_nothing_is_written_but_what_ends_with_it(begin: Begin, tmp_path: Path) -> None:
    begin(Place())
    assert list(tmp_path.iterdir()) == []


def test_an_exposed_server_says_what_is_exposed_to_whom(begin: Begin) -> None:
    said, _ = begin(Place(host="0.0.0.0", exposed=True))
    assert said[1].strip().startswith(f"http://{socket.gethostname()}:")
    assert said[2].startswith("Exposed by --yes-expose: every machine that reaches")
    assert "Nothing is encrypted" in said[2]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.9"])
def test_this_machine_alone_needs_no_consent(host: str) -> None:
    check_place(Place(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "2001:db8::1"])
def test_every_other_address_needs_consent(host: str) -> None:
    with pytest.raises(UserError, match="add --yes-expose"):
        check_place(Place(host=host))
    check_place(Place(host=host, exposed=True))


@pytest.mark.parametrize(
    ("place", "words"),
    [(Place(host="192.0.2.1", exposed=True), "is the address of another machine"),
     (Place(host="no.such.name.invalid"), "is no address of this machine")],
)  # fmt: skip
def test_an_address_that_is_none_of_the_machine_is_named(
    begin: Begin, place: Place, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        begin(place)


PAGE = """
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from her2.viewer.state import viewer_of

ROUTES = (Route("/api/models", lambda request: PlainTextResponse(str(viewer_of(request).notes))),)
"""


def test_what_a_panel_asks_for_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models.py").write_text(PAGE)
    monkeypatch.setattr(pages, "__path__", [*pages.__path__, str(tmp_path)])
    run = ViewedRun(tmp_path, RunPlaces(load_config(CONFIG), tmp_path), {}, {})
    viewer = Viewer(run, Cache(tmp_path / "cache"), Slides(), tmp_path / "notes")
    assert TestClient(make_app(viewer)).get("/api/models").text == str(viewer.notes)


def test_no_address_has_two_answers() -> None:
    routes = [(one.path, method) for one in pages.all_routes() for method in one.methods or ()]
    assert len(routes) == len(set(routes))
