"""Stage 2, report: figures of shuffled labels and of faithfulness."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl

from her2.core.plot_style import PALETTE, FigureContext
from her2.report.figures.base import Figure, file_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


def shuffled_figure(
    draws: Sequence[float],
    observed: float,
    p: tuple[str, str],
    name: str,
    context: FigureContext,
) -> Figure:
    """Return a histogram of macro AUC with shuffled labels, and the AUC observed.

    `p` are those of the AUC being better, and worse, than chance.
    """
    chance = sum(draws) / len(draws)

    def paint(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        axes.hist(draws, bins=30, color="#b5b5b5", label=f"{len(draws):,} permutations")
        axes.axvline(chance, color="#4d4d4d", linestyle=":", label=f"chance {chance:.3f}")
        axes.axvline(observed, color=PALETTE[1], linewidth=2, label=f"observed {observed:.3f}")
        axes.set(
            xlabel="Macro AUC",
            ylabel="Permutations",
            title=context.title("Labels shuffled within the folds"),
        )
        # Under the frame, since the observed line may be anywhere in it.
        canvas.legend(loc="outside lower center", ncols=3, fontsize="small")

    alt = (
        f"Macro AUC of {context.subject(name)} under {len(draws):,} permutations of the "
        f"labels, from {min(draws):.3f} to {max(draws):.3f} with mean {chance:.3f}; observed "
        f"{observed:.3f}, p {p[0]} for better and {p[1]} for worse than chance."
    )
    return Figure(file_name(name, "shuffled"), alt, (4.8, 3.0), paint)


def faithfulness_figure(
    curves: Mapping[str, Mapping[str, pl.DataFrame]], name: str, context: FigureContext
) -> Figure:
    """Return deletion and insertion curves, given as curve -> order -> table, in frames.

    A table has `share` of the tiles and mean probability `value` with `low` and `high`.
    """
    words = {"deletion": "Share of tiles removed", "insertion": "Share of tiles added"}

    def paint(canvas: "Canvas") -> None:
        frames = canvas.subplots(1, len(curves), squeeze=False, sharey=True)[0]
        for axes, (curve, orders) in zip(frames, curves.items(), strict=True):
            for index, (order, table) in enumerate(orders.items()):
                share, value, low, high = (
                    table[name].to_list() for name in ("share", "value", "low", "high")
                )
                colour = (PALETTE[0], "#7a7a7a")[index % 2]
                style = ("-", (0, (5, 1.5)))[index % 2]
                axes.plot(
                    share, value, color=colour, linestyle=style, linewidth=1.6,
                    marker="o", markersize=3, label=f"{order} order",
                )  # fmt: skip
                if None not in (*low, *high):
                    axes.fill_between(share, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.set(
                xlabel=words.get(curve, curve),
                title=context.title(curve[:1].upper() + curve[1:]),
            )
            axes.grid(True)
        frames[0].set_ylabel("P(predicted class)")
        frames[0].legend(loc="best")

    alt = f"Deletion and insertion curves of {context.subject(name)}, means over patients."
    return Figure(file_name(name, "faithfulness"), alt, (7.2, 3.0), paint)
