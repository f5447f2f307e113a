"""The loop in which marbles roll: compiled, with the updates that `fastopt.embed` hands to loops outside Python."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...kernels import lazy
from ...kernels.lock import lock
from ...kernels.tables import STATES
from ...step.norm import EPS
from ..network import Array

WITHOUT_ROOT = "adagrad_without_root"  # no rule of the library: it divides by the history itself


@dataclass(frozen=True)
class Walked:
    """What a marble has done, for a number of steps; of all arrays the first axis is the step.

    Attributes
    ----------
    points : ndarray, shape (steps + 1, 2)
        Where it was before the first step, and after each.
    losses : ndarray, shape (steps + 1,)
    pulls : ndarray, shape (steps, 2)
        The part of each step that its gradient has caused; the rest is the velocity's, from earlier ones.
    states : ndarray, shape (steps, STATES, 2)
        The states of the rule after each step.
    slope : float
        The size of the gradient at the end.
    lost : bool
        Whether it has left the room, or is at no finite point; the last point is the first one outside.
    """

    points: Array
    losses: Array
    pulls: Array
    states: Array
    slope: float
    lost: bool

    @property
    def steps(self) -> int:
        """How many steps it took."""
        return len(self.pulls)


def walk(
    slope: Any, update: Any, start: Array, rows: Array, still: Array, max_norm: float, noise: Array, room: Any
) -> Walked:
    """Let one marble roll.

    Parameters
    ----------
    slope : compiled function
        Of a landscape.
    update : compiled function
        Of a rule, from `update_of`.
    start : ndarray, shape (2,)
    rows : ndarray, shape (steps, 2 + numbers)
        The hyper row of each step: the gradient's factor, the weight decay, and what the rule takes.
    still : ndarray of float64, shape (STATES,)
        0 for the states that are a velocity, else 1.
    max_norm : float
        The gradient is clipped to this norm; infinity: never.
    noise : ndarray, shape (steps, 2)
        Added to the gradients.
    room : pair of ndarray, shape (2,)
        The corners of the region outside of which a point is lost.
    """
    steps = len(rows)
    points, losses = np.empty((steps + 1, 2)), np.empty(steps + 1)
    pulls, states = np.empty((steps, 2)), np.empty((steps, STATES, 2))
    points[0] = start
    arrays = points, losses, pulls, states
    taken = roll()(slope, update, *arrays, rows, still, max_norm, noise, *room)
    loss, *gradient = slope(*points[taken])
    losses[taken] = loss
    lost = not inside(points[taken], room)
    return Walked(
        points[: taken + 1], losses[: taken + 1], pulls[:taken], states[:taken], math.hypot(*gradient), lost
    )  # fmt: skip


def inside(point: Array, room: Any) -> bool:
    """Say whether a point is in the room; one that is not finite is not."""
    low, high = room
    return bool(((low <= point) & (point <= high)).all())


def compiled(function: Callable[..., Any], signature: Any) -> Any:
    """Compile a function for a signature, or read it from Numba's cache on disk."""
    with lock:
        from numba import njit

        from ...kernels import cache

        with cache.one_process_at_a_time():
            return cache.compile_kept(function, functools.partial(njit, signature, error_model="numpy"))


def compile_slope(function: Callable[[float, float], tuple[float, float, float]]) -> Any:
    """Compile the loss of a landscape with its gradient."""
    return compiled(function, signature_of_slope())


def signature_of_slope() -> Any:
    """Return the signature of a landscape's function: from two numbers to three."""
    from numba import types

    several: Any = types.UniTuple
    return several(types.float64, 3)(types.float64, types.float64)


def update_of(rule: str) -> Any:
    """Return the compiled update of an array by a rule, as C calls it."""
    return update_without_root() if rule == WITHOUT_ROOT else lazy.update_for_c(rule, "float64")


@functools.cache
def update_without_root() -> Any:
    """Return that of AdaGrad without the root: ``s <- s + g * g; p <- p - lr * g / (s + eps)``."""
    with lock:
        from numba import carray, cfunc  # type: ignore[attr-defined]

        from ...kernels import cache, cpu

        pointer: Any = cpu.pointer  # an intrinsic: compiled code passes it less than its definition takes

        def without_root(param: int, grad: int, addresses: int, n: int, hyper: int) -> None:
            p, g = carray(pointer(param), n, np.float64), carray(pointer(grad), n, np.float64)
            s = carray(pointer(carray(pointer(addresses), 1, np.int64)[0]), n, np.float64)
            lr, eps = carray(pointer(hyper), 2, np.float64)
            for i in range(n):
                s[i] += g[i] * g[i]
                p[i] -= lr * g[i] / (s[i] + eps)

        with cache.one_process_at_a_time():
            return cache.compile_kept(without_root, functools.partial(cfunc, cpu.UPDATE, error_model="numpy"))


@functools.cache
def roll() -> Any:
    """Return the compiled loop, which fills the arrays of `Walked` and returns how many steps were taken."""
    from numba import types

    vector, matrix, cube = (types.Array(types.float64, axes, "C") for axes in (1, 2, 3))
    number, address = types.float64, types.intp
    slope = types.FunctionType(signature_of_slope())
    update = types.FunctionType(types.void(address, address, address, types.int64, address))
    filled = matrix, vector, matrix, cube
    return compiled(roll_on, types.int64(slope, update, *filled, matrix, vector, number, matrix, vector, vector))


def roll_on(  # type: ignore[no-untyped-def]  # compiled; in plain loops, since array expressions take seconds to compile
    slope, update, points, losses, pulls, states, rows, still, max_norm, noise, low, high
):
    """Take the steps; each one also without a velocity, from a copy, to see what its gradient alone would do."""
    count, numbers = len(still), rows.shape[1] - 2
    p, g, hypers = np.empty((2, 2)), np.empty(2), np.empty(numbers)  # p[0] and kept[0] are the marble's, the others
    kept, at = np.zeros((2, count, 2)), np.empty((2, count), np.int64)  # those of the copy
    p_at, g_at, hypers_at = np.int64(p.ctypes.data), np.int64(g.ctypes.data), np.int64(hypers.ctypes.data)
    p[0, 0], p[0, 1] = points[0, 0], points[0, 1]
    for step in range(len(rows)):
        losses[step], along_x, along_y = slope(p[0, 0], p[0, 1])
        along_x, along_y = along_x + noise[step, 0], along_y + noise[step, 1]
        share = min(1.0, max_norm / (math.sqrt(along_x * along_x + along_y * along_y) + EPS))
        g[0] = rows[step, 0] * (share * along_x) + rows[step, 1] * p[0, 0]
        g[1] = rows[step, 0] * (share * along_y) + rows[step, 1] * p[0, 1]
        for i in range(numbers):
            hypers[i] = rows[step, 2 + i]
        for axis in range(2):
            p[1, axis] = p[0, axis]
            for i in range(count):
                kept[1, i, axis] = still[i] * kept[0, i, axis]
        for which in range(2):
            for i in range(count):  # every array is used in the loop, since Numba frees one after its last use
                at[which, i] = np.int64(kept.ctypes.data) + 16 * (count * which + i)
            update(p_at + 16 * which, g_at, np.int64(at.ctypes.data) + 8 * count * which, 2, hypers_at)
        for axis in range(2):
            pulls[step, axis] = p[1, axis] - points[step, axis]
            points[step + 1, axis] = p[0, axis]
            for i in range(count):
                states[step, i, axis] = kept[0, i, axis]
        if not (low[0] <= p[0, 0] <= high[0] and low[1] <= p[0, 1] <= high[1]):
            return step + 1
    return len(rows)
