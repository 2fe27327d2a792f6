"""Stage 1, overlap: patients of the cohort that an encoder's pre-training saw."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from her2.config.jobs import OverlapSpec
from her2.core.errors import problem_list
from her2.core.files import write_json
from her2.core.reading import read_json
from her2.core.spelling import folded_id
from her2.core.stamps import noted
from her2.core.tables import read_result
from her2.encoders.card import CARD_NAME, EncoderCard, read_card

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Overlap:
    """The overlap of an encoder's pre-training data with the labelled patients of a cohort.

    `known` is false where the data show tissue but name neither cases nor slides, so that the
    overlap cannot be determined (photographs show no patients). `patients` are those of the cohort
    that the pre-training saw.
    """

    known: bool
    patients: tuple[str, ...]
    allowed: bool


def audit_overlap(spec: OverlapSpec, encoder: Path, cohort: Path, output: Path) -> Overlap:
    """Write the overlap of one encoder with a cohort, which may be an external one, as JSON.

    Args:
        spec: the job's spec.
        encoder: the encoder's folder.
        cohort: the audit's table, one row per slide.
        output: the JSON file.

    Raises:
        UserError: patients overlap and the encoder does not set `allow_overlap: true`. Every
            labelled patient is in the test set of some fold, or of an external cohort, so any
            overlap leaks.
    """
    cards = lineage(encoder)
    found: dict[str, str] = {}
    table = read_result(cohort)
    for card in cards:
        found = find_overlap(card, table) | found
    if found and not spec.allow_overlap:
        here = f"validation.{spec.cohort}" if spec.cohort else "this cohort"
        apart = ", remove them from its manifest" if spec.cohort else ""
        raise problem_list(
            f"{encoder.name}: its pre-training data contain patients that {here} tests on, "
            f"so its figures would be too good. Pre-train without them{apart}, or set "
            "`allow_overlap: true` for the encoder to have all of its figures marked",
            [f"patient {patient}: {reason}" for patient, reason in sorted(found.items())],
        )
    if found:
        log.warning(
            "%s: its pre-training data contain patients of %s (%d), which `allow_overlap` permits",
            encoder.name,
            f"validation.{spec.cohort}" if spec.cohort else "the cohort",
            len(found),
        )
    result = Overlap(
        known=spec.domain in ("natural", "none")
        or all(_cases(card) or _fingerprints(card) for card in cards if card.source != "random"),
        patients=tuple(sorted(found)),
        allowed=spec.allow_overlap,
    )
    write_json(output, asdict(result))
    return result


def lineage(encoder: Path) -> list[EncoderCard]:
    """Return the cards of an encoder and of the encoders that its weights were initialised from.

    Only encoders in the same parent folder are followed.
    """
    cards = [read_card(encoder)]
    while True:
        start = cards[-1].provenance.get("init", {}).get("from", "")
        folder = encoder.parent / start
        if start in ("", "random", "published") or not (folder / CARD_NAME).exists():
            return cards
        cards.append(read_card(folder))


def find_overlap(card: EncoderCard, cohort: pl.DataFrame) -> dict[str, str]:
    """Return patient -> reason for the overlapping patients, found by case id or slide content.

    A case id matches a patient id or a slide id that a person would take for the same
    (`her2.core.spelling.folded_id`). Only patients with a label count, since no one is tested on
    the others; an external cohort may have no label at all.
    """
    cases = {folded_id(case): case for case in _cases(card)}
    fingerprints = set(_fingerprints(card))
    labels = [name for name in cohort.columns if name.startswith("label_")]
    given = [pl.col(name).is_not_null() for name in labels]
    labelled = cohort.filter(pl.any_horizontal(*given, pl.lit(False)))
    found: dict[str, str] = {}
    rows = labelled.select("patient_id", "slide_id", "fingerprint").sort("slide_id")
    for patient, slide, fingerprint in rows.iter_rows():
        for name in (patient, slide):
            if (same := folded_id(name)) in cases:
                found.setdefault(patient, f"case {cases[same]!r}")
        if fingerprint is not None and fingerprint in fingerprints:
            found.setdefault(patient, f"slide {slide!r} has the content of a pre-training slide")
    return found


def read_overlap(path: Path) -> Overlap:
    """Read the file that `audit_overlap` wrote."""
    values = read_json(noted(path))
    return Overlap(**values | {"patients": tuple(values["patients"])})


def _cases(card: EncoderCard) -> list[str]:
    return [str(case) for case in card.provenance.get("cases", [])]


def _fingerprints(card: EncoderCard) -> list[str]:
    return [str(value) for value in card.provenance.get("slide_fingerprints", [])]
