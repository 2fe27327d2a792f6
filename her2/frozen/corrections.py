"""What an evaluation found for each model: the shares of its classes, and its temperature."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from her2.core.errors import UserError, problem_list
from her2.core.tables import read_result
from her2.core.types import Floats
from her2.evaluation.temperature import TEMPERATURES
from her2.mil.priors import prior_table


@dataclass(frozen=True, slots=True)
class Corrections:
    """What corrects the probabilities of a run's model.

    `key` names the model in the cache. `share` and `seen` (c,), in the order of `classes`, are
    those of `her2.mil.priors`. `temperature` is None without a tuning set.
    """

    key: str
    classes: tuple[str, ...]
    share: Floats
    seen: Floats
    temperature: float | None


def read_corrections(evaluation: Path, priors: Path | None = None) -> dict[str, Corrections]:
    """Read the tables `priors` and `temperatures` of an evaluation: run -> corrections.

    Args:
        evaluation: the folder of the tables.
        priors: the table `priors`, where it may lie alone: then no temperature is known.

    Raises:
        UserError: a table is absent, damaged or none of these, or they are of different models.
    """
    path = priors or evaluation / "priors.parquet"
    table = prior_table(path)
    alone = priors is not None and not (evaluation / "temperatures.parquet").exists()
    temperatures = (
        dict.fromkeys(table["run"]) if alone else _temperatures(evaluation / "temperatures.parquet")
    )
    found: dict[str, Corrections] = {}
    problems = []
    for (run,), own in table.partition_by("run", as_dict=True, maintain_order=True).items():
        name = str(run)
        share, seen = own["share"].to_numpy(), own["seen"].to_numpy()
        temperature = temperatures.get(name)
        if own["key"].n_unique() != 1 or own["class"].n_unique() != len(own):
            problems.append(f"{name}: has several rows of one class in priors.parquet")
        if not (_is_distribution(share) and _is_distribution(seen)):
            problems.append(f"{name}: its shares in priors.parquet are none")
        if name not in temperatures:
            problems.append(f"{name}: is not in temperatures.parquet")
        elif temperature is not None and not 0 < temperature < np.inf:
            problems.append(f"{name}: its temperature is {temperature}")
        found[name] = Corrections(own["key"][0], tuple(own["class"]), share, seen, temperature)
    problems += [f"{run}: is not in priors.parquet" for run in temperatures if run not in found]
    if not found and not alone:
        problems.append("they have no model")
    if problems:
        raise problem_list(
            f"{evaluation}: its tables priors and temperatures are not of one evaluation; run "
            "snakemake again",
            problems,
        )
    return found


def _temperatures(path: Path) -> Mapping[str, float | None]:
    table = read_result(path)
    try:
        table = table.select(list(TEMPERATURES)).cast(pl.Schema(TEMPERATURES))
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{path}: is not a table `temperatures` of her2 evaluate ({error}). Run snakemake "
            "again."
        ) from None
    return dict(table.select("run", "temperature").iter_rows())


def _is_distribution(shares: Floats) -> bool:
    return bool(np.isfinite(shares).all() and (shares >= 0).all() and abs(shares.sum() - 1) < 1e-6)
