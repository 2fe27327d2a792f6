r"""Mean embedding and logistic regression, the baseline that any other head should beat.

    logits = W (mean_k x_k - m) / s + b

m and s are the mean and standard deviation of the training slides' mean embeddings. W minimises the
multinomial cross-entropy + ||W||^2 / (2 C), solved to convergence by scikit-learn. C is the one of
`strengths` that is best on the tuning set.

Source: scikit-learn, LogisticRegression (Pedregosa et al., JMLR 12, 2011).
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from her2.core.section import Positive
from her2.heads import Fitted, Words, named

if TYPE_CHECKING:
    from her2.heads.layers import Head


class LogisticSection(Fitted):
    """Logistic regression of the mean embedding; it reads only `training.balance` and `.select`."""

    head: Literal["logistic"] = named("logistic")
    label = "logistic regression of the mean embedding"
    citations: ClassVar = {"Pedregosa et al. 2011": "Journal of Machine Learning Research 12"}
    method = "logistic regression"
    picked = "the strength of the penalty"
    strengths: Annotated[tuple[Positive, ...], Words("inverse strength of the penalty")] = Field(
        (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        min_length=1,
        description="C, the inverse of the penalty; the tuning set picks one",
    )

    def estimators(self, *, balanced: bool) -> list[Any]:
        """Return one unfitted logistic regression per strength."""
        from sklearn.linear_model import LogisticRegression

        weight = "balanced" if balanced else None
        return [
            LogisticRegression(C=strength, class_weight=weight, max_iter=1000)
            for strength in self.strengths
        ]


def network(options: LogisticSection, dimension: int, outputs: int) -> "Head":
    """Build mean pooling without a projection, which holds the fitted coefficients."""
    from her2.heads.mean import MeanSection

    return MeanSection(hidden=0, dropout=0.0).build(dimension, outputs)
