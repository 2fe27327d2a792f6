import pytest
import torch
from pydantic import TypeAdapter

from her2.config import HeadSection
from her2.config.heads import HEADS as SECTIONS
from her2.mil.heads import build_head

NAMES = [name for name in SECTIONS if name != "logistic"]


@pytest.mark.parametrize("name", NAMES)
def test_the_keys_of_a_section_are_the_arguments_of_its_module(name: str) -> None:
    options = TypeAdapter(HeadSection).validate_python({"head": name})
    output = build_head(options, 16, 3).eval()(torch.zeros(1, 2, 16), torch.ones(1, 2).bool())
    assert output.logits.shape == (1, 3)
