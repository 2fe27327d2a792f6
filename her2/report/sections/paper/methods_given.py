"""Stage 2, report: the paragraph of a methods draft on features that another program computed."""

from dataclasses import dataclass

from her2.report.results import Results
from her2.report.sections.paper.prose import paragraph


@dataclass(frozen=True, slots=True)
class _Given:
    """What is known of an encoder's features; `patches` is empty where nobody told."""

    name: str
    identity: str
    form: str
    features: int
    per: str
    patches: str
    slides: int


@dataclass(frozen=True, slots=True)
class _AllGiven:
    encoders: list[_Given]
    only: bool
    min_tiles: int


def given(results: Results) -> str:
    """Describe the encoders whose features were not computed here; empty without any."""
    found = []
    for name in results.config.given:
        card = results.cards[name]
        slide = card.arguments["level"] == "slide"
        known = card.size is not None and card.mpp is not None and not slide
        usable = [one for one in results.features[name].values() if one.status == "ok"]
        found.append(
            _Given(
                name=name,
                identity=card.architecture,
                form=str(card.provenance.get("form", "")),
                features=card.dimension,
                per="slide" if slide else "tile",
                patches=f"{card.size} x {card.size} px at {card.mpp:g} um/px" if known else "",
                slides=len(usable),
            )
        )
    if not found:
        return ""
    only = not results.config.needs_slides
    return paragraph("given", _AllGiven(found, only, results.config.tiling.min_tiles))
