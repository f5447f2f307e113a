"""What the update is worth in the end: whole training iterations of a small network, with either update.

An update that takes a tenth of the time makes training faster only by the share that it had.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from fastopt.lab import network
from fastopt.lab.digits import load
from fastopt.progress import track

from .contenders import CONTENDERS, RULES, Step
from .measure import Pace, measure, median_ratio, one_by_one
from .workloads import Arrays

BATCH = 64
Batches = Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]


class Gain(TypedDict):
    """One rule's iteration; before: with NumPy's update; after: with fastopt's. Shares are the update's, fractions."""

    rule: str
    seconds_before: float
    seconds_after: float
    share_before: float
    share_after: float
    gain: float


class Iterations(TypedDict):
    """What was trained, and what each rule's iteration gained."""

    parameters: int
    batch: int
    rules: list[Gain]


class Training:
    """A network in training; a call is one iteration, of which the update's share is noted."""

    def __init__(self, batches: Batches, contender: str, rule: str) -> None:
        self.batches = itertools.cycle(batches)
        self.params = network.new_parameters(np.random.default_rng(0))
        self.grads = {name: np.zeros_like(param) for name, param in self.params.items()}
        arrays = Arrays(list(self.params.values()), list(self.grads.values()))
        self.update: Step = CONTENDERS[contender](arrays, rule)
        self.shares: list[float] = []

    def __call__(self) -> None:
        """Do gradients and update for the next batch."""
        start = time.perf_counter_ns()
        x, y = next(self.batches)
        network.loss_and_gradients(self.params, x, y, self.grads)
        middle = time.perf_counter_ns()
        self.update()
        end = time.perf_counter_ns()
        self.shares.append((end - middle) / (end - start))


def gain(batches: Batches, rule: str, pace: Pace) -> Gain:
    """Measure the iterations of one rule."""
    trainings: Mapping[str, Training] = {name: Training(batches, name, rule) for name in ("numpy", "fastopt")}
    for training in trainings.values():
        training()  # compiles
    seconds = measure(trainings, one_by_one, pace)
    return {
        "rule": rule,
        "seconds_before": median(seconds["numpy"]),
        "seconds_after": median(seconds["fastopt"]),
        "share_before": median(trainings["numpy"].shares),
        "share_after": median(trainings["fastopt"].shares),
        "gain": median_ratio(seconds["numpy"], seconds["fastopt"]),
    }


def iterations(pace: Pace) -> Iterations:
    """Measure the iterations of all rules."""
    x, y, _, _ = load()
    batches = [(x[at : at + BATCH], y[at : at + BATCH]) for at in range(0, len(x) - BATCH + 1, BATCH)]
    parameters = sum(param.size for param in network.new_parameters(np.random.default_rng(0)).values())
    gains = [gain(batches, rule, pace) for rule in track(RULES, "Training")]
    return {"parameters": parameters, "batch": BATCH, "rules": gains}
