"""Whether the largest slides fit into memory is asked before anything is trained."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from her2.config import HeadSection
from her2.core.errors import UserError
from her2.core.memory import available_bytes
from her2.mil import room
from her2.mil.bags import Bag
from her2.mil.room import check_room
from her2.storage.features import FeatureStore

CPU = torch.device("cpu")
GB = 10**9


def head(name: str, **options: object):
    return TypeAdapter(HeadSection).validate_python({"head": name, **options})


def bag(name: str, tiles: int, dimension: int = 1024) -> Bag:
    """Return a slide of so many tiles that takes no memory."""
    rows = np.broadcast_to(np.zeros((), np.float16), (tiles, dimension))
    return Bag(name, name, name, FeatureStore(None, (rows,), {}), None)


def test_a_slide_that_does_not_fit_stops_the_job_before_it_trains(monkeypatch):
    monkeypatch.setattr(room, "available_bytes", lambda: 4 * GB)
    bags = [bag("small", 50_000), bag("huge", 500_000)]
    with pytest.raises(UserError) as caught:
        check_room(bags, head("transmil"), CPU)
    text = str(caught.value)
    assert text.startswith("head transmil: ")
    assert "the 4.0 GB that are available" in text
    assert "huge: 500,000 tiles need about 18.4 GB" in text
    assert "small:" not in text
    assert "tiling.max_tiles` to 108,506 or less" in text
    assert "mem_mb" in text
    check_room([bag("fits", 108_506)], head("transmil"), CPU)
    check_room(bags, head("abmil"), CPU)


def test_a_large_estimate_is_in_the_log_and_a_small_one_is_not(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(room, "available_bytes", lambda: 40 * GB)
    check_room([bag("small", 5_000)], head("transmil"), CPU)
    assert caplog.text == ""
    check_room([bag("huge", 500_000)], head("transmil"), CPU)
    assert "transmil: predicting huge (500,000 tiles) will take about 18.4 GB; 40.0 GB are" in (
        caplog.text
    )


def test_no_more_memory_is_available_than_slurm_allotted(monkeypatch):
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    before = available_bytes()
    assert before > 0
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    assert available_bytes() == 0
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # all of the node's
    assert available_bytes() > 0


MEASURE = """
import sys
import numpy as np, torch
from her2.core.memory import keep_freed_memory
from her2.mil.model import Model, predict
from tests.peak import peak_megabytes
from tests.unit.test_room import bag, head
keep_freed_memory()
torch.set_num_threads(1)
name, tiles = sys.argv[1], 50_000
model = Model(head(name).build(1024, 4), torch.zeros(1024), torch.ones(1024)).eval()
peaks = []
for count in (2_000, tiles):
    predict(model, bag("s", count))
    peaks.append(peak_megabytes())
print((peaks[1] - peaks[0]) * 2**20 / tiles)
"""


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["transmil", "mean", "clam_sb", "dsmil"])
def test_the_estimate_is_what_a_prediction_takes(name):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, name], capture_output=True, text=True, check=True
    )
    assert 0.7 < head(name).bytes_per_tile(1024) / float(done.stdout) < 2
