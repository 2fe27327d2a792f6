"""Stage 2, report: figures of the training of models and encoders."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from her2.core.plot_style import PALETTE, FigureContext
from her2.report.figures.base import Figure, file_name
from her2.report.format import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


def learning_figure(
    histories: Mapping[str, Mapping[str, Sequence[float]]],
    kept: Mapping[str, int],
    name: str,
    context: FigureContext,
) -> Figure | None:
    """Return the losses of every trained model over epochs, with the kept epochs marked.

    None without histories.

    Histories are run -> `epoch` (from 0), `train_loss`, `tune_loss`; `kept` is run -> epoch.
    """
    if not histories:
        return None

    def paint(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        for index, (run, history) in enumerate(histories.items()):
            epochs = [epoch + 1 for epoch in history["epoch"]]
            labels = ("training", "tuning", "kept epoch") if index == 0 else (None, None, None)
            train, tune = history["train_loss"], history["tune_loss"]
            axes.plot(epochs, train, color="#9a9a9a", linewidth=0.9, label=labels[0])
            axes.plot(epochs, tune, color=PALETTE[0], linewidth=1.2, label=labels[1])
            _dot(axes, epochs[kept[run]], tune[kept[run]], labels[2])
        axes.set(
            ylabel="Cross-entropy per slide", title=context.title("Loss of every trained model")
        )
        _over_epochs(axes, columns=3)

    models = plural(len(histories), "trained model")
    alt = f"Training and tuning loss by epoch for {models} of {context.subject(name)}"
    alt += ". The kept epochs are in the table of folds."
    return Figure(file_name(name, "learning"), alt, (7.2, 3.4), paint)


def pretraining_figure(
    history: Mapping[str, Sequence[float]], best: int, name: str, context: FigureContext
) -> Figure:
    """Return losses and balanced accuracy of one encoder's pre-training, best epoch marked.

    `history` has `epoch` (from 0), `train_loss`, `validation_loss` and `balanced_accuracy`.
    """

    def paint(canvas: "Canvas") -> None:
        left, right = canvas.subplots(1, 2)
        epochs = [epoch + 1 for epoch in history["epoch"]]
        losses = history["validation_loss"]
        left.plot(epochs, history["train_loss"], color="#9a9a9a", linewidth=1.2, label="training")
        left.plot(epochs, losses, color=PALETTE[0], linewidth=1.5, label="validation")
        left.set(ylabel="Cross-entropy per patch", title=context.title("Loss"))
        accuracy = history["balanced_accuracy"]
        right.plot(epochs, accuracy, color=PALETTE[0], linewidth=1.5, label="validation")
        right.set(ylim=(0, 1.03), ylabel="Balanced accuracy", title="Validation patches")
        for axes, values in ((left, losses), (right, accuracy)):
            _dot(axes, best + 1, values[history["epoch"].index(best)], "best epoch")
            _over_epochs(axes)

    alt = (
        f"Training and validation loss and balanced accuracy in {len(history['epoch'])} epochs of "
        f"pre-training {context.subject(name)}; best: epoch {best + 1}."
    )
    return Figure(file_name(name, "pretraining"), alt, (7.2, 3.2), paint)


def _dot(axes: "Axes", epoch: float, value: float, label: str | None) -> None:
    looks: Any = {"marker": "o", "markersize": 5.5, "linestyle": "", "color": PALETTE[1]}
    axes.plot([epoch], [value], label=label, zorder=3, **looks)


def _over_epochs(axes: "Axes", *, columns: int = 1) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True)
    axes.legend(loc="best", ncols=columns)
