"""Stage 1, encoder: an encoder of the user's own, as a function in one Python file.

The file is run only with consent (`her2.core.consent`). Its bytes are read once, and what is
compiled is what was digested. The module that the function returns is saved as tensors, like any
other; to embed, it is built by the same bytes again and gets these tensors.
"""

import hashlib
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from her2.config import EncoderSection
from her2.core.consent import consent_problem
from her2.core.errors import UserError, first_line
from her2.core.reading import path_problem
from her2.encoders.backbones import Encoder
from her2.encoders.card import EncoderCard

_CODE_BYTES = 4 << 20
_CLOSE = 1e-3
"""Largest difference of a patch's features, relative to the largest, that batches may make."""
_NAMED = 6


@dataclass(frozen=True, slots=True)
class Code:
    """A function in a file, and the file's bytes."""

    path: Path
    function: str
    content: bytes

    @property
    def sha256(self) -> str:
        """Digest (hex) of the file."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def named(self) -> str:
        """The file and the function, as a config has them."""
        return f"{self.path}:{self.function}"


def read_code(path: Path, function: str) -> Code:
    """Read a file of code, if the environment of the run consents.

    Raises:
        UserError: it does not, or the file cannot be read.
    """
    if problem := consent_problem():
        raise UserError(f"{path} {problem}.")
    if problem := path_problem(path, limit_bytes=_CODE_BYTES):
        raise UserError(f"{path}: {problem}.")
    return Code(path, function, path.read_bytes())


def built(code: Code) -> nn.Module:
    """Run the file and return the module that its function builds, on the CPU, for evaluation.

    Raises:
        UserError: the file or the function fails, there is no such function, or it returns
            something else.
    """
    # A name of its own in sys.modules, for dataclasses and whatever else asks for its module.
    module = ModuleType(f"her2_encoder_{code.sha256[:16]}")
    module.__file__ = str(code.path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(code.content, code.path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise _failed(code, "cannot be run", error) from None
    function = vars(module).get(code.function)
    if not callable(function):
        own = [
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        raise UserError(
            f"{code.path}: has no function {code.function!r}. It defines "
            f"{', '.join(own[:_NAMED]) or 'none'}; write the name of one after the colon of "
            "`module`."
        )
    try:
        result = function()
    except (Exception, SystemExit) as error:
        raise _failed(code, f"{code.function}() failed", error) from None
    if not isinstance(result, nn.Module):
        raise UserError(
            f"{code.named}: returned {_what(result)} instead of a torch.nn.Module. Return the "
            "network alone; `mean`, `std` and `size` stand in the config."
        )
    return result.cpu().eval().requires_grad_(False)


def checked_dimension(code: Code, backbone: nn.Module, encoder: EncoderSection) -> int:
    """Return the features per patch of a module that `code` built, after trying what it computes.

    It must give a row of finite numbers for each patch, the same for the same patch whatever else
    is in the batch, and again from its `state_dict` alone.

    Raises:
        UserError: it does not.
    """
    assert encoder.mean is not None
    assert encoder.std is not None
    prepare = Encoder(nn.Identity(), feature="pooled", mean=encoder.mean, std=encoder.std)
    generator = torch.Generator().manual_seed(0)
    size = (2, encoder.size, encoder.size, 3)
    patches = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    x = prepare.normalised(patches)
    first = _features(code, backbone, x)
    shape = tuple(first.shape)
    if len(shape) != 2 or shape[0] != 2 or not shape[1] or not first.is_floating_point():
        raise UserError(
            f"{code.named}: gives {str(first.dtype).removeprefix('torch.')} of shape {shape} for "
            f"2 patches of {encoder.size} px. It must give one row of features for each, (2, d) "
            "and floats: pool tokens or maps inside of the module."
        )
    if not torch.isfinite(first).all():
        raise UserError(f"{code.named}: gives values that are not finite (NaN or infinite).")
    if not _close(_features(code, backbone, x), first):
        raise UserError(
            f"{code.named}: gives other features for the same patch at a second call. Leave out "
            "what is random in evaluation."
        )
    if not _close(_features(code, backbone, x[:1]), first[:1]):
        raise UserError(
            f"{code.named}: the features of a patch depend on the others in its batch. Normalise "
            "within each patch, or by fixed values."
        )
    # The random numbers go on, so that weights outside of the state_dict come out as others.
    again = with_state(code, built(code), backbone.state_dict())
    if not _close(_features(code, again, x), first):
        raise UserError(
            f"{code.named}: computes something else when it is built again with the same "
            "state_dict, so some of its values are not in that. Make them parameters or buffers."
        )
    return shape[1]


def rebuilt(folder: Path, card: EncoderCard, state: dict[str, Tensor]) -> nn.Module:
    """Build the module of an encoder's folder from the same file, with the tensors in the folder.

    Raises:
        UserError: the file is absent, has changed since, or fails.
    """
    code = read_code(folder / str(card.provenance.get("code", "")), card.architecture)
    if code.sha256 != (before := card.arguments.get("code_sha256")):
        raise UserError(
            f"{code.path}: has changed since the encoder in {folder} was made from it (SHA-256 "
            f"{code.sha256}, then {before}). Run snakemake, which makes the encoder and its "
            "features anew, or restore the file."
        )
    return with_state(code, built(code), state)


def with_state(code: Code, module: nn.Module, state: dict[str, Any]) -> nn.Module:
    """Give a module the tensors of one that was built by the same code.

    Raises:
        UserError: it has others.
    """
    try:
        module.load_state_dict(state)
    except Exception as error:  # a module may load in a way of its own
        raise UserError(
            f"{code.named}: built another network than before ({first_line(error)}). What it "
            "builds may depend on the file alone."
        ) from None
    return module


def code_place(path: Path, folder: Path) -> str:
    """Return where a file of code lies for an encoder's folder: relative, if in this project."""
    absolute = path.absolute()
    if absolute.is_relative_to(Path.cwd()):
        return os.path.relpath(absolute, folder.absolute())
    return str(absolute)


def own_tensors(code: Code, module: nn.Module) -> dict[str, Tensor]:
    """Return the state of a module that `code` built.

    Raises:
        UserError: it holds something besides tensors.
    """
    state = module.state_dict()
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise UserError(
            f"{code.named}: its state_dict holds more than tensors ({', '.join(strange[:_NAMED])})."
        )
    return state


def _features(code: Code, module: nn.Module, x: Tensor) -> Tensor:
    try:
        with torch.inference_mode():
            found = module(x.clone())
    except (Exception, SystemExit) as error:
        raise _failed(code, f"fails on patches {tuple(x.shape)}", error) from None
    if not isinstance(found, Tensor):
        raise UserError(
            f"{code.named}: gives {_what(found)} for a batch of patches instead of one tensor."
        )
    return found


def _close(one: Tensor, other: Tensor) -> bool:
    scale = float(other.abs().max())
    return one.shape == other.shape and bool(((one - other).abs() <= _CLOSE * scale).all())


def _failed(code: Code, what: str, error: BaseException) -> UserError:
    """Return the error of code that raised one, with its line in the file."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(code.path)]
    number = lines[-1] if lines else getattr(error, "lineno", None)
    where = f"{code.path}, line {number}" if number else str(code.path)
    return UserError(f"{where}: {what} ({type(error).__name__}: {first_line(error)}).")


def _what(value: object) -> str:
    if isinstance(value, tuple | list):
        kinds = ", ".join(type(one).__name__ for one in value[:_NAMED])
        return f"a {type(value).__name__} ({kinds})"
    return "nothing" if value is None else f"a {type(value).__name__}"
