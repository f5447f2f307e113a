"""Noisy gradients on a bowl: a constant rate rattles around the minimum, a decaying one and an average home in."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import Count, Number
from ..optimizers import SGD
from ..progress import track
from ..schedules import Constant, Exponential, Schedule
from . import look
from .descent import Gradient, follow
from .network import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

START = (4.0, 3.0)
CURVATURES = np.array([1.0, 3.0])
EXTENT = (-1.6, 4.4), (-1.6, 3.4)  # of the maps
LATE = 0.25  # the last share of the steps, over which the final distance is averaged
COLOURS = {"constant": look.PALETTE[2], "average": look.PALETTE[3], "decaying": look.PALETTE[1]}
LABELS = {"constant": "constant rate", "average": "its average", "decaying": "decaying rate"}


def loss(points: Array) -> Array:
    """Return ``(x**2 + 3 * y**2) / 2``."""
    value: Array = (CURVATURES * points**2).sum(axis=-1) / 2
    return value


def rattling(lr: float, noise: float, decay: float = 0.0) -> float:
    """Return the root mean square distance from the minimum at which the average at a constant rate settles.

    A step ``p -= lr * (c * p + noise)`` multiplies p by ``kept = 1 - lr * c``: along each axis, the mean square of p
    settles where ``p**2 == kept**2 * p**2 + (lr * noise)**2``. Points that are t steps apart have the share ``kept**t``
    of it in common, so that the mean square of their average, with weights ``(1 - decay) * decay**t``, is ``(1 - decay)
    / (1 + decay) * (1 + kept * decay) / (1 - kept * decay)`` of it. Without a decay the average is p itself.
    """
    kept = 1 - lr * CURVATURES
    squares = lr * noise**2 / (CURVATURES * (2 - lr * CURVATURES))
    averaged = (1 - decay) / (1 + decay) * (1 + kept * decay) / (1 - kept * decay)
    return float(np.sqrt((squares * averaged).sum()))


def paths(schedule: Schedule, decay: float, gradient: Gradient, start: Array, steps: int) -> tuple[Array, Array]:
    """Return the path of points at a rate, and that of their averages, each of shape (steps + 1, ..., 2)."""
    path, averages = np.empty((2, steps + 1, *start.shape))
    make = partial(SGD, lr=schedule, ema_decay=decay)
    for step, (points, optimizer) in enumerate(follow(make, gradient, start, steps)):
        path[step] = points
        averages[step] = optimizer.state[0]["ema"] if step else points
    return path, averages


def described(path: Array, schedule: Schedule) -> dict[str, Any]:
    """Return the numbers of several paths, of which the first one is drawn."""
    squares = (path**2).sum(axis=-1)
    return {
        "schedule": repr(schedule),
        "path": path[:, 0].tolist(),
        "distance": np.sqrt(squares[:, 0]).tolist(),
        "mean_distance": np.sqrt(squares.mean(axis=1)).tolist(),
    }


def bounce(
    lr: float = 0.2, noise: float = 1.0, steps: int = 400, runs: int = 100, seed: int = 0, ema_decay: float = 0.98
) -> tuple[Figure, dict[str, Any]]:
    """Descend in a bowl with noisy gradients, at a constant and at a decaying rate, with the same noise.

    The decaying rate falls by the same share at each step, to a hundredth of lr. At the constant rate, the optimizer
    also keeps a moving average of the point: ``e = ema_decay * e + (1 - ema_decay) * p``.

    Parameters
    ----------
    lr : float, default 0.2
        The constant rate, and the first value of the decaying one, from 1e-6 to 0.66: at 2 / 3 descent diverges.
    noise : float, default 1.0
        The standard deviation of the noise in each component of the gradient, from 1e-9 to 1e9.
    steps : int, default 400
        The number of steps of each descent, 8 or more.
    runs : int, default 100
        The number of descents over which the squared distances are averaged; the first one is drawn.
    seed : int, default 0
        The seed of the noise.
    ema_decay : float, default 0.98
        How much of the average is kept at each step, from 0 to 0.9999.

    Returns
    -------
    figure : matplotlib.figure.Figure
        The paths, and the distance from the minimum by step.
    numbers : dict
        ``{"expected": ..., "expected_average": ..., "constant": {"schedule": ..., "path": ..., "distance": ...,
        "mean_distance": ...}, "average": {...}, "decaying": {...}}``: the distance of the path, and the root mean
        square distance of all runs; expected is the theoretical value of the latter at the constant rate, and
        expected_average that of the average there.

    Raises
    ------
    ImportError
        If matplotlib is not installed; the extra ``fastopt[lab]`` has it.
    TypeError, ValueError
        If an argument is out of range.
    """
    lr = Number("learning rate", 1e-6, 0.66).check("lr", lr)
    noise = Number("noise", 1e-9, 1e9).check("noise", noise)
    steps = Count(8, 2**20).check("steps", steps)
    runs = Count(1, 2**20).check("runs", runs)
    seed = Count().check("seed", seed)
    ema_decay = Number("decay", maximum=0.9999).check("ema_decay", ema_decay)
    figure, axes = look.new_figure([["constant", "average", "decaying"], ["distance"] * 3], height=6.8)
    schedules: dict[str, Schedule] = {
        "constant": Constant(lr),
        "decaying": Exponential.between(lr, lr / 100, steps),
    }
    numbers: dict[str, Any] = {
        "lr": lr, "noise": noise, "runs": runs, "seed": seed, "ema_decay": ema_decay,
        "expected": rattling(lr, noise), "expected_average": rattling(lr, noise, ema_decay),
    }  # fmt: skip

    for name, schedule in track(schedules.items(), "descending"):
        rng = np.random.default_rng(seed)

        def gradient(points: Array, rng: np.random.Generator = rng) -> Array:
            exact: Array = CURVATURES * points
            return exact + noise * rng.standard_normal(points.shape)

        path, averages = paths(schedule, ema_decay, gradient, np.tile(START, (runs, 1)), steps)
        numbers[name] = described(path, schedule)
        if name == "constant":
            numbers["average"] = described(averages, schedule)
    draw(axes, numbers)
    look.add_legend(figure, axes["distance"])
    return figure, numbers


def draw(axes: dict[str, Any], numbers: dict[str, Any]) -> None:
    """Draw a map for each path, and the distances: thin lines for the paths, thick ones for all runs."""
    for name, colour in COLOURS.items():
        each = numbers[name]
        look.draw_landscape(axes[name], loss, *EXTENT)
        look.draw_path(axes[name], np.array(each["path"]), LABELS[name], colour, linewidth=0.9)
        axes[name].set_xlabel("x")
        axes[name].set_title(LABELS[name], fontsize=look.SMALL)
        axes["distance"].plot(each["distance"], color=colour, linewidth=0.6, alpha=0.5)
        axes["distance"].plot(each["mean_distance"], color=colour, linewidth=2.2, label=LABELS[name])
    axes["constant"].set_ylabel("y")
    for expected, label in (("expected", "expected"), ("expected_average", None)):
        axes["distance"].axhline(numbers[expected], color="black", linewidth=1.2, linestyle=":", label=label)
    look.use_log_scale(axes["distance"])
    look.label_epochs(axes["distance"], "step")
    axes["distance"].set_ylabel("distance from the minimum")
    axes["distance"].set_title(f"thin: one run; thick: root mean square of {numbers['runs']}", fontsize=look.SMALL)


def late(distances: list[float]) -> float:
    """Return the root mean square of the last quarter of distances."""
    last = np.array(distances[-max(1, round(LATE * len(distances))) :])
    return float(np.sqrt((last**2).mean()))


def report(numbers: dict[str, Any]) -> str:
    """Describe the results in a table and three lines."""
    mean = {name: numbers[name]["mean_distance"] for name in COLOURS}
    steps = len(mean["constant"]) - 1
    marks = [0, steps // 8, steps // 4, steps // 2, steps]
    lines = [f"{'distance at step':18}" + "".join(f"{step:>10}" for step in marks)]
    lines += [f"{name:18}" + "".join(f"{values[step]:>10.3g}" for step in marks) for name, values in mean.items()]
    ends = {name: late(values) for name, values in mean.items()}
    constant, decaying = mean["constant"], mean["decaying"]
    lines += [
        "",
        f"Over the last quarter of the {steps} steps, the constant rate is at a distance of "
        f"{ends['constant']:.3g}, and its average at {ends['average']:.3g}; the theoretical values are "
        f"{numbers['expected']:.3g} and, once the start is forgotten, {numbers['expected_average']:.3g}.",
        f"At the end the decaying rate is at {decaying[-1]:.3g}, and the constant one at {constant[-1]:.3g}, "
        f"{constant[-1] / decaying[-1]:.3g} times as far.",
        f"All start at {constant[0]:.3g}; after step {marks[1]} the constant rate is at "
        f"{constant[marks[1]]:.3g} and the decaying one at {decaying[marks[1]]:.3g}.",
    ]
    return "\n".join(lines)
