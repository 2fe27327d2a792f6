"""Stage 2, train: random search of a head's options inside a fold, decided on its tuning set.

The search is nested: each fold searches on its own training and tuning sets, so options are never
chosen on slides they are tested on. Combinations are drawn without replacement by scikit-learn's
ParameterSampler. Source: Bergstra, Bengio, Random search for hyper-parameter optimization, JMLR 13,
2012.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from her2.config import HeadSection, Select
from her2.core.errors import UserError
from her2.core.files import canonical_json
from her2.heads import Projected
from her2.mil.train import Trained

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trial:
    """One combination of options that a fold tried; `problem` tells why it has no figures."""

    trial: int
    options: str
    best_epoch: int | None
    tune_loss: float | None
    selected: float | None
    problem: str | None = None


def draws(head: HeadSection, seed: int) -> list[dict[str, Any]]:
    """Return the combinations that a fold tries, a single empty one where nothing is searched."""
    if not isinstance(head, Projected) or head.search is None:
        return [{}]
    # Imported here because all readers of trained folds import this module, and few of them search.
    from sklearn.model_selection import ParameterSampler

    sampler = ParameterSampler(head.search.options, head.search.trials, random_state=seed % 2**32)
    return [dict(draw) for draw in sampler]


def search(
    head: HeadSection, *, seed: int, select: Select, train: Callable[[HeadSection, int], Trained]
) -> tuple[Trained, list[Trial]]:
    """Train each combination and keep the one that is best on the tuning set.

    Args:
        head: the head's section, with or without a search.
        seed: seed of the drawn combinations.
        select: criterion by which the best combination is picked on the tuning set.
        train: trains a fold from a section and the number of the trial.

    Raises:
        UserError: no trial could be trained.
    """
    best: Trained | None = None
    trials: list[Trial] = []
    combinations = draws(head, seed)
    for number, options in enumerate(combinations):
        text = canonical_json(options)
        section = head.with_options(options) if isinstance(head, Projected) else head
        try:
            trained = train(section, number)
        except UserError as error:
            if len(combinations) == 1:
                raise
            log.warning("trial %d %s failed: %s", number, text, error)
            trials.append(Trial(number, text, None, None, None, str(error)))
            continue
        figures = trained.best.tune
        value = figures.value(select)
        trials.append(Trial(number, text, trained.best_epoch, figures.loss, value))
        if len(combinations) > 1:
            log.info("trial %d %s: %s %.4f on the tuning set", number, text, select, value)
        if best is None or figures.rank(select) > best.best.tune.rank(select):
            best = trained
    if best is None:
        raise UserError(
            f"none of the {len(trials)} trials could be trained. The last error: "
            f"{trials[-1].problem}"
        )
    return best, trials
