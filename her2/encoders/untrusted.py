"""Weights and features of others: torch files of somebody else, of which nothing is ever run.

`torch.load(weights_only=True)` refuses code. These are the defences against what it lets pass.
"""

import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from her2.core.errors import first_line

_EXPANDED_BYTES = 1 << 30
"""Largest tensor whose rows may share their values, as those of `Tensor.expand` do."""
_FORBIDDEN = re.compile(
    r"unsupported (?:global|class)\W+(?:global )?([\w.]*\.[\w.]*\w)", re.IGNORECASE
)
"""torch's words about code in a file; it then advises to load the file all the same."""


def inflated(path: Path) -> str | None:
    """Return the problem of a zip whose content is larger than the file; torch compresses none."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = sum(member.file_size for member in archive.infolist())
    except Exception:  # no zip, or a damaged one: torch says which
        return None
    if content <= path.stat().st_size:
        return None
    return f"unpacks to {content / 1e6:,.0f} MB, more than its own size, as no torch file does"


def is_mappable(path: Path) -> bool:
    """Return whether torch can map a file: it is a zip, none of whose members is compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(one.compress_type == zipfile.ZIP_STORED for one in archive.infolist())
    except Exception:  # no zip, or a damaged one: torch says which
        return False


def more_than_tensors(path: Path, error: Exception) -> str | None:
    """Return in words that torch refused a file for what it would run; None for another reason."""
    if "weights_only" not in str(error) or not _begin(path).startswith((b"PK", b"\x80")):
        return None
    found = _FORBIDDEN.search(str(error))
    return f"holds more than tensors{f' ({found[1]})' if found else ''}"


def torch_reason(path: Path, error: Exception) -> str:
    """Return why torch could not read a file, without its advice to load it unsafely."""
    if "weights_only" in str(error):
        return f"it begins with {_begin(path)!r}"
    return first_line(error)


def _begin(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(16)


def valueless(tensor: Tensor) -> str | None:
    """Return why a tensor has no dense values of its own, or None."""
    if tensor.is_meta:
        return "has a shape but no values (meta)"
    if tensor.layout is not torch.strided:
        return f"is sparse ({type_name(tensor.layout)})"  # type: ignore[arg-type]
    if tensor.is_nested:
        return "is nested"
    if tensor.is_quantized:
        return f"is quantized ({type_name(tensor.dtype)})"
    declared = tensor.numel() * tensor.element_size()
    if declared > max(_EXPANDED_BYTES, tensor.untyped_storage().nbytes()):
        return f"declares {tensor.numel():,} values and holds fewer"
    return None


def type_name(dtype: torch.dtype) -> str:
    """Return the name of a type without that of the library."""
    return str(dtype).removeprefix("torch.")
