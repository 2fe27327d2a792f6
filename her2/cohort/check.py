"""Before every stage: a check that every slide, annotation and mask can be read."""

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from her2.cohort.manifest import Cohort, SlideRow
from her2.core.crashes import reading
from her2.core.errors import SlideError, problem_list
from her2.slides.fingerprint import fingerprint

_IMAGES = (
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # TIFF and BigTIFF, as most scanners write
    *(b"\x89PNG", b"\xff\xd8\xff", b"BM", b"GIF8", b"RIFF"),
    *(b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"),  # JPEG 2000
    b"SQLite format 3\0",  # Sakura
)
"""The first bytes of slides that are one file with a suffix of `_SUFFIXES`."""
_SUFFIXES = frozenset(
    (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".svslide", ".png", ".jpg", ".jpeg")
)


def check_files(
    cohort: Cohort, *, tissue_masks: Path | None = None, classes: Collection[str] = ()
) -> None:
    """Open every file far enough to identify it, and read annotations and masks.

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
                _check_start(cohort.file(row))
                _check_sources(cohort, row, tissue_masks, classes)
        except SlideError as error:
            problems.append(f"slide {row.slide_id!r}: {str(cohort.file(row))!r}: {error}")
    problems += [
        f"slides {', '.join(names)} are the same file; keep one row"
        for names in owners.values()
        if len(names) > 1
    ]
    if problems:
        raise problem_list(f"{len(problems)} problem(s) with the slides' files", problems)


def _check_start(path: Path) -> None:
    """Raise a SlideError for a file that has the name of an image and begins like none."""
    if path.suffix.lower() not in _SUFFIXES:
        return
    with path.open("rb") as stream:
        start = stream.read(16)
    if not start.startswith(_IMAGES) and start[4:8] != b"ftyp":  # AVIF has its length before it
        what = "only zeros, as after an unfinished copy" if not any(start) else repr(start)
        raise SlideError(f"begins like no slide or image ({what}); copy it again")


def _check_sources(
    cohort: Cohort, row: SlideRow, tissue_masks: Path | None, classes: Collection[str]
) -> None:
    """Raise a SlideError for an annotation or mask that tiling cannot use."""
    annotation, mask = cohort.annotation_file(row), cohort.mask_file(row, tissue_masks)
    if annotation is not None:
        from her2.slides.annotations import chosen_regions

        chosen_regions(annotation, classes)
    if mask is not None:
        from her2.slides.masks import read_mask
        from her2.slides.slide import Slide

        with Slide(cohort.file(row)) as slide:
            read_mask(mask, (1, 1), size_px=(slide.width_px, slide.height_px))
