"""Tissue segmenter: HEST's DeepLabV3, trained on H&E and IHC slides of several organs.

Facts from the published inference code (mahmoodlab/HEST `src/hest/segmentation`, mahmoodlab/TRIDENT
`trident/segmentation_models`): windows of 512 px at 1 um/px, which TRIDENT calls 10x; class 1 is
tissue where its probability is above 0.5; the weights of the auxiliary classifier are left out.
That code lays windows side by side; here they overlap.
"""

from typing import TYPE_CHECKING

from her2.segmenters.base import TissueSegmenter

if TYPE_CHECKING:
    from torch import Tensor, nn


def build() -> "nn.Module":
    """Return torchvision's DeepLabV3 with a ResNet-50, of two classes, without weights."""
    from torchvision.models.segmentation import deeplabv3_resnet50

    network: nn.Module = deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=2, aux_loss=False
    )
    return network


def logits(network: "nn.Module", windows: "Tensor") -> "Tensor":
    """Return the network's main output."""
    found: Tensor = network(windows)["out"]
    return found


SEGMENTER = TissueSegmenter(
    name="hest",
    title="DeepLabV3 with a ResNet-50, of HEST-1k",
    architecture="torchvision/deeplabv3_resnet50, 2 classes",
    hub="MahmoodLab/hest-tissue-seg",
    file="deeplabv3_seg_v4.ckpt",
    revision="4d24a57a",
    sha256="4ddf8be82384544a",  # both as stated by a study that used it; no more is published
    card="https://huggingface.co/MahmoodLab/hest-tissue-seg",
    licence="CC-BY-NC-SA-4.0",
    commercial=False,
    mpp=1.0,
    window_px=512,
    margin_px=64,
    kept_px=4,
    tissue_class=1,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    reference=(
        "Jaume et al. 2024",
        "Jaume G et al. HEST-1k: a dataset for spatial transcriptomics and histology image "
        "analysis. Advances in Neural Information Processing Systems 37, 2024",
    ),
    build=build,
    logits=logits,
)
