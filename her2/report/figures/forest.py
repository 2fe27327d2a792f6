"""Stage 2, report: all models of a task at a glance, with what they are to be read against."""

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


@dataclass(frozen=True, slots=True)
class ForestLine:
    """A model: its macro AUC, chance (labels shuffled) and covariates alone, each with limits."""

    name: str
    value: float
    limits: tuple[float, float] | None
    chance: tuple[float, float] | None
    covariates: float | None
    covariates_limits: tuple[float, float] | None


def forest_figure(lines: Sequence[ForestLine], task: str, context: FigureContext) -> Figure:
    """Return the macro AUC of models with intervals, one line per model, in the given order."""
    shown = lines[:SHOWN]

    def paint(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        for at, line in enumerate(shown):
            _paint_line(axes, len(shown) - 1 - at, line, first=at == 0)
        axes.axvline(0.5, color="#9a9a9a", linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set_yticks(range(len(shown)), [line.name for line in reversed(shown)])
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.set(xlabel="Macro AUC within test sets", title=context.title(f"All models of {task}"))
        axes.grid(True, axis="x")
        canvas.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)

    words = "; ".join(f"{line.name} {line.value:.3f}{_words(line.limits)}" for line in shown)
    alt = f"Macro AUC with intervals of {context.subject(f'{len(shown)} models')}: {words}."
    return Figure(file_name(task, "forest"), alt, (7.2, 1.3 + 0.3 * len(shown)), paint)


def _paint_line(axes: "Axes", at: int, line: ForestLine, *, first: bool) -> None:
    if line.chance:
        axes.barh(
            at, line.chance[1] - line.chance[0], left=line.chance[0], height=0.7, color="#e4e4e4",
            label="labels shuffled, 95 % of draws" if first else None,
        )  # fmt: skip
    if line.covariates is not None:
        if line.covariates_limits:
            axes.plot(line.covariates_limits, (at - 0.18,) * 2, color=PALETTE[1], linewidth=1)
        axes.plot(
            line.covariates, at - 0.18, "D", color=PALETTE[1], markersize=3.5,
            label="covariates alone" if first else None,
        )  # fmt: skip
    if line.limits:
        axes.plot(line.limits, (at + 0.12,) * 2, color=PALETTE[0], linewidth=1.8)
    axes.plot(
        line.value, at + 0.12, "o", color=PALETTE[0], markersize=5,
        label="model" if first else None,
    )  # fmt: skip


def _words(limits: tuple[float, float] | None) -> str:
    return f" [{limits[0]:.3f}, {limits[1]:.3f}]" if limits else ""
