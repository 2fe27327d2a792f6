"""Stage 1, pre-training data: labelled patches as one set, independent of their format."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from her2.config import PatchesSection
from her2.core.errors import UserError
from her2.pretraining.formats import Part

log = logging.getLogger(__name__)

RgbPatch = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PatchSet:
    """Labelled patches whose pixels are read one patch at a time, from any thread.

    `labels` (n,) are class indices. `cases` name the patient or slide of each patch, all None where
    unknown. `parts` are the set's own split, None where it has none. `digest` covers names, labels,
    cases, parts and content, but not the location of the files.
    """

    name: str
    format: str
    class_names: tuple[str, ...]
    ids: Sequence[str]
    labels: NDArray[np.int64]
    cases: Sequence[str | None]
    parts: Sequence[Part | None]
    read: Callable[[int], RgbPatch]
    """Index -> RGB uint8 (h, w, 3)."""
    digest: str
    mpp: float | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of patches of each label that `classes` does not name."""
    unusable: tuple[str, ...] = ()
    """`id: reason` for each image that could not be used."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def cases_known(self) -> bool:
        """Whether every patch names its case."""
        return len(self) > 0 and self.cases[0] is not None

    @property
    def counts(self) -> dict[str, int]:
        """Number of patches of each class."""
        found = np.bincount(self.labels, minlength=len(self.class_names)).tolist()
        return dict(zip(self.class_names, found, strict=True))


def class_table(
    where: str, section: PatchesSection, labels: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, int], dict[str, int]]:
    """Return class names in order, label -> class index, and left-out label -> patch count.

    Raises:
        UserError: there are fewer than two classes, or a class names a label that the set lacks.
    """
    counts = Counter(labels)
    found = ", ".join(f"{label} ({count})" for label, count in sorted(counts.items()))
    if section.classes is None:
        if len(counts) < 2:
            raise UserError(
                f"{where}: {section.path}: has only one class, {found}; a classifier needs two."
            )
        return tuple(sorted(counts)), {label: i for i, label in enumerate(sorted(counts))}, {}
    index = {label: i for i, group in enumerate(section.classes.values()) for label in group}
    absent = sorted(set(index) - set(counts))
    if absent:
        raise UserError(
            f"{where}.classes: the set has no label {', '.join(map(repr, absent))}; its labels "
            f"are {found}."
        )
    left_out = {label: count for label, count in sorted(counts.items()) if label not in index}
    if left_out:
        log.info("%s: labels left out because no class names them: %s", where, left_out)
    return tuple(section.classes), index, left_out
