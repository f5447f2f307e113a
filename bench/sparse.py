"""Times steps with sparse gradients: of a table of many rows, a few thousand have one."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from fastopt.kernels import limits

import fastopt
from fastopt.progress import track

from . import by_hand
from .contenders import BY_HAND, FASTOPT, FASTOPT_TORCH, HAS_TORCH, NUMPY, Step
from .measure import Pace, after_other_work, one_by_one, settled
from .rounds import comparisons
from .sparse_report import BYTES, TORCH, WHOLE, Sparse, Touched
from .workloads import ITEMSIZE, SHARE_OF_MEMORY

TABLES = ((10_000, 64), (100_000, 16), (100_000, 64), (1_000_000, 64), (10_000_000, 128))  # rows and width
TOUCHED = 4096
CURVE_TABLES = ((10_000, 64), (100_000, 64), (1_000_000, 64))
TOUCHES = tuple(4**k for k in range(2, 9))  # of the curve
ZIPF = 1.05  # its exponent
DRAWS = 16  # gradients that take turns: their rows are more than caches hold
LR, EPS, BETA1, BETA2, ADAM_EPS = 0.1, 1e-10, 0.9, 0.999, 1e-8
SHARE = 0.25  # of an optimizer workload's time

Array = npt.NDArray[Any]

RULES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {  # the class over arrays and that for torch
    "sgd": ("SGD", "SGD", {}, {}),
    "adagrad": ("Adagrad", "Adagrad", {}, {}),
    "rowwise": ("Adagrad", "Adagrad", {"rowwise": True}, {"rowwise": True}),
    "adam": ("Adam", "SparseAdam", {"lazy_update": True}, {}),
}
STATES = {"sgd": 0, "adagrad": 1, "rowwise": 1, "adam": 2}


@dataclass
class Table:
    """A table that all contenders share, and gradients that take turns.

    Attributes
    ----------
    param : ndarray
    indices : list of ndarray
        The rows of each gradient, some more than once.
    values : ndarray
        Those of all gradients.
    """

    param: Array
    indices: list[Array]
    values: Array

    @classmethod
    def draw(cls, rows: int, width: int) -> Table:
        """Draw rows for a new table."""
        return cls.over(np.ones((rows, width), np.float32), TOUCHED)

    @classmethod
    def over(cls, param: Array, touched: int) -> Table:
        """Draw so many rows of a table from a Zipf law, in which neighbours are not alike."""
        rng = np.random.default_rng(0)
        shares = np.cumsum(np.arange(1, len(param) + 1) ** -ZIPF)
        order = rng.permutation(len(param))
        indices = [order[np.searchsorted(shares, rng.random(touched) * shares[-1])] for _ in range(DRAWS)]
        return cls(param, indices, rng.standard_normal((touched, param.shape[1]), np.float32))


def summed(indices: Array, values: Array) -> tuple[Array, Array]:
    """Return each row once, with its values added up, as NumPy's users do."""
    rows, inverse = np.unique(indices, return_inverse=True)
    sums = np.zeros((len(rows), values.shape[1]), values.dtype)
    np.add.at(sums, inverse, values)
    return rows, sums


def zeros(table: Table, rule: str) -> list[Array]:
    """Allocate the states of a rule; their memory is touched."""
    like = table.param[:, :1] if rule == "rowwise" else table.param
    return [np.full_like(like, 0) for _ in range(STATES[rule])]


def corrected(step: int) -> tuple[np.float32, np.float32]:
    """Return Adam's rate and eps in a step, with the bias corrections in them."""
    root = math.sqrt(1 - BETA2**step)
    return np.float32(LR * root / (1 - BETA1**step)), np.float32(ADAM_EPS * root)


def numpy_step(table: Table, rule: str) -> Step:
    """Make the step that NumPy's users write: rows are copied out, updated, and copied back."""
    p, states = table.param, zeros(table, rule)
    draws, count = itertools.cycle(table.indices), itertools.count(1)
    lr, eps = np.float32(LR), np.float32(EPS)

    def sgd(rows: Array, g: Array) -> None:
        p[rows] -= lr * g

    def adagrad(rows: Array, g: Array) -> None:
        (s,) = states
        new = s[rows] + g * g
        s[rows] = new
        p[rows] -= lr * g / (np.sqrt(new) + eps)

    def rowwise(rows: Array, g: Array) -> None:
        (s,) = states
        new = s[rows] + (g * g).mean(axis=1, keepdims=True)
        s[rows] = new
        p[rows] -= lr * g / (np.sqrt(new) + eps)

    def adam(rows: Array, g: Array) -> None:
        m, v = states
        rate, floor = corrected(next(count))
        first = np.float32(BETA1) * m[rows] + np.float32(1 - BETA1) * g
        second = np.float32(BETA2) * v[rows] + np.float32(1 - BETA2) * g * g
        m[rows], v[rows] = first, second
        p[rows] -= rate * first / (np.sqrt(second) + floor)

    update = {"sgd": sgd, "adagrad": adagrad, "rowwise": rowwise, "adam": adam}[rule]
    return lambda: update(*summed(next(draws), table.values))


def by_hand_step(table: Table, rule: str) -> Step:
    """Make a compiled loop over rows that are there once, in order, with their sums: it is told both."""
    p, states = table.param, zeros(table, rule)
    draws = itertools.cycle([summed(indices, table.values) for indices in table.indices])
    count = itertools.count(1)
    of_adagrad = np.float32(LR), np.float32(EPS)
    fixed = {"sgd": (np.float32(LR),), "adagrad": of_adagrad, "rowwise": of_adagrad}.get(rule)
    loop = by_hand.ROWS[rule]

    def step() -> None:
        numbers = fixed or (np.float32(BETA1), np.float32(BETA2), *corrected(next(count)))
        loop(p, *next(draws), *states, *numbers)

    return step


def touching_step(table: Table, rule: str) -> Step:
    """Make a compiled loop that reads and writes what the one by hand does, and computes nothing."""
    arrays = (table.param, *(state for state in zeros(table, rule) if state.shape == table.param.shape))
    draws = itertools.cycle([summed(indices, table.values) for indices in table.indices])
    return lambda: by_hand.touch_rows(arrays, *next(draws), np.float32(0))


def fastopt_step(table: Table, rule: str) -> Step:
    """Make fastopt's step over an array."""
    name, _, options, _ = RULES[rule]
    opt = getattr(fastopt, name)(table.param, lr=LR, **options)
    draws = itertools.cycle(table.indices)
    return lambda: opt.step(fastopt.SparseRows(next(draws), table.values))


def torch_step(table: Table, rule: str, name: str) -> Step:
    """Make the step of an optimizer for torch on the same memory."""
    import torch

    import fastopt.torch

    _, made, _, own = RULES[rule]
    param = torch.nn.Parameter(torch.from_numpy(table.param))
    ours = name == FASTOPT_TORCH
    opt = getattr(fastopt.torch if ours else torch.optim, made)([param], lr=LR, **(own if ours else {}))
    values = torch.from_numpy(table.values)
    gradients = [
        torch.sparse_coo_tensor(torch.from_numpy(indices)[None], values, param.shape, check_invariants=False)
        for indices in table.indices
    ]
    turns = itertools.cycle(gradients)

    def step() -> None:
        param.grad = next(turns)
        opt.step()

    return step


CONTENDERS = {FASTOPT: fastopt_step, NUMPY: numpy_step, BY_HAND: by_hand_step}
if HAS_TORCH:
    CONTENDERS |= {name: functools.partial(torch_step, name=name) for name in (FASTOPT_TORCH, TORCH)}


def of_tables(tables: Sequence[tuple[int, int]], pace: Pace) -> list[Sparse]:
    """Compare the contenders on tables, by every rule."""
    pace = pace.share(SHARE)
    pairs = [(table, rule) for table in tables for rule in RULES if fits(*table, rule)]
    return [row for (table, rule) in track(pairs, "Sparse gradients") for row in compared(*table, rule, pace)]


def fits(rows: int, width: int, rule: str) -> bool:
    """Say whether the memory is large enough for a table, and for states of each contender and of `touching_step`."""
    available = limits.memory()
    states = (len(CONTENDERS) + 1) * STATES[rule] * (1 if rule == "rowwise" else width)
    return available is None or ITEMSIZE * rows * (width + states) <= SHARE_OF_MEMORY * available


def compared(rows: int, width: int, rule: str, pace: Pace) -> Iterator[Sparse]:
    """Compare the contenders on one table by one rule; their states are gone afterwards."""
    table = Table.draw(rows, width)
    steps = {name: make(table, rule) for name, make in CONTENDERS.items() if (name, rule) != (TORCH, "rowwise")}
    steps[BYTES] = touching_step(table, rule)
    for step in steps.values():
        for _ in range(DRAWS):  # until all rows have been touched
            step()
    for one in comparisons(settled(steps, one_by_one, pace, (FASTOPT,)), FASTOPT):
        yield {"rows": rows, "width": width, "rule": rule, **one}


def of_touches(tables: Sequence[tuple[int, int]], pace: Pace) -> list[Touched]:
    """Time AdaGrad's step, after other work, over tables by how many rows a gradient names, and by one of all rows."""
    pace = pace.share(SHARE)
    return [row for table in track(tables, "Rows of sparse gradients") for row in touches(*table, pace)]


def touches(rows: int, width: int, pace: Pace) -> Iterator[Touched]:
    """Time the steps over one table."""
    param = np.ones((rows, width), np.float32)
    steps = {str(touched): fastopt_step(Table.over(param, touched), "adagrad") for touched in TOUCHES}
    steps[WHOLE] = whole_step(param)
    for step in steps.values():
        for _ in range(DRAWS):
            step()
    for one in comparisons(settled(steps, after_other_work, pace, (WHOLE,)), WHOLE):
        touched = one["implementation"]
        yield {"rows": rows, "width": width, "touched": rows if touched == WHOLE else int(touched), **one}


def whole_step(param: Array) -> Step:
    """Make AdaGrad's step by a gradient of all rows."""
    opt, gradient = fastopt.Adagrad(param, lr=LR), np.ones_like(param)
    opt.bind(gradient)
    return opt.step
