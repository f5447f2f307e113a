"""Handwritten digits: one small network, trained by every update rule, and with five learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base import Optimizer
from ..checks import Count
from ..extras import require
from ..optimizers import SGD
from ..plateau import Plateau
from ..progress import track
from . import look, network, training
from .network import Array
from .training import OPTIMIZERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BATCH = 32
TEST_IMAGES = 360
ZOOM = 0.08  # accuracies differ little, so their panels show only this range below the best; epoch 1 is below it
SIDE = 8  # of an image, in pixels
SCHEDULES = ("constant", "exponential", "step", "cosine", "plateau")

# Chosen by `tune`.
LEARNING_RATES = {
    "sgd": 0.3, "momentum": 0.1, "nesterov": 0.1, "adagrad": 0.1, "rmsprop": 0.01, "adam": 0.01, "nadam": 0.01,
    "lion": 0.003,
}  # fmt: skip


def load() -> tuple[Array, Array, Array, Array]:
    """Load scikit-learn's 1,797 handwritten digits, 8 x 8 pixels each; a fifth of them is the test part.

    The split is always the same, with about the same share of each digit in both parts.

    Returns
    -------
    x_train : ndarray of float32, shape (1437, 64)
        Pixels, from 0 to 1.
    y_train : ndarray of int64, shape (1437,)
        The digits, 0 to 9.
    x_test, y_test : ndarray, shapes (360, 64) and (360,)
        The test part.
    """
    datasets = require("sklearn.datasets", "lab")
    selection = require("sklearn.model_selection", "lab")
    x, y = datasets.load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int64)
    x_train, x_test, y_train, y_test = selection.train_test_split(
        x, y, test_size=TEST_IMAGES, random_state=0, stratify=y
    )
    return x_train, y_train, x_test, y_test


def held_out(x: Array, y: Array) -> tuple[Array, Array, Array, Array]:
    """Split off a fifth of the training images, always the same: return inputs and digits of the rest, then of it."""
    order = np.random.default_rng(0).permutation(len(y))
    aside, rest = np.split(order, [len(y) // 5])
    return x[rest], y[rest], x[aside], y[aside]


def train(
    make_optimizer: Callable[..., Optimizer], x: Array, y: Array, *, epochs: int, seed: int, **options: Any
) -> Iterator[tuple[dict[str, Array], Optimizer]]:
    """Train a new network, and yield its parameters and the optimizer after each epoch.

    Only the seed determines the start and the batches, so all optimizers have the same.
    """
    rng = np.random.default_rng(seed)
    params = network.new_parameters(rng)
    optimizer = make_optimizer(params, **options)
    for _ in training.train(params, optimizer, x, y, epochs=epochs, batch=BATCH, rng=rng):
        yield params, optimizer


def digits(epochs: int = 30, seeds: int = 5, seed: int = 0) -> tuple[Figure, dict[str, Any]]:
    """Train a network of 64, 32 and 10 units on handwritten digits, by every rule, and with five schedules.

    All trainings begin with the same parameters and see the same batches of 32 images. Each rule has the learning rate
    that `tune` found best for it, on the training images alone; momentum is 0.9. The schedules are compared with plain
    descent, starting from its rate, on four fifths of these images; the plateau uses the loss on the rest.

    Parameters
    ----------
    epochs : int, default 30
        The number of passes over the training images, 1 or more.
    seeds : int, default 5
        The number of seeds for comparing the schedules, 1 or more.
    seed : int, default 0
        The first seed of the start and the batches; the rules are compared with this one.

    Returns
    -------
    figure : matplotlib.figure.Figure
        For each rule, training loss and test accuracy by epoch; for each schedule, test accuracy by epoch, as mean and
        standard deviation; AdaGrad's effective rate for each pixel.
    numbers : dict
        ``{"rules": {rule: {"loss": [...], "accuracy": [...]}}, "schedules": {name: {"accuracy": [[...], ...],
        "roughness": ...}}, "effective_lr": [[...], ...], "lr": {rule: ...}, ...}``. Loss and accuracy have a number
        after each epoch: the mean cross-entropy over all training images, and the share of test images that are
        recognised; for schedules, a list for each seed. Roughness is the mean absolute change of the accuracy from one
        epoch to the next, over the second half of the epochs. The effective rate, ``lr / (sqrt(h) + eps)``, is
        AdaGrad's at the end, where h is the mean accumulator of a pixel's 32 weights; None for a pixel that is dark in
        all images.

    Raises
    ------
    ImportError
        If matplotlib or scikit-learn is not installed; the extra ``fastopt[lab]`` has them.
    TypeError, ValueError
        If an argument is out of range.
    """
    epochs = Count(1, 2**20).check("epochs", epochs)
    seeds = Count(1, 2**20).check("seeds", seeds)
    seed = Count().check("seed", seed)
    figure, axes = look.new_figure([["loss", "accuracy"], ["schedules", "pixels"]], height=8.0)
    x_train, y_train, x_test, y_test = load()

    rules, pixels = by_rule(x_train, y_train, x_test, y_test, epochs, seed)
    schedules = by_schedule(x_train, y_train, x_test, y_test, epochs, range(seed, seed + seeds))
    numbers = {
        "epochs": epochs, "seed": seed, "lr": LEARNING_RATES, "rules": rules, "schedules": schedules,
        "effective_lr": pixels,
    }  # fmt: skip
    draw(figure, axes, numbers)
    return figure, numbers


def by_rule(
    x_train: Array, y_train: Array, x_test: Array, y_test: Array, epochs: int, seed: int
) -> tuple[dict[str, dict[str, list[float]]], list[list[float | None]]]:
    """Train by every rule; return loss and accuracy after each epoch, and AdaGrad's final effective rate by pixel."""
    curves: dict[str, dict[str, list[float]]] = {rule: {"loss": [], "accuracy": []} for rule in OPTIMIZERS}
    optimizers = {}
    trained = (
        (rule, params, optimizer)
        for rule, make_optimizer in OPTIMIZERS.items()
        for params, optimizer in train(
            make_optimizer, x_train, y_train, epochs=epochs, seed=seed, lr=LEARNING_RATES[rule]
        )
    )
    for rule, params, optimizer in track(trained, "training, by rule", total=len(OPTIMIZERS) * epochs):
        curves[rule]["loss"].append(network.loss(params, x_train, y_train))
        curves[rule]["accuracy"].append(network.accuracy(params, x_test, y_test))
        optimizers[rule] = optimizer
    return curves, rates_by_pixel(optimizers["adagrad"].state["w1"]["sum"], LEARNING_RATES["adagrad"])


def by_schedule(
    x_train: Array, y_train: Array, x_test: Array, y_test: Array, epochs: int, seeds: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Train by plain descent with every schedule and seed; return accuracy after each epoch, and its roughness."""
    x_rest, y_rest, x_aside, y_aside = held_out(x_train, y_train)
    batches = -(-len(y_rest) // BATCH)
    curves: dict[str, dict[str, Any]] = {name: {"accuracy": []} for name in SCHEDULES}
    runs = [(name, seed) for name in SCHEDULES for seed in seeds]
    for name, seed in track(runs, "training, by schedule"):
        schedule = training.SCHEDULES[name](LEARNING_RATES["sgd"], epochs, batches)
        accuracies = []
        for params, _ in train(SGD, x_rest, y_rest, epochs=epochs, seed=seed, lr=schedule):
            accuracies.append(network.accuracy(params, x_test, y_test))
            if isinstance(schedule, Plateau):
                schedule.update(network.loss(params, x_aside, y_aside))
        curves[name]["accuracy"].append(accuracies)
    for curve in curves.values():
        curve["roughness"] = roughness(curve["accuracy"])
    return curves


def roughness(accuracies: Sequence[Sequence[float]]) -> float:
    """Return the mean absolute change per epoch, over the second half of the epochs; 0 if that is a single epoch."""
    late = np.array(accuracies)[:, len(accuracies[0]) // 2 :]
    changes = np.abs(np.diff(late, axis=1))
    return float(changes.mean()) if changes.size else 0.0


def rates_by_pixel(accumulator: Array, lr: float) -> list[list[float | None]]:
    """Return AdaGrad's effective rate per pixel as an image, from the accumulator of the first layer's weights."""
    history = np.mean(accumulator, axis=1, dtype=np.float64).reshape(SIDE, SIDE)
    rates = np.where(history > 0, training.effective_rate(history, lr), np.nan)
    return [[rate if rate > 0 else None for rate in row] for row in rates.tolist()]


def draw(figure: Figure, axes: dict[str, Axes], numbers: dict[str, Any]) -> None:
    """Draw all panels."""
    for rule, curve in numbers["rules"].items():
        look.draw_rule(axes["loss"], curve["loss"], rule)
        look.draw_rule(axes["accuracy"], curve["accuracy"], rule)
    look.use_log_scale(axes["loss"])
    axes["loss"].set_ylabel("training loss (cross-entropy, nats)")
    for name, curve in numbers["schedules"].items():
        mean, deviation = np.mean(curve["accuracy"], axis=0), np.std(curve["accuracy"], axis=0)
        look.draw_band(axes["schedules"], mean, mean - deviation, mean + deviation, name, look.SCHEDULE_COLOURS[name])
    accuracies = np.array([curve["accuracy"] for curve in numbers["schedules"].values()])
    by_rule = np.array([curve["accuracy"] for curve in numbers["rules"].values()])
    seeds = accuracies.shape[1]
    axes["accuracy"].set_title("by rule", fontsize=look.SMALL)
    axes["loss"].set_title("by rule", fontsize=look.SMALL)
    title = f"plain, by schedule: mean ± deviation of {seeds} seeds"
    axes["schedules"].set_title(title, fontsize=look.SMALL)
    for panel, shown in (("accuracy", by_rule), ("schedules", accuracies)):
        lowest = min(shown.max() - ZOOM, shown[..., -1].min() - 0.1 * ZOOM)
        axes[panel].set(ylim=(lowest, 1.0), ylabel=f"test accuracy (share of {TEST_IMAGES} images)")
        axes[panel].yaxis.set_major_formatter("{x:.2f}")
        axes[panel].locator_params(axis="y", steps=[1, 2, 5, 10], nbins=6)
    for panel in ("loss", "accuracy", "schedules"):
        look.label_epochs(axes[panel])
    axes["schedules"].legend(frameon=False, fontsize=look.FONT_SIZE, loc="lower right")
    draw_pixels(figure, axes["pixels"], numbers["effective_lr"])
    look.add_legend(figure, axes["loss"])


def draw_pixels(figure: Figure, axes: Axes, rates: Sequence[Sequence[float | None]]) -> None:
    """Draw the effective rates as an image; pixels without a rate are hatched."""
    values = np.array(rates, np.float64)  # None becomes NaN
    norm = require("matplotlib.colors", "lab").LogNorm()
    image = axes.imshow(values, cmap="cividis", norm=norm)
    for row, column in np.argwhere(np.isnan(values)):
        axes.fill_between([column - 0.5, column + 0.5], row - 0.5, row + 0.5, facecolor="none", hatch="////", ec="0.6")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("pixels of the image; hatched: always dark")
    bar = figure.colorbar(image, ax=axes, label="AdaGrad's effective rate")
    bar.ax.tick_params(labelsize=look.FONT_SIZE - 1)
    bar.ax.yaxis.label.set_fontsize(look.FONT_SIZE)


def edges_and_centre(rates: Sequence[Sequence[float | None]]) -> tuple[list[float], list[float]]:
    """Return the rates of the pixels at the left and right edges, and of the 4 in the centre, if they have one."""
    middle = (SIDE // 2 - 1, SIDE // 2)
    edges = [row[column] for row in rates for column in (0, SIDE - 1)]
    centre = [rates[row][column] for row in middle for column in middle]
    return [rate for rate in edges if rate is not None], [rate for rate in centre if rate is not None]


def report(numbers: dict[str, Any]) -> str:
    """Describe the results in two tables and three lines."""
    rules, schedules = numbers["rules"], numbers["schedules"]
    lines = [f"{'rule':10} {'lr':>5} {'training loss':>15} {'test accuracy':>15}"]
    for rule, curve in rules.items():
        lines.append(f"{rule:10} {numbers['lr'][rule]:>5g} {curve['loss'][-1]:>15.4f} {curve['accuracy'][-1]:>15.3f}")
    final = {name: float(np.mean(curve["accuracy"], axis=0)[-1]) for name, curve in schedules.items()}
    ranking = sorted(final, key=final.__getitem__, reverse=True)
    seeds = len(schedules[ranking[0]]["accuracy"])
    lines += ["", f"{'schedule':12} {'test accuracy, mean of ' + str(seeds):>26} {'change per epoch, late':>24}"]
    lines += [f"{name:12} {final[name]:>26.4f} {schedules[name]['roughness']:>24.4f}" for name in ranking]

    epochs = len(rules["sgd"]["loss"])
    reached = {rule: training.first_epoch(curve["loss"], lambda loss: loss < 0.1) for rule, curve in rules.items()}
    counts = ", ".join(f"{rule} {count or f'more than {epochs}'}" for rule, count in reached.items())
    smoothest, roughest = (choose(schedules, key=lambda name: schedules[name]["roughness"]) for choose in (min, max))
    edges, centre = edges_and_centre(numbers["effective_lr"])
    lines += [
        "",
        f"Epochs until the training loss is below 0.1: {counts}.",
        f"Schedules by accuracy after epoch {epochs}: {', '.join(ranking)}; from an epoch to the next, late, accuracy "
        f"changes by {100 * schedules[smoothest]['roughness']:.2f} points ({smoothest}) to "
        f"{100 * schedules[roughest]['roughness']:.2f} ({roughest}).",
        f"With lr {numbers['lr']['adagrad']:g}, AdaGrad's effective rate is {np.median(centre):.3f} for pixels in the "
        "centre, and "
        + (f"{min(edges):.3g} to {max(edges):.3g} for those" if edges else "none, since they are always dark,")
        + " at the left and right edges.",
    ]
    return "\n".join(lines)


def tune(
    rates: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    epochs: int = 30,
    seeds: Sequence[int] = range(5),
) -> dict[str, float]:
    """Find the best learning rate of each rule, on the training images alone.

    A fifth of them is held out. The best rate has the lowest mean loss on that fifth, over epochs and seeds, which
    rewards both fast progress and a low final loss.

    Returns
    -------
    dict
        Rule -> learning rate.
    """
    x, y, _, _ = load()
    x_rest, y_rest, x_aside, y_aside = held_out(x, y)

    def mean_loss(rule: str, lr: float) -> float:
        trained = (
            params
            for seed in seeds
            for params, _ in train(OPTIMIZERS[rule], x_rest, y_rest, epochs=epochs, seed=seed, lr=lr)
        )
        return float(np.mean([network.loss(params, x_aside, y_aside) for params in trained]))

    return {rule: training.best(rates, partial(mean_loss, rule)) for rule in OPTIMIZERS}
