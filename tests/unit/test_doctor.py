"""`her2 doctor`: what it looks at, what it says, and how little it waits."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors as hub_errors
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from her2.cli.doctor import base, checks
from her2.cli.doctor.base import Check, Finding, Situation, findings, within
from her2.cli.doctor.checks import all_checks
from her2.cli.doctor.checks import encoders as encoders_check
from her2.cli.doctor.checks import gpu as gpu_check
from her2.cli.main import app
from her2.config import load_config
from her2.config.catalogue import row
from her2.config.jobs import dump
from tests.unit.products import materialise

pytestmark = pytest.mark.usefixtures("one_thread")

SECRET = "hf_abcdefghijklmnopqrstuvwxyz"
RANDOM = {"source": "random", "model": "timm/test_vit", "mpp": 0.5, "size": 32}


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with a hub that answers, no token, and nothing downloaded before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HER2_CACHE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(base, "_answer", lambda _: 200)


def down(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_route(_: str) -> int:
        raise OSError("Name or service not known")

    monkeypatch.setattr(base, "_answer", no_route)


def write_config(folder: Path, encoders: dict[str, Any] | None = None, **changed: Any) -> Path:
    """A config with a manifest of one flat slide of 400 px at 0.5 um/px."""
    image = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / "slide.png")
    lines = ["slide_id,patient_id,path,mpp,her2"]
    lines += [f"s{i},p{i},slide.png,0.5,{i % 2}" for i in range(1)]
    (folder / "slides.csv").write_text("\n".join(lines))
    values = {
        "cohort": {"slides": str(folder / "slides.csv"), "root": str(folder)},
        "results": str(folder / "results"), "cache": str(folder / "cache"),
        "tasks": {"status": {"label": "her2", "classes": {"low": ["0"], "high": ["1"]}}},
        "encoders": encoders or {"own": RANDOM}, "heads": {"mean": {}}, **changed,
    }  # fmt: skip
    (folder / "mine.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder / "mine.yaml"


def said(*options: str) -> tuple[str, int]:
    result = CliRunner().invoke(app, ["doctor", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return str(result.output), result.exit_code


def found(title: str, situation: Situation) -> list[Finding]:
    return findings(next(one for one in all_checks() if one.title == title), situation)


def of(config: Path) -> Situation:
    return Situation(config, load_config(config))


# ----------------------------------------------------------------------------- the screen


def test_without_a_config_and_without_a_network_the_machine_is_looked_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    down(monkeypatch)
    text, code = said()
    assert code == 0
    assert text.endswith("A run could begin.\n")
    for title in ("Python", "torch", "GPU", "OpenSlide", "disk", "SLURM", "hub", "encoders"):
        assert f"\nok  {title}" in text or f"\n--  {title}" in text
    assert "cannot be reached (Name or service not known)" in text
    assert max(map(len, text.splitlines())) <= 115


def test_a_config_that_a_run_could_begin_with_ends_with_0(tmp_path: Path) -> None:
    text, code = said("--config", str(write_config(tmp_path)))
    assert code == 0, text
    assert "cohort 1 slides; all files are there" in text
    assert "tiles/s of 32 px at 0.5 um/px" in text


def test_the_config_of_the_folder_is_taken_unless_another_is_named(tmp_path: Path) -> None:
    write_config(tmp_path).rename(tmp_path / "config.yaml")
    assert "ok  config     config.yaml" in said()[0]


def test_a_config_with_mistakes_ends_with_1_and_the_rest_is_still_looked_over(
    tmp_path: Path,
) -> None:
    path = write_config(tmp_path, nonsense=3)
    text, code = said("--config", str(path))
    assert code == 1
    assert "BAD config" in text
    assert "nonsense" in text
    assert "ok  Python" in text
    assert "one thing keeps a run from beginning" in text


def test_absent_slides_end_with_1_and_are_named(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    (tmp_path / "slide.png").unlink()
    text, code = said("--config", str(path))
    assert code == 1
    assert "BAD files" in text
    assert "slide.png" in text


@pytest.mark.parametrize("token", [None, SECRET])
def test_a_token_is_said_to_be_there_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    monkeypatch.setenv("HF_TOKEN", token or "")
    text, _ = said("--config", str(write_config(tmp_path)))
    assert SECRET not in text
    assert ("a token is there" in text) == (token is not None)


def test_a_check_that_fails_says_so_and_stops_no_other() -> None:
    def broken(_: Situation) -> Iterator[Finding]:
        yield Finding("ok", "before")
        raise ZeroDivisionError("division by zero")

    (only,) = findings(Check("broken", 1, broken), Situation(None, None))
    assert only == Finding("note", "could not be checked (division by zero)")


def test_a_check_is_added_by_its_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "coffee.py").write_text(
        "from her2.cli.doctor.base import Check, Finding\n"
        "CHECK = Check('coffee', 15, lambda _: [Finding('bad', 'none left', 'make some')])\n"
    )
    monkeypatch.setattr(checks, "__path__", [*checks.__path__, str(tmp_path)])
    text, code = said()
    monkeypatch.delitem(sys.modules, f"{checks.__name__}.coffee")
    assert code == 1
    assert text.index("Python") < text.index("BAD coffee     none left") < text.index("torch")
    assert "-> make some" in text


# ----------------------------------------------------------------------------- how long it waits


def test_what_does_not_answer_is_not_waited_for() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        within(0.05, lambda: time.sleep(5))
    assert time.monotonic() - began < 2
    assert within(5, lambda: "answer") == "answer"
    with pytest.raises(KeyError):
        within(5, lambda: {}["absent"])


def test_a_hub_that_hangs_costs_seconds_whatever_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def hang(_: str) -> int:
        asked.append(1)
        time.sleep(5)
        return 200

    monkeypatch.setattr(base, "_answer", hang)
    monkeypatch.setattr(base, "HUB_SECONDS", 0.05)
    gated = {f"e{i}": {"source": "catalogue", "model": name}
             for i, name in enumerate(("uni", "virchow2", "h-optimus-0"))}  # fmt: skip
    situation = of(write_config(tmp_path, gated))
    began = time.monotonic()
    answers = [*found("hub", situation), *found("encoders", situation)]
    assert time.monotonic() - began < 2
    assert len(asked) == 1
    assert [one.level for one in answers] == ["note", "note", "bad", "bad", "bad"]


def test_asking_for_access_is_limited_for_all_encoders_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", lambda *_: time.sleep(5))
    monkeypatch.setattr(encoders_check, "ACCESS_SECONDS", 0.2)
    gated = {f"e{i}": {"source": "catalogue", "model": "uni"} for i in range(4)}
    began = time.monotonic()
    answers = found("encoders", of(write_config(tmp_path, gated)))
    assert time.monotonic() - began < 3
    assert {one.level for one in answers} == {"note"}
    assert base.HUB_SECONDS + 4.0 < 10


def test_an_offline_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(base, "_answer", None)
    assert Situation(None, None).hub == "HF_HUB_OFFLINE is set"


# ----------------------------------------------------------------------------- encoders


def refuse(kind: type[Exception]) -> Callable[..., None]:
    def raising(*_: object) -> None:
        raise kind.__new__(kind)

    return raising


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        (lambda *_: None, "ok", "gated and granted"),
        (refuse(hub_errors.GatedRepoError), "bad", "access is not granted"),
        (refuse(hub_errors.RepositoryNotFoundError), "bad", "shows no MahmoodLab/UNI"),
        (refuse(ConnectionError), "note", "did not say whether"),
    ],
)
def test_gated_weights_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, level: str, words: str
) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", answer)
    config = write_config(tmp_path, {"uni": {"source": "catalogue", "model": "uni"}})
    (one,) = found("encoders", of(config))
    assert (one.level, words in one.text) == (level, True)
    if level != "ok":
        assert str(row("uni").ask_at) in one.mend


@pytest.mark.parametrize(
    "encoder",
    [
        {"source": "catalogue", "model": "uni"},
        {"source": "catalogue", "model": "phikon"},
        {"source": "catalogue", "model": "resnet50", "mpp": 0.5},
        {"source": "catalogue", "model": "alexnet", "mpp": 0.5},
        {"source": "timm", "model": "resnet18.a1_in1k", "mpp": 0.5, "size": 224},
        {"source": "torchvision", "model": "torchvision/resnet18", "mpp": 0.5, "size": 224},
    ],
    ids=lambda encoder: str(encoder["model"]),
)
def test_weights_from_elsewhere_need_a_hub_or_to_be_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: dict[str, Any]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", lambda *_: None)
    config = write_config(tmp_path, {"own": encoder})
    assert [one.level for one in found("encoders", of(config))] == ["ok"]
    down(monkeypatch)
    (lost,) = found("encoders", of(config))
    assert lost.level == "bad"
    assert lost.mend
    here = tmp_path / "weights.bin"
    here.write_bytes(b"")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(here))
    monkeypatch.setattr("her2.libraries.torchvision.Torchvision.fetched", lambda *_: here)
    assert [one.level for one in found("encoders", of(config))] == ["ok"]


def test_what_is_made_here_or_was_made_before_needs_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    down(monkeypatch)
    given = tmp_path / "uni.bin"
    given.write_bytes(b"")
    encoders = {
        "own": RANDOM,
        "made": {"source": "catalogue", "model": "uni"},
        "given": {"source": "catalogue", "model": "uni", "checkpoint": str(given)},
    }
    config = write_config(tmp_path, encoders)
    settings = load_config(config)
    materialise(settings.encoders["own"], 0, settings.results / "encoders" / "made")
    answers = found("encoders", of(config))
    assert [one.level for one in answers] == ["ok"] * 3
    assert "made, 64 features" in answers[1].text
    given.unlink()
    assert [one.level for one in found("encoders", of(config))] == ["ok", "ok", "bad"]


def test_an_encoder_that_was_made_as_the_config_had_it_before_is_not_made(
    tmp_path: Path,
) -> None:
    """A run makes it again, so that it needs the weights of now."""
    given = tmp_path / "uni.bin"
    given.write_bytes(b"")
    before = {"source": "catalogue", "model": "uni", "checkpoint": str(given)}
    config = write_config(tmp_path, {"own": before})
    settings = load_config(config)
    random = load_config(write_config(tmp_path, {"own": RANDOM})).encoders["own"]
    materialise(random, 0, settings.results / "encoders" / "own")
    write_config(tmp_path, {"own": before})
    spec = {"encoder": json.loads(dump(settings.encoders["own"].alone))}
    stamp = {"job": "materialise_encoder/own", "spec": spec, "read": {}, "made": {}}
    path = settings.results / "stamps" / "materialise_encoder" / "own.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(stamp))
    assert "made, 64 features" in found("encoders", of(config))[0].text
    other = tmp_path / "other.bin"
    changed = write_config(tmp_path, {"own": {**before, "checkpoint": str(other)}})
    assert found("encoders", of(changed))[0].level == "bad"
    other.write_bytes(b"")
    assert f"own: from {other}" in found("encoders", of(changed))[0].text


def test_an_encoder_at_an_untrained_scale_is_noted(tmp_path: Path) -> None:
    config = write_config(
        tmp_path, {"k": {"source": "catalogue", "model": "kaiko-vits8", "mpp": 8.0}}
    )
    assert [one.level for one in found("encoders", of(config))] == ["ok", "note"]


# ----------------------------------------------------------------------------- the machine


def room(**changed: float) -> Callable[[object], SimpleNamespace]:
    values = {"f_bavail": 10**9, "f_frsize": 4096, "f_files": 10**9, "f_favail": 10**8}
    return lambda _: SimpleNamespace(**(values | changed))


@pytest.mark.parametrize(
    ("changed", "level"),
    [
        ({}, "ok"),
        ({"f_bavail": 1000}, "bad"),
        ({"f_bavail": 10**6}, "note"),
        ({"f_favail": 10}, "bad"),
        ({"f_favail": 10**4}, "note"),
        ({"f_favail": 0, "f_files": 0}, "ok"),  # inodes are made as they are needed
    ],
)
def test_room_is_told_for_both_folders(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, float], level: str
) -> None:
    monkeypatch.setattr(os, "statvfs", room(**changed))
    answers = found("disk", Situation(None, None))
    assert [one.level for one in answers] == [level] * 2
    assert [one.text.split()[0] for one in answers] == ["cache", "results"]


def test_a_folder_that_cannot_be_written_keeps_a_run_from_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").write_text("a file")
    answers = found("disk", Situation(None, None))
    assert [one.level for one in answers] == ["ok", "bad"]
    monkeypatch.setenv("HER2_CACHE", "$UNKNOWN/cache")
    assert "HER2_CACHE" in found("disk", Situation(None, None))[0].text


def test_a_gpu_is_named_with_its_memory_driver_and_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = SimpleNamespace(name="NVIDIA A100", total_memory=80 << 30)
    monkeypatch.setattr(gpu_check, "_driver", lambda: "580.1")
    monkeypatch.setattr(gpu_check, "gpu_withheld", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda _: __import__("contextlib").nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: own)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert found("GPU", Situation(None, None)) == [
        Finding("ok", "NVIDIA A100, 80 GiB, driver 580.1, bfloat16")
    ]
    monkeypatch.setattr(gpu_check, "gpu_withheld", lambda: True)
    assert "SLURM allotted no GPU" in found("GPU", Situation(None, None))[0].text


def test_a_gpu_that_torch_cannot_use_is_told_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    driver = tmp_path / "version"
    monkeypatch.setattr(gpu_check, "NVIDIA_DRIVER", driver)
    monkeypatch.setattr("shutil.which", lambda _: None)
    (none,) = found("GPU", Situation(None, None))
    assert none.text.startswith("none; encoders run on the CPU")
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug\n")
    (unusable,) = found("GPU", Situation(None, None))
    assert "driver 535.104.05" in unusable.text
    assert "cannot use it" in unusable.text


def test_slurm_is_found_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert "not found" in found("SLURM", Situation(None, None))[0].text
    monkeypatch.undo()
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho slurm 24.05\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert "slurm 24.05" in found("SLURM", Situation(None, None))[0].text


def test_a_slide_that_cannot_be_read_is_noted_since_a_run_leaves_it_out(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "slide.png").write_bytes(b"no image")
    (one,) = found("slide", of(config))
    assert one.level == "note"
    assert one.text.startswith("s0: ")


@pytest.mark.parametrize(
    ("there", "consent", "level", "words"),
    [
        (False, "1", "bad", "is no file"),
        (True, "", "bad", "HER2_ALLOW_CODE=1"),
        (True, "1", "ok", "is run when it is made"),
    ],
)
def test_code_of_the_user_is_there_and_consented_to(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: bool,
    consent: str,
    level: str,
    words: str,
) -> None:
    monkeypatch.setenv("HER2_ALLOW_CODE", consent)
    if there:
        (tmp_path / "mine.py").write_text("raise SystemExit('run')")
    mine = {
        "source": "python", "module": "mine.py:build", "mpp": 0.5, "size": 32, "domain": "he",
        "mean": [0, 0, 0], "std": [1, 1, 1],
    }  # fmt: skip
    path = write_config(tmp_path, {"mine": mine})
    (found,) = findings(encoders_check.CHECK, Situation(path, load_config(path)))
    assert found.level == level
    assert words in found.text


def test_a_command_names_no_revision_by_which_the_hub_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    down(monkeypatch)
    rows = {"short": "gigapath-flash", "whole": "phikon"}
    path = write_config(
        tmp_path, {name: {"source": "catalogue", "model": model} for name, model in rows.items()}
    )
    mends = [one.mend for one in findings(encoders_check.CHECK, Situation(path, load_config(path)))]
    assert "--revision" not in mends[0]
    assert f"--revision {row('phikon').revision}" in mends[1]
