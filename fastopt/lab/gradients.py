"""Gradients that explode, at a cliff in a recurrent unit's loss, and that vanish, in a deep sigmoid network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base import Optimizer
from ..checks import Count, Number
from ..optimizers import SGD, Adagrad
from ..progress import track
from . import look, network, training
from .descent import descend, follow
from .digits import load
from .network import RELU, SIGMOID, Activation, Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNROLLED = 50  # time steps of the recurrent unit
FIRST = 0.5  # its first state
TARGET = 0.7  # the desired last output
START = (5.6, -2.5)  # w and b
AROUND = 0.2  # the largest distance of random starts, in w and in b
EXTENT = (3.6, 6.6), (-3.6, -1.0)  # of the map; a point that leaves it is thrown out
CLIFF = (5.72, -3.22)  # the position of the label on the map
LOW = 0.01  # below this loss a descent has found the valley

LINES = {"plain": (1.5, 3.5), "by norm": (0.9, 3.2), "by value": (1.5, 3)}  # width, and order where paths coincide

UNITS = 32  # of each hidden layer
BATCH = 32
DEAD = 0.01  # a unit is dead if its outputs for all training images differ by less
GUESSING = math.log(10)  # the loss of a network that gives each digit the same probability

WAYS = {"plain": look.PALETTE[2], "by norm": look.PALETTE[1], "by value": look.PALETTE[4]}
LABELS = {"plain": "plain descent", "by norm": "descent clipped by norm", "by value": "descent clipped by value"}
INFINITE = {"by norm": look.PALETTE[1], "by value": look.PALETTE[4], "skipped": look.PALETTE[7]}
RUNS = {
    "sigmoid, sgd": look.RULE_COLOURS["sgd"],
    "sigmoid, adagrad": look.RULE_COLOURS["adagrad"],
    "relu, sgd": look.PALETTE[5],
}


@dataclass(frozen=True)
class Run:
    """The initialisation and training of a deep network."""

    activation: Activation
    spread: float  # the variance of its first weights, times the inputs
    optimizer: Callable[..., Optimizer]
    lr: float


def unroll(points: Array) -> list[Array]:
    """Return the recurrent unit's outputs before and after each time step: ``sigmoid(x_0), ..., sigmoid(x_50)``."""
    w, b = points[..., 0], points[..., 1]
    outputs = [SIGMOID.value(np.full(w.shape, FIRST))]
    for _ in range(UNROLLED):
        outputs.append(SIGMOID.value(w * outputs[-1] + b))
    return outputs


def loss(points: Array) -> Array:
    """Return ``(sigmoid(x_50) - 0.7)**2`` at points (w, b), shape (..., 2)."""
    squared: Array = (unroll(points)[-1] - TARGET) ** 2
    return squared


def gradient(points: Array) -> Array:
    """Return the gradient of the loss at points, shape (..., 2), by backpropagation through time."""
    *inputs, output = unroll(points)
    total = np.zeros(points.shape)
    delta = 2 * (output - TARGET) * SIGMOID.slope(output)  # the derivative of the loss with respect to x_t, backwards
    for each in reversed(inputs):
        total += np.stack([delta * each, delta], axis=-1)
        delta = delta * points[..., 0] * SIGMOID.slope(each)
    return total


class OneForEach:
    """An optimizer for each of several points, since the norm by which one clips is that of all its gradients."""

    def __init__(self, make_optimizer: Callable[[Array], Optimizer], points: Array) -> None:
        self.optimizers = [make_optimizer(point) for point in points]

    def step(self, gradients: Array) -> None:
        """Take a step with the gradient of each point."""
        for optimizer, each in zip(self.optimizers, gradients, strict=True):
            optimizer.step(each)


def inside(points: Array) -> Array:
    """Say which points, shape (..., 2), are on the map."""
    low, high = np.array(EXTENT).T
    within: Array = ((low <= points) & (points <= high)).all(axis=-1)
    return within


def plain(values: Any) -> Any:
    """Return plain Python numbers, and None for those that are not finite, which JSON does not have."""
    objects = np.array(values, np.float64).astype(object)
    objects[~np.isfinite(values)] = None
    return objects.tolist()


def descents(lr: float, max_norm: float, max_value: float, steps: int, starts: int, seed: int) -> dict[str, Any]:
    """Descend from the start and from random starts around it, with plain and with clipped gradients."""
    around = np.random.default_rng(seed).uniform(-AROUND, AROUND, (starts, 2))
    everywhere = START + np.vstack([[0.0, 0.0], around])  # the first path is the picture's

    stages: dict[str, dict[str, Any]] = {
        "plain": {}, "by norm": {"max_grad_norm": max_norm}, "by value": {"clip_grad_value": max_value},
    }  # fmt: skip
    ways = {}
    for name, options in track(stages.items(), "descending"):
        make = partial(OneForEach, partial(SGD, lr=lr, **options))
        with np.errstate(over="ignore", invalid="ignore"):  # a second cliff, far out, may throw points to infinity
            path = descend(make, gradient, everywhere, steps)
            out = ~inside(path)
            first = path[:, 0]
            stays: Array = np.logical_not(out.any(axis=0))
            ways[name] = {
                "path": plain(first),
                "loss": plain(loss(first)),
                "gradient_norm": plain(np.linalg.norm(gradient(first), axis=-1)),
                "thrown_at": int(out[:, 0].argmax()) if out[:, 0].any() else None,
                "thrown_share": float(1 - stays[1:].mean()),
                "low_share": float((stays[1:] & (loss(path[-1, 1:]) < LOW)).mean()),
            }
    return {
        "start": list(START), "lr": lr, "max_norm": max_norm, "max_value": max_value, "steps": steps, "starts": starts,
        "seed": seed, "ways": ways, "infinite": infinite_step(lr, max_norm, max_value, steps),
    }  # fmt: skip


def infinite_step(lr: float, max_norm: float, max_value: float, steps: int) -> dict[str, Any]:
    """Descend from the start, with a gradient that is infinite in one step, as a faulty batch makes it."""
    at = steps // 2
    stages: dict[str, dict[str, Any]] = {
        "by norm": {"max_grad_norm": max_norm},
        "by value": {"clip_grad_value": max_value},
        "skipped": {"max_grad_norm": max_norm, "skip_nonfinite": True},
    }
    ways = {}
    for name, options in stages.items():
        count = iter(range(1, steps + 1))

        def broken(points: Array, count: Iterator[int] = count) -> Array:
            slope = gradient(points)
            return np.copysign(np.inf, slope) if next(count) == at else slope

        with np.errstate(over="ignore", invalid="ignore"):
            followed = follow(partial(SGD, lr=lr, **options), broken, np.array(START), steps)
            found = [(points.copy(), optimizer.skipped_steps) for points, optimizer in followed]
        ways[name] = {"path": plain([point for point, _ in found]), "skipped_steps": found[-1][1]}
    return {"step": at, "ways": ways}


def train(run: Run, x: Array, y: Array, *, layers: int, epochs: int, seed: int) -> Iterator[dict[str, Array]]:
    """Train a new network, and yield its parameters, which change in place: before the first epoch, and after each.

    Only the seed determines the start, except for its scale, and the batches.
    """
    rng = np.random.default_rng(seed)
    params = network.new_parameters(rng, (x.shape[1], *layers * [UNITS], 10), spread=run.spread)
    yield params
    optimizer = run.optimizer(params, lr=run.lr)
    for _ in training.train(
        params, optimizer, x, y, epochs=epochs, batch=BATCH, rng=rng, activation=run.activation
    ):  # fmt: skip
        yield params


def weight_gradients(run: Run, params: dict[str, Array], x: Array, y: Array) -> list[Array]:
    """Return the gradient of each layer's weights, over all images at once."""
    grads = {name: np.empty_like(array) for name, array in params.items()}
    network.loss_and_gradients(params, x, y, grads, activation=run.activation)
    return [each for name, each in grads.items() if name.startswith("w")]


def first_step(run: Run, slope: Array) -> float:
    """Return the length of the first step, divided by the rate; taken from 0, where rounding hides no small step."""
    weights = np.zeros_like(slope)
    run.optimizer(weights, lr=run.lr).step(slope)
    return float(np.linalg.norm(weights)) / run.lr


def dead_units(run: Run, params: dict[str, Array], x: Array) -> list[int]:
    """Count in each hidden layer the units whose output differs by less than `DEAD` between any two images."""
    _, *hidden, _ = network.forward(params, x, run.activation)
    return [int(np.sum(~(np.ptp(outputs, axis=0) >= DEAD))) for outputs in hidden]  # `not >=`, so that NaN is dead too


def settings(sgd_lr: float, adagrad_lr: float) -> dict[str, Run]:
    """Return the runs, by name."""
    runs = Run(SIGMOID, 1.0, SGD, sgd_lr), Run(SIGMOID, 1.0, Adagrad, adagrad_lr), Run(RELU, 2.0, SGD, sgd_lr)
    return dict(zip(RUNS, runs, strict=True))


def trainings(sgd_lr: float, adagrad_lr: float, layers: int, epochs: int, seed: int) -> dict[str, Any]:
    """Train the deep networks on the handwritten digits."""
    x, y, _, _ = load()
    runs = settings(sgd_lr, adagrad_lr)
    found: dict[str, Any] = {}
    trained = (
        (name, params)
        for name, run in runs.items()
        for params in train(run, x, y, layers=layers, epochs=epochs, seed=seed)
    )
    with np.errstate(over="ignore", invalid="ignore"):  # too high a rate throws parameters to infinity
        for name, params in track(trained, "training", total=len(runs) * (epochs + 1)):
            run = runs[name]
            if name not in found:
                slopes = weight_gradients(run, params, x, y)
                found[name] = {
                    "lr": run.lr,
                    "gradient_norm": plain([np.linalg.norm(each) for each in slopes]),
                    "first_step": plain([first_step(run, each) for each in slopes]),
                    "dead_at_start": dead_units(run, params, x),
                    "loss": [],
                }
            found[name]["loss"].append(plain(network.loss(params, x, y, activation=run.activation)))
            found[name]["dead"] = dead_units(run, params, x)
    return {"layers": layers, "units": UNITS, "epochs": epochs, "guessing": GUESSING, "runs": found}


def gradients(
    lr: float = 0.2,
    max_norm: float = 0.3,
    steps: int = 300,
    starts: int = 100,
    sgd_lr: float = 0.1,
    adagrad_lr: float = 0.03,
    layers: int = 8,
    epochs: int = 40,
    seed: int = 0,
    max_value: float = 0.3,
) -> tuple[Figure, dict[str, Any]]:
    """Show exploding gradients and what clipping does, and vanishing gradients and what helps.

    Gradients explode in a recurrent unit [1]_: ``x_t = w * sigmoid(x_{t-1}) + b`` for t from 1 to 50, with
    ``x_0 = 0.5`` and the loss ``(sigmoid(x_50) - 0.7)**2`` of (w, b), which has a cliff beside its valley. Three
    descents go from one start at the same rate, without momentum: a plain one, one whose gradient g is clipped by its
    norm, ``g <- g * min(1, max_norm / |g|)``, and one in which each component is clipped to [-max_value, max_value].
    Three more have an infinite gradient halfway: clipped by its norm, clipped by value, or skipped.

    Gradients vanish in a network with many hidden layers of 32 units, on the handwritten digits: with sigmoids and
    weights of variance 1 / inputs, trained by SGD and by AdaGrad from the same start. For comparison, a network with
    ReLUs and He's initialisation, variance 2 / inputs [2]_, is trained by SGD.

    Parameters
    ----------
    lr : float, default 0.2
        The learning rate of the descents.
    max_norm : float, default 0.3
        The norm to which gradients are clipped; above 0.
    steps : int, default 300
        The number of steps of each descent, 1 or more.
    starts : int, default 100
        The number of random starts for the table, at most 0.2 from the picture's start in w and in b; 1 or more.
    sgd_lr : float, default 0.1
        The learning rate of the networks that SGD trains.
    adagrad_lr : float, default 0.03
        The learning rate of the network that AdaGrad trains.
    layers : int, default 8
        The number of hidden layers of the networks, 1 to 63.
    epochs : int, default 40
        The number of passes over the training images, in batches of 32; 1 or more.
    seed : int, default 0
        The seed of the random starts, of the networks' first weights and of their batches.
    max_value : float, default 0.3
        The size to which components of gradients are clipped; above 0.

    Returns
    -------
    figure : matplotlib.figure.Figure
        The paths over a map of the loss, the gradient's norm at each step, and the loss around an infinite gradient;
        for the networks, the first step by layer, the loss by epoch, and the dead units.
    numbers : dict
        ``{"cliff": {"ways": {"plain": {"path": ..., "loss": ..., "gradient_norm": ..., "thrown_at": ...,
        "thrown_share": ..., "low_share": ...}, "by norm": {...}, "by value": {...}}, "infinite": {"step": ..., "ways":
        {"by norm": {"path": ..., "skipped_steps": ...}, "by value": {...}, "skipped": {...}}}, ...}, "network":
        {"runs": {run: {"gradient_norm": ..., "first_step": ..., "dead_at_start": ..., "dead": ..., "loss": ...}},
        ...}}``. ``thrown_at`` is the step
        that leaves the map, or None. The shares are those of the random starts that leave the map, and that stay and
        end at a loss below 0.01. For each layer's weights, ``gradient_norm`` is the norm of the gradient at the start,
        over all training images, and ``first_step`` the norm of the resulting step divided by the rate; for SGD the two
        are equal. The loss is that of all training images, from the start on. A number that is not finite is None.

    Raises
    ------
    ImportError
        If matplotlib or scikit-learn is not installed; the extra ``fastopt[lab]`` has them.
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    A unit is dead if its output differs by less than 0.01 between any two training images.

    References
    ----------
    .. [1] R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", ICML 2013,
       figure 6.
    .. [2] K. He, X. Zhang, S. Ren, J. Sun, "Delving Deep into Rectifiers: Surpassing Human-Level Performance on
       ImageNet Classification", ICCV 2015.
    """
    lr = Number("learning rate", 1e-6, 1e3).check("lr", lr)
    max_norm = Number("norm", 1e-9, 1e9).check("max_norm", max_norm)
    max_value = Number("value", 1e-9, 1e9).check("max_value", max_value)
    steps = Count(1, 2**20).check("steps", steps)
    starts = Count(1, 2**20).check("starts", starts)
    sgd_lr = Number("learning rate", 1e-6, 1e3).check("sgd_lr", sgd_lr)
    adagrad_lr = Number("learning rate", 1e-6, 1e3).check("adagrad_lr", adagrad_lr)
    layers = Count(1, 2**6).check("layers", layers)
    epochs = Count(1, 2**20).check("epochs", epochs)
    seed = Count().check("seed", seed)
    figure, axes = look.new_figure(
        [["map", "map", "norm"], ["map", "map", "infinite"], ["first step", "loss", "dead"]],
        height=9.0, height_ratios=(1, 1, 1.4),
    )  # fmt: skip
    numbers = {
        "cliff": descents(lr, max_norm, max_value, steps, starts, seed),
        "network": trainings(sgd_lr, adagrad_lr, layers, epochs, seed),
    }
    draw_cliff(axes, numbers["cliff"])
    draw_infinite_step(axes["infinite"], numbers["cliff"]["infinite"])
    draw_network(axes, numbers["network"])
    look.add_legend(figure, axes["map"])
    handles, labels = axes["first step"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=look.FONT_SIZE)
    return figure, numbers


def draw_cliff(axes: dict[str, Axes], cliff: dict[str, Any]) -> None:
    """Draw the paths over the map, and their gradients, up to the step that leaves the map."""
    look.draw_landscape(axes["map"], loss, *EXTENT)
    axes["map"].set(xlabel="w", ylabel="b")
    axes["map"].text(*CLIFF, "cliff", rotation=-20, fontsize=look.FONT_SIZE, ha="center", va="center")
    axes["map"].set_title(rf"$x_t = w\,\sigma(x_{{t-1}}) + b$, {UNROLLED} steps in time", fontsize=look.SMALL)
    thrown = 0
    for name, way in cliff["ways"].items():
        path, norms = until_thrown(way)
        width, order = LINES[name]
        look.draw_path(axes["map"], path, LABELS[name], WAYS[name], width).set_zorder(order)
        axes["norm"].plot(
            range(1, len(norms) + 1), norms, color=WAYS[name], linestyle="none", marker="o", markersize=2,
            zorder=order,
        )  # fmt: skip
        if way["thrown_at"] is not None:
            point_out(axes["map"], path, name, row=thrown)
            thrown += 1
    axes["norm"].axhline(cliff["max_norm"], color="black", linewidth=1.2, linestyle=":")
    axes["norm"].set_title(f"dotted: max_norm = {cliff['max_norm']:g}", fontsize=look.SMALL)
    axes["norm"].set(yscale="log", ylabel="norm of the gradient")
    look.label_epochs(axes["norm"], "step")


def draw_infinite_step(axes: Axes, infinite: dict[str, Any]) -> None:
    """Draw w around an infinite gradient; a cross where it becomes NaN."""
    for name, way in infinite["ways"].items():
        path = finite(way["path"])
        ends = len(path) < len(way["path"])
        axes.plot(
            path[:, 0], color=INFINITE[name], linewidth=1.1, zorder=4 if ends else 3,
            label=f"{name}: NaN" if ends else name, marker="X" if ends else "o", markevery=[-1], markersize=6,
        )  # fmt: skip
    axes.axvline(infinite["step"], color="black", linewidth=1, linestyle=":")
    axes.set_title(f"step {infinite['step']} has an infinite gradient", fontsize=look.SMALL)
    axes.set_ylabel("w")
    axes.legend(fontsize=look.SMALL, framealpha=1, edgecolor="none")
    look.label_epochs(axes, "step")


def finite(path: Sequence[Any]) -> Array:
    """Return a path up to the first point that is not finite."""
    points = np.array(path, float)
    known = np.isfinite(points).all(axis=-1)
    return points if known.all() else points[: int(known.argmin())]


def until_thrown(way: dict[str, Any]) -> tuple[Array, Array]:
    """Return a path up to the step that leaves the map, and the norms of its gradients."""
    steps = len(way["path"]) - 1 if way["thrown_at"] is None else way["thrown_at"]
    return np.array(way["path"][: steps + 1], float), np.array(way["gradient_norm"][:steps], float)


def point_out(axes: Axes, path: Array, name: str, row: int) -> None:
    """Annotate where a path leaves the map and where it lands, in one of two rows."""
    w, b = path[-1]
    edge = next((point for point in np.linspace(path[-1], path[-2], 10_000) if inside(point)), path[-2])
    axes.annotate(
        f"{name}: step {len(path) - 1} leaves the map\nand lands at w = {w:.1f}, b = {b:.1f}", edge,
        (0.03, 0.96 - 0.2 * row), textcoords="axes fraction", va="top", fontsize=look.FONT_SIZE,
        gid=look.AT_THE_END, arrowprops={"arrowstyle": "->", "color": "0.3", "linewidth": 0.8, "linestyle": "--"},
    )  # fmt: skip


def draw_network(axes: dict[str, Axes], found: dict[str, Any]) -> None:
    """Draw each layer's first step, the losses, and the dead units."""
    layers = np.arange(1, found["layers"] + 2)
    for i, (name, run) in enumerate(found["runs"].items()):
        colour = RUNS[name]
        steps = np.array(run["first_step"], float)
        axes["first step"].plot(layers, steps, color=colour, marker="o", markersize=4, label=name)
        look.draw_curve(axes["loss"], np.array(run["loss"], float), name, colour, first=0)
        positions = layers[:-1] + 0.27 * (i - 1)
        axes["dead"].bar(positions, run["dead"], width=0.24, color=colour)
        axes["dead"].plot(
            positions, run["dead_at_start"], "o", color=colour, markerfacecolor="white", markersize=4, clip_on=False
        )
    axes["first step"].set(yscale="log", ylabel="norm of the first step / lr")
    axes["first step"].set_title(f"hidden layers: {found['layers']}, of {found['units']} units", fontsize=look.SMALL)
    look.label_epochs(axes["first step"], "layer")
    look.use_log_scale(axes["loss"])
    look.label_epochs(axes["loss"])
    axes["loss"].set_ylabel("training loss (nats)")
    axes["loss"].axhline(found["guessing"], color="black", linewidth=1, linestyle=":")
    axes["loss"].set_title(f"dotted: guessing, ln 10 = {found['guessing']:.3f}", fontsize=look.SMALL)
    look.label_epochs(axes["dead"], "hidden layer")
    axes["dead"].set(ylim=(0, 1.03 * found["units"]), ylabel=f"dead units of {found['units']}")
    axes["dead"].set_title("rings: at the start; bars: at the end", fontsize=look.SMALL)


def shown(value: float | None, form: str) -> str:
    """Return a number as text; None as "not finite"."""
    return "not finite" if value is None else format(value, form)


def report(numbers: dict[str, Any]) -> str:
    """Describe the results in a table and three lines."""
    cliff, found = numbers["cliff"], numbers["network"]
    lines = [f"{'descent':18} {'off the map':>12} {f'loss < {LOW:g}':>16} {'largest gradient':>18} {'last loss':>11}"]
    for name, way in cliff["ways"].items():
        largest = float(np.nanmax(until_thrown(way)[1]))
        lines.append(
            f"{name:18} {way['thrown_share']:>12.0%} {way['low_share']:>16.0%} {largest:>18.3g} "
            f"{shown(way['loss'][-1], '.3g'):>11}"
        )
    lines.append(f"{'network':18} {'dead before':>12} {'dead after':>16} {'first gradient':>18} {'last loss':>11}")
    for name, run in found["runs"].items():
        lines.append(
            f"{name:18} {sum(run['dead_at_start']):>12} {sum(run['dead']):>16} "
            f"{shown(run['gradient_norm'][0], '.2g'):>18} {shown(run['loss'][-1], '.3g'):>11}"
        )
    ends = [f"{LABELS[name]} {said_of_way(way)}" for name, way in cliff["ways"].items()]
    said = f"From {tuple(cliff['start'])}: {'; '.join(ends)}. {said_of_infinite_step(cliff['infinite'])}"
    return "\n".join([*lines, "", said, *said_of_network(found)])


def said_of_way(way: dict[str, Any]) -> str:
    """Describe how a path ends."""
    step = way["thrown_at"]
    if step is None:
        return f"stays on the map and ends at a loss of {way['loss'][-1]:.2g}"
    w, b = (shown(each, ".1f") for each in way["path"][step])
    norm = shown(way["gradient_norm"][step - 1], ".3g")
    return f"is thrown off the map by step {step}, whose gradient has the norm {norm}, to w = {w}, b = {b}"


def said_of_infinite_step(infinite: dict[str, Any]) -> str:
    """Describe how the descents with an infinite gradient end."""
    ends = []
    for name, way in infinite["ways"].items():
        w = way["path"][-1][0]
        ends.append(f"{name}, {'w is lost' if w is None else f'w ends at {w:.2f}'}")
    return f"Where the gradient of step {infinite['step']} is infinite: {'; '.join(ends)}."


def said_of_network(found: dict[str, Any]) -> list[str]:
    """Describe how the gradient changes on its way to the first layer, and the final losses."""
    sgd, adagrad, relu = (found["runs"][name] for name in RUNS)
    (first, last), (relu_first, relu_last) = (
        [shown(run["gradient_norm"][layer], ".2g") for layer in (0, -1)] for run in (sgd, relu)
    )
    losses = [shown(run["loss"][-1], ".2g") for run in (sgd, adagrad, relu)]
    epochs = found["epochs"]
    return [
        f"At the start the norm of the weights' gradient is {last} in the last layer and {first} in the first one "
        f"with sigmoids, {relu_last} and {relu_first} with ReLUs and He's initialisation.",
        f"Guessing has a loss of ln 10 = {found['guessing']:.3f}; after epoch {epochs} the sigmoid network is "
        f"at {losses[0]} by SGD and at {losses[1]} by AdaGrad, the ReLU network at {losses[2]}.",
    ]
