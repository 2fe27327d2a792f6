r"""Attention with one map per output.

    a_kc = softmax_k( (W_a (tanh(V h_k) * sigm(U h_k)))_c ),    z_c = sum_k a_kc h_k
    logits_c = w_c^T z_c + b_c

The hidden layers V and U are shared. Each output has its own row of W_a and its own classifier,
because evidence for 3+ may lie elsewhere than evidence for 0. This is CLAM-MB without its instance
loss.

Source: Lu et al., Data-efficient and weakly supervised computational pathology on whole-slide
images, Nature Biomedical Engineering 5, 2021 (arXiv 2004.09666); the attention is equation 9
(`gated`) or 8 of Ilse 2018.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from her2.heads import Attending, named

if TYPE_CHECKING:
    from her2.heads.layers import Head


class MultiBranchSection(Attending):
    """Attention-based MIL with one map per output."""

    head: Literal["multibranch"] = named("multibranch")
    label = "attention-based pooling with one attention map per output"
    citations: ClassVar = {
        "Ilse et al. 2018": "ICML, PMLR 80",
        "Lu et al. 2021": "Nature Biomedical Engineering 5",
    }


def network(options: MultiBranchSection, dimension: int, outputs: int) -> "Head":
    """Build the network, which is also the bag branch of `clam`."""
    from her2.heads.layers import MultiBranch

    return MultiBranch(options, dimension, outputs, shared=False)
