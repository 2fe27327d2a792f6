"""Weights from a stranger: any file is loaded, or refused by name, and none is run."""

import os
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from her2.core.errors import UserError
from her2.encoders.card import CARD_NAME, WEIGHTS_NAME
from her2.encoders.loading import load_weights
from her2.encoders.stage import read_encoder
from tests.fuzz.faults import campaign, damaged, read_or_refused
from tests.unit.products import materialise
from tests.unit.test_encoders import section

SHAPE = (2, 3)


def network() -> nn.Module:
    return nn.Linear(3, 2)


def state(**changed) -> dict:
    return {name: value.clone() for name, value in network().state_dict().items()} | changed


def weight(values) -> dict:
    return state(weight=values)


def load(path):
    load_weights(network(), path)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Return suffix -> the bytes of a good file; .pt is torch's zip, .bin its older format."""
    folder = tmp_path_factory.mktemp("weights")
    safetensors.torch.save_file(state(), folder / "one.safetensors")
    torch.save({"model": state()}, folder / "one.pt")
    torch.save(state(), folder / "one.bin", _use_new_zipfile_serialization=False)
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("seeds", campaign(90, 6000))
def test_any_damaged_weights_are_loaded_or_refused_by_name(tmp_path, good, seeds):
    outcomes = set()
    for seed in seeds:
        suffix = sorted(good)[seed % 3]
        path = tmp_path / f"one{suffix}"
        # The text of a header and a pickle is where faults have most to say.
        path.write_bytes(damaged(good[suffix], seed, keep=8 if seed % 2 else 0))
        outcomes.add(read_or_refused(load, path, f"seed {seed} ({suffix})"))
    assert outcomes == {True, False}


def itself() -> dict:
    found: dict = state()
    found["model"] = found
    return found


class Code:
    def __reduce__(self):
        return os.mkdir, ("the-code-ran",)


def itself_alone() -> dict:
    found: dict = {}
    found["model"] = found
    return found


HOSTILE = {
    "sparse": lambda: weight(torch.ones(SHAPE).to_sparse()),
    "sparse rows": lambda: weight(torch.ones(SHAPE).to_sparse_csr()),
    "meta": lambda: weight(torch.empty(SHAPE, device="meta")),
    "NaN": lambda: weight(torch.full(SHAPE, torch.nan)),
    "infinite": lambda: weight(torch.full(SHAPE, -torch.inf)),
    "beyond float32": lambda: weight(torch.full(SHAPE, 1e300, dtype=torch.float64)),
    "bool": lambda: weight(torch.ones(SHAPE, dtype=torch.bool)),
    "complex": lambda: weight(torch.ones(SHAPE, dtype=torch.complex64)),
    "whole numbers": lambda: weight(torch.ones(SHAPE, dtype=torch.int32)),
    "quantized": lambda: weight(torch.quantize_per_tensor(torch.ones(SHAPE), 1.0, 0, torch.qint8)),
    "nested": lambda: weight(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
    "declared": lambda: state(other=torch.ones(1).expand(10**6, 10**6)),
    "another shape": lambda: weight(torch.ones(3, 2)),
    "no names": lambda: {"": torch.ones(2), ".": torch.ones(SHAPE), "..": torch.ones(2)},
    "names of other types": lambda: {1: torch.ones(SHAPE), None: torch.ones(2)},
    "a dict in itself alone": itself_alone,
    "a list": lambda: [torch.ones(SHAPE)],
    "a tensor": lambda: torch.ones(SHAPE),
    "a network": lambda: nn.Linear(3, 2),
    "code": lambda: state(extra=Code()),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_weights_is_refused_by_name_without_advice_to_run_it(
    tmp_path, monkeypatch, case, zipped
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "one.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about sparse and nested tensors
        torch.save(HOSTILE[case](), path, _use_new_zipfile_serialization=zipped)
        assert not read_or_refused(load, path, case)
        with pytest.raises(UserError) as caught:
            load(path)
    assert not (tmp_path / "the-code-ran").exists()
    assert "weights_only" not in str(caught.value)
    if case not in (
        "no names",
        "names of other types",
        "a dict in itself alone",
        "a list",
        "a tensor",
    ):
        tensor = "other" if case == "declared" else "weight"
        assert tensor in str(caught.value) or "holds more than tensors" in str(caught.value)


@pytest.mark.parametrize("name", ["module." * 3000, "blocks" + "9" * 5000 + "."])
@pytest.mark.parametrize("count", [2, 1])
def test_names_without_end_are_read_and_shown_in_short(tmp_path, caplog, name, count):
    values = {name + own: tensor for own, tensor in list(state().items())[:count]}
    torch.save(values, tmp_path / "one.pth")
    if count == 2:  # taken in their order
        load(tmp_path / "one.pth")
        said = caplog.text
    else:
        with pytest.raises(UserError, match="weight: missing") as caught:
            load(tmp_path / "one.pth")
        said = str(caught.value)
    assert name[:40] in said
    assert len(said) < 1500


def test_weights_in_a_dict_that_contains_itself_are_found_or_refused(tmp_path):
    torch.save(itself(), tmp_path / "one.pth")
    read_or_refused(load, tmp_path / "one.pth", "itself")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>log in", "is not a weights file"),
        (b"", "is not a weights file"),
        (None, "named pipe"),
    ],
    ids=["pointer", "page", "empty", "pipe"],
)
def test_another_file_says_what_it_is(tmp_path, suffix, content, reason):
    path = tmp_path / f"one{suffix}"
    os.mkfifo(path) if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=rf"one\{suffix}: .*{reason}") as caught:
        load(path)
    assert "weights_only" not in str(caught.value)


def test_a_zip_bomb_is_not_unpacked(tmp_path, good):
    (tmp_path / "good.pt").write_bytes(good[".pt"])
    path = tmp_path / "one.pt"
    with (
        zipfile.ZipFile(tmp_path / "good.pt") as given,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in given.namelist():
            bomb.writestr(name, given.read(name))
        bomb.writestr("archive/data/9", bytes(20 << 20))
    with pytest.raises(UserError, match="one.pt: unpacks to 2. MB, more than its own size"):
        load(path)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Return the bytes of the files of an encoder's folder."""
    folder = tmp_path_factory.mktemp("encoder")
    materialise(section(), 1, folder)
    return {name: (folder / name).read_bytes() for name in (CARD_NAME, WEIGHTS_NAME)}


@pytest.mark.parametrize("seeds", campaign(20, 800))
def test_any_damaged_encoder_is_loaded_or_refused_by_name(tmp_path, encoder, seeds):
    folder = tmp_path / "an-encoder"
    folder.mkdir()
    for seed in seeds:
        broken = [CARD_NAME, WEIGHTS_NAME][seed % 2]
        for name, content in encoder.items():
            (folder / name).write_bytes(damaged(content, seed) if name == broken else content)
        read = lambda path: read_encoder(path)  # noqa: E731
        read_or_refused(read, folder, f"seed {seed} ({broken})")


def test_faults_of_every_kind_are_drawn():
    content = bytes(range(256)) * 4
    drawn = [damaged(content, seed) for seed in range(64)]
    sizes = {np.sign(len(one) - len(content)) for one in drawn}
    assert sizes == {-1, 0, 1}
    assert damaged(content, 5) == damaged(content, 5)
