r"""After training: the classes as a training saw them, and as frequent as they are.

A training that draws or weighs the classes evenly (`training.balance`) learns probabilities for
patients among whom the classes are equally frequent. By Bayes' rule those for the training set's
own shares are

    logit_k + log(share_k) - log(seen_k)

`seen` are the probabilities that a model without features would learn, the constant with the
lowest training loss: the mean of the training's targets, as `balance`, smoothing and the loss
weigh them.

| `balance` | `seen`, without smoothing |
| --- | --- |
| `none`, `slides` | the shares of the slides |
| `sampling`, and both `sampling` and `loss` of a fitted head | equal shares |
| `loss` | nearly equal: a batch's weighted mean divides by more where it has a rare class |

`loss: ordinal` (CORN) is the negative log-likelihood of the class probabilities
(`her2.mil.losses`): its conditional tasks are weighed by the slides that reach them, so that it
sees the same shares as the cross-entropy and is corrected alike.

Label smoothing e gives every slide the target (1 - e) onehot + e / c, which moves `seen` towards
equal shares. What it takes from the sharpness of single predictions is left to the temperature.

Source: Saerens, Latinne and Decaestecker, Neural Computation 14(1), 2002 (equation 2.4).
"""

from pathlib import Path

import numpy as np
import polars as pl

from her2.config.jobs import ClassBalance
from her2.core.errors import UserError
from her2.core.tables import read_result
from her2.core.types import Floats, Ints

PRIORS = {
    "run": pl.String,
    "key": pl.String,
    "class": pl.String,
    "slides": pl.Int64,
    "patients": pl.Int64,
    "share": pl.Float64,
    "seen": pl.Float64,
    "note": pl.String,
}
"""Columns of the table `priors`: `key` names the model in the cache, `slides` and `patients` count
its training set, and the probabilities were corrected from `seen` to `share`."""

DRAWS = 20_000
"""Batches drawn for the shares of `balance: loss`; their error is below 0.5 % of a share."""


def seen_shares(slides: Ints, training: ClassBalance) -> Floats:
    """Return the share of each class (c,) that a training saw; 0 for a class without slides.

    Args:
        slides: training slides of each class (c,).
        training: how the classes were drawn and weighed.
    """
    present = slides > 0
    shares = slides / slides.sum()
    equal = present / present.sum()
    smoothing = 0.0 if training.fitted else training.label_smoothing
    balanced = training.balance in ("sampling", "loss")
    if training.balance == "loss" and not training.fitted:
        return _in_weighted_batches(slides, training.bags_per_batch, smoothing)
    seen: Floats = (1 - smoothing) * (equal if balanced else shares) + smoothing * equal
    return seen


def prior_table(path: Path) -> pl.DataFrame:
    """Read a table `priors`: the columns of `PRIORS`.

    Raises:
        UserError: the file cannot be read, or is not such a table.
    """
    try:
        return read_result(path).select(list(PRIORS)).cast(pl.Schema(PRIORS))
    except (UserError, pl.exceptions.PolarsError) as error:
        why = str(error).removeprefix(f"{path}: ")
        raise UserError(
            f"{path}: is not a table `priors` of her2 evaluate ({why}); give the priors.parquet "
            "in results/evaluation/TASK/ENCODER/HEAD."
        ) from None


def read_priors(path: Path) -> dict[str, tuple[Floats, Floats]]:
    """Read a table `priors`: key of a model -> its `share` and `seen`, each (c,).

    Raises:
        UserError: the file cannot be read, or is not such a table.
    """
    parts = prior_table(path).partition_by("key", as_dict=True, maintain_order=True)
    return {
        str(key): (own["share"].to_numpy(), own["seen"].to_numpy()) for (key,), own in parts.items()
    }


def with_shares(probabilities: Floats, share: Floats, seen: Floats) -> Floats:
    """Return probabilities (n, c) for classes that are as frequent as `share` (c,), not `seen`.

    A class that no training slide has keeps the probability that the model gave it, relative to
    the others.
    """
    factor = np.divide(share, seen, out=np.ones(len(share)), where=seen > 0)
    weighed: Floats = np.asarray(probabilities, np.float64) * factor
    return weighed / weighed.sum(axis=1, keepdims=True)


def _in_weighted_batches(slides: Ints, batch: int, smoothing: float) -> Floats:
    """Return the mean target of batches whose loss is a mean weighted by class.

    As in torch, the smoothed part of a target is weighted by the class that it names, and the mean
    divides by the weights of the labels. An epoch passes every slide once, so that a batch is drawn
    without replacement.
    """
    weights = np.divide(
        slides.sum(), slides * (slides > 0).sum(), out=np.zeros(len(slides)), where=slides > 0
    )
    size = min(batch, int(slides.sum()))
    drawn = np.random.default_rng(0).multivariate_hypergeometric(slides, size, size=DRAWS)
    divisor = (drawn @ weights)[:, None]
    own, spread = drawn * weights / divisor, size * weights / divisor
    target = ((1 - smoothing) * own + smoothing / (slides > 0).sum() * spread).mean(axis=0)
    seen: Floats = target / target.sum()
    return seen
