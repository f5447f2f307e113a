"""The style of all pictures of the lab, and functions that draw curves, bands, landscapes and paths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..extras import require
from .network import Array
from .training import OPTIMIZERS, SCHEDULES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Limits: TypeAlias = tuple[float, float]
Axes3D: TypeAlias = Any  # mplot3d has no types
Loss: TypeAlias = Callable[[Array], Array]  # points, shape (..., 2) -> a value for each
Dash: TypeAlias = str | tuple[float, tuple[float, ...]]  # a line style of matplotlib

# The colours of Okabe and Ito, which colour-blind people can distinguish; with a brown in place of yellow, too pale for
# a line. Colours and dashes are used in this order: lines are dashed when all colours are taken.
PALETTE = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#702808")
DASHES: tuple[Dash, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)))
LOOKS = ((colour, dash) for dash in DASHES for colour in PALETTE)
RULE_LINES = dict(zip(OPTIMIZERS, LOOKS, strict=False))  # a rule has one colour and one kind of line in all pictures
RULE_COLOURS = {rule: colour for rule, (colour, _) in RULE_LINES.items()}
# Muted colours of Paul Tol: a schedule too has one colour in all pictures, which no rule has.
SCHEDULE_PALETTE = ("#332288", "#999933", "#CC6677", "#117733", "#AA4499", "#44AA99", "#882255")
SCHEDULE_COLOURS = dict(zip(SCHEDULES, cycle(SCHEDULE_PALETTE)))
AT_THE_END = "at the end"  # marks a note that an animation shows last

DPI = 200  # twice a page's resolution, for sharp screens
WIDTH = 9.0  # inches; fills a page of 900 pixels
FONT_SIZE = 11
SMALL = FONT_SIZE - 2
HEIGHTS = ("#6f8aa3", "#bccbd8", "#f4f1e8")  # colours of a landscape, from deep to high; pale, so that paths stand out
LIGHT = {"azdeg": 315, "altdeg": 50}  # the position of the light
LINES = 14  # contour lines
BAND = "band"  # marks a band, for animations
IN_A_ROW = 5  # entries of a legend, at most, if their names are short
GRID = 201  # points of a landscape along each axis


def new_figure(
    mosaic: Sequence[Sequence[str]], height: float = 4.0, projections: Mapping[str, str] | None = None, **ratios: Any
) -> tuple[Figure, dict[str, Axes]]:
    """Make a figure of named panels, without pyplot and its global state.

    Parameters
    ----------
    mosaic : sequence of sequences of str
        Rows of names; a panel covers all cells with its name, ``"."`` leaves a cell empty.
    height : float
        Height in inches.
    projections : mapping, optional
        Panels that are not flat: name -> ``"3d"``.
    **ratios
        ``width_ratios`` and ``height_ratios``, as of matplotlib's subplot_mosaic.

    Returns
    -------
    figure : matplotlib.figure.Figure
    axes : dict
        Name -> its panel.
    """
    layout = require("matplotlib.layout_engine", "lab").ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06)
    from .picture import Picture  # imports matplotlib; `require` has checked that it is installed

    figure = Picture((WIDTH, height), dpi=DPI, layout=layout)
    special: Any = {name: {"projection": projection} for name, projection in (projections or {}).items()}
    rows: Any = [list(row) for row in mosaic]
    axes = figure.subplot_mosaic(rows, per_subplot_kw=special, **ratios)
    for each in axes.values():
        each.tick_params(labelsize=FONT_SIZE - 1)
        for part in (each.xaxis.label, each.yaxis.label, each.title):
            part.set_fontsize(FONT_SIZE)
        if each.name == "rectilinear":
            each.spines[["top", "right"]].set_visible(False)
            each.grid(color="0.9", linewidth=0.8)
            each.set_axisbelow(True)
            each.margins(x=0.02)
    return figure, axes


def draw_curve(
    axes: Axes, values: Sequence[float] | Array, label: str, colour: str, first: int = 1, linestyle: Dash = "-"
) -> None:
    """Draw values by epoch or by step, from `first` on; 0 if the values include the start."""
    marker = "o" if len(values) == 1 else None  # a single point has no line
    epochs = range(first, first + len(values))
    axes.plot(epochs, values, color=colour, linewidth=1.6, linestyle=linestyle, marker=marker, label=label)


def draw_rule(axes: Axes, values: Sequence[float] | Array, rule: str) -> None:
    """Draw the values of a rule by epoch or by step, with the rule's own line."""
    colour, dash = RULE_LINES[rule]
    draw_curve(axes, values, rule, colour, linestyle=dash)


def draw_band(axes: Axes, middle: Array, low: Array, high: Array, label: str, colour: str) -> None:
    """Draw the results of several runs by epoch: a line, and a band around it."""
    draw_curve(axes, middle, label, colour)
    axes.fill_between(range(1, 1 + len(middle)), low, high, color=colour, alpha=0.13, linewidth=0, gid=BAND)


def label_epochs(axes: Axes, label: str = "epoch") -> None:
    """Label a panel's horizontal axis, with whole numbers."""
    ticker = require("matplotlib.ticker", "lab")
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def use_log_scale(axes: Axes, subs: Sequence[int] = (1, 2, 5)) -> None:
    """Make the vertical axis logarithmic, with plain numbers at 1, 2 and 5 times every power of ten, or as given."""
    ticker = require("matplotlib.ticker", "lab")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def add_legend(figure: Figure, axes: Axes, in_a_row: int = IN_A_ROW) -> None:
    """Put one panel's legend above all panels, where it covers no curve, in as few rows as it needs."""
    handles, labels = axes.get_legend_handles_labels()
    rows = math.ceil(len(labels) / in_a_row)
    columns = math.ceil(len(labels) / rows)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=FONT_SIZE)


def grid_of(x: Limits, y: Limits) -> tuple[Array, Array, Array]:
    """Return the grid of a rectangle: the points along x, along y, and all points, shape (GRID, GRID, 2)."""
    along_x, along_y = np.linspace(*x, GRID), np.linspace(*y, GRID)
    return along_x, along_y, np.stack(np.meshgrid(along_x, along_y), axis=-1)


def shades(values: Array, x: Limits, y: Limits, relief: bool) -> Array:
    """Return the colours of a landscape, from deep to high; with relief, lit from the upper left."""
    colors = require("matplotlib.colors", "lab")
    colormap = colors.LinearSegmentedColormap.from_list("heights", HEIGHTS)
    if not relief:
        plain: Array = colormap(colors.PowerNorm(0.5)(values))  # more shades for deep, flat parts
        return plain
    steps = {"dx": (x[1] - x[0]) / (GRID - 1), "dy": (y[1] - y[0]) / (GRID - 1)}
    exaggeration = 0.15 * (x[1] - x[0]) / np.ptp(values)
    light = colors.LightSource(**LIGHT)
    lit: Array = light.shade(values[::-1], colormap, blend_mode="soft", vert_exag=exaggeration, **steps)
    return lit[::-1]


def draw_landscape(axes: Axes, loss: Loss, x: Limits, y: Limits, relief: bool = False) -> None:
    """Draw a loss of two parameters as a map, the deeper the darker, with contour lines.

    Relief shows small, steep features; but its shadows look like depth, so draw a smooth loss without it.
    """
    along_x, along_y, points = grid_of(x, y)
    values = loss(points)
    shaded = shades(values, x, y, relief)
    axes.imshow(shaded, origin="lower", extent=(*x, *y), aspect="auto", interpolation="bilinear")
    shares = np.linspace(0, 1, LINES) ** (1 if relief else 2)
    levels = values.min() + np.ptp(values) * shares[1:-1]
    axes.contour(along_x, along_y, values, levels=levels, colors="0.4", linewidths=0.35, linestyles="solid", alpha=0.7)
    axes.set(xlim=x, ylim=y)
    axes.grid(False)


def draw_path(
    axes: Axes, path: Array, label: str, colour: str, linewidth: float = 1.5, linestyle: Dash = "-"
) -> Line2D:
    """Draw the path of a point over a map, shape (steps + 1, 2): a ring at the start, a dot at the end."""
    outline = require("matplotlib.patheffects", "lab").withStroke(linewidth=1.9 * linewidth, foreground="white")
    axes.plot(*path[:1].T, marker="o", markersize=7, markerfacecolor="white", markeredgecolor="black", zorder=4)
    (line,) = axes.plot(
        *path.T, color=colour, linewidth=linewidth, linestyle=linestyle, label=label, zorder=3, path_effects=[outline],
        marker="o", markevery=[-1], markersize=6, markeredgecolor="white",
    )  # fmt: skip
    return line


def draw_surface(axes: Axes3D, loss: Loss, x: Limits, y: Limits, top: float) -> None:
    """Draw a loss of two parameters as a landscape in 3D, cut off at the top."""
    along_x, along_y, points = grid_of(x, y)
    values = np.minimum(loss(points), top)
    axes.computed_zorder = False  # later artists lie above earlier ones
    surface = axes.plot_surface(
        *np.meshgrid(along_x, along_y), values, facecolors=shades(values, x, y, relief=True),
        rstride=2, cstride=2, linewidth=0, antialiased=False, shade=False,
    )  # fmt: skip
    surface.set(clip_on=False, in_layout=False)  # corners may reach over the panel's edge
    axes.set(xlim=x, ylim=y)


def draw_path_in_space(axes: Axes3D, path: Array, loss: Loss, colour: str, top: float, linewidth: float = 1.6) -> None:
    """Draw the path of a point over a landscape in 3D."""
    axes.plot(
        *path.T, np.minimum(loss(path), top), color=colour, linewidth=linewidth, zorder=5,
        marker="o", markevery=[-1], markersize=6, markeredgecolor="white", clip_on=False, in_layout=False,
    )  # fmt: skip
