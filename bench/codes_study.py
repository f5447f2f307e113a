"""What codes of 8 bits round away of the states of optimizers, and what becomes of a training: makes their tables.

    python -m fastopt.bench.codes_study bench/results/codes.json

Trainings are of the lab's digits, whose states are encoded and decoded again at every step, by the rules of the oracle.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastopt.lab import network
from fastopt.lab.digits import load
from fastopt.progress import track

from . import codes_loops, oracle
from .codes import OF_AVERAGES, OF_SQUARES, Array, Storage, stochastically
from .codes_report import LOST, Averages, Drift, Squares, Study

STEPS, SEEDS, BATCH = 300, range(6), 32
SIZES = (64, 128, 10)
BLOCKS = (32, 64, 128, 256)
DRAWN = 2**16  # synthetic numbers
ADAM = {"lr": 0.01, "betas": (0.9, 0.999)}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "momentum": {"lr": 0.1, "momentum": 0.9},
    "adagrad": {"lr": 0.1},
    "rmsprop": {"lr": 0.01},
    "rmsprop_centered": {"lr": 0.01},
    "adam": ADAM,
    "adam_amsgrad": ADAM,
    "lion": {"lr": 0.003},
}
AVERAGE = Storage(OF_AVERAGES["float above a bias"])  # what is chosen
SQUARE = Storage(OF_SQUARES["float above a bias"], least=1)
UNBIASED = Storage(OF_SQUARES["float above a bias"], rounding=stochastically, least=1)
CHOSEN: Mapping[str, Mapping[str, Sequence[Any]]] = {  # rule -> rounding of squares -> how each state is stored
    "momentum": {"to nearest": (AVERAGE,)},
    "adagrad": {"to nearest": (SQUARE,), "stochastically": (UNBIASED,)},
    "rmsprop": {"to nearest": (SQUARE,), "stochastically": (UNBIASED,)},
    "rmsprop_centered": {"to nearest": (SQUARE, AVERAGE), "stochastically": (UNBIASED, AVERAGE)},
    "adam": {"to nearest": (AVERAGE, SQUARE), "stochastically": (AVERAGE, UNBIASED)},
    "adam_amsgrad": {"to nearest": (AVERAGE, SQUARE, SQUARE), "stochastically": (AVERAGE, UNBIASED, UNBIASED)},
    "lion": {"to nearest": (AVERAGE,)},
}


def in_float32(state: Array, rng: np.random.Generator) -> Array:
    """Store a state as it is."""
    return state.astype(np.float32)


def train(rule: str, storages: Sequence[Any], seed: int) -> tuple[float, list[Array]]:
    """Train on the digits, with a rate that falls to 0; return the final loss on them, and the states of w1."""
    x, y, _, _ = load()
    rng, noise = np.random.default_rng(seed), np.random.default_rng(1000 + seed)
    params = network.new_parameters(rng, SIZES)
    grads = {name: np.zeros_like(param) for name, param in params.items()}
    states: dict[str, Any] = dict.fromkeys(params)
    for step in range(1, STEPS + 1):
        chosen = rng.integers(len(y), size=BATCH)
        network.loss_and_gradients(params, x[chosen], y[chosen], grads)
        fallen = 0.5 + 0.5 * np.cos(np.pi * (step - 1) / STEPS)
        options = {**OPTIONS[rule], "lr": OPTIONS[rule]["lr"] * fallen}
        for name, param in params.items():
            p = param.astype(np.float64)
            new, after = oracle.RULES[rule](p, grads[name].astype(np.float64), states[name], step, options)
            param[...] = new
            stored = zip(storages, after, strict=True)
            states[name] = tuple(storage(state, noise).astype(np.float64) for storage, state in stored)
    return network.loss(params, x, y), list(states["w1"])


class Trainings:
    """Final losses, as logarithms, beside those of the same seeds with states in float32."""

    def __init__(self) -> None:
        self._float32: dict[str, Array] = {}

    def losses(self, rule: str, storages: Sequence[Any]) -> Array:
        """Train with every seed."""
        with np.errstate(all="ignore"):  # where squares become 0, trainings end in NaN
            return np.log([train(rule, storages, seed)[0] for seed in SEEDS])

    def float32(self, rule: str) -> Array:
        """Train with states in float32, once."""
        if rule not in self._float32:
            self._float32[rule] = self.losses(rule, [in_float32] * len(CHOSEN[rule]["to nearest"]))
        return self._float32[rule]

    def drift(self, rule: str, storages: Sequence[Any]) -> Drift:
        """Return how much larger the loss is: the mean over the seeds and its standard error; NaN counts as lost."""
        more = self.losses(rule, storages) - self.float32(rule)
        if not np.isfinite(more).all():
            return LOST
        return {"mean": float(more.mean()), "error": float(more.std(ddof=1) / len(SEEDS) ** 0.5)}


def error(state: Array, storage: Storage) -> float:
    """Return the root of the mean square of what is rounded away, as a share of that of the state."""
    lost = storage(state, np.random.default_rng(0)) - state
    return float(np.sqrt(np.mean(lost**2) / np.mean(state**2)))


def growth(square: Array, storage: Storage) -> Array:
    """Return by how much a step grows that is divided by the root of a square, for all squares above 0."""
    square = square[square > 0]
    grown: Array = np.sqrt(square / storage(square, np.random.default_rng(0)))
    return grown


def of_averages(trainings: Trainings) -> list[Averages]:
    """Compare the codes of averages."""
    average = train("adam", [in_float32] * 2, 0)[1][0]
    heavy = np.random.default_rng(0).standard_t(2, DRAWN)
    rows: list[Averages] = []
    for name, code in track([*OF_AVERAGES.items()], "Codes of averages"):
        rows.append(
            {
                "code": name,
                "errors": {str(block): error(average, Storage(code, block)) for block in BLOCKS},
                "heavy": error(heavy, Storage(code)),
                "drifts": {rule: trainings.drift(rule, [Storage(code)]) for rule in ("momentum", "lion")},
                "nanoseconds": codes_loops.nanoseconds(name, signed=True),
            }
        )
    return rows


def of_squares(trainings: Trainings) -> list[Squares]:
    """Compare the codes of squares."""
    square = train("adam", [in_float32] * 2, 0)[1][1]
    heavy = np.exp(4 * np.random.default_rng(0).standard_normal(DRAWN))
    rows: list[Squares] = []
    for name, code in track([*OF_SQUARES.items()], "Codes of squares"):
        storages = {block: Storage(code, block, least=1) for block in BLOCKS}
        unbiased = Storage(code, rounding=stochastically, least=1)
        ratios = growth(square, storages[64])
        rows.append(
            {
                "code": name,
                "errors": {str(each): rms(growth(square, storages[each]) - 1) for each in BLOCKS},
                "heavy": rms(growth(heavy, storages[64]) - 1),
                "least": float(ratios.min()),
                "most": float(ratios.max()),
                "zero": trainings.drift("adam", [in_float32, Storage(code)]),
                "nearest": trainings.drift("adam", [in_float32, storages[64]]),
                "stochastic": trainings.drift("adam", [in_float32, unbiased]),
                "nanoseconds": codes_loops.nanoseconds(name, signed=False),
            }
        )
    return rows


def rms(values: Array) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(values**2)))


def study() -> Study:
    """Compare all codes, and train by every rule with those that are chosen."""
    trainings = Trainings()
    return {
        "averages": of_averages(trainings),
        "squares": of_squares(trainings),
        "rules": {
            rule: {rounding: trainings.drift(rule, storages) for rounding, storages in storages_by_rounding.items()}
            for rule, storages_by_rounding in track([*CHOSEN.items()], "Rules")
        },
        "float32_nanoseconds": codes_loops.in_float32(),
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(study(), indent=1) + "\n", encoding="utf-8")
