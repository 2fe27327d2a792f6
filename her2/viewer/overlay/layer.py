"""`her2 view`: the declaration of a layer over a slide, what it is asked, and what it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from her2.core.errors import UserError
from her2.slides.slide import Slide
from her2.viewer.drawn import DrawnSlides
from her2.viewer.overlay.attention import Attended, Attention
from her2.viewer.overlay.raster import Cells
from her2.viewer.overlay.retiling import Retiled, Retiling
from her2.viewer.run import NO_FILE, PREDICTED
from her2.viewer.state import Asked
from her2.viewer.stored import PlacedTiles, Stored

Kind = Literal["image", "outline", "grid"]
Scale = Literal["rank", "times"]
SCALES: tuple[Scale, ...] = ("rank", "times")
"""What colours stand for: a tile's place among the tiles of its slide, or its value."""


@dataclass(frozen=True)
class Seen:
    """What a layer is asked to show: a slide, and whatever of a model it needs, read when asked.

    Attributes:
        asked: the slide.
        model: key of the model, None where the run has none.
        run: name of the fold's model; None: the first that tested the slide.
        of_class: the output whose map is shown; None: that of the predicted class.
        scale: what colours stand for.
    """

    asked: Asked
    model: str | None = None
    run: str | None = None
    of_class: str | None = None
    scale: Scale = "rank"

    @property
    def key(self) -> tuple[object, ...]:
        """Return what tells it from others."""
        one = self.asked
        return one.cohort.key, one.slide_id, self.model, self.run, self.of_class, self.scale

    @cached_property
    def attended(self) -> Attended:
        """Return the tiles with what the model stored of them.

        Raises:
            UserError: there is none, with the reason.
        """
        one = self.asked
        if one.cohort.key == PREDICTED:
            return Attended(one.viewer.part(DrawnSlides).of(one.cohort, one.slide_id), None)
        if self.model is None:
            raise UserError("the run has no evaluated model.")
        kept = one.viewer.part(Attention)
        return kept.of(one.viewer, one.cohort, one.slide_id, self.model, self.run)

    @property
    def encoder(self) -> str:
        """Return the encoder of the model, or the first of the run."""
        run = self.asked.viewer.run
        return run.model(self.model).encoder if self.model else next(iter(run.config.encoders))

    @property
    def grid(self) -> str:
        """Return the name of the encoder's grid.

        Raises:
            UserError: the model is left over from another config, which had its encoder.
        """
        known = self.asked.viewer.run.config.encoders
        if self.encoder not in known:
            raise UserError(
                f"the encoder {self.encoder} is not in the config of the run any more; there are "
                f"{', '.join(known)}."
            )
        return known[self.encoder].grid

    @cached_property
    def placed(self) -> PlacedTiles:
        """Return the tiles that the encoder saw.

        Raises:
            UserError: there are none, with the reason.
        """
        one = self.asked
        return one.viewer.part(Stored).placed(one.viewer, one.cohort, one.slide_id, self.encoder)

    def slide(self) -> Slide:
        """Return the slide's file, open.

        Raises:
            UserError, SlideError: there is none, or it cannot be read.
        """
        if not self.asked.cohort.row(self.asked.slide_id).path:
            raise UserError(NO_FILE)
        return self.asked.open().slide

    def retiled(self) -> Retiled:
        """Return what tiling finds on the slide.

        Raises:
            ComputingError: it is being computed.
            UserError, SlideError, TileError: it cannot be.
        """
        one = self.asked
        return one.viewer.part(Retiling).find(one.viewer, one.cohort, one.slide_id, self.grid)


@dataclass(frozen=True, slots=True)
class Tick:
    """A number beside a bar of colours, at a place from 0 to 1 along it."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A legend of numbers: colours in equal steps from low to high, with their numbers."""

    title: str
    colours: Sequence[str]
    ticks: Sequence[Tick]
    words: str = ""


@dataclass(frozen=True, slots=True)
class Category:
    """A row of a legend of categories, with how many there are; `dashed` is how it is drawn."""

    colour: str
    label: str
    count: int | None = None
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Categories:
    """A legend of categories."""

    title: str
    rows: Sequence[Category]
    words: str = ""


Legend = Bar | Categories


@dataclass(frozen=True, slots=True)
class Painted:
    """A picture of one px per cell, `colours` (at most 255, 3) by the `levels` of tiles (n,)."""

    cells: Cells
    levels: NDArray[np.uint8]
    colours: NDArray[np.uint8]
    legend: Legend
    note: str = ""


@dataclass(frozen=True, slots=True)
class Outlined:
    """Areas as GeoJSON features in level-0 px.

    Their properties are `colour`, `label`, and `dashed` for those that are beside the point.
    """

    features: Sequence[Mapping[str, Any]]
    legend: Legend
    note: str = ""


@dataclass(frozen=True, slots=True)
class Gridded:
    """Tiles that the page draws itself: corners int32 (n, 2) and size in level-0 px."""

    coords: NDArray[np.int32]
    tile: tuple[float, float]
    legend: Legend
    note: str = ""


Made = Painted | Outlined | Gridded


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer over a slide: `LAYER` of a module in `her2.viewer.layers`.

    Attributes:
        name: that of the module, and what addresses call it.
        title: its name for people.
        kind: what `make` returns: `image` (`Painted`), `outline` (`Outlined`), `grid` (`Gridded`).
        order: its place in the list, and from below on the slide; no two layers share one.
        make: makes it for what is asked, or raises a UserError or SlideError with the reason why
            there is none. `ComputingError` says that it takes a while; the page asks again.
        opacity: at first, 0 to 1.
        shown: whether it is on where the address does not say.
        options: which choices of the panel it follows, of `model`, `run`, `class` and `scale`.
    """

    name: str
    title: str
    kind: Kind
    order: int
    make: Callable[[Seen], Made]
    opacity: float = 0.7
    shown: bool = False
    options: frozenset[str] = field(default_factory=frozenset)
