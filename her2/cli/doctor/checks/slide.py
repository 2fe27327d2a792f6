"""`her2 doctor`: the first slide of the cohort is opened, and some of its tiles are read."""

import time
from collections.abc import Iterator
from pathlib import Path

from her2.cli.doctor.base import Check, Finding, Situation, within
from her2.core.errors import SlideError, TileError, UserError, first_line

TILES = 64
SECONDS = 3.0
"""How long tiles are read for, if not all are read before."""
LIMIT_SECONDS = 20.0
"""How long the disk may take in all."""
SLOW = 20.0
"""Tiles/s of one core below which a disk is called slow; decoding alone takes 1,000 and more."""


def find(situation: Situation) -> Iterator[Finding]:
    """Yield how many tiles/s one core reads, or what is wrong with the slide."""
    config = situation.config
    if config is None or config.cohort.synthetic:
        return
    try:
        cohort = situation.plan.cohort
        row = next((row for row in cohort.rows if row.path), None)
        if row is None:  # of these slides there are only features
            return
        path = cohort.file(row)
    except UserError:  # said by the check of the files
        return
    mpp, size = next(iter(config.grids.values()), (0.5, 224))
    try:
        count, seconds = within(LIMIT_SECONDS, lambda: _read(path, row.mpp, mpp, size))
    except TimeoutError:
        yield Finding(
            "bad", f"{path}: not read within {LIMIT_SECONDS:g} s", "see whether its disk answers"
        )
        return
    except (SlideError, TileError, UserError, OSError) as error:
        yield Finding(
            "note", f"{row.slide_id}: {first_line(error)}",
            "a run leaves such a slide out and says so; see the others with `her2 cohort check`",
        )  # fmt: skip
        return
    rate = count / max(seconds, 1e-6)
    text = (
        f"{row.slide_id} of {len(cohort.rows):,}: {rate:,.0f} tiles/s of {size} px at {mpp:g} um/px"
    )
    if rate < SLOW:
        yield Finding(
            "note", f"{text}, by one core; its disk is slow",
            "set `embedding.scratch` to a local disk, to which each slide is copied first",
        )  # fmt: skip
    else:
        yield Finding("ok", f"{text}, by one core")


def _read(path: Path, own_mpp: float | None, mpp: float, size: int) -> tuple[int, float]:
    """Read tiles around the middle of a slide; return how many, and the seconds that it took."""
    from her2.core.crashes import reading
    from her2.slides.slide import Slide

    with reading(path.name), Slide(path) as slide:
        scale = slide.scale(own_mpp)
        width, height = size * mpp / scale.mpp_x, size * mpp / scale.mpp_y
        columns = max(1, min(8, int(slide.width_px // width)))
        rows = max(1, min(TILES // columns, int(slide.height_px // height)))
        left = max(0.0, (slide.width_px - columns * width) / 2)
        top = max(0.0, (slide.height_px - rows * height) / 2)
        began, count = time.monotonic(), 0
        for index in range(columns * rows):
            x, y = left + index % columns * width, top + index // columns * height
            slide.region(x, y, width, height, (size, size))
            count += 1
            if time.monotonic() - began > SECONDS:
                break
        return count, time.monotonic() - began


CHECK = Check("slide", 90, find)
