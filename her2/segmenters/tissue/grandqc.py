"""Tissue segmenter: GrandQC's UNet++, trained on H&E slides of 19 departments and TCGA.

Facts from the published inference code (cpath-ukk/grandqc `wsi_tis_detect.py`, mahmoodlab/TRIDENT
`trident/segmentation_models`): windows of 512 px at 10 um/px, cut from an image that was compressed
as JPEG at quality 80, since the network was trained on such; the more probable class counts, and
class 0 is tissue. That code lays windows side by side, the last ones flush with the image's end;
here they overlap, with white beyond the slide.
"""

from typing import TYPE_CHECKING

from her2.segmenters import smp
from her2.segmenters.base import TissueSegmenter

if TYPE_CHECKING:
    from torch import Tensor, nn


def build() -> "nn.Module":
    """Return segmentation-models-pytorch's UNet++ on an EfficientNet-B0, without weights.

    Raises:
        UserError: that library is not installed.
    """
    return smp.build(
        "tiling.segmenter: grandqc",
        "UnetPlusPlus",
        classes=2,
        instead="set `segmenter: hest`, which needs nothing more",
    )


def logits(network: "nn.Module", windows: "Tensor") -> "Tensor":
    """Return the network's output."""
    found: Tensor = network(windows)
    return found


SEGMENTER = TissueSegmenter(
    name="grandqc",
    title="UNet++ with an EfficientNet-B0, of GrandQC",
    architecture="segmentation-models-pytorch/UnetPlusPlus timm-efficientnet-b0, 2 classes",
    hub="MahmoodLab/hest-tissue-seg",  # a copy; the authors' own is at `card`, in no hub
    file="Tissue_Detection_MPP10.pth",
    revision="4d24a57a",
    sha256=None,
    unpinned="no source that has downloaded it states its digest",
    card="https://zenodo.org/records/14507273",
    licence="CC-BY-NC-SA-4.0",
    commercial=False,
    mpp=10.0,
    window_px=512,
    margin_px=64,
    kept_px=1,
    tissue_class=0,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    jpeg_quality=80,
    reference=(
        "Weng et al. 2024",
        "Weng Z et al. GrandQC: a comprehensive solution to quality control problem in digital "
        "pathology. Nature Communications 15, 10685, 2024",
    ),
    build=build,
    logits=logits,
)
