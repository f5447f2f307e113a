"""Wrong arguments: every one of every schedule."""

import inspect
import math

import numpy as np
import pytest
from schedule_checks import LIMIT

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


def test_three_phases_need_room():
    """More than half of the steps for the rise would leave none for the end, which torch never reaches then."""
    with pytest.raises(ValueError, match=r"pct_start must be 0\.5 at most with three_phase"):
        OneCycle(0.1, 30, 0.6, three_phase=True)


def test_sets_have_no_order():
    """So that they are no milestones."""
    with pytest.raises(TypeError, match="milestones must be a list"):
        MultiStep(0.1, {5, 3})
