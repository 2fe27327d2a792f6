"""`her2 view`, layer: the regions that people drew, of the manifest's column `annotation`."""

from her2.core.errors import UserError
from her2.slides.annotations import read_regions
from her2.viewer.overlay.layer import Layer, Outlined, Seen
from her2.viewer.overlay.regions import outlined


def make(seen: Seen) -> Outlined:
    """Return all regions; those that tiles were not restricted to are dashed."""
    one = seen.asked
    path = one.cohort.cohort.annotation_file(one.cohort.row(one.slide_id))
    if path is None:
        raise UserError("the manifest names no annotation of this slide.")
    tiling = one.viewer.run.config.tiling
    return outlined(
        seen,
        read_regions(path),
        chosen=tiling.annotation_classes,
        title="Annotations",
        words="Tiles lie in these; in those with a dashed line, they do not: other classes "
        "(tiling.annotation_classes), or subtracted.",
    )


LAYER = Layer(
    name="annotations",
    title="Annotations",
    kind="outline",
    order=60,
    make=make,
    opacity=1.0,
)
