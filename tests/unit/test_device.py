import io
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from her2.core.hardware import allowed_cpus
from her2.encoders import device as device_module
from her2.encoders.device import DTYPES, pick_device, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def _no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "CUDA_VISIBLE"))]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _keep_threads() -> None:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def cpu_flags(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    text = f"processor\t: 0\nmodel name\t: some CPU\nflags\t\t: fpu sse {flags}\n"
    monkeypatch.setattr(Path, "open", lambda *_, **__: io.StringIO(text))


def test_allowed_cpus_follow_the_affinity_and_not_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7, 9})
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    assert allowed_cpus() == 3


@pytest.mark.usefixtures("_no_cuda")
@pytest.mark.parametrize(("asked", "given"), [(2, 2), (64, 3), (0, 1)])
def test_threads_are_those_asked_for_within_the_affinity(
    monkeypatch: pytest.MonkeyPatch, asked: int, given: int
) -> None:
    monkeypatch.setattr(device_module, "allowed_cpus", lambda: 3)
    assert pick_device(asked) == CPU
    assert torch.get_num_threads() == given


@pytest.mark.usefixtures("_no_cuda")
@pytest.mark.parametrize(
    ("visible", "driver", "level"),
    [
        (None, False, "INFO"),
        ("", True, "INFO"),  # hidden on purpose
        ("-1", True, "INFO"),
        ("0", False, "WARNING"),  # given by SLURM
        ("GPU-8932f937", False, "WARNING"),
        (None, True, "WARNING"),
    ],
)
def test_a_job_on_the_cpu_says_so_and_warns_where_a_gpu_was_expected(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    visible: str | None,
    driver: bool,
    level: str,
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(
        device_module, "NVIDIA_DRIVER", tmp_path if driver else tmp_path / "version"
    )
    with caplog.at_level(logging.INFO):
        assert pick_device(1) == CPU
    (record,) = caplog.records
    assert record.levelname == level
    assert "no usable CUDA device" in record.message
    if visible is not None:
        assert f"CUDA_VISIBLE_DEVICES={visible!r}" in record.message


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Make torch see two fake devices, and return their ids."""
    ids = [f"test-{uuid.uuid4()}" for _ in range(2)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(ids))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=ids[index])
    )
    device_module._own_gpu.cache_clear()
    yield ids
    device_module._own_gpu.cache_clear()
    while device_module._claims:
        device_module._claims.pop().close()


def held_elsewhere(gpu: str) -> subprocess.Popen[str]:
    """Start another process that claims a GPU in the way of pick_device."""
    code = f"""if True:
        from types import SimpleNamespace
        import torch
        torch.cuda.is_available = lambda: True
        torch.cuda.device_count = lambda: 1
        torch.cuda.get_device_name = lambda device: "a GPU"
        torch.cuda.set_device = lambda device: None
        torch.cuda.get_device_properties = lambda index: SimpleNamespace(uuid={gpu!r})
        from her2.encoders.device import pick_device
        print(pick_device(1), flush=True)
        input()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "cuda:0\n"
    return process


def test_a_slurm_job_uses_a_gpu_only_when_it_was_given_one(
    gpus: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert pick_device(1) == CPU
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "SLURM allotted no GPU to this job, though the node has one" in record.message
    monkeypatch.setenv("SLURM_JOB_GPUS", "1")
    assert pick_device(1) == CUDA


@pytest.mark.usefixtures("_no_cuda")
def test_a_slurm_job_on_a_node_without_gpus_is_no_surprise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with caplog.at_level(logging.INFO):
        assert pick_device(1) == CPU
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_one_job_keeps_one_device(gpus: list[str]) -> None:
    assert pick_device(1) == CUDA
    assert pick_device(1) == CUDA


def test_a_second_job_takes_the_next_device_until_the_first_ends(
    gpus: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    other = held_elsewhere(gpus[0])
    try:
        assert pick_device(1) == torch.device("cuda", 1)
        device_module._own_gpu.cache_clear()  # a third job
        with caplog.at_level(logging.WARNING):
            assert pick_device(1).type == "cuda"
        assert "every visible GPU (2) is in use" in caplog.text
    finally:
        other.kill()  # even so nothing is left behind
        other.communicate()
    device_module._own_gpu.cache_clear()
    assert pick_device(1) == CUDA


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
def test_a_stated_precision_is_used_whatever_the_device(wanted: str, device: torch.device) -> None:
    assert resolve_precision(wanted, device) == wanted


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx2", "float32"),
        ("avx2 avx512_bf16", "bfloat16"),
        ("amx_bf16 amx_tile", "bfloat16"),
        ("avx512f avx512_vnni", "float32"),
    ],
)
def test_auto_on_the_cpu_is_bfloat16_only_where_the_hardware_has_it(
    monkeypatch: pytest.MonkeyPatch, flags: str, expected: str
) -> None:
    cpu_flags(monkeypatch, flags)
    assert resolve_precision("auto", CPU) == expected


def test_auto_on_a_cpu_that_cannot_be_asked_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError("/proc/cpuinfo")

    monkeypatch.setattr(Path, "open", refuse)
    assert resolve_precision("auto", CPU) == "float32"


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_auto_on_cuda_does_not_take_emulated_bfloat16(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: str
) -> None:
    # Old cards emulate it, slowly: torch says yes unless asked without emulation.
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or native,
    )
    assert resolve_precision("auto", CUDA) == expected


def test_every_precision_has_its_torch_type() -> None:
    assert {name: str(dtype) for name, dtype in DTYPES.items()} == {
        "float32": "torch.float32",
        "bfloat16": "torch.bfloat16",
        "float16": "torch.float16",
    }
