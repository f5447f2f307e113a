"""The steps at which a schedule is checked, and what its values must be; no tests here."""

import dataclasses
import math
import re
import sys

import numpy as np
import pytest
import schedule_oracle
from fastopt.kernels import cpu
from mpmath import mpf
from numba import njit
from schedule_cases import CASES, FAR
from tolerances import SCHEDULE, SCHEDULE_TINY

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


@njit
def loop(record, steps, out):
    """A loop of a user."""
    for i in range(steps.size):
        out[i] = cpu.schedule(record, steps[i])


def state_of(plateau):
    """All that it remembers, to the bit."""
    return repr(plateau.to_dict())
