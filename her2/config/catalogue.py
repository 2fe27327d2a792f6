"""Stage 1, encoder: the catalogue of published encoders, stored as data (`catalogue.yaml`).

Reading a row does not need torch, so it is cheap for the config and `her2 encoders`.
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
"""Relative difference from the trained um/px above which a warning is given."""

Channels = tuple[
    Annotated[float, Field(gt=0, lt=1)],
    Annotated[float, Field(gt=0, lt=1)],
    Annotated[float, Field(gt=0, lt=1)],
]
Mpp = Annotated[float, Field(ge=0.05, le=20)]
Url = Annotated[str, Field(pattern=r"^https://\S+$")]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{10,40}$")]
FileDigest = Annotated[str, Field(pattern=r"^([0-9a-f]{12}|[0-9a-f]{64})$")]
WHOLE_REVISION = 40
"""Digits of a whole revision; the hub finds no file by a shorter one."""


class CatalogueRow(BaseModel):
    """A published encoder, with the inputs and outputs that its authors use."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(description="value of `model:` in a config")
    title: str = Field(description="display name: network and training data")
    library: LibraryName = Field(description="library that builds the architecture")
    architecture: str = Field(
        description="name in the library; with a tag (`.a1_in1k`), the library also has the weights"
    )
    hub: str | None = Field(
        None,
        description="Hugging Face repository of the weights; default: the library fetches them",
    )
    file: str | None = Field(None, description="weights file in the repository")
    revision: Revision | None = Field(
        None,
        description="commit of the repository from which the file is fetched; of one with fewer "
        "than 40 digits only the beginning is known, and the present commit serves",
    )
    sha256: FileDigest | None = Field(
        None,
        description="digest of the file, 64 digits or, where no more is known, the first 12; other "
        "bits are refused",
    )
    also_sha256: dict[str, FileDigest] = Field(
        default_factory=dict,
        description="digests of the authors' other files with the same weights, by name; they "
        "serve as `checkpoint`",
    )
    unpinned: str | None = Field(None, description="why `sha256` is not known")
    layout: Literal[
        "timm",
        "transformers_vit",
        "transformers_dinov2",
        "transformers_dinov2_swiglu",
        "transformers_dinov2_registers",
        "dinov2",
    ] = Field("timm", description="naming scheme of the file's tensors")
    arguments: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="arguments of the constructor that differ from the architecture's defaults; "
        "layers by name",
    )
    size: Annotated[int, Field(ge=16, le=2048)] = Field(description="px per side of the patches")
    mpp: Mpp | None = Field(
        None, description="um/px of the training patches; null: not trained on microscope images"
    )
    also_mpp: tuple[Mpp, ...] = Field((), description="further um/px of training patches")
    mpp_basis: Literal["stated", "from_magnification", "convention"] | None = Field(
        None,
        description="where `mpp` comes from: its authors state it; they state a magnification "
        "(20x is taken for 0.5); or neither, and 0.5 is what others use",
    )
    feature: Feature = Field(description="part of the output that its authors use")
    dimension: Annotated[int, Field(ge=1)] = Field(description="features per patch, with `feature`")
    mean: Channels = Field(description="mean of RGB in [0, 1], subtracted")
    std: Channels = Field(description="standard deviation of RGB in [0, 1], divided by")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        description="lowest precision that its authors or established pipelines run it in"
    )
    storage: Literal["float16", "float32"] = Field(
        "float16", description="type of the stored features; float32 for values beyond 65,504"
    )
    domain: Domain = Field(
        description="training images: H&E, H&E with some IHC, IHC, photographs, none"
    )
    licence: str = Field(min_length=1, description="licence of the weights")
    commercial: Literal["yes", "no", "conditions"] = Field(
        description="whether the licence allows commercial use of the weights"
    )
    terms: str | None = Field(None, description="the conditions, for `commercial: conditions`")
    gated: bool = Field(False, description="True if access to the weights must be requested")
    ask_at: Url | None = Field(None, description="page to request access")
    paper: Url | None = Field(None, description="publication")
    card: Url = Field(description="model card of the published weights")
    note: str | None = Field(None, description="anything unexpected")
    checked: str = Field(min_length=1, description="sources that the row was checked against")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "CatalogueRow":
        if (self.hub is None) != (self.file is None):
            raise ValueError("`hub` and `file` must be given together")
        if self.hub is None and self.layout != "timm":
            raise ValueError("`layout` needs `hub` and `file`")
        if self.hub is not None and self.revision is None and self.sha256 is not None:
            raise ValueError("`sha256` of a file in a hub needs its `revision`")
        if (self.sha256 is None) != (self.unpinned is not None):
            raise ValueError("either `sha256` or `unpinned` must be given")
        if self.gated and self.ask_at is None:
            raise ValueError("`gated` needs `ask_at`")
        if (self.mpp is None) != (self.mpp_basis is None):
            raise ValueError("`mpp` and `mpp_basis` must be given together")
        if (self.commercial == "conditions") != (self.terms is not None):
            raise ValueError("`commercial: conditions` needs `terms`, and nothing else has them")
        if self.domain in ("he", "he_ihc", "ihc") and self.mpp is None:
            raise ValueError("an encoder trained on slides needs `mpp`")
        if self.arguments.get("img_size", self.size) != self.size:
            raise ValueError("`img_size` must equal `size`")
        taken = {"num_classes", "pretrained"} & self.arguments.keys()
        if taken:
            raise ValueError(
                f"{', '.join(sorted(taken))}: not allowed in `arguments`, set by the code"
            )
        return self

    @property
    def by_library(self) -> bool:
        """Return True if the library itself loads the file: it knows these weights by a tag."""
        return self.hub is None or "." in self.architecture

    @property
    def place(self) -> str:
        """Return what errors about the weights begin with."""
        return f"encoders: {self.name}"

    @property
    def path_key(self) -> str:
        """Return the key of a local file of the weights."""
        return "checkpoint"

    @property
    def digest_key(self) -> str:
        """Return the key that states the digest of other weights."""
        return "sha256"

    @property
    def section(self) -> str:
        """Return where these keys are."""
        return "in the encoder's section"

    def pins(self, digest: str) -> bool:
        """Tell whether a file with this SHA-256 (hex) holds the row's weights, as far as known."""
        known = [one for one in (self.sha256, *self.also_sha256.values()) if one is not None]
        return not known or any(digest.startswith(one) for one in known)

    def defaults(self) -> dict[str, Any]:
        """Return the row's values for keys that a config section leaves out."""
        names = ("size", "mpp", "feature", "precision", "storage", "domain")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


@cache
def catalogue() -> dict[str, CatalogueRow]:
    """Return all rows by name, in the file's order."""
    text = resources.files("her2.config").joinpath("catalogue.yaml").read_text(encoding="utf-8")
    rows: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return {name: CatalogueRow(name=name, **values) for name, values in rows.items()}


def row(name: str) -> CatalogueRow:
    """Return the row with a name.

    Raises:
        UserError: there is no such row; the message lists the closest names.
    """
    rows = catalogue()
    if name in rows:
        return rows[name]
    # Users may also write the hub's name, or spell the catalogue's name differently.
    plain = _plain(name.split("/")[-1])
    spellings = {_plain(key): key for key in rows} | {
        _plain(value.hub.split("/")[-1]): key for key, value in rows.items() if value.hub
    }
    near = difflib.get_close_matches(plain, spellings, n=8, cutoff=0.5)
    names = list(dict.fromkeys(spellings[spelling] for spelling in near))[:3]
    hint = f"; did you mean {' or '.join(names)}?" if names else "."
    raise UserError(
        f"encoders: the catalogue has no {name!r}{hint} `her2 encoders` lists all {len(rows)}."
    )


def scale_warning(row: CatalogueRow, mpp: float) -> str | None:
    """Return a warning if an encoder was not trained on patches of `mpp` um/px, else None.

    There is no warning within 20 % of a trained um/px, nor for an encoder without one.
    """
    if row.mpp is None:
        return None
    trained = sorted({row.mpp, *row.also_mpp})
    if min(abs(mpp - scale) / scale for scale in trained) <= SCALE_TOLERANCE + 1e-9:
        return None
    scales = ", ".join(f"{scale:g}" for scale in trained)
    return (
        f"{row.name} was trained at {scales} um/px but gets patches at {mpp:g} um/px, where nuclei "
        f"appear {min(trained, key=lambda scale: abs(mpp - scale) / scale) / mpp:.2g} times as "
        "large."
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
