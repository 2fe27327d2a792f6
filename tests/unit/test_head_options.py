from pathlib import Path
from typing import Literal

import pytest
import torch
from pydantic import TypeAdapter

from her2.config import HeadSection
from her2.config.heads import HEADS as SECTIONS
from her2.config.heads import Attending
from her2.mil import heads
from her2.mil.heads import build_head
from her2.mil.model import predict
from tests.unit.bag_makers import fit, noise

NAMES = [name for name in SECTIONS if name != "logistic"]


@pytest.mark.parametrize("name", NAMES)
def test_the_keys_of_a_section_are_the_arguments_of_its_module(name: str) -> None:
    options = TypeAdapter(HeadSection).validate_python({"head": name})
    output = build_head(options, 16, 3).eval()(torch.zeros(1, 2, 16), torch.ones(1, 2).bool())
    assert output.logits.shape == (1, 3)


MINE = """
from torch import nn
from her2.mil.heads.head import Head, Output, masked_softmax

class Sharp(Head):
    def __init__(self, dimension, outputs, *, hidden, dropout, attention, gated):
        super().__init__(dimension, hidden, dropout)
        self.score, self.classifier = nn.Linear(self.width, 1), nn.Linear(self.width, outputs)

    def encode(self, bag):
        h = self.project(self.dropout(bag))
        return h, 3 * self.score(h)

    def pool(self, parts, mask):
        weights = masked_softmax(parts[1], mask)
        return Output(self.classifier((weights * parts[0]).sum(dim=1)), weights.squeeze(2))

HEAD = Sharp
"""


def test_a_new_head_is_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sharp.py").write_text(MINE)  # the file
    monkeypatch.setattr(heads, "__path__", [*heads.__path__, str(tmp_path)])

    class AttentionSection(Attending):
        head: Literal["abmil", "multibranch", "sharp"] = "abmil"  # the line

    options = AttentionSection(head="sharp", hidden=8)
    found = fit(noise(8, seed=0), noise(4, seed=1), head=options, epochs=1)
    assert type(found.model.head).__name__ == "Sharp"
    assert predict(found.model, noise(1, seed=2)[0]).attention.sum() == pytest.approx(1)
