"""Bundles: the segmenters that chose the tiles. Their weights are named, not passed on.

No licence of a segmenter allows it so far (`her2.frozen.bundle.licence` has those of encoders).
"""

from collections.abc import Mapping
from pathlib import Path

from her2.config import TilingSection
from her2.config.jobs import SegmenterSpec
from her2.core.errors import UserError, problem_list
from her2.core.files import atomic_folder, digest, file_digest
from her2.frozen.bundle.schema import SegmenterFacts, Tiling
from her2.segmenters import chosen
from her2.segmenters.base import ArtefactSegmenter, Segmenter, flag_of
from her2.tiling.segmenter import fetch_segmenter
from her2.tiling.segmenter_card import CARD_NAME, SegmenterCard, read_segmenter_card


def segmenter_facts(results: Path, tiling: TilingSection) -> tuple[SegmenterFacts, ...]:
    """Return what a bundle says of the segmenters of its results.

    Raises:
        UserError: the card of one is not there, or of another segmenter.
    """
    folder = results / "segmenters"
    return tuple(
        _facts(one, read_segmenter_card(folder / one.folder, one)) for one in chosen(tiling)
    )


def segmenter_folders(
    tiling: Tiling, bundle: Path, into: Path, *, given: Mapping[str, Path]
) -> dict[str, Path]:
    """Return key of `tiling:` -> folder of that segmenter's `weights.safetensors` and `card.json`.

    Args:
        tiling: what the bundle says of its tiles.
        bundle: the bundle, for errors.
        into: where the folders are made, named by what a segmenter is; those there are taken.
        given: key -> a folder as `fetch_segmenter` writes it, or a file of the weights. Others are
            fetched from where they are published.

    Raises:
        UserError: they are other weights (with both digests), this version of her2 runs them
            otherwise, or they can be had in no way, with what to do; of all segmenters. Weights
            are given of one that the bundle does not name.
    """
    named = {facts.key for facts in tiling.segmenters}
    if of_none := [f"{flag_of(key)} {path}" for key, path in given.items() if key not in named]:
        raise problem_list(f"{bundle}: names no network for these options; leave them out", of_none)
    folders: dict[str, Path] = {}
    problems = []
    for one, wanted in zip(chosen(tiling.options), tiling.segmenters, strict=True):
        try:
            folders[one.key] = _folder(one, wanted, bundle, into, given.get(one.key))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return folders


def _folder(
    one: Segmenter, wanted: SegmenterFacts, bundle: Path, into: Path, given: Path | None
) -> Path:
    needs = f"{bundle}: needs the {one.kind} {one.name}"
    folder = into / wanted.digest[:32]
    if (folder / CARD_NAME).exists():
        _check(one, wanted, read_segmenter_card(folder, one), needs, folder)
        return folder
    if given is not None and (given / CARD_NAME).exists():
        _check(one, wanted, read_segmenter_card(given, one), needs, given)
        return given
    spec = SegmenterSpec(
        segmenter=one.name,
        artefacts=isinstance(one, ArtefactSegmenter),
        weights=given,
        sha256=file_digest(given) if given is not None and given.is_file() else None,
    )
    with atomic_folder(folder) as temporary:
        try:
            card = fetch_segmenter(spec, temporary)
        except UserError as error:
            if given is not None:  # which says what is wrong with the file
                raise UserError(f"{needs}, and {one.flag} is of no use: {error}") from None
            raise UserError(
                f"{needs}, and its weights cannot be had: {error} Ask who made the bundle for the "
                f"folder results/segmenters/{one.folder}, or name a file of the weights, with "
                f"{one.flag} PATH. The digest of the weights must be {wanted.weights_sha256}."
            ) from None
        _check(one, wanted, card, needs, given)
    return folder


def _facts(one: Segmenter, card: SegmenterCard) -> SegmenterFacts:
    return SegmenterFacts(
        key=one.key,
        name=card.segmenter,
        architecture=card.architecture,
        licence=card.licence,
        weights_sha256=card.weights_sha256,
        digest=digest(one.identity(card.weights_sha256)),
    )


def _check(
    one: Segmenter, wanted: SegmenterFacts, card: SegmenterCard, needs: str, given: Path | None
) -> None:
    if card.weights_sha256 != wanted.weights_sha256:
        raise UserError(
            f"{needs} with the weights {wanted.weights_sha256}, but "
            f"{given or 'what is published today'} has {card.weights_sha256}. Tiles that other "
            f"weights choose would be scored as if these had chosen them. Name the right ones with "
            f"{one.flag} PATH."
        )
    if _facts(one, card).digest != wanted.digest:
        raise UserError(
            f"{needs} as another version of her2 runs it ({one.version} here); predict with the "
            "version that made the bundle."
        )
