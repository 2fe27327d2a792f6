"""`her2 view`: who may see anything: the token, the host that was asked, other pages, and methods.

The server may be reached by every program and every web page on the machine, so each request is
checked before anything else looks at it:

- the Host header is one of ours, or a page elsewhere could use its own name for this address;
- the first address carries the token, which then moves to a cookie that scripts cannot read and
  that no other site sends (SameSite=Strict); it is compared in constant time;
- only GET and HEAD read, and whatever changes a note comes from our own page and is JSON, which no
  form of another site can send.
"""

import hmac
import secrets
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""No inline script or style, and nothing from elsewhere."""
_READS = {"GET", "HEAD"}
_CHANGES = {"POST", "PUT", "DELETE"}
TOKEN = "token"
"""Name of the parameter of the first address."""


def new_token() -> str:
    """Return a token that nobody can guess."""
    return secrets.token_urlsafe(32)


class Guard:
    """ASGI middleware in front of the whole application."""

    def __init__(self, app: ASGIApp, *, token: str, hosts: Sequence[str], port: int) -> None:
        self._app, self._token, self._port = app, token.encode(), port
        self._hosts = {f"{name}:{port}" for name in hosts}
        self._cookie = f"her2-view-{port}"  # cookies are of a host, whatever its port

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
        else:
            await self._app(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that is not passed on."""
        headers = Headers(scope=scope)
        method = scope["method"]
        if headers.get("host") not in self._hosts:
            return _said(421, "This server does not answer to that name.")
        if method not in _READS | _CHANGES:
            return _said(405, "Only reading is possible here.")
        asked = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if given := asked.pop(TOKEN, None):
            if not self._is_token(given[0]):
                return _said(403, "The token in the address is not that of this server.")
            return self._let_in(scope["path"], asked)
        if not self._is_token(self._sent(headers)):
            return _said(
                403,
                "Open the address that her2 view printed, which carries a token. To open a view "
                "that somebody sent, do so first; then open that view in the same browser.",
            )
        if method in _CHANGES and not self._own(headers):
            return _said(403, "Only pages of this server may change notes.")
        return None

    def _let_in(self, path: str, rest: dict[str, list[str]]) -> Response:
        query = f"?{urlencode(rest, doseq=True)}" if rest else ""
        # One slash in front: two would be the address of another host.
        answer = RedirectResponse("/" + path.lstrip("/\\") + query, status_code=303)
        answer.set_cookie(self._cookie, self._token.decode(), httponly=True, samesite="strict")
        return answer

    def _sent(self, headers: Headers) -> str:
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except CookieError:
            return ""
        return cookies[self._cookie].value if self._cookie in cookies else ""

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token)

    def _own(self, headers: Headers) -> bool:
        """Return whether a change comes from a page of this server."""
        origin = headers.get("origin", "")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        return origin.partition("://")[2] in self._hosts and kind == "application/json"


def _said(status: int, words: str) -> Response:
    return HTMLResponse(
        f"<!doctype html><html lang=en><title>her2 view</title><h1>{status}</h1><p>{words}</p>",
        status_code=status,
    )


def _bind(headers: MutableHeaders) -> None:
    """Set the headers that every answer has."""
    headers["Content-Security-Policy"] = POLICY
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "no-referrer"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers.setdefault("Cache-Control", "no-store")
