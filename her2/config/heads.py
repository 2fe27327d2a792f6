"""Config: the section of a head, one of those that the modules of `her2.heads` declare."""

from typing import TYPE_CHECKING, Annotated, TypeAlias, Union

from pydantic import Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from her2.heads import HeadOptions, discover

HEADS = discover()
"""Head -> config section."""


class _TagFromKey:
    """A marker that lets several sections match in the JSON schema, as YAML may omit `head`."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": handler(core_schema)["oneOf"]}


if TYPE_CHECKING:
    HeadSection: TypeAlias = HeadOptions
else:
    HeadSection = Annotated[
        Union[tuple(HEADS.values())],  # noqa: UP007 - the sections are known when this runs
        Field(discriminator="head"),
        _TagFromKey,
    ]
