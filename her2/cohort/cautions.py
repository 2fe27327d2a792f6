"""What may be wrong with slides: their um/px, their stain, and what a network says of them.

`her2 cohort check --open`, the log of tiling, the report and `her2 predict` say it; none of it
stops a run.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from her2.filters.base import CLASS_PREFIX
from her2.storage.facts import SlideFacts

MPP_DIFFERENCE = 0.05
"""Share by which the um/px of the manifest and of the file may differ. A scanner's own figure is
off by less; a wrong objective is off by 100 %."""
SCALE_GAP = 1.25
"""Ratio of neighbouring um/px from which slides come at different scales. Scanners of one nominal
magnification differ by less, 20x and 40x by 2."""
BROWN_LEAST = 0.05
"""Share of brown tissue (`her2.tiling.brown`) from which a slide may be IHC. Drawn H&E has 0, also
with a fifth of its tissue under brown pigment or bile; drawn IHC of score 2+ has 0.6 and more."""
FLAGGED_LEAST = 0.5
"""Share of a slide's tiles that a network calls one artefact, from which either is doubtful."""
_NAMED = 8

Mpp = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of a slide: um/px (x, y) that counts and of its file, share of brown tissue.

    None where not known. `file_mpp` matters where the manifest's um/px counts. `artefacts` has the
    share of its tiles that a network takes for each artefact, by the name of the column.
    """

    slide_id: str
    mpp: Mpp | None = None
    file_mpp: Mpp | None = None
    brown: float | None = None
    artefacts: Mapping[str, float] = field(default_factory=dict)


def seen(slide_id: str, facts: SlideFacts) -> Seen:
    """Return what tiling found of a slide."""
    return Seen(
        slide_id=slide_id,
        mpp=facts.mpp,
        file_mpp=facts.file_mpp,
        brown=facts.brown,
        artefacts=by_network(facts.shares),
    )


def by_network(shares: Mapping[str, float | None]) -> dict[str, float]:
    """Return those of a slide's shares that a network found, by the names of their columns."""
    return {
        name: share
        for name, share in shares.items()
        if name.startswith(CLASS_PREFIX) and share is not None
    }


def flagged(shares: Mapping[str, float]) -> str:
    """Return what a network takes most of a slide's tiles for, as `fold 60%`; empty if nothing."""
    found = {name: share for name, share in shares.items() if share >= FLAGGED_LEAST}
    words = (f"{name.removeprefix(CLASS_PREFIX)} {share:.0%}" for name, share in found.items())
    return ", ".join(words)


def mpp_differs(mpp: Mpp, file_mpp: Mpp) -> bool:
    """Return whether two um/px differ by more than `MPP_DIFFERENCE` on an axis."""
    return any(
        abs(own / other - 1) > MPP_DIFFERENCE for own, other in zip(mpp, file_mpp, strict=True)
    )


def mpp_words(mpp: Mpp, file_mpp: Mpp) -> str:
    """Return both um/px: `0.5 um/px in the manifest, 0.25 in its file`."""
    return f"{_shown(mpp)} um/px in the manifest, {_shown(file_mpp)} in its file"


def is_brown(share: float | None) -> bool:
    """Return whether a slide may be IHC by its share of brown tissue."""
    return share is not None and share >= BROWN_LEAST


def cautions(slides: Sequence[Seen]) -> Iterator[str]:
    """Yield a sentence for each way in which slides may be wrong, with the slides."""
    differing = [
        f"{one.slide_id} ({mpp_words(one.mpp, one.file_mpp)})"
        for one in slides
        if one.mpp and one.file_mpp and mpp_differs(one.mpp, one.file_mpp)
    ]
    if differing:
        yield (
            f"{_slides(len(differing))} whose um/px in the manifest differs from that of the file "
            f"by more than {MPP_DIFFERENCE:.0%}: {_named(differing)}. The manifest's counts. Empty "
            "the column 'mpp' where the file is right."
        )
    groups = scale_groups(slides)
    if len(groups) > 1:
        words = "; ".join(_group(group) for group in groups)
        yield (
            f"The slides come at {len(groups)} scales: {words}. Tiles have one um/px, but those of "
            "coarser slides show less detail. If the scale goes with the site or the score, a "
            "model can learn it; if a um/px is wrong, its tiles show tissue of another size. "
            "Check the scales."
        )
    brown = [f"{one.slide_id} ({one.brown:.0%} of its tissue)" for one in slides
             if one.brown is not None and is_brown(one.brown)]  # fmt: skip
    if brown:
        yield (
            f"{_slides(len(brown))} with the brown of immunohistochemistry and without eosin: "
            f"{_named(brown)}. A HER2 stain shows the score itself. Look at the slides, and leave "
            "out what is not H&E."
        )
    doubtful = [f"{one.slide_id} ({words})" for one in slides if (words := flagged(one.artefacts))]
    if doubtful:
        yield (
            f"{_slides(len(doubtful))} of which the artefact network takes half of the tiles or "
            f"more for one artefact: {_named(doubtful)}. Such networks have called sharp slides "
            "out of focus. Look at their QC pictures; where it is wrong, set that limit of "
            "'tiling.artefact_limits' to 1."
        )


def sentences(facts: SlideFacts) -> Iterator[str]:
    """Yield what may be wrong with a slide that is predicted, in sentences of its own."""
    if facts.mpp and facts.file_mpp and mpp_differs(facts.mpp, facts.file_mpp):
        words = mpp_words(facts.mpp, facts.file_mpp)
        yield f"Its um/px is doubtful: {words}; the manifest's counts."
    if facts.brown is not None and is_brown(facts.brown):
        yield (
            f"{facts.brown:.0%} of its tissue has the brown of immunohistochemistry, and no eosin "
            "is found: it may not be H&E."
        )
    if words := flagged(by_network(facts.shares)):
        yield f"The artefact network takes half of its tiles or more for one artefact: {words}."


def scale_groups(slides: Iterable[Seen]) -> list[list[tuple[float, str]]]:
    """Return (um/px, slide) of each scale, sorted; neighbours differ by less than `SCALE_GAP`."""
    known = sorted((math.sqrt(x * y), one.slide_id) for one in slides if one.mpp
                   for x, y in (one.mpp,))  # fmt: skip
    groups: list[list[tuple[float, str]]] = []
    for mpp, slide_id in known:
        if not groups or mpp > groups[-1][-1][0] * SCALE_GAP:
            groups.append([])
        groups[-1].append((mpp, slide_id))
    return groups


def _group(group: Sequence[tuple[float, str]]) -> str:
    low, high = f"{group[0][0]:.4g}", f"{group[-1][0]:.4g}"
    named = f" ({', '.join(name for _, name in group)})" if len(group) <= _NAMED else ""
    return f"{len(group):,} at {low if low == high else f'{low}-{high}'} um/px{named}"


def _slides(number: int) -> str:
    return f"{number:,} slide{'s' * (number != 1)}"


def _named(words: Sequence[str]) -> str:
    more = f" and {len(words) - _NAMED:,} more" if len(words) > _NAMED else ""
    return ", ".join(words[:_NAMED]) + more


def _shown(mpp: Mpp) -> str:
    x, y = (f"{value:.4g}" for value in mpp)
    return x if x == y else f"{x} x {y}"
