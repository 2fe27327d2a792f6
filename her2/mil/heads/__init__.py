"""Stage 2, train: the heads by name.

A head is one module, `her2/mil/heads/{name}.py`, that says `HEAD = ...`, and one line: its name in
the section of `her2/config/heads.py` whose options it takes.
"""

from importlib import import_module

from her2.config import HeadSection
from her2.mil.heads.head import Head


def build_head(options: HeadSection, dimension: int, outputs: int) -> Head:
    """The head of these options for features of `dimension` and `outputs` logits.

    Its module's `HEAD` is called with (d, o, the section's other keys).
    """
    module = import_module(f"her2.mil.heads.{options.head}")
    head: Head = module.HEAD(dimension, outputs, **options.model_dump(exclude={"head", "search"}))
    return head
