"""`her2 view`, layer: the ground truth of where the positive tissue is."""

from her2.core.errors import UserError
from her2.core.plot_style import FigureContext
from her2.explanation.truth import REGION_SUFFIXES, find_truth, truth_mask, truth_words
from her2.slides.annotations import read_regions
from her2.viewer.overlay import colours
from her2.viewer.overlay.layer import Categories, Category, Layer, Outlined, Seen
from her2.viewer.overlay.outlines import of_mask
from her2.viewer.overlay.regions import outlined

_SIDE_PX = 4096
_COLOUR = colours.of_class(4)


def make(seen: Seen) -> Outlined:
    """Return the regions of a ground truth by class, or the outline of one that is a picture."""
    one = seen.asked
    folder = one.cohort.masks
    path = None if folder is None or not folder.is_dir() else find_truth(folder, one.slide_id)
    if path is None:
        raise UserError("there is no ground truth of this slide.")
    title = truth_words(FigureContext(one.cohort.synthetic))
    chosen = one.viewer.run.config.cohort.mask_classes
    if path.suffix.lower() in REGION_SUFFIXES:
        words = "Dashed: not of the positive classes (cohort.mask_classes), or subtracted."
        return outlined(seen, read_regions(path), chosen=chosen, title=title, words=words)
    slide = seen.slide()
    size_px = (slide.width_px, slide.height_px)
    factor = min(1.0, _SIDE_PX / max(size_px))
    width, height = (max(1, round(px * factor)) for px in size_px)
    mask = truth_mask(path, (height, width), size_px=size_px)
    features = of_mask(mask, size_px, colour=_COLOUR, label=title)
    share = f"{100 * float(mask.mean()):.2g} % of the slide; pieces:"
    return Outlined(
        features,
        Categories("Ground truth", [Category(_COLOUR, f"{title}, {share}", len(features))]),
    )


LAYER = Layer(
    name="truth",
    title="Ground truth",
    kind="outline",
    order=70,
    make=make,
    opacity=1.0,
)
