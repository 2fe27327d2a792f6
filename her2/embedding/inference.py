"""Stage 1, embed: prepare an encoder for fast inference.

Batch normalisation is folded into the preceding convolution, weights are cast once instead of per
batch, memory is channels-last, and `torch.compile` is used where it pays. These steps change
features by less than the computing precision does, so they are not part of the features' identity.
"""

import logging
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from her2.core.errors import first_line
from her2.encoders.backbones import Encoder
from her2.encoders.device import DTYPES

log = logging.getLogger(__name__)

Compile = Literal["auto", "never", "always"]
Forward = Callable[[Tensor], Tensor]

COMPILE_SECONDS = {"cpu": 30.0, "cuda": 60.0}
"""Approximate cost of compiling (benchmarks/embed.py --compile)."""
COMPILE_GAIN = 0.15
"""Approximate share of the encoder's time that compiling saves: for convolutional networks on all
devices, for transformers on CUDA only (on a CPU their time goes into matrix products, which
compiling does not change)."""
COMPILE_MARGIN = 3.0
"""Compile only if it is expected to save this many times its cost."""
CPU_BATCH_PX = 8 * 224 * 224
"""Pixels that a core encodes at a time. With more, activations leave its caches (ResNet-50 at
224 px in bfloat16: 47 patches/s per core in batches of 8, 33 in batches of 32)."""


def prepare(encoder: Encoder, device: torch.device, precision: str) -> Encoder:
    """Fold, cast and move an encoder to its device, in place."""
    folded = fold_batch_norm(encoder.backbone)
    if folded:
        log.info("%d batch normalisations folded into convolutions", folded)
    if precision != "float32":
        # Autocast would cast these weights in every batch. Normalisation, position embeddings and
        # layer scales stay float32, as under autocast.
        for module in encoder.backbone.modules():
            if type(module) in (nn.Conv2d, nn.Linear):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(DTYPES[precision])
        if device.type == "cpu":
            # On a CPU in bfloat16, PyTorch's fused attention is slower than the matrix products it
            # replaces (ViT-S at 224 px: 28 against 38 patches/s per core). In float32 it is not.
            for module in encoder.backbone.modules():
                if isinstance(getattr(module, "fused_attn", None), bool):
                    module.fused_attn = False  # type: ignore[assignment]  # timm's switch
    encoder.to(device)
    encoder.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return encoder


def fold_batch_norm(backbone: nn.Module) -> int:
    """Fold batch normalisations into the convolutions before them; return how many were folded.

    w' = w g / sqrt(v + e), b' = (b - m) g / sqrt(v + e) + t (Jacob 2018, arXiv 1712.05877).
    A normalisation is folded if it is the only user of its convolution's output. Networks that
    cannot be traced, and those with other normalisations, are left unchanged.
    """
    if not any(type(module) is nn.BatchNorm2d for module in backbone.modules()):
        return 0
    try:
        graph = fx.symbolic_trace(backbone).graph
    except Exception as error:  # tracing arbitrary code can raise any type of error
        log.info("batch normalisation not folded: %s", first_line(error))
        return 0
    modules = dict(backbone.named_modules())
    uses: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            uses[str(node.target)] = uses.get(str(node.target), 0) + 1
    count = 0
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        name, source = str(node.target), str(before.target)
        norm, convolution = modules[name], modules[source]
        if type(norm) is not nn.BatchNorm2d or type(convolution) is not nn.Conv2d:
            continue
        if uses[name] > 1 or uses[source] > 1:
            continue
        _replace(backbone, source, fuse_conv_bn_eval(convolution, norm))
        _replace(backbone, name, nn.Identity())
        count += 1
    return count


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def batch_limit(size: int, batch_size: int, device: torch.device) -> int:
    """Return the number of patches per batch: `batch_size`, or on a CPU what its caches hold."""
    if device.type != "cpu":
        return batch_size
    return max(1, min(batch_size, CPU_BATCH_PX // size**2))


def compiling_pays(encoder: Encoder, device: torch.device, seconds_left: float) -> bool:
    """Tell whether `torch.compile` would save several times its cost in the remaining time."""
    convolutions = sum(isinstance(module, nn.Conv2d) for module in encoder.backbone.modules())
    if device.type == "cpu" and convolutions <= 1:
        return False
    return COMPILE_GAIN * seconds_left > COMPILE_MARGIN * COMPILE_SECONDS[device.type]


def compile_if_faster(forward: Forward, patches: Tensor, tolerance: float) -> Forward | None:
    """Compile `forward`; return None unless it is faster and gives the same features.

    They may differ by `tolerance`, a share of the largest value. `patches` is a full batch.
    """
    import torch._inductor.config

    threads = torch.get_num_threads()
    torch._inductor.config.compile_threads = threads
    torch._inductor.config.freezing = patches.device.type == "cpu"
    begin = time.perf_counter()
    try:
        compiled = torch.compile(forward, dynamic=False)
        found = compiled(patches)
    except Exception as error:  # no C++ compiler, an unknown operator and so on: run uncompiled
        log.warning("torch.compile failed, the encoder runs uncompiled: %s", first_line(error))
        return None
    seconds = time.perf_counter() - begin
    expected = forward(patches)
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= tolerance:
        log.warning(
            "torch.compile changes features by %.1e, so the encoder runs uncompiled", difference
        )
        return None
    before, after = (min(_seconds(run, patches) for _ in range(3)) for run in (forward, compiled))
    log.info(
        "compiled in %.0f s: %.1f -> %.1f patches/s",
        seconds,
        *(len(patches) / t for t in (before, after)),
    )
    return compiled if after < before else None


def _seconds(forward: Forward, patches: Tensor) -> float:
    if patches.device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    forward(patches)
    if patches.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin
