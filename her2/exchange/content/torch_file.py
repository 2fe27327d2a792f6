"""Feature files of other programs: the tensor of a torch file."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from her2.exchange.content import Array, Content, row_blocks

if TYPE_CHECKING:
    from torch import Tensor

_AS_TENSOR = "save the features as a tensor, torch.save(torch.as_tensor(features), path)"


def read_torch(path: Path) -> Content:
    """Look at the tensor of a torch file.

    Raises:
        ValueError: it holds something else than one tensor of plain numbers, or declares more than
            it holds; with the fix.
    """
    tensor = _load(path)
    shape, dtype = tuple(tensor.shape), _numpy_type(tensor)
    array = Array("", shape, dtype, {}, lambda: _blocks(path, shape, dtype))
    return Content(path, "torch", {"": array}, {}, {})


def _load(path: Path) -> "Tensor":
    import torch

    from her2.encoders.untrusted import (
        inflated,
        is_mappable,
        more_than_tensors,
        torch_reason,
        valueless,
    )

    if (problem := inflated(path)) is not None:
        raise ValueError(f"it {problem}")
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable(path))
    except Exception as error:  # torch raises any type of error on bytes that are no tensors
        if (code := more_than_tensors(path, error)) is not None:
            raise ValueError(f"it {code}, and code is never run; {_AS_TENSOR}") from None
        raise ValueError(
            f"it is no torch file that can be read ({torch_reason(path, error)}); copy it again"
        ) from None
    if not isinstance(found, torch.Tensor):
        names = [repr(name) for name in found][:6] if isinstance(found, dict) else []
        raise ValueError(
            f"it holds a {type(found).__name__}{' of ' + ', '.join(names) if names else ''}, not "
            f"a tensor; {_AS_TENSOR}"
        )
    if (problem := valueless(found)) is not None:
        raise ValueError(f"its tensor {problem}; {_AS_TENSOR}")
    return found.detach()


def _numpy_type(tensor: "Tensor") -> np.dtype[Any]:
    """Return the type that `_blocks` yields; numpy has no bfloat16, which float32 holds exactly."""
    import torch

    if tensor.is_conj() or tensor.is_neg():
        raise ValueError(f"its tensor is a view that torch computes; {_AS_TENSOR}")
    kind = torch.float32 if tensor.dtype is torch.bfloat16 else tensor.dtype
    try:
        return torch.empty(0, dtype=kind).numpy().dtype
    except TypeError:
        raise ValueError(f"its tensor is {tensor.dtype}, which is no type of features") from None


def _blocks(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    import torch

    tensor = _load(path)
    if (tuple(tensor.shape), _numpy_type(tensor)) != (shape, dtype):
        raise ValueError("it changed while it was read")
    table = tensor[None] if tensor.ndim == 1 else tensor
    while table.ndim > 2 and table.shape[0] == 1:
        table = table[0]
    if table.ndim != 2:
        raise ValueError(f"its tensor has shape {shape}, not (rows, values)")
    for start, stop in row_blocks(len(table), table.shape[1], dtype.itemsize):
        block = table[start:stop]
        yield (block.float() if block.dtype is torch.bfloat16 else block).numpy().copy()
