"""Before a run: the slides of its cohorts, and what a run would reject or leave out of them."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from her2.cohort.cautions import cautions
from her2.cohort.manifest import Cohort, SlideRow
from her2.config import Config
from her2.core.crashes import reading
from her2.core.errors import SlideError, TileError, UserError, problem_list
from her2.importing.opening import Opening, SlideToOpen, open_slides, seen
from her2.tiling.brown import brown_of_slide

if TYPE_CHECKING:
    from her2.slides.annotations import Region


@dataclass(frozen=True, slots=True)
class Part:
    """A cohort to check, with the folders of its tissue masks and ground truths.

    `where` is its section of the config, `cohort` or `validation.NAME`.
    """

    cohort: Cohort
    where: str = "cohort"
    tissue_masks: Path | None = None
    truths: Path | None = None

    @property
    def of(self) -> str:
        """Return what sentences add to a slide's name."""
        return "" if self.where == "cohort" else f" of {self.where}"


@dataclass(frozen=True, slots=True)
class Checked:
    """What the slides of a cohort say of themselves.

    `problems` stop a run or have it leave a slide out; `cautions` do neither.
    """

    part: Part
    openings: tuple[Opening, ...]
    problems: tuple[str, ...]
    cautions: tuple[str, ...]


def check_files(
    parts: Sequence[Part],
    *,
    config: Config | None = None,
    classes: Collection[str] = (),
    metadata_only: bool = False,
    threads: int = 4,
) -> list[Checked]:
    """Open every slide, and read its annotation, mask and ground truth.

    Args:
        parts: the cohorts, the development's first.
        config: whose grids and limits decide which slides would be left out, and whose
            `cohort.mask_classes` the ground truths must have.
        classes: the config's `tiling.annotation_classes`.
        metadata_only: a flat image is not decoded. The thumbnail of a pyramid is read for its
            stain. Otherwise the first px of every slide are read.
        threads: slides that are opened at the same time.
    """
    rows, lost = [], defaultdict(list)
    for part in parts:
        for row in part.cohort.rows:
            if not row.path:  # there are only features
                continue
            try:
                rows.append((part, row, part.cohort.file(row)))
            except UserError as error:  # a variable in its path that this machine lacks
                lost[part.where].append(str(error))
    slides = [SlideToOpen(slide_id=row.slide_id, path=path, mpp=row.mpp) for _, row, path in rows]
    opened = open_slides(
        slides, threads=threads, config=config, brown=brown_of_slide if metadata_only else None
    )

    def further(number: int) -> tuple[list[str], list[str]]:
        part, row, _ = rows[number]
        return (
            [*_file_problems(part, row, opened[number], classes, px=not metadata_only)],
            [*_truth_cautions(part, row, opened[number], config)],
        )

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(further, range(len(rows))))
    copies = _copies([(part, one) for (part, _, _), one in zip(rows, opened, strict=True)])
    checked = []
    for part in parts:
        own = [number for number, (other, _, _) in enumerate(rows) if other is part]
        problems = [
            f"slide {rows[n][1].slide_id!r}{part.of}: {str(rows[n][2])!r}: {why}"
            for n in own
            for why in dict.fromkeys(found[n][0])
        ]
        checked.append(
            Checked(
                part,
                tuple(opened[n] for n in own),
                (*lost[part.where], *problems, *copies[part.where]),
                (
                    *cautions([seen(opened[n]) for n in own]),
                    *(f"slide {rows[n][1].slide_id!r}: {why}" for n in own for why in found[n][1]),
                ),
            )
        )
    return checked


def refuse(checked: Sequence[Checked]) -> None:
    """Raise a UserError that names everything that a run would reject or leave out, if any."""
    problems = [problem for one in checked for problem in one.problems]
    if problems:
        raise problem_list(f"{len(problems)} problem(s) with the slides' files", problems)


def _copies(opened: Sequence[tuple[Part, Opening]]) -> dict[str, list[str]]:
    """Return section -> the slides with the content of others, of their own or another cohort."""
    owners: dict[str, list[tuple[Part, str]]] = defaultdict(list)
    for part, one in opened:
        if one.fingerprint and not one.problem:
            owners[one.fingerprint].append((part, one.slide_id))
    found = defaultdict(list)
    for same in owners.values():
        if len(same) > 1:
            names = ", ".join(f"{name}{part.of}" for part, name in same)
            one_cohort = len({part.where for part, _ in same}) == 1
            found[same[-1][0].where].append(
                f"slides {names} are the same file; "
                + (
                    "keep one row"
                    if one_cohort
                    else "an external cohort must have other slides than the development"
                )
            )
    return found


def _file_problems(
    part: Part, row: SlideRow, opened: Opening, classes: Collection[str], *, px: bool
) -> Iterator[str]:
    """Yield why tiling cannot use a slide, its annotation or its mask."""
    if opened.problem:
        yield opened.problem
    yield from opened.excluded
    for check in (_annotation_problem, _mask_problem, _px_problem if px else None):
        if check is None:
            continue
        try:
            with reading(row.slide_id):
                if problem := check(part, row, opened, classes):
                    yield problem
        except (SlideError, TileError, UserError) as error:
            yield str(error)


def _annotation_problem(
    part: Part, row: SlideRow, opened: Opening, classes: Collection[str]
) -> str | None:
    path = part.cohort.annotation_file(row)
    if path is None:
        return None
    from her2.slides.annotations import chosen_regions

    regions = chosen_regions(path, classes)
    if not opened.width_px or _reaches(regions, opened):
        return None
    return (
        f"its annotation {path.name} lies outside of its {opened.width_px:,} x "
        f"{opened.height_px:,} px, so no tissue would be found; is it of another slide, or in um?"
    )


def _reaches(regions: "Sequence[Region]", opened: Opening) -> bool:
    """Return whether an outline's box overlaps the slide."""
    return any(
        (region.rings[0].max(axis=0) > 0).all()
        and (region.rings[0].min(axis=0) < (opened.width_px, opened.height_px)).all()
        for region in regions
        if not region.negative
    )


def _mask_problem(
    part: Part, row: SlideRow, opened: Opening, classes: Collection[str]
) -> str | None:
    path = part.cohort.mask_file(row, part.tissue_masks)
    if path is None:
        return None
    from her2.slides.masks import read_values

    # Without a slide there is no aspect ratio to compare.
    size = (opened.width_px, opened.height_px)
    if not all(size):
        return None if path.exists() else f"its tissue mask {path.name} does not exist"
    if (read_values(path, (1, 1), size_px=size, what="tissue mask") != 0).any():
        return None
    return f"its tissue mask {path.name} has no px that is not zero, so no tissue would be found"


def _px_problem(part: Part, row: SlideRow, opened: Opening, classes: Collection[str]) -> str | None:
    if opened.problem:
        return None
    from her2.slides.slide import Slide

    with Slide(opened.path) as slide:
        slide.region(0, 0, 1, 1, (1, 1))
    return None


def _truth_cautions(
    part: Part, row: SlideRow, opened: Opening, config: Config | None
) -> Iterator[str]:
    """Yield why a slide's attention will not be compared with its ground truth."""
    size = (opened.width_px, opened.height_px)
    if part.truths is None or config is None or not all(size):
        return
    from her2.explanation.truth import find_truth, truth_mask

    try:
        with reading(row.slide_id):
            path = find_truth(part.truths, row.slide_id)
            if path is not None:
                truth_mask(path, (1, 1), size_px=size, classes=config.cohort.mask_classes)
    except (SlideError, TileError) as error:
        yield f"its attention will not be compared with its ground truth: {error}"
