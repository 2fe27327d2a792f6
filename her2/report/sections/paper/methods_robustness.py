"""Stage 2, report: the methods of what the features of encoders know beside the label."""

from dataclasses import dataclass

import polars as pl

from her2.evaluation.robustness.neighbours import SHOWN
from her2.evaluation.robustness.probe import FOLDS, PERMUTATIONS, REPEATS
from her2.report.results import Results
from her2.report.sections.paper.prose import paragraph


@dataclass(frozen=True, slots=True)
class _Robustness:
    """Facts of the robustness paragraph; `sources` are those that have a robustness index."""

    patients: int
    tiles: int
    predicted: list[str]
    repeats: int
    folds: int
    permutations: int
    sources: list[str]
    k: int
    compared: bool


def robustness(results: Results) -> str:
    """Describe the sample, the probes, the robustness index and the similarity of encoders."""
    tables = results.robustness
    probed = tables["probes"].filter(pl.col("auc").is_not_null())
    predicted = probed.select("target", "kind").unique(maintain_order=True)
    indexed = tables["neighbours"].filter(pl.col("value").is_not_null())
    return paragraph(
        "robustness",
        _Robustness(
            patients=max(tables["encoders"]["patients"]),
            tiles=max(tables["encoders"]["tiles"]),
            predicted=[
                f"the class of {target}" if kind == "label" else f"the {target}"
                for target, kind in predicted.iter_rows()
            ],
            repeats=REPEATS,
            folds=FOLDS,
            permutations=PERMUTATIONS,
            sources=list(indexed["source"].unique(maintain_order=True)),
            k=SHOWN,
            compared=len(tables["similarity"]) > 0,
        ),
    )
