"""Stage 2, report: models out-of-fold and on an external cohort, in one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from her2.core.plot_style import PALETTE, FigureContext
from her2.report.figures.base import Figure, file_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

SHOWN = 40
"""Models in a figure; more lines than these cannot be read."""

Limited = tuple[float, float | None, float | None]
"""A value with its limits, None without an interval."""


@dataclass(frozen=True, slots=True)
class ChangeLine:
    """A model: its macro AUC out-of-fold and on the external cohort; None where not defined."""

    name: str
    inside: Limited | None
    outside: Limited | None


def change_figure(
    lines: Sequence[ChangeLine], cohort: str, truth: str, context: FigureContext
) -> Figure:
    """Return the macro AUC of models in both cohorts, one line per model, in the given order."""
    shown = lines[:SHOWN]

    def paint(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        for at, line in enumerate(shown):
            height, first = len(shown) - 1 - at, at == 0
            _paint(axes, height + 0.15, line.inside, 0, "out-of-fold, development", first=first)
            _paint(axes, height - 0.15, line.outside, 1, f"external, {cohort}", first=first)
        axes.axvline(0.5, color="#9a9a9a", linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set_yticks(range(len(shown)), [line.name for line in reversed(shown)])
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.set(xlabel="Macro AUC", title=context.title(f"Development and {cohort}, {truth}"))
        axes.grid(True, axis="x")
        canvas.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)

    words = "; ".join(
        f"{line.name} {_words(line.inside)} out-of-fold and {_words(line.outside)} external"
        for line in shown
    )
    alt = f"Macro AUC of {context.subject(f'{len(shown)} models')} in both cohorts: {words}."
    size = (7.2, 1.3 + 0.42 * len(shown))
    return Figure(file_name(f"{cohort} / {truth}", "external"), alt, size, paint)


def _paint(
    axes: "Axes", at: float, found: Limited | None, colour: int, label: str, *, first: bool
) -> None:
    value, low, high = found or (float("nan"), None, None)
    if low is not None and high is not None:
        axes.plot((low, high), (at, at), color=PALETTE[colour], linewidth=1.8)
    axes.plot(
        value, at, "os"[colour], color=PALETTE[colour], markersize=5, label=label if first else None
    )


def _words(found: Limited | None) -> str:
    if found is None:
        return "NA"
    value, low, high = found
    return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if None not in (low, high) else "")
