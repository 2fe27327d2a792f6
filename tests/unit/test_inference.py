import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn

from her2.embedding.inference import (
    COMPILE_GAIN,
    COMPILE_MARGIN,
    COMPILE_SECONDS,
    batch_limit,
    compile_if_faster,
    compiling_pays,
    fold_batch_norm,
    prepare,
)
from her2.encoders.backbones import Encoder
from her2.encoders.device import DTYPES

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def encoder(model: str, **options: object) -> Encoder:
    """Set random weights, and batch-normalisation statistics unlike the initial ones."""
    torch.manual_seed(3)
    backbone = timm.create_model(model, num_classes=0, **options)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    made = Encoder(
        backbone, feature="pooled", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    return made.eval().requires_grad_(False)


def patches(count: int, size: int) -> torch.Tensor:
    """Return smooth coloured patches, all different."""
    generator = torch.Generator().manual_seed(1)
    rough = torch.rand((count, 3, 6, 6), generator=generator)
    smooth = nn.functional.interpolate(rough, size=size, mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def features(made: Encoder, images: torch.Tensor, precision: str = "float32") -> np.ndarray:
    dtype = DTYPES[precision]
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return made(images).float().numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("model", ["resnet10t", "resnet18"])
def test_folded_batch_normalisation_gives_the_same_features(model: str) -> None:
    plain = encoder(model)
    folded = copy.deepcopy(plain)
    norms = sum(type(module) is nn.BatchNorm2d for module in plain.modules())
    assert 0 < fold_batch_norm(folded.backbone) <= norms
    left = sum(type(module) is nn.BatchNorm2d for module in folded.modules())
    images = patches(4, 64)
    expected = features(plain, images)
    assert left < norms
    np.testing.assert_allclose(
        features(folded, images), expected, atol=1e-5 * np.abs(expected).max(), rtol=0
    )


def test_a_convolution_that_something_else_reads_too_is_not_folded() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return self.norm(x) + x

    class Twice(Fork):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x)) + self.conv(x)

    assert fold_batch_norm(Fork().eval()) == 0
    assert fold_batch_norm(Twice().eval()) == 0


def test_a_network_that_cannot_be_traced_stays_as_it_is() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return self.norm(x) if x.sum() > 0 else x

    module = Branching().eval()
    assert fold_batch_norm(module) == 0
    assert type(module.norm) is nn.BatchNorm2d


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("model", "options"),
    [("resnet18", {}), ("vit_tiny_patch16_224", {"img_size": 96, "depth": 6})],
    ids=["ResNet-18", "ViT-Ti"],
)
def test_half_precision_features_point_where_float32_ones_do(
    model: str, options: dict, precision: str
) -> None:
    images = patches(8, 96)
    reference = features(encoder(model, **options), images)
    found = features(prepare(encoder(model, **options), CPU, precision), images, precision)
    assert cosine(found, reference).min() >= (0.999999 if precision == "float32" else 0.999)
    # Features of random networks share a large mean: without it they still agree.
    shared = reference.mean(0)
    assert np.median(cosine(found - shared, reference - shared)) >= 0.99


def test_casting_once_gives_the_bits_that_autocast_gives() -> None:
    images = patches(3, 96)
    options = {"img_size": 96, "depth": 2}
    plain = encoder("vit_tiny_patch16_224", **options)
    prepared = prepare(encoder("vit_tiny_patch16_224", **options), CPU, "bfloat16")
    assert prepared.backbone.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert prepared.backbone.pos_embed.dtype == torch.float32
    assert prepared.backbone.blocks[0].norm1.weight.dtype == torch.float32
    for block in plain.backbone.blocks:
        block.attn.fused_attn = False  # as prepared on a CPU
    np.testing.assert_array_equal(
        features(prepared, images, "bfloat16"), features(plain, images, "bfloat16")
    )


@pytest.mark.parametrize(
    ("size", "asked", "device", "expected"),
    [
        (224, 64, CPU, 8),
        (224, 4, CPU, 4),
        (96, 64, CPU, 43),
        (1024, 64, CPU, 1),
        (224, 64, CUDA, 64),
    ],
)
def test_a_cpu_core_takes_what_its_caches_hold(
    size: int, asked: int, device: torch.device, expected: int
) -> None:
    assert batch_limit(size, asked, device) == expected


def test_compiling_is_weighed_against_the_work_that_is_left() -> None:
    convolutions, transformer = encoder("resnet10t"), encoder("vit_tiny_patch16_224", depth=1)
    for device in (CPU, CUDA):
        enough = COMPILE_MARGIN * COMPILE_SECONDS[device.type] / COMPILE_GAIN
        assert compiling_pays(convolutions, device, 1.01 * enough)
        assert not compiling_pays(convolutions, device, 0.99 * enough)
    assert not compiling_pays(transformer, CPU, 1e6)  # matrix products are what they are
    assert compiling_pays(transformer, CUDA, 1e6)


def slow(images: torch.Tensor) -> torch.Tensor:
    total = images.float().mean((1, 2))
    for _ in range(200):
        total = total + 0 * images.float().mean((1, 2))
    return total


@pytest.mark.parametrize(
    ("compiled", "taken"),
    [
        (lambda images: images.float().mean((1, 2)), True),
        (lambda images: images.float().mean((1, 2)) * 1.01, False),
        (lambda images: images.float().mean((1, 2)) * torch.nan, False),
        (lambda images: slow(slow(images)[:, None, None] * 0 + images.float()), False),
    ],
    ids=["equal and faster", "other features", "not finite", "slower"],
)
def test_a_compiled_encoder_is_kept_when_it_is_equal_and_faster(
    monkeypatch: pytest.MonkeyPatch, compiled, taken: bool
) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: compiled)
    images = patches(4, 64)
    found = compile_if_faster(slow, images, 1e-4)
    assert (found is compiled) == taken
    assert taken or found is None


def test_a_machine_without_a_compiler_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object):
        def run(_: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no working C++ compiler\nand more")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    assert compile_if_faster(slow, patches(1, 32), 1e-4) is None
    assert (
        "torch.compile failed, the encoder runs uncompiled: no working C++ compiler" in caplog.text
    )
