"""The look that all pictures of the lab share, and what they draw: curves by epoch, one for each rule."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, TypeAlias

from ..extras import require
from ..rules import RULES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves: TypeAlias = dict[str, dict[str, list[float]]]  # rule -> quantity -> its values, one after each epoch

# The colours of Okabe and Ito, which colour-blind people tell apart; without yellow, which is too pale for a line.
PALETTE = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
COLOURS = dict(zip(RULES, cycle(PALETTE)))  # a rule has one colour in all pictures

DPI = 200  # twice what a page shows, for sharp screens
FONT_SIZE = 11


def new_figure(
    panels: int = 1, width: float = 9.0, height: float = 4.0, columns: int | None = None
) -> tuple[Figure, Sequence[Axes]]:
    """Make a figure with panels side by side, without pyplot and its global state.

    Parameters
    ----------
    panels : int
    width, height : float
        In inches; 9 inches fill the width of a page of 900 pixels.
    columns : int, optional
        So many panels in a row; by default, all of them.

    Returns
    -------
    figure : matplotlib.figure.Figure
    axes : sequence of matplotlib.axes.Axes
        One for each panel.
    """
    layout = require("matplotlib.layout_engine", "lab").ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06)
    figure: Figure = require("matplotlib.figure", "lab").Figure((width, height), dpi=DPI, layout=layout)
    columns = columns or panels
    axes = [figure.add_subplot(-(-panels // columns), columns, i + 1) for i in range(panels)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=FONT_SIZE - 1)
        each.xaxis.label.set_fontsize(FONT_SIZE)
        each.yaxis.label.set_fontsize(FONT_SIZE)
        each.grid(color="0.9", linewidth=0.8)
        each.set_axisbelow(True)
        each.margins(x=0.02)
    return figure, axes


def draw(axes: Axes, curves: Curves, quantity: str) -> None:
    """Draw one quantity of every rule by epoch, from 1."""
    for rule, curve in curves.items():
        values = curve[quantity]
        marker = "o" if len(values) == 1 else None  # one point has no line
        axes.plot(range(1, len(values) + 1), values, color=COLOURS[rule], linewidth=1.6, marker=marker, label=rule)
    axes.set_xlabel("epoch")
    ticker = require("matplotlib.ticker", "lab")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def use_log_scale(axes: Axes) -> None:
    """Make the values' axis logarithmic, with plain numbers at 1, 2 and 5 of every power of ten."""
    ticker = require("matplotlib.ticker", "lab")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def add_legend(figure: Figure, axes: Axes) -> None:
    """Put the legend of one panel above all of them, where it covers no curve."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=FONT_SIZE)


def first_below(values: Sequence[float], bound: float) -> int | None:
    """Return the first epoch, from 1, after which a value is below a bound."""
    return next((epoch for epoch, value in enumerate(values, start=1) if value < bound), None)
