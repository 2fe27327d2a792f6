"""Stage 2, compare: the claim of arXiv 2411.05028, "H&E pre-training beats IHC and non-medical"."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from her2.config import Domain
from her2.core.tables import null
from her2.evaluation.intervals import Estimate, difference_estimate
from her2.evaluation.paired import MACRO, Model, Paired

WORDS: dict[Domain, str] = {"he": "H&E", "ihc": "IHC", "natural": "non-medical"}
"""Groups of the claim; encoders of both stains (`he_ihc`) and untrained ones are in none."""


def statement_records(
    paired: Paired | None, domains: Mapping[str, Domain], heads: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """Yield the H&E encoders' mean macro AUC minus that of the IHC and of the non-medical ones.

    `H&E - both` is the smaller of the two differences, with the smaller of each limit and the
    larger p value (intersection-union test: Berger, Technometrics 24(4), 1982).

    Args:
        paired: all models on common patients; None for a single model.
        domains: encoder -> kind of images that it was trained on.
        heads: the heads, each of which gives three rows.

    Yields:
        `head, statement, first, second, difference, low, high, p, family, n, note`.
    """
    groups = {domain: [name for name, own in domains.items() if own == domain] for domain in WORDS}
    for head in heads:
        first = ", ".join(groups["he"])
        others: tuple[Domain, ...] = ("ihc", "natural")
        found = {other: _difference(paired, groups, other, head) for other in others}
        rows = [(WORDS[other], groups[other], one) for other, one in found.items()]
        rows.append(("both", [*groups["ihc"], *groups["natural"]], _both(list(found.values()))))
        for name, second, one in rows:
            yield {
                "head": head,
                "statement": f"{WORDS['he']} - {name}",
                "first": first,
                "second": ", ".join(second),
                "difference": null(one.value),
                "low": null(one.low),
                "high": null(one.high),
                "p": null(one.p),
                "family": "encoders",
                "n": paired.counts[MACRO] if paired else None,
                "note": one.note,
            }


def _difference(
    paired: Paired | None, groups: Mapping[Domain, list[str]], other: Domain, head: str
) -> Estimate:
    lacking = [WORDS[domain] for domain in ("he", other) if not groups[domain]]
    if lacking:
        reason = f"no encoder whose domain is {' or '.join(lacking)}"
        return Estimate(math.nan, note=reason)
    assert paired is not None  # two domains are two models
    weights: dict[Model, float] = {}
    signs: dict[Domain, int] = {"he": 1, other: -1}
    for domain, sign in signs.items():
        weights |= {(name, head): sign / len(groups[domain]) for name in groups[domain]}
    return difference_estimate(paired.contrast(weights, MACRO), paired.confidence)


def _both(differences: list[Estimate]) -> Estimate:
    """Return the smaller difference, the smaller of each limit and the larger p value."""
    notes = dict.fromkeys(one.note for one in differences if one.note)
    if any(math.isnan(one.value) for one in differences):
        return Estimate(math.nan, note="; ".join(notes))
    value, low, high = (
        min(getattr(one, name) for one in differences) for name in ("value", "low", "high")
    )
    note = "; ".join(notes)
    if value <= 0 and not note:
        note = "H&E is not above both, so p does not support the statement"
    return Estimate(value, low, high, max(one.p for one in differences), note=note)
