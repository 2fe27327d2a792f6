"""Stage 2, compare: the claim of arXiv 2411.05028, "H&E pre-training beats IHC and non-medical"."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from her2.config import Domain
from her2.core.types import Floats
from her2.evaluation.paired import MACRO, Paired, difference

STATEMENT = {
    "head": pl.String,
    "statement": pl.String,
    "first": pl.String,
    "second": pl.String,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "n": pl.Int64,
    "holds": pl.Boolean,
    "note": pl.String,
}
WORDS: dict[Domain, str] = {"he": "H&E", "ihc": "IHC", "natural": "non-medical"}
"""Groups of the claim; encoders of both stains (`he_ihc`) and untrained ones are in none."""


def statement_table(
    paired: Paired | None, domains: Mapping[str, Domain], heads: tuple[str, ...]
) -> pl.DataFrame:
    """Return the H&E encoders' mean macro AUC minus that of the IHC and of the non-medical ones.

    `H&E - both` is the smaller of the two differences, with the bootstrap interval of the smaller.
    Its p is the larger of the two (intersection-union test: Berger, Technometrics 24(4), 1982).
    `holds` tells whether the interval lies above 0.

    Args:
        paired: all models on common patients; None for a single model.
        domains: encoder -> kind of images that it was trained on.
        heads: the heads, each of which gives three rows.

    Returns:
        `head, statement, first, second, difference, low, high, p, n, holds, note`.
    """
    groups = {domain: [name for name, own in domains.items() if own == domain] for domain in WORDS}
    records = [record for head in heads for record in _of_head(paired, groups, head)]
    return pl.DataFrame(records, schema=STATEMENT)


def _of_head(
    paired: Paired | None, groups: Mapping[Domain, list[str]], head: str
) -> list[dict[str, Any]]:
    differences: dict[Domain, Floats | None] = {
        other: _mean_difference(paired, groups["he"], groups[other], head)
        for other in ("ihc", "natural")
    }
    both = None
    found = [values for values in differences.values() if values is not None]
    if len(found) == len(differences):
        both = np.minimum(*found)
    first = ", ".join(groups["he"])
    records = []
    for other, values in differences.items():
        record = _record(paired, values, _lacking(groups, ("he", other)))
        name, second = f"{WORDS['he']} - {WORDS[other]}", ", ".join(groups[other])
        records.append(
            {"head": head, "statement": name, "first": first, "second": second, **record}
        )
    record = _record(paired, both, _lacking(groups, tuple(WORDS)))
    if record.get("p") is not None:
        record["p"] = max(one["p"] for one in records)
        if record["difference"] <= 0:
            record["note"] = "H&E is not above both, so p does not support the statement"
    second = ", ".join([*groups["ihc"], *groups["natural"]])
    name = f"{WORDS['he']} - both"
    return [
        *records,
        {"head": head, "statement": name, "first": first, "second": second, **record},
    ]


def _mean_difference(
    paired: Paired | None, first: list[str], second: list[str], head: str
) -> Floats | None:
    if paired is None or not first or not second:
        return None
    sides = [
        np.mean([paired.areas[encoder, head][MACRO] for encoder in side], axis=0)
        for side in (first, second)
    ]
    return sides[0] - sides[1]


def _lacking(groups: Mapping[Domain, list[str]], needed: tuple[Domain, ...]) -> str:
    words = [WORDS[domain] for domain in needed if not groups[domain]]
    return f"no encoder whose domain is {' or '.join(words)}" if words else ""


def _record(paired: Paired | None, values: Floats | None, lacking: str) -> dict[str, Any]:
    """Return the values of the columns from `difference` on."""
    if values is None or paired is None:
        return {"note": lacking or "not defined: fewer than 2 models"}
    problem = paired.problems[MACRO]
    record: dict[str, Any] = {"n": paired.counts[MACRO], "note": problem}
    if np.isnan(values[0]):
        return record
    if problem:
        return record | {"difference": float(values[0])}
    found = difference(values, paired.confidence, paired.sizes[MACRO])
    return record | found | {"holds": found["low"] > 0}
