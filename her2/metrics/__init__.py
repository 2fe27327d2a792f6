"""The metrics, by name. Each is declared in a module of this package, and nowhere else.

A module lists what it declares in `METRICS`; all modules but `base` are read. The config looks
names up here, so importing a metric must stay light: libraries beyond numpy are imported by the
function that needs them.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from her2.core.errors import UserError
from her2.metrics.base import Metric, Selection, Table


@cache
def all_metrics() -> tuple[Metric, ...]:
    """Every metric, in the order of tables and text.

    Raises:
        ValueError: a name is used twice.
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
    return tuple(sorted(found, key=lambda metric: (metric.order, metric.name)))


def metric_named(name: str) -> Metric:
    """The metric of this name.

    Raises:
        UserError: there is none, as in tables that were made with a module that is gone.
    """
    for metric in all_metrics():
        if metric.name == name:
            return metric
    raise UserError(
        f"metric {name!r}: is in the tables, and no module of her2/metrics declares it; put its "
        "module back, or delete the folder `evaluation` of the results and run snakemake again."
    )


def metrics_in(table: Table, *, ordinal: bool) -> tuple[Metric, ...]:
    """The metrics of a table, for a task whose classes are ordered or not."""
    return tuple(
        metric
        for metric in all_metrics()
        if table in metric.tables and (ordinal or not metric.ordinal)
    )


def grouping_metrics() -> tuple[Metric, ...]:
    """The metrics of two groups of classes."""
    return tuple(metric for metric in all_metrics() if metric.grouping)


def headline_metrics() -> tuple[Metric, ...]:
    """The metrics of the report's headline, in the order of its columns."""
    found = [(metric.headline, metric) for metric in all_metrics() if metric.headline is not None]
    return tuple(metric for _, metric in sorted(found, key=lambda pair: pair[0]))


def selecting_metrics() -> dict[str, tuple[Metric, Selection]]:
    """Value of `training.select` (beside `loss`) -> the metric that picks the epoch, and how."""
    return {
        metric.selection.name: (metric, metric.selection)
        for metric in all_metrics()
        if metric.selection is not None
    }
