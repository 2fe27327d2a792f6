"""`her2 view`: whose program is at the other end of a connection."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from her2.viewer import peer

pytestmark = pytest.mark.skipif(
    not Path("/proc/net/tcp").is_file(), reason="the system does not tell"
)


@pytest.fixture(params=["127.0.0.1", "::1"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[peer.Address, peer.Address]]:
    """Both addresses of a connection on this machine."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with ExitStack() as stack:
        try:
            listening = stack.enter_context(socket.create_server((request.param, 0), family=family))
        except OSError:
            pytest.skip(f"this machine has no {request.param}")
        client = stack.enter_context(socket.create_connection(listening.getsockname()[:2]))
        stack.enter_context(listening.accept()[0])
        yield client.getsockname()[:2], listening.getsockname()[:2]


def test_a_connection_of_this_user_is_ours(ends: tuple[peer.Address, peer.Address]) -> None:
    assert peer.is_ours(*ends)


def test_a_connection_of_another_user_is_not(
    ends: tuple[peer.Address, peer.Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "_ROOT", -1)
    assert peer.is_ours(*ends)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert not peer.is_ours(*ends)


def test_a_connection_that_there_is_not_is_not_ours(
    ends: tuple[peer.Address, peer.Address],
) -> None:
    client, server = ends
    assert not peer.is_ours(server, (client[0], 1))
    assert not peer.is_ours(None, server)
