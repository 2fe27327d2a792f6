"""Every stage: the base class of config sections, and the value types that they share."""

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    StringConstraints,
    WrapSerializer,
)

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Pattern of ids and names, which become parts of paths: no separator, space or leading dot."""

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=128)]
ClassName = Name | Annotated[str, StringConstraints(pattern=r"^[0-9]\+$")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Mpp = Annotated[float, Field(ge=0.05, le=20)]
"""Micrometres per pixel, from finer than any scanner to a thumbnail."""


def _from_pairs(value: Any) -> Any:
    pairs = isinstance(value, list | tuple) and all(
        isinstance(item, list | tuple) and len(item) == 2 for item in value
    )
    return dict(value) if pairs else value


def _to_pairs(value: Any, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
    plain = handler(value)
    return list(plain.items()) if info.context == KEEP_ORDER else plain


KEEP_ORDER = "keep order"
"""Context of a JSON dump that writes ordered mappings as lists of pairs. Canonical JSON sorts keys,
which would turn the scale low, mid, high into another one."""

Ordered = (BeforeValidator(_from_pairs), WrapSerializer(_to_pairs, when_used="json"))
"""Annotation of such a mapping: `Annotated[dict[...], *Ordered]`."""


class Section(BaseModel):
    """A part of the config: immutable, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
