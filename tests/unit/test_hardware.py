import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from her2.core import hardware
from her2.core.hardware import accelerator, allowed_cpus, auto_precision
from her2.encoders.device import pick_device, resolve_precision


@pytest.fixture(autouse=True)
def _keep_threads() -> None:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("affinity", "slurm", "allowed"),
    [
        (8, None, 8),
        (8, "4", 4),
        (2, "64", 2),
        (8, "", 8),
        (8, "0", 1),
        (8, "4(x2)", 8),  # of several nodes: says nothing of this one
    ],
)
def test_the_least_of_affinity_and_slurm_counts(
    monkeypatch: pytest.MonkeyPatch, affinity: int, slurm: str | None, allowed: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    if slurm is not None:
        monkeypatch.setenv("SLURM_CPUS_ON_NODE", slurm)
    assert allowed_cpus() == allowed


def test_a_container_s_quota_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """joblib reads the cgroup's files itself; that its answer is taken is what is tested here."""
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "16")
    assert allowed_cpus() == 3


def test_the_precision_guessed_without_torch_is_the_one_that_torch_takes() -> None:
    assert auto_precision() in (None, resolve_precision("auto", pick_device(1)))


@pytest.mark.parametrize(
    ("version", "cuda"),
    [
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", 13),
        ("cuda = '12.8'\n", 12),
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", 0),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n", None),
        ("__version__ = '9'\n", None),
    ],
    ids=["CUDA 13", "CUDA 12", "CPU", "ROCm", "another layout"],
)
def test_what_torch_was_built_for_is_read_from_its_version_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, cuda: int | None
) -> None:
    (tmp_path / "version.py").write_text(version)
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    assert hardware._torch_cuda() == cuda


class Driver:
    """A CUDA driver that answers as told."""

    def __init__(self, *, devices: int = 1, version: int = 13000, major: int = 9) -> None:
        self.answers = {"devices": devices, "version": version, "major": major}

    def cuInit(self, _: int) -> int:
        return 0

    def cuDeviceGetCount(self, result) -> int:
        result._obj.value = self.answers["devices"]
        return 0

    def cuDriverGetVersion(self, result) -> int:
        result._obj.value = self.answers["version"]
        return 0

    def cuDeviceGet(self, result, _: int) -> int:
        return 0

    def cuDeviceGetAttribute(self, result, attribute: int, _) -> int:
        assert attribute == 75  # compute capability, major
        result._obj.value = self.answers["major"]
        return 0


@pytest.mark.parametrize(
    ("driver", "built_for", "expected"),
    [
        (Driver(), 13, "bfloat16"),
        (Driver(major=7), 13, "float16"),
        (Driver(devices=0), 13, "none"),
        (Driver(), 0, "none"),
        (Driver(version=12040), 13, None),
        (Driver(), None, None),
    ],
    ids=["Hopper", "Volta", "hidden", "torch for CPUs", "old driver", "unknown torch"],
)
def test_the_driver_says_which_half_precision_is_native(
    monkeypatch: pytest.MonkeyPatch, driver: Driver, built_for: int | None, expected: str | None
) -> None:
    monkeypatch.setattr(hardware, "_torch_cuda", lambda: built_for)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    assert accelerator() == expected


def test_a_machine_without_a_driver_has_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(hardware, "_torch_cuda", lambda: 13)
    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert accelerator() == "none"


@pytest.mark.parametrize(
    ("setting", "policy", "turns"),
    [
        (None, "PASSIVE", hardware.SPIN_COUNT),
        ("GOMP_SPINCOUNT=7", "PASSIVE", 7),
        ("OMP_WAIT_POLICY=active", "ACTIVE", 30_000_000_000),  # libgomp's own of this policy
    ],
)
def test_threads_of_a_job_wait_busily_for_a_moment_unless_the_user_says_how(
    setting: str | None, policy: str, turns: int
) -> None:
    spec = {"source": "random", "model": "timm/no-such-model", "mpp": 1.0, "size": 32}
    command = ["encoder", "--spec", json.dumps({"encoder": spec, "seed": 1}), "--out", os.devnull]
    unset = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE"}  # GNU OpenMP prints what it read when it loads
    if setting is not None:
        name, value = setting.split("=")
        environment[name] = value
    done = subprocess.run(
        [sys.executable, "-m", "her2", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no model 'no-such-model'" in done.stderr  # so torch's own OpenMP was loaded
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch is not built with GNU OpenMP here")
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr
    assert f"GOMP_SPINCOUNT = '{turns}'" in done.stderr
