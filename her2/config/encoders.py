"""Config: encoders, how they are pre-trained and how they are run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from her2.config import catalogue
from her2.core.errors import UserError
from her2.core.section import Count, Mpp, Name, Positive, Section, Share
from her2.core.types import Domain, Feature
from her2.libraries import NAMES, library

if TYPE_CHECKING:
    Source = str
else:
    Source = Literal[(*NAMES, "catalogue", "random", "checkpoint", "pretrain")]
WEIGHTS_FILES = ("weights.safetensors", "model.safetensors", "pytorch_model.bin")
"""Weights in a folder: this project's, or a downloaded copy of a hub's."""
Precision = Literal["auto", "float32", "bfloat16", "float16"]


Means = Annotated[float, Field(ge=0, le=1)]
Deviations = Annotated[float, Field(gt=0, le=1)]


class EncoderSection(Section):
    """One frozen patch encoder: where its weights come from and what patch it is given."""

    source: Source = Field(
        description=f"{' or '.join(NAMES)}: published weights; "
        "catalogue: a row of `her2 encoders`; random: seeded initialisation; "
        "checkpoint: a local file; pretrain: trained here on `data`"
    )
    model: str = Field(
        pattern=rf"^(({'|'.join(NAMES)})/)?[A-Za-z0-9][A-Za-z0-9._-]*$",
        description=f"architecture: {' or '.join(f'{name}/NAME' for name in NAMES)}; catalogue: "
        "the row's name",
    )
    mpp: Mpp = Field(description="um/px of the patches")
    size: Annotated[int, Field(ge=16, le=2048)] = Field(description="px a side of the patches")
    checkpoint: Path | None = Field(
        None,
        description="source checkpoint: .safetensors, or .pt/.pth/.bin of tensors only; source "
        "catalogue: the row's weights file, downloaded before",
    )
    data: Name | None = Field(None, description="source pretrain: a patch set of `patches`")
    init: Name | None = Field(
        None,
        description="source pretrain: the weights to begin from: random, published (ImageNet), or "
        "another encoder's name",
    )
    mean: tuple[Means, Means, Means] | None = Field(
        None,
        exclude_if=lambda value: value is None,  # or every encoder made before would be made again
        description="of R, G, B in [0, 1], subtracted from each patch; goes with `std`; default: "
        "those of the library's published weights; source pretrain: those of the patches",
    )
    std: tuple[Deviations, Deviations, Deviations] | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="of R, G, B in [0, 1], by which what is left is divided",
    )
    domain: Domain | None = Field(
        None,
        description="images it was trained on; default: the catalogue's, none for random weights, "
        "natural for those of timm and torchvision",
    )
    allow_overlap: bool = Field(
        False,
        description="do not stop when the pre-training data hold patients of the cohort; every "
        "figure of the encoder is marked instead",
    )
    feature: Feature = Field("pooled", description="what is kept of the model's output")
    precision: Precision = Field(
        "auto", description="auto: bfloat16 where the hardware has it, else float32 (CPU)"
    )
    storage: Literal["float16", "float32"] = Field(
        "float16", description="type of the stored features; float32 for values beyond 65,504"
    )

    @model_validator(mode="before")
    @classmethod
    def _catalogue_row(cls, values: Any) -> Any:
        """A row gives size, um/px, feature, precision and storage where the config does not."""
        if not isinstance(values, Mapping):
            return values
        source = values.get("source")
        if source == "random":
            return {"domain": "none", **values}
        if source in NAMES:
            return {"domain": library(source).domain, **values}
        if source != "catalogue":
            return values
        try:
            row = catalogue.row(str(values.get("model")))
        except UserError as error:
            raise ValueError(str(error)) from None
        return {**row.defaults(), **values}

    @model_validator(mode="after")
    def _mean_and_std(self) -> "EncoderSection":
        if (self.mean is None) != (self.std is None):
            raise ValueError("`mean` and `std` belong together")
        if self.mean is not None and self.source in ("catalogue", "pretrain"):
            raise ValueError(f"source {self.source} has its own `mean` and `std`; leave them out")
        return self

    @model_validator(mode="after")
    def _library_and_checkpoint(self) -> "EncoderSection":
        if self.source == "catalogue":
            if self.checkpoint is not None and catalogue.row(self.model).hub is None:
                raise ValueError(f"{self.model} comes from its library and takes no `checkpoint`")
            return self
        if (self.source == "checkpoint") != (self.checkpoint is not None):
            raise ValueError(
                "`checkpoint: PATH` belongs to `source: checkpoint` or `source: catalogue`"
            )
        if (self.source == "pretrain") != (self.data is not None and self.init is not None):
            raise ValueError("`data` and `init` belong to `source: pretrain`, and only there")
        if self.domain is None:
            raise ValueError(
                "say which images it was trained on: `domain: he`, ihc, he_ihc, natural or none"
            )
        if "/" not in self.model and self.source in ("random", "checkpoint", "pretrain"):
            named = " or ".join(f"{name}/{self.model}" for name in NAMES)
            raise ValueError(f"say which library: {named}")
        if self.source in NAMES and self.library != self.source:
            raise ValueError(f"source {self.source} cannot load {self.model}")
        return self

    @property
    def library(self) -> str:
        """Name of the library that builds the architecture."""
        if self.source == "catalogue":
            return catalogue.row(self.model).library
        return self.model.split("/")[0] if "/" in self.model else self.source

    @property
    def architecture(self) -> str:
        """The model's name within its library."""
        if self.source == "catalogue":
            return catalogue.row(self.model).architecture
        return self.model.split("/")[-1]

    def local_weights(self) -> Path | None:
        """The file that `checkpoint` means: itself, or the weights in the folder it names.

        Raises:
            UserError: there is none.
        """
        path = self.checkpoint
        if path is None or path.is_file():
            return path
        if not path.is_dir():
            raise UserError(f"encoders: checkpoint {str(path)!r} does not exist.")
        found = [path / name for name in WEIGHTS_FILES if (path / name).is_file()]
        if not found:
            raise UserError(
                f"encoders: checkpoint {str(path)!r} is a folder without "
                f"{' or '.join(WEIGHTS_FILES)}; name the file itself."
            )
        return found[0]

    @property
    def grid(self) -> str:
        """The tile grid it reads, e.g. `224px-0.5mpp`: encoders that agree share their tiles."""
        return f"{self.size}px-{self.mpp:.10g}mpp"


class EmbeddingSection(Section):
    """How stage 1 runs; the features depend on `max_failed_tiles` alone."""

    batch_size: Count = Field(
        64,
        description="patches a batch, at most (a CPU core takes what its caches hold); changes no "
        "feature",
    )
    compile: Literal["auto", "never", "always"] = Field(
        "auto",
        description="torch.compile; auto: where it saves several times what it costs; changes no "
        "feature",
    )
    max_failed_tiles: Share = Field(
        0.05, description="a slide with a larger share of unreadable tiles is excluded"
    )
    scratch: str | None = Field(
        None,
        min_length=1,
        description="a folder on a disk of the machine that reads, such as $TMPDIR on a cluster: "
        "each slide is copied there before it is read, and deleted after. For slides on a slow "
        "network disk; changes no feature",
    )


class PretrainingSection(Section):
    """How `source: pretrain` trains a backbone on labelled patches."""

    epochs: Count = Field(
        20, description="at most; an epoch draws as many patches as the train part has"
    )
    batch_size: Count = Field(64, description="patches a step")
    learning_rate: Positive = Field(1e-3, description="of AdamW, at its peak")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.05, description="of AdamW; biases and normalisation layers are not decayed"
    )
    warmup: Share = Field(
        0.1, description="share of the steps over which the learning rate rises; then a cosine"
    )
    validation: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.2,
        description="share of the cases (patches, where cases are unknown) that picks the epoch, "
        "unless the set brings a validation part",
    )
    patience: Count = Field(8, description="epochs without a better one before stopping")
    augmentation: Annotated[float, Field(ge=0, le=2)] = Field(
        1.0,
        description="strength of the changes of stain, light and scale (1: stain within 15 %, "
        "scale within 10 %); flips and turns are always on",
    )
    precision: Precision = Field(
        "auto", description="auto: bfloat16 where the hardware has it, else float32"
    )
