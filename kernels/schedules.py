"""Every schedule as a scalar function of the step, and one function that evaluates any of them from its record.

A *record* is a flat array of float64: its length, then terms whose product is the value. A term is the index of its
kind in `KINDS`, its own length, its numbers in the order of the dataclass's fields in ``fastopt/schedules.py`` (a
tuple as its length and its items, a word as its index in a table, a flag as 0 or 1), and then the terms that it
contains. The functions get the index of a term's first number. Formulas are ordered from the simplest to the hardest.

Steps are whole numbers below 2**51 in float64: sums, products with small integers and remainders are exact, and nothing
drifts however large they are. ``schedules.h`` has the same functions, under the same names, for C++ and CUDA. Products
of schedules are multiplied out into terms beforehand, since Numba's disk cache fails for recursive functions.
"""

import functools
import math
from typing import Any

import numpy as np
from numba import boolean, float64, int64, njit

from . import cache
from .lock import lock
from .tables import ABI, KINDS, MODES, SHAPES, STEP_LIMIT

# Inlined into one function: a call that passes an array costs 10 ns, and a Python wrapper 40 ms of compiling.
compiled: Any = njit(  # type: ignore[call-overload]  # whose stubs lack the last two
    error_model="numpy", forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True
)

(
    CONSTANT, LINEAR, POLYNOMIAL, EXPONENTIAL, STEP_DECAY, MULTI_STEP, PIECEWISE, INVERSE_SQRT, COSINE, WARM_RESTARTS,
    ONE_CYCLE, CYCLIC, WARMUP_STABLE_DECAY, WARMUP, SEQUENCE, PER_EPOCH,
) = range(len(KINDS))  # fmt: skip
LINEAR_SHAPE, COSINE_SHAPE, SQRT_SHAPE = range(len(SHAPES))
TRIANGULAR, TRIANGULAR2, EXP_RANGE = range(len(MODES))


@compiled
def wave(x):
    """Half a wave, from 0 at 0 to 1 at 1."""
    return math.sin(0.5 * math.pi * x) ** 2  # (1 - cos(pi * x)) / 2


@compiled
def fall(shape, done, left):
    """From 1 to 0, exact to the last bits near 0 as well; done + left = 1."""
    if shape == COSINE_SHAPE:
        return wave(left)
    if shape == SQRT_SHAPE:
        return left / (1.0 + math.sqrt(done))  # 1 - sqrt(done)
    return left


@compiled
def rise(shape, done):
    """From 0 to 1: 1 - fall."""
    if shape == COSINE_SHAPE:
        return wave(done)
    if shape == SQRT_SHAPE:
        return math.sqrt(done)
    return done


@compiled
def ramp(start, end, t, steps, shape):
    """From start at t = 0 to end at t = steps and after; measured from the lower of the two, so nothing cancels."""
    if t >= steps:
        return end
    done, left = t / steps, (steps - t) / steps
    if start >= end:
        share = fall(shape, done, left)
        return share * start + (1.0 - share) * end
    share = rise(shape, done)
    return share * end + (1.0 - share) * start


@compiled
def remainder(t, period):
    """Exact, and faster than fmod: the quotient of whole numbers below 2**51 is never rounded up to the next."""
    return t - np.floor(t / period) * period


@compiled
def constant(record, at, t):
    return record[at]


@compiled
def linear(record, at, t):
    lr, end, steps = record[at], record[at + 1], record[at + 2]
    return ramp(lr, end, t, steps, LINEAR_SHAPE)


@compiled
def polynomial(record, at, t):
    lr, steps, power, end = record[at], record[at + 1], record[at + 2], record[at + 3]
    if t >= steps:
        return end
    if lr >= end:
        share = ((steps - t) / steps) ** power
        return share * lr + (1.0 - share) * end
    log_left = math.log1p(-t / steps) if 2.0 * t < steps else math.log((steps - t) / steps)
    share = -math.expm1(power * log_left)
    return share * end + (1.0 - share) * lr


@compiled
def scaled(lr, gamma, times):
    """Return lr * gamma ** times; zero stays zero even if the power is infinite."""
    return 0.0 if lr == 0 else lr * gamma**times


@compiled
def exponential(record, at, t):
    lr, gamma, every = record[at], record[at + 1], record[at + 2]
    return scaled(lr, gamma, t / every)


@compiled
def step_decay(record, at, t):
    lr, every, gamma = record[at], record[at + 1], record[at + 2]
    return scaled(lr, gamma, np.floor(t / every))


@compiled
def passed(record, at, t):
    """How many of a tuple of milestones are at t or before."""
    count, end = 0, int(record[at])
    while count < end:  # a binary search, since there may be many
        middle = (count + end) // 2
        if record[at + 1 + middle] <= t:
            count = middle + 1
        else:
            end = middle
    return count


@compiled
def multi_step(record, at, t):
    lr, milestones = record[at], at + 1
    gamma = record[milestones + 1 + int(record[milestones])]
    return scaled(lr, gamma, float(passed(record, milestones, t)))


@compiled
def piecewise(record, at, t):
    values, boundaries = at + 1, at + 1 + int(record[at])
    return record[values + passed(record, boundaries, t)]


@compiled
def inverse_sqrt(record, at, t):
    lr, warmup = record[at], record[at + 1]
    if t < warmup:
        return lr * t / warmup
    return lr * math.sqrt(warmup / t)


@compiled
def cosine(record, at, t):
    lr, steps, end, dips, periodic = record[at], record[at + 1], record[at + 2], record[at + 3], record[at + 4]
    if periodic == 0 and t >= steps:
        return end
    if t >= steps or dips != 1:  # the test saves a quarter of the time when it is false
        # In units of 1 / (2 * dips - 1) steps, half a wave takes `steps`, and the wave twice that.
        t = remainder(remainder(t, 2.0 * steps) * (2.0 * dips - 1.0), 2.0 * steps)
        t = min(t, 2.0 * steps - t)
    return ramp(lr, end, t, steps, COSINE_SHAPE)


@compiled
def warm_restarts(record, at, t):
    lr, period, mult, end = record[at], record[at + 1], record[at + 2], record[at + 3]
    if mult == 1:
        return ramp(lr, end, remainder(t, period), period, COSINE_SHAPE)
    while t >= period:
        t -= period
        period *= mult
    return ramp(lr, end, t, period, COSINE_SHAPE)


@compiled
def one_cycle(record, at, t):
    peak, steps, pct_start, shape = record[at], record[at + 1], record[at + 2], record[at + 3]
    start = peak / record[at + 4]
    end = start / record[at + 5]
    three_phase = record[at + 6]
    last = steps - 1.0
    t = min(t, last)
    top = pct_start * steps - 1.0  # as in torch: counted from 0, not always whole
    if t <= top:
        return ramp(start, peak, t, top, shape)
    if three_phase == 0:
        return ramp(peak, end, t - top, last - top, shape)
    foot = 2.0 * pct_start * steps - 2.0
    if t <= foot:
        return ramp(peak, start, t - top, foot - top, shape)
    return ramp(start, end, t - foot, last - foot, shape)


@compiled
def cyclic(record, at, t):
    lr, peak, up, down, mode, gamma = (
        record[at], record[at + 1], record[at + 2], record[at + 3], record[at + 4], record[at + 5],
    )  # fmt: skip
    cycle = np.floor(t / (up + down))
    t_cycle = t - cycle * (up + down)
    high, low = t_cycle / up, (up - t_cycle) / up
    if t_cycle > up:
        high, low = (up + down - t_cycle) / down, (t_cycle - up) / down
    scale = 1.0
    if mode == TRIANGULAR2:
        scale = 0.5**cycle
    elif mode == EXP_RANGE:
        scale = gamma**t
    if peak >= lr:
        return high * scale * peak + (1.0 - high * scale) * lr
    loss = -math.expm1(t * math.log(gamma)) if mode == EXP_RANGE else 1.0 - scale
    low += high * loss
    return low * lr + (1.0 - low) * peak


@compiled
def warmup_stable_decay(record, at, t):
    lr, warmup, stable, decay, end, shape = (
        record[at], record[at + 1], record[at + 2], record[at + 3], record[at + 4], record[at + 5],
    )  # fmt: skip
    if t < warmup:
        return lr * t / warmup
    return ramp(lr, end, max(t - warmup - stable, 0.0), decay, shape)


@compiled
def simple(record, at, t):
    """The value of a term that contains no others."""
    kind, at = record[at], at + 2
    if kind == CONSTANT:
        return constant(record, at, t)
    if kind == LINEAR:
        return linear(record, at, t)
    if kind == POLYNOMIAL:
        return polynomial(record, at, t)
    if kind == EXPONENTIAL:
        return exponential(record, at, t)
    if kind == STEP_DECAY:
        return step_decay(record, at, t)
    if kind == MULTI_STEP:
        return multi_step(record, at, t)
    if kind == PIECEWISE:
        return piecewise(record, at, t)
    if kind == INVERSE_SQRT:
        return inverse_sqrt(record, at, t)
    if kind == COSINE:
        return cosine(record, at, t)
    if kind == WARM_RESTARTS:
        return warm_restarts(record, at, t)
    if kind == ONE_CYCLE:
        return one_cycle(record, at, t)
    if kind == CYCLIC:
        return cyclic(record, at, t)
    if kind == WARMUP_STABLE_DECAY:
        return warmup_stable_decay(record, at, t)
    return math.nan


@compiled
def term(record, at, t):
    """The value of a term: a composite one converts the step for the part that is active, and continues there."""
    factor = 1.0
    while True:
        kind, first = record[at], at + 2
        if kind == WARMUP:
            steps, start = record[first], record[first + 1]
            factor *= ramp(start, 1.0, t, steps, LINEAR_SHAPE)
            t = max(t - steps, 0.0)
            at = first + 2
        elif kind == SEQUENCE:
            number = passed(record, first, t)
            if number > 0:
                t -= record[first + number]
            at = first + 1 + int(record[first])
            for _ in range(number):
                at += int(record[at + 1])
        elif kind == PER_EPOCH:
            t = np.floor(t / record[first])
            at = first + 1
        else:
            return factor * simple(record, at, t)


@njit(error_model="numpy", forceinline=True)
def schedule(record, t):
    """The value of a schedule at step t, from its record; callable in your own Numba loops.

    Parameters
    ----------
    record : ndarray of float64, shape (n,)
        From ``fastopt.schedules``, for example ``Cosine(0.1, 1000).record()``.
    t : int or float
        The step: a whole number from 0 to below 2**51. Nothing is checked.

    Returns
    -------
    float
    """
    step, value, at = float(t), 1.0, 1
    while at < record[0]:
        value *= term(record, at, step)
        at += int(record[at + 1])
    return value


def evaluate(record, t):
    return schedule(record, t)


def evaluate_all(record, steps, out):
    """Write the value of each step; return False if a step is out of range. Term by term is 10 % faster."""
    for i in range(steps.size):
        if steps[i] < 0 or steps[i] >= STEP_LIMIT:
            return False
    out[:] = 1.0
    at = 1
    while at < record[0]:
        for i in range(steps.size):
            out[i] *= term(record, at, float(steps[i]))
        at += int(record[at + 1])
    return True


EVALUATORS = {
    evaluate: functools.partial(njit, float64(float64[::1], float64), error_model="numpy"),
    evaluate_all: functools.partial(
        njit, boolean(float64[::1], int64[::1], float64[::1]), error_model="numpy", nogil=True
    ),
}
for function in EVALUATORS:
    function.__qualname__ = f"{function.__name__}_abi{ABI}"  # the cache does not notice changes in tables.py


@functools.cache
def evaluators() -> Any:
    """Return both evaluators, compiled: for one step, and for an array of steps."""
    with lock, cache.one_process_at_a_time():
        return tuple(cache.compile_kept(function, wrap) for function, wrap in EVALUATORS.items())


def cached() -> bool:
    """Say whether the cache has both evaluators, as it is now and for this processor."""
    return all(cache.kept(function, wrap.args[0]) for function, wrap in EVALUATORS.items())
