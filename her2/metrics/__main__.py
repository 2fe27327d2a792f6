"""Print docs/metrics.md: `python -m her2.metrics > docs/metrics.md`."""

from her2.metrics import all_metrics
from her2.metrics.base import Metric

_HEAD = """\
# Metrics

This page is made by `python -m her2.metrics` from the declarations in `her2/metrics/`. Change
those, not this page. [statistics.md](statistics.md) explains how the figures are pooled and where
their intervals come from. The tests check each metric against scikit-learn or its formula.

| `metric` | definition | better | tables | `training.select` |
| --- | --- | --- | --- | --- |
"""


def page() -> str:
    """Return the page, which has one row per metric."""
    return _HEAD + "".join(f"{_row(metric)}\n" for metric in all_metrics())


def _row(metric: Metric) -> str:
    tables = [f"`{name}`" for name in (*metric.tables, *(["binary"] if metric.grouping else []))]
    cells = (
        f"`{metric.name}`",
        metric.definition.replace("|", "\\|"),
        "larger" if metric.larger_is_better else "smaller",
        ", ".join(tables),
        f"`{metric.selection.name}`" if metric.selection else "-",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(page(), end="")
