"""Stages of steps over arrays against the oracle: clipping, skipping, averages, gradients set to zero."""

import itertools
import math

import numpy as np
import pytest
from gradient_layouts import STRIDED
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import usually
from rule_cases import BY_STATES, OPTIMIZERS
from stage_cases import (
    ALL_MEET,
    AVERAGE,
    NORM,
    TOGETHER,
    VALUE,
    Twins,
    arrays,
    each_with_stages,
    gradients,
    seen,
)
from tolerances import TRAJECTORY, assert_close

import fastopt
from fastopt.schedules import Linear
from fastopt.step.chunks import CHUNK_ELEMENTS
from fastopt.step.clock import Clock

STEPS = 8


def in_full(monkeypatch):
    """Have Python take all steps."""
    monkeypatch.setattr(Clock, "start_repeating", lambda self: None)


# Against the oracle


@each_with_stages(OPTIMIZERS)
def test_every_rule(rule, stages):
    """Clipped by norm, which is no stage of the kernel, and with stages; each parameter misses a gradient."""
    twins = Twins(rule, arrays(), **stages)
    for step in range(STEPS):
        grads = gradients(twins.params, step)
        twins.step([None if (step + i) % 4 == 0 else g for i, g in enumerate(grads)])
    twins.check()


ALONE = {
    "value": VALUE,
    "average": AVERAGE,
    "skip": {"skip_nonfinite": True},
    "measured": {"max_grad_norm": math.inf},
    "value of a schedule": {"clip_grad_value": Linear(1.0, 0.1, 6)},
    "norm of a schedule": {"max_grad_norm": Linear(1.0, 0.1, 6)},
    "average of a schedule": {"ema_decay": lambda step: min(0.9, (1 + step) / (10 + step))},
    "average that keeps nothing": {"ema_decay": 0.0},
    "average that keeps all": {"ema_decay": 1.0},
}


@pytest.mark.parametrize("rule", usually(["momentum"], ALL_MEET))
@pytest.mark.parametrize("stages", ALONE.values(), ids=ALONE)
def test_each_stage_alone(rule, stages):
    twins = Twins(rule, arrays(), **stages)
    for step in range(STEPS):
        twins.step(gradients(twins.params, step))
    twins.check()


@pytest.mark.parametrize("rule", usually(["momentum"], ["momentum", *BY_STATES]))
def test_gradients_set_to_zero_beside_averages(rule):
    """Three states and an average fit beside each other; a gradient is set to zero after it was used."""
    twins = Twins(rule, arrays(), **AVERAGE)
    for step in range(STEPS):
        twins.step(gradients(twins.params, step), zero_grads=step != 4)
    twins.check()


SCHEDULES = {
    "max_grad_norm": [None, 0.5, math.inf, Linear(2.0, 0.1, 4), lambda step: 0.3 + 0.1 * step],
    "clip_grad_value": [None, 0.7, Linear(2.0, 0.1, 4)],
    "ema_decay": [None, 0.9, Linear(0.2, 0.9, 4)],
    "skip_nonfinite": [False, True],
}
LAYOUTS = {"plain": lambda g: g, **STRIDED}


@st.composite
def courses(draw):
    """Options of the stages, parameters, and for some steps: gradients, whether they become zero, options to assign."""
    options = {name: draw(st.sampled_from(values)) for name, values in SCHEDULES.items()}
    rule = draw(st.sampled_from(ALL_MEET))
    shape = draw(st.sampled_from([(3, 5), (70, 60), (1, 1)]))
    sizes = draw(st.lists(st.sampled_from([0, 1, 9, CHUNK_ELEMENTS, CHUNK_ELEMENTS + 1]), max_size=2))
    steps = [
        {
            "missing": draw(st.sampled_from([(), (), (0,), (1,)])),
            "layout": draw(st.sampled_from(["plain", "plain", "plain", *LAYOUTS])),
            "bad": draw(st.sampled_from([None, None, None, math.nan, math.inf, -math.inf])),
            "zero": draw(st.sampled_from([False, False, True])),
            "assigned": draw(st.sampled_from([None, None, *SCHEDULES])),
            "value": draw(st.integers(0, 4)),
        }
        for _ in range(draw(st.integers(2, 7)))
    ]
    return rule, options, shape, sizes, steps


def gradients_of(step, number, params, skips):
    """The gradients of a step: some of them missing, the first one in some layout, or not finite where that skips."""
    grads = gradients(params, number)
    laid = LAYOUTS[step["layout"]](grads[0])
    if laid.shape == grads[0].shape:
        grads[0] = laid
    if step["zero"]:
        grads[0] = np.asarray(grads[0]).copy(order="K") if not grads[0].flags.owndata else grads[0]
    if skips and step["bad"] is not None:
        grads[-1] = np.array(grads[-1])
        grads[-1].flat[-1:] = step["bad"]
    return [None if i in step["missing"] else g for i, g in enumerate(grads)]


def assign(step, optimizer):
    """Assign an option that a step names."""
    if step["assigned"] is not None:
        values = SCHEDULES[step["assigned"]]
        setattr(optimizer, step["assigned"], values[step["value"] % len(values)])


def followed(course):
    """Take the steps of a course, compare them with the oracle, and return what is there afterwards, to the bit."""
    rule, options, shape, sizes, steps = course
    params = arrays([shape, *[(size,) for size in sizes]])
    twins = Twins(rule, params, **options)
    for number, step in enumerate(steps):
        assign(step, twins.optimizer)
        grads = gradients_of(step, number, params, twins.optimizer.skip_nonfinite)
        twins.step(grads, zero_grads=step["zero"])
    twins.check()
    return seen(twins.optimizer), twins.optimizer.grad_norm


@pytest.mark.exhaustive  # compiles kernels of all stages
@settings(max_examples=50, deadline=None)
@given(courses())
def test_any_combination(course):
    """Whatever options, assigned whenever, with late and strided gradients; to the bit whoever takes the steps."""
    with pytest.MonkeyPatch.context() as patch:
        in_full(patch)
        plain = followed(course)
    assert repr(followed(course)) == repr(plain)


@pytest.mark.exhaustive  # compiles kernels of all stages
def test_several_dtypes():
    """They have one norm, and kernels of their own."""
    twins = Twins("adamw", [*arrays(), *arrays(dtype=np.float64, seed=8)], **TOGETHER)
    for step in range(STEPS):
        twins.step(gradients(twins.params, step))
    twins.check()


def test_groups_with_rates_of_their_own():
    """They have one norm; decay and rate are a group's own, and come after clipping."""
    params = arrays([(5,), (4, 3), (7,)])
    own = [{"lr": 0.1, "weight_decay": 0.1}, {"lr": 0.3, "maximize": True}, {"lr": 0.2, "dampening": 0.5}]
    own = [{"momentum": 0.9, **options} for options in own]
    groups = [{"params": p, **options} for p, options in zip(params, own, strict=True)]
    optimizer, trainer = fastopt.SGD(groups, **TOGETHER), fastopt.bench.oracle.Trainer(params)
    for step in range(STEPS):
        grads = gradients(params, step)
        optimizer.step(grads)
        trainer.step("momentum", grads, own, TOGETHER)
    for i, p in enumerate(params):
        assert_close(p, trainer.params[i], TRAJECTORY)
        assert_close(optimizer.state[i]["ema"], trainer.averages[i], TRAJECTORY)


# Gradients that are not finite

BAD = [math.nan, math.inf, -math.inf]
WHERE = [(size, at) for size in (CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS, 2 * CHUNK_ELEMENTS + 1)
         for at in (0, CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS, size - 1) if at < size]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("size", "at"), dict.fromkeys(WHERE))
def test_a_step_is_skipped_wherever_it_is_not_finite(size, at, dtype):
    """Nothing is changed, made or counted: at the first step, at the next one, and at one that is repeated."""
    [p], bad = arrays([(size,)], dtype), itertools.cycle(BAD)
    twins = Twins("momentum", [p], skip_nonfinite=True, **NORM)
    for step in range(6):
        before = seen(twins.optimizer)
        [g] = gradients([p], step)
        g[at] = next(bad)
        twins.step([g])
        assert seen(twins.optimizer) == before
        assert not math.isfinite(twins.optimizer.grad_norm)
        assert twins.optimizer.skipped_steps == step + 1
        twins.step(gradients([p], 100 + step))
    assert twins.optimizer.param_groups[0]["step"] == 6
    twins.check()


def test_a_skipped_step_makes_no_state():
    """Neither a buffer nor an average; the parameter starts with the next one, and schedules wait."""
    asked = []
    p = np.ones(3, np.float32)
    options = {"momentum": 0.9, "lr": lambda step: asked.append(step) or 0.1}
    optimizer = fastopt.SGD(p, skip_nonfinite=True, **options, **AVERAGE)
    for number in range(3):
        optimizer.step(np.array([1.0, math.inf, 1.0], np.float32))
        assert not optimizer.state
        assert (optimizer.param_groups[0]["step"], optimizer.skipped_steps) == (0, number + 1)
    optimizer.step(np.ones(3, np.float32))
    assert {*optimizer.state[0]} == {"step", "momentum_buffer", "ema"}
    assert {*asked} == {0}
    np.testing.assert_allclose(p, 0.9, rtol=1e-6)


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_without_skipping_it_goes_on_as_in_torch(bad):
    """By an infinite norm, all is multiplied by 0, which makes NaN of infinity; by NaN, all becomes NaN."""
    for repeated in range(2):
        p, g = np.ones(2 * CHUNK_ELEMENTS), np.ones(2 * CHUNK_ELEMENTS)
        optimizer = fastopt.SGD(p, lr=1.0, max_grad_norm=1.0)
        for _ in range(repeated):
            optimizer.step(np.zeros_like(p))
        g[5] = bad
        optimizer.step(g)
        np.testing.assert_array_equal(optimizer.grad_norm, abs(bad))
        assert np.isnan(p[5])
        rest = np.delete(p, 5)
        assert np.isnan(rest).all() if math.isnan(bad) else (rest == 1.0).all()
        assert optimizer.skipped_steps == 0


def test_a_value_that_is_not_finite_is_clipped():
    """Infinity to the limit, while NaN stays NaN."""
    for repeated in range(2):
        p = np.zeros(4, np.float32)
        optimizer = fastopt.SGD(p, lr=1.0, momentum=0.9, clip_grad_value=0.5)
        for _ in range(repeated):
            optimizer.step(np.zeros_like(p))
        optimizer.step(np.array([math.inf, -math.inf, math.nan, 0.25], np.float32))
        np.testing.assert_array_equal(p, [-0.5, 0.5, math.nan, -0.25])


@pytest.mark.parametrize(("dtype", "scale"), [(np.float64, 1e200), (np.float64, 1e-200), (np.float32, 1e30)])
def test_finite_gradients_have_a_finite_norm(dtype, scale):
    """Even where the squares are infinite, or lost, in the dtype; the step is that of gradients of an ordinary size."""
    p = arrays([(CHUNK_ELEMENTS + 3,)], dtype)
    twins = Twins("momentum", p, skip_nonfinite=True, max_grad_norm=0.5 * min(scale, 1.0))
    for step in range(4):
        twins.step([(scale * g).astype(dtype) for g in gradients(p, step)])
    assert twins.optimizer.skipped_steps == 0
    twins.check()


# Bits


@pytest.mark.parametrize("rule", usually(["momentum"], ALL_MEET))
def test_any_number_of_threads_gives_the_same_bits(rule):
    """Since the sums of squares are added in the order of the chunks; first steps and repeated ones."""
    before, ends = fastopt.get_num_threads(), []
    try:
        for threads in range(1, 9):
            fastopt.set_num_threads(threads)
            params = arrays([(9 * CHUNK_ELEMENTS + 7,), (130, 70), (5,)])
            optimizer = OPTIMIZERS[rule][0](params, lr=0.1, **TOGETHER)
            for step in range(4):
                grads = gradients(params, step)
                grads[1] = np.asfortranarray(grads[1]) if step == 3 else grads[1]
                optimizer.step(grads)
            ends.append((seen(optimizer), optimizer.grad_norm))
    finally:
        fastopt.set_num_threads(before)
    assert all(end == ends[0] for end in ends)


@pytest.mark.parametrize("rule", usually(ALL_MEET, OPTIMIZERS))
def test_repeated_steps_have_the_bits_of_others(rule, monkeypatch):
    """With the options of the stages as numbers, and as functions that only Python can call."""
    for stages in ({**TOGETHER, "skip_nonfinite": True}, {**TOGETHER, "max_grad_norm": lambda step: 0.5 + 0.1 * step}):
        ends = []
        for repeats in (True, False):
            params = arrays()
            make, options = OPTIMIZERS[rule]
            optimizer = make(params, **options, **stages)
            with monkeypatch.context() as patch:
                if not repeats:
                    in_full(patch)
                for step in range(5):
                    assert repeats <= (step < 2 or optimizer._stepper.clock.repetition is not None)
                    optimizer.step(gradients(params, step))
            ends.append((seen(optimizer), optimizer.grad_norm))
        assert ends[0] == ends[1]


@pytest.mark.parametrize("stages", [TOGETHER, {"ema_decay": Linear(0.1, 0.9, 6), **NORM}], ids=["numbers", "schedule"])
@pytest.mark.parametrize("rule", usually(ALL_MEET, [*ALL_MEET, "adamw_amsgrad"]))
def test_a_run_goes_on_from_a_state_dict(rule, stages):
    """To the bit, with the options of the saved run and its averages, whatever the new one was made with."""
    make, options = OPTIMIZERS[rule]
    params = arrays()
    optimizer = make(params, **options, **stages)
    for step in range(3):
        optimizer.step(gradients(params, step))
    saved = optimizer.state_dict()
    for others in ({}, dict.fromkeys(stages, 0.7)):
        copies = [p.copy() for p in params]
        other = make(copies, **options, **others)
        other.step(gradients(copies, 50))
        for p, q in zip(params, copies, strict=True):
            q[...] = p
        other.load_state_dict(saved)
        twin = make([p.copy() for p in params], **options, **stages)
        twin.load_state_dict(saved)
        assert [getattr(other, name) for name in stages] == [getattr(optimizer, name) for name in stages]
        for step in range(3, 6):
            other.step(gradients(copies, step))
            twin.step(gradients(copies, step))
        assert seen(other) == seen(twin)
    for step in range(3, 6):
        optimizer.step(gradients(params, step))
    assert seen(optimizer) == seen(twin)


# Options that are assigned

ASSIGNED = [
    {"max_grad_norm": 0.1},
    {"max_grad_norm": None},
    {"clip_grad_value": 0.2},
    {"ema_decay": 0.5},
    {"clip_grad_value": None, "max_grad_norm": 0.3},
    {"ema_decay": None},
    {"skip_nonfinite": True, "max_grad_norm": None},
    {"skip_nonfinite": False, "ema_decay": Linear(0.1, 0.9, 20)},
    {"max_grad_norm": lambda step: 1.0 / step},
    {"max_grad_norm": math.inf, "ema_decay": 0.3},
    {"clip_grad_value": 0.05},
    {"clip_grad_value": 0.5},
]


@pytest.mark.parametrize("rest", [0, 1, 3])
@pytest.mark.parametrize("rule", usually(["momentum"], ALL_MEET))
def test_options_are_assigned_between_steps(rule, rest):
    """Switched on, off and on again, with so many steps in between, at the optimizer or in its group."""
    twins = Twins(rule, arrays())
    number = itertools.count()
    for change in ASSIGNED:
        for name, value in change.items():
            if next(number) % 2:
                setattr(twins.optimizer, name, value)
            else:
                twins.optimizer.param_groups[0][name] = value
        for _ in range(1 + rest):
            twins.step(gradients(twins.params, next(number)))
        twins.check()


@pytest.mark.parametrize("name", ["max_grad_norm", "clip_grad_value", "ema_decay"])
def test_an_option_that_begins_with_a_schedule(name):
    """Also right after a step whose numbers Python has computed for the extension."""
    twins = Twins("momentum", arrays())
    for step in range(6):
        if step == 3:
            twins.optimizer.param_groups[0]["lr"] = 0.1
        if step == 4:
            setattr(twins.optimizer, name, Linear(0.9, 0.5, 20))
        twins.step(gradients(twins.params, step))
    twins.check()


def test_what_an_average_follows():
    """It starts at the parameter before its first step, follows one without a gradient, and waits while it is off."""
    p, q = np.array([1.0]), np.array([2.0])
    optimizer = fastopt.SGD([p, q], lr=1.0, ema_decay=0.5)
    one = np.ones(1)
    optimizer.step([one, None])
    assert (p[0], optimizer.state[0]["ema"][0]) == (0.0, 0.5)
    assert 1 not in optimizer.state
    q[0] = 10.0
    optimizer.step([None, one])
    assert (optimizer.state[0]["ema"][0], optimizer.state[1]["ema"][0]) == (0.25, 9.5)
    p[0] = 4.0  # by hand: a parameter without a gradient is averaged as it is
    for want in (2.125, 3.0625):
        optimizer.step([None, one])
        assert optimizer.state[0]["ema"][0] == want
    optimizer.ema_decay = None
    optimizer.step([one, one])
    assert optimizer.state[0]["ema"][0] == 3.0625
    optimizer.ema_decay = 0.5
    optimizer.step([None, one])
    assert optimizer.state[0]["ema"][0] == 3.03125
