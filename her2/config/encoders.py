"""Config: encoders, their pre-training, and embedding."""

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from her2.config import catalogue
from her2.core.errors import UserError
from her2.core.paths import BY_USER, NodePath, UserPath, user_path
from her2.core.section import Batch, Epochs, Mpp, Name, NotNegative, Positive, Section, Share
from her2.core.types import Domain, Feature
from her2.libraries import NAMES, library

if TYPE_CHECKING:
    Source = str
else:
    Source = Literal[(*NAMES, "catalogue", "random", "checkpoint", "pretrain", "python")]
WEIGHTS_FILES = ("weights.safetensors", "model.safetensors", "pytorch_model.bin")
"""Weights files in a folder: of this project, or downloaded from a hub."""
Precision = Literal["auto", "float32", "bfloat16", "float16"]


def _code_as_user_means(value: Any, info: ValidationInfo) -> Any:
    if info.context != BY_USER or not isinstance(value, str) or ":" not in value:
        return value
    path, _, function = value.rpartition(":")
    return f"{user_path(path)}:{function}"


Module = Annotated[
    str,
    BeforeValidator(_code_as_user_means),
    Field(pattern=r"^[^:]+\.py:[A-Za-z][A-Za-z0-9_]*$"),
]
Means = Annotated[float, Field(ge=0, le=1)]
Deviations = Annotated[float, Field(gt=0, le=1)]


def _filled_by_the_catalogue(schema: dict[str, Any]) -> None:
    """Require of an encoder of the catalogue only what its row cannot give, of code no model."""
    rest = [name for name in schema["required"] if name not in ("source", "model")]
    schema["required"] = ["source"]
    schema["if"] = {"properties": {"source": {"const": "catalogue"}}}
    schema["then"] = {"required": ["model"]}
    schema["else"] = {
        "required": rest,
        "if": {"properties": {"source": {"const": "python"}}},
        "then": {"required": ["module"]},
        "else": {"required": ["model"]},
    }


class EncoderSection(Section):
    """A frozen patch encoder: the source of its weights, and its input."""

    model_config = ConfigDict(json_schema_extra=_filled_by_the_catalogue)

    source: Source = Field(
        description=f"{' or '.join(NAMES)}: published weights; "
        "catalogue: a row of `her2 encoders`; random: seeded initialisation; "
        "checkpoint: a local file; pretrain: trained here on `data`; python: a function of yours"
    )
    model: str = Field(
        pattern=rf"^(({'|'.join(NAMES)})/)?[A-Za-z0-9][A-Za-z0-9._-]*$",
        description=f"architecture: {' or '.join(f'{name}/NAME' for name in NAMES)}; catalogue: "
        "the row's name; python: leave it out",
    )
    mpp: Mpp = Field(
        description="um/px of the patches; catalogue: default that of the row, if it has one"
    )
    size: Annotated[int, Field(ge=16, le=2048)] = Field(
        description="px per side of the patches; catalogue: default that of the row"
    )
    checkpoint: UserPath | None = Field(
        None,
        description="source checkpoint: .safetensors, or .pt/.pth/.bin with tensors only; source "
        "catalogue: the row's weights file, if already downloaded",
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{64}$")] | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="SHA-256 of the file of `checkpoint`, which is refused if it has another; for "
        "source catalogue only needed to use, on purpose, another file than the row's",
    )
    module: Module | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="source python: `FILE.py:FUNCTION`, a function without arguments that returns "
        "the network (docs/weights.md); run only with HER2_ALLOW_CODE=1 in the environment",
    )
    data: Name | None = Field(None, description="source pretrain: a patch set of `patches`")
    init: Name | None = Field(
        None,
        description="source pretrain: the initial weights: random, published (ImageNet), or "
        "another encoder's name",
    )
    mean: tuple[Means, Means, Means] | None = Field(
        None,
        exclude_if=lambda value: value is None,  # or every existing encoder would be made again
        description="mean of R, G, B in [0, 1], subtracted from each patch; needs `std`; default: "
        "the mean of the library's published weights; source pretrain: that of the patches",
    )
    std: tuple[Deviations, Deviations, Deviations] | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="standard deviation of R, G, B in [0, 1], by which the patch is then divided; "
        "needs `mean`",
    )
    domain: Domain | None = Field(
        None,
        description="training images; default: the catalogue's entry, none for random weights, "
        "for published weights that of the library "
        f"({', '.join(f'{name}: {library(name).domain}' for name in NAMES)})",
    )
    allow_overlap: bool = Field(
        False,
        description="do not stop if the pre-training data contain patients of the cohort; every "
        "result of the encoder is marked instead",
    )
    feature: Feature = Field("pooled", description="part of the model's output that is used")
    precision: Precision = Field(
        "auto", description="auto: bfloat16 if the hardware supports it, else float32 (CPU)"
    )
    storage: Literal["float16", "float32"] = Field(
        "float16", description="type of the stored features; float32 for values beyond 65,504"
    )
    augmentations: Annotated[int, Field(ge=0, le=16)] = Field(
        0,
        exclude_if=operator.not_,  # or every existing encoder would be made again
        description="number of augmented views of each tile that are embedded beside it, and from "
        "which training draws too; embedding takes 1 + this number times as long and as much room",
    )

    @model_validator(mode="before")
    @classmethod
    def _catalogue_row(cls, values: Any) -> Any:
        """Fill in missing size, um/px, feature, precision and storage from the catalogue's row."""
        if not isinstance(values, Mapping):
            return values
        source = values.get("source")
        if source == "random":
            return {"domain": "none", **values}
        if source == "python" and "model" not in values and isinstance(values.get("module"), str):
            return {"model": values["module"].rpartition(":")[2], **values}
        if source in NAMES:
            return {"domain": library(source).domain, **values}
        if source != "catalogue":
            return values
        if not isinstance(values.get("model"), str):
            return values
        try:
            row = catalogue.row(values["model"])
        except UserError as error:
            raise ValueError(str(error).removeprefix("encoders: ")) from None
        return {**row.defaults(), **values}

    @model_validator(mode="after")
    def _mean_and_std(self) -> "EncoderSection":
        if (self.mean is None) != (self.std is None):
            raise ValueError("`mean` and `std` must be given together")
        if self.mean is not None and self.source in ("catalogue", "pretrain"):
            raise ValueError(f"source {self.source} has its own `mean` and `std`; leave them out")
        return self

    @model_validator(mode="after")
    def _library_and_checkpoint(self) -> "EncoderSection":
        if self.sha256 is not None and self.checkpoint is None:
            raise ValueError("`sha256` is that of the file of `checkpoint`, which is not given")
        if self.source == "catalogue":
            return self
        if (self.source == "checkpoint") != (self.checkpoint is not None):
            raise ValueError(
                "`source: checkpoint` needs `checkpoint: PATH`, which only it and `source: "
                "catalogue` allow"
            )
        if self.module is not None and self.source != "python":
            raise ValueError("`module` is for `source: python` alone")
        if (self.source == "pretrain") != (self.data is not None and self.init is not None):
            raise ValueError("`source: pretrain` needs `data` and `init`, which only it allows")
        if self.domain is None:
            raise ValueError(
                "state which images it was trained on: `domain: he`, ihc, he_ihc, natural or none"
            )
        if self.source == "python":
            self._check_code()
        if "/" not in self.model and self.source in ("random", "checkpoint", "pretrain"):
            named = " or ".join(f"{name}/{self.model}" for name in NAMES)
            raise ValueError(f"`model` {self.model!r} does not name the library; write {named}")
        if self.source in NAMES and self.library != self.source:
            raise ValueError(f"source {self.source} cannot load {self.model}, of another library")
        return self

    def _check_code(self) -> None:
        """Raise ValueError if the keys do not fit `source: python`."""
        if self.module is None or self.model != self.module.rpartition(":")[2]:
            raise ValueError("`source: python` needs `module: FILE.py:FUNCTION`, and no `model`")
        if self.mean is None:
            raise ValueError(
                "`source: python` needs `mean` and `std` of R, G, B in [0, 1]: [0, 0, 0] and "
                "[1, 1, 1] if the network normalises patches itself"
            )
        if self.feature != "pooled":
            raise ValueError(
                "`source: python` has no `feature`; the network gives the features themselves"
            )

    @property
    def library(self) -> str:
        """Return the name of the library that builds the architecture."""
        if self.source == "catalogue":
            return catalogue.row(self.model).library
        return self.model.split("/")[0] if "/" in self.model else self.source

    @property
    def architecture(self) -> str:
        """Return the model's name in its library."""
        if self.source == "catalogue":
            return catalogue.row(self.model).architecture
        return self.model.split("/")[-1]

    @property
    def alone(self) -> "EncoderSection":
        """Return what determines the encoder: without statements about it, and its views."""
        return self.model_copy(
            update={"domain": "none", "allow_overlap": False, "augmentations": 0}
        )

    def local_weights(self) -> Path | None:
        """Return the weights file: `checkpoint`, or the weights in that folder; None without it.

        For `source: python` it is the file of the code.

        Raises:
            UserError: the file does not exist.
        """
        if self.module is not None:
            return Path(self.module.rpartition(":")[0])
        path = self.checkpoint
        if path is None or path.is_file():
            return path
        if not path.is_dir():
            raise UserError(f"encoders: checkpoint {str(path)!r} does not exist. Check the path.")
        published = catalogue.row(self.model).file if self.source == "catalogue" else None
        names = dict.fromkeys((*([published] if published else []), *WEIGHTS_FILES))
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise UserError(
                f"encoders: checkpoint {str(path)!r} is a folder without {' or '.join(names)}. "
                "Set it to the weights file."
            )
        return found[0]

    @property
    def grid(self) -> str:
        """Return its grid, e.g. `224px-0.5mpp`; encoders with the same grid share their tiles."""
        return f"{self.size}px-{self.mpp:.10g}mpp"


class EmbeddingSection(Section):
    """Options of embedding, of which only `max_failed_tiles` changes the results."""

    batch_size: Batch = Field(
        64,
        description="maximum number of patches per batch (a CPU uses smaller batches that fit its "
        "caches); does not change features",
    )
    compile: Literal["auto", "never", "always"] = Field(
        "auto",
        description="torch.compile; auto: if it saves several times its own duration; does not "
        "change features",
    )
    max_failed_tiles: Share = Field(
        0.05, description="slides with a larger share of unreadable tiles are excluded"
    )
    scratch: NodePath | None = Field(
        None,
        min_length=1,
        description="folder on a local disk of the node, such as $TMPDIR on a cluster: each slide "
        "is copied there before it is read and deleted afterwards. For slides on a slow network "
        "disk; does not change features",
    )


class PretrainingSection(Section):
    """Pre-training of a backbone on labelled patches, for `source: pretrain`."""

    epochs: Epochs = Field(
        20, description="maximum number of epochs; each draws as many patches as are in training"
    )
    batch_size: Batch = Field(64, description="patches per step")
    learning_rate: Positive = Field(1e-3, description="peak learning rate of AdamW")
    weight_decay: NotNegative = Field(
        0.05, description="weight decay of AdamW, not of biases and normalisation layers"
    )
    warmup: Share = Field(
        0.1,
        description="share of the steps in which the learning rate rises, before a cosine decay",
    )
    validation: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.2,
        description="share of the cases (patches, if cases are unknown) that selects the epoch, "
        "unless the data set has its own validation set",
    )
    patience: Epochs = Field(8, description="epochs without improvement before training stops")
    augmentation: Annotated[float, Field(ge=0, le=2)] = Field(
        1.0,
        description="strength of random changes of stain, brightness and scale (1: stain within "
        "15 %, scale within 10 %); flips and rotations are always on",
    )
    precision: Precision = Field(
        "auto", description="auto: bfloat16 if the hardware supports it, else float32"
    )
