"""Snakemake and its jobs as forks of one process that has imported everything.

    python -m tests.workflow.warm SOCKET

Importing torch and the rest takes a job longer than its work on a tiny cohort, and the tests start
hundreds of jobs, and Snakemake a hundred times. Snakemake, its shell lines and the stages stay the
real ones: only `snakemake`, `her2` and the `python` on the jobs' PATH are small programs that hand
arguments, folder, environment and open files to this server. A project with code of its own, and
anything else that `python` is asked for, gets a real Python.
"""

import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

IMPORTED_BY_FUNCTIONS = (
    "matplotlib.backends.backend_pdf", "matplotlib.backends.backend_svg", "scipy.optimize",
    "sklearn.ensemble", "sklearn.linear_model", "sklearn.metrics", "sklearn.pipeline",
    "snakemake.api", "snakemake.cli", "timm", "torchvision.models",
)  # fmt: skip

CLIENT = """#!{python} -IS
import json, os, socket, sys
package = os.path.realpath(os.path.join(os.environ.get("PYTHONPATH", ""), "her2"))
ours = sys.argv[2:3] == ["snakemake"] or (sys.argv[2:3] == ["her2"] and package == {package!r})
if sys.argv[1:2] != ["-m"] or not ours:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    job = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(job).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(job)
    code = server.recv(1)
sys.exit(code[0] if code else 1)
"""


class Warm:
    """The server, and the folder whose `python` talks to it."""

    def __init__(self, folder: Path) -> None:
        address = folder / "jobs"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.workflow.warm", str(address)],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        python = self.bin / "python"
        python.write_text(
            CLIENT.format(
                python=sys.executable, package=str(REPOSITORY / "her2"), address=str(address)
            )
        )
        python.chmod(0o755)
        for name in ("her2", "snakemake"):
            command = self.bin / name
            command.write_text(f'#!/bin/sh\nexec "{python}" -m {name} "$@"\n')
            command.chmod(0o755)
        deadline = time.monotonic() + 120
        while not address.exists():
            assert self._server.poll() is None, "the server of warm jobs ended"
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def close(self) -> None:
        """Stop the server and what it still runs."""
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()


def serve(address: Path) -> None:
    """Import the package, then fork for each job until killed."""
    import her2

    for module in pkgutil.walk_packages(her2.__path__, "her2."):
        if module.name != "her2.__main__":
            importlib.import_module(module.name)
    for name in IMPORTED_BY_FUNCTIONS:
        importlib.import_module(name)
    _compile_templates()
    setattr(os, "fsync", lambda handle: None)  # noqa: B010 (see tests/conftest.py)
    # A fifth of a report's time; how sure its figures are is for tests/unit/test_power.py.
    setattr(importlib.import_module("her2.evaluation.power"), "STUDIES", 10)  # noqa: B010
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        temporary = address.with_name("starting")
        listener.bind(str(temporary))
        listener.listen(64)
        temporary.rename(address)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _work(connection)
            connection.close()


def _compile_templates() -> None:
    """Compile what every report is rendered from, or each would."""
    from her2.report import page
    from her2.report.sections.paper import prose

    for environment, suffix in (
        (page.template_environment({}), ".html.j2"),
        (prose.template_environment(), ".txt.j2"),
    ):
        for name in environment.list_templates():
            if name.endswith(suffix):
                environment.get_template(name)


def _work(connection: socket.socket) -> None:
    """Run one job in this child, and end it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(connection, 4, 3)
    size, received = int.from_bytes(head, "big"), b""
    while len(received) < size:
        received += connection.recv(size - len(received))
    arguments, folder, environment = json.loads(received)
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    code = 1
    try:
        if arguments[0] == "snakemake":
            from snakemake.cli import main
        else:
            from her2.cli.main import main
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(bytes([code]))
        os._exit(code)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
