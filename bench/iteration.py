"""Times whole training iterations of a small network, with NumPy's update and with fastopt's.

An update that takes a tenth of the time speeds up training only by the share that it had.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from fastopt.lab import network
from fastopt.lab.digits import load
from fastopt.progress import track

from .contenders import CONTENDERS, RULES, Step
from .measure import Pace, one_by_one, settled
from .rounds import Rounds, median_of, reasons
from .workloads import Arrays

BATCH = 64
Batches = Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]


class Iteration(TypedDict):
    """One rule's iteration; before: with NumPy's update; after: with fastopt's; gain: how many times faster.

    Shares are the update's, as fractions. An unstable figure is None, and `unstable` has the reason.
    """

    rule: str
    seconds_before: float | None
    seconds_after: float | None
    share_before: float | None
    share_after: float | None
    gain: float | None
    unstable: dict[str, str]


class Iterations(TypedDict):
    """What was trained, and each rule's iteration."""

    parameters: int
    batch: int
    rules: list[Iteration]


class Training:
    """A network in training; each call is one iteration, and records the update's share of its time.

    Parameters
    ----------
    gradients : callable
        Evaluates the next batch.
    update : callable
        Takes the step.
    """

    def __init__(self, gradients: Step, update: Step) -> None:
        self.gradients = gradients
        self.update = update
        self.shares: list[float] = []

    def __call__(self) -> None:
        """Compute the gradients of the next batch, and update."""
        start = time.perf_counter_ns()
        self.gradients()
        middle = time.perf_counter_ns()
        self.update()
        end = time.perf_counter_ns()
        self.shares.append((end - middle) / (end - start))


def digits() -> Batches:
    """Load the training images, in batches."""
    x, y, _, _ = load()
    return [(x[at : at + BATCH], y[at : at + BATCH]) for at in range(0, len(x) - BATCH + 1, BATCH)]


def numpy_training(batches: Batches, contender: str, rule: str) -> Training:
    """Make the lab's network, in NumPy, with an update."""
    params = network.new_parameters(np.random.default_rng(0))
    grads = {name: np.zeros_like(param) for name, param in params.items()}
    turns = itertools.cycle(batches)
    arrays = Arrays(list(params.values()), list(grads.values()))
    return Training(
        lambda: network.loss_and_gradients(params, *next(turns), grads),
        CONTENDERS[contender](arrays, rule),
    )


def timed_trainings(trainings: Mapping[str, Training], pace: Pace, reference: str) -> Rounds:
    """Return the seconds of each training's iterations, which take turns; shares are recorded for these only."""
    for training in trainings.values():
        training()  # compiles and allocates
        training.shares.clear()
    return settled(trainings, one_by_one, pace, (reference,))


def iteration(batches: Batches, rule: str, pace: Pace) -> Iteration:
    """Measure the iterations of one rule."""
    trainings = {name: numpy_training(batches, name, rule) for name in ("numpy", "fastopt")}
    rounds = timed_trainings(trainings, pace, "fastopt")
    figures = {
        "seconds_before": rounds.seconds("numpy"),
        "seconds_after": rounds.seconds("fastopt"),
        "share_before": median_of(trainings["numpy"].shares),
        "share_after": median_of(trainings["fastopt"].shares),
        "gain": rounds.ratio("numpy", "fastopt"),
    }
    return {
        "rule": rule,
        "seconds_before": figures["seconds_before"].value,
        "seconds_after": figures["seconds_after"].value,
        "share_before": figures["share_before"].value,
        "share_after": figures["share_after"].value,
        "gain": figures["gain"].value,
        "unstable": reasons(**figures),
    }


def iterations(pace: Pace) -> Iterations:
    """Measure the iterations of all rules."""
    batches = digits()
    parameters = sum(param.size for param in network.new_parameters(np.random.default_rng(0)).values())
    rules = [iteration(batches, rule, pace) for rule in track(RULES, "Training")]
    return {"parameters": parameters, "batch": BATCH, "rules": rules}
