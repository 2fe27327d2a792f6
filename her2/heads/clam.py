r"""CLAM with one map (SB) or one map per output (MB), and its instance loss.

    bag       that of `abmil` (SB) or `multibranch` (MB)
    instance  u_kc = W_c h_k + b_c in R^2, for each output c: "is this tile evidence for c?"
              in the class: the B tiles that c's map ranks first are labelled 1, the last B are 0
              out of the class (`subtyping`): the first B are labelled 0
    total     (1 - w) * bag loss + w * mean instance loss,    w = 0.3, B = 8 in the paper

The instance loss is the smooth top-1 SVM of the paper, with margin and temperature 1:

    L(u, y) = log sum_j exp(u_j + 1[j != y]) - u_y = softplus(1 + u_{1-y} - u_y)

Departures: dropout acts on the features, not on hidden layers (as in the other heads here). In a
bag of fewer than 2B tiles half are labelled at each end, so that no tile gets both labels. With
ordered outputs a bag is in the class of every threshold that it passes.

Sources: Lu et al., Data-efficient and weakly supervised computational pathology on whole-slide
images, Nature Biomedical Engineering 5, 2021 (arXiv 2004.09666); Berrada, Zisserman, Kumar,
Smooth loss functions for deep top-k classification, ICLR 2018 (arXiv 1802.07595).
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from her2.core.section import Count, Share
from her2.heads import Attending, AttentionWidth, Width, named, projected

if TYPE_CHECKING:
    from torch import Tensor

    from her2.heads.layers import Head


class _ClamSection(Attending):
    """The options of both variants, with the paper's defaults."""

    citations: ClassVar = {"Lu et al. 2021": "Nature Biomedical Engineering 5"}
    hidden: Width = projected(512)
    attention: AttentionWidth = Field(256, description="width of the attention's hidden layer")
    instances: Count = Field(
        8, description="tiles labelled at each end of the ranking by attention"
    )
    instance_weight: Share = Field(0.3, description="weight of the tiles' loss in the total loss")
    subtyping: bool = Field(
        False,
        description="top-ranked tiles also count as evidence against the slide's other classes",
    )


class ClamSBSection(_ClamSection):
    """CLAM (Lu 2021) with one map and the paper's defaults."""

    head: Literal["clam_sb"] = named("clam_sb")
    label = "CLAM with one attention branch"


class ClamMBSection(_ClamSection):
    """CLAM (Lu 2021) with one map per output and the paper's defaults."""

    head: Literal["clam_mb"] = named("clam_mb")
    label = "CLAM with one attention branch per output"


def network(options: ClamSBSection | ClamMBSection, dimension: int, outputs: int) -> "Head":
    """Build attention with an instance classifier for each output.

    `Output.instances` holds the instance classifiers' scores, (b, n, o, 2).
    """
    import torch
    from torch import Tensor, nn

    from her2.heads.layers import MultiBranch, Output

    class Clam(MultiBranch):
        def __init__(self) -> None:
            super().__init__(options, dimension, outputs, shared=options.head == "clam_sb")
            self.instance_classifier = nn.Linear(self.width, 2 * outputs)
            self.instances = options.instances
            self.instance_weight = options.instance_weight
            self.subtyping = options.subtyping

        def encode(self, bag: Tensor) -> tuple[Tensor, ...]:
            """Encode features (b, n, d): instances, scores and instance classes (b, n, 2 o)."""
            h, scores = super().encode(bag)  # (b, n, width), (b, n, o or 1)
            return h, scores, self.instance_classifier(h)

        def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
            """Pool like `multibranch`, and add the instances' scores (b, n, o, 2)."""
            return super().pool(parts, mask)._replace(instances=parts[2].unflatten(2, (-1, 2)))

        def instance_loss(self, output: Output, mask: Tensor, members: Tensor) -> Tensor:
            """Return the instance loss; `members` (b, o) says in which classes a bag is."""
            assert output.instances is not None
            scores = output.instances.float()  # (b, n, o, 2)
            maps = output.attention.detach()
            maps = maps[:, :, None] if self.shared else maps  # (b, n, 1 or o)
            k = min(self.instances, scores.shape[1])
            each = (mask.sum(dim=1) // 2).clamp(max=k)  # (b,)
            used = (torch.arange(k, device=mask.device) < each[:, None])[:, :, None]  # (b, k, 1)
            first = self._pick(scores, maps.masked_fill(~mask[:, :, None], -1.0), k)  # (b, k, o, 2)
            last = self._pick(scores, -maps.masked_fill(~mask[:, :, None], 2.0), k)
            count = each.clamp(min=1)[:, None]  # (b, 1)

            def mean(picked: Tensor, label: int) -> Tensor:
                """Return the mean loss of the picked instances, (b, o)."""
                return (smooth_top1_svm(picked, label) * used).sum(dim=1) / count

            inside = (mean(first, 1) + mean(last, 0)) / 2  # (b, o)
            if not self.subtyping:
                return (inside * members).sum(dim=1).mean()
            return torch.where(members, inside, mean(first, 0)).mean()

        @staticmethod
        def _pick(scores: Tensor, maps: Tensor, k: int) -> Tensor:
            """Return the scores of each map's k top-ranked instances, best first (b, k, o, 2)."""
            index = maps.topk(k, dim=1).indices[..., None]  # (b, k, 1 or o, 1)
            return scores.gather(1, index.expand(-1, -1, *scores.shape[2:]))

    return Clam()


def smooth_top1_svm(scores: "Tensor", label: int) -> "Tensor":
    """Return the smooth top-1 SVM loss of scores (..., 2); margin and temperature are 1."""
    from torch.nn import functional

    return functional.softplus(1 + scores[..., 1 - label] - scores[..., label])
