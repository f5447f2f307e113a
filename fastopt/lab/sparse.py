"""Why AdaGrad, and what came after it: one neuron, whose weight few pairs affect and whose bias all affect."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import Count, Number
from ..progress import track
from . import arrivals, look
from .descent import check_start, descend
from .network import Array
from .neuron import DONE, PARAMETERS, Neuron, bottom, target_loss, turn
from .training import ALPHA, BETAS, EPS, OPTIMIZERS, effective_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

START = (-0.5, 3.0)  # chosen so that w arrives before b by AdaGrad, for seeds 0 to 9
# The map's margins before the start and beyond the end, along w and b, as shares of the way, which counts as 1 or more.
# Lion goes farther beyond w's end than the start is before it.
BEFORE, BEYOND = np.array([0.2, 0.2]), np.array([1.2, 0.8])
WIDTHS = {"rmsprop": 4.0, "adam": 2.4, "adagrad": 1.1, "lion": 1.1}  # close lines: narrow on broad; the others have 1.5
NO_ROOT = "adagrad without the root"


def rates_of(lr: float, rate: float) -> dict[str, float]:
    """Return the rate of each rule: that with which its first step has length ``lr``, or ``rate``.

    The first is for adaptive rules, whose first step is equally long whatever the gradient. AdaGrad begins with the
    whole square, and Adam corrects its averages, so their rate is lr, and Lion's too. RMSProp's average begins at 0, so
    its first root is small and its step long. NAdam looks ahead, so its step is longer than Adam's.
    """
    slopes = np.array([1.0, 1e9])  # eps is nothing beside the steep one
    chosen = {}
    for rule, make_optimizer in OPTIMIZERS.items():
        gentle, steep = -descend(partial(make_optimizer, lr=1.0), lambda points: slopes, np.zeros(2), 1)[1]
        chosen[rule] = lr / float(steep) if math.isclose(gentle, steep, rel_tol=1e-6) else rate
    return chosen


def sparse(
    lr: float = 0.1, rate: float = 0.02, steps: int = 400, seed: int = 0, start: tuple[float, float] = START
) -> tuple[Figure, dict[str, Any]]:
    """Train one sigmoid neuron on 500 pairs (x, y), of which 400 have x = 0, by every rule from one start.

    The loss is ``sum_i (sigmoid(w * x_i + b) - y_i)**2 / 2``, a sum over all pairs at each step. So the gradient of b
    is large, and that of w small: few pairs contribute to it. Which rule is first depends on the rates, so the rules
    are also compared each at its best of twelve rates, and all at one rate. Whether w or b arrives first depends on the
    start, so starts on a grid whose first gradients are like a lecture's are tried as well.

    Parameters
    ----------
    lr : float, default 0.1
        The length of the first step of AdaGrad, RMSProp, Adam, NAdam and Lion, from 1e-9 to 1000. It is also the rate
        of AdaGrad, Adam and Lion; RMSProp's is a tenth of it, and NAdam's 0.95 of it.
    rate : float, default 0.02
        The rate of the other rules, from 1e-9 to 1000; their momentum is 0.9.
    steps : int, default 400
        The number of steps of each rule, 1 or more.
    seed : int, default 0
        The seed of the pairs.
    start : tuple of two floats, default (-0.5, 3.0)
        The start of all rules: w and b, each from -10 to 10.

    Returns
    -------
    figure : matplotlib.figure.Figure
        The paths over a map of the loss, the loss by step, AdaGrad's gradient, history and effective rate, and the
        effective rates of AdaGrad, RMSProp and Adam.
    numbers : dict
        ``{"paths": {rule: ...}, "loss": {rule: ...}, "arrivals": {rule: ...}, "turn": {rule: ...}, "gradient":
        {"w": ..., "b": ...}, "history": {...}, "effective_lr": {...}, "without_root": {...}, "rates": {rule: {...}},
        "drawn": {rule: ...}, ...}``. ``drawn`` has the rate of each path that is drawn.
        History is AdaGrad's sum of squared gradients after each step, and the effective rate
        ``lr / (sqrt(history) + eps)``; ``without_root`` has the same for the rule that divides by the history itself.
        ``rates`` has the effective rates of AdaGrad, RMSProp and Adam, the factors of their gradients or of the
        gradients' average. ``turn`` is the share of w's way that is done when 9/10 of b's way are first done, or None.
        ``arrivals``, ``tuned`` and ``one_rate`` have ``{"reached": ..., "w": ..., "b": ...}`` for each rule: the steps
        from which on the loss is at most ``target``, and 9/10 of the way along w and along b are done, to the end and
        for ten steps at least, or None; at the drawn rates, at the rule's best rate, and at lr, with the gradients of
        the summed loss and of its mean.
        ``starts`` counts the starts on a grid, those like a lecture's, and those from which w arrives first.

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
    begin = np.array(check_start(start, "w and b", 10.0))
    neuron = Neuron(seed)
    thirds, halves = ["gradient", "history", "effective rate"], ["rates of w", "rates of b"]
    mosaic = [
        4 * ["map"] + 2 * ["loss"],
        [panel for panel in thirds for _ in (1, 2)],
        [panel for panel in halves for _ in (1, 2, 3)],
    ]
    figure, axes = look.new_figure(mosaic, height=9.6, height_ratios=[1.2, 1, 1])

    chosen = rates_of(lr, rate)
    paths = {
        rule: descend(partial(make_optimizer, lr=chosen[rule]), neuron.gradient, begin, steps)
        for rule, make_optimizer in track(OPTIMIZERS.items(), "descending")
    }
    paths[NO_ROOT] = neuron.without_root(begin, lr, steps)
    best = bottom(neuron)
    losses = {rule: neuron.loss(path) for rule, path in paths.items()}
    numbers = {
        "lr": lr, "rate": rate, "drawn": {**chosen, NO_ROOT: lr}, "seed": seed,
        "start": begin.tolist(), "best": best.tolist(),
        "target": target_loss(neuron, begin, best),
        "paths": {rule: path.tolist() for rule, path in paths.items()},
        "loss": {rule: each.tolist() for rule, each in losses.items()},
        "arrivals": {rule: arrivals.arrival(neuron, path, best) for rule, path in paths.items()},
        "turn": {rule: turn(path, best) for rule, path in paths.items()},
        **rates(neuron, paths["adagrad"], partial(effective_rate, lr=lr)),
        "without_root": rates(neuron, paths[NO_ROOT], lambda history: lr / (history + EPS)),
    }  # fmt: skip
    numbers["rates"] = {  # of the rules to explain: NAdam divides as Adam does, and Lion by no history
        "adagrad": numbers["effective_lr"],
        "rmsprop": faded_rates(neuron, paths["rmsprop"], chosen["rmsprop"], ALPHA, corrected=False),
        "adam": faded_rates(neuron, paths["adam"], chosen["adam"], BETAS[1], corrected=True),
    }
    numbers["tuned"] = arrivals.tuned(neuron, begin, steps)
    numbers["one_rate"] = arrivals.at_one_rate(neuron, begin, lr, steps)
    numbers["starts"] = arrivals.starts_like_the_lecturers(neuron, lr, steps)
    draw(figure, axes, neuron, numbers)
    return figure, numbers


def rates(neuron: Neuron, path: Array, rate: Callable[[Array], Array]) -> dict[str, dict[str, list[float]]]:
    """Return each parameter's gradient, history and effective rate, a function of history, along a path."""
    gradient = neuron.gradient(path[:-1])
    history = np.cumsum(gradient**2, axis=0)
    quantities = {"gradient": gradient, "history": history, "effective_lr": rate(history)}
    return {
        quantity: {name: column.tolist() for name, column in zip(PARAMETERS, values.T, strict=True)}
        for quantity, values in quantities.items()
    }


def faded_rates(neuron: Neuron, path: Array, lr: float, kept: float, corrected: bool) -> dict[str, list[float]]:
    """Return the effective rates along a path of a rule whose history fades: RMSProp or Adam.

    Parameters
    ----------
    kept : float
        How much of the average of squares is kept at each step.
    corrected : bool
        Whether the average's bias towards 0 is corrected.
    """
    average, rates = np.zeros(2), []
    for step, gradient in enumerate(neuron.gradient(path[:-1]), start=1):
        average = kept * average + (1 - kept) * gradient**2
        rates.append(effective_rate(average / (1 - kept**step) if corrected else average, lr))
    return {name: column.tolist() for name, column in zip(PARAMETERS, np.array(rates).T, strict=True)}


def draw(figure: Figure, axes: dict[str, Axes], neuron: Neuron, numbers: dict[str, Any]) -> None:
    """Draw all panels."""
    lines = {**look.RULE_LINES, NO_ROOT: ("0.5", "-")}
    look.draw_landscape(axes["map"], neuron.loss, *extent(numbers["start"], numbers["best"]))
    for rule, path in numbers["paths"].items():
        width = WIDTHS.get(rule, 1.5)
        order = 3 - width / 10  # broad below narrow
        colour, dash = lines[rule]
        look.draw_path(axes["map"], np.array(path), rule, colour, width, dash).set_zorder(order)
        losses = numbers["loss"][rule][1:]
        axes["loss"].plot(
            range(1, 1 + len(losses)), losses, color=colour, linewidth=width, linestyle=dash, label=rule, zorder=order
        )
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
    axes["loss"].set(xscale="log", xlabel="step", ylabel="loss, summed over the pairs")
    draw_rates(axes, numbers)
    draw_all_rates(axes, numbers)
    look.add_legend(figure, axes["loss"])


def extent(start: Sequence[float], best: Sequence[float]) -> tuple[look.Limits, look.Limits]:
    """Return the limits of a map that shows the start and the best parameters, with margins."""
    way = np.subtract(best, start)
    way = np.copysign(np.maximum(np.abs(way), 1), way)
    corners = np.array([start - BEFORE * way, best + BEYOND * way])
    w, b = zip(corners.min(axis=0).tolist(), corners.max(axis=0).tolist(), strict=True)
    return w, b


def draw_rates(axes: dict[str, Axes], numbers: dict[str, Any]) -> None:
    """Draw AdaGrad's gradients and histories of w and b, and the effective rates with the root and without."""
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
    """Draw the effective rates of AdaGrad, RMSProp and Adam, with a panel for each parameter."""
    for name in PARAMETERS:
        panel = axes[f"rates of {name}"]
        for rule, rates in numbers["rates"].items():
            look.draw_rule(panel, rates[name], rule)
        look.use_log_scale(panel, subs=(1, 3))
        panel.set(xscale="log", xlabel="step", ylabel=f"effective rate of {name}")


def table(title: str, found: Mapping[str, Mapping[str, Any]], rates: Mapping[str, float | None]) -> list[str]:
    """Return a table of the rules, their rates, and the steps at which they arrive."""
    lines = [title, f"{'':25} {'rate':>9} {'loss':>9} {'w':>9} {'b':>9}"]
    for rule, each in found.items():
        steps = "".join(f"{'not yet' if each[what] is None else each[what]:>10}" for what in ("reached", *PARAMETERS))
        rate = rates[rule]
        lines.append(f"{rule:25} {'none' if rate is None else f'{rate:g}':>9}{steps}")
    return lines


def report(numbers: dict[str, Any]) -> str:
    """Describe the results in tables and three lines."""
    lr, turns, tuned = numbers["lr"], numbers["turn"], numbers["tuned"]
    lines = table(
        f"Steps until loss, w and b arrive for good ({DONE:.0%} of the way), as drawn:",
        numbers["arrivals"],
        numbers["drawn"],
    )
    lines += table("Each rule at its best rate:", tuned, {rule: each["lr"] for rule, each in tuned.items()})
    for kind, found in numbers["one_rate"].items():
        lines += table(f"All at one rate, with the gradient of the loss's {kind}:", found, dict.fromkeys(found, lr))
    shares = ", ".join(f"{rule} {'no turn' if done is None else f'{done:.0%}'}" for rule, done in turns.items())
    rate, gradient, history = (numbers[key] for key in ("effective_lr", "gradient", "history"))
    last = ", ".join(f"{rule} {rates['b'][-1]:.3g}" for rule, rates in numbers["rates"].items())
    starts = numbers["starts"]
    lines += [
        f"Share of w's way that is done when {DONE:.0%} of b's way are done: {shares}.",
        "",
        f"The first gradient is {gradient['w'][0]:.3g} for w and {gradient['b'][0]:.3g} for b; with lr {lr:g}, "
        f"AdaGrad's effective rate is {rate['w'][0]:.3g} for w and {rate['b'][0]:.3g} for b.",
        f"b's history is {history['b'][0]:.3g} after the first step and {history['b'][-1]:.3g} after the last. "
        f"Its rates then: {last}; without the root {numbers['without_root']['effective_lr']['b'][-1]:.3g}.",
        f"Of {starts['tried']} starts on a grid, {starts['alike']} have first histories within a factor of "
        f"{arrivals.ALIKE:g} of a lecture's, {' and '.join(map(str, arrivals.LECTURERS))}; from "
        f"{starts['w_first'] or 'none'} of these w arrives before b by AdaGrad.",
    ]
    return "\n".join(lines)
