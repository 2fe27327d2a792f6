"""`her2 view`: regions of an annotation file as a layer, by class."""

from collections import Counter
from collections.abc import Collection, Sequence

from her2.core.errors import UserError
from her2.slides.annotations import Region
from her2.viewer.overlay import colours
from her2.viewer.overlay.layer import Categories, Category, Outlined, Seen
from her2.viewer.overlay.outlines import of_regions

_WITHOUT, _SUBTRACTED = "(no class)", "subtracted"


def outlined(
    seen: Seen, regions: Sequence[Region], *, chosen: Collection[str], title: str, words: str
) -> Outlined:
    """Return regions in the colours of their classes, those that do not count with a dashed line.

    Args:
        seen: the slide.
        regions: what its file has.
        chosen: the classes that count; none: all.
        title: of the legend.
        words: what the lines mean.

    Raises:
        UserError: there is no region.
    """
    if not regions:
        raise UserError("its file has no region with an area.")
    origin = (0, 0)
    if seen.asked.viewer.run.config.tiling.annotation_origin == "bounds":
        origin = seen.slide().bounds_corner_px
    names = [_SUBTRACTED if one.negative else one.name or _WITHOUT for one in regions]
    counts = Counter(names)
    colour = {name: colours.of_class(number) for number, name in enumerate(sorted(counts))}
    dashed = {
        name: any(
            one.negative or (bool(chosen) and one.name not in chosen)
            for one, own in zip(regions, names, strict=True)
            if own == name
        )
        for name in counts
    }
    properties = [{"colour": colour[name], "label": name, "dashed": dashed[name]} for name in names]
    rows = [Category(colour[n], n, counts[n], dashed[n]) for n in sorted(counts)]
    return Outlined(of_regions(regions, properties, origin), Categories(title, rows, words))
