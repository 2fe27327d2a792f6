"""`her2 view` as a process: how it begins, who is let in, what it survives, and how it ends."""

import http.client
import json
import math
import os
import re
import shutil
import signal
import socket
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import polars as pl
import pytest
import yaml
from starlette.testclient import TestClient
from typer.testing import CliRunner

from her2.cli.main import app
from her2.config import load_config
from her2.core.errors import UserError
from her2.explanation.exports import facts, write_geojson
from her2.explanation.tiles import SlideTiles
from her2.storage.cache import Cache
from her2.storage.facts import StoredSlide
from her2.viewer.app import make_app
from her2.viewer.drawn import Predicted
from her2.viewer.layers import all_layers
from her2.viewer.open_slides import Slides
from her2.viewer.predicted import Predictions, with_predictions
from her2.viewer.run import ViewedRun, open_run, page_of
from her2.viewer.server import Place, browser_names
from her2.viewer.state import Viewer
from her2.viewer.stored import PlacedTiles, Stored
from her2.viewer.zoom import TILE_PX, level_count
from tests.viewing import REPOSITORY, Viewing, viewing
from tests.workflow.conftest import copy
from tests.workflow.project import Project

SLIDE = "/slides/development/demo-001-a"
PATCHED = """
import ctypes, os, time
from her2.core.crashes import survive

def work():
    from her2.slides.slide import Slide
    real = Slide.region

    def region(self, *arguments):
        if self.path.name == os.environ["BAD"]:
            {instead}
        return real(self, *arguments)

    Slide.region = region
    from her2.cli.main import main
    main()

survive(work)
"""
"""her2, with a library that does something else where it reads a slide."""


@pytest.fixture(scope="module")
def view(validated: Project) -> Iterator[Viewing]:
    with viewing(validated.folder, "results") as found:
        yield found


def refusal(folder: Path, *arguments: str) -> str:
    """What a command that cannot begin says."""
    with chdir(folder):
        done = CliRunner().invoke(app, ["view", "--no-browser", *arguments])
    assert isinstance(done.exception, UserError), done
    return str(done.exception)


def inside(run: ViewedRun, folder: Path) -> TestClient:
    """The application of a run, without a server and its guard."""
    viewer = Viewer(run, Cache(folder / "cache"), Slides(), folder / "notes")
    return TestClient(make_app(viewer), base_url="http://127.0.0.1")


# The page


def test_a_page_opens_without_errors_and_asks_nobody_else(view: Viewing) -> None:
    tab = view.open(SLIDE)
    tab.wait_for("document.querySelectorAll('.leaflet-tile-loaded').length > 0")
    assert (tab.errors, tab.failures) == ([], [])
    assert {address.startswith(view.url("/")) for address in tab.requests} == {True}


def test_the_token_stays_nowhere_in_the_browser(view: Viewing) -> None:
    tab = view.tab
    tab.open(view.url(f"{SLIDE}?token={view.token}&x=300&y=300&z=0"))
    entries = tab.call("Page.getNavigationHistory")["entries"]
    assert not [one["url"] for one in entries if view.token in one["url"]]
    assert tab.run("location.href").startswith(view.url(f"{SLIDE}?x=300"))
    assert tab.run("document.referrer + document.cookie") == ""
    kept = tab.run("JSON.stringify([{ ...localStorage }, { ...sessionStorage }])")
    assert view.token not in kept


def test_a_link_on_another_site_lets_in_too(view: Viewing, tmp_path: Path) -> None:
    """And one without the token leads to a page that says what to do."""
    tab = view.tab
    page = tmp_path / "mail.html"
    for address, words in (
        (view.address, "document.title.length > 0 && document.getElementById('status')"),
        (view.url(SLIDE), "document.querySelector('h1').textContent === '403'"),
    ):
        page.write_text(f'<a href="{address}">see</a>')
        tab.open(page)
        tab.click_on("a")
        tab.wait_for(f"location.protocol === 'http:' && ({words})")
        entries = tab.call("Page.getNavigationHistory")["entries"]
        assert not [one["url"] for one in entries if view.token in one["url"]]
    tab.click_on("a")
    tab.wait_for("document.querySelector('.map') !== null")


def test_the_browser_that_tests_use_sees_what_a_page_does_wrong(view: Viewing) -> None:
    """And the policy lets nothing inline run, and nothing leave the machine."""
    tab = view.open(SLIDE)
    tab.run("import('/static/none.js').catch(() => null)")
    tab.run(
        "(() => { const one = document.createElement('script'); one.textContent = 'window.x = 1';"
        "document.body.append(one); document.body.insertAdjacentHTML('beforeend',"
        '\'<img src=x onerror="window.x = 1"><p style="color: red">\'); })()'
    )
    for made in (
        "const one = new Image(); one.onerror = () => done(); one.src = 'https://e.example/x.png';",
        "fetch('https://e.example/x').then(done, () => done());",
    ):
        tab.run(f"new Promise((done) => {{ {made} }})")
    assert tab.run("window.x") is None
    for violated in ("inline script", "inline event handler", "inline style"):
        assert any(f"{violated} violates" in error for error in tab.errors), violated
    assert any(found.endswith("/static/none.js: 404") for found in tab.failures)
    assert "https://e.example/x.png: csp" in tab.failures
    assert any("https://e.example/x' violates" in error for error in tab.errors)
    assert not any("e.example" in address for address in tab.requests if ".png" not in address)


def test_leaflet_and_its_source_maps_come_from_here(view: Viewing) -> None:
    script = view.get("/leaflet/leaflet.js")
    assert script.status == 200
    (name,) = re.findall(r"sourceMappingURL=(\S+)", script.text)
    assert view.get(f"/leaflet/{name}").status in (200, 404)
    assert "://" not in name


def test_scripts_are_kept_by_a_browser_that_asks_and_pages_are_not_kept(view: Viewing) -> None:
    for path in ("/static/base.css", "/leaflet/leaflet.js"):
        first = view.get(path)
        assert first.headers["cache-control"] == "private, no-cache"
        again = view.get(path, **{"If-None-Match": first.headers["etag"]})
        assert (again.status, again.body) == (304, b"")
    for path in ("/", SLIDE, f"/api{SLIDE}"):
        assert view.get(path).headers["cache-control"] == "no-store"


# Nothing but what the results name

OUTSIDE = (
    "/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static/..%5capp.py",
    "/static/%2e%2e%2f%2e%2e%2f%2e%2e%2fpyproject.toml", "/static//etc/passwd",
    "/static/%2fetc%2fpasswd", "/static/base.css%00", "/static/", "/static", "/leaflet/",
    "/leaflet/images/", "/leaflet/../__init__.py", "/leaflet/..%2f__init__.py",
    "/slides/development/..%2f..%2fconfig.yaml", "/slides/../../etc/passwd",
    "/slides/development/%2e%2e", "/slides/development/..\\..\\x", "/slides/%00/%00",
    "/slides/development/demo-001-a%00", "/slides/development/demo-001-a/zoom/../../x.jpg",
    f"{SLIDE}/zoom/99/0_0.jpg", f"{SLIDE}/zoom/0/9_9.jpg", f"{SLIDE}/zoom/-1/0_0.jpg",
    f"{SLIDE}/zoom/0/{'9' * 400}_0.jpg", f"{SLIDE}/zoom/0/0_0.png",
    "/slides/external:east/demo-001-a", "/slides/external:..%2f/east-0",
    "/slides/external:/east-0", "/slides/nowhere/demo-001-a", "/slides/development/",
    "/slides/development/d%C3%A9mo-001-a", "/slides/development/demo-001-%EF%BD%81",
    "/slides/development/%FF%FE", f"/slides/development/{'a' * 1000}",
    "/slides/development/slides.csv", "/slides/slides/demo-001-a.svs", "/config.yaml",
    "/results/run.json", "//evil.example/", "/api/slides/development/none", "/api/none",
    "/.git/config", "/docs", "/openapi.json",
)  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path[:60])
def test_what_the_results_do_not_name_is_not_there(
    view: Viewing, validated: Project, path: str
) -> None:
    answer = view.get(path)
    assert answer.status == 404
    assert str(validated.folder) not in answer.text
    assert str(REPOSITORY) not in answer.text
    assert "Traceback" not in answer.text


def test_a_slide_that_cannot_be_read_says_so_without_folders(
    view: Viewing, validated: Project
) -> None:
    slides = (validated.folder / "slides").resolve()
    file = slides / "demo-002-a.svs"
    content = file.read_bytes()
    try:
        for change in (file.unlink, lambda: file.write_bytes(b"no slide" * 100)):
            change()
            answer = view.get("/slides/development/demo-002-a/zoom/0/0_0.jpg")
            assert answer.status == 409
            for text in (answer.text, view.get("/api/slides/development/demo-002-a").text):
                assert str(slides) not in text
    finally:
        file.write_bytes(content)


# Requests as no browser sends them


def raw(view: Viewing, text: str) -> bytes:
    """The answer to bytes."""
    with socket.create_connection((view.host, view.port), timeout=30) as one:
        one.sendall(text.format(cookie=view.cookie, host=f"{view.host}:{view.port}").encode())
        found = b""
        while part := one.recv(1 << 16):
            found += part
        return found


@pytest.mark.parametrize(
    ("request_line", "statuses"),
    [("GET / HTTP/1.1\r\nCookie: {cookie}\r\n", "400"),  # no Host
     ("GET / HTTP/1.0\r\nCookie: {cookie}\r\n", "421"),
     ("GET http://{host}/ HTTP/1.1\r\nHost: evil.example\r\nCookie: {cookie}\r\n", "421"),
     ("GET / HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\nCookie: {cookie}\r\n", "400"),
     ("CONNECT evil.example:80 HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n", "405"),
     ("TRACE / HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n", "405"),
     ("OPTIONS * HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n", "405"),
     ("GET / HTTP/1.1\r\nHost: {host}\r\nX: " + "x" * 40_000 + "\r\n", "431"),
     ("GET /" + "x" * 40_000 + " HTTP/1.1\r\nHost: {host}\r\n", "414")],
    ids=["no-host", "http-1.0", "whole-address", "two-hosts", "connect", "trace", "options",
         "huge-header", "huge-path"],
)  # fmt: skip
def test_odd_requests_are_refused(view: Viewing, request_line: str, statuses: str) -> None:
    found = raw(view, f"{request_line}Connection: close\r\n\r\n")
    assert found.split()[1].decode() in statuses.split()
    assert view.token.encode() not in found


def test_the_real_process_refuses_who_is_not_let_in(view: Viewing) -> None:
    assert view.ask("GET", SLIDE, headers={"Cookie": None}).status == 403
    assert view.ask("GET", f"{SLIDE}?token=wrong", headers={"Cookie": None}).status == 403
    assert view.ask("GET", SLIDE, headers={"Host": f"evil.example:{view.port}"}).status == 421
    assert view.ask("PUT", SLIDE, body=b"{}").status == 403
    own = {"Origin": view.url(""), "Content-Type": "application/json"}
    assert view.ask("PUT", SLIDE, headers=own, body=b"{}").status == 405
    assert view.token not in view.log.replace(view.address, "")


# Many requests, long ones, and who goes away


def test_twenty_squares_at_once_are_those_of_one_after_the_other(view: Viewing) -> None:
    last, side = level_count((768, 768)) - 1, math.ceil(768 / TILE_PX)
    squares = [f"{last}/{column}_{row}.webp" for column in range(side) for row in range(side)]
    paths = [f"{SLIDE}/zoom/{square}" for square in ("0/0_0.jpg", *squares)] * 4
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(view.get, paths))
    assert {answer.status for answer in answers} == {200}
    assert [one.body for one in answers] == [view.get(path).body for path in paths]


def test_a_client_that_goes_away_disturbs_nobody(view: Viewing) -> None:
    for _ in range(5):
        gone = http.client.HTTPConnection(view.host, view.port)
        gone.request("GET", f"{SLIDE}/zoom/0/0_0.jpg", headers={"Cookie": view.cookie})
        gone.close()
    assert view.get(f"{SLIDE}/zoom/0/0_0.jpg").status == 200
    assert "Traceback" not in view.log


# Its beginning and its end


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_it_listens_on_ipv6_a_long_request_blocks_no_other_and_ctrl_c_ends_all(
    validated: Project, tmp_path: Path
) -> None:
    driver = tmp_path / "slow.py"
    driver.write_text(PATCHED.format(instead="time.sleep(60)"))
    arguments = ("results", "demo-003-a", "--host", "::1")
    with (
        viewing(
            validated.folder, *arguments,
            program=(str(driver),), environment={"BAD": "demo-001-a.svs"},
        ) as found,
        ThreadPoolExecutor(1) as pool,
    ):  # fmt: skip
        host = f"[::1]:{found.port}"
        assert found.address.startswith(f"http://{host}/slides/development/demo-003-a?token=")
        assert f"ssh -N -L {found.port}:[::1]:{found.port} {socket.gethostname()}" in found.log
        assert found.ask("GET", SLIDE, headers={"Host": host}).status == 200
        long = pool.submit(found.get, f"{SLIDE}/zoom/0/0_0.jpg")
        assert found.get("/slides/development/demo-002-a/zoom/0/0_0.jpg").status == 200
        assert not long.done()
        # One that stays open, as a browser's does
        with socket.create_connection((found.host, found.port)):
            assert found.end(signal.SIGINT) == 0
        assert isinstance(long.exception(), http.client.HTTPException | OSError) or (
            long.result().status == 500
        )
        assert "Traceback" not in found.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda one: one.name)
def test_however_it_is_ended_nothing_of_it_stays(
    validated: Project, tmp_path: Path, number: signal.Signals
) -> None:
    # As from a terminal: where the tests run under nohup, the signal would stay ignored.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with viewing(validated.folder, "results", environment={"TMPDIR": str(tmp_path)}) as found:
        signal.signal(signal.SIGHUP, before)
        assert list(tmp_path.glob("her2-view-*"))
        assert found.end(number) == 128 + signal.SIGTERM
        assert "Traceback" not in found.log
    assert list(tmp_path.glob("her2-view-*")) == []


def test_a_port_that_is_taken_is_named(view: Viewing, validated: Project) -> None:
    said = refusal(validated.folder, "--port", str(view.port))
    assert said.startswith(f"--port {view.port}: another program listens there")


def test_without_results_it_says_what_to_name(tmp_path: Path) -> None:
    said = refusal(tmp_path)
    assert said == "results: is no folder; name the results of a run: her2 view path/to/results"


def test_a_slide_is_named_by_its_id_or_with_its_cohort(validated: Project) -> None:
    run = open_run(validated.folder / "results")
    page = "/slides/external:east/east-0"
    for name in ("east-0", "east/east-0", "external:east/east-0"):
        assert page_of(run, name) == page
    said = refusal(validated.folder, "results", "demo-01-a")
    assert said.startswith("demo-01-a: no cohort has this slide; do you mean demo-0")
    for name in ("../x", "east/demo-001-a", "", "<b>"):
        with pytest.raises(UserError, match="no cohort has this slide"):
            page_of(run, name)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", socket.gethostbyname(socket.gethostname())])
def test_other_machines_are_let_in_by_consent_only(validated: Project, host: str) -> None:
    if host.startswith("127."):
        pytest.skip("this machine has no address but the loopback one")
    assert "add --yes-expose" in refusal(validated.folder, "--host", host)


def test_a_browser_may_ask_under_the_names_of_the_machine_and_those_given() -> None:
    local = Place(names=("view.example", "[fe80::1]:80", "LOCALHOST:9"))
    assert set(browser_names(local, 7)) == {
        "127.0.0.1:7", "localhost:7", "view.example:7", "[fe80::1]:80", "localhost:9",
    }  # fmt: skip
    exposed = browser_names(Place(host="0.0.0.0", exposed=True), 7)
    assert f"{socket.gethostname()}:7".lower() in exposed


def test_after_a_crash_it_is_under_the_same_address_without_the_slide(
    validated: Project, tmp_path: Path
) -> None:
    driver = tmp_path / "crashing.py"
    driver.write_text(PATCHED.format(instead="ctypes.string_at(0)"))
    bad = f"{SLIDE}/zoom/0/0_0.jpg"
    (temporary := tmp_path / "temporary").mkdir()
    environment = {"BAD": "demo-001-a.svs", "TMPDIR": str(temporary)}
    with viewing(
        validated.folder, "results", program=(str(driver),), environment=environment
    ) as found:
        for _ in range(2):
            with pytest.raises((OSError, http.client.HTTPException)):
                found.get(bad)
            _wait_until_it_answers(found)
        assert found.log.count(found.address) == 1
        answer = found.get(bad)
        assert answer.status == 409
        assert "crashes the library that reads it" in answer.text
        assert found.get("/slides/development/demo-002-a/zoom/0/0_0.jpg").status == 200
        assert len(list(temporary.glob("her2-view-*"))) == 1  # those that crashed left none
        assert found.end() == 0


def _wait_until_it_answers(found: Viewing) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            assert found.get("/static/base.css").status == 200  # by the cookie of before
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(found.log)


# A run that is not finished, and predictions of a bundle


def test_a_run_without_a_report_can_be_seen_with_its_config(
    validated: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results = tmp_path / "results"
    (results / "cohort").mkdir(parents=True)
    for name in ("slides.csv", "slides", "config.yaml", "east.csv"):
        (tmp_path / name).symlink_to(validated.folder / name)
    assert "--config" in refusal(tmp_path)
    assert "cohort's table" in refusal(tmp_path, "--config", "config.yaml")
    table = validated.folder / "results/cohort/slides.parquet"
    (results / "cohort/slides.parquet").write_bytes(table.read_bytes())
    with chdir(tmp_path):
        run = open_run(Path("results"), load_config(Path("config.yaml")))
        client = inside(run, tmp_path)
        assert "the external cohort east has no table yet" in caplog.text
        for path in ("/", "/api/cohort", SLIDE, f"/api{SLIDE}", f"{SLIDE}/zoom/0/0_0.jpg"):
            assert client.get(path).status_code == 200, path


@pytest.mark.parametrize("slide", ["development/demo-001-a", "external:east/east-0"])
def test_before_the_report_what_the_run_has_of_a_slide_is_shown(
    validated: Project, tmp_path: Path, slide: str
) -> None:
    with chdir(validated.folder):
        finished = inside(open_run(Path("results")), validated.folder)
    going_on = copy(validated, tmp_path / "project").folder
    (going_on / "results/stamps/build_report.json").unlink()
    with chdir(going_on):
        unfinished = inside(open_run(Path("results"), load_config(Path("config.yaml"))), going_on)
    for path in ("/layers/kept", "/layers/grid", "/tile?index=0", "/similar?encoder=tiny&tile=0"):
        answer = unfinished.get(f"/api/slides/{slide}{path}")
        assert answer.json() == finished.get(f"/api/slides/{slide}{path}").json(), path
        assert not {"absent", "error"} & set(answer.json()), path
    assert "absent" not in unfinished.get(f"/api/slides/{slide}/layers/tissue").json()


ASKED = (
    "", "/layers", *(f"/layers/{one.name}" for one in all_layers()), "/tile?index=0",
    "/tile?x=1&y=1", "/tiles", "/similar?encoder=tiny&tile=0", "/file",
)  # fmt: skip


@pytest.mark.parametrize(
    "damaged",
    ["stamps/tabulate_cohort.json", "stamps/tile_bucket/*/*.json", "stamps/draw_heatmaps/*/*/*",
     "features/tiny/*.json", "tiles/*/*.parquet"],
)  # fmt: skip
def test_a_reason_names_the_file_and_no_folder_of_the_machine(
    validated: Project, tmp_path: Path, damaged: str
) -> None:
    folder = copy(validated, tmp_path / "project").folder
    shutil.rmtree(folder / "cache")
    with chdir(folder):
        client = inside(open_run(Path("results")), folder)
    files = list((folder / "results").glob(damaged))
    for file in files:
        file.unlink()
        file.write_text("{")
    texts = [client.get(f"/api{SLIDE}{path}").text for path in ASKED]
    assert any(f".../{file.name}" in text for file in files for text in texts), texts
    assert not [text for text in texts if str(tmp_path) in text]


def predictions(
    folder: Path, ids: list[str], *, caution: str = "Its um/px is <b>outside</b>."
) -> None:
    """Write a table as `her2 predict` does, with a patient too."""
    number = len(ids)
    pl.DataFrame(
        {
            "level": ["slide"] * number + ["patient"],
            "slide_id": [*ids, None],
            "patient_id": ["p"] * (number + 1),
            "status": ["ok"] * (number - 1) + ["failed", "ok"],
            "reason": [None] * (number - 1) + ["cannot be read", None],
            "predicted": ["low"] * (number - 1) + [None, "low"],
            **{f"prob_{name}": [0.5] * (number - 1) + [None, 0.5] for name in ("low", "high")},
            "cautions": [caution] + [None] * number,
        }
    ).write_csv(folder / "predictions.csv")


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside-a-run"])
def test_predictions_of_a_bundle_are_a_cohort(
    validated: Project, tmp_path: Path, beside: bool
) -> None:
    predictions(tmp_path, ["demo-001-a", "demo-002-a", "gone"])
    run = open_run(validated.folder / "results") if beside else None
    given = Predictions(tmp_path / "predictions.csv", validated.folder / "slides")
    client = inside(with_predictions(run, given), tmp_path)

    def status(path: str) -> int:
        return client.get(path).status_code

    for path in ("/", "/api/cohort", "/slides/predicted/demo-001-a"):
        assert status(path) == 200, path
    for slide in ("demo-001-a", "gone"):
        assert status(f"/api/slides/predicted/{slide}") == 200, slide
    assert status("/slides/predicted/demo-001-a/zoom/0/0_0.jpg") == 200
    assert status("/slides/predicted/gone/zoom/0/0_0.jpg") == 404
    assert status("/slides/predicted/demo-003-a") == 404  # not in the table
    assert status(SLIDE) == (200 if beside else 404)
    table = client.get("/api/cohort").json()
    assert "predicted" in [one["key"] for one in table["cohorts"]]
    assert "Its um/px is <b>outside</b>." in str(table["columns"]["cautions"])
    first, none = (
        client.get(f"/api/slides/predicted/{name}").json()["prediction"]
        for name in ("demo-001-a", "gone")
    )
    assert first == {
        "class": "low",
        "probabilities": {"low": 0.5, "high": 0.5},
        "cautions": "Its um/px is <b>outside</b>.",
    }
    assert none is None


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda text: "a,b\n1,2\n", "is no table of `her2 predict --bundle`"),
     (lambda text: "", "is no table"),
     (lambda text: text.replace("demo-001-a", "../x"), "'../x' is no slide_id"),
     (lambda text: text.replace("demo-002-a", "demo-001-a"), "does not have each slide once"),
     (lambda text: text.replace("prob_low", "prob_<b>"), "are not those of `her2 predict`"),
     (lambda text: text.replace("0.5", "half"), "is no table"),
     (lambda text: text.replace("demo", "other"), "has none of the slides of the table")],
    ids=["other-columns", "empty", "hostile-id", "twice", "hostile-class", "no-numbers", "others"],
)  # fmt: skip
def test_a_table_that_is_none_of_predictions_is_refused(
    validated: Project, tmp_path: Path, change: Callable[[str], str], words: str
) -> None:
    predictions(tmp_path, ["demo-001-a", "demo-002-a", "gone"])
    path = tmp_path / "predictions.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=re.escape(words)):
        with_predictions(None, Predictions(path, validated.folder / "slides"))


# What others have written


def hostile(number: int) -> str:
    """Words that run if they are taken for markup, for a script or for an address."""
    return (
        f"</script><script>window.ran={number}</script><img src=x onerror='window.ran={number}'>"
        f"\"'><svg onload=window.ran={number}>{{{{ 7*7 }}}}${{window.ran={number}}}"
    )


def test_hostile_words_are_shown_and_run_nothing(
    view: Viewing, validated: Project, tmp_path: Path
) -> None:
    config = yaml.safe_load((validated.folder / "config.yaml").read_text())
    config["report"] = {"title": hostile(1)}
    config["validation"] = {}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "slides").symlink_to(validated.folder / "slides")
    rows = pl.read_csv(validated.folder / "slides.csv", infer_schema=False)
    rows = rows.with_columns(site=pl.lit(hostile(2)), scanner=pl.lit(hostile(3)))
    rows.write_csv(tmp_path / "slides.csv")
    table = pl.read_parquet(validated.folder / "results/cohort/slides.parquet").with_columns(
        *(pl.lit(hostile(number)).alias(name) for number, name in enumerate(
            ("patient_id", "label_her2", "site", "scanner", "vendor", "reason"), 4)),
        status=pl.when(pl.int_range(pl.len()) == 1).then(pl.lit("excluded")).otherwise("status"),
    )  # fmt: skip
    (tmp_path / "results/cohort").mkdir(parents=True)
    table.write_parquet(tmp_path / "results/cohort/slides.parquet")
    predictions(tmp_path, ["demo-001-a", "demo-002-a"], caution=hostile(12))
    arguments = ["--config", "config.yaml", "--bundle-predictions", "predictions.csv"]
    with viewing(tmp_path, "results", *arguments, "--slides", "slides") as found:
        outline = [[0, 0], [100, 0], [100, 100], [0, 100]]
        note = {"class": "<b>tumour</b>", "remark": hostile(14), "outline": outline}
        assert found.send("POST", f"/api{SLIDE}/notes", note).status == 201
        tab, shown = view.tab, ""
        tab.open(found.address)
        for path in ("/", "/?q=%3Cimg%20src=x%20onerror=window.ran=15%3E", SLIDE,
                     "/slides/development/demo-002-a", "/slides/predicted/demo-001-a",
                     f"{SLIDE}?model={quote(hostile(16))}&layers={quote(hostile(17))}",
                     f"/slides/{quote(hostile(18), safe='')}/x"):  # fmt: skip
            tab.open(found.url(path))
            tab.wait_for("document.readyState === 'complete'")
            tab.wait_for("new Promise((done) => setTimeout(() => done(true), 200))")
            assert tab.run("window.ran") is None, path
            assert not [error for error in tab.errors if "violates" in error], path
            shown += tab.run("document.body.textContent")
        numbers = {int(number) for number in re.findall(r"<script>window.ran=(\d+)<", shown)}
        assert numbers >= {1, 2, 3, 4, 9, 12, 14}, numbers  # title, site, ..., note


def test_attention_of_predictions_is_that_of_the_drawing(
    validated: Project, tmp_path: Path
) -> None:
    predictions(tmp_path, ["demo-001-a", "demo-002-a", "gone"])
    drawn = tmp_path / "heatmaps" / "slides"
    drawn.mkdir(parents=True)
    coords = np.array([[96, 32], [160, 32], [224, 96]], np.int32)
    attention = np.array([0.125, 0.5, 0.375], np.float32)
    tiles = SlideTiles(
        of=Predicted("demo-001-a", "p"), class_names=("low", "high"), coords=coords,
        slide=StoredSlide("f", (0.5, 0.5), "metadata", (64.0, 64.0), (768, 768)), encoder_px=32,
        attention=attention, probabilities=(0.5, 0.5), model={},
    )  # fmt: skip
    write_geojson(tiles, drawn / "demo-001-a.geojson", facts(tiles, synthetic=True),
                  origin_px=(32, 16))  # fmt: skip
    (drawn / "demo-002-a.geojson").write_text("{}")
    given = Predictions(
        tmp_path / "predictions.csv", validated.folder / "slides", tmp_path / "heatmaps"
    )
    client = inside(with_predictions(None, given), tmp_path)
    for index, (x, y) in enumerate(coords):
        tile = client.get(
            "/api/slides/predicted/demo-001-a/tile", params={"x": x + 1, "y": y + 1}
        ).json()
        assert tile["index"] == index
        assert tile["attention"] == attention[index]
        assert tile["rank"] == [3, 1, 2][index]
        assert client.get(tile["picture"]).status_code == 200
    layer = client.get("/api/slides/predicted/demo-001-a/layers/attention").json()
    assert layer["bounds_px"] == [96, 32, 288, 160]
    assert client.get(layer["url"]).headers["content-type"] == "image/png"
    for slide, words in (("demo-002-a", "is no drawing of this slide"), ("gone", "not drawn")):
        answer = client.get(f"/api/slides/predicted/{slide}/layers/attention").json()
        assert words in answer["absent"]


# Results that no run of this version wrote, or that are written again meanwhile

EVALUATED = "evaluation/score/tiny/abmil/slides.parquet"


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (EVALUATED, lambda t: t.with_columns(pl.lit(math.nan).alias(t.columns[-1]))),
        (EVALUATED, lambda t: t.with_columns(target=pl.lit(77, pl.Int32))),
        (EVALUATED, lambda t: t.drop("target")),
        (EVALUATED, lambda t: t.with_columns(pl.lit("<b>").alias(t.columns[-1]))),
        (EVALUATED.replace("slides", "predictions"), lambda t: t.drop("role")),
        ("cohort/slides.parquet", lambda t: t.with_columns(tiles=pl.lit("<b>"))),
        ("cohort/slides.parquet", lambda t: t.with_columns(site=pl.lit([1, 2]))),
    ],
)
def test_a_table_that_no_run_wrote_is_said_in_words(
    project: Project, file: str, change: Callable[[pl.DataFrame], pl.DataFrame]
) -> None:
    path = project.folder / "results" / file
    table = change(pl.read_parquet(path))
    path.unlink()  # it may have more names
    table.write_parquet(path)
    with chdir(project.folder), inside(open_run(Path("results")), project.folder) as client:
        answer = client.get("/api/cohort")
        assert answer.status_code == 409
        assert "table of the results" in answer.json()["error"]
        assert client.get(SLIDE).status_code == 200


def test_a_slide_whose_table_has_no_numbers_has_facts(project: Project) -> None:
    path = project.folder / "results/cohort/slides.parquet"
    table = pl.read_parquet(path).with_columns(
        tissue_mm2=pl.lit(math.nan), mpp_x=pl.lit(math.inf), mpp_y=pl.lit(0.5)
    )
    path.unlink()
    table.write_parquet(path)
    (project.folder / "slides/demo-001-a.svs").unlink()
    with chdir(project.folder), inside(open_run(Path("results")), project.folder) as client:
        answer = client.get(f"/api{SLIDE}")
    assert answer.status_code == 200
    assert (answer.json()["tissue_mm2"], answer.json()["mpp"]) == (None, None)


def test_a_model_of_an_encoder_that_the_config_has_not_any_more_says_so(project: Project) -> None:
    evaluated = project.folder / "results/evaluation/score"
    shutil.copytree(evaluated / "tiny", evaluated / "gone")
    with chdir(project.folder), inside(open_run(Path("results")), project.folder) as client:
        for layer in ("kept", "rejected", "tissue", "grid"):
            answer = client.get(f"/api{SLIDE}/layers/{layer}?model=score/gone/abmil")
            assert answer.status_code in (200, 404)
            assert "encoder" in answer.text


def test_a_run_that_was_made_again_is_read_again_with_the_page(project: Project) -> None:
    with chdir(project.folder), inside(open_run(Path("results")), project.folder) as client:

        def tile() -> dict[str, Any]:
            found = client.get(f"/api{SLIDE}/tile?index=0").json()
            assert isinstance(found, dict)
            return found

        assert tile()["attention"] is not None
        shutil.rmtree(project.folder / "results/models")
        assert client.get(f"/api{SLIDE}/layers").json()["note"] != ""
        assert tile()["attention"] is None


def test_attention_is_never_said_of_other_tiles(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with chdir(project.folder), inside(open_run(Path("results")), project.folder) as client:
        assert client.get(f"/api{SLIDE}/tile?index=0").json()["attention"] is not None
        real = Stored.placed

        def other(self: Stored, *arguments: Any) -> PlacedTiles:
            found = real(self, *arguments)
            return replace(found, coords=found.coords[::-1])

        monkeypatch.setattr(Stored, "placed", other)
        found = client.get(f"/api{SLIDE}/tile?index=0").json()
        assert found["attention"] is None
        assert "made again" in found["note"]
        assert "made again" in client.get(f"/api{SLIDE}/tiles").json()["absent"]


@pytest.mark.parametrize("encoder", ["gone", ["tiny"], {"tiny": 1}, None, 1])
def test_a_tile_of_no_encoder_is_refused(project: Project, encoder: object) -> None:
    corners = [[0, 0], [100, 0], [0, 100]]
    body = {"class": "a", "outline": corners, "tile": {"index": 0, "encoder": encoder}}
    with chdir(project.folder), inside(open_run(Path("results")), project.folder) as client:
        assert client.post(f"/api{SLIDE}/notes", json=body).status_code == 400
        assert client.get(f"/api{SLIDE}/tile?index={'9' * 1000}").status_code == 404


@pytest.mark.parametrize("kind", ["pipe", "large"])
def test_a_picture_of_the_results_that_is_none_is_not_read(project: Project, kind: str) -> None:
    (picture,) = (project.folder / "results/tiles").glob("*/demo-001-a.qc.jpg")
    (project.folder / "slides/demo-001-a.svs").unlink()
    with chdir(project.folder), inside(open_run(Path("results")), project.folder) as client:
        assert client.get(f"{SLIDE}/thumbnail.jpg").headers["x-from"] == "qc"
        picture.unlink()
        if kind == "pipe":  # whose reading waits
            os.mkfifo(picture)
        else:  # a small file that is decoded to more than there is memory
            head = struct.pack(">2I5B", 1_000_000, 1_000_000, 8, 0, 0, 0, 0)
            chunk = b"IHDR" + head
            crc = struct.pack(">I", zlib.crc32(chunk))
            picture.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + crc)
        assert client.get(f"{SLIDE}/thumbnail.jpg").status_code == 404


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda said: said.pop(name)


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said["target"].update(px=150_000),  # a picture would have 67 GB
        lambda said: said["target"].update(px="<b>"),
        lambda said: said["target"].update(px=0),
        lambda said: said["slide"].update(level0_tile=[1e9, 1e9]),
        lambda said: said["slide"].update(level0_tile=[math.nan, 1.0]),
        lambda said: said["slide"].update(level0_tile=[0.0, 1.0]),
        lambda said: said["slide"].update(mpp=[math.nan, 1.0]),
        without("target"),
        without("slide"),
    ],
)
def test_features_that_say_no_sizes_of_tiles_are_refused(
    project: Project, change: Callable[[dict[str, Any]], object]
) -> None:
    store = project.folder / "results/features/tiny/demo-001-a.zarr.zip"
    with zipfile.ZipFile(store) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    said = json.loads(parts["zarr.json"])
    change(said["attributes"])
    parts["zarr.json"] = json.dumps(said).encode()
    store.unlink()  # it is the cache's too
    with zipfile.ZipFile(store, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with (
        chdir(project.folder),
        inside(open_run(Path("results")), project.folder / "none") as client,
    ):
        for path in (f"{SLIDE}/tiles/tiny/0.png?as=encoder", f"/api{SLIDE}/tile?index=0"):
            assert client.get(path).status_code == 409
        for layer in ("kept", "grid"):
            assert "absent" in client.get(f"/api{SLIDE}/layers/{layer}").json()
        for layer in ("attention", "contribution"):
            assert client.get(f"/api{SLIDE}/layers/{layer}").status_code == 200
        assert client.get(f"/api{SLIDE}/similar?encoder=tiny&tile=0").status_code == 200
