import pytest
import torch
from pydantic import TypeAdapter

from her2.config import HeadSection
from her2.config.heads import HEADS as SECTIONS
from her2.mil.heads import HEADS, build_head


def test_every_section_but_the_baseline_has_a_module() -> None:
    assert set(SECTIONS) == {*HEADS, "logistic"}


@pytest.mark.parametrize("name", HEADS)
def test_the_keys_of_a_section_are_the_arguments_of_its_module(name: str) -> None:
    options = TypeAdapter(HeadSection).validate_python({"head": name})
    output = build_head(options, 16, 3).eval()(torch.zeros(1, 2, 16), torch.ones(1, 2).bool())
    assert output.logits.shape == (1, 3)
