"""Stage 2, evaluate: classes regrouped into two sides, as in a clinical question.

The score of a row is P(positive side) / (P(positive side) + P(negative side)). Rows of neither side
are left out. A task with two classes is its own grouping.
"""

from dataclasses import dataclass

import numpy as np

from her2.config import EvaluationSection, Task
from her2.config.learning import own_grouping
from her2.core.types import Bools, Floats, Ints


@dataclass(frozen=True, slots=True)
class Grouping:
    """A grouping, with the class indices of both sides."""

    name: str
    negative: tuple[int, ...]
    positive: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sides:
    """The rows (m of n) of a grouping.

    `kept` (n,) selects them; `positive` (m,) and `scores` (m,) describe them. `undecided` is the
    number of rows with probability 0 for both sides, which are scored 0.5.
    """

    kept: Bools
    positive: Bools
    scores: Floats
    undecided: int

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def note(self) -> str:
        """A note on the scores, empty if there is nothing to note."""
        if not self.undecided:
            return ""
        return f"{self.undecided} with probability 0 for both sides scored 0.5"


def groupings_of(task: Task, section: EvaluationSection) -> tuple[Grouping, ...]:
    """Return the config's groupings that name only classes of the task, in the config's order."""
    names = task.class_names
    found = {
        name: Grouping(
            name,
            tuple(names.index(one) for one in sides.negative),
            tuple(names.index(one) for one in sides.positive),
        )
        for name, sides in section.groupings.items()
        if set(sides.classes) <= set(names)
    }
    if len(names) == 2:
        own = Grouping(own_grouping(names), (0,), (1,))
        found = {own.name: own} | found
    return tuple(found.values())


def two_sides(target: Ints, probabilities: Floats, grouping: Grouping) -> Sides:
    """Return the rows of both sides, scored by their probability of the positive side.

    Args:
        target: class index of each row (n,).
        probabilities: (n, c).
        grouping: the grouping.
    """
    kept = np.isin(target, (*grouping.negative, *grouping.positive))
    probabilities = probabilities[kept]
    up = probabilities[:, list(grouping.positive)].sum(axis=1)
    both = up + probabilities[:, list(grouping.negative)].sum(axis=1)
    scores = np.divide(up, both, out=np.full(len(up), 0.5), where=both > 0)
    return Sides(
        kept=kept,
        positive=np.isin(target[kept], grouping.positive),
        scores=scores,
        undecided=int((both <= 0).sum()),
    )


def side_missing(positive: Bools) -> str:
    """Return the reason why two sides cannot be compared, "" if they can."""
    if not len(positive):
        return "not defined: no patient on either side"
    if not positive.any():
        return "not defined: no patient on the positive side"
    return "" if not positive.all() else "not defined: no patient on the negative side"
