"""`her2 doctor`: PyTorch, and whether it is built for a GPU."""

from collections.abc import Iterator

from her2.cli.doctor.base import Check, Finding, Situation
from her2.core.errors import first_line


def find(_: Situation) -> Iterator[Finding]:
    """Yield its version, or why it cannot be loaded."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(
            "bad",
            f"PyTorch cannot be loaded ({first_line(error)})",
            "install her2 again, as README.md says; a library that is missing is named above",
        )
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU"
    yield Finding("ok", f"{torch.__version__}, {built}")


CHECK = Check("torch", 20, find)
