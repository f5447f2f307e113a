"""Pictures of all schedules, side by side."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..checks import Count
from ..kernels.tables import SHAPES
from ..schedules import (
    Constant,
    Cosine,
    Cyclic,
    Exponential,
    InverseSqrt,
    Linear,
    MultiStep,
    OneCycle,
    Piecewise,
    Plateau,
    Polynomial,
    Schedule,
    Sequence,
    StepDecay,
    WarmRestarts,
    Warmup,
    WarmupStableDecay,
)
from . import look
from .network import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Lines: TypeAlias = dict[str, dict[str, Any]]  # label -> the schedule, as text, and its values

POINTS = 1001  # of a curve, at most
UNITS = 20  # the lengths in all examples are multiples of a 20th of the steps
STEPS_LIMIT = 2**40  # far below the schedules' own limit, which applies to the product with dips or periods
COLUMNS = 5  # of panels; the number of panels is a multiple
METRICS = 40  # for the plateau, one after each epoch
THIN = {"momentum": 0.79, "metric": 0.28}  # lines that are not rates -> the height of their labels


def examples(unit: int) -> dict[str, dict[str, Schedule]]:
    """Make schedules of every class, most of them 16 units long, all with a maximum of 1.

    Parameters
    ----------
    unit : int
        The length of a unit in steps.

    Returns
    -------
    dict
        ``{title of a panel: {label of a line: schedule}}``. A title begins with the name of a class; the parts of a
        combined schedule follow a colon.
    """
    length = 16 * unit
    one_cycle = OneCycle(1.0, length)
    shapes: dict[str, Schedule] = {
        shape: WarmupStableDecay(1.0, 2 * unit, 9 * unit, 5 * unit, shape=shape) for shape in SHAPES
    }
    parts = [Linear(0.2, 1.0, 4 * unit), Cosine(1.0, 6 * unit, end=0.4), Linear(0.4, 0.0, 6 * unit)]
    return {
        "Constant": {"lr": Constant(1.0)},
        "Linear": {"lr": Linear(1.0, 0.0, length)},
        "Polynomial, power=2": {"lr": Polynomial(1.0, length, power=2.0)},
        "Exponential": {"lr": Exponential(1.0, 0.6, every=3 * unit)},
        "StepDecay": {"lr": StepDecay(1.0, every=3 * unit, gamma=0.6)},
        "MultiStep": {"lr": MultiStep(1.0, [8 * unit, 12 * unit, 14 * unit], gamma=0.4)},
        "Piecewise": {"lr": Piecewise([0.2, 1.0, 0.5, 0.1], [2 * unit, 8 * unit, 14 * unit])},
        "InverseSqrt": {"lr": InverseSqrt(1.0, warmup=2 * unit)},
        "Cosine": {"lr": Cosine(1.0, length)},
        "Cosine, dips=2": {"lr": Cosine(1.0, length, dips=2)},
        "WarmRestarts, mult=2": {"lr": WarmRestarts(1.0, period=3 * unit, mult=2)},
        "OneCycle": {"lr": one_cycle, "momentum": one_cycle.momentum()},
        "Cyclic": {"lr": Cyclic(0.1, 1.0, up=4 * unit, down=2 * unit)},
        "Cyclic, triangular2": {"lr": Cyclic(0.1, 1.0, up=2 * unit, mode="triangular2")},
        "WarmupStableDecay": shapes,
        "Warmup: of Cosine": {"lr": Warmup(Cosine(1.0, 14 * unit), steps=2 * unit)},
        "Sequence: Linear, Cosine, Linear": {"lr": Sequence(parts, [4 * unit, 10 * unit])},
        "PerEpoch: of Cosine": {"lr": Cosine(1.0, 8).per_epoch(2 * unit)},
        "Product: WarmRestarts * Linear": {"lr": WarmRestarts(1.0, 4 * unit) * Linear(1.0, 0.0, length)},
    }


def plateau(t: Array) -> Lines:
    """Simulate a Plateau and a metric that falls towards a floor; the lower the rate, the lower the floor.

    Returns
    -------
    dict
        The rate and the metric at each of the steps t; the last step ends the run.
    """
    schedule = Plateau(1.0, factor=0.4, patience=2, threshold=0.02)
    metric, rates, metrics = 0.9, [], []
    for _ in range(METRICS):
        rates.append(schedule.lr)
        metrics.append(metric)
        schedule.update(metric)
        metric += 0.4 * (0.1 + 0.5 * schedule.lr - metric)
    epochs = np.minimum(t * METRICS // t[-1], METRICS - 1)
    return {
        "lr": {"schedule": repr(schedule), "values": np.array(rates)[epochs].tolist()},
        "metric": {"values": np.array(metrics)[epochs].tolist()},
    }


def draw(axes: Axes, title: str, t: Array, lines: Lines) -> None:
    """Draw one panel, with the scale of all panels."""
    for (label, line), colour in zip(lines.items(), cycle(look.PALETTE[1:])):
        width = 1.0 if label in THIN else 1.8
        axes.plot(t, line["values"], drawstyle="steps-post", color=colour, linewidth=width, label=label)
        if label in THIN:
            axes.text(t[-1], THIN[label], label, color=colour, ha="right", va="center", fontsize=look.SMALL - 1)
    if lines.keys() == {*SHAPES}:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0.12, -0.04),  # below the stable part
            frameon=False, fontsize=look.SMALL - 1, handlelength=0.8, handletextpad=0.4, labelspacing=0.1,
        )  # fmt: skip
    axes.set_title(title.replace(": ", "\n"), fontsize=look.SMALL)
    axes.set(ylim=(-0.04, 1.08), yticks=[0, 0.5, 1], yticklabels=["0", "", "1"])
    axes.locator_params(axis="x", steps=[1, 2, 5, 10], nbins=2, integer=True)
    axes.tick_params(length=0, labelsize=look.SMALL)  # the grid replaces tick marks
    axes.label_outer()


def schedules(steps: int = 1000) -> tuple[Figure, dict[str, Any]]:
    """Draw every class of `fastopt.schedules`, and interesting variants.

    Parameters
    ----------
    steps : int, default 1000
        The length of all panels; the examples are scaled to it. 20 or more, and below 2**40.

    Returns
    -------
    figure : matplotlib.figure.Figure
        A panel for each.
    numbers : dict
        ``{"steps": [...], "panels": {title: {label: {"schedule": its repr, "values": [...]}}}}``, with the values at
        the steps. The plateau's metric has no schedule.

    Raises
    ------
    ImportError
        If matplotlib is not installed; the extra ``fastopt[lab]`` has it.
    TypeError, ValueError
        If steps is not an int, or out of range.
    """
    steps = Count(UNITS, STEPS_LIMIT).check("steps", steps)
    t = np.unique(np.linspace(0, steps, POINTS).astype(np.int64))
    panels = {
        title: {label: {"schedule": repr(each), "values": each(t).tolist()} for label, each in lines.items()}
        for title, lines in examples(steps // UNITS).items()
    }
    panels["Plateau: by a metric"] = plateau(t)
    titles = [*panels]
    rows = [titles[first : first + COLUMNS] for first in range(0, len(titles), COLUMNS)]
    figure, axes = look.new_figure(rows, height=5.9)
    for title, lines in panels.items():
        draw(axes[title], title, t, lines)
    figure.supxlabel("step", fontsize=look.FONT_SIZE)
    figure.supylabel("value", fontsize=look.FONT_SIZE)
    return figure, {"steps": t.tolist(), "panels": panels}


def report(numbers: dict[str, Any]) -> str:
    """List each schedule and its values at the quarters in a table, and describe the results in three lines."""
    last = len(numbers["steps"]) - 1
    quarters = [last * i // 4 for i in range(5)]
    width = max(7, len(str(numbers["steps"][-1])) + 2)
    panels = numbers["panels"]
    rows = ["".join(f"{numbers['steps'][i]:>{width}}" for i in quarters) + "  schedule"]
    rows += [
        "".join(f"{line['values'][i]:>{width}.3f}" for i in quarters) + f"  {line['schedule']}"
        for lines in panels.values()
        for line in lines.values()
        if "schedule" in line
    ]
    rates = {title.partition(":")[0]: lines["lr"]["values"] for title, lines in panels.items() if "lr" in lines}
    means = {name: float(np.mean(values)) for name, values in rates.items() if name not in ("Constant", "Plateau")}
    lowest, highest = (choose(means, key=means.__getitem__) for choose in (min, max))
    cycle_rates, momenta = (np.array(panels["OneCycle"][label]["values"]) for label in ("lr", "momentum"))
    peak = int(cycle_rates.argmax())
    drops = np.flatnonzero(np.diff(rates["Plateau"])) + 1
    rows += [
        "",
        f"All rates peak at 1. Of all but Constant and Plateau, {highest} has the highest mean, {means[highest]:.2f}, "
        f"and {lowest} the lowest, {means[lowest]:.2f}.",
        f"OneCycle's rate is highest, {cycle_rates[peak]:.3f}, at step {numbers['steps'][peak]}, where its momentum is "
        f"{momenta[peak]:.3f}; at the end they are {cycle_rates[-1]:.3f} and {momenta[-1]:.3f}.",
        f"The plateau, which depends only on its metric, lowers the rate {len(drops)} times"
        + (f", first at step {numbers['steps'][drops[0]]}." if len(drops) else "."),
    ]
    return "\n".join(rows)
