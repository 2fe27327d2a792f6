"""Config and stage 2, train: the heads, one file each, and what a head's file declares.

Every module of this package is a head (or a family of them), found by listing the package:

- its docstring states the equation, the source, and where the implementation departs from it;
- a section, a subclass of `Projected`, `Attending` or `Fitted`, holds the head's name, its options
  with their defaults, the words the report uses for it and the works it cites;
- a function `network(options, dimension, outputs)` builds it from the parts in `her2.heads.layers`.

Every Snakemake process parses the config and so imports these modules: they import torch inside
`network`, never at the top.
"""

import math
import pkgutil
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, get_args

from pydantic import Field, ValidationError, model_validator

from her2.core.errors import UserError
from her2.core.section import Section, Units, unbounded

if TYPE_CHECKING:
    from her2.heads.layers import Head


@dataclass(frozen=True, slots=True)
class Words:
    """A mark with an option's name in the report: `Annotated[Units, Words("query width")]`."""

    text: str


Width = Annotated[int, Field(ge=0, le=16_384), Words("projection width")]
AttentionWidth = Annotated[Units, Words("attention width")]


_Searched = (
    bool
    | Annotated[int, Field(ge=-1_000_000, le=1_000_000)]
    | Annotated[float, Field(ge=-1_000_000, le=1_000_000)]
)
"""A value of a search, which the option's own bounds then judge."""


def named(name: str) -> Any:
    """Return the field `head` of a section, which is the tag of the union of all heads."""
    return Field(name, description="which head; the section's name can state it instead")


def projected(width: int) -> Any:
    """Return the field `hidden` of a section, with this default."""
    words = "width of a first projection (linear + ReLU); 0: no projection"
    return Field(width, description=words)


class HeadOptions(Section):
    """A head as the config names it, the base class of every head's section.

    Attributes:
        head: the name, a `Literal`.
        label: the description that follows the head's name in the report.
        citations: works cited after the label, in order: authors and year -> where the work
            appeared.
        trained_by_gradient: whether it has epochs, and so can be trained without a tuning set.
        reads_order: whether the order of the tiles changes its logits.
        even: whether every tile of a slide has the same attention.
        takes_vectors: whether it can take one vector of the whole slide in place of its tiles.
    """

    label: ClassVar[str]
    citations: ClassVar[Mapping[str, str]]
    trained_by_gradient: ClassVar[bool] = True
    reads_order: ClassVar[bool] = False
    even: ClassVar[bool] = False
    takes_vectors: ClassVar[bool] = False

    if TYPE_CHECKING:
        head: str

    @classmethod
    def words(cls, option: str) -> str:
        """Return the report's name of an option."""
        marks = [mark for mark in cls.model_fields[option].metadata if isinstance(mark, Words)]
        return marks[0].text if marks else option.replace("_", " ")

    def bytes_per_tile(self, dimension: int) -> int:
        """Return about how much memory a tile takes when its slide is predicted as one bag.

        Three float32 copies of what is held for each tile; a head whose `pool` makes more says so.
        """
        return 3 * 4 * (getattr(self, "hidden", 0) or dimension)

    def build(self, dimension: int, outputs: int) -> "Head":
        """Build the network for features of `dimension` and `outputs` logits; imports torch."""
        head: Head = import_module(type(self).__module__).network(self, dimension, outputs)
        return head


class SearchSection(Section):
    """Random search of a head's options, repeated in every fold; the tuning set chooses."""

    trials: Annotated[int, Field(ge=2, le=10_000)] = Field(
        description="combinations trained per fold"
    )
    options: dict[str, Annotated[list[_Searched], Field(min_length=1)]] = Field(
        min_length=1, description="option of the head -> values to draw from"
    )


class Projected(HeadOptions):
    """The options of every head that reads tiles."""

    hidden: Width = projected(0)
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.25, description="dropout rate of the input features"
    )
    search: SearchSection | None = Field(
        None, description="random search of the options above; trains `trials` models per fold"
    )

    @model_validator(mode="after")
    def _searched_values_are_legal(self) -> Self:
        if self.search is None:
            return self
        legal = sorted(set(type(self).model_fields) - {"head", "search"})
        for name, values in self.search.options.items():
            if name not in legal:
                raise ValueError(
                    f"search.options: {name!r} is not an option of this head; "
                    f"it has {', '.join(legal)}"
                )
            for value in values:
                self.with_options({name: value})
        count = math.prod(len(values) for values in self.search.options.values())
        if self.search.trials > count:
            raise ValueError(
                f"search.trials {self.search.trials} is more than the {count} combinations of "
                "search.options; lower it, or list more values"
            )
        return self

    def with_options(self, options: Mapping[str, Any]) -> Self:
        """Return this section with some options changed, and no search.

        Raises:
            ValueError: naming the option whose value is not legal.
        """
        try:
            return self.model_validate({**self.model_dump(exclude={"search"}), **options})
        except ValidationError as error:
            found = error.errors()[0]
            name = found["loc"][0] if found["loc"] else "options"
            raise ValueError(f"search.options.{name}: {found['input']!r}: {found['msg']}") from None


class Attending(Projected):
    """The options of every head that learns attention (Ilse 2018)."""

    hidden: Width = projected(64)
    attention: AttentionWidth = Field(128, description="width of the attention's hidden layer")
    gated: bool = Field(
        True, description="true: gated attention, equation 9 of the paper; false: equation 8"
    )


class Fitted(HeadOptions):
    """A linear classifier of the slide's mean embedding that scikit-learn fits.

    There are no epochs: the tuning set picks one of `estimators`. `network` builds mean pooling
    without a projection, into which the chosen coefficients are copied. Options that are lists
    hold one value for each estimator.

    Attributes:
        method: name of the fit, in a word or two.
        picked: the quantity that the tuning set picks.
    """

    trained_by_gradient: ClassVar[bool] = False
    even: ClassVar[bool] = True
    takes_vectors: ClassVar[bool] = True
    method: ClassVar[str]
    picked: ClassVar[str]

    @abstractmethod
    def estimators(self, *, balanced: bool) -> list[Any]:
        """Return unfitted linear classifiers; with `balanced`, each class weighs the same."""


def discover() -> dict[str, type[HeadOptions]]:
    """Return the section of every head by its name, sorted.

    Raises:
        UserError: a module of this package declares no head, or not all of one, or a name or a
            citation that another module has declared otherwise.
    """
    found: dict[str, type[HeadOptions]] = {}
    works: dict[str, str] = {}
    for item in pkgutil.iter_modules(__path__):
        if item.name == "layers":  # the parts of heads
            continue
        module = import_module(f"{__name__}.{item.name}")
        for section in _declared(module):
            for name in get_args(section.model_fields["head"].annotation):
                if name in found:
                    raise UserError(
                        f"{module.__file__}: the head {name!r} is also declared in "
                        f"{found[name].__module__}; choose another name."
                    )
                found[name] = section
            for work, where in section.citations.items():
                if works.setdefault(work, where) != where:
                    raise UserError(
                        f"{module.__file__}: {work!r} appeared in {where!r} according to this "
                        f"file and in {works[work]!r} according to another. If these are two "
                        f"works, name one of them '{work}b'."
                    )
    return dict(sorted(found.items()))


def _declared(module: ModuleType) -> list[type[HeadOptions]]:
    """Return the sections that a head's module declares: classes of its own with a `head`."""
    sections = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, HeadOptions)
        and value.__module__ == module.__name__
        and "head" in value.model_fields
    ]
    missing = [] if sections else ["a section with `head: Literal[...] = named(...)`"]
    missing += [] if callable(getattr(module, "network", None)) else ["a function `network`"]
    for section in sections:
        required = ["label", "citations"]
        required += ["method", "picked"] if issubclass(section, Fitted) else []
        missing += [f"{section.__name__}.{key}" for key in required if not hasattr(section, key)]
        missing += [
            f"the limits of {section.__name__}.{key} (such as `Count`, or `Field(ge=0, le=1)`)"
            for key in unbounded(section)
        ]
    if missing:
        raise UserError(
            f"{module.__file__}: declares no head: {', '.join(missing)} missing. Every module of "
            "this package must declare one; her2/heads/mean.py is a short example to copy."
        )
    return sections
