"""`her2 view`: the server: its address, what it prints, and its end."""

import os
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import uvicorn

from her2.viewer.app import make_app
from her2.viewer.guard import TOKEN, Guard, new_token
from her2.viewer.run import ViewedRun
from her2.viewer.state import Viewer
from her2.viewer.zoom import Slides

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the server listens; port 0 is a free one."""

    host: str = LOOPBACK
    port: int = 0
    open_browser: bool = True


def serve(
    run: ViewedRun,
    notes: Path,
    place: Place,
    *,
    path: str = "/",
    say: Callable[[str], None] = print,
) -> None:
    """Serve a run until Ctrl-C.

    Args:
        run: what is looked at.
        notes: folder of notes; made with the first.
        place: where to listen.
        path: the page of the address that is printed.
        say: told the address.
    """
    listening = socket.create_server((place.host, place.port))
    port = listening.getsockname()[1]
    token = new_token()
    with (
        tempfile.TemporaryDirectory(prefix="her2-view-") as temporary,
        run.places.cache(Path(temporary)) as cache,
    ):
        app = make_app(Viewer(run, cache, Slides(), notes))
        guarded = Guard(app, token=token, hosts=[place.host, "localhost"], port=port)
        address = f"http://{place.host}:{port}{quote(path)}?{TOKEN}={token}"
        say(address)
        if place.open_browser and _has_screen():
            webbrowser.open(address)
        config = uvicorn.Config(
            guarded, log_level="warning", access_log=False, server_header=False, lifespan="off"
        )
        uvicorn.Server(config).run(sockets=[listening])


def _has_screen() -> bool:
    if "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform != "linux" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
