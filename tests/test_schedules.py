"""The values of every schedule, random ones included, against the oracle in mpmath, for steps of every kind."""

import doctest
import inspect
import json
from fractions import Fraction

import numpy as np
import pytest
import schedule_oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import CASES, FAR
from schedule_checks import LIMIT, ULPS, assert_near, bits, each, loop, named, numbers_in, steps_for

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
    Polynomial,
    Product,
    Schedule,
    Sequence,
    StepDecay,
    WarmRestarts,
    Warmup,
    WarmupStableDecay,
)


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


# Documentation


def test_examples():
    """Those of the module's docstring."""
    results = doctest.testmod(schedules)
    assert results.attempted >= 4
    assert results.failed == 0
