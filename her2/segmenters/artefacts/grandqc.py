"""Artefact segmenter: GrandQC's U-Net, trained on H&E slides of 19 departments and TCGA.

Facts from the published inference code (cpath-ukk/grandqc `wsi_process.py`, mahmoodlab/TRIDENT
`trident/segmentation_models`): windows of 512 px at 1 um/px, not compressed first as for its tissue
network; the most probable of 8 classes counts: 1 tissue without artefacts, 2 fold, 3 dark spot or
foreign object, 4 pen, 5 edge or air bubble, 6 out of focus, 7 background; 0 is not used. That code
lays windows side by side, leaves out what is no whole window at the right and lower edge, looks
only at windows with tissue, and takes all px outside the tissue for background. Here windows
overlap, with white beyond the slide, those with tiles are looked at, and all px of a tile count.

Class 6 is the one to distrust: TRIDENT (pull request 219) found sharp MIRAX slides called out of
focus, whose px were sharp for it in another format. So it rejects no tile unless a config says so.
"""

from typing import TYPE_CHECKING

from her2.filters.base import ClassFilter
from her2.segmenters import smp
from her2.segmenters.base import ArtefactSegmenter

if TYPE_CHECKING:
    from torch import Tensor, nn


def build() -> "nn.Module":
    """Return segmentation-models-pytorch's U-Net on an EfficientNet-B0, without weights.

    Raises:
        UserError: that library is not installed.
    """
    return smp.build(
        "tiling.artefact_segmenter: grandqc", "Unet", classes=8, instead="remove this key"
    )


def logits(network: "nn.Module", windows: "Tensor") -> "Tensor":
    """Return the network's output."""
    found: Tensor = network(windows)
    return found


SEGMENTER = ArtefactSegmenter(
    name="grandqc",
    title="U-Net with an EfficientNet-B0, of GrandQC",
    architecture="segmentation-models-pytorch/Unet timm-efficientnet-b0, 8 classes",
    hub="MahmoodLab/hest-tissue-seg",  # a copy; the authors' own is at `card`, and holds code
    file="GrandQC_MPP1_state_dict.pth",
    revision=None,
    sha256=None,
    unpinned="no source that has downloaded it states its digest",
    card="https://zenodo.org/records/14041538",
    licence="CC-BY-NC-SA-4.0",
    commercial=False,
    mpp=1.0,
    window_px=512,
    margin_px=64,
    kept_px=8,
    artefacts=(
        ClassFilter(
            name="artefact_fold",
            channel=2,
            limit=0.2,
            colour=(120, 0, 90),
            legend="folds (network)",
            methods="a fold",
        ),
        ClassFilter(
            name="artefact_dark_spot",
            channel=3,
            limit=0.2,
            colour=(110, 70, 20),
            legend="dark spots (network)",
            methods="a dark spot or foreign object",
        ),
        ClassFilter(
            name="artefact_pen",
            channel=4,
            limit=0.05,
            colour=(230, 60, 40),
            legend="pen (network)",
            methods="pen",
        ),
        ClassFilter(
            name="artefact_edge",
            channel=5,
            limit=0.2,
            colour=(0, 170, 200),
            legend="edges and bubbles (network)",
            methods="an edge or air bubble",
        ),
        ClassFilter(
            name="artefact_out_of_focus",
            channel=6,
            limit=1.0,
            colour=(130, 80, 220),
            legend="out of focus (network)",
            methods="out of focus",
        ),
    ),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    reference=(
        "Weng et al. 2024",
        "Weng Z et al. GrandQC: a comprehensive solution to quality control problem in digital "
        "pathology. Nature Communications 15, 10685, 2024",
    ),
    build=build,
    logits=logits,
)
