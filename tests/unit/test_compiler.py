"""Processes that compile nothing do without torch's compiler; those that do find it unchanged."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = """
import sys
from her2.encoders.backbones import build_backbone
backbone = build_backbone("timm", "test_resnet", feature="pooled", arguments={}).eval()
assert "torch._dynamo" not in sys.modules, "building"
"""


def run(code: str) -> None:
    """Run code in a process of its own, as imports cannot be undone."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD + code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_building_and_training_load_no_compiler():
    run("""
import torch
from her2.core.compiler import compiler_deferred
with compiler_deferred():
    optimiser = torch.optim.AdamW(backbone.parameters())
    backbone(torch.zeros(1, 3, 32, 32)).sum().backward()
    optimiser.step()
    optimiser.zero_grad()
assert "torch._dynamo" not in sys.modules
""")


def test_a_deferred_compiler_compiles_and_answers_the_operators_of_torchvision():
    run("""
import torch
compiled = torch.compile(backbone, backend="eager")
patch = torch.ones(1, 3, 32, 32)
with torch.no_grad():
    assert torch.equal(compiled(patch), backbone(patch))
assert torch._dynamo.utils.counters["frames"]["ok"] > 0
from torchvision.ops.roi_align import is_compile_supported
assert is_compile_supported("cpu") == torch._dynamo.utils.is_compile_supported("cpu")
""")


@pytest.mark.parametrize(
    "question",
    [
        "import torch._dynamo; limit = torch._dynamo.config.recompile_limit",
        "from torch._dynamo.config import recompile_limit as limit",
    ],
)
def test_what_only_the_compiler_knows_imports_it(question: str):
    run(f"""
from her2.core.compiler import compiler_deferred
with compiler_deferred():
    {question}
import torch._dynamo
assert limit == torch._dynamo.config.recompile_limit
assert type(sys.modules["torch._dynamo"]).__name__ == "module"
""")
