"""A real SLURM cluster on this machine: munge, a controller and two nodes, for the tests alone.

SLURM's programs look for their configuration in /etc/slurm and nowhere else once the executor
plugin has removed SLURM_CONF from a job's environment, so that folder is borrowed: what is there is
kept beside it and put back. A cluster that is not ours is never touched.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

CONFIG = Path("/etc/slurm")
MARK = "# Written by the tests of her2, and removed by them.\n"
BACKUP = ".before-her2-tests"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "sinfo", "scancel")
NODES = ("n1", "n2")
GPUS = {"n1": ("/dev/null", "/dev/zero")}
"""Node -> its GPUs: any device file of the system stands for one."""


class NoCluster(Exception):
    """Why no cluster can be started here."""


def why_not() -> str | None:
    """The reason why this machine cannot run the cluster, if there is one."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if missing:
        return f"{', '.join(missing)} not found; apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "only root can start SLURM's daemons"
    if not _ours(CONFIG / "slurm.conf") and _answers():
        return "a SLURM controller that is not the tests' own answers on this machine"
    return None


def search_path() -> str:
    """PATH with the folders where Debian puts daemons."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin", "/sbin", "/bin"])


@dataclass
class Cluster:
    """The running daemons, and questions to them."""

    folder: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def ask(self, *command: str) -> str:
        """What one of SLURM's commands prints.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=60,
            env={**os.environ, "PATH": search_path()},
        )  # fmt: skip
        return done.stdout

    def jobs(self) -> list[dict[str, str]]:
        """Every job that the controller remembers, with all it says of each."""
        lines = self.ask("scontrol", "--oneliner", "show", "job").splitlines()
        return [
            dict(part.split("=", 1) for part in line.split() if "=" in part)
            for line in lines
            if line.startswith("JobId=")
        ]

    def start(self, *command: str) -> None:
        """Start a daemon that stays in the foreground, so that its process id is known."""
        name = "-".join(Path(part).name for part in command if not part.startswith("-"))
        with (self.folder / f"{name[:60]}.out").open("wb") as stream:
            program = shutil.which(command[0], path=search_path())
            assert program is not None
            self.daemons.append(
                subprocess.Popen(
                    [program, *command[1:]],
                    stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                    start_new_session=True,  # Ctrl-C is for the tests; they then stop these
                )
            )  # fmt: skip

    def stop(self) -> None:
        """Cancel what runs, then stop the daemons, the last started first."""
        with suppress(subprocess.SubprocessError, OSError):
            self.ask("scancel", "--user", "root")
            for _ in range(40):
                if not self.ask("squeue", "--noheader").strip():
                    break
                time.sleep(0.25)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start the cluster, and stop it again whatever happens.

    Raises:
        NoCluster: it did not come up; the message ends with what the daemons said.
    """
    _stop_leftovers()
    # A short path: the name of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="her2-slurm-"))
    folder.chmod(0o711)  # munged wants its socket within the reach of every user
    made = Cluster(folder)
    try:
        with _borrowed({"slurm.conf": _slurm_conf(folder), "gres.conf": _gres_conf()}):
            try:
                _bring_up(made)
                yield made
            finally:
                made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _bring_up(made: Cluster) -> None:
    folder = made.folder
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    made.start(
        "munged", "--foreground", f"--key-file={key}", f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed",
        f"--log-file={folder}/munge.log", "--num-threads=2",
    )  # fmt: skip
    _wait(made, lambda: (folder / "munge.socket").exists(), "munged opened no socket")
    made.start("slurmctld", "-D", "-i")
    for node in NODES:
        made.start("slurmd", "-D", "-N", node)
    _wait(made, lambda: _states(made) == ["idle"] * len(NODES), "the nodes did not become idle")


def _states(made: Cluster) -> list[str]:
    try:
        return made.ask("sinfo", "--noheader", "--Node", "--partition=cpu", "--format=%T").split()
    except subprocess.CalledProcessError:
        return []


def _wait(made: Cluster, ready: Callable[[], bool], complaint: str, seconds: float = 45) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        dead = [daemon.args for daemon in made.daemons if daemon.poll() is not None]
        if dead or time.monotonic() > deadline:
            said = "\n".join(
                f"{path.name}: {path.read_text(errors='replace')[-2000:]}"
                for path in sorted(made.folder.glob("*"))
                if path.suffix in {".out", ".log"}
            )
            raise NoCluster(f"{complaint}; ended: {dead}\n{said}")
        time.sleep(0.2)


def _slurm_conf(folder: Path) -> str:
    host = socket.gethostname()
    control, *nodes = _free_ports(1 + len(NODES))
    lines = [
        "ClusterName=her2-tests",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={control}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={folder}/munge.socket",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool-%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdLogFile={folder}/slurmd-%n.log",
        "MailProg=/bin/true",
        # Nothing that needs control groups: a container may not have them.
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=task=1",
        "JobAcctGatherParams=OverMemoryKill",
        "AccountingStorageType=accounting_storage/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "SlurmdParameters=config_overrides",  # nodes larger than this machine
        "GresTypes=gpu",
        "ReturnToService=2",
        "MinJobAge=300",
        "KillWait=1",
        "OverTimeLimit=0",
        "SchedulerParameters=batch_sched_delay=0,sched_min_interval=0",
        *(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
            f" CPUs=16 RealMemory=64000 State=UNKNOWN" + _gres(node)
            for node, port in zip(NODES, nodes, strict=True)
        ),
        # The names are those of the shipped profile. LLN: the least loaded node first.
        f"PartitionName=cpu Nodes={','.join(NODES)} Default=YES LLN=YES MaxTime=INFINITE",
        f"PartitionName=gpu Nodes={','.join(GPUS)} MaxTime=INFINITE",
    ]
    return "\n".join(lines) + "\n"


def _gres(node: str) -> str:
    return f" Gres=gpu:{len(GPUS[node])}" if node in GPUS else ""


def _gres_conf() -> str:
    return "".join(
        f"NodeName={node} Name=gpu File={file}\n" for node, files in GPUS.items() for file in files
    )


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def _borrowed(texts: dict[str, str]) -> Iterator[None]:
    """Our files in /etc/slurm; what was there, or is there from a killed test, is restored."""
    CONFIG.mkdir(parents=True, exist_ok=True)
    try:
        for name, text in texts.items():
            path, backup = CONFIG / name, CONFIG / (name + BACKUP)
            if path.exists() and not _ours(path) and not backup.exists():
                path.replace(backup)
            path.write_text(MARK + text)
        yield
    finally:
        for name in texts:
            path, backup = CONFIG / name, CONFIG / (name + BACKUP)
            if backup.exists():
                backup.replace(path)
            elif _ours(path):
                path.unlink()


def _ours(path: Path) -> bool:
    return path.exists() and path.read_text(errors="replace").startswith(MARK)


def _answers() -> bool:
    """Whether a controller answers under the configuration that is there."""
    try:
        done = subprocess.run(
            ["scontrol", "ping"], capture_output=True, text=True, timeout=60,
            env={**os.environ, "PATH": search_path()},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return True  # who knows
    return " is UP" in done.stdout


def _stop_leftovers() -> None:
    """Stop the daemons of a test that was killed before it could: those its own files name."""
    path = CONFIG / "slurm.conf"
    if not _ours(path):
        return
    named = dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
    folder = Path(named["StateSaveLocation"]).parent
    for file in folder.glob("*.pid"):
        process = Path("/proc") / file.read_text().strip()
        with suppress(OSError):
            if (process / "comm").read_text().strip() in PROGRAMS:
                os.kill(int(process.name), signal.SIGTERM)
        for _ in range(40):
            if not process.exists():
                break
            time.sleep(0.25)
    shutil.rmtree(folder, ignore_errors=True)
