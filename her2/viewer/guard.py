"""`her2 view`: who may see anything: the token, the host that was asked, other pages, and methods.

The server may be reached by every program and every web page on the machine, so each request is
checked before anything else looks at it:

- the Host header is one of ours, or a page elsewhere could use its own name for this address;
- the first address carries the token, which then moves to a cookie that scripts cannot read and
  that no other site sends (SameSite=Strict); it is compared in constant time;
- only GET and HEAD read, and whatever changes a note comes from our own page and is JSON, which no
  form of another site can send;
- addresses, headers and bodies are small.
"""

import hmac
import html
import ipaddress
import secrets
import threading
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from her2.viewer.peer import is_ours

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""No inline script or style, and nothing from elsewhere."""
_READS = {"GET", "HEAD"}
_CHANGES = {"POST", "PUT", "DELETE"}
TOKEN = "token"
"""Name of the parameter of the first address."""
BODY_BYTES = 1 << 20
"""Limit of a request's body; a note has a few hundred."""
_TOO_LARGE = f"That is more than {BODY_BYTES >> 20} MiB."
_HEADER_BYTES = 32 << 10
_PATH_BYTES = 2048
_HTTP = 80
"""The port that browsers leave out of the header Host."""
_JSON = "application/json"
_HEAD = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>her2 view</title>'
    '<meta name="viewport" content="width=device-width">'
)


def new_token() -> str:
    """Return a token that nobody can guess."""
    return secrets.token_urlsafe(32)


class Guard:
    """ASGI middleware in front of the whole application.

    `hosts` are the legal Host headers, in lower case and with the port; with `any_ip` so is any IP
    address, since only names can be made to point elsewhere.
    """

    def __init__(
        self, app: ASGIApp, *, token: str, hosts: Sequence[str], port: int, any_ip: bool = False
    ) -> None:
        self._app, self._token = app, token.encode()
        self._hosts, self._port, self._any_ip = frozenset(hosts), port, any_ip
        self._cookie = f"her2-view-{port}"  # cookies are of a host, whatever its port
        self._tickets: list[bytes] = []
        self._lock = threading.Lock()

    def ticket(self) -> str:
        """Return what may stand for the token in an address, once, for programs of this user."""
        made = new_token()
        with self._lock:
            self._tickets.append(made.encode())
        return made

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request itself, or pass it on with the headers that bind the browser."""
        if scope["type"] != "http":  # lifespan, which is ours; no page opens a web socket
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _bind(MutableHeaders(scope=message))
            await send(message)

        answer = self._refusal(scope)
        if answer is not None:
            await answer(scope, receive, guarded)
            return
        await self._app(scope, _limited(receive), guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that is not passed on."""
        headers = Headers(scope=scope)
        method = scope["method"]
        if sum(len(name) + len(value) for name, value in headers.raw) > _HEADER_BYTES:
            return _said(scope, 431, "The request has too many headers, or too long ones.")
        if len(scope.get("raw_path") or scope["path"]) > _PATH_BYTES:
            return _said(scope, 414, "That address is too long.")
        if not self._is_ours(headers.getlist("host")):
            return _said(scope, 421, "This server does not answer to that name.")
        if method not in _READS | _CHANGES:
            return _said(scope, 405, "Only reading is possible here.")
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if given := [value for name, value in asked if name == TOKEN]:
            if method != "GET" or not self._lets_in(given[0], scope):
                return _said(scope, 403, "The token in the address is not that of this server.")
            return self._enter(scope, [one for one in asked if one[0] != TOKEN])
        if not self._is_token(self._sent(headers)):
            return _stranger(scope)
        if method in _CHANGES and not self._own(headers):
            return _said(scope, 403, "Only pages of this server may change notes.")
        if _of_another_page(headers):
            return _said(scope, 403, "Only pages of this server may ask for that.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > BODY_BYTES:
            return _said(scope, 413, _TOO_LARGE)
        return None

    def _enter(self, scope: Scope, rest: list[tuple[str, str]]) -> Response:
        """Answer the first address: lead to the same one without the token, with the cookie."""
        raw = scope.get("raw_path") or scope["path"].encode()
        # One slash in front: two would be the address of another host.
        path = "/" + quote(raw.decode("latin-1").lstrip("/\\"), safe="/%:;@&=+$,!~*'()")
        query = f"?{urlencode(rest)}" if rest else ""
        answer = Response(status_code=303, headers={"Location": path + query})
        if Headers(scope=scope).get("sec-fetch-site") == "cross-site":
            # A browser that follows a link on another site sends no new cookie after a redirect,
            # but does so from a page of ours.
            there = html.escape(path + query, quote=True)
            answer = HTMLResponse(
                f'{_HEAD}<meta http-equiv="refresh" content="0;url={there}">'
                f'<p><a href="{there}">Go on</a></p>'
            )
        answer.set_cookie(self._cookie, self._token.decode(), httponly=True, samesite="strict")
        return answer

    def _is_ours(self, given: Sequence[str]) -> bool:
        """Return whether the headers Host are one, and name this server."""
        if len(given) != 1:
            return False
        asked = given[0].lower()
        if asked in self._hosts or (self._port == _HTTP and f"{asked}:{_HTTP}" in self._hosts):
            return True
        name, _, port = asked.rpartition(":")
        return self._any_ip and port == str(self._port) and _is_ip(name.strip("[]"))

    def _lets_in(self, given: str, scope: Scope) -> bool:
        """Return whether that is the token, or a ticket, which it then uses up.

        A ticket is good for programs of this user only, as all users may have seen it.
        """
        if self._is_token(given):
            return True
        with self._lock:
            for ticket in self._tickets:
                if hmac.compare_digest(_bytes(given), ticket):
                    if not is_ours(scope.get("client"), scope.get("server")):
                        return False
                    self._tickets.remove(ticket)
                    return True
        return False

    def _sent(self, headers: Headers) -> str:
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except CookieError:
            return ""
        return cookies[self._cookie].value if self._cookie in cookies else ""

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(_bytes(given), self._token)

    def _own(self, headers: Headers) -> bool:
        """Return whether a change comes from a page of this server, under the name it was asked."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        asked = headers["host"].lower()
        return headers.get("origin", "").lower() == f"http://{asked}" and kind == _JSON


def _limited(receive: Receive) -> Receive:
    """Return a request's body as it comes, up to the limit, whatever its headers say."""
    read = 0

    async def limited() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > BODY_BYTES:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return limited


def _of_another_page(headers: Headers) -> bool:
    """Return whether a page of another server embeds or fetches something; links may lead here.

    Cookies know no ports, so that those of this server go with what a page of another one on the
    same machine asks for. Browsers say whose page it is.
    """
    if headers.get("sec-fetch-mode") == "navigate":
        return False
    return headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _bytes(given: str) -> bytes:
    return given.encode("utf-8", "surrogateescape")


def _stranger(scope: Scope) -> Response:
    """Return the answer to who was not let in."""
    words = (
        "Open the address that her2 view printed, which carries a token. To open a view that "
        "somebody sent, do so first; then open that view in the same browser."
    )
    again = '<p>If you did, <a href="">open this page again</a>: from a link elsewhere, browsers '
    return _said(scope, 403, words, again + "do not say so.</p>")


def _said(scope: Scope, status: int, words: str, more: str = "") -> Response:
    """Return an answer in fixed words, which never quote the request."""
    if scope["path"].startswith("/api/"):
        return JSONResponse({"error": words}, status_code=status)
    return HTMLResponse(f"{_HEAD}<h1>{status}</h1><p>{words}</p>{more}", status_code=status)


def _bind(headers: MutableHeaders) -> None:
    """Set the headers that every answer has."""
    headers["Content-Security-Policy"] = POLICY
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "no-referrer"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers.setdefault("Cache-Control", "no-store")
    # What a browser keeps is of this start: tomorrow, another run may be at the same port.
    headers.add_vary_header("Cookie")
