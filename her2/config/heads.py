"""Config: heads, one section each; its `head` names the module, its other keys are arguments.

A head whose options a section here already has is one more name in that section's `head`.
"""

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from her2.config.base import Count, Positive, Section, Share

Width = Annotated[int, Field(ge=0)]


class SearchSection(Section):
    """Random search of a head's options, in every fold anew: the tune part chooses."""

    trials: Annotated[int, Field(ge=2)] = Field(description="combinations that each fold trains")
    options: dict[str, Annotated[list[bool | int | float], Field(min_length=1)]] = Field(
        min_length=1, description="option of the head -> values to draw from"
    )


class Projected(Section):
    """What every head has that reads tiles."""

    hidden: Width = Field(0, description="width of a projection (linear + ReLU) first; 0: none")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.25, description="on the input features")
    search: SearchSection | None = Field(
        None, description="random search of the options above; costs `trials` trainings a fold"
    )

    @model_validator(mode="after")
    def _searched_values_are_legal(self) -> "Projected":
        if self.search is None:
            return self
        legal = sorted(set(type(self).model_fields) - {"head", "search"})
        for name, values in self.search.options.items():
            if name not in legal:
                raise ValueError(f"search.options: {name!r} is none of {', '.join(legal)}")
            for value in values:
                self.with_options({name: value})
        count = math.prod(len(values) for values in self.search.options.values())
        if self.search.trials > count:
            raise ValueError(
                f"search.trials {self.search.trials} is more than the {count} combinations of "
                "search.options; lower it, or list more values"
            )
        return self

    def with_options(self, options: dict[str, Any]) -> "Projected":
        """This section with some options changed, and no search.

        Raises:
            ValueError: naming the option whose value is not legal.
        """
        try:
            return type(self).model_validate(self.model_dump(exclude={"search"}) | options)
        except ValidationError as error:
            found = error.errors()[0]
            name = found["loc"][0] if found["loc"] else "options"
            raise ValueError(f"search.options.{name}: {found['input']!r}: {found['msg']}") from None


class Attending(Projected):
    """What every head has that learns attention (Ilse 2018)."""

    hidden: Width = Field(64, description="width of a projection (linear + ReLU) first; 0: none")
    attention: Count = Field(128, description="width of the attention's hidden layer")
    gated: bool = Field(True, description="gated attention, equation 9 of the paper; else 8")


class PoolingSection(Projected):
    """Mean or max pooling."""

    head: Literal["mean", "max"] = Field("mean", description="which; the section's name may say it")


class AttentionSection(Attending):
    """Attention-based MIL, with one map or one map an output."""

    head: Literal["abmil", "multibranch"] = Field(
        "abmil", description="which; the section's name may say it"
    )


class AdditiveSection(Attending):
    """Additive attention-MIL (Javed 2022): tiles have contributions."""

    head: Literal["additive"] = Field(
        "additive", description="which; the section's name may say it"
    )
    classifier: Count = Field(64, description="width of the tile classifier's hidden layer")


class ClamSection(Attending):
    """CLAM (Lu 2021) with one map, or one an output; defaults of the paper."""

    head: Literal["clam_sb", "clam_mb"] = Field(
        "clam_sb", description="which; the section's name may say it"
    )
    hidden: Width = Field(512, description="width of a projection (linear + ReLU) first; 0: none")
    attention: Count = Field(256, description="width of the attention's hidden layer")
    instances: Count = Field(8, description="tiles labelled at each end of the attention")
    instance_weight: Share = Field(0.3, description="of the tiles' loss in the whole")
    subtyping: bool = Field(
        False, description="tiles also speak against the classes that the slide is not of"
    )


class DualStreamSection(Projected):
    """DSMIL (Li 2021); defaults of the authors' code."""

    head: Literal["dsmil"] = Field("dsmil", description="which; the section's name may say it")
    query: Count = Field(128, description="width in which tiles are compared")


class TransMILSection(Projected):
    """TransMIL (Shao 2021); defaults of the authors' code."""

    head: Literal["transmil"] = Field(
        "transmil", description="which; the section's name may say it"
    )
    hidden: Annotated[int, Field(ge=8, multiple_of=8)] = Field(512, description="width")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="on the input features")
    landmarks: Count = Field(256, description="longer sequences of tiles are approximated by these")


class LogisticSection(Section):
    """Logistic regression of the mean embedding; of `training` it reads `balance` and `select`."""

    head: Literal["logistic"] = Field(
        "logistic", description="which; the section's name may say it"
    )
    strengths: tuple[Positive, ...] = Field(
        (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        min_length=1,
        description="C, the inverse of the penalty; the tune part picks one",
    )


class _TagFromKey:
    """In YAML the key may name the head; so the JSON schema lets more than one section match."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": handler(core_schema)["oneOf"]}


HeadSection = Annotated[
    PoolingSection
    | AttentionSection
    | AdditiveSection
    | ClamSection
    | DualStreamSection
    | TransMILSection
    | LogisticSection,
    Field(discriminator="head"),
    _TagFromKey,
]

HEADS: dict[str, type[Section]] = {
    name: section
    for section in get_args(get_args(HeadSection)[0])
    for name in get_args(section.model_fields["head"].annotation)
}
"""Head -> its section."""
