"""Freed memory stays in the process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import resource
from her2.core.memory import keep_freed_memory
{call}
def batch():
    blocks = [b"x" * 8_000_000 for _ in range(12)]
batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(call: str) -> int:
    """Return the page faults of five batches after the first."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(call=call)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_a_second_batch_gets_the_memory_of_the_first():
    assert page_faults("keep_freed_memory()") < page_faults("") / 10
