"""Before every stage: a check that every slide, annotation and mask can be read."""

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from her2.cohort.manifest import Cohort, SlideRow
from her2.core.crashes import reading
from her2.core.errors import SlideError, TileError, problem_list
from her2.slides.fingerprint import fingerprint


def check_files(
    cohort: Cohort, *, tissue_masks: Path | None = None, classes: Collection[str] = ()
) -> None:
    """Open every slide, read its first px, and read annotations and masks.

    `tissue_masks` and `classes` are the config's `cohort.tissue_masks` and
    `tiling.annotation_classes`.

    Raises:
        UserError: files are missing, unreadable or duplicates; the message names their slides.
    """
    problems, owners = [], defaultdict(list)
    for row in cohort.rows:
        try:
            with reading(row.slide_id):
                owners[fingerprint(cohort.file(row))].append(row.slide_id)
                _check_slide(cohort, row, tissue_masks, classes)
        except (SlideError, TileError) as error:
            problems.append(f"slide {row.slide_id!r}: {str(cohort.file(row))!r}: {error}")
    problems += [
        f"slides {', '.join(names)} are the same file; keep one row"
        for names in owners.values()
        if len(names) > 1
    ]
    if problems:
        raise problem_list(f"{len(problems)} problem(s) with the slides' files", problems)


def _check_slide(
    cohort: Cohort, row: SlideRow, tissue_masks: Path | None, classes: Collection[str]
) -> None:
    """Raise a SlideError or TileError for a slide, annotation or mask that tiling cannot use."""
    from her2.slides.slide import Slide

    annotation, mask = cohort.annotation_file(row), cohort.mask_file(row, tissue_masks)
    if annotation is not None:
        from her2.slides.annotations import chosen_regions

        chosen_regions(annotation, classes)
    with Slide(cohort.file(row)) as slide:
        slide.scale(row.mpp)
        slide.region(0, 0, 1, 1, (1, 1))
        if mask is not None:
            from her2.slides.masks import read_mask

            read_mask(mask, (1, 1), size_px=(slide.width_px, slide.height_px))
