"""The metrics by name, each declared in a module of this package and nowhere else.

A module lists its declarations in `METRICS`. All modules but `base` are read. The config looks
names up here, so importing a metric must stay light: libraries beyond numpy are imported by the
functions that need them.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from her2.core.errors import UserError
from her2.metrics.base import Metric, Selection, Table


@cache
def all_metrics() -> tuple[Metric, ...]:
    """Return all metrics, in the order of tables and text.

    Raises:
        ValueError: two metrics have the same name, or one is computed within folds that cannot be.
    """
    modules = [
        import_module(f"{__name__}.{module.name}")
        for module in iter_modules(__path__)
        if module.name != "base" and not module.name.startswith("_")
    ]
    found: list[Metric] = [metric for module in modules for metric in module.METRICS]
    names = [metric.name for metric in found]
    selecting = ["loss", *(metric.selection.name for metric in found if metric.selection)]
    for used in (names, selecting):
        if twice := sorted({name for name in used if used.count(name) > 1}):
            raise ValueError(f"two metrics are called {twice[0]!r}")
    if other := [metric.name for metric in found if metric.within_folds and metric.name != "auc"]:
        raise ValueError(
            f"metric {other[0]!r}: `within_folds` is for the AUC, the only metric that "
            "`her2.evaluation.areas` computes within test sets"
        )
    return tuple(sorted(found, key=lambda metric: (metric.order, metric.name)))


def metric_named(name: str) -> Metric:
    """Return the metric with a name.

    Raises:
        UserError: there is none, as after deleting a module whose metric is in the tables.
    """
    for metric in all_metrics():
        if metric.name == name:
            return metric
    raise UserError(
        f"metric {name!r}: is in the tables, but no module of her2/metrics declares it. Restore "
        "its module, or delete the folder `evaluation` of the results and run snakemake again."
    )


def metrics_in(table: Table, *, ordinal: bool) -> tuple[Metric, ...]:
    """Return the metrics of a table; those of ordered classes only where the task is `ordinal`."""
    return tuple(
        metric
        for metric in all_metrics()
        if table in metric.tables and (ordinal or not metric.ordinal)
    )


def grouping_metrics() -> tuple[Metric, ...]:
    """Return the metrics that compare two groups of classes."""
    return tuple(metric for metric in all_metrics() if metric.grouping)


def headline_metrics() -> tuple[Metric, ...]:
    """Return the metrics of the report's headline, in the order of its columns."""
    found = [(metric.headline, metric) for metric in all_metrics() if metric.headline is not None]
    return tuple(metric for _, metric in sorted(found, key=lambda pair: pair[0]))


def selecting_metrics() -> dict[str, tuple[Metric, Selection]]:
    """Return the metric and its selection for each value of `training.select` other than `loss`."""
    return {
        metric.selection.name: (metric, metric.selection)
        for metric in all_metrics()
        if metric.selection is not None
    }
