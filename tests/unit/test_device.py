import io
import logging
import os
from pathlib import Path

import pytest
import torch

from her2 import device as device_module
from her2.device import DTYPES, allowed_cpus, pick_device, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def _no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


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
def test_a_job_on_the_cpu_says_so_and_says_what_hid_the_device(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with caplog.at_level(logging.INFO):
        pick_device(1)
    assert "no usable CUDA device" in caplog.text
    assert "CUDA_VISIBLE_DEVICES=''" in caplog.text


def test_the_first_visible_cuda_device_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
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
