"""Stage 1, encoder: the card that describes an encoder, and the digest that identifies it.

Reading a card needs no torch, so a rule or a report can ask about an encoder cheaply.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from her2.core.errors import UserError
from her2.core.files import digest, file_digest, write_json
from her2.core.reading import read_json
from her2.core.stamps import noted

CARD_NAME = "card.json"
GIVEN = "features"
"""The source of an encoder whose features another program computed."""
CODE = "python"
"""The library of an encoder that a function of the user builds."""
WEIGHTS_NAME = "weights.safetensors"
IDENTITY_NAME = "identity.json"
"""In the cache beside a pre-trained encoder; older ones have no such file."""


@dataclass(frozen=True, slots=True)
class EncoderCard:
    """Everything that is known about an encoder.

    `size` is in px per side, `mpp` in um/px, `mean` and `std` refer to RGB in [0, 1].
    `weights_sha256` covers names, types, shapes and values, not the bytes of the file. Of features
    that another program computed (source `features`) there are no weights and no normalisation,
    and um/px and size are None where nobody told them; `computed_here` is false.
    """

    source: str
    library: str
    architecture: str
    arguments: dict[str, Any]
    feature: str
    dimension: int
    size: int | None
    mpp: float | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    precision: str
    storage: str
    licence: str
    weights_sha256: str
    provenance: dict[str, Any]

    @property
    def computed_here(self) -> bool:
        """Return whether this project runs the encoder, or another program has computed it."""
        return self.source != GIVEN

    @property
    def patch_px(self) -> int:
        """Return the px per side of its input.

        Raises:
            UserError: nobody told, and it cannot be run here.
        """
        if self.size is None:
            raise UserError(f"{self.architecture}: was computed elsewhere and cannot be run here.")
        return self.size

    @property
    def digest(self) -> str:
        """Identity of the encoder's function, whatever its name, source, licence and um/px."""
        return digest(
            {
                "library": self.library,
                "architecture": self.architecture,
                "arguments": self.arguments,
                "feature": self.feature,
                "size": self.size,
                "normalisation": [list(self.mean or ()), list(self.std or ())],
                "weights": self.weights_sha256,
            }
        )


_CARD = TypeAdapter(EncoderCard)


def write_card(folder: Path, card: EncoderCard) -> None:
    """Write `card.json`; equal cards give equal bytes."""
    write_json(folder / CARD_NAME, {**asdict(card), "digest": card.digest})


def write_encoder_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write what an encoder's key is the digest of, with the digests of its files, as the last."""
    files = {item.name: file_digest(item) for item in sorted(folder.iterdir())}
    write_json(folder / IDENTITY_NAME, {"identity": identity, "files": files})


def read_card(folder: Path) -> EncoderCard:
    """Read the card of an encoder folder.

    Raises:
        UserError: there is no card, it was edited by hand, or it may not be read.
    """
    path = folder / CARD_NAME
    try:
        values = read_json(noted(path))
        stated = values.pop("digest")
        for name in ("mean", "std"):
            values[name] = None if values[name] is None else tuple(values[name])
        _CARD.validate_python(values)  # checked, not converted: the digest is over what is written
        card = EncoderCard(**values)
        own = card.digest
    except (UserError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = str(error).removeprefix(f"{path}: ")
        raise UserError(
            f"{path}: is not a valid encoder card ({why}); delete its folder and make the "
            "encoder again."
        ) from None
    if stated != own:
        raise UserError(
            f"{path}: does not match its own digest, so it was edited; delete its folder and make "
            "the encoder again."
        )
    return card
