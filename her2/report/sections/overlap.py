"""Stage 2, report: the mark on encoders whose pre-training saw patients of this cohort."""

from her2.pretraining.overlap import Overlap
from her2.report.format import plural
from her2.report.results import Results

MARK = "\N{DAGGER}"
EXTERNAL_MARK = "\N{DOUBLE DAGGER}"
IDS_SHOWN = 10


def overlap_of(results: Results, encoder: str, cohort: str = "") -> Overlap | None:
    """Return the overlap of an encoder's pre-training, including the encoders it started from.

    None where no pre-training was audited. `cohort` is an external one, "" that of development.
    """
    overlaps = {one.name: one.overlaps for one in results.external}.get(cohort, results.overlaps)
    chain: list[str] = []
    name: str | None = encoder
    while name in results.config.encoders and name not in chain:
        chain.append(name)
        name = results.config.encoders[name].init
    found = [overlaps[name] for name in chain if name in overlaps]
    if not found:
        return None
    return Overlap(
        known=all(item.known for item in found),
        patients=tuple(sorted({patient for item in found for patient in item.patients})),
        allowed=all(item.allowed for item in found if item.patients),
    )


def mark(results: Results, encoder: str) -> str:
    """Return `†` for an encoder that saw patients of this cohort, else an empty string."""
    found = overlap_of(results, encoder)
    return MARK if found is not None and found.patients else ""


def external_mark(results: Results, cohort: str, encoder: str) -> str:
    """Return `‡` for an encoder that saw patients of an external cohort, else ""."""
    found = overlap_of(results, encoder, cohort)
    return EXTERNAL_MARK if found is not None and found.patients else ""


def seen(results: Results, encoder: str) -> int | None:
    """Return the number of cohort patients an encoder saw; None where it is unknown."""
    found = overlap_of(results, encoder)
    return None if found is None or not (found.known or found.patients) else len(found.patients)


def footnotes(results: Results) -> tuple[str, ...]:
    """Return the meaning of the marks, for each encoder that bears one."""
    notes = [
        _footnote(MARK, name, found, "this cohort", "its results are optimistic")
        for name in results.config.encoders
        if (found := overlap_of(results, name)) is not None and found.patients
    ]
    notes += [
        _footnote(EXTERNAL_MARK, name, found, cohort.name, "its results there are optimistic")
        for cohort in results.external
        for name in results.config.encoders
        if (found := overlap_of(results, name, cohort.name)) is not None and found.patients
    ]
    return tuple(notes)


def _footnote(sign: str, name: str, found: Overlap, where: str, so: str) -> str:
    number = len(found.patients)
    ids = ", ".join(found.patients[:IDS_SHOWN]) + (", ..." if number > IDS_SHOWN else "")
    return f"{sign} {name}: pre-trained on {plural(number, 'patient')} of {where} ({ids}), so {so}"


def unknown(results: Results) -> tuple[str, ...]:
    """Return the encoders whose overlap is unknown, in the config's order."""
    found = {name: overlap_of(results, name) for name in results.config.encoders}
    return tuple(name for name, item in found.items() if item is not None and not item.known)
