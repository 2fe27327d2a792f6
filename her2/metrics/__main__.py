"""Print docs/metrics.md: `python -m her2.metrics > docs/metrics.md`."""

from her2.metrics import all_metrics
from her2.metrics.base import Metric

_HEAD = """\
# Metrics

Made by `python -m her2.metrics` from the declarations in `her2/metrics/`; change those, not this
page. How the figures are pooled and where their intervals come from is in
[statistics.md](statistics.md). Each is checked against scikit-learn or its formula in the tests.

| `metric` | what it is | better | in the tables | `training.select` |
| --- | --- | --- | --- | --- |
"""


def page() -> str:
    """The page: a metric a row."""
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
