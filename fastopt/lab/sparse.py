"""Why AdaGrad, and what came after: one neuron, whose weight hears of few pairs and whose bias hears of all."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import Count, Number
from ..optimizers import SGD, Optimizer
from ..progress import track
from . import look
from .descent import descend
from .network import SIGMOID, Array
from .training import ALPHA, BETAS, EPS, OPTIMIZERS, effective_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAIRS = 500
ZEROS = 400  # pairs whose x is 0
TRUTH = (2.0, 0.0)  # w and b of the neuron that made y
NOISE = 0.3  # in what that neuron's sigmoid takes, a standard deviation
START = (-1.0, 2.0)
REACHED = 1e-3  # the share of the loss above the least one that may be left
TURN = 0.9  # the share of the way along b after which a path's progress along w is told
EXTENT = (-1.5, 2.9), (-1.7, 2.4)  # of the map
NO_ROOT = "adagrad without the root"
PARAMETERS = {"w": "-", "b": "--"}  # and how their lines look


class Neuron:
    """One sigmoid neuron and its pairs: the loss of (w, b) is ``sum_i (sigmoid(w * x_i + b) - y_i)**2 / 2``.

    Parameters
    ----------
    seed : int
        Of the pairs.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.uniform(-0.5, 0.5, PAIRS)
        self.x[rng.permutation(PAIRS)[:ZEROS]] = 0.0
        self.y = SIGMOID.value(TRUTH[0] * self.x + TRUTH[1] + NOISE * rng.standard_normal(PAIRS))

    def output(self, points: Array) -> Array:
        """Return what the neuron says of every pair, shape (..., PAIRS), with parameters of shape (..., 2)."""
        w, b = points[..., :1], points[..., 1:]
        return SIGMOID.value(w * self.x + b)

    def loss(self, points: Array) -> Array:
        """Return the loss, summed over the pairs."""
        loss: Array = ((self.output(points) - self.y) ** 2).sum(axis=-1) / 2
        return loss

    def gradient(self, points: Array) -> Array:
        """Return the gradient, summed over the pairs: that of w has no part from those whose x is 0."""
        output = self.output(points)
        delta = (output - self.y) * SIGMOID.slope(output)
        return np.stack([(delta * self.x).sum(axis=-1), delta.sum(axis=-1)], axis=-1)

    def without_root(self, lr: float, steps: int) -> Array:
        """Return the path of an AdaGrad that divides by the history itself, shape (steps + 1, 2)."""
        points, history = np.array(START), np.zeros(2)
        path = [points]
        for _ in range(steps):
            gradient = self.gradient(points)
            history = history + gradient**2
            points = points - lr * gradient / (history + EPS)
            path.append(points)
        return np.array(path)


def adaptive(lr: float) -> dict[str, float]:
    """Return the rates of the rules that have one for each parameter, such that the first step of all is ``lr`` long.

    RMSProp's average begins at 0, so that its first root is small; AdaGrad begins with the whole square, and Adam
    corrects its averages.
    """
    return {"adagrad": lr, "rmsprop": lr * math.sqrt(1 - ALPHA), "adam": lr}


def optimizers(lr: float, rate: float) -> dict[str, Callable[[Array], Optimizer]]:
    """Return the rules that are compared."""
    return {rule: partial(make, lr=adaptive(lr).get(rule, rate)) for rule, make in OPTIMIZERS.items()}


def sparse(lr: float = 0.1, rate: float = 0.02, steps: int = 300, seed: int = 0) -> tuple[Figure, dict[str, Any]]:
    """Train one sigmoid neuron on 500 pairs (x, y), of which 400 have x = 0, by six rules from one start.

    The loss is ``sum_i (sigmoid(w * x_i + b) - y_i)**2 / 2``, a sum over all pairs at each step. Hence the gradient of
    b is large, and that of w small: few pairs have a part in it.

    Parameters
    ----------
    lr : float, default 0.1
        AdaGrad's and Adam's, from 1e-9 to 1000; RMSProp's is a tenth of it, so that its first step is as long.
    rate : float, default 0.02
        Of the others, likewise; momentum is 0.9.
    steps : int, default 300
        1 or more.
    seed : int, default 0
        Of the pairs.

    Returns
    -------
    figure : matplotlib.figure.Figure
        The paths over a map of the loss, the loss by step, AdaGrad's gradient, history and effective rate, and this
        rate beside RMSProp's and Adam's.
    numbers : dict
        ``{"paths": {rule: ...}, "loss": {rule: ...}, "reached": {rule: ...}, "turn": {rule: ...}, "gradient": {"w":
        ..., "b": ...}, "history": {...}, "effective_lr": {...}, "without_root": {...}, "rates": {rule: {...}}, ...}``.
        History is the sum of the squared gradients, the effective rate ``lr / (sqrt(history) + eps)``, of AdaGrad
        after each step; ``without_root`` has the same of the rule that divides by the history itself, and ``rates``
        the effective rates of AdaGrad, RMSProp and Adam: what each multiplies its gradients by, or their average.
        ``reached`` is the step from which on the loss is at most ``target``, or None, ``turn`` the share of the way
        along w that is done when the last tenth of the way along b first begins, or None.

    Raises
    ------
    ImportError
        If matplotlib is not installed; the extra ``fastopt[lab]`` has it.
    TypeError, ValueError
        If an argument is out of range.

    References
    ----------
    .. [1] J. Duchi, E. Hazan, Y. Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
       Optimization", JMLR 12, 2011.
    .. [2] T. Tieleman, G. Hinton, "Lecture 6.5: RMSProp", COURSERA, 2012.
    .. [3] D. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, arXiv:1412.6980.
    """
    lr = Number("learning rate", 1e-9, 1e3).check("lr", lr)
    rate = Number("learning rate", 1e-9, 1e3).check("rate", rate)
    steps = Count(1, 2**20).check("steps", steps)
    seed = Count().check("seed", seed)
    neuron = Neuron(seed)
    thirds, halves = ["gradient", "history", "effective rate"], ["rates of w", "rates of b"]
    mosaic = [
        4 * ["map"] + 2 * ["loss"],
        [panel for panel in thirds for _ in (1, 2)],
        [panel for panel in halves for _ in (1, 2, 3)],
    ]
    figure, axes = look.new_figure(mosaic, height=9.6, height_ratios=[1.2, 1, 1])

    paths = {
        rule: descend(make_optimizer, neuron.gradient, np.array(START), steps)
        for rule, make_optimizer in track(optimizers(lr, rate).items(), "descending")
    }
    paths[NO_ROOT] = neuron.without_root(lr, steps)
    best = bottom(neuron)
    losses = {rule: neuron.loss(path) for rule, path in paths.items()}
    target = float(neuron.loss(best) + REACHED * (losses["sgd"][0] - neuron.loss(best)))
    numbers = {
        "lr": lr, "rate": rate, "seed": seed, "start": list(START), "best": best.tolist(), "target": target,
        "paths": {rule: path.tolist() for rule, path in paths.items()},
        "loss": {rule: each.tolist() for rule, each in losses.items()},
        "reached": {rule: reached(each, target) for rule, each in losses.items()},
        "turn": {rule: turn(path, best) for rule, path in paths.items()},
        **rates(neuron, paths["adagrad"], partial(effective_rate, lr=lr)),
        "without_root": rates(neuron, paths[NO_ROOT], lambda history: lr / (history + EPS)),
    }  # fmt: skip
    numbers["rates"] = {
        "adagrad": numbers["effective_lr"],
        "rmsprop": faded_rates(neuron, paths["rmsprop"], adaptive(lr)["rmsprop"], ALPHA, corrected=False),
        "adam": faded_rates(neuron, paths["adam"], adaptive(lr)["adam"], BETAS[1], corrected=True),
    }
    draw(figure, axes, neuron, numbers)
    return figure, numbers


def bottom(neuron: Neuron) -> Array:
    """Return the parameters with the least loss, by many steps of Nesterov's from those that made the pairs."""
    nesterov = partial(SGD, lr=0.01, momentum=0.9, nesterov=True)
    last: Array = descend(nesterov, neuron.gradient, np.array(TRUTH), 2000)[-1]
    return last


def reached(losses: Array, target: float) -> int | None:
    """Return the step from which on the loss is at most the target; None if it is not in the end."""
    above = np.flatnonzero(~(losses <= target))
    step = int(above[-1]) + 1 if len(above) else 0
    return step if step < len(losses) else None


def turn(path: Array, best: Array) -> float | None:
    """Return the share of the way along w that is done when a path has first done `TURN` of that along b."""
    done = (path - path[0]) / (best - path[0])
    return next((float(w) for w, b in done if b >= TURN), None)


def rates(neuron: Neuron, path: Array, rate: Callable[[Array], Array]) -> dict[str, dict[str, list[float]]]:
    """Return gradient, history and effective rate, by history, of each parameter, of the steps along a path."""
    gradient = neuron.gradient(path[:-1])
    history = np.cumsum(gradient**2, axis=0)
    quantities = {"gradient": gradient, "history": history, "effective_lr": rate(history)}
    return {
        quantity: {name: column.tolist() for name, column in zip(PARAMETERS, values.T, strict=True)}
        for quantity, values in quantities.items()
    }


def faded_rates(neuron: Neuron, path: Array, lr: float, kept: float, corrected: bool) -> dict[str, list[float]]:
    """Return what a rule whose history fades multiplies gradients by, or Adam their average, along a path.

    Parameters
    ----------
    kept : float
        How much of the average of squares stays at each step.
    corrected : bool
        Whether that is freed of its bias towards 0, where it begins.
    """
    average, rates = np.zeros(2), []
    for step, gradient in enumerate(neuron.gradient(path[:-1]), start=1):
        average = kept * average + (1 - kept) * gradient**2
        rates.append(effective_rate(average / (1 - kept**step) if corrected else average, lr))
    return {name: column.tolist() for name, column in zip(PARAMETERS, np.array(rates).T, strict=True)}


def draw(figure: Figure, axes: dict[str, Axes], neuron: Neuron, numbers: dict[str, Any]) -> None:
    """Draw all panels."""
    colours = {**look.RULE_COLOURS, NO_ROOT: "0.5"}
    look.draw_landscape(axes["map"], neuron.loss, *EXTENT)
    for rule, path in numbers["paths"].items():
        look.draw_path(axes["map"], np.array(path), rule, colours[rule])
        look.draw_curve(axes["loss"], numbers["loss"][rule], rule, colours[rule], first=0)
    star: dict[str, Any] = {
        "marker": "*",
        "markersize": 11,
        "markerfacecolor": "white",
        "markeredgecolor": "black",
        "zorder": 5,
    }
    axes["map"].plot(*numbers["best"], linestyle="", **star)
    axes["loss"].plot([], [], linestyle="", label="least loss", **star)
    axes["map"].set(xlabel="w, which few pairs concern", ylabel="b, which all do")
    look.use_log_scale(axes["loss"], subs=(1, 3))
    look.label_epochs(axes["loss"], "step")
    axes["loss"].set_ylabel("loss, summed over the pairs")
    draw_rates(axes, numbers)
    draw_all_rates(axes, numbers)
    look.add_legend(figure, axes["loss"], columns=4)


def draw_rates(axes: dict[str, Axes], numbers: dict[str, Any]) -> None:
    """Draw what AdaGrad knows of w and of b, and the rates that follow, with the root and without."""
    for name, style in PARAMETERS.items():
        for panel, key in (("gradient", "gradient"), ("history", "history"), ("effective rate", "effective_lr")):
            values = np.abs(numbers[key][name])
            look.draw_curve(axes[panel], values, name, look.RULE_COLOURS["adagrad"], linestyle=style)
        without = numbers["without_root"]["effective_lr"][name]
        look.draw_curve(axes["effective rate"], without, "_without the root", "0.5", linestyle=style)
    for panel, label in (
        ("gradient", "AdaGrad's |gradient|"), ("history", "its history, sum of squares"),
        ("effective rate", "its effective rate"),
    ):  # fmt: skip
        axes[panel].set(xscale="log", yscale="log", xlabel="step", ylabel=label)
        axes[panel].legend(frameon=False, fontsize=look.FONT_SIZE, handlelength=1.6)
    axes["effective rate"].axhline(numbers["lr"], color="black", linewidth=1, linestyle=":")
    axes["effective rate"].text(1, numbers["lr"], " lr", va="bottom", fontsize=look.SMALL)


def draw_all_rates(axes: dict[str, Axes], numbers: dict[str, Any]) -> None:
    """Draw the effective rates of AdaGrad, RMSProp and Adam, for each parameter in a panel."""
    for name in PARAMETERS:
        panel = axes[f"rates of {name}"]
        for rule, rates in numbers["rates"].items():
            look.draw_curve(panel, rates[name], rule, look.RULE_COLOURS[rule])
        look.use_log_scale(panel, subs=(1, 3))
        panel.set(xscale="log", xlabel="step", ylabel=f"effective rate of {name}")


def report(numbers: dict[str, Any]) -> str:
    """Say in a table and three lines what there is to see."""
    lines = [f"{'rule':25} {'steps to reach it':>18} {'way along w done at the turn':>30}"]
    for rule, step in numbers["reached"].items():
        done = numbers["turn"][rule]
        share = "no turn" if done is None else f"{done:.0%}"
        lines.append(f"{rule:25} {'not reached' if step is None else step:>18} {share:>30}")
    rate, gradient, history = (numbers[key] for key in ("effective_lr", "gradient", "history"))
    steps = {rule: numbers["reached"][rule] for rule in OPTIMIZERS}
    last = ", ".join(f"{rule} {rates['b'][-1]:.3g}" for rule, rates in numbers["rates"].items())
    arrivals = ", ".join(f"{rule} {'not yet' if step is None else step}" for rule, step in steps.items())
    lines += [
        "",
        f"The first gradient is {gradient['w'][0]:.3g} for w and {gradient['b'][0]:.3g} for b; AdaGrad makes a rate of "
        f"{rate['w'][0]:.3g} for w and of {rate['b'][0]:.3g} for b from lr {numbers['lr']:g}.",
        f"b's history is {history['b'][0]:.3g} after the first step and {history['b'][-1]:.3g} after the last. "
        f"Its rates then: {last}; without the root {numbers['without_root']['effective_lr']['b'][-1]:.3g}.",
        f"The loss is below {numbers['target']:.4g} for good from these steps on: {arrivals}.",
    ]
    return "\n".join(lines)
