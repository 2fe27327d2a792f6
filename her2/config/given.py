"""Config: encoders whose features another program computed, `source: features`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from her2.config.encoders import EncoderSection
from her2.config.problems import Problems
from her2.core.paths import UserPath
from her2.core.section import Mpp, Name, Section
from her2.core.types import Domain

GRID = "given-"
"""Before the encoder's name in the name of its grid, which it shares with no other."""
_COMPUTING = {
    "model": "say in `identity` which encoder computed the features, and with what program",
    "checkpoint": "no weights are used here; name the folder of the feature files in `path`",
    **dict.fromkeys(
        ("data", "init", "mean", "std", "feature", "precision", "allow_overlap"),
        "leave it out, since nothing is computed here",
    ),
    "augmentations": "augmented views need the encoder itself, which is not here; leave it out",
    "storage": "leave it out: features keep the type that their files have",
}
"""Keys of encoders that are run here -> what to do about them."""


_FOLDER = {"type": "string", "format": "path"}
Folders = Annotated[
    tuple[UserPath, ...],
    BeforeValidator(lambda value: [value] if isinstance(value, str | Path) else value),
    WithJsonSchema({"anyOf": [_FOLDER, {"type": "array", "items": _FOLDER, "minItems": 1}]}),
]
"""One folder, or a list of folders."""


class GivenSection(Section):
    """Features that another program computed: where they are, and what they are."""

    source: Literal["features"] = Field(description="features: files of another program")
    path: Folders = Field(
        min_length=1,
        description="folder of the feature files, one a slide, or a list of such folders",
    )
    format: Name | None = Field(
        None,
        description="form of the files (docs/features.md lists them); default: found by content",
    )
    mpp: Mpp | None = Field(
        None, description="um/px of the patches; needed where the files do not tell"
    )
    size: Annotated[int, Field(ge=16, le=8192)] | None = Field(
        None, description="px per side of the patches; needed where the files do not tell"
    )
    identity: Annotated[str, Field(min_length=1, max_length=300)] = Field(
        description="which encoder and program computed them, with versions, as reports say it"
    )
    domain: Domain = Field("unknown", description="training images of the encoder")

    data: ClassVar[None] = None
    init: ClassVar[None] = None
    allow_overlap: ClassVar[bool] = False
    augmentations: ClassVar[int] = 0
    model: ClassVar[None] = None
    module: ClassVar[None] = None
    _name: str = PrivateAttr("")

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_computed(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            odd = [(key, why) for key, why in _COMPUTING.items() if key in values]
            if odd:
                raise Problems([(key, f"not with `source: features`; {why}") for key, why in odd])
        return values

    @property
    def grid(self) -> str:
        """Return its grid, e.g. `given-uni`: no other encoder has the same tiles."""
        return f"{GRID}{self._name}"

    def local_weights(self) -> None:
        """Return the weights file: there is none."""


def _kind(value: Any) -> str:
    source = value.get("source") if isinstance(value, Mapping) else getattr(value, "source", None)
    return "given" if source == "features" else "computed"


class _AnyOf:
    """A marker that writes the union into the JSON schema as `anyOf`, as editors know it."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": handler(core_schema)["oneOf"]}


ENCODERS: Mapping[str, type[Section]] = {"computed": EncoderSection, "given": GivenSection}
"""Kind of an encoder, which pydantic puts into the places of errors -> its section."""
if TYPE_CHECKING:
    AnyEncoder: TypeAlias = EncoderSection | GivenSection
else:
    AnyEncoder = Annotated[
        Annotated[EncoderSection, Tag("computed")] | Annotated[GivenSection, Tag("given")],
        Discriminator(_kind),
        _AnyOf,
    ]


def name_given(encoders: Mapping[str, AnyEncoder]) -> None:
    """Tell each section of given features the name that it has in the config."""
    for name, section in encoders.items():
        if isinstance(section, GivenSection):
            section._name = name
