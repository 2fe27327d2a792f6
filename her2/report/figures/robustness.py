"""Stage 2, report: how accurate models are against how robust the features of their encoder are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from her2.core.plot_style import PALETTE, FigureContext
from her2.report.figures.base import Figure, file_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_MARKERS = "oDs^vPX*"
_CHANCE = 0.5

Limited = tuple[float, float | None, float | None]
"""A figure with its limits, which may be undefined."""


@dataclass(frozen=True, slots=True)
class RobustModel:
    """An encoder and head: the encoder's robustness index, and the macro AUC of the model."""

    encoder: str
    head: str
    index: Limited
    auc: Limited


def robustness_figure(
    models: Sequence[RobustModel], task: str, source: str, context: FigureContext
) -> Figure:
    """Return the macro AUC of models over the robustness index of their encoder.

    An encoder has a colour, from the eighth on one that is used before, and a head a marker; each
    point has its encoder's name.
    """
    encoders = list(dict.fromkeys(model.encoder for model in models))
    heads = list(dict.fromkeys(model.head for model in models))

    def paint(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        for model in models:
            colour = PALETTE[encoders.index(model.encoder) % len(PALETTE)]
            marker = _MARKERS[heads.index(model.head) % len(_MARKERS)]
            _paint_point(axes, model, colour, marker, first=model.head == heads[0])
        axes.axvline(_CHANCE, color="#9a9a9a", linewidth=0.8, linestyle=(0, (1, 2)))
        axes.axhline(_CHANCE, color="#9a9a9a", linewidth=0.8, linestyle=(0, (1, 2)))
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, _CHANCE - 0.02), max(high, _CHANCE + 0.02))
        axes.set(
            xlabel=f"Robustness index: {source} only (0) to class only (1)",
            ylabel="Macro AUC within test sets",
            title=context.title(f"Accuracy and robustness, {task}"),
        )
        axes.grid(True)
        canvas.legend(loc="outside right upper", fontsize="small")

    words = "; ".join(
        f"{model.encoder} / {model.head} index {model.index[0]:.3f}, AUC {model.auc[0]:.3f}"
        for model in models
    )
    alt = (
        f"Macro AUC against the robustness index for the {source}, of "
        f"{context.subject(f'{len(models)} models')}: {words}."
    )
    return Figure(file_name(task, f"robustness.{source}"), alt, (7.2, 4.2), paint)


def _paint_point(
    axes: "Axes", model: RobustModel, colour: str, marker: str, *, first: bool
) -> None:
    x, y = model.index[0], model.auc[0]
    for ends, across in ((model.index[1:], True), (model.auc[1:], False)):
        low, high = ends
        if low is not None and high is not None:
            line = ((low, high), (y, y)) if across else ((x, x), (low, high))
            axes.plot(*line, color=colour, linewidth=1, alpha=0.6)
    axes.plot(
        x, y, marker, color=colour, markersize=6, linestyle="none",
        label=f"{model.encoder} / {model.head}",
    )  # fmt: skip
    if first:
        axes.annotate(model.encoder, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
