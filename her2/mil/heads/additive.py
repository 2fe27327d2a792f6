r"""Stage 2, train: additive attention-MIL; each tile has a contribution to each logit.

    logits_c = sum_k g_kc,    g_k = a_k psi(h_k),    psi(h) = W_2 ReLU(W_1 h) + b
    a_k as in `abmil`

The bag is explained exactly: nothing but the contributions g enters a logit, and they say for or
against by their sign, which attention cannot. Javed et al. write psi(a_k h_k). Without biases psi
is homogeneous and both are the same; with them the paper's sum would count psi(0) once for every
tile, so that a model trained on sub-bags would be shifted on whole slides. Here the bias of the
sum is b whatever the number of tiles, because the weights sum to one.

Source: Javed, Juyal, Padigela, Taylor-Weiner, Yu, Prakash, Additive MIL: intrinsically
interpretable multiple instance learning for pathology, NeurIPS 2022 (arXiv 2206.01794).
"""

from torch import Tensor, nn

from her2.mil.heads.head import Attention, Output, masked_softmax


class AdditiveMIL(Attention):
    """Instances are classified, and their logits are added up under attention."""

    def __init__(
        self,
        dimension: int,
        outputs: int,
        *,
        attention: int,
        gated: bool,
        hidden: int,
        dropout: float,
        classifier: int,
    ) -> None:
        super().__init__(
            dimension, 1, attention=attention, gated=gated, hidden=hidden, dropout=dropout
        )
        self.classifier = nn.Sequential(
            nn.Linear(self.width, classifier, bias=False),
            nn.ReLU(),
            nn.Linear(classifier, outputs),
        )

    def encode(self, bag: Tensor) -> tuple[Tensor, ...]:
        """Features (b, n, d) -> instance logits (b, n, o), scores (b, n, 1)."""
        h, scores = super().encode(bag)  # (b, n, width), (b, n, 1)
        return self.classifier(h), scores

    def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
        """Instance logits (b, n, o), scores -> logits (b, o), attention (b, n), contribution."""
        logits, scores = parts
        weights = masked_softmax(scores, mask)  # (b, n, 1)
        contribution = weights * logits  # (b, n, o)
        return Output(contribution.sum(dim=1), weights.squeeze(2), contribution)


HEAD = AdditiveMIL
