"""Every stage: the base class of config sections, and the value types that they share."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    StringConstraints,
    WrapSerializer,
    model_validator,
)

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Pattern of ids and names, which become parts of paths: no separator, space or leading dot."""


def is_name(text: str) -> bool:
    """Return whether a text may be a part of a path, as ids and names are."""
    return re.fullmatch(NAME_PATTERN, text) is not None and len(text) <= 128


Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=128)]
ClassName = Name | Annotated[str, StringConstraints(pattern=r"^[0-9]\+$")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1_000_000)]
NotNegative = Annotated[float, Field(ge=0, le=1_000_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Batch = Annotated[int, Field(ge=1, le=16_384)]
"""Patches or slides that are in memory at the same time."""
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Units = Annotated[int, Field(ge=1, le=16_384)]
"""Units of a layer: the weights between two of the widest fill 1 GB."""
Resamples = Annotated[int, Field(ge=100, le=100_000)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
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

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _a_truth_is_no_number(cls, values: Any) -> Any:
        """Let `seeds: true` be refused as a text would be; pydantic reads it as 1."""
        if not isinstance(values, Mapping):
            return values
        truths = {name: _as_words(values[name]) for name in _number_fields(cls) & values.keys()}
        changed = {name: value for name, value in truths.items() if value is not None}
        return {**values, **changed} if changed else values


def _as_words(value: Any) -> Any:
    """Return a value with true and false as texts, which are no numbers; None if it has none."""
    if isinstance(value, bool):
        return str(value).lower()
    items = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping | list | tuple) or not any(
        isinstance(item, bool) for item in items
    ):
        return None
    words = [str(item).lower() if isinstance(item, bool) else item for item in items]
    return dict(zip(value, words, strict=True)) if isinstance(value, Mapping) else words


@cache
def _number_fields(section: type[Section]) -> frozenset[str]:
    """Return the fields of a section that hold numbers and no truth values."""
    found = set()
    for name, field in section.model_fields.items():
        kinds = set(_plain_types(field.annotation))
        if kinds & {int, float} and bool not in kinds:
            found.add(name)
    return frozenset(found)


def _plain_types(annotation: Any) -> Iterator[Any]:
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from _plain_types(part)


def unbounded(section: type[Section]) -> list[str]:
    """Return the names of a section's fields that are, or hold, numbers without both limits.

    Without limits, a slip of the keyboard is noticed when the memory is full.
    """
    return [
        name
        for name, field in section.model_fields.items()
        if not _is_bounded(field.annotation, field.metadata)
    ]


def _is_bounded(annotation: Any, marks: Iterable[Any]) -> bool:
    """Return whether a type's numbers have limits, with the marks of what is around it."""
    if get_origin(annotation) is Annotated:
        annotation, *own = get_args(annotation)
        marks = [*marks, *(mark for one in own for mark in getattr(one, "metadata", [one]))]
    if annotation in (int, float):
        keys = ("ge", "gt", "le", "lt")
        said = {key for mark in marks for key in keys if getattr(mark, key, None) is not None}
        return bool(said & {"ge", "gt"}) and bool(said & {"le", "lt"})
    return all(_is_bounded(part, marks) for part in get_args(annotation))
