"""Schedules as values: equal, copied, described, multiplied, written as records, in processes of their own."""

import copy
import dataclasses
import json
import math
import os
import pickle
import subprocess
import sys
import textwrap
from fractions import Fraction

import numpy as np
import pytest
from fastopt.kernels import cpu
from schedule_cases import CASES, FAR
from schedule_checks import bits, each, loop, named, plain, rebuilt, steps_for

from fastopt import schedules
from fastopt.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    Cyclic,
    Linear,
    MultiStep,
    OneCycle,
    PerEpoch,
    Piecewise,
    Plateau,
    Product,
    Schedule,
    Sequence,
    StepDecay,
    Warmup,
)


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
    """The text of a description, parts included."""
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


# Records


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


@pytest.mark.exhaustive
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


# The module


def test_the_base_class_is_not_a_schedule():
    """It says which are."""
    with pytest.raises(TypeError, match="use one of its classes"):
        schedules.Schedule()


def test_star_imports_bring_the_schedules():
    """And nothing that they are made of."""
    classes = {*schedules.SCHEDULES, "Plateau", "Schedule"}
    assert {*schedules.__all__} == classes | {"from_dict", "STEP_LIMIT"}
    assert all(hasattr(schedules, name) for name in schedules.__all__)
