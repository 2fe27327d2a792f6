"""Stage 1, encoder: the catalogue of published encoders, which is data (`catalogue.yaml`).

Reading a row needs no torch, so the config and `her2 encoders` can ask cheaply.
"""

import difflib
import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from her2.core.errors import UserError
from her2.core.types import Domain, Feature
from her2.libraries import NAMES

if TYPE_CHECKING:
    LibraryName = str
else:
    LibraryName = Literal[NAMES]

SCALE_TOLERANCE = 0.2
"""A um/px further than this from the trained one, relative to it, deserves a warning."""

Channels = tuple[
    Annotated[float, Field(gt=0, lt=1)],
    Annotated[float, Field(gt=0, lt=1)],
    Annotated[float, Field(gt=0, lt=1)],
]
Mpp = Annotated[float, Field(ge=0.05, le=20)]
Url = Annotated[str, Field(pattern=r"^https://\S+$")]

DOMAINS = {"he": "H&E", "he_ihc": "H&E + IHC", "ihc": "IHC", "natural": "natural", "none": "none"}


class CatalogueRow(BaseModel):
    """One published encoder, and how its authors feed it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(description="what `model:` says in a config")
    title: str = Field(description="for people: network and training data")
    library: LibraryName = Field(description="which builds the architecture")
    architecture: str = Field(
        description="the library's name; with a tag (`.a1_in1k`) the library also has the weights"
    )
    hub: str | None = Field(
        None, description="Hugging Face repository of the weights; none: the library fetches them"
    )
    file: str | None = Field(None, description="the weights file in it")
    layout: Literal["timm", "transformers_vit", "transformers_dinov2"] = Field(
        "timm", description="how the file names its tensors"
    )
    arguments: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="for the constructor, where it differs from the architecture's defaults; "
        "layers by name",
    )
    size: Annotated[int, Field(ge=16, le=2048)] = Field(description="px a side of the patches")
    mpp: Mpp | None = Field(
        None, description="um/px of the patches it was trained on; none: it saw no microscope"
    )
    also_mpp: tuple[Mpp, ...] = Field((), description="further um/px it was trained on")
    feature: Feature = Field(description="what its authors keep of the output")
    dimension: Annotated[int, Field(ge=1)] = Field(description="numbers a patch, under `feature`")
    mean: Channels = Field(description="of RGB in [0, 1], subtracted")
    std: Channels = Field(description="of RGB in [0, 1], divided by")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        description="the coarsest type that its authors or established pipelines run it in"
    )
    storage: Literal["float16", "float32"] = Field(
        "float16", description="type of the stored features; float32 for values beyond 65,504"
    )
    domain: Domain = Field(
        description="training images: H&E, H&E with some IHC, IHC, photographs, none"
    )
    licence: str = Field(min_length=1, description="of the weights")
    gated: bool = Field(False, description="the weights are given on request")
    ask_at: Url | None = Field(None, description="where to request them")
    paper: Url | None = Field(None, description="publication")
    card: Url = Field(description="the authors' description of the published weights")
    note: str | None = Field(None, description="what surprises")
    checked: str = Field(min_length=1, description="which sources the row was compared with")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "CatalogueRow":
        if (self.hub is None) != (self.file is None):
            raise ValueError("`hub` and `file` belong together")
        if self.hub is None and self.layout != "timm":
            raise ValueError("`layout` describes a file of a hub")
        if self.gated and self.ask_at is None:
            raise ValueError("`gated` without `ask_at`")
        if self.domain in ("he", "he_ihc", "ihc") and self.mpp is None:
            raise ValueError("trained on slides, so it has a `mpp`")
        if self.arguments.get("img_size", self.size) != self.size:
            raise ValueError("`img_size` is not `size`")
        taken = {"num_classes", "pretrained"} & self.arguments.keys()
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))}: set by the code that builds")
        return self

    def defaults(self) -> dict[str, Any]:
        """What a config section takes from the row for the keys it leaves out."""
        names = ("size", "mpp", "feature", "precision", "storage", "domain")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


@cache
def catalogue() -> dict[str, CatalogueRow]:
    """All rows by name, in the file's order."""
    text = resources.files("her2.config").joinpath("catalogue.yaml").read_text(encoding="utf-8")
    rows: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return {name: CatalogueRow(name=name, **values) for name, values in rows.items()}


def row(name: str) -> CatalogueRow:
    """The row of that name.

    Raises:
        UserError: there is none; the nearest names are given.
    """
    rows = catalogue()
    if name in rows:
        return rows[name]
    # People also write the hub's name, or another spelling of ours.
    plain = _plain(name.split("/")[-1])
    spellings = {_plain(key): key for key in rows} | {
        _plain(value.hub.split("/")[-1]): key for key, value in rows.items() if value.hub
    }
    near = difflib.get_close_matches(plain, spellings, n=8, cutoff=0.5)
    names = list(dict.fromkeys(spellings[spelling] for spelling in near))[:3]
    hint = f"; near: {', '.join(names)}" if names else ""
    raise UserError(
        f"encoders: the catalogue has no {name!r}{hint}. `her2 encoders` lists all {len(rows)}."
    )


def table() -> str:
    """The catalogue as plain text, one line an encoder."""
    head = (
        "name", "trained on", "architecture", "feature", "dimension", "px", "um/px", "precision",
        "licence", "access",
    )  # fmt: skip
    lines = [head]
    for item in catalogue().values():
        scales = sorted({item.mpp, *item.also_mpp}) if item.mpp is not None else []
        lines.append(
            (
                item.name,
                DOMAINS[item.domain],
                f"{item.library}/{item.architecture}",
                item.feature,
                str(item.dimension),
                str(item.size),
                ", ".join(f"{scale:g}" for scale in scales) or "-",
                item.precision,
                item.licence,
                f"ask: {item.ask_at}" if item.gated else "open",
            )
        )
    numbers = {"dimension", "px"}
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if title in numbers else cell.ljust(width)
            for cell, width, title in zip(line, widths, head, strict=True)
        ).rstrip()
        for line in lines
    )


def scale_warning(row: CatalogueRow, mpp: float) -> str | None:
    """What to say when patches of `mpp` um/px are not what the encoder was trained on.

    None within 20 % of a trained um/px, and for an encoder that has none.
    """
    if row.mpp is None:
        return None
    trained = sorted({row.mpp, *row.also_mpp})
    if min(abs(mpp - scale) / scale for scale in trained) <= SCALE_TOLERANCE + 1e-9:
        return None
    scales = ", ".join(f"{scale:g}" for scale in trained)
    return (
        f"{row.name} was trained at {scales} um/px and gets {mpp:g} um/px: nuclei look "
        f"{min(trained, key=lambda scale: abs(mpp - scale) / scale) / mpp:.2g} times their size "
        "to it."
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
