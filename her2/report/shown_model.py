"""Stage 2, report: what figures, tables and pictures need of a model, on whichever cohort."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from her2.config import Task


class ShownModel(Protocol):
    """An encoder and head with its tables, out-of-fold or on an external cohort.

    `task` has the classes that the tables are for.
    """

    @property
    def name(self) -> str:
        """Return what the page calls it."""

    @property
    def anchor(self) -> str:
        """Return the id of its section on the page, which begins with `model/`."""

    @property
    def encoder(self) -> str:
        """Return the name of its encoder."""

    @property
    def task(self) -> Task:
        """Return the task."""

    @property
    def slides(self) -> pl.DataFrame:
        """Return the probabilities of each slide."""

    @property
    def patients(self) -> pl.DataFrame:
        """Return the probabilities of each patient."""

    @property
    def metrics(self) -> pl.DataFrame:
        """Return its figures at both levels."""

    @property
    def attention(self) -> Mapping[str, pl.DataFrame]:
        """Return the tables of its attention by name."""

    @property
    def heatmaps(self) -> list[dict[str, object]]:
        """Return the list of its pictures."""

    @property
    def scores(self) -> list[dict[str, object]]:
        """Return the list of the pictures of its scores' tiles."""

    @property
    def pictures(self) -> Path:
        """Return the folder of its pictures."""


def find(model: ShownModel, level: str, metric: str, name: str = "") -> dict[str, Any] | None:
    """Return the record of one metric; None when the evaluation lacks it."""
    rows = model.metrics.filter(
        (pl.col("level") == level) & (pl.col("metric") == metric) & (pl.col("class") == name)
    )
    return rows.to_dicts()[0] if len(rows) else None
