"""Before a night of computing: what each slide's file says of itself, and what tiling will say.

Slides are opened in parallel, and their metadata alone is read.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from her2.cohort.cautions import Seen
from her2.config import Config
from her2.core.crashes import reading
from her2.core.errors import SlideError, TileError
from her2.slides.backends import read_header, slide_files
from her2.slides.fingerprint import fingerprint
from her2.slides.slide import Scale, find_scale

Brown = Callable[[Path, float | None], float | None]
"""Path and the manifest's um/px of a slide -> the share of its tissue that is brown (DAB)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideToOpen:
    """A slide as a manifest names it, with the manifest's um/px; None where the file's counts."""

    slide_id: str
    path: Path
    mpp: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What the attempt to open a slide told of it.

    Attributes:
        slide_id: its id.
        path: its file.
        problem: why it cannot be read, "" if it can. All below is then empty or 0.
        vendor: the scanner's vendor or the format.
        reader: name of the library that opens it.
        width_px, height_px: size of level 0.
        levels: number of the pyramid's levels.
        mpp: um/px that counts, (x, y), None if there is none.
        mpp_source: `manifest`, `metadata` or "".
        file_mpp: um/px (x, y) of the file's own metadata, also where the manifest's counts.
        size_bytes: of all its files.
        fingerprint: digest of its content, "" if no other slide has its size: then none is a copy.
        excluded: why a run with the config would leave it out, one sentence for each grid; empty
            if it would not.
        brown: share of its tissue that is brown by DAB (`her2.tiling.brown`), None if nobody
            asked or too many px would have to be read.
    """

    slide_id: str
    path: Path
    problem: str = ""
    vendor: str = ""
    reader: str = ""
    width_px: int = 0
    height_px: int = 0
    levels: int = 0
    mpp: tuple[float, float] | None = None
    mpp_source: str = ""
    file_mpp: tuple[float, float] | None = None
    size_bytes: int = 0
    fingerprint: str = ""
    excluded: tuple[str, ...] = ()
    brown: float | None = None


def open_slides(
    slides: Iterable[SlideToOpen],
    *,
    threads: int = 4,
    config: Config | None = None,
    brown: Brown | None = None,
) -> list[Opening]:
    """Open every slide and return what it says of itself, in the order of the slides.

    The progress is shown on stderr, where that is a terminal. A slide that cannot be read is a
    `problem`, and the others go on.

    Args:
        slides: the slides.
        threads: slides that are opened at the same time.
        config: whose grids and limits decide `excluded`.
        brown: measures the share of brown of slides that are not left out; it reads px, and so
            takes longer than all the rest.
    """
    listed = list(slides)
    with ThreadPoolExecutor(threads) as pool:
        opening = pool.map(lambda one: _open(one, config, brown), listed)
        try:
            opened = [*tqdm(opening, "opening slides", len(listed), unit="slide", disable=None)]
            sizes = Counter(one.size_bytes for one in opened)
            return [
                *pool.map(lambda one: one if sizes[one.size_bytes] == 1 else _known(one), opened)
            ]
        except BaseException:  # Ctrl-C does not wait for the slides to come
            pool.shutdown(cancel_futures=True)
            raise


def seen(one: Opening) -> Seen:
    """Return what cautions on um/px and stain look at."""
    by_hand = one.mpp_source == "manifest"
    return Seen(
        slide_id=one.slide_id,
        mpp=one.mpp,
        file_mpp=one.file_mpp if by_hand else None,
        brown=one.brown,
    )


def _open(slide: SlideToOpen, config: Config | None, brown: Brown | None) -> Opening:
    try:
        with reading(slide.slide_id):
            size_bytes = _size_bytes(slide.path)
            header = read_header(slide.path)
    except SlideError as error:
        return Opening(slide_id=slide.slide_id, path=slide.path, problem=str(error))
    width, height = header.level_sizes[0]
    scale = share = None
    excluded: list[str] = []
    try:
        scale = find_scale(header.mpp, slide.mpp)
        if config is not None:
            excluded += _unfit(scale, (width, height), config)
        if brown is not None and not excluded:
            with reading(slide.slide_id):
                share = brown(slide.path, slide.mpp)
    except SlideError as error:
        excluded.append(str(error))
    except TileError as error:
        excluded.append(f"damaged, copy it again ({error})")
    return Opening(
        slide_id=slide.slide_id,
        path=slide.path,
        problem="" if min(width, height) > 0 else f"has {width} x {height} px; copy it again",
        vendor=header.vendor,
        reader=header.reader,
        width_px=width,
        height_px=height,
        levels=len(header.level_sizes),
        mpp=None if scale is None else (scale.mpp_x, scale.mpp_y),
        mpp_source="" if scale is None else scale.source,
        file_mpp=header.mpp if header.mpp and all(map(math.isfinite, header.mpp)) else None,
        size_bytes=size_bytes,
        excluded=tuple(excluded),
        brown=share,
    )


def _size_bytes(path: Path) -> int:
    try:
        if path.stat().st_size == 0:
            raise SlideError("the file is empty (0 bytes); copy it again")
        return sum(part.stat().st_size for part in slide_files(path))
    except OSError as error:
        raise SlideError(f"the file cannot be read ({error.strerror})") from None


def _known(one: Opening) -> Opening:
    """Identify the content of a slide that may be a copy of another."""
    if one.problem:
        return one
    try:
        with reading(one.slide_id):
            return replace(one, fingerprint=fingerprint(one.path))
    except SlideError as error:
        return Opening(slide_id=one.slide_id, path=one.path, problem=str(error))


def _unfit(scale: Scale, size_px: tuple[int, int], config: Config) -> list[str]:
    """Return why tiling leaves a slide out of grids of a config, as far as its size tells."""
    from her2.tiling.grid import check_room, check_scale

    found = []
    for mpp, side_px in sorted(set(config.grids.values())):
        try:
            check_scale(scale, mpp, config.tiling)
            check_room(scale, size_px, mpp=mpp, size=side_px, tiling=config.tiling)
        except SlideError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))
