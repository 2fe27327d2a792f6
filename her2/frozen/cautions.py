"""Where a slide lies outside of what a model was developed on, in plain language.

A caution does not say that a prediction is wrong. It says that nothing was measured for such a
slide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from her2.frozen.development import Count, Development
from her2.frozen.distribution import Distribution, shown
from her2.storage.facts import SlideFacts

What = Literal["um/px", "vendor", "scanner", "tissue area", "tiles", "appearance"]

MPP_TOLERANCE = 0.02
"""um/px may lie outside of the range by this share of it. Scanners of one model differ by less,
and tiles are resampled to an exact um/px, so that this changes no detail that an encoder sees."""
RANGE_TOLERANCE = 1e-5
"""Ranges are stored with six digits."""
FAR_PERCENT = 99.0
"""Percentile of the development's distances beyond which a slide is said to look different: of
slides like those of development, 1 in 100 is. With fewer than 100 slides that is nearly the
largest. Tissue area and number of tiles are compared with the whole range instead, as they alone
change a prediction less; a slide like the others lies outside of it with a probability of
2 / (n + 1)."""
NAMED = 5
"""Number of vendors or scanners of development that a caution names, the most frequent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What cautions look at: facts of a slide, and how far its embeddings are from development.

    `mpp` is in um/px. None where not known.
    """

    mpp: float
    vendor: str | None
    tissue_mm2: float
    tiles: int
    scanner: str | None = None
    distance: float | None = None

    @classmethod
    def of(
        cls,
        facts: SlideFacts,
        tiles: int,
        *,
        scanner: str | None = None,
        distance: float | None = None,
    ) -> "Described":
        """Return it from the facts that tiling found, which knows them all."""
        assert facts.mpp is not None
        assert facts.tissue_mm2 is not None
        return cls(
            mpp=(facts.mpp[0] * facts.mpp[1]) ** 0.5,
            vendor=facts.vendor,
            tissue_mm2=facts.tissue_mm2,
            tiles=tiles,
            scanner=scanner,
            distance=distance,
        )


@dataclass(frozen=True, slots=True)
class Caution:
    """A property in which a slide differs from the development, and the sentence that says so.

    `percentile` is where its value lies among the development slides, 0 to 100; None for a value
    that is no number.
    """

    what: What
    sentence: str
    percentile: float | None = None


def cautions(slide: Described, development: Development) -> list[Caution]:
    """Return what is unlike the development slides about a slide; empty if nothing is."""
    found = [
        _outside("um/px", "", slide.mpp, development.number("mpp"), MPP_TOLERANCE),
        _unknown("vendor", slide.vendor, development.known("vendor")),
        _unknown("scanner", slide.scanner, development.known("scanner")),
        _outside("tissue area", " mm2", slide.tissue_mm2, development.number("tissue")),
        _outside("tiles", "", slide.tiles, development.number("tiles")),
        _far(slide.distance, development),
    ]
    return [caution for caution in found if caution is not None]


def percentiles(slide: Described, development: Development) -> dict[str, float | None]:
    """Return where a slide's numbers lie among the development slides, 0 to 100.

    Returns:
        `mpp, tissue_mm2, tiles, distance`; None where a number is not known of the slide or of the
        development.
    """
    reference = development.embeddings
    pairs = {
        "mpp": (slide.mpp, development.number("mpp")),
        "tissue_mm2": (slide.tissue_mm2, development.number("tissue")),
        "tiles": (slide.tiles, development.number("tiles")),
        "distance": (slide.distance, reference.distances if reference else None),
    }
    return {
        name: None if value is None or known is None else known.percentile(value)
        for name, (value, known) in pairs.items()
    }


def _outside(
    what: What,
    unit: str,
    value: float,
    known: Distribution | None,
    tolerance: float = RANGE_TOLERANCE,
) -> Caution | None:
    """Return the caution of a number outside of the development's range."""
    if known is None or known.lowest * (1 - tolerance) <= value <= known.highest * (1 + tolerance):
        return None
    own, low, high = (shown(number) for number in (value, known.lowest, known.highest))
    words = f"{own} tiles are" if what == "tiles" else f"{what} of {own}{unit} is"
    rest = (
        f"not {low}{unit}, which every development slide has"
        if low == high
        else f"outside {low}-{high}{unit}, the range of the development slides"
    )
    return Caution(what, f"Its {words} {rest}.", known.percentile(value))


def _unknown(what: What, value: str | None, known: Sequence[Count]) -> Caution | None:
    """Return the caution of a value that no development slide has."""
    if value is None or not known or value in {one.name for one in known}:
        return None
    first = sorted(known, key=lambda one: (-one.slides, one.name))
    names = ", ".join(f"{one.slides:,} of {one.name}" for one in first[:NAMED])
    more = f" and {len(first) - NAMED} others" if len(first) > NAMED else ""
    return Caution(what, f"Its {what} {value} is that of no development slide: {names}{more}.")


def _far(distance: float | None, development: Development) -> Caution | None:
    """Return the caution of a slide whose tiles look different to the encoder."""
    reference = development.embeddings
    if distance is None or reference is None:
        return None
    known = reference.distances
    if distance <= known.at(FAR_PERCENT):
        return None
    percentile = known.percentile(distance)
    beyond = (
        f"beyond every development slide (largest {shown(known.highest)})"
        if distance > known.highest
        else f"beyond {percentile:.1f} % of the development slides (median {shown(known.at(50))}, "
        f"largest {shown(known.highest)})"
    )
    return Caution(
        "appearance",
        f"Its tiles look unlike those of development: distance {shown(distance)}, {beyond}.",
        percentile,
    )
