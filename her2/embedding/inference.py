"""Stage 1, embed: an encoder made ready to be run many times, with the results it has anyway.

What is done here changes features by less than their precision does, so it is no part of their
identity: batch normalisation folded into the convolution before it, weights cast once instead of
at each batch, channels last, and `torch.compile` where the work pays for it.
"""

import logging
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from her2.encoders.backbones import Encoder
from her2.encoders.device import DTYPES

log = logging.getLogger(__name__)

Compile = Literal["auto", "never", "always"]
Forward = Callable[[Tensor], Tensor]

COMPILE_SECONDS = {"cpu": 30.0, "cuda": 60.0}
"""What compiling costs, about (benchmarks/embed.py --compile)."""
COMPILE_GAIN = 0.15
"""Share of the encoder's time that it saves, about: of networks of convolutions everywhere, of
transformers on CUDA alone (on a CPU they are matrix products, which it leaves as they are)."""
COMPILE_MARGIN = 3.0
"""Compile when it is expected to save so many times what it costs."""
CPU_BATCH_PX = 8 * 224 * 224
"""Pixels a core takes at a time: with more, activations leave its caches (ResNet-50 at 224 px in
bfloat16: 47 patches/s a core in batches of 8, 33 in batches of 32)."""


def prepare(encoder: Encoder, device: torch.device, precision: str) -> Encoder:
    """Fold, cast, lay out and move an encoder; it is changed in place."""
    folded = fold_batch_norm(encoder.backbone)
    if folded:
        log.info("%d batch normalisations folded into convolutions", folded)
    if precision != "float32":
        # Autocast would cast these at every batch. Normalisation, position embeddings and layer
        # scales stay float32, as autocast has them.
        for module in encoder.backbone.modules():
            if type(module) in (nn.Conv2d, nn.Linear):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(DTYPES[precision])
        if device.type == "cpu":
            # PyTorch's fused attention in bfloat16 on a CPU takes longer than the matrix products
            # that it replaces (ViT-S at 224 px: 28 patches/s a core against 38); not in float32.
            for module in encoder.backbone.modules():
                if isinstance(getattr(module, "fused_attn", None), bool):
                    module.fused_attn = False  # type: ignore[assignment]  # timm's switch
    encoder.to(device)
    encoder.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return encoder


def fold_batch_norm(backbone: nn.Module) -> int:
    """Fold each batch normalisation whose input is one convolution's alone; how many there were.

    w' = w g / sqrt(v + e), b' = (b - m) g / sqrt(v + e) + t (Jacob 2018, arXiv 1712.05877).
    Networks that cannot be traced, and those of other normalisations, stay as they are.
    """
    if not any(type(module) is nn.BatchNorm2d for module in backbone.modules()):
        return 0
    try:
        graph = fx.symbolic_trace(backbone).graph
    except Exception as error:  # code of any kind is traced, and fails in any way
        log.info("batch normalisation not folded: %s", str(error).splitlines()[0])
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
    """Patches of `size` px a batch: `batch_size`, on a CPU no more than its caches hold."""
    if device.type != "cpu":
        return batch_size
    return max(1, min(batch_size, CPU_BATCH_PX // size**2))


def compiling_pays(encoder: Encoder, device: torch.device, seconds_left: float) -> bool:
    """Whether `torch.compile` saves more of the encoder's remaining time than it costs."""
    convolutions = sum(isinstance(module, nn.Conv2d) for module in encoder.backbone.modules())
    if device.type == "cpu" and convolutions <= 1:
        return False
    return COMPILE_GAIN * seconds_left > COMPILE_MARGIN * COMPILE_SECONDS[device.type]


def compile_if_faster(forward: Forward, patches: Tensor, tolerance: float) -> Forward | None:
    """The compiled `forward` if it gives the same on `patches` and takes less time, else None.

    Args:
        forward: the encoder as it is run.
        patches: a batch of the size that it will be run on, on the device.
        tolerance: largest difference, as a share of the largest value.
    """
    import torch._inductor.config

    threads = torch.get_num_threads()
    torch._inductor.config.compile_threads = threads
    torch._inductor.config.freezing = patches.device.type == "cpu"
    begin = time.perf_counter()
    try:
        compiled = torch.compile(forward, dynamic=False)
        found = compiled(patches)
    except Exception as error:  # no C++ compiler, an unknown operator: whatever it is, go on
        log.warning("torch.compile failed, going on without: %s", str(error).splitlines()[0])
        return None
    seconds = time.perf_counter() - begin
    expected = forward(patches)
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= tolerance:
        log.warning("torch.compile changes features by %.1e, going on without", difference)
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
