"""Stage 2, report: figures as data URIs, equal bytes for equal numbers."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator
from PIL import Image

from her2.plot_style import PALETTE, STYLE

_DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.5, 1)))

# All of them, so that no date and no version is written.
_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture on the page; `alt` says in words what it shows. Sizes are CSS px."""

    uri: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Curve:
    """A ROC curve; no points when it is not defined. `area` is written as on the page."""

    name: str
    false_rate: Sequence[float]
    true_rate: Sequence[float]
    area: str
    positive: int


def roc_figure(curves: Sequence[Curve], *, name: str, synthetic: bool) -> Figure:
    """ROC curves of all classes in one frame, with the diagonal of chance."""
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(4.8, 4.8), layout="constrained")
        axes = canvas.subplots()
        axes.plot([0, 1], [0, 1], color="#8a8a8a", linewidth=0.9, linestyle=(0, (2, 2)))
        for index, curve in enumerate(curves):
            note = f"{curve.name}: AUC {curve.area} (n={curve.positive})"
            axes.plot(
                curve.false_rate,
                curve.true_rate,
                color=PALETTE[index % len(PALETTE)],
                linestyle=_DASHES[index % len(_DASHES)],
                linewidth=1.7,
                label=note if len(curve.false_rate) else f"{curve.name}: not defined",
            )
        axes.set(
            xlim=(-0.01, 1.01),
            ylim=(-0.01, 1.01),
            aspect="equal",
            xlabel="False positive rate",
            ylabel="True positive rate",
            title=_title("ROC, one score against the rest", synthetic),
        )
        axes.grid(True)
        axes.legend(loc="lower right")
        areas = ", ".join(f"{curve.name} {curve.area}" for curve in curves)
        alt = f"ROC curves of {name}{_data(synthetic)}, patient level. AUC: {areas}."
        return _svg(canvas, alt)


def learning_figure(
    histories: Mapping[str, Mapping[str, Sequence[float]]],
    kept: Mapping[str, int],
    *,
    name: str,
    synthetic: bool,
) -> Figure | None:
    """Losses over epochs of every fold, the kept epoch marked; None without histories.

    Args:
        histories: run -> `epoch` (from 0), `train_loss`, `tune_loss`.
        kept: run -> the epoch (from 0) whose model was kept.
        name: of the model.
        synthetic: the slides are drawn.
    """
    if not histories:
        return None
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(7.2, 3.4), layout="constrained")
        axes = canvas.subplots()
        for index, (run, history) in enumerate(histories.items()):
            epochs = [epoch + 1 for epoch in history["epoch"]]
            labels = ("train", "tune", "kept epoch") if index == 0 else (None, None, None)
            train, tune = history["train_loss"], history["tune_loss"]
            axes.plot(epochs, train, color="#9a9a9a", linewidth=0.9, label=labels[0])
            axes.plot(epochs, tune, color=PALETTE[0], linewidth=1.2, label=labels[1])
            best = kept[run]
            axes.plot(
                [epochs[best]],
                [tune[best]],
                marker="o",
                markersize=5.5,
                linestyle="",
                color=PALETTE[1],
                label=labels[2],
                zorder=3,
            )
        axes.set(
            xlabel="Epoch",
            ylabel="Cross-entropy a slide",
            title=_title("Loss of every fold", synthetic),
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True)
        axes.legend(loc="best", ncols=3)
        alt = f"Train and tune loss over epochs of {len(histories)} folds of {name}"
        return _svg(canvas, f"{alt}{_data(synthetic)}; the kept epochs are in the table of folds.")


def pretraining_figure(
    history: Mapping[str, Sequence[float]], best: int, *, name: str, synthetic: bool
) -> Figure:
    """Losses and balanced accuracy of one encoder's pre-training, the best epoch marked.

    Args:
        history: `epoch` (from 0), `train_loss`, `validation_loss`, `balanced_accuracy`.
        best: the epoch (from 0) that was kept.
        name: of the encoder.
        synthetic: the slides are drawn.
    """
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(7.2, 3.2), layout="constrained")
        left, right = canvas.subplots(1, 2)
        epochs = [epoch + 1 for epoch in history["epoch"]]
        losses = history["validation_loss"]
        left.plot(epochs, history["train_loss"], color="#9a9a9a", linewidth=1.2, label="train")
        left.plot(epochs, losses, color=PALETTE[0], linewidth=1.5, label="validation")
        left.set(ylabel="Cross-entropy a patch", title=_title("Loss", synthetic))
        accuracy = history["balanced_accuracy"]
        right.plot(epochs, accuracy, color=PALETTE[0], linewidth=1.5, label="validation")
        right.set(ylim=(0, 1.03), ylabel="Balanced accuracy", title="Validation patches")
        for axes, values in ((left, losses), (right, accuracy)):
            axes.plot(
                [best + 1],
                [values[history["epoch"].index(best)]],
                marker="o",
                markersize=5.5,
                linestyle="",
                color=PALETTE[1],
                label="best epoch",
                zorder=3,
            )
            axes.set_xlabel("Epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(True)
            axes.legend(loc="best")
        alt = (
            f"Train loss, validation loss and balanced accuracy over {len(epochs)} epochs of "
            f"pre-training {name}{_data(synthetic)}; best: epoch {best + 1}."
        )
        return _svg(canvas, alt)


def jpeg(path: Path, *, side_px: tuple[int, int], quality: int, alt: str) -> Figure:
    """A picture shrunk to fit into `side_px` (width, height).

    Raises:
        OSError: it cannot be read.
    """
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail(side_px, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality, optimize=True)
    return Figure(_uri("image/jpeg", buffer.getvalue()), alt, small.width, small.height)


def _svg(canvas: Canvas, alt: str) -> Figure:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="svg", metadata=_METADATA)
    width, height = (round(side * 96) for side in canvas.get_size_inches())
    return Figure(_uri("image/svg+xml", buffer.getvalue()), alt, width, height)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _title(text: str, synthetic: bool) -> str:
    return f"{text} (synthetic data)" if synthetic else text


def _data(synthetic: bool) -> str:
    return " on synthetic data" if synthetic else ""
