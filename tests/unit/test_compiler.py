"""Processes that compile nothing do without torch's compiler; those that do find it unchanged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAINING = """
import torch
from her2.core.compiler import compiler_deferred
with compiler_deferred():
    optimiser = torch.optim.AdamW(backbone.parameters())
    backbone(torch.zeros(1, 3, 32, 32)).sum().backward()
    optimiser.step()
    optimiser.zero_grad()
assert "torch._dynamo" not in sys.modules
"""
COMPILING = """
import torch
compiled = torch.compile(backbone, backend="eager")
patch = torch.ones(1, 3, 32, 32)
with torch.no_grad():
    assert torch.equal(compiled(patch), backbone(patch))
assert torch._dynamo.utils.counters["frames"]["ok"] > 0
from torchvision.ops.roi_align import is_compile_supported
assert is_compile_supported("cpu") == torch._dynamo.utils.is_compile_supported("cpu")
"""
QUESTIONS = (
    "import torch._dynamo; limit = torch._dynamo.config.recompile_limit",
    "from torch._dynamo.config import recompile_limit as limit",
)
ASKING = """
from her2.core.compiler import compiler_deferred
with compiler_deferred():
    {question}
import torch._dynamo
assert limit == torch._dynamo.config.recompile_limit
assert type(sys.modules["torch._dynamo"]).__name__ == "module"
"""
CODES = {
    "training": TRAINING,
    "compiling": COMPILING,
    **{question: ASKING.format(question=question) for question in QUESTIONS},
}
# Imports cannot be undone: each code has a process of its own, a fork of one that has built.
FORKS = """
import json, os, sys, traceback
from her2.encoders.backbones import build_backbone
backbone = build_backbone("timm", "test_resnet", feature="pooled", arguments={}).eval()
assert "torch._dynamo" not in sys.modules, "building"
ended = {}
for name, code in json.loads(sys.argv[1]).items():
    child = os.fork()
    if not child:
        try:
            exec(code, {"backbone": backbone, "sys": sys})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    ended[name] = os.waitpid(child, 0)[1]
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def done() -> subprocess.CompletedProcess[str]:
    """Run all codes; prints how each ended."""
    return subprocess.run(
        [sys.executable, "-c", FORKS, json.dumps(CODES)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # a pool of threads would not survive a fork
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip


def test_building_and_training_load_no_compiler(done):
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["training"] == 0, done.stderr


def test_a_deferred_compiler_compiles_and_answers_the_operators_of_torchvision(done):
    assert json.loads(done.stdout)["compiling"] == 0, done.stderr


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_only_the_compiler_knows_imports_it(done, question: str):
    assert json.loads(done.stdout)[question] == 0, done.stderr
