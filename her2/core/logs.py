"""Every stage: what a job prints, without passwords, access tokens and signed addresses.

Logs are read by others: they lie in shared folders and are pasted into questions. What is printed
may quote an address with a password (`HF_ENDPOINT`, a proxy) or with a query that is itself a
permission (a signed download URL), whoever wrote the sentence around it.
"""

import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO, cast
from urllib.parse import unquote, urlsplit

HIDDEN = "***"

_ADDRESSES = ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SHORTEST = 4
"""Characters that a secret of the environment must have to be hidden outside an address too."""

_RULES = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # user:password@ up to the last @, though a password with / or # makes no legal address;
        # a port is no password
        (r"(://)[^\s'\"<>/@:]*:(?!\d+/)[^\s'\"<>]*@", rf"\1{HIDDEN}@"),
        (r"(://)[^\s'\"<>/?#]*@", rf"\1{HIDDEN}@"),
        (r"(://[^\s'\"<>?#]*)[?#][^\s'\"<>]*", rf"\1?{HIDDEN}"),
        # the path alone, as in urllib3's "Max retries exceeded with url: /file?signature=..."
        (r"((?:^|[\s'\"<(])/[^\s'\"<>?]*)\?[\w.~%\[\]-]+=[^\s'\"<>]*", rf"\1?{HIDDEN}"),
        (
            r"\b((?:bearer|basic)['\"]?[\s:=]+['\"]?)(?=\S*[\d._~+/=-])[\w.~+/=-]{8,}",
            rf"\1{HIDDEN}",
        ),
        (r"\b(?:hf|api_org)_[a-z0-9]{16,}\b", HIDDEN),
    )
)


def redacted(text: str) -> str:
    """Return a text without the passwords, queries and tokens of what it quotes."""
    for secret in _known_secrets():
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


@contextmanager
def redacted_stderr() -> Iterator[None]:
    """Redact whatever Python code prints to stderr: logs of any library, warnings, tracebacks."""
    plain = sys.stderr
    with redirect_stderr(cast("TextIO", _RedactedStream(plain))):
        yield


def begin_log() -> None:
    """Log to stderr: this package's messages from INFO on, those of libraries from WARNING on.

    At INFO an HTTP client prints the address of each request.
    """
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("her2").setLevel(logging.INFO)


class _RedactedStream(io.TextIOBase):
    """Text stream that passes on what is written to it, `redacted`.

    What is written in one call is judged as one text; logging, tracebacks and `print` never divide
    an address.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Leave the process's stderr open."""

    def __getattr__(self, name: str) -> Any:  # encoding, errors, buffer
        return getattr(self._stream, name)


def _known_secrets() -> list[str]:
    """Return the tokens and passwords in the environment, the longest first."""
    found = {os.environ.get(name, "") for name in _TOKENS}
    for name in _ADDRESSES:
        for address in (os.environ.get(name, ""), os.environ.get(name.lower(), "")):
            try:
                password = urlsplit(address).password or ""
            except ValueError:  # no address; what quotes it is covered by the rules
                continue
            found |= {password, unquote(password)}
    return sorted((one for one in found if len(one) >= _SHORTEST), key=len, reverse=True)
