"""Raw slides to scores: all that turns a slide into a score, from a bundle."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from her2.cohort.manifest import SlideRow
from her2.config import TilingSection
from her2.core.errors import UserError
from her2.encoders.card import read_card
from her2.evaluation.groupings import Grouping
from her2.frozen.model import FrozenModel
from her2.storage.entries import TileEntry
from her2.storage.features import FeatureStore

if TYPE_CHECKING:
    import torch

    from her2.frozen.bundle.hashes import Seen


@dataclass(frozen=True, slots=True)
class Judgement:
    """How far a slide lies within the development cohort.

    `sentences` say where it does not; `percentiles` (0 to 100) are those of the slide
    among the development's.
    """

    sentences: tuple[str, ...] = ()
    percentiles: Mapping[str, float | None] = field(default_factory=dict)


Judge = Callable[[SlideRow, TileEntry, FeatureStore], Judgement]
"""Says how far a slide, of which tiles and features are given, lies within the development."""


def nothing_to_compare(row: SlideRow, tiled: TileEntry, store: FeatureStore) -> Judgement:
    """Return an empty judgement: nothing is known about the development cohort."""
    return Judgement()


@dataclass(frozen=True, slots=True)
class Predictor:
    """A frozen model with the stages before it.

    Attributes:
        model: the folds' models.
        groupings: those of the development's config that its thresholds are about.
        mpp: um/px of the tiles.
        size: their side in px.
        tiling: which tiles there are.
        seed: seed of drawing `tiling.max_tiles` tiles, None if all are kept.
        max_failed_tiles: share of a slide's tiles that may be unreadable.
        encoder: folder of the encoder.
        segmenters: key -> folder of the weights, of each segmenter that `tiling` names.
        judge: how far a slide lies within the development cohort.
        trained_on: (patients, fingerprints) -> those that the model was trained on; None where
            that is not known.
        ran_in: precisions of the development's features, if known.
        synthetic: whether it was developed on drawn slides.
        made_of: what the record beside the predictions says of it.
    """

    model: FrozenModel
    groupings: tuple[Grouping, ...]
    mpp: float
    size: int
    tiling: TilingSection
    seed: int | None
    max_failed_tiles: float
    encoder: Path
    segmenters: Mapping[str, Path] = field(default_factory=dict)
    judge: Judge = nothing_to_compare
    trained_on: "Callable[[Iterable[str], Iterable[str]], Seen] | None" = None
    ran_in: tuple[str, ...] = ()
    synthetic: bool = False
    made_of: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> "torch.device":
        """Return the device of the models, which is also the one that slides are embedded on."""
        return self.model.first.model.mean.device

    def check_encoder(self) -> None:
        """Check that the encoder is the one that the models were trained with.

        Raises:
            UserError: it is another one, or its folder cannot be read.
        """
        card, wanted = read_card(self.encoder), self.model.first.card["encoder_digest"]
        if card.digest != wanted:
            raise UserError(
                f"{self.encoder}: is encoder {card.digest[:12]} ({card.library}/"
                f"{card.architecture}), and the models were trained with {wanted[:12]}; give the "
                "folder of that one (--encoder)."
            )
