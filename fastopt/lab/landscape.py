"""A bumpy landscape: which ways of descending get past the potholes and come to rest in the deep basin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..base import Optimizer
from ..checks import Count, Number
from ..optimizers import SGD
from ..progress import track
from ..schedules import Constant, Cosine, Linear, Sequence
from . import look
from .descent import check_start, descend
from .network import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Strategies: TypeAlias = dict[str, Callable[[Array], Optimizer]]

SLOPE = 0.5  # of the ground, far out; constant, so that no rate throws a point ever farther
BASIN = (0.0, 0.0, 2.4, 1.3)  # x, y, depth, width
POTHOLES = (
    (-2.9, 2.3), (-1.9, 1.9), (-3.4, 1.2), (-2.4, 0.9), (-2.2, -1.4), (-0.6, 2.6), (1.2, 2.9), (2.6, 1.6),
    (3.2, -0.4), (2.2, -2.0), (0.3, -2.9), (-1.2, -2.9), (-3.4, -2.9), (3.4, 3.2), (3.3, -3.1), (-3.5, 3.5),
)  # fmt: skip
POTHOLE = (0.7, 0.3)  # depth and width of each
WELLS = np.array([BASIN, *((*middle, *POTHOLE) for middle in POTHOLES)])
EXTENT = (-4.2, 4.2)  # of the map, along both axes
TOP = 2.2  # of the view in space

PEAKS = (5, 10, 20, 60)  # of reheating, as multiples of lr; 20 in the picture
SETTLED = 0.05  # the largest excess over the deepest loss of a settled point
AT_REST = 0.05  # the largest slope at a point at rest
ROLL = partial(SGD, lr=0.1), 600  # the optimizer and steps by which a point rolls to the bottom of its hollow
ENDS = {"settled": "#4A6580", "stuck": "#C9A66B", "moving": "#E2E2E2"}  # colours that no way has
IN_SPACE = ("reheating", "momentum", "plain")  # from the lowest to the uppermost; plain overlaps reheating's beginning
WIDTHS = {"huge rate": 0.4, "momentum": 3.6, "reheating": 3.6}  # broad lines below narrow ones that overlap them
LINEWIDTH = 1.5  # of the others
COLOURS = {
    "plain": look.PALETTE[0],
    "huge rate": "0.72",  # it is everywhere
    "tiny rate": look.PALETTE[2],
    "momentum": look.PALETTE[3],
    "falling momentum": look.PALETTE[4],
    "momentum, decaying rate": look.PALETTE[5],
    "reheating": look.PALETTE[1],
}


def _wells(points: Array) -> tuple[Array, Array]:
    """Return the distance vectors of points from each well's centre, and how much each well lowers the loss."""
    offsets = points[..., np.newaxis, :] - WELLS[:, :2]
    depth, width = WELLS[:, 2:].T
    return offsets, depth * np.exp(-(offsets**2).sum(axis=-1) / (2 * width**2))


def loss(points: Array) -> Array:
    """Return ``SLOPE * sqrt(1 + |p|**2) - sum_i depth_i * exp(-|p - c_i|**2 / (2 * width_i**2))``."""
    ground = SLOPE * np.sqrt(1 + (points**2).sum(axis=-1))
    height: Array = ground - _wells(points)[1].sum(axis=-1)
    return height


def gradient(points: Array) -> Array:
    """Return the gradient of the loss at points, shape (..., 2)."""
    offsets, lowered = _wells(points)
    ground = SLOPE * points / np.sqrt(1 + (points**2).sum(axis=-1, keepdims=True))
    slope: Array = ground + (offsets * (lowered / WELLS[:, 3] ** 2)[..., np.newaxis]).sum(axis=-2)
    return slope


def strategies(lr: float, momentum: float, steps: int) -> Strategies:
    """Return the ways of descending, the plain one first."""
    return {
        "plain": partial(SGD, lr=lr),
        "huge rate": partial(SGD, lr=60 * lr),
        "tiny rate": partial(SGD, lr=lr / 50),
        "momentum": partial(SGD, lr=lr, momentum=momentum),
        "falling momentum": partial(SGD, lr=lr, momentum=Linear(momentum, 0.0, steps)),
        "momentum, decaying rate": partial(SGD, lr=Cosine(lr, steps), momentum=momentum),
        "reheating": reheating(20 * lr, lr, steps),
    }


def reheating(peak: float, lr: float, steps: int) -> Callable[[Array], Optimizer]:
    """Return descent at the rate lr for a quarter of the steps, and then twice from a peak to 0."""
    quarter = steps // 4
    return partial(SGD, lr=Sequence([Constant(lr), Cosine(peak, steps - quarter, dips=2)], [quarter]))


def lowest_rates(steps: int) -> list[int]:
    """Return the steps at which the rate of `reheating` is low: before the first peak, after it, and at the end."""
    quarter = steps // 4
    return [quarter, quarter + (steps - quarter) // 3, steps]


def in_basin(points: Array) -> Array:
    """Say which points reach the bottom of the basin if they roll down slowly."""
    make_optimizer, steps = ROLL
    bottom = descend(make_optimizer, gradient, points, steps)[-1]
    close: Array = np.linalg.norm(bottom - BASIN[:2], axis=-1) < BASIN[3] / 4
    return close


def endings(points: Array) -> Array:
    """Return how each point ends: settled at the bottom of the basin, stuck in a pothole, or moving."""
    low = loss(points) < loss(np.array(BASIN[:2])) + SETTLED
    at_rest = np.linalg.norm(gradient(points), axis=-1) < AT_REST
    return np.where(~at_rest, "moving", np.where(low, "settled", "stuck"))


def reheated(path: Array) -> dict[str, int]:
    """Count the effects of the two reheatings.

    Parameters
    ----------
    path : ndarray, shape (steps + 1, starts, 2)
        The paths of `reheating`.

    Returns
    -------
    dict
        ``{"outside": how many begin outside the basin, "escaped": how many of these end in it, "in_basin": how many
        begin in it, "left": how many of these end elsewhere}``.
    """
    inside = in_basin(path[lowest_rates(len(path) - 1)])
    before, after = inside[:-1], inside[1:]
    counts = {"outside": ~before, "escaped": ~before & after, "in_basin": before, "left": before & ~after}
    return {name: int(which.sum()) for name, which in counts.items()}


def landscape(
    start: tuple[float, float] = (-2.5, 3.7),
    lr: float = 0.05,
    momentum: float = 0.9,
    steps: int = 300,
    starts: int = 200,
    seed: int = 0,
) -> tuple[Figure, dict[str, Any]]:
    """Send a marble through a landscape of potholes towards one wide, deep basin, in seven ways.

    ``plain`` descends at the rate lr, ``huge rate`` and ``tiny rate`` at 60 times and a 50th of it; ``momentum`` uses
    lr and momentum; in ``falling momentum`` the momentum falls to 0, in ``momentum, decaying rate`` the rate does.
    ``reheating`` has no momentum: it descends at the rate lr for a quarter of the steps; then the rate is raised to 20
    times lr and annealed by a cosine, twice.

    Parameters
    ----------
    start : tuple of two floats, default (-2.5, 3.7)
        The start of the picture's marble, x and y, each from -100 to 100.
    lr : float, default 0.05
        The learning rate of plain descent, from 1e-6 to 10.
    momentum : float, default 0.9
        The momentum of the ways that have one, from 0 to 1.
    steps : int, default 300
        The number of steps of each way, 10 or more.
    starts : int, default 200
        The number of random starts for the table, all over the map: 1 or more.
    seed : int, default 0
        The seed of the random starts.

    Returns
    -------
    figure : matplotlib.figure.Figure
        The landscape in 3D, the loss by step, a map for each way, and the ends of the random starts.
    numbers : dict
        ``{"deepest": ..., "ways": {way: {"path": ..., "loss": ..., "end": ..., "ends": {"settled": ..., "stuck": ...,
        "moving": ...}}}, "reheating": {peak: {"outside": ..., "escaped": ..., "in_basin": ...,
        "left": ...}}, ...}``, where ``end`` is the marble's and ``ends`` are shares of the random starts. ``reheating``
        counts the reheatings of the random starts, to peaks of several times lr: how many begin outside the basin, and
        how many of these end in it; how many begin in it, and how many of these end elsewhere.

    Raises
    ------
    ImportError
        If matplotlib is not installed; the extra ``fastopt[lab]`` has it.
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    An end is moving if the slope is 0.05 or more; otherwise it is settled if the loss is within 0.05 of the deepest,
    and stuck if not.
    """
    x, y = check_start(start, "x and y", 100.0)
    lr = Number("learning rate", 1e-6, 10.0).check("lr", lr)
    momentum = Number("momentum", maximum=1.0).check("momentum", momentum)
    steps = Count(10, 2**20).check("steps", steps)
    starts = Count(1, 2**20).check("starts", starts)
    seed = Count().check("seed", seed)
    rng = np.random.default_rng(seed)
    everywhere = np.vstack([[x, y], rng.uniform(*EXTENT, (starts, 2))])  # the picture's marble is the first
    ways = strategies(lr, momentum, steps)
    numbers: dict[str, Any] = {
        "start": [x, y], "lr": lr, "momentum": momentum, "steps": steps, "starts": starts, "seed": seed,
        "deepest": float(loss(np.array(BASIN[:2]))), "ways": {}, "reheating": {},
    }  # fmt: skip
    figure, axes = new_figure(ways)

    for way, make_optimizer in track(ways.items(), "descending"):
        path = descend(make_optimizer, gradient, everywhere, steps)
        end, *ends = endings(path[-1])
        numbers["ways"][way] = {
            "path": path[:, 0].tolist(),
            "loss": loss(path[:, 0]).tolist(),
            "end": str(end),
            "ends": {each: ends.count(each) / starts for each in ENDS},
        }
    for peak in track(PEAKS, "reheating"):
        path = descend(reheating(peak * lr, lr, steps), gradient, everywhere[1:], steps)
        numbers["reheating"][str(peak)] = reheated(path)
    draw(axes, numbers["ways"])
    look.add_legend(figure, axes["loss"])
    return figure, numbers


def new_figure(ways: Strategies) -> tuple[Figure, dict[str, Axes]]:
    """Make the panels: the loss and the 3D view on top, the maps below, and the ends in the last corner."""
    panels = [*ways, "ends"]
    mosaic = [["loss", "loss", "space", "space"], panels[:4], panels[4:]]
    return look.new_figure(mosaic, height=9.0, projections={"space": "3d"}, height_ratios=[1.35, 1, 1])


def draw(axes: dict[str, Axes], ways: dict[str, Any]) -> None:
    """Draw all panels."""
    draw_space(axes["space"], {way: np.array(ways[way]["path"]) for way in IN_SPACE})
    for way, numbers in ways.items():
        width = WIDTHS.get(way, LINEWIDTH)
        order = 1.0 if way == "huge rate" else 3 - width / 10
        axes["loss"].plot(numbers["loss"], color=COLOURS[way], label=way, linewidth=width, zorder=order)
        look.draw_landscape(axes[way], loss, EXTENT, EXTENT, relief=True)
        look.draw_path(axes[way], np.array(numbers["path"]), way, COLOURS[way], min(width, LINEWIDTH))
        axes[way].set_title(way, fontsize=look.SMALL)
        axes[way].set(xticks=[], yticks=[])
        axes[way].set_xlabel(numbers["end"], fontsize=look.SMALL, gid=look.AT_THE_END)
        axes[way].set_box_aspect(1)
        axes[way].spines[:].set_visible(False)
    axes["loss"].set_ylabel("loss")
    look.label_epochs(axes["loss"], "step")
    draw_ends(axes["ends"], ways)


def draw_space(axes: look.Axes3D, paths: dict[str, Array]) -> None:
    """Draw the landscape and some paths in 3D, with the start at the back."""
    look.draw_surface(axes, loss, EXTENT, EXTENT, TOP)
    for way, path in paths.items():
        look.draw_path_in_space(axes, path, loss, COLOURS[way], TOP, WIDTHS.get(way, LINEWIDTH) / 1.3)
    axes.view_init(elev=46, azim=-70)
    axes.set_zlim(-2.0, 4.4)  # moves the ground to the middle of the panel
    axes.set_box_aspect((1, 1, 0.7), zoom=1.48)
    axes.set_axis_off()
    axes.set_title(", ".join(paths), fontsize=look.SMALL)


def draw_ends(axes: Axes, ways: dict[str, Any]) -> None:
    """Draw the shares of the random starts that end in each way, as bars below their names."""
    rows = np.arange(len(ways))
    left = np.zeros(len(ways))
    for end, colour in ENDS.items():
        shares = np.array([100 * numbers["ends"][end] for numbers in ways.values()])
        axes.barh(rows + 0.2, shares, left=left, color=colour, label=end, height=0.35)
        left += shares
    for row, way in zip(rows, ways, strict=True):
        axes.text(0, row - 0.05, way, fontsize=look.SMALL - 1, va="bottom")
    axes.set(yticks=[], xlim=(0, 100), ylim=(len(ways) - 0.4, -0.5))
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("% of random starts", fontsize=look.SMALL)
    axes.tick_params(labelsize=look.SMALL)
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False,
        fontsize=look.SMALL - 1, handlelength=0.8, columnspacing=0.8, handletextpad=0.3,
    )  # fmt: skip


def report(numbers: dict[str, Any]) -> str:
    """Describe the results in a table and three lines."""
    ways, starts = numbers["ways"], numbers["starts"]
    lines = [f"{'way':24} {'last loss':>9} {'end':>9}   of {starts} starts: {'settled':>8} {'stuck':>6} {'moving':>7}"]
    for way, each in ways.items():
        shares = each["ends"]
        lines.append(
            f"{way:24} {each['loss'][-1]:>9.2f} {each['end']:>9} {'':{len(str(starts)) + 13}}"
            f"{shares['settled']:>8.0%} {shares['stuck']:>6.0%} {shares['moving']:>7.0%}"
        )
    settled = {way: each["ends"]["settled"] for way, each in ways.items()}
    most = max(settled.values())
    best = ", ".join(way for way, share in settled.items() if share == most)
    last = {way: each["loss"][-1] for way, each in ways.items()}
    reheated = numbers["reheating"]
    escapes = ", ".join(f"{each['escaped']} of {each['outside']} ({peak} times lr)" for peak, each in reheated.items())
    left, inside = (sum(each[name] for each in reheated.values()) for name in ("left", "in_basin"))
    lines += [
        "",
        f"From the marble's start, at a loss of {ways['plain']['loss'][0]:.2f}, plain descent comes to "
        f"{last['plain']:.2f} and momentum to {last['momentum']:.2f}; the bottom lies at {numbers['deepest']:.2f}.",
        f"Of {starts} random starts, {settled['plain']:.0%} settle in the basin by plain descent and "
        f"{settled['momentum']:.0%} with momentum; the most, {most:.0%}, by: {best}.",
        f"Reheated outside the basin, these end in it: {escapes}; reheated in the basin, {left} of {inside} end "
        "elsewhere.",
    ]
    return "\n".join(lines)
