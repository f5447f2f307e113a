"""Every schedule against the oracle in mpmath and against torch, and schedules as values."""

import copy
import dataclasses
import doctest
import inspect
import io
import json
import math
import os
import pickle
import random
import re
import subprocess
import sys
import textwrap
import warnings
from fractions import Fraction

import numpy as np
import pytest
import schedule_oracle
import torch
from fastopt.kernels import cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mpf
from numba import njit
from schedule_cases import CASES, FAR
from tolerances import SCHEDULE, SCHEDULE_TINY, SCHEDULE_TORCH, SCHEDULE_TORCH_RECURSIVE
from torch.optim import lr_scheduler

from fastopt import schedules
from fastopt.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    Cyclic,
    Exponential,
    InverseSqrt,
    Linear,
    MultiStep,
    OneCycle,
    PerEpoch,
    Piecewise,
    Plateau,
    Polynomial,
    Product,
    Schedule,
    Sequence,
    StepDecay,
    WarmRestarts,
    Warmup,
    WarmupStableDecay,
)

LIMIT = 2**51
ULPS = 4 * np.finfo(np.float64).eps  # what a bound or an order may be off by


def named(value):
    """A test's name for anything, the same in every process."""
    return re.sub(r" at 0x\w+", "", repr(value))


each = pytest.mark.parametrize("schedule", CASES, ids=[f"{i}-{case!r:.60}" for i, case in enumerate(CASES)])


def numbers_in(plain):
    """The whole numbers in what to_dict returns, at any depth, and where phases of a OneCycle end."""
    if isinstance(plain, dict):
        for name, entry in plain.items():
            yield from numbers_in(entry)
            if name == "pct_start":
                yield from (math.floor(share * entry * plain["steps"]) for share in (1, 2))
            if name == "dips":
                yield from (plain["steps"] * i // (2 * entry - 1) for i in range(1, 2 * entry - 1))
    elif isinstance(plain, list):
        for entry in plain if len(plain) < 10 else plain[::200]:
            yield from numbers_in(entry)
    elif type(plain) is int:
        yield plain


def steps_for(schedule):
    """Small steps, those around all that parameters name, their sums and products, and large ones."""
    numbers = sorted({*numbers_in(schedule.to_dict())} - {0})
    edges = {*numbers, *(n * i for n in numbers for i in (2, 3, 7)), *(n // 2 for n in numbers)}
    edges |= {a + b for a in numbers for b in numbers} | {a * b for a in numbers for b in numbers}
    edges |= {sum(numbers), FAR, 10**9, 10**6 + 7}
    near = {edge + distance for edge in edges for distance in (-2, -1, 0, 1, 2)}
    return sorted(t for t in {*range(61), *near, 5 * 10**11 + 33, FAR + 50, LIMIT - 1} if 0 <= t < LIMIT)


def assert_near(schedule, steps):
    """Assert that values are what the oracle says."""
    for t, got in zip(steps, schedule(np.array(steps)).tolist(), strict=True):
        want = schedule_oracle.value(schedule, t)
        if want > sys.float_info.max:
            assert got == math.inf, (t, got)
        else:
            assert math.isfinite(got), (t, got, float(want))
            assert abs(mpf(got) - want) <= SCHEDULE * abs(want) + SCHEDULE_TINY, (t, got, float(want))


def bits(values):
    """Values as something that tells all doubles apart."""
    return np.asarray(values, np.float64).tobytes()


def test_cases_and_oracle_cover_every_class():
    """A class without a case, without several of them, or without a formula in the oracle is not tested."""
    assert list(SCHEDULES) == list(schedule_oracle.SCHEDULES)
    for name, cls in SCHEDULES.items():
        assert sum(type(case) is cls for case in CASES) > 1, name
    assert {cls for cls in vars(schedules).values() if inspect.isclass(cls) and issubclass(cls, Schedule)} == {
        Schedule,
        *SCHEDULES.values(),
    }


@each
def test_values(schedule):
    """To 1e-9 of each value, however small it or large the step is."""
    assert_near(schedule, steps_for(schedule))


@pytest.mark.parametrize("period", [1, 3, 7, 100, 9_973])
@pytest.mark.parametrize("start", [0, 10**9, FAR, LIMIT - 2 * 9_973 - 1])
def test_whole_periods_at_large_steps(period, start):
    """Nothing drifts over all steps of a period, after 10**12 of them."""
    steps = range(start, start + 2 * period, max(1, period // 50))
    for schedule in (Cosine(0.1, period, periodic=True), WarmRestarts(0.1, period, end=1e-9), Cyclic(0.0, 1.0, period)):
        assert_near(schedule, steps)


# Steps and what comes out


@each
def test_scalars_and_arrays_agree(schedule):
    """To the bit, whatever holds the steps."""
    steps = steps_for(schedule)
    want = [schedule(t) for t in steps]
    assert {type(value) for value in want} == {float}
    assert bits(want) == bits(schedule(np.array(steps))) == bits(schedule(steps)) == bits(schedule(tuple(steps)))
    assert bits(want) == bits([schedule(np.int64(t)) for t in steps])


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", ">i4", ">u8"])
@pytest.mark.parametrize("schedule", CASES[::20], ids=repr)
def test_dtypes_of_steps(schedule, dtype):
    """Ints of every width and order of bytes, as numbers and in arrays, which are left alone."""
    steps = np.arange(120).astype(dtype)
    values = schedule(steps)
    assert values.dtype == np.float64
    assert bits(values) == bits([schedule(t) for t in range(120)]) == bits([schedule(t) for t in steps])
    assert {type(schedule(t)) for t in steps} == {float}
    assert steps.dtype == np.dtype(dtype)
    assert (steps == np.arange(120)).all()


@pytest.mark.parametrize("schedule", CASES[::9], ids=repr)
def test_shapes_of_steps(schedule):
    """The shape of the steps is the shape of the values, however the steps lie in memory."""
    table = np.arange(60).reshape(5, 12)
    arrays = [np.array(7), np.zeros(0, int), np.zeros((3, 0, 2), int), np.arange(12).reshape(3, 4), table.T, table[::2]]
    arrays += [table[:, 1::3], table[::-1, ::-1], np.asfortranarray(table), np.broadcast_to(np.arange(4), (3, 4))]
    for steps in arrays:
        values = schedule(steps)
        assert type(values) is np.ndarray
        assert (values.dtype, values.shape) == (np.float64, steps.shape)
        assert values.flags.writeable
        assert values.tolist() == np.array([schedule(int(t)) for t in steps.flat]).reshape(steps.shape).tolist()
    for steps in (range(2, 40, 3), [3, 1, 4, 1, 5], [[1, 2], [3, 4]], (0,)):
        values = schedule(steps)
        assert (type(values), values.dtype, values.shape) == (np.ndarray, np.float64, np.shape(steps))
        assert bits(values) == bits([schedule(int(t)) for t in np.ravel(steps)])


@pytest.mark.parametrize("schedule", [Constant(0.1), Warmup(Cosine(0.1, 10), 5), 0.5 * Linear(1.0, 0.0, 10)], ids=repr)
@pytest.mark.parametrize(
    "steps",
    [
        2.0, np.float64(2), np.float32(2), True, False, np.True_, "3", b"3", None, 1j, Fraction(2), {}, {3}, object(),
        np.array(2.0), np.array([1.0, 2.0]), np.array([True]), np.array(["1"]), np.array([1], object), np.array([1j]),
        [1.0, 2.0], [True, False], ["1"], [None], [1, 2.0], [1, None],
    ],
    ids=named,
)  # fmt: skip
def test_steps_that_are_no_ints(schedule, steps):
    """By their type, even where their value would be one."""
    with pytest.raises(TypeError, match="step"):
        schedule(steps)


@pytest.mark.parametrize("schedule", [Constant(0.1), Warmup(Cosine(0.1, 10), 5), 0.5 * Linear(1.0, 0.0, 10)], ids=repr)
@pytest.mark.parametrize("step", [-1, -(2**60), -(2**80), LIMIT, LIMIT + 1, 2**63 - 1, 2**63, 2**70])
def test_steps_out_of_range(schedule, step):
    """Negative, or so large that doubles do not count; alone, and anywhere in an array."""
    arrays = []
    if -(2**63) <= step < 2**63:
        arrays += [np.int64(step), np.array(step), np.array([0, 5, step]), np.array([[step, 3]]), [0, step]]
    elif 0 <= step < 2**64:
        arrays += [np.uint64(step), np.array([1, step], np.uint64)]
    for steps in [step, *arrays]:
        with pytest.raises(ValueError, match=r"2\*\*51"):
            schedule(steps)


@pytest.mark.parametrize("steps", [[0, 2**63], [-1, 2**63], [2**64], (3, -(2**80))], ids=repr)
def test_lists_of_steps_beyond_all_dtypes(steps):
    """They are ints, and too large: NumPy makes floats or objects of them."""
    with pytest.raises(ValueError, match=r"2\*\*51"):
        Constant(0.1)(steps)


@pytest.mark.parametrize("steps", [[], (), range(0), [[], []]], ids=repr)
def test_no_steps(steps):
    """No values; NumPy makes floats of an empty list."""
    values = Constant(0.1)(steps)
    assert (values.dtype, values.shape) == (np.float64, np.shape(steps))


def test_the_last_step_of_all():
    """2**51 - 1 is one."""
    assert Linear(0.0, 1.0, LIMIT - 1)(LIMIT - 1) == 1.0
    assert Linear(0.0, 1.0, LIMIT - 1)(np.array([LIMIT - 1, 0])).tolist() == [1.0, 0.0]


# Exact values

ENDS = [
    (Linear(0.3, 0.007, 11), 11, 0.007),
    (Linear(0.0, 0.1, 11), 11, 0.1),
    (Polynomial(0.3, 11, 0.9, 0.007), 11, 0.007),
    (Polynomial(0.001, 11, 2.5, 0.7), 11, 0.7),
    (Cosine(0.3, 11, 0.007), 11, 0.007),
    (Cosine(0.3, 11, 0.007, dips=4), 11, 0.007),
    (Cosine(0.001, 11, 0.7), 11, 0.7),
    (MultiStep(0.3, [2, 11], 0.5), 11, 0.075),
    (Piecewise([0.3, 0.2, 0.7], [2, 11]), 11, 0.7),
    (OneCycle(0.3, 100), 99, 0.3 / 25.0 / 1e4),
    (OneCycle(0.3, 100, anneal="linear", div=7.0, final_div=11.0), 99, 0.3 / 7.0 / 11.0),
    (OneCycle(0.3, 100, three_phase=True), 99, 0.3 / 25.0 / 1e4),
    (OneCycle(0.3, 100, 0.37, "linear", three_phase=True), 99, 0.3 / 25.0 / 1e4),
    (OneCycle(0.3, 100, 1.0), 99, 0.3),
    (OneCycle(0.3, 100, 0.0), 99, 0.3 / 25.0 / 1e4),
    (OneCycle(0.3, 1), 0, 0.3 / 25.0 / 1e4),
    (WarmupStableDecay(0.3, 3, 4, 5, 0.007), 12, 0.007),
    (WarmupStableDecay(0.3, 3, 4, 5, 0.007, "cosine"), 12, 0.007),
    (WarmupStableDecay(0.3, 3, 4, 5, 0.007, "1-sqrt"), 12, 0.007),
    (WarmupStableDecay(0.001, 3, 4, 5, 0.7, "1-sqrt"), 12, 0.7),
    (Warmup(Linear(0.3, 0.007, 11), 5), 16, 0.007),
    (Sequence([0.3, Cosine(0.3, 11, 0.007)], [5]), 16, 0.007),
    (PerEpoch(Linear(0.3, 0.007, 11), 5), 55, 0.007),
    (0.5 * Linear(0.3, 0.007, 11), 11, 0.0035),
]


@pytest.mark.parametrize(("schedule", "steps", "end"), ENDS, ids=repr)
def test_the_end_is_held(schedule, steps, end):
    """Exactly, from its step on; not before."""
    later = [steps, steps + 1, steps + 2, steps + 37, 2 * steps + 1, 10 * steps + 3, FAR, LIMIT - 1]
    assert schedule(later).tolist() == [end] * len(later)
    if steps:
        assert schedule(steps - 1) != end


@pytest.mark.parametrize("schedule", [case for case in CASES if getattr(case, "lr", None) is not None], ids=repr)
def test_the_first_value_is_lr(schedule):
    """Exactly, but for schedules that rise to it."""
    rises = isinstance(schedule, InverseSqrt) or (isinstance(schedule, WarmupStableDecay) and schedule.warmup)
    assert schedule(0) == (0.0 if rises else schedule.lr)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (OneCycle(0.3, 100), {0: 0.3 / 25.0, 29: 0.3}),
        (OneCycle(0.3, 100, 0.25, "linear", three_phase=True), {0: 0.3 / 25.0, 24: 0.3, 48: 0.3 / 25.0}),
        (OneCycle(0.3, 100).momentum(0.85, 0.95), {29: 0.85}),
        (Cosine(0.3, 7, 0.01, periodic=True), {7: 0.01, 14: 0.3, 21: 0.01, 7 * 10**11: 0.3, 7 * (10**11 + 1): 0.01}),
        (Cosine(0.3, 21, 0.01, dips=2, periodic=True), {7: 0.01, 14: 0.3, 21: 0.01, 28: 0.3, 42: 0.3, 49: 0.01}),
        (Cosine(0.3, 21, 0.01, dips=2), {7: 0.01, 14: 0.3, 21: 0.01, 28: 0.01}),
        (WarmRestarts(0.3, 7, 2, 0.01), {7: 0.3, 21: 0.3, 49: 0.3}),
        (WarmRestarts(0.3, 100), {FAR: 0.3}),
        (Cyclic(0.01, 0.3, 7, 3), {7: 0.3, 10: 0.01, 17: 0.3, 20: 0.01, FAR: 0.01, FAR + 7: 0.3}),
        (Cyclic(0.3, 0.01, 7, 3), {7: 0.01, 10: 0.3, 17: 0.01, FAR: 0.3, FAR + 7: 0.01}),
        (Cyclic(0.01, 0.3, 7, 3).momentum(0.8, 0.9), {0: 0.9, 7: 0.8, 10: 0.9, 17: 0.8}),
        (InverseSqrt(0.3, 40), {0: 0.0, 10: 0.075, 40: 0.3, 160: 0.15}),
        (WarmupStableDecay(0.3, 8, 4, 5), {0: 0.0, 2: 0.075, 8: 0.3, 12: 0.3}),
        (Warmup(Linear(0.3, 0.0, 10), 8), {0: 0.0, 2: 0.075, 8: 0.3}),
        (Warmup(Linear(0.3, 0.0, 10), 8, 0.5), {0: 0.15, 8: 0.3}),
        (StepDecay(0.25, 10, 0.5), {9: 0.25, 10: 0.125, 19: 0.125, 20: 0.0625}),
        (MultiStep(0.25, [10, 20, 20], 0.5), {9: 0.25, 10: 0.125, 19: 0.125, 20: 0.03125}),
        (Piecewise([0.1, 0.3, 0.2], [1, 5]), {0: 0.1, 1: 0.3, 4: 0.3, 5: 0.2}),
        (Sequence([0.1, Linear(0.3, 0.0, 3), 0.2], [4, 6]), {3: 0.1, 4: 0.3, 6: 0.2}),
        (PerEpoch(Piecewise([0.1, 0.3], [1]), 4), {3: 0.1, 4: 0.3}),
    ],
    ids=repr,
)
def test_exact_values(schedule, values):
    """Tops, feet, restarts and milestones are no approximations."""
    assert {t: schedule(t) for t in values} == values


def test_between_ends_at_its_end():
    """To the last bits, though it is not held there."""
    schedule = Exponential.between(0.1, 1e-5, 100)
    assert schedule == Exponential(0.1, 1e-5 / 0.1, 100)
    assert schedule(100) == pytest.approx(1e-5, rel=ULPS)
    assert schedule(200) == pytest.approx(1e-9, rel=ULPS)


# torch's schedulers

STEPS = 450


def run_torch(make, lr, count=STEPS):
    """Learning rates and momenta of torch over so many steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.5)
    scheduler = make(optimizer)
    group, values = optimizer.param_groups[0], []
    for _ in range(count - 1):
        values.append((group["lr"], group["momentum"]))
        optimizer.step()
        scheduler.step()
    values.append((group["lr"], group["momentum"]))
    assert {type(lr) for lr, _ in values} <= {float, int}
    return np.array(values, np.float64).T


def chained(*makers):
    """Make torch's product."""
    return lambda o: lr_scheduler.ChainedScheduler([make(o) for make in makers])


def sequential(milestones, *makers):
    """Make torch's sequence."""
    return lambda o: lr_scheduler.SequentialLR(o, [make(o) for make in makers], milestones)


PARITY = {
    "linear": (Linear(0.01, 0.1, 300), lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 300)),
    "linear down": (Linear(0.1, 0.0, 449), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, 449)),
    "polynomial": (Polynomial(0.1, 430, 0.9), lambda o: lr_scheduler.PolynomialLR(o, 430, 0.9)),
    "polynomial 3": (Polynomial(0.1, 500, 3.0), lambda o: lr_scheduler.PolynomialLR(o, 500, 3.0)),
    "exponential": (Exponential(0.1, 0.97), lambda o: lr_scheduler.ExponentialLR(o, 0.97)),
    "exponential up": (Exponential(0.1, 1.03), lambda o: lr_scheduler.ExponentialLR(o, 1.03)),
    "step": (StepDecay(0.1, 30), lambda o: lr_scheduler.StepLR(o, 30)),
    "step 7": (StepDecay(0.1, 7, 0.9), lambda o: lr_scheduler.StepLR(o, 7, 0.9)),
    "multi-step": (MultiStep(0.1, [30, 200, 400]), lambda o: lr_scheduler.MultiStepLR(o, [30, 200, 400])),
    "multi-step twice": (
        MultiStep(0.1, [1, 30, 30, 200, 200, 200], 0.7),
        lambda o: lr_scheduler.MultiStepLR(o, [1, 30, 30, 200, 200, 200], 0.7),
    ),
    "constant": (Piecewise([0.1 / 3, 0.1], [40]), lambda o: lr_scheduler.ConstantLR(o, 1 / 3, 40)),
    "cosine": (Cosine(0.1, 449), lambda o: lr_scheduler.CosineAnnealingLR(o, 449)),
    "cosine to an end": (Cosine(0.1, 449, 0.003), lambda o: lr_scheduler.CosineAnnealingLR(o, 449, 0.003)),
    "cosine up": (Cosine(0.1, 449, 0.3), lambda o: lr_scheduler.CosineAnnealingLR(o, 449, 0.3)),
    "cosine periodic": (
        Cosine(0.1, 50, 0.003, periodic=True),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 50, 0.003),
    ),
    "chained": (
        Product([Linear(0.1 * 0.1, 0.1, 20), Exponential(1.0, 0.99), StepDecay(1.0, 100)]),
        chained(
            lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 20),
            lambda o: lr_scheduler.ExponentialLR(o, 0.99),
            lambda o: lr_scheduler.StepLR(o, 100),
        ),
    ),
    "sequential": (
        Sequence([Linear(0.01, 0.1, 20), Cosine(0.1, 200, 0.001), Exponential(0.1, 0.98)], [20, 150]),
        sequential(
            [20, 150],
            lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 20),
            lambda o: lr_scheduler.CosineAnnealingLR(o, 200, 0.001),
            lambda o: lr_scheduler.ExponentialLR(o, 0.98),
        ),
    ),
    "warm-up": (
        Warmup(StepDecay(0.1, 100), 20, 0.05),
        sequential(
            [20], lambda o: lr_scheduler.LinearLR(o, 0.05, 1.0, 20), lambda o: lr_scheduler.StepLR(o, 100)
        ),
    ),
}  # fmt: skip
EXACT_PARITY = {
    "restarts": (WarmRestarts(0.1, 50), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 50)),
    "restarts 1": (WarmRestarts(0.1, 7, 1, 0.01), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7, 1, 0.01)),
    "restarts 2": (WarmRestarts(0.1, 10, 2), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10, 2)),
    "restarts 3": (WarmRestarts(0.1, 5, 3, 1e-4), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5, 3, 1e-4)),
}
# with the options of both, and those of the momentum that torch has by default
CYCLES = [
    (OneCycle(0.1, STEPS), {}),
    (OneCycle(0.1, STEPS, anneal="linear"), {"anneal_strategy": "linear"}),
    (OneCycle(0.1, STEPS, 0.37), {"pct_start": 0.37}),
    (OneCycle(0.1, STEPS, 0.0), {"pct_start": 0.0}),
    (OneCycle(0.1, STEPS, 1.0), {"pct_start": 1.0}),
    (OneCycle(0.1, STEPS, div=3.0, final_div=7.0), {"div_factor": 3.0, "final_div_factor": 7.0}),
    (OneCycle(0.1, STEPS, 0.2, three_phase=True), {"pct_start": 0.2, "three_phase": True}),
    (OneCycle(0.1, STEPS, 0.5, three_phase=True), {"pct_start": 0.5, "three_phase": True}),
    (
        OneCycle(0.1, STEPS, 0.3, "linear", three_phase=True),
        {"pct_start": 0.3, "anneal_strategy": "linear", "three_phase": True},
    ),
    (Cyclic(0.01, 0.1, 25), {}),
    (Cyclic(0.0, 0.1, 13, 30), {}),
    (Cyclic(0.01, 0.1, 30, 7), {}),
    (Cyclic(0.1, 0.01, 30, 7), {}),
    (Cyclic(0.01, 0.1, 25, mode="triangular2"), {}),
    (Cyclic(0.001, 0.1, 13, 30, "triangular2"), {}),
    (Cyclic(0.01, 0.1, 25, mode="exp_range", gamma=0.99), {}),
    (Cyclic(0.0, 0.1, 30, 7, "exp_range", 0.995), {}),
]


def torch_cycle(schedule, options):
    """Make torch's scheduler of the same cycle."""
    if isinstance(schedule, OneCycle):
        return lambda o: lr_scheduler.OneCycleLR(o, schedule.peak, schedule.steps, **options)
    fields = {"step_size_up": schedule.up, "step_size_down": schedule.down, "mode": schedule.mode}
    return lambda o: lr_scheduler.CyclicLR(o, schedule.lr, schedule.peak, gamma=schedule.gamma, **fields, **options)


@pytest.mark.parametrize(("schedule", "make"), PARITY.values(), ids=PARITY)
def test_parity_with_recursive_schedulers(schedule, make):
    """Torch multiplies the rate of the step before."""
    rates, _ = run_torch(make, lr=0.1)
    np.testing.assert_allclose(schedule(range(STEPS)), rates, rtol=SCHEDULE_TORCH_RECURSIVE, atol=SCHEDULE_TINY)


@pytest.mark.parametrize(("schedule", "make"), EXACT_PARITY.values(), ids=EXACT_PARITY)
def test_parity_with_closed_forms(schedule, make):
    """Where torch computes the value of a step from the step."""
    rates, _ = run_torch(make, lr=0.1)
    np.testing.assert_allclose(schedule(range(STEPS)), rates, rtol=SCHEDULE_TORCH, atol=SCHEDULE_TINY)


@pytest.mark.parametrize("momenta", [None, (0.7, 0.97)])
@pytest.mark.parametrize(("schedule", "options"), CYCLES, ids=repr)
def test_parity_with_cycles(schedule, options, momenta):
    """Rates and momenta of OneCycleLR and CyclicLR, with torch's own momenta and with others."""
    given = {} if momenta is None else {"base_momentum": momenta[0], "max_momentum": momenta[1]}
    rates, torch_momenta = run_torch(torch_cycle(schedule, {**options, **given}), lr=0.1)
    np.testing.assert_allclose(schedule(range(STEPS)), rates, rtol=SCHEDULE_TORCH, atol=SCHEDULE_TINY)
    opposite = schedule.momentum(*momenta or ())
    np.testing.assert_allclose(opposite(range(STEPS)), torch_momenta, rtol=SCHEDULE_TORCH)
    rates_alone, constant = run_torch(torch_cycle(schedule, {**options, "cycle_momentum": False}), lr=0.1)
    assert rates_alone.tolist() == rates.tolist()
    assert set(constant) == {0.5}
    assert len(set(opposite(range(STEPS)))) > 5


def run_plateaus(metrics, lr=0.1, eps=0.0, **options):
    """Rates of a Plateau and of torch's scheduler after each metric."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, eps=eps, **options)
    plateau, ours, theirs = Plateau(lr, **options), [], []
    for metric in metrics:
        scheduler.step(metric)
        ours.append(plateau.update(metric))
        theirs.append(optimizer.param_groups[0]["lr"])
    return ours, theirs


PLATEAUS = [
    {},
    {"factor": 0.5, "patience": 0},
    {"factor": 0.9, "patience": 3, "cooldown": 5},
    {"factor": 0.3, "patience": 1, "cooldown": 1, "min_lr": 1e-3},
    {"factor": 0.0, "patience": 30},
    {"factor": 0.7, "patience": 2, "threshold": 0.1},
    {"factor": 0.7, "patience": 2, "threshold": 0.0},
    {"factor": 0.1, "patience": 2, "min_lr": 0.5},
]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize("options", PLATEAUS, ids=repr)
def test_parity_of_plateau(options, threshold_mode, mode):
    """Exactly, where torch's quirks do not bite: with its eps at 0, and positive metrics for relative thresholds."""
    rng = np.random.default_rng(7)
    noise = rng.standard_normal(STEPS)
    drift = np.linspace(3.0, 0.1, STEPS) + 0.3 * noise if mode == "min" else np.linspace(0.1, 3.0, STEPS) + 0.3 * noise
    steps = np.round(np.abs(drift), 1)  # with equal ones
    for metrics in (np.abs(drift), steps, drift if threshold_mode == "abs" else np.abs(noise) + 1e-3):
        for missing in (math.nan, math.inf, -math.inf if threshold_mode == "abs" else 5.0):
            given = metrics.copy()
            given[rng.integers(0, STEPS, 20)] = missing
            given[0] = missing if math.isnan(missing) else given[0]
            ours, theirs = run_plateaus(given.tolist(), mode=mode, threshold_mode=threshold_mode, **options)
            assert ours == theirs
    if options.get("min_lr", 0.0) < 0.1:
        assert len(set(ours)) > 1


def test_parity_of_plateau_with_the_eps_of_torch():
    """While drops are larger than it."""
    ours, theirs = run_plateaus([1.0] * 60, lr=0.1, eps=1e-8, patience=9)
    assert ours == theirs
    assert ours[-1] == pytest.approx(1e-6)


def test_small_rates_drop():
    """A rate of 1e-8 never does in torch, because of its eps."""
    ours, theirs = run_plateaus([1.0] * 40, lr=1e-8, eps=1e-8, patience=9)
    assert set(theirs) == {1e-8}
    assert ours == [1e-8] * 10 + [1e-8 * 0.1] * 10 + [1e-8 * 0.1 * 0.1] * 10 + [1e-8 * 0.1 * 0.1 * 0.1] * 10


@pytest.mark.parametrize(("mode", "metric"), [("min", -1.0), ("max", -1.0)])
def test_an_equal_metric_is_no_improvement(mode, metric):
    """With a relative threshold and a negative metric it is one in torch, and so is a somewhat worse one."""
    ours, theirs = run_plateaus([metric] * 30, patience=5, mode=mode)
    assert set(theirs) == {0.1}
    assert ours[5:7] == [0.1, pytest.approx(0.01)]
    worse = [metric + (1e-6 if mode == "min" else -1e-6) * i for i in range(30)]
    ours, theirs = run_plateaus(worse, patience=5, mode=mode)
    assert set(theirs) == {0.1}
    assert ours[5:7] == [0.1, pytest.approx(0.01)]


@pytest.mark.parametrize(("mode", "sign"), [("min", 1.0), ("max", -1.0)])
@pytest.mark.parametrize("best", [-2.0, 2.0])
def test_thresholds_of_either_sign(mode, sign, best):
    """A relative threshold is a share of the best metric's magnitude, an absolute one a difference."""
    for threshold_mode, margin in (("rel", 0.02), ("abs", 0.01)):
        for share, improves in ((0.99, False), (1.01, True)):
            plateau = Plateau(0.1, patience=0, threshold=0.01, threshold_mode=threshold_mode, mode=mode)
            plateau.update(best)
            plateau.update(best - sign * share * margin)
            assert (plateau.lr == 0.1) == improves
            assert (plateau.best == best) != improves


# Values


def plain(value):
    """Whether a value is of nothing but types of JSON, and none of their subclasses."""
    if type(value) is dict:
        return all(type(name) is str and plain(entry) for name, entry in value.items())
    if type(value) is list:
        return all(map(plain, value))
    return type(value) in (int, float, str, bool)


def rebuilt(schedule):
    """The same schedule from its arguments, as a user would write it."""
    fields = {field.name: getattr(schedule, field.name) for field in dataclasses.fields(schedule)}
    return type(schedule)(**fields)


@each
def test_equality_and_hashes(schedule):
    """By value; every case is another one, and none is equal to anything else."""
    twin = rebuilt(schedule)
    assert twin is not schedule
    assert twin == schedule
    assert (twin != schedule) is False
    assert hash(twin) == hash(schedule)
    assert {twin: 1}[schedule] == 1
    assert sum(schedule == case for case in CASES) == 1
    assert schedule != 0.1
    assert schedule != schedule.to_dict()
    schedule(3)
    schedule.record()
    assert twin == schedule
    assert hash(twin) == hash(schedule)


@each
def test_schedules_are_frozen(schedule):
    """Fields and everything else."""
    for name in [field.name for field in dataclasses.fields(schedule)] + ["another"]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(schedule, name, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        del schedule.lr


@each
def test_copies(schedule):
    """By repr, by pickle, by copy, and by a dict that JSON takes; evaluated before or not."""
    for evaluated in (False, True):
        original = rebuilt(schedule)
        if evaluated:
            original(5)
        described = original.to_dict()
        assert plain(described)
        assert described["name"] == type(schedule).__name__
        assert [*described] == ["name", *(field.name for field in dataclasses.fields(schedule))]
        written = json.loads(json.dumps(described, allow_nan=False))
        assert written == described
        copies = [eval(repr(original), dict(vars(schedules))), copy.copy(original), copy.deepcopy(original)]
        copies += [pickle.loads(pickle.dumps(original, version)) for version in range(pickle.HIGHEST_PROTOCOL + 1)]
        copies += [read(written) for read in (schedules.from_dict, Schedule.from_dict, type(schedule).from_dict)]
        steps = [0, 1, 2, 9, 10, 60, FAR]
        for each_copy in copies:
            assert type(each_copy) is type(schedule)
            assert each_copy == schedule
            assert repr(each_copy) == repr(schedule)
            assert bits(each_copy(steps)) == bits(schedule(steps))
        described["name"] = "changed"
        assert original.to_dict() == written


def test_to_dict():
    """What it looks like, parts included, for those who read the files."""
    schedule = Warmup(0.5 * MultiStep(1.0, [30, 60]), 5)
    assert schedule.to_dict() == {
        "name": "Warmup",
        "schedule": {
            "name": "Product",
            "schedules": [
                {"name": "Constant", "lr": 0.5},
                {"name": "MultiStep", "lr": 1.0, "milestones": [30, 60], "gamma": 0.1},
            ],
        },
        "steps": 5,
        "start": 0.0,
    }
    assert repr(Warmup(Cosine(0.1, 9), 5)) == (
        "Warmup(schedule=Cosine(lr=0.1, steps=9, end=0.0, dips=1, periodic=False), steps=5, start=0.0)"
    )
    assert schedules.from_dict({"name": "Linear", "lr": 1, "end": 0, "steps": 5}) == Linear(1.0, 0.0, 5)
    assert schedules.from_dict({"name": "Cosine", "lr": 1, "steps": 5}) == Cosine(1.0, 5)  # defaults may be left out
    part = Constant(0.5)
    assert schedules.from_dict({"name": "Warmup", "schedule": part, "steps": 5}) == Warmup(part, 5)


LINEAR = Linear(0.1, 0.0, 10).to_dict()


@pytest.mark.parametrize(
    ("described", "error", "words"),
    [
        (None, ValueError, ["name", "None"]),
        (3, ValueError, ["name", "3"]),
        ("Linear", ValueError, ["name", "Linear"]),
        ([LINEAR], ValueError, ["name"]),
        ({}, ValueError, ["name"]),
        ({"lr": 0.1}, ValueError, ["name"]),
        ({**LINEAR, "name": "Lineal"}, ValueError, ["Lineal", "Linear"]),
        ({**LINEAR, "name": "Schedule"}, ValueError, ["'Schedule'", "Linear"]),
        ({**LINEAR, "name": "linear"}, ValueError, ["'linear'", "Linear"]),
        ({**LINEAR, "name": None}, ValueError, ["None", "Linear"]),
        ({**LINEAR, "name": 3}, ValueError, ["3", "Linear"]),
        ({**LINEAR, "gamma": 0.1}, TypeError, ["Linear", "gamma"]),
        ({"name": "Linear", "lr": 0.1, "end": 0.0}, TypeError, ["Linear", "steps"]),
        ({"name": "Linear"}, TypeError, ["Linear", "steps"]),
        ({**LINEAR, "steps": "10"}, TypeError, ["Linear", "steps"]),
        ({**LINEAR, "steps": 10.0}, TypeError, ["Linear", "steps"]),
        ({**LINEAR, "steps": 0}, ValueError, ["steps", "0"]),
        ({**LINEAR, "lr": None}, TypeError, ["Linear", "lr"]),
        ({**LINEAR, "lr": math.nan}, ValueError, ["lr", "nan"]),
        ({**LINEAR, "lr": LINEAR}, TypeError, ["Linear", "lr"]),
        ({"name": "Warmup", "schedule": {"lr": 0.1}, "steps": 5}, ValueError, ["name"]),
        ({"name": "Warmup", "schedule": {**LINEAR, "name": "X"}, "steps": 5}, ValueError, ["X"]),
        ({"name": "Warmup", "schedule": Plateau(0.1).to_dict(), "steps": 5}, TypeError, ["Warmup", "Plateau"]),
        ({"name": "Product", "schedules": LINEAR}, TypeError, ["Product", "schedules"]),
        ({"name": "MultiStep", "lr": 0.1, "milestones": [3, 2]}, ValueError, ["milestones"]),
        ({"name": "Plateau"}, TypeError, ["Plateau", "lr"]),
        ({"name": "Plateau", "lr": 0.1, "steps": 3}, TypeError, ["Plateau", "steps"]),
        ({"name": "Plateau", "lr": 0.1, "state": None}, ValueError, ["Plateau", "best"]),
        ({"name": "Plateau", "lr": 0.1, "state": {"lr": 0.1}}, ValueError, ["Plateau", "best"]),
    ],
)
def test_dicts_that_describe_no_schedule(described, error, words):
    """Said by name, from each of the two entrances."""
    for read in (schedules.from_dict, Schedule.from_dict):
        with pytest.raises(error) as caught:
            read(described)
        assert type(caught.value) is error
        for word in words:
            assert word in str(caught.value)


@pytest.mark.parametrize("schedule", [Linear(0.1, 0.0, 10), 0.5 * Linear(0.1, 0.0, 10), Plateau(0.1)], ids=repr)
def test_dicts_of_another_class(schedule):
    """A class reads its own only."""
    for cls in SCHEDULES.values():
        if cls is not type(schedule):
            with pytest.raises(ValueError, match=rf"{type(schedule).__name__}.*{cls.__name__}"):
                cls.from_dict(schedule.to_dict())


def test_a_name_that_cannot_be_looked_up():
    """A list is as unknown as a wrong name."""
    with pytest.raises((TypeError, ValueError), match=r"schedule|name"):
        schedules.from_dict({"name": ["Linear"]})


@pytest.mark.parametrize(
    ("made", "want"),
    [
        (Linear(np.float64(0.5), np.float32(0.25), np.int32(10)), Linear(0.5, 0.25, 10)),
        (Linear(1, np.int8(0), np.uint64(10)), Linear(1.0, 0.0, 10)),
        (Linear(np.array(0.5), np.array(0), np.array(10)), Linear(0.5, 0.0, 10)),
        (Linear(Fraction(1, 2), 0, 10), Linear(0.5, 0.0, 10)),
        (MultiStep(np.float16(0.5), np.array([3, 5]), np.float64(0.1)), MultiStep(0.5, (3, 5))),
        (MultiStep(0.5, iter([np.int16(3), 5])), MultiStep(0.5, (3, 5))),
        (Piecewise(np.array([1.0, 0.5]), [np.int64(3)]), Piecewise((1.0, 0.5), (3,))),
        (Piecewise(range(3), range(4, 6)), Piecewise((0.0, 1.0, 2.0), (4, 5))),
        (Cosine(0.1, 9, 0, np.uint8(2), np.True_), Cosine(0.1, 9, 0.0, 2, True)),
        (OneCycle(0.1, np.int64(9), np.float64(0.5), np.str_("cos")), OneCycle(0.1, 9, 0.5, "cos")),
        (Cyclic(0.1, 1, np.int64(9), mode=np.str_("exp_range")), Cyclic(0.1, 1.0, 9, 9, "exp_range")),
        (Warmup(np.float32(0.5), np.int64(3), np.float32(0.25)), Warmup(Constant(0.5), 3, 0.25)),
        (Sequence([np.float64(0.5), 1], np.array([3])), Sequence((Constant(0.5), Constant(1.0)), (3,))),
        (PerEpoch(1, np.int64(3)), PerEpoch(Constant(1.0), 3)),
        (Product([np.float32(0.5), Constant(np.int64(2))]), Product((Constant(0.5), Constant(2.0)))),
        (Constant(0.1).per_epoch(np.int64(3)), PerEpoch(Constant(0.1), 3)),
    ],
    ids=repr,
)
def test_arguments_become_plain(made, want):
    """Whatever holds a number: fields are ints, floats, bools, str and tuples."""
    assert made == want
    assert repr(made) == repr(want)
    assert plain(made.to_dict())
    assert hash(made) == hash(want)
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        assert isinstance(value, Schedule) or type(value) in (int, float, bool, str, tuple)
        if type(value) is tuple:
            assert all(isinstance(item, Schedule) or type(item) in (int, float) for item in value)
    assert eval(repr(made), {"__builtins__": {}, **SCHEDULES}) == want


# Products


SCHEDULE_S, SCHEDULE_T, SCHEDULE_U = Cosine(0.1, 30), StepDecay(0.5, 7), Warmup(Linear(1.0, 0.0, 9), 4)


@pytest.mark.parametrize(
    "half", [0.5, np.float64(0.5), np.float32(0.5), np.float16(0.5), np.array([0.5])[0]], ids=lambda half: repr(half)
)
def test_products_with_numbers(half):
    """From either side, NumPy's own numbers included; the product is a schedule."""
    s = SCHEDULE_S
    assert half * s == Product((Constant(0.5), s))
    assert s * half == Product((s, Constant(0.5)))
    for product in (half * s, s * half):
        assert type(product) is Product
        assert type(product.schedules) is tuple
        assert plain(product.to_dict())
        assert bits(product(range(40))) == bits(0.5 * s(range(40)))


def test_products_of_schedules():
    """All on one clock, ints for factors too, and zero."""
    s, t, u = SCHEDULE_S, SCHEDULE_T, SCHEDULE_U
    assert s * t == Product((s, t)) != t * s
    assert 2 * s == np.int64(2) * s == Product((Constant(2.0), s))
    assert (s * t)(12) == s(12) * t(12)
    assert (0 * s)(range(40)).tolist() == [0.0] * 40
    np.testing.assert_allclose((s * t * u)(range(40)), s(range(40)) * t(range(40)) * u(range(40)), rtol=1e-14)


def test_products_are_flat():
    """However they are nested or put in brackets."""
    s, t, u = SCHEDULE_S, SCHEDULE_T, SCHEDULE_U
    assert (s * t) * u == s * (t * u) == Product([s, t, u]) == Product([Product([s, Product([t])]), u])
    assert (0.5 * s * t).schedules == (Constant(0.5), s, t)
    assert (0.5 * (0.25 * s)).schedules == (Constant(0.5), Constant(0.25), s)
    assert Product([s]).schedules == (s,)
    assert Warmup(s * t, 5).schedule == s * t


@pytest.mark.parametrize(
    "other", ["x", None, [2.0], (2.0,), {}, 1j, True, np.array([0.5, 1.0]), math.sin, Plateau(0.1)]
)
def test_products_with_anything_else(other):
    """TypeError, from either side."""
    for multiply in (lambda: SCHEDULE_S * other, lambda: other * SCHEDULE_S):
        with pytest.raises(TypeError):
            multiply()


@pytest.mark.parametrize("factor", [-0.5, -1, math.nan, math.inf, np.float64(-0.5), np.float32("nan")])
def test_products_with_bad_factors(factor):
    """A rate is never negative."""
    for multiply in (lambda: SCHEDULE_S * factor, lambda: factor * SCHEDULE_S):
        with pytest.raises(ValueError, match="must be a finite number of 0 or more"):
            multiply()


def test_per_epoch():
    """The method and the class; a method's argument is checked like the other's."""
    s = SCHEDULE_S
    assert s.per_epoch(4) == PerEpoch(s, 4)
    assert bits(s.per_epoch(4)(range(200))) == bits(s(np.arange(200) // 4))
    assert (0.5 * s).per_epoch(3).per_epoch(2)(25) == (0.5 * s)(4)


# Wrong arguments: every one of every class

RATES = [(-0.1, ValueError), (-1, ValueError), (math.nan, ValueError), (math.inf, ValueError), (-math.inf, ValueError)]
RATES += [(10**400, ValueError), (np.float32("nan"), ValueError)]
RATES += [(bad, TypeError) for bad in ("0.1", b"1", None, True, np.True_, 1j, [0.1], (0.1,), {}, np.array([0.1]))]
ABOVE = [*RATES, (0, ValueError), (0.0, ValueError), (-0.0, ValueError)]
SHARES = [*RATES, (1.0000001, ValueError), (2, ValueError)]
COUNTS = [
    (-1, ValueError),
    (-(10**30), ValueError),
    (LIMIT, ValueError),
    (10**30, ValueError),
    (np.int64(-3), ValueError),
]
COUNTS += [
    (bad, TypeError)
    for bad in (1.0, 2.5, np.float64(3), "3", None, True, np.True_, [3], {}, 1j, math.nan, np.array([3.0]))
]
POSITIVE_COUNTS = [*COUNTS, (0, ValueError)]
FLAGS = [(bad, TypeError) for bad in (-1, 2, None, "True", 1.0, [])]
WORDS = [
    ("cubic", ValueError),
    ("", ValueError),
    ("COS", ValueError),
    (None, TypeError),
    (0, TypeError),
    (b"cos", TypeError),
]
PARTS = [
    *[(bad, error) for bad, error in RATES],
    (Plateau(0.1), TypeError),
    (math.sin, TypeError),
    (lambda t: 0.1, TypeError),
    (Schedule, TypeError),
]
LISTS = [(3, TypeError), (None, TypeError), ("12", TypeError), (b"12", TypeError), (1.5, TypeError)]
MILESTONES = [
    *LISTS,
    *[([5, bad], error) for bad, error in POSITIVE_COUNTS],
    ([0, 5], ValueError),
    ([5, 4], ValueError),
    ([1, 7, 6, 8], ValueError),
]
TWICE = ([5, 5], ValueError)
FIELDS = {
    Constant: ({"lr": 0.1}, {"lr": RATES}),
    Linear: ({"lr": 0.1, "end": 0.0, "steps": 9}, {"lr": RATES, "end": RATES, "steps": POSITIVE_COUNTS}),
    Polynomial: (
        {"lr": 0.1, "steps": 9, "power": 2.0, "end": 0.0},
        {"lr": RATES, "steps": POSITIVE_COUNTS, "power": ABOVE, "end": RATES},
    ),
    Exponential: (
        {"lr": 0.1, "gamma": 0.9, "every": 1},
        {"lr": RATES, "gamma": RATES, "every": POSITIVE_COUNTS},
    ),
    StepDecay: ({"lr": 0.1, "every": 9, "gamma": 0.9}, {"lr": RATES, "every": POSITIVE_COUNTS, "gamma": RATES}),
    MultiStep: (
        {"lr": 0.1, "milestones": [5, 9], "gamma": 0.9},
        {"lr": RATES, "milestones": MILESTONES, "gamma": RATES},
    ),
    Piecewise: (
        {"values": [0.1, 0.2, 0.3], "boundaries": [5, 9]},
        {
            "values": [*LISTS, *[([0.1, bad, 0.3], error) for bad, error in RATES], ([0.1, 0.2], ValueError),
                       ([], ValueError), ([0.1] * 4, ValueError)],
            "boundaries": [*MILESTONES, TWICE, ([], ValueError), ([5], ValueError), ([5, 9, 10], ValueError)],
        },
    ),
    InverseSqrt: ({"lr": 0.1, "warmup": 9}, {"lr": RATES, "warmup": POSITIVE_COUNTS}),
    Cosine: (
        {"lr": 0.1, "steps": 9, "end": 0.0, "dips": 2, "periodic": True},
        {
            "lr": RATES, "steps": [*POSITIVE_COUNTS, (LIMIT // 2, ValueError)], "end": RATES,
            "dips": [*POSITIVE_COUNTS, (LIMIT // 9, ValueError)], "periodic": FLAGS,
        },
    ),
    WarmRestarts: (
        {"lr": 0.1, "period": 9, "mult": 2, "end": 0.0},
        {"lr": RATES, "period": POSITIVE_COUNTS, "mult": POSITIVE_COUNTS, "end": RATES},
    ),
    OneCycle: (
        {
            "peak": 0.1, "steps": 9, "pct_start": 0.3, "anneal": "cos", "div": 25.0, "final_div": 1e4,
            "three_phase": False,
        },
        {
            "peak": RATES, "steps": POSITIVE_COUNTS, "pct_start": SHARES, "anneal": [*WORDS, ("cosine", ValueError)],
            "div": ABOVE, "final_div": ABOVE, "three_phase": FLAGS,
        },
    ),
    Cyclic: (
        {"lr": 0.1, "peak": 1.0, "up": 5, "down": 4, "mode": "triangular", "gamma": 1.0},
        {
            "lr": RATES, "peak": RATES, "up": POSITIVE_COUNTS,
            "down": [(bad, error) for bad, error in POSITIVE_COUNTS if bad is not None],
            "mode": [*WORDS, ("triangular3", ValueError)], "gamma": [*ABOVE, (1.001, ValueError)],
        },
    ),
    WarmupStableDecay: (
        {"lr": 0.1, "warmup": 5, "stable": 5, "decay": 5, "end": 0.0, "shape": "linear"},
        {
            "lr": RATES, "warmup": COUNTS, "stable": COUNTS, "decay": POSITIVE_COUNTS, "end": RATES,
            "shape": [*WORDS, ("sqrt", ValueError)],
        },
    ),
    Warmup: (
        {"schedule": Constant(0.1), "steps": 5, "start": 0.0},
        {"schedule": PARTS, "steps": POSITIVE_COUNTS, "start": RATES},
    ),
    Sequence: (
        {"schedules": [0.1, 0.2, 0.3], "milestones": [5, 9]},
        {
            "schedules": [*LISTS, *[([0.1, bad, 0.3], error) for bad, error in PARTS], ([0.1, 0.2], ValueError),
                          ([], ValueError), ([0.1] * 4, ValueError)],
            "milestones": [*MILESTONES, TWICE, ([], ValueError), ([5], ValueError), ([5, 9, 10], ValueError)],
        },
    ),
    PerEpoch: (
        {"schedule": Constant(0.1), "steps_per_epoch": 5},
        {"schedule": PARTS, "steps_per_epoch": POSITIVE_COUNTS},
    ),
    Product: (
        {"schedules": [0.1, Constant(0.2)]},
        {"schedules": [*LISTS, *[([0.1, bad], error) for bad, error in PARTS], ([], ValueError)]},
    ),
    Plateau: (
        {
            "lr": 0.1, "factor": 0.1, "patience": 10, "threshold": 1e-4, "threshold_mode": "rel", "mode": "min",
            "cooldown": 0, "min_lr": 0.0,
        },
        {
            "lr": RATES, "factor": SHARES, "patience": [(bad, e) for bad, e in COUNTS if bad != LIMIT],
            "threshold": RATES, "threshold_mode": [*WORDS, ("relative", ValueError)],
            "mode": [*WORDS, ("minimum", ValueError)],
            "cooldown": [(bad, e) for bad, e in COUNTS if bad != LIMIT], "min_lr": RATES,
        },
    ),
}  # fmt: skip
FACTORIES = [
    (Exponential.between, {"lr": 0.1, "end": 0.01, "steps": 9}, {"lr": ABOVE, "end": ABOVE, "steps": POSITIVE_COUNTS}),
    (OneCycle(0.1, 9).momentum, {"base": 0.85, "peak": 0.95}, {"base": ABOVE, "peak": ABOVE}),
    (Cyclic(0.1, 1.0, 9).momentum, {"base": 0.8, "peak": 0.9}, {"base": RATES, "peak": RATES}),
    (Constant(0.1).per_epoch, {"steps_per_epoch": 9}, {"steps_per_epoch": POSITIVE_COUNTS}),
    (Linear(0.1, 0.0, 9).plot, {"steps": 9}, {"steps": [(bad, e) for bad, e in POSITIVE_COUNTS if bad is not None]}),
]


def assert_refused(make, good, name, bad, error):
    """Assert that one bad argument raises exactly this error, which names the argument."""
    caught = None
    try:
        make(**{**good, name: bad})
    except Exception as raised:
        caught = raised
    assert type(caught) is error, (name, bad, caught)
    word = name.removesuffix("s") if isinstance(bad, list) and error is ValueError else name  # "one schedule more than"
    assert word in str(caught), (name, bad, str(caught))


def test_every_field_has_its_wrong_arguments():
    """A field that is not in the table is not tested."""
    assert {*FIELDS} == {*SCHEDULES.values(), Plateau}
    for cls, (good, bad) in FIELDS.items():
        assert [*good] == [*bad] == [*inspect.signature(cls).parameters]
        cls(**good)


@pytest.mark.parametrize(
    ("cls", "name"),
    [(cls, name) for cls, (_, bad) in FIELDS.items() for name in bad],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_wrong_arguments(cls, name):
    """Of the wrong type or out of range, at construction, and said by name."""
    good, bad = FIELDS[cls]
    for value, error in bad[name]:
        assert_refused(cls, good, name, value, error)


@pytest.mark.parametrize(
    ("make", "good", "name", "values"),
    [(make, good, name, values) for make, good, bad in FACTORIES for name, values in bad.items()],
    ids=lambda x: getattr(x, "__qualname__", x) if callable(x) or isinstance(x, str) else "",
)
def test_wrong_arguments_of_methods(make, good, name, values):
    """By the name that the caller knows."""
    make(**good)
    for value, error in values:
        assert_refused(make, good, name, value, error)


def test_wrong_factors_are_named_by_their_place():
    """In a list, which one it is."""
    for make in (lambda bad: Product([0.1, bad]), lambda bad: Sequence([0.1, bad], [5])):
        for bad in (-1.0, "x", None, Plateau(0.1), math.sin):
            with pytest.raises((TypeError, ValueError), match=r"schedules\[1\]"):
                make(bad)
    with pytest.raises(TypeError, match=r"milestones\[1\]"):
        MultiStep(0.1, [1, 2.0])
    with pytest.raises(ValueError, match=r"values\[2\]"):
        Piecewise([0.1, 0.2, -0.3], [1, 2])


# Records


@njit
def loop(record, steps, out):
    """A loop of a user."""
    for i in range(steps.size):
        out[i] = cpu.schedule(record, steps[i])


@each
def test_records(schedule):
    """The function for users' loops gives the same bits, called from Python and from Numba, with ints and floats."""
    steps = np.array(steps_for(schedule))
    want = bits(schedule(steps))
    record = schedule.record()
    assert type(record) is np.ndarray
    assert (record.dtype, record.ndim, record.flags.c_contiguous) == (np.float64, 1, True)
    assert np.isfinite(record).all()
    for counted in (steps, steps.astype(np.float64)):
        out = np.empty(steps.size)
        loop(record, counted, out)
        assert bits(out) == want
    assert bits([cpu.schedule(record, t) for t in steps.tolist()]) == want
    assert bits([cpu.schedule(record, float(t)) for t in steps.tolist()]) == want


@each
def test_records_are_copies(schedule):
    """Whatever happens to one, the schedule and the next record stay as they are."""
    first = schedule.record()
    kept, value = bits(first), schedule(5)
    first[:] = 77.0
    assert bits(schedule.record()) == kept
    assert schedule.record() is not schedule.record()
    assert not np.shares_memory(schedule.record(), schedule.record())
    assert schedule(5) == value
    assert bits(rebuilt(schedule).record()) == kept


@pytest.mark.parametrize("part", [Plateau(0.1), math.sin, lambda t: 0.1, Cosine], ids=named)
def test_what_has_no_record(part):
    """A memory and a bare callable cannot be combined."""
    for make in (
        lambda: Warmup(part, 5),
        lambda: Sequence([0.1, part], [5]),
        lambda: Product([part]),
        lambda: PerEpoch(part, 5),
        lambda: 0.5 * Warmup(part, 5),
    ):
        with pytest.raises(TypeError, match=r"memory|callable"):
            make()
    with pytest.raises(TypeError, match="memory"):
        Plateau(0.1).record()


# Processes of their own


def run(script, cwd, **environment):
    """What a script wrote in a Python process of its own, without a word on stderr."""
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout.split()


def test_imports(tmp_path):
    """Schedules cost no import of Numba before the first value, nor any of matplotlib and torch; nor do their dicts."""
    script = """
        import copy, json, pickle, sys
        import fastopt
        from fastopt import schedules
        from fastopt.schedules import *

        def loaded():
            return ",".join(name for name in ("numba", "llvmlite", "matplotlib", "torch") if name in sys.modules) or "-"

        schedule = Warmup(0.5 * Cosine(0.1, 90) * StepDecay(1.0, 5), 10)
        schedule = schedules.from_dict(json.loads(json.dumps(schedule.to_dict()))).per_epoch(7)
        assert eval(repr(schedule)) == pickle.loads(pickle.dumps(copy.deepcopy(schedule))) == schedule
        assert hash(schedule) and schedule.record().size
        plateau = schedules.Plateau(0.1)
        plateau.update(1.0), plateau(3)
        print(loaded())
        assert schedule(0) == 0.0
        print(loaded())
    """
    assert run(script, tmp_path) == ["-", "numba,llvmlite"]


def test_cached_loops_of_users(tmp_path):
    """A loop that calls the function can be kept by Numba's cache, and a second process takes it from there."""
    (tmp_path / "users.py").write_text(
        textwrap.dedent(
            """
            import numpy as np
            from numba import njit
            from fastopt.kernels import cpu
            from fastopt.schedules import Cosine, Sequence, Warmup

            @njit(cache=True)
            def loop(record, out):
                for t in range(out.size):
                    out[t] = cpu.schedule(record, t)

            schedule = Warmup(0.5 * Sequence([Cosine(0.1, 30), 0.01], [40]), 5)
            out = np.empty(60)
            loop(schedule.record(), out)
            print(*loop.stats.cache_hits.values() or [0], out.tobytes().hex())
            """
        )
    )
    first, second = (run("import users", tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache")) for _ in range(2))
    want = Warmup(0.5 * Sequence([Cosine(0.1, 30), 0.01], [40]), 5)(range(60))
    assert first == ["0", bits(want).hex()]
    assert second == ["1", bits(want).hex()]


# Plateau


def state_of(plateau):
    """All that it remembers, to the bit."""
    return repr(plateau.to_dict())


def test_plateau_counts():
    """Patience, drop, cooldown and floor, metric by metric."""
    plateau = Plateau(1.0, factor=0.5, patience=2, cooldown=2, min_lr=0.2)
    assert (plateau.lr, plateau.best, plateau.bad, plateau.cooling) == (1.0, None, 0, 0)
    rates = [plateau.update(metric) for metric in [3.0, 2.0, 2.0, 2.0, 2.0]]
    assert rates == [1.0, 1.0, 1.0, 1.0, 0.5]
    assert (plateau.lr, plateau.best, plateau.bad, plateau.cooling) == (0.5, 2.0, 0, 2)
    assert [plateau.update(2.0) for _ in range(5)] == [0.5, 0.5, 0.5, 0.5, 0.25]
    assert [plateau.update(2.0) for _ in range(5)] == [0.25, 0.25, 0.25, 0.25, 0.2]
    assert [plateau.update(2.0) for _ in range(20)] == [0.2] * 20
    assert plateau.update(0.0) == 0.2
    assert plateau.best == 0.0


@pytest.mark.parametrize("metric", [1, 2.5, np.float32(0.5), np.array(2.0), torch.tensor(3.0), Fraction(1, 2), True])
def test_plateau_takes_numbers_of_all_kinds(metric):
    """Whatever float() takes is kept as a float; what update returns is one too."""
    plateau = Plateau(0.1)
    assert type(plateau.update(metric)) is float
    assert type(plateau.best) is float
    assert plateau.best == float(metric)


def test_plateau_is_a_schedule_of_any_step():
    """It is callable, and its value the present rate."""
    plateau = Plateau(np.float32(0.5), patience=0)
    assert [plateau(t) for t in (0, 5, FAR)] == [0.5] * 3
    plateau.update(1.0)
    assert plateau.update(1.0) == plateau(0) == plateau(7) == 0.05
    assert type(plateau(0)) is float


@pytest.mark.parametrize("metric", ["1", b"1", None, [1.0], (), {}, 1j, np.array([1.0, 2.0]), object()], ids=named)
def test_metrics_that_are_no_numbers(metric):
    """TypeError, and nothing has changed."""
    plateau = Plateau(0.1, patience=1)
    plateau.update(1.0)
    plateau.update(2.0)
    before = state_of(plateau)
    with pytest.raises(TypeError):
        plateau.update(metric)
    assert state_of(plateau) == before
    assert plateau.update(2.0) == pytest.approx(0.01)


def test_plateau_never_rises():
    """A floor above the rate leaves it where it is."""
    plateau = Plateau(0.1, min_lr=0.5, patience=0)
    assert [plateau.update(1.0) for _ in range(5)] == [0.1] * 5


OPTIONS = {"factor": 0.5, "patience": 2, "threshold": 0.01, "threshold_mode": "abs", "mode": "max", "cooldown": 1}


@pytest.mark.parametrize("cut", [0, 1, 7, 30, 59])
@pytest.mark.parametrize("options", [{}, {"patience": 1}, OPTIONS], ids=repr)
def test_plateau_resumes(options, cut):
    """From a state dict, a dict of its own, a pickle or a copy, through JSON where it is one, to the same rates."""
    random.seed(cut)
    metrics = [round(random.gauss(0.0, 1.0), 1) for _ in range(60)]
    whole, half = Plateau(0.1, **options), Plateau(0.1, **options)
    want = [whole.update(metric) for metric in metrics]
    for metric in metrics[:cut]:
        half.update(metric)
    loaded = Plateau(0.7, **options)
    state = json.loads(json.dumps(half.state_dict()))
    assert set(state) == {"lr", "best", "bad", "cooling"}
    loaded.load_state_dict(state)
    described = json.loads(json.dumps(half.to_dict()))
    resumed = [loaded, schedules.from_dict(described), copy.deepcopy(half), pickle.loads(pickle.dumps(half))]
    for plateau in resumed:
        assert type(plateau) is Plateau
        assert plateau.state_dict() == half.state_dict()
        assert [plateau.update(metric) for metric in metrics[cut:]] == want[cut:]
        assert plateau.state_dict() == whole.state_dict()
    for plateau in resumed[1:]:
        assert state_of(plateau) == state_of(whole)


def test_a_state_dict_is_a_copy():
    """Neither side sees what happens to the other."""
    plateau = Plateau(0.1)
    plateau.update(2.0)
    state = plateau.state_dict()
    kept = dict(state)
    plateau.update(1.0)
    assert state == kept
    state["best"] = -5.0
    assert plateau.best == 1.0


GOOD_STATE = {"lr": 0.05, "best": 2.0, "bad": 1, "cooling": 0}


@pytest.mark.parametrize(
    "state",
    [
        None, 3, "state", [], {}, [("lr", 0.1)], {"lr": 0.1},
        *({name: value for name, value in GOOD_STATE.items() if name != missing} for missing in GOOD_STATE),
        {**GOOD_STATE, "patience": 3},
        *({**GOOD_STATE, "lr": bad} for bad in (-0.1, math.nan, math.inf, "0.1", None, True)),
        *({**GOOD_STATE, "best": bad} for bad in (math.nan, "2", b"2", [2.0], {}, 1j)),
        *({**GOOD_STATE, "bad": bad} for bad in (-1, 1.0, "1", None, True)),
        *({**GOOD_STATE, "cooling": bad} for bad in (-1, 1.0, "1", None, True)),
    ],
    ids=repr,
)  # fmt: skip
def test_states_that_do_not_fit(state):
    """Refused, and nothing has changed."""
    plateau = Plateau(0.1, patience=3)
    plateau.update(1.0)
    plateau.update(2.0)
    before = state_of(plateau)
    with pytest.raises((TypeError, ValueError)):
        plateau.load_state_dict(state)
    assert state_of(plateau) == before
    plateau.load_state_dict(GOOD_STATE)
    assert plateau.state_dict() == GOOD_STATE


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=repr)
def test_plateau_is_written_as_it_was_made(options):
    """Its repr evaluates back to the options, without the memory; its dict has both."""
    plateau = Plateau(np.float32(0.5), **options)
    fresh = state_of(plateau)
    for _ in range(40):
        plateau.update(1.0)
    assert plateau.lr < 0.5
    back = eval(repr(plateau), {"__builtins__": {}, "Plateau": Plateau})
    assert repr(back) == repr(plateau)
    assert state_of(back) == fresh
    described = plateau.to_dict()
    assert (described["name"], described["lr"], described["state"]["lr"]) == ("Plateau", 0.5, plateau.lr)
    assert plain({**described, "state": {**described["state"], "best": 0.0}})
    assert schedules.from_dict(described).to_dict() == described


# Properties

prop = settings(max_examples=80, deadline=None, derandomize=True, database=None)
rates = st.one_of(st.sampled_from([0.0, 0.1, 1.0]), st.floats(1e-12, 10.0))  # the oracle has 80 digits
lengths = st.one_of(st.integers(1, 40), st.integers(1, 10**6), st.integers(1, LIMIT - 1))
gammas = st.floats(0.0, 1.5, allow_subnormal=False)
powers = st.floats(0.01, 20.0)
milestones = st.lists(st.integers(1, 10**6), unique=True, max_size=4).map(sorted)
shapes = st.sampled_from(["linear", "cosine", "1-sqrt"])
modes = st.sampled_from(["triangular", "triangular2", "exp_range"])
shares = st.floats(0.0, 1.0)
divisors = st.floats(0.1, 1e6)
MONOTONE = st.one_of(
    st.builds(Constant, rates),
    st.builds(Linear, rates, rates, lengths),
    st.builds(Polynomial, rates, lengths, powers, rates),
    st.builds(Cosine, rates, lengths, rates),
    st.builds(WarmupStableDecay, rates, st.just(0), st.integers(0, 10**6), lengths, rates, shapes),
)
SIMPLE = st.one_of(
    MONOTONE,
    st.builds(Exponential, rates, st.floats(0.0, 1.0, allow_subnormal=False), lengths),
    st.builds(StepDecay, rates, lengths, st.floats(0.0, 1.0, allow_subnormal=False)),
    st.builds(MultiStep, rates, milestones, gammas),
    milestones.flatmap(
        lambda m: st.builds(Piecewise, st.lists(rates, min_size=len(m) + 1, max_size=len(m) + 1), st.just(m))
    ),
    st.builds(InverseSqrt, rates, lengths),
    st.builds(Cosine, rates, st.integers(1, 10**6), rates, st.integers(1, 1000), st.booleans()),
    st.builds(WarmRestarts, rates, lengths, st.integers(1, 5), rates),
    st.builds(
        OneCycle,
        rates,
        lengths,
        st.floats(0.0, 0.5),
        st.sampled_from(["cos", "linear"]),
        divisors,
        divisors,
        st.booleans(),
    ),
    st.builds(Cyclic, rates, rates, st.integers(1, 10**6), st.integers(1, 10**6), modes, st.floats(1e-3, 1.0)),
    st.builds(WarmupStableDecay, rates, st.integers(0, 99), st.integers(0, 99), st.integers(1, 99), rates, shapes),
)


def combined(parts):
    """Schedules made of others."""
    return st.one_of(
        st.builds(Warmup, parts, st.integers(1, 10**6), rates),
        st.builds(PerEpoch, parts, st.integers(1, 10**6)),
        st.builds(Product, st.lists(parts, min_size=1, max_size=3)),
        milestones.flatmap(
            lambda m: st.builds(Sequence, st.lists(parts, min_size=len(m) + 1, max_size=len(m) + 1), st.just(m))
        ),
    )


ANY = st.recursive(SIMPLE, combined, max_leaves=6)
STEP_LISTS = st.lists(st.one_of(st.integers(0, 100), st.integers(0, 10**6), st.integers(0, LIMIT - 1)), max_size=20)


@prop
@given(MONOTONE, STEP_LISTS)
def test_monotone_schedules(schedule, steps):
    """From the first to the last value, never outside the two, never back, but for the last bit."""
    length = getattr(schedule, "decay", getattr(schedule, "steps", 1)) + getattr(schedule, "stable", 0)
    steps += [0, 1, 2, length // 2, length // 2 + 1, length - 2, length - 1, length, length + 1]
    values = schedule(sorted(t for t in steps if 0 <= t < LIMIT))
    first, last = schedule.lr, getattr(schedule, "end", schedule.lr)
    assert values.min() >= min(first, last) * (1 - ULPS)
    assert values.max() <= max(first, last) * (1 + ULPS)
    backwards = -np.diff(values) if last >= first else np.diff(values)
    assert (backwards <= ULPS * np.maximum(values[1:], values[:-1])).all()


@prop
@given(SIMPLE, STEP_LISTS)
def test_random_values(schedule, steps):
    """Against the oracle, whatever the parameters."""
    own = [n + d for n in numbers_in(schedule.to_dict()) for d in (-1, 0, 1)]
    assert_near(schedule, [t for t in (*steps, *own) if 0 <= t < LIMIT])


@prop
@given(ANY, STEP_LISTS)
def test_random_compositions(schedule, steps):
    """Scalars, arrays and records agree to the bit, and a dict and a repr give the schedule back."""
    steps = np.array(steps, np.int64)
    want = bits(schedule(steps))
    assert bits([schedule(t) for t in steps.tolist()]) == want
    out = np.empty(steps.size)
    loop(schedule.record(), steps, out)
    assert bits(out) == want
    back = schedules.from_dict(json.loads(json.dumps(schedule.to_dict(), allow_nan=False)))
    assert back == schedule == eval(repr(schedule), {"__builtins__": {}, "True": True, "False": False, **SCHEDULES})
    assert bits(back(steps)) == want
    assert hash(back) == hash(schedule)
    if steps.size:
        assert_near(schedule, steps.tolist()[:5])


def test_arrays_of_any_kind_of_int():
    """Read-only, byte-swapped, unaligned, strided, of the other sign: the same values, and the array is left alone."""
    schedule, steps = Cosine(0.1, 100), np.arange(0, 120, 5)
    want = bits(schedule(steps))
    frozen = steps.copy()
    frozen.flags.writeable = False
    unaligned = np.frombuffer(b"." + steps.tobytes(), np.uint8)[1:].view(np.int64)
    kinds = [frozen, steps.astype(">i8"), unaligned, np.repeat(steps, 3)[::3], steps[::-1][::-1], steps.astype("u1")]
    for array in kinds:
        before = array.copy()
        assert bits(schedule(array)) == want
        assert (array == before).all()
    assert schedule(np.asfortranarray(steps.reshape(4, 6))).tolist() == schedule(steps).reshape(4, 6).tolist()


def test_three_phases_need_room():
    """More than half of the steps for the rise would leave none for the end, which torch never reaches then."""
    with pytest.raises(ValueError, match=r"pct_start must be 0\.5 at most with three_phase"):
        OneCycle(0.1, 30, 0.6, three_phase=True)


def test_sets_have_no_order():
    """So that they are no milestones."""
    with pytest.raises(TypeError, match="milestones must be a list"):
        MultiStep(0.1, {5, 3})


def test_the_base_class_is_not_a_schedule():
    """It says which are."""
    with pytest.raises(TypeError, match="use one of its classes"):
        schedules.Schedule()


def test_star_imports_bring_the_schedules():
    """And nothing that they are made of."""
    classes = {*schedules.SCHEDULES, "Plateau", "Schedule"}
    assert {*schedules.__all__} == classes | {"from_dict", "STEP_LIMIT"}
    assert all(hasattr(schedules, name) for name in schedules.__all__)


# Plots


def drawn(axes):
    """The one curve of axes."""
    (line,) = axes.get_lines()
    return line.get_xdata(), line.get_ydata()


@pytest.mark.parametrize(
    "schedule",
    [
        *CASES[::4],
        Linear(0.1, 0.0, LIMIT - 1),
        InverseSqrt(0.1, LIMIT - 1),
        Cyclic(0.0, 0.1, LIMIT - 1, LIMIT - 1),
        PerEpoch(Linear(0.1, 0.0, LIMIT - 1), LIMIT - 1),
        StepDecay(0.1, LIMIT - 1),
        Warmup(0.1, LIMIT - 1),
    ],
    ids=repr,
)
def test_plots(schedule):
    """A figure that pyplot does not know, with the schedule's values at steps from 0 to where all can be seen."""
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    before = pyplot.get_fignums()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = schedule.plot()
        figure.savefig(io.BytesIO(), dpi=30)
    assert isinstance(figure, Figure)
    assert pyplot.get_fignums() == before
    (axes,) = figure.axes
    steps, values = drawn(axes)
    assert steps[0] == 0
    assert len(steps) > 1
    assert all(step == int(step) for step in steps)
    assert bits(values) == bits(schedule(np.array(steps).astype(np.int64)))
    low, high = axes.get_ylim()
    assert low < 0 <= min(values) <= max(values) < high  # with 0 in view, and no line on the frame


@pytest.mark.parametrize(
    ("schedule", "length"),
    [(Linear(0.1, 0.0, 1000), 1000), (Warmup(Cosine(0.1, 300), 50), 350), (OneCycle(0.1, 700), 700)],
    ids=repr,
)
def test_plots_show_the_end(schedule, length):
    """By default a schedule is drawn to its end and a bit further, and to the given step otherwise."""
    assert length < drawn(schedule.plot().axes[0])[0][-1] < 1.25 * length
    steps, values = drawn(schedule.plot(60).axes[0])
    assert list(steps) == list(range(61))
    assert bits(values) == bits(schedule(range(61)))
    assert drawn(schedule.plot(steps=10 * FAR).axes[0])[0][-1] == 10 * FAR


def test_plots_into_given_axes():
    """Two schedules in one picture; the figure is the axes' own."""
    from matplotlib.figure import Figure

    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert Linear(0.1, 0.0, 50).plot(axes=right) is figure
    assert Cosine(0.1, 50).plot(40, axes=right) is figure
    assert len(left.get_lines()) == 0
    first, second = right.get_lines()
    assert bits(first.get_ydata()) == bits(Linear(0.1, 0.0, 50)(first.get_xdata()))
    assert bits(second.get_ydata()) == bits(Cosine(0.1, 50)(range(41)))
    Cosine(0.5, 50).plot(40, axes=right)
    assert right.get_ylim()[1] > 0.5


# Documentation


def test_examples():
    """Those of the module's docstring."""
    results = doctest.testmod(schedules)
    assert results.attempted >= 4
    assert results.failed == 0
