"""Bundles: the tissue segmenter that chose the tiles. Its weights are named, not passed on.

No licence of a segmenter allows it so far (`her2.frozen.bundle.licence` has those of encoders).
"""

from collections.abc import Iterable
from pathlib import Path

from her2.config import TilingSection
from her2.config.jobs import SegmenterSpec
from her2.core.errors import UserError
from her2.core.files import atomic_folder, digest, file_digest
from her2.frozen.bundle.schema import SegmenterFacts
from her2.segmenters import NAMES, segmenter
from her2.tiling.segmenter import fetch_segmenter
from her2.tiling.segmenter_card import CARD_NAME, SegmenterCard, read_segmenter_card


def tissue_segmenter(results: Path, tiling: TilingSection) -> SegmenterFacts | None:
    """Return what a bundle says of the segmenter of its results; None without one.

    Raises:
        UserError: its card is not there, or of another segmenter.
    """
    if tiling.segmenter is None:
        return None
    return _facts(read_segmenter_card(results / "segmenters" / tiling.segmenter, tiling.segmenter))


def check_tiled_with(facts: SegmenterFacts, sources: Iterable[str]) -> None:
    """Check that slides were tiled with these weights, and not with earlier ones.

    Args:
        facts: what the results' folder has now.
        sources: what tables of slides say of their tissue (`SlideFacts.tissue_source`).

    Raises:
        UserError: a slide was tiled with others.
    """
    start = f"segmenter {facts.name}, weights "
    for source in sources:
        if source.startswith("segmenter ") and not (
            source.startswith(start) and facts.weights_sha256.startswith(source[len(start) :])
        ):
            raise UserError(
                f"slides were tiled by the {source}, and the results have the weights "
                f"{facts.weights_sha256[:12]} of {facts.name} now; run snakemake again."
            )


def segmenter_folder(
    wanted: SegmenterFacts, bundle: Path, into: Path, *, given: Path | None = None
) -> Path:
    """Return a folder with the segmenter's `weights.safetensors` and `card.json`.

    Args:
        wanted: the segmenter.
        bundle: the bundle that needs it, for errors.
        into: where the folder is made, named by what the segmenter is; one that is there is taken.
        given: a folder as `fetch_segmenter` writes it, or a file of the weights; None: they are
            fetched from where they are published.

    Raises:
        UserError: they are other weights (with both digests), this version of her2 runs them
            otherwise, or they can be had in no way, with what to do.
    """
    needs = f"{bundle}: needs the tissue segmenter {wanted.name}"
    how = (
        "Ask who made the bundle for the folder results/segmenters/"
        f"{wanted.name}, or name a file of the weights, with --segmenter PATH. The digest of the "
        f"weights must be {wanted.weights_sha256}."
    )
    if wanted.name not in NAMES:
        raise UserError(f"{needs}, which this version of her2 does not have.")
    folder = into / wanted.digest[:32]
    if (folder / CARD_NAME).exists():
        _check(read_segmenter_card(folder, wanted.name), wanted, needs, folder)
        return folder
    if given is not None and (given / CARD_NAME).exists():
        _check(read_segmenter_card(given, wanted.name), wanted, needs, given)
        return given
    stated = file_digest(given) if given is not None and given.is_file() else None
    spec = SegmenterSpec(segmenter=wanted.name, weights=given, sha256=stated)
    with atomic_folder(folder) as temporary:
        try:
            card = fetch_segmenter(spec, temporary)
        except UserError as error:
            if given is not None:  # which says what is wrong with the file
                raise UserError(f"{needs}, and --segmenter is of no use: {error}") from None
            raise UserError(f"{needs}, and its weights cannot be had: {error} {how}") from None
        _check(card, wanted, needs, given)
    return folder


def _facts(card: SegmenterCard) -> SegmenterFacts:
    return SegmenterFacts(
        name=card.segmenter,
        architecture=card.architecture,
        licence=card.licence,
        weights_sha256=card.weights_sha256,
        digest=digest(card.identity),
    )


def _check(card: SegmenterCard, wanted: SegmenterFacts, needs: str, given: Path | None) -> None:
    if card.weights_sha256 != wanted.weights_sha256:
        raise UserError(
            f"{needs} with the weights {wanted.weights_sha256}, but "
            f"{given or 'what is published today'} has {card.weights_sha256}. Tissue that other "
            "weights find would be scored as if these had found it. Name the right ones with "
            "--segmenter PATH."
        )
    if _facts(card).digest != wanted.digest:
        raise UserError(
            f"{needs} as another version of her2 runs it ({segmenter(wanted.name).version} here); "
            "predict with the version that made the bundle."
        )
