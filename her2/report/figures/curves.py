"""Stage 2, report: ROC, precision-recall, reliability and net-benefit curves of one model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from her2.core.plot_style import PALETTE, FigureContext
from her2.report.figures.base import Figure, file_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.5, 1)))
_SQUARE_IN = (4.8, 4.8)
_GREY = "#8a8a8a"
_DOTS: tuple[int, tuple[int, int]] = (0, (2, 2))


@dataclass(frozen=True, slots=True)
class Curve:
    """A ROC or precision-recall curve, without points when it is not defined.

    `area` is formatted as on the page; `level` is the height of the chance line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    area: str
    positive: int
    level: float = 0.0


@dataclass(frozen=True, slots=True)
class Reliability:
    """The reliability of one class: mean probability, observed share and Wilson limits per bin.

    Bins without rows are left out.
    """

    name: str
    probability: Sequence[float]
    observed: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True, slots=True)
class Benefit:
    """Net benefit of the model and of treating everyone, over the thresholds of a grouping."""

    name: str
    threshold: Sequence[float]
    model: Sequence[float]
    treat_all: Sequence[float]


def roc_figure(curves: Sequence[Curve], name: str, context: FigureContext) -> Figure:
    """Return the ROC curves of all classes in one frame, with the chance diagonal."""

    def paint(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        _unit(axes)
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.9, linestyle=_DOTS)
        _lines(axes, curves, "AUC")
        title = context.title("ROC, each score against the rest")
        axes.set(xlabel="False positive rate", ylabel="True positive rate", title=title)
        axes.legend(loc="lower right")

    areas = ", ".join(f"{curve.name} {curve.area}" for curve in curves)
    alt = f"ROC curves of {context.subject(name)}, patient level. AUC: {areas}."
    return Figure(file_name(name, "roc"), alt, _SQUARE_IN, paint)


def precision_figure(curves: Sequence[Curve], name: str, context: FigureContext) -> Figure:
    """Return precision over recall for all classes; a dotted line is the prevalence, or chance."""

    def paint(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        _unit(axes)
        for index, curve in enumerate(curves):
            axes.axhline(curve.level, color=_colour(index), linewidth=0.8, linestyle=_DOTS)
        _lines(axes, curves, "AUPRC", steps="steps-post")
        axes.set(xlabel="Recall", ylabel="Precision", title=context.title("Precision and recall"))
        _legend(canvas, axes, columns=2)

    areas = ", ".join(f"{curve.name} {curve.area}" for curve in curves)
    alt = f"Precision-recall curves of {context.subject(name)}, patients. AUPRC: {areas}."
    return Figure(file_name(name, "precision"), alt, (4.8, 5.3), paint)


def reliability_figure(
    states: Mapping[str, Sequence[Reliability]], name: str, context: FigureContext
) -> Figure:
    """Return the observed share over the predicted probability, one frame per state.

    A calibrated model lies on the diagonal.
    """

    def paint(canvas: "Canvas") -> None:
        frames = canvas.subplots(1, len(states), squeeze=False)[0]
        for axes, (state, classes) in zip(frames, states.items(), strict=True):
            axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.9, linestyle=_DOTS)
            for index, one in enumerate(classes):
                observed = list(one.observed)
                below = [value - low for value, low in zip(observed, one.low, strict=True)]
                above = [high - value for value, high in zip(observed, one.high, strict=True)]
                axes.errorbar(
                    [p + 0.006 * (index - len(classes) / 2) for p in one.probability],
                    observed,
                    yerr=[[max(0.0, b) for b in below], [max(0.0, a) for a in above]],
                    color=_colour(index),
                    linestyle=_DASHES[index % len(_DASHES)],
                    linewidth=1.3,
                    elinewidth=0.7,
                    marker="o",
                    markersize=3.5,
                    label=one.name,
                )
            _unit(axes)
            axes.set(
                xlabel="Predicted probability",
                ylabel="Observed share",
                title=context.title(state[:1].upper() + state[1:]),
            )
        _legend(canvas, frames[0], columns=6)

    alt = f"Reliability of {context.subject(name)}, patients: {', '.join(states)}."
    return Figure(file_name(name, "reliability"), alt, (4.2 * len(states), 4.5), paint)


def benefit_figure(
    groupings: Sequence[Benefit],
    name: str,
    context: FigureContext,
    inside: Mapping[str, Benefit] | None = None,
) -> Figure:
    """Return decision curves, which show net benefit over the threshold, one frame per grouping.

    `inside` has, by grouping, the curves out-of-fold that those of an external cohort are beside.
    """
    beside = inside or {}

    def paint(canvas: "Canvas") -> None:
        frames = canvas.subplots(1, len(groupings), squeeze=False)[0]
        for axes, one in zip(frames, groupings, strict=True):
            axes.plot(one.threshold, one.treat_all, color=PALETTE[1], linestyle=_DASHES[1],
                      linewidth=1.2, label="all positive")  # fmt: skip
            axes.axhline(0, color=_GREY, linewidth=0.9, label="none positive")
            axes.plot(one.threshold, one.model, color=PALETTE[0], linewidth=1.6, label="model")
            own = beside.get(one.name)
            if own is not None:
                axes.plot(own.threshold, own.model, color=PALETTE[2], linestyle=_DASHES[3],
                          linewidth=1.4, label="model, out-of-fold")  # fmt: skip
            top = max([0.05, *one.model, *one.treat_all, *(own.model if own else [])])
            axes.set(
                xlim=(0, 1),
                ylim=(-0.15 * top, 1.08 * top),
                xlabel="Threshold probability",
                title=context.title(one.name),
            )
            axes.grid(True)
        frames[0].set_ylabel("Net benefit")
        _legend(canvas, frames[0], columns=3 if not beside else 2 if len(groupings) == 1 else 4)

    names = ", ".join(one.name for one in groupings)
    alt = f"Net benefit of {context.subject(name)} over thresholds: {names}."
    return Figure(file_name(name, "benefit"), alt, (3.6 * len(groupings), 3.6), paint)


def _legend(canvas: "Canvas", axes: "Axes", *, columns: int) -> None:
    """Put the legend under the frames, since curves may run anywhere in them."""
    canvas.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def _unit(axes: "Axes") -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.grid(True)


def _lines(
    axes: "Axes",
    curves: Sequence[Curve],
    measure: str,
    *,
    steps: Literal["default", "steps-post"] = "default",
) -> None:
    for index, curve in enumerate(curves):
        note = f"{curve.name}: {measure} {curve.area} (n={curve.positive})"
        axes.plot(
            curve.x,
            curve.y,
            color=_colour(index),
            linestyle=_DASHES[index % len(_DASHES)],
            linewidth=1.7,
            drawstyle=steps,
            label=note if len(curve.x) else f"{curve.name}: not defined",
        )


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]
