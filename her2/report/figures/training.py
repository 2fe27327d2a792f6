"""Stage 2, report: figures of how models and encoders were trained."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from her2.core.plot_style import PALETTE, STYLE
from her2.report.figures.base import Figure, data_words, file_name, title, vector


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
            title=title("Loss of every fold", synthetic),
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True)
        axes.legend(loc="best", ncols=3)
        alt = f"Train and tune loss over epochs of {len(histories)} folds of {name}"
        alt += f"{data_words(synthetic)}; the kept epochs are in the table of folds."
        return vector(canvas, alt, file_name(name, "learning"))


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
        left.set(ylabel="Cross-entropy a patch", title=title("Loss", synthetic))
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
            f"pre-training {name}{data_words(synthetic)}; best: epoch {best + 1}."
        )
        return vector(canvas, alt, file_name(name, "pretraining"))
