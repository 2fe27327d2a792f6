"""Every stage that draws: how its figures look, their colours, and what all of them say."""

from dataclasses import dataclass
from typing import Any

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito, Color Universal Design (2008): told apart by people who see few colours."""

STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.linewidth": 0.8,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "text.parse_math": False,  # names of classes are text
    "svg.fonttype": "path",
    "svg.hashsalt": "her2",
}
"""Of every figure; for `matplotlib.rc_context`."""


@dataclass(frozen=True, slots=True)
class FigureContext:
    """What all figures of a run share, made once from the job.

    `synthetic`: the slides were drawn by a program, and every figure has to say so.
    """

    synthetic: bool

    def title(self, text: str) -> str:
        """Return a figure's title, which says when its data are synthetic."""
        return f"{text} (synthetic data)" if self.synthetic else text

    def subject(self, name: str) -> str:
        """Return what a figure is about, for the words that stand for it."""
        return f"{name} on synthetic data" if self.synthetic else name

    def warning(self, words: str, noun: str) -> str:
        """Return a picture's warning, which says when the `noun` that it shows is synthetic."""
        return f"{words}  SYNTHETIC {noun}." if self.synthetic else words
