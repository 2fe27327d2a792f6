"""Who sees anything of `her2 view`: the token, the host that was asked, other pages, methods."""

import hmac
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from her2.viewer import guard
from her2.viewer.guard import BODY_BYTES, POLICY, Guard, new_token

PORT = 8765
OWN = f"http://127.0.0.1:{PORT}"
TOKEN = "w7vk6weOyGjpdPHFvt-Ctb18fYjtuJ7wmHLpb7HnhLM"  # fixed: names of tests have it
HOSTS = [f"127.0.0.1:{PORT}", f"localhost:{PORT}", f"[::1]:{PORT}"]
CHANGE = {"Origin": OWN, "Content-Type": "application/json"}


async def echo(request: Request) -> JSONResponse:
    """What was let through."""
    return JSONResponse({"method": request.method, "bytes": len(await request.body())})


def client(**options: Any) -> TestClient:
    route = Route("/{path:path}", echo, methods=["GET", "POST", "PUT", "DELETE"])
    app = Guard(
        Starlette(routes=[route]), **{"token": TOKEN, "hosts": HOSTS, "port": PORT, **options}
    )
    return TestClient(app, base_url=OWN, follow_redirects=False)


@pytest.fixture
def stranger() -> Iterator[TestClient]:
    with client() as found:
        yield found


@pytest.fixture
def known(stranger: TestClient) -> TestClient:
    assert stranger.get(f"/?token={TOKEN}").status_code == 303
    return stranger


# The token


@pytest.mark.parametrize(
    "path",
    ["/", "/api/cohort", "/slides/development/a", "/static/base.css", "/none", "/?token=",
     "/?token=x", f"/?token={TOKEN[:-1]}", f"/?token={TOKEN}x", f"/?token=x&token={TOKEN}",
     "/?token=%00", "/?token=%FF", "/?token=é", f"/?TOKEN={TOKEN}"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
def test_nobody_is_let_in_without_the_token(stranger: TestClient, path: str, method: str) -> None:
    answer = stranger.request(method, path, headers=CHANGE)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert TOKEN not in answer.text


@pytest.mark.parametrize(
    "cookie",
    [f"her2-view-{PORT}=x", f"her2-view-{PORT + 1}={TOKEN}", f"token={TOKEN}",
     f"her2-view-{PORT}={TOKEN}x", f"her2-view-{PORT}", "=", "\x7f;;==",
     f'her2-view-{PORT}="\\377"'],
)  # fmt: skip
def test_a_cookie_that_is_not_this_servers_lets_nobody_in(
    stranger: TestClient, cookie: str
) -> None:
    assert stranger.get("/", headers={"Cookie": cookie}).status_code == 403


def test_the_token_moves_from_the_address_to_a_cookie_that_scripts_and_sites_cannot_use(
    stranger: TestClient,
) -> None:
    answer = stranger.get(f"/slides/external:east/a%2Bb?model=a/b/c&token={TOKEN}&x=1%262")
    cookie = answer.headers["set-cookie"]
    assert re.match(rf"her2-view-{PORT}=\S+; HttpOnly; Path=/; SameSite=strict$", cookie)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/slides/external:east/a%2Bb?model=a%2Fb%2Fc&x=1%262"
    assert TOKEN not in answer.text
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert stranger.get("/").json() == {"method": "GET", "bytes": 0}


def test_a_link_on_another_site_leads_on_by_a_page_since_a_redirect_would_lose_the_cookie(
    stranger: TestClient,
) -> None:
    answer = stranger.get(f"/a?token={TOKEN}&x=1&y=2", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 200
    assert 'content="0;url=/a?x=1&amp;y=2"' in answer.text
    assert TOKEN not in answer.text
    assert TOKEN in answer.headers["set-cookie"]


def test_servers_on_two_ports_of_a_machine_have_two_cookies() -> None:
    names = set()
    for port in (PORT, PORT + 1):
        with client(port=port, hosts=[f"127.0.0.1:{PORT}"]) as one:
            names.add(one.get(f"/?token={TOKEN}").headers["set-cookie"].partition("=")[0])
    assert len(names) == 2


@pytest.mark.parametrize("site", ["none", "cross-site"])
@pytest.mark.parametrize(
    "path",
    ["//evil.example/x", "/\\evil.example", "/\\/evil.example", "//evil.example:80/%2e%2e",
     "///evil.example", "/%09/evil.example", "/;url=https://evil.example",
     '/"><script>alert(1)</script>'],
)  # fmt: skip
def test_the_first_address_leads_to_no_other_place(path: str, site: str) -> None:
    sent: list[Mapping[str, Any]] = []
    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(),
        "query_string": f"token={TOKEN}&n=%22%3E%3Cscript%3E".encode(),
        "headers": [(b"host", HOSTS[0].encode()), (b"sec-fetch-site", site.encode())],
    }  # fmt: skip
    _ask(scope, sent)
    body = sent[1]["body"].decode()
    where = dict(sent[0]["headers"])[b"location"].decode() if site == "none" else body
    (there,) = re.findall(r"^.*$" if site == "none" else r'content="0;url=([^"]*)"', where)
    assert re.match(r"/(?![/\\])", there)
    assert "<script" not in body
    assert not re.search(r"[\s<>\"]", there)


def test_a_ticket_lets_in_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "is_ours", lambda *_: True)
    made = Guard(Starlette(), token=TOKEN, hosts=HOSTS, port=PORT)
    ticket = made.ticket()
    assert ticket != TOKEN
    with TestClient(made, base_url=OWN, follow_redirects=False) as first:
        assert first.get(f"/none?token={ticket}").status_code == 303
        assert first.cookies[f"her2-view-{PORT}"] == TOKEN
    with TestClient(made, base_url=OWN) as second:
        assert second.get(f"/none?token={ticket}").status_code == 403


def test_a_ticket_that_another_user_saw_lets_nobody_in_and_stays_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Guard(Starlette(), token=TOKEN, hosts=HOSTS, port=PORT)
    ticket = made.ticket()
    for ours, status in ((False, 403), (True, 303)):
        monkeypatch.setattr(guard, "is_ours", lambda *_, ours=ours: ours)
        with TestClient(made, base_url=OWN, follow_redirects=False) as one:
            assert one.get(f"/?token={ticket}").status_code == status


def test_every_comparison_takes_the_same_time(
    known: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare_digest = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare_digest(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    known.get("/")
    known.get("/?token=x")
    assert compared == [(TOKEN.encode(), TOKEN.encode()), (b"x", TOKEN.encode())]


def test_two_tokens_are_never_the_same_and_cannot_be_guessed() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert min(map(len, tokens)) >= 43  # 32 bytes


# The host that was asked


@pytest.mark.parametrize("host", [*HOSTS, f"LOCALHOST:{PORT}"])
def test_the_names_of_the_server_are_answered(stranger: TestClient, host: str) -> None:
    answer = stranger.get(f"/?token={TOKEN}", headers={"Host": host})
    assert answer.status_code == 303


@pytest.mark.parametrize(
    "host",
    [f"attacker.example:{PORT}", "attacker.example", f"127.0.0.1.attacker.example:{PORT}",
     f"localhost.attacker.example:{PORT}", "127.0.0.1", "127.0.0.1:80", f"127.0.0.1:{PORT}0",
     f"127.0.0.2:{PORT}", f"10.0.0.1:{PORT}", f"127.0.0.1:{PORT}, attacker.example",
     f"user@127.0.0.1:{PORT}", f"[::1%eth0]:{PORT}", "", f":{PORT}", f" 127.0.0.1:{PORT}."],
)  # fmt: skip
def test_a_name_that_another_site_has_made_to_point_here_is_not_answered(
    known: TestClient, host: str
) -> None:
    answer = known.get(f"/?token={TOKEN}", headers={"Host": host})
    assert answer.status_code == 421
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("hosts", [[], [HOSTS[0], HOSTS[0]], [HOSTS[0], "attacker.example"]])
def test_a_request_has_one_host(hosts: list[str]) -> None:
    sent: list[Mapping[str, Any]] = []
    _ask({"headers": [(b"host", host.encode()) for host in hosts]}, sent)
    assert sent[0]["status"] == 421


def test_an_exposed_server_answers_to_addresses_and_to_names_that_were_given() -> None:
    with client(any_ip=True, hosts=[f"node7:{PORT}", "view.hospital.example:443"]) as one:

        def status(host: str) -> int:
            return one.get(f"/?token={TOKEN}", headers={"Host": host}).status_code

        assert status(f"node7:{PORT}") == 303
        assert status(f"10.1.2.3:{PORT}") == 303
        assert status(f"[fe80::1]:{PORT}") == 303
        assert status("view.hospital.example:443") == 303
        assert status("10.1.2.3:80") == 421
        assert status(f"attacker.example:{PORT}") == 421


def test_on_port_80_browsers_name_no_port() -> None:
    with client(port=80, hosts=["localhost:80"]) as one:
        for host, status in {"localhost": 303, "localhost:80": 303, "evil.example": 421}.items():
            answer = one.get(f"/?token={TOKEN}", headers={"Host": host})
            assert answer.status_code == status


# Methods and other pages


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "OPTIONS", "PATCH", "PROPFIND", "X"])
def test_other_methods_are_refused_even_with_the_cookie(known: TestClient, method: str) -> None:
    answer = known.request(method, "/", headers=CHANGE)
    assert answer.status_code == 405


def test_a_preflight_of_another_site_is_allowed_nothing(known: TestClient) -> None:
    answer = known.options(
        "/api/slides/development/a/notes",
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "content-type"},
    )  # fmt: skip
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_change_of_our_own_page_is_let_through(known: TestClient, method: str) -> None:
    answer = known.request(method, "/api/notes", headers=CHANGE, content=b"{}")
    assert answer.json() == {"method": method, "bytes": 2}


@pytest.mark.parametrize(
    "changed",
    [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": ""},
     {"Origin": f"http://localhost:{PORT}"},  # ours, but not the name that was asked
     {"Origin": "http://127.0.0.1:1"}, {"Origin": f"https://127.0.0.1:{PORT}"},
     {"Origin": f"{OWN}.evil.example"}, {"Content-Type": "text/plain"},
     {"Content-Type": "application/x-www-form-urlencoded"},
     {"Content-Type": "multipart/form-data; boundary=application/json"},
     {"Content-Type": "text/plain; application/json"}, {"Content-Type": ""}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_change_by_another_page_or_a_form_is_refused(
    known: TestClient, changed: dict[str, str], method: str
) -> None:
    answer = known.request(method, "/api/notes", headers={**CHANGE, **changed}, content=b"{}")
    assert answer.status_code == 403


def test_a_change_without_an_origin_is_refused(known: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    assert known.post("/api/notes", headers=headers, content=b"{}").status_code == 403


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [("same-origin", "cors", 200), ("none", "navigate", 200), ("cross-site", "navigate", 200),
     ("cross-site", "no-cors", 403), ("same-site", "no-cors", 403), ("same-site", "cors", 403)],
)  # fmt: skip
def test_pages_of_other_servers_may_link_here_and_embed_nothing(
    known: TestClient, site: str, mode: str, status: int
) -> None:
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
    assert known.get("/slides/a.jpg", headers=headers).status_code == status


# Sizes, and what every answer has


def test_a_body_that_says_it_is_large_is_refused_before_it_is_read(known: TestClient) -> None:
    answer = known.post("/api/notes", headers=CHANGE, content=b" " * (BODY_BYTES + 1))
    assert answer.status_code == 413
    for length in ("-1", "x", "1e3"):
        answer = known.post("/api/notes", headers={**CHANGE, "Content-Length": length})
        assert answer.status_code == 413


def test_a_body_without_a_length_is_refused_where_the_limit_is(known: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(5):
            yield b" " * (BODY_BYTES // 4)

    answer = known.post("/api/notes", headers=CHANGE, content=endless())
    assert answer.status_code == 413


def test_long_addresses_and_headers_are_refused(known: TestClient) -> None:
    assert known.get("/" + "9" * 1_000).status_code == 200
    assert known.get("/" + "9" * 5_000).status_code == 414
    assert known.get("/", headers={"X": "x" * 10_000}).status_code == 200
    assert known.get("/", headers={"X": "x" * 40_000}).status_code == 431


@pytest.mark.parametrize(
    "path", ["/", "/static/none", f"/?token={TOKEN}", "/?token=wrong", "/api/x?token=wrong"]
)
def test_every_answer_binds_the_browser(known: TestClient, path: str) -> None:
    headers = known.get(path).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"
    assert "Cookie" in headers["vary"]  # of another start on the same port nothing is taken


def test_the_policy_has_no_inline_script_and_no_other_host() -> None:
    assert POLICY.startswith("default-src 'none'")
    assert not re.search(r"unsafe|https?:|\*|wss?:", POLICY)


def test_scripts_are_refused_in_json_and_people_in_words(stranger: TestClient) -> None:
    assert "carries a token" in stranger.get("/api/cohort").json()["error"]
    assert stranger.get("/").headers["content-type"].startswith("text/html")


def test_a_refusal_never_quotes_what_was_asked(known: TestClient) -> None:
    for path in ("/<script>secret</script>?token=secret", "/api/secret?token=secret"):
        assert "secret" not in known.get(path).text


def _ask(changed: Mapping[str, Any], sent: list[Mapping[str, Any]]) -> None:
    """Give a request to the guard as the server does, past what a client makes of it."""
    import asyncio

    scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"",
             "headers": [], **changed}  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    app = Guard(Starlette(), token=TOKEN, hosts=HOSTS, port=PORT)
    asyncio.run(app(scope, receive, send))
