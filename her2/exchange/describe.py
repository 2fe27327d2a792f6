"""Stage 1, features computed elsewhere: the card that says what they are."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from her2.cohort.manifest import Cohort
from her2.config.jobs import DescribeSpec
from her2.core.crashes import reading
from her2.core.errors import SlideError, problem_list
from her2.encoders.card import GIVEN, EncoderCard, write_card
from her2.exchange.checks import mixed_dimensions
from her2.exchange.given import Given, read_given
from her2.exchange.slides import folders_in, match_slides
from her2.exchange.taking import NOT_RECORDED

log = logging.getLogger(__name__)

_OF_ONE_FILE = frozenset({"name", "level0_width", "level0_height"})
"""What a file says of its slide alone."""


def describe_features(
    spec: DescribeSpec, cohort: Cohort, folders: str, output: Path
) -> EncoderCard:
    """Write the card of an encoder whose features another program computed.

    The dimension is that of most files, and so is whether a row is a tile or a whole slide.

    Args:
        spec: the job.
        cohort: the development cohort, whose files are looked at.
        folders: the folders of feature files, a JSON list.
        output: folder for `card.json`.

    Raises:
        UserError: no file of a slide can be read.
    """
    matched = match_slides(cohort, folders_in(folders), spec.format)
    found: dict[str, Given] = {}
    problems: list[str] = []
    for slide_id, path in sorted(matched.files.items()):
        try:
            with reading(slide_id):
                given = read_given(path, spec.format)
        except SlideError as error:
            problems.append(f"{slide_id}: {error}")
            continue
        if given.rows:
            found[slide_id] = given
    if not found:
        raise problem_list(
            f"{output.name}: none of its feature files can be used; correct its `path` or `format`",
            problems
            or [f"{name}: {why}" for name, why in matched.ambiguous.items()]
            or [f"{len(matched.files)} file(s) of slides, all without features"],
        )
    mixed = mixed_dimensions({name: (one.level, one.dimension) for name, one in found.items()})
    alike = [one for name, one in found.items() if name not in mixed]
    if not alike:
        raise problem_list(
            f"{output.name}: its feature files are of several encoders; name one folder in `path`",
            [f"{name}: {problem}" for name, problem in mixed.items()],
        )
    first = alike[0]
    level, dimension = first.level, first.dimension
    size, mpp = spec.size, spec.mpp
    if level == "tile":
        size = size or first.tile_px
        if mpp is None and first.unit == "um" and first.tile is not None and size:
            mpp = round(first.tile / size, 6)
    card = EncoderCard(
        source=GIVEN,
        library="computed elsewhere",
        architecture=spec.identity,
        arguments={"level": level, "dimension": dimension},
        feature="slide vector" if level == "slide" else "tile",
        dimension=dimension,
        size=size,
        mpp=mpp,
        mean=None,
        std=None,
        precision=NOT_RECORDED,
        storage=_most([one.dtype.name for one in alike]),
        licence="",
        weights_sha256="",
        provenance={
            "computed": "elsewhere",
            "form": ", ".join(sorted({one.form for one in alike})),
            **_stated_by_all(alike),
        },
    )
    write_card(output, card)
    log.info(
        "%s: %d files of %s, %d features a %s; not computed here",
        output.name, len(alike), card.provenance["form"], dimension, level,
    )  # fmt: skip
    return card


def _most(values: list[str]) -> str:
    return Counter(values).most_common(1)[0][0]


def _stated_by_all(files: list[Given]) -> dict[str, Any]:
    """Return what all files say alike, such as the program that made them."""
    first = files[0].stated
    return {
        name: value
        for name, value in sorted(first.items())
        if name not in _OF_ONE_FILE and all(one.stated.get(name) == value for one in files)
    }
