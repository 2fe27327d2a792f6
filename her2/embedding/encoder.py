"""Stage 1, encoder: an encoder that scripts and notebooks name, in its folder.

Its weights are read when a slide is embedded, and not for one whose features are in the cache.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from her2.config import EncoderSection, parse_section
from her2.config.jobs import EncoderSpec
from her2.core.errors import UserError
from her2.core.files import atomic_folder, digest
from her2.core.stamps import files_state
from her2.encoders.card import CARD_NAME, GIVEN, EncoderCard, read_card
from her2.storage.cache import Cache

if TYPE_CHECKING:
    from her2.encoders.backbones import Encoder

log = logging.getLogger(__name__)

FOLDER = "named-encoders"
"""Folder in the cache for encoders that were made from a section of a config."""


@dataclass(frozen=True, slots=True, repr=False)
class FrozenEncoder:
    """An encoder in its folder (`weights.safetensors`, `card.json`); the card says all of it."""

    folder: Path
    card: EncoderCard

    def __repr__(self) -> str:
        """Return what it is: the architecture, the features, and the patches it takes."""
        card = self.card
        return (
            f"<FrozenEncoder {card.library}/{card.architecture}: {card.dimension:,} features of "
            f"{card.size} px at {card.mpp:g} um/px, {card.source}, digest {card.digest[:12]}>"
        )

    @property
    def mpp(self) -> float:
        """Return the um/px of its patches."""
        assert self.card.mpp is not None  # only unknown of features from elsewhere
        return self.card.mpp

    @property
    def size(self) -> int:
        """Return the px per side of its patches."""
        assert self.card.size is not None
        return self.card.size

    @property
    def dimension(self) -> int:
        """Return the number of features of a patch, d."""
        return self.card.dimension

    def module(self) -> "Encoder":
        """Return the torch module, on the CPU: uint8 patches (b, h, w, 3) to float (b, d).

        Raises:
            UserError: the weights are not those of the card.
        """
        from her2.encoders.stage import read_encoder  # imports torch

        return read_encoder(self.folder)[0]


def load_encoder(
    given: EncoderSection | Mapping[str, Any] | Path | str,
    *,
    seed: int = 2411,
    cache: Cache | Path | str | None = None,
    **options: Any,
) -> FrozenEncoder:
    """Return an encoder from its folder, from the catalogue, or from a section of a config.

    The weights of the catalogue come from the Hugging Face hub, once; all others have to be here.

    Args:
        given: a folder with `card.json`, such as `results/encoders/NAME`; a name of `her2
            encoders`; or a section of `encoders:` in a config.
        seed: seed of random weights.
        cache: where the folder of a new encoder is made, see `embed`.
        options: keys of the section, such as `mpp=0.5` or `checkpoint="weights.bin"`; with a name
            or a section.

    Raises:
        UserError: there is no such folder or name, the section has problems, or the weights cannot
            be had or are not safe to read; with the fix.

    >>> import her2
    >>> encoder = her2.load_encoder("results/encoders/tiny")
    >>> encoder.dimension, encoder.size, encoder.mpp
    (512, 64, 1.0)
    >>> section = {"source": "random", "model": "timm/resnet10t", "mpp": 1.0, "size": 64}
    >>> her2.load_encoder(section, seed=1).card.source
    'random'
    """
    if isinstance(given, Path | str) and (Path(given) / CARD_NAME).exists():
        if options:
            raise UserError(
                f"{given}: is the folder of a finished encoder, which takes no options "
                f"({', '.join(options)})."
            )
        card = read_card(Path(given))
        if card.source == GIVEN:
            raise UserError(
                f"{given}: is of features that another program computed, so there is no network to "
                "load. Read its stores with `open_store`."
            )
        return FrozenEncoder(Path(given), card)
    if isinstance(given, Path) or (isinstance(given, str) and "/" in given):
        raise UserError(
            f"{given}: is no folder with {CARD_NAME}. Give the folder of a run's encoder "
            "(results/encoders/NAME), a name of `her2 encoders`, or a section as in a config."
        )
    if isinstance(given, str):
        given = {"source": "catalogue", "model": given}
    elif isinstance(given, EncoderSection):
        given = given.model_dump(exclude_unset=True)
    section = parse_section(EncoderSection, {**given, **options}, name="load_encoder")
    if section.source == "pretrain":
        raise UserError(
            "load_encoder: `source: pretrain` is trained by a run; give the folder that the run "
            "made (results/encoders/NAME)."
        )
    section = section.model_copy(update={"augmentations": 0})  # they are of the features
    spec = EncoderSpec(encoder=section, seed=seed)
    local = section.local_weights()
    state = files_state([] if local is None else [local.absolute()], Path("/"))
    key = digest([spec.model_dump(mode="json"), state])
    folder = Cache.given(cache).root / FOLDER / key
    if not (folder / CARD_NAME).exists():
        from her2.encoders.stage import materialise_encoder  # imports torch

        with atomic_folder(folder) as temporary:
            materialise_encoder(spec, temporary)
    return FrozenEncoder(folder, read_card(folder))
