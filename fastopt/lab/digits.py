"""Handwritten digits: one small network, one start, the same batches, four update rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..extras import require
from ..optimizers import SGD, Adagrad, Optimizer
from ..progress import track
from . import look, network
from .network import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 32
TEST_IMAGES = 360

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "momentum": partial(SGD, momentum=0.9),
    "nesterov": partial(SGD, momentum=0.9, nesterov=True),
    "adagrad": Adagrad,
}
LEARNING_RATES = {"sgd": 0.3, "momentum": 0.1, "nesterov": 0.1, "adagrad": 0.1}  # the choice of `tune`


def load() -> tuple[Array, Array, Array, Array]:
    """Load scikit-learn's 1,797 handwritten digits, 8 x 8 pixels each, a fifth of them set aside for the test.

    The split is always the same, with about as many of each digit in either part.

    Returns
    -------
    x_train : ndarray of float32, shape (1437, 64)
        Pixels, from 0 to 1.
    y_train : ndarray of int64, shape (1437,)
        The digits, 0 to 9.
    x_test, y_test : ndarray, shapes (360, 64) and (360,)
        The test images.
    """
    datasets = require("sklearn.datasets", "lab")
    selection = require("sklearn.model_selection", "lab")
    x, y = datasets.load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int64)
    x_train, x_test, y_train, y_test = selection.train_test_split(
        x, y, test_size=TEST_IMAGES, random_state=0, stratify=y
    )
    return x_train, y_train, x_test, y_test


def train(rule: str, x: Array, y: Array, *, lr: float, epochs: int, seed: int) -> Iterator[dict[str, Array]]:
    """Train a new network by one rule, and yield its parameters after each epoch.

    The seed alone decides the start and the batches, so that all rules have the same.
    """
    rng = np.random.default_rng(seed)
    params = network.new_parameters(rng)
    grads = {name: np.zeros_like(array) for name, array in params.items()}
    optimizer = OPTIMIZERS[rule](params, lr=lr)
    optimizer.bind(grads)
    for _ in range(epochs):
        order = rng.permutation(len(y))
        for begin in range(0, len(y), BATCH):
            batch = order[begin : begin + BATCH]
            network.loss_and_gradients(params, x[batch], y[batch], grads)
            optimizer.step()
        yield params


def digits(epochs: int = 30, seed: int = 0) -> tuple[Figure, look.Curves]:
    """Train a network of 64, 32 and 10 units on handwritten digits, by four rules: sgd, momentum, nesterov, adagrad.

    All four begin with the same parameters and see the same batches of 32 images. Each has the learning rate that
    `tune` found best for it, on the training images alone; momentum is 0.9.

    Parameters
    ----------
    epochs : int, default 30
        Passes over the training images, 1 or more.
    seed : int, default 0
        Of the start and the batches, 0 or more.

    Returns
    -------
    figure : matplotlib.figure.Figure
        Training loss and test accuracy by epoch.
    curves : dict
        ``{rule: {"loss": [...], "accuracy": [...]}}``, a number after each epoch: cross-entropy, as the mean over all
        training images, and the share of test images that are recognised.

    Raises
    ------
    ImportError
        If matplotlib or scikit-learn is not installed; the extra ``fastopt[lab]`` has them.
    ValueError
        If epochs or seed are out of range.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be 1 or more, not {epochs}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, not {seed}")
    figure, (loss_axes, accuracy_axes) = look.new_figure(panels=2)
    x_train, y_train, x_test, y_test = load()

    curves: look.Curves = {rule: {"loss": [], "accuracy": []} for rule in OPTIMIZERS}
    trained = (
        (rule, params)
        for rule in OPTIMIZERS
        for params in train(rule, x_train, y_train, lr=LEARNING_RATES[rule], epochs=epochs, seed=seed)
    )
    for rule, params in track(trained, "training", total=len(OPTIMIZERS) * epochs):
        curves[rule]["loss"].append(network.loss(params, x_train, y_train))
        curves[rule]["accuracy"].append(network.accuracy(params, x_test, y_test))

    look.draw(loss_axes, curves, "loss")
    look.use_log_scale(loss_axes)
    loss_axes.set_ylabel("training loss (cross-entropy, nats)")
    look.draw(accuracy_axes, curves, "accuracy")
    accuracy_axes.set(ylim=(None, 1.0), ylabel=f"test accuracy (share of {TEST_IMAGES} images)")
    accuracy_axes.yaxis.set_major_formatter("{x:.2f}")
    accuracy_axes.locator_params(axis="y", steps=[1, 2, 5, 10], nbins=6)
    look.add_legend(figure, loss_axes)
    return figure, curves


def report(curves: look.Curves) -> str:
    """Say in a table and three lines what there is to see."""
    lines = [f"{'rule':10} {'lr':>5} {'training loss':>15} {'test accuracy':>15}"]
    for rule, curve in curves.items():
        lines.append(f"{rule:10} {LEARNING_RATES[rule]:>5g} {curve['loss'][-1]:>15.4f} {curve['accuracy'][-1]:>15.3f}")
    epochs = len(curves["sgd"]["loss"])
    reached = {rule: look.first_below(curve["loss"], 0.1) for rule, curve in curves.items()}
    counts = ", ".join(f"{rule} {count or f'more than {epochs}'}" for rule, count in reached.items())
    early, late = (min(curves, key=lambda rule: curves[rule]["loss"][epoch]) for epoch in (0, -1))
    final = {rule: curve["accuracy"][-1] for rule, curve in curves.items()}
    worst, best = min(final, key=final.__getitem__), max(final, key=final.__getitem__)
    images = round((final[best] - final[worst]) * TEST_IMAGES)
    lines += [
        "",
        f"Epochs until the training loss is below 0.1: {counts}.",
        f"Lowest loss after the first epoch: {early}, {curves[early]['loss'][0]:.2f}; "
        f"after the last, {epochs}: {late}, {curves[late]['loss'][-1]:.4f}.",
        f"Test accuracies end {images} images of {TEST_IMAGES} apart, from {final[worst]:.3f} ({worst}) to "
        f"{final[best]:.3f} ({best}).",
    ]
    return "\n".join(lines)


def tune(
    rates: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0), epochs: int = 30, seeds: Sequence[int] = range(5)
) -> dict[str, float]:
    """Find the learning rate of each rule that learns best, on the training images alone.

    A fifth of them, chosen at random, is held out. Best is the lowest loss on these, as the mean over epochs and
    seeds: it rewards both getting there soon and getting far.

    Returns
    -------
    dict
        Rule -> learning rate.
    """
    x, y, _, _ = load()
    order = np.random.default_rng(0).permutation(len(y))
    held_out, rest = np.split(order, [len(y) // 5])

    def mean_loss(rule: str, lr: float) -> float:
        trained = (
            params for seed in seeds for params in train(rule, x[rest], y[rest], lr=lr, epochs=epochs, seed=seed)
        )
        return float(np.mean([network.loss(params, x[held_out], y[held_out]) for params in trained]))

    return {rule: min(rates, key=lambda lr: mean_loss(rule, lr)) for rule in OPTIMIZERS}
