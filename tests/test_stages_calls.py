"""What users do with the stages: bad options, groups, averages in the parameters' place, gradients set to zero."""

import copy
import math

import numpy as np
import pytest
import torch
from foreign_stand_in import Exported, Immutable
from pairs import usually
from rule_cases import OPTIMIZERS
from stage_cases import AVERAGE, NORM, TOGETHER, VALUE, arrays, gradients, seen

import fastopt
from fastopt.options import STAGE_DEFAULTS, STAGE_OPTIONS
from fastopt.schedules import Linear
from fastopt.step.chunks import CHUNK_ELEMENTS

# Options

ABOVE_0 = [0.0, -1.0, math.nan]
BAD = [
    *[("max_grad_norm", value, ValueError) for value in (*ABOVE_0, -math.inf)],
    *[("clip_grad_value", value, ValueError) for value in (*ABOVE_0, math.inf)],
    *[("ema_decay", value, ValueError) for value in (-0.1, 1.1, math.nan)],
    *[(name, value, TypeError) for name in STAGE_OPTIONS for value in ("1", [0.5], np.ones(2))],
    *[(name, True, TypeError) for name in ("max_grad_norm", "clip_grad_value", "ema_decay")],
    *[("skip_nonfinite", value, TypeError) for value in (None, 0.5, lambda step: True)],
    ("max_grad_norm", lambda step: -1.0, ValueError),
    ("ema_decay", lambda step: "1", TypeError),
]
bad_options = pytest.mark.parametrize(("name", "value", "error"), BAD, ids=map(str, range(len(BAD))))


def trained(**options):
    """Parameters, and an optimizer that has taken steps."""
    params = arrays([(5,), (3, 2)])
    optimizer = fastopt.SGD(params, lr=0.1, momentum=0.9, **options)
    for step in range(3):
        optimizer.step(gradients(params, step))
    return params, optimizer


@bad_options
def test_bad_options_are_refused_at_once(name, value, error):
    """By the constructor, and wherever they can be assigned or loaded; the optimizer goes on as before."""
    for make in (fastopt.SGD, fastopt.AdamW):
        with pytest.raises(error, match=name):
            make(np.ones(3), **{name: value})
        with pytest.raises(error, match=name):
            make([{"params": np.ones(3), name: value}])
    params, optimizer = trained(**TOGETHER)
    twins, other = trained(**TOGETHER)
    before = repr(optimizer.state_dict())
    with pytest.raises(error, match=name):
        setattr(optimizer, name, value)
    with pytest.raises(error, match=name):
        optimizer.param_groups[0][name] = value
    if not callable(value):
        saved = copy.deepcopy(optimizer.state_dict())
        saved["param_groups"][0][name] = value
        with pytest.raises(error, match=name):
            optimizer.load_state_dict(saved)
    assert repr(optimizer.state_dict()) == before
    optimizer.step(gradients(params, 5))
    other.step(gradients(twins, 5))
    assert seen(optimizer) == seen(other)


def test_a_schedule_that_gets_bad_changes_nothing():
    """The step at which it is out of range raises, and is not taken; another number ends it."""
    for bad in (-1.0, math.nan, "1"):
        for name in ("max_grad_norm", "clip_grad_value", "ema_decay"):
            params, optimizer = trained(**TOGETHER)
            setattr(optimizer, name, lambda step, bad=bad: 0.5 if step < 5 else bad)
            for step in range(2):
                optimizer.step(gradients(params, step))
            before = seen(optimizer)
            for _ in range(2):
                with pytest.raises((TypeError, ValueError), match=name):
                    optimizer.step(gradients(params, 9))
                assert seen(optimizer) == before
            setattr(optimizer, name, 0.5)
            optimizer.step(gradients(params, 9))
            assert optimizer.param_groups[0]["step"] == 6


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match=r"SGD.__init__\(\) got an unexpected keyword argument 'max_norm'"):
        fastopt.SGD(np.ones(3), max_norm=1.0)
    with pytest.raises(TypeError, match=r"AdamW.__init__\(\) got an unexpected keyword argument 'centered'"):
        fastopt.AdamW(np.ones(3), centered=True)
    with pytest.raises(ValueError, match="unknown option 'max_norm'"):
        fastopt.SGD([{"params": np.ones(3), "max_norm": 1.0}])


def test_options_are_attributes():
    """With their defaults until they are in use; a schedule shows the number of the latest step."""
    params, optimizer = trained()
    assert {name: getattr(optimizer, name) for name in STAGE_OPTIONS} == STAGE_DEFAULTS
    assert optimizer.grad_norm is None
    assert optimizer.skipped_steps == 0
    assert not {*STAGE_OPTIONS} & {*optimizer.param_groups[0]}
    optimizer.max_grad_norm = Linear(1.0, 0.0, 10)
    optimizer.step(gradients(params, 3))
    assert optimizer.max_grad_norm == optimizer.param_groups[0]["max_grad_norm"] == pytest.approx(0.7)
    assert optimizer.grad_norm > 0
    optimizer.max_grad_norm = None
    assert optimizer.max_grad_norm is None
    assert "max_grad_norm=None" in repr(optimizer)


def test_groups_must_agree():
    """At the next step, which says which group, and how to do it; that way works."""
    p, q = np.zeros(1), np.zeros(1)
    optimizer = fastopt.SGD([{"params": p}, {"params": q, "clip_grad_value": 0.5}], lr=1.0)
    grads = [np.ones(1), np.ones(1)]
    message = (
        r"clip_grad_value belongs to the optimizer as a whole: group 1 has 0.5, and group 0 None; assign it to the"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            optimizer.step(grads)
        assert (p[0], q[0], optimizer.param_groups[0]["step"]) == (0.0, 0.0, 0)
    optimizer.clip_grad_value = 0.5
    for want in (-0.5, -1.0, -1.5):
        optimizer.step(grads)
        assert (p[0], q[0]) == (want, want)
    optimizer.param_groups[1]["clip_grad_value"] = 0.25
    with pytest.raises(ValueError, match=r"group 1 has 0\.25, and group 0 0\.5"):
        optimizer.step(grads)
    assert (p[0], q[0]) == (-1.5, -1.5)
    optimizer.clip_grad_value = Linear(0.25, 0.5, 2)  # of which both groups have the same
    optimizer.step(grads)
    assert p[0] == q[0]
    optimizer.add_param_group({"params": np.zeros(1), "clip_grad_value": 3.0})
    with pytest.raises(ValueError, match=r"group 2 has 3\.0"):
        optimizer.step([*grads, np.ones(1)])
    optimizer.clip_grad_value = 3.0
    optimizer.step([*grads, np.ones(1)])


def test_a_group_that_is_added_later_has_the_options_of_the_constructor():
    """As all defaults; its parameters are averaged from their own first step on."""
    p, q = np.zeros(1), np.full(1, 8.0)
    optimizer = fastopt.SGD([{"params": p}], lr=1.0, **AVERAGE, **NORM)
    optimizer.step([np.ones(1)])
    optimizer.add_param_group({"params": q})
    optimizer.step([np.array([3.0]), np.array([4.0])])
    assert optimizer.grad_norm == 5.0
    np.testing.assert_allclose(optimizer.state[1]["ema"], 0.9 * 8 + 0.1 * (8 - 0.4), rtol=1e-6)


def test_checkpoints_without_the_options():
    """Old ones, and those of optimizers that do not use them: the loading optimizer keeps its own."""
    params, optimizer = trained()
    saved = optimizer.state_dict()
    other = fastopt.SGD([p.copy() for p in params], lr=0.1, momentum=0.9, **TOGETHER)
    other.load_state_dict(saved)
    assert {name: getattr(other, name) for name in TOGETHER} == TOGETHER
    other.step(gradients(params, 3))
    assert "ema" in other.state[0]
    optimizer.load_state_dict(other.state_dict())
    assert {name: getattr(optimizer, name) for name in TOGETHER} == TOGETHER


def test_a_state_dict_with_another_average_is_refused():
    """Of a wrong shape or dtype, by name."""
    _, optimizer = trained(**AVERAGE)
    for bad in (np.ones(4, np.float32), np.ones(5, np.int64), "ema"):
        saved = optimizer.state_dict()
        saved["state"][0]["ema"] = bad
        before = seen(optimizer)
        with pytest.raises((TypeError, ValueError), match="the ema of parameter 0 in the state dict"):
            optimizer.load_state_dict(saved)
        assert seen(optimizer) == before


# Averages in the parameters' place


@pytest.mark.parametrize("dtype", usually([np.float32], [np.float32, np.float64]))
def test_averages_stand_in_the_parameters_place(dtype):
    """And the parameters come back to the bit, also where they are not finite."""
    params = arrays([(CHUNK_ELEMENTS + 1,), (2, 3), (2,)], dtype)
    params[0][:2] = -0.0, 1e-42
    optimizer = fastopt.AdamW(params, **AVERAGE)
    for step in range(3):
        optimizer.step([*gradients(params[:2], step), None])
    params[0][3:5] = math.nan, math.inf
    before = seen(optimizer)
    kept = params[2].copy()
    with optimizer.swap_ema_weights() as nothing:
        assert nothing is None
        for i in (0, 1):
            np.testing.assert_array_equal(params[i], optimizer.state[i]["ema"])
        np.testing.assert_array_equal(params[2], kept)  # which took no step
        params[1][...] = 5.0  # what is written is lost
    assert seen(optimizer) == before


def test_parameters_come_back_after_an_exception():
    params, optimizer = trained(**AVERAGE)
    before = seen(optimizer)
    for error in (ZeroDivisionError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), optimizer.swap_ema_weights():
            raise error
        assert seen(optimizer) == before
        optimizer.step(gradients(params, 1))
        before = seen(optimizer)


def test_nothing_else_can_be_done_meanwhile():
    """Steps, loading, further groups and a second swap raise, change nothing, and work after the block."""
    params = arrays([(5,)])
    optimizer = fastopt.SGD([{"params": params}], lr=0.1, momentum=0.9, **AVERAGE)
    for step in range(3):
        optimizer.step([gradients(params, step)])
    saved = optimizer.state_dict()
    optimizer.bind([gradients(params, 3)])

    def swap():
        with optimizer.swap_ema_weights():
            pass

    acts = [
        lambda: optimizer.step([gradients(params, 4)]),
        optimizer.step,
        lambda: optimizer.step([gradients(params, 4)], zero_grads=True),
        lambda: optimizer.load_state_dict(saved),
        lambda: optimizer.add_param_group({"params": np.ones(2)}),
        swap,
    ]
    with optimizer.swap_ema_weights():
        inside = seen(optimizer)
        for act in acts:
            with pytest.raises(RuntimeError, match=r"leave the block of swap_ema_weights\(\)"):
                act()
            assert seen(optimizer) == inside
        assert repr(optimizer.state_dict()["state"]) == repr(saved["state"])
    for act in (*acts[:4], acts[5]):
        act()


def test_there_is_nothing_to_swap_before_a_step():
    """Nor where no average is kept; the message's way out works."""
    params, optimizer = trained()
    with pytest.raises(RuntimeError, match="set ema_decay, and take a step"), optimizer.swap_ema_weights():
        pass
    optimizer.ema_decay = 0.5
    with pytest.raises(RuntimeError, match="take a step"), optimizer.swap_ema_weights():
        pass
    optimizer.step(gradients(params, 3))
    with optimizer.swap_ema_weights():
        np.testing.assert_array_equal(params[0], optimizer.state[0]["ema"])


def test_a_schedule_cannot_swap():
    """It is asked inside a step."""
    p, asked = np.ones(2), []

    def schedule(step):
        if step:
            with optimizer.swap_ema_weights():
                asked.append(step)
        return 0.1

    optimizer = fastopt.SGD(p, lr=schedule, **AVERAGE)
    optimizer.step(np.ones(2))
    with pytest.raises(RuntimeError, match="inside a step"):
        optimizer.step(np.ones(2))
    assert not asked
    assert optimizer.param_groups[0]["step"] == 1


@pytest.mark.parametrize(
    "rule",
    usually(["adamw_amsgrad"], ["adamw_amsgrad", "rmsprop_centered_momentum", "adam_amsgrad", "rmsprop_centered"]),
)
def test_all_states_beside_an_average(rule):
    """The average is that of the parameter, and no state is in its place."""
    make, options = OPTIMIZERS[rule]
    params, twins = arrays(), arrays()
    optimizer, plain = make(params, **options, ema_decay=0.5), make(twins, **options)
    wanted = [None] * len(params)
    for step in range(4):
        previous = [p.astype(np.float64) for p in params]
        for opt, of in ((optimizer, params), (plain, twins)):
            opt.step(gradients(of, step))
        wanted = [0.5 * (q if e is None else e) + 0.5 * p for e, q, p in zip(wanted, previous, params, strict=True)]
    for i, want in enumerate(wanted):
        assert params[i].tobytes() == twins[i].tobytes()
        assert {*optimizer.state[i]} == {*plain.state[i], "ema"}
        for name, value in plain.state[i].items():
            np.testing.assert_array_equal(optimizer.state[i][name], value)
        np.testing.assert_allclose(optimizer.state[i]["ema"], want, rtol=0, atol=1e-6)


# Gradients that are set to zero


def test_gradients_that_cannot_be_set_to_zero_are_refused():
    """Before anything changes, by name; without zero_grads the step goes on."""
    whole = np.ones(8, np.float32)
    read_only = np.ones(5, np.float32)
    read_only.flags.writeable = False
    for bad, message in [
        (
            [read_only, np.ones(5, np.float32)],
            "the gradient of parameter 0 cannot be set to zero, since it is read-only",
        ),
        ([np.ones(5, np.float32), np.broadcast_to(np.float32(1), (5,))], "the gradient of parameter 1 .* read-only"),
        ([whole[:5], whole[3:]], "the gradient of parameter [01] and the gradient of parameter [01] overlap"),
        ([whole[:5], whole[:5]], "the gradient of parameter [01] and the gradient of parameter [01] overlap"),
    ]:
        params = arrays([(5,), (5,)])
        optimizer = fastopt.SGD(params, lr=0.1)
        for number in range(2):
            before = seen(optimizer), [g.copy() for g in bad]
            for _ in range(2):
                with pytest.raises(ValueError, match=f"{message}.*call step without zero_grads"):
                    optimizer.step(bad, zero_grads=True)
                assert seen(optimizer) == before[0]
                np.testing.assert_array_equal(bad, before[1])
            optimizer.step(bad)
            np.testing.assert_array_equal(bad, before[1])
            assert optimizer.state[0]["step"] == 2 * number + 1
            optimizer.step([np.ones(5, np.float32) for _ in params], zero_grads=True)


NEVER_CHANGE = {
    "DLPack": (Exported, (3,)),
    "like jax": (Immutable, (3,)),
    "bytes": (lambda g: memoryview(g.tobytes()).cast("f"), (3,)),
    "scalar": (lambda g: g[0], ()),
}


@pytest.mark.parametrize(("make", "shape"), NEVER_CHANGE.values(), ids=NEVER_CHANGE)
def test_gradients_of_others_that_never_change(make, shape):
    """They, or copies that NumPy makes of them, are not written."""
    p = np.zeros(shape, np.float32)
    optimizer = fastopt.SGD(p, lr=1.0)
    for step in range(1, 4):
        g = make(np.ones(3, np.float32))
        with pytest.raises(ValueError, match="read-only: call step without zero_grads"):
            optimizer.step(g, zero_grads=True)
        assert not (p + step - 1).any()
        optimizer.step(g)
        assert not (p + step).any()


def test_gradients_in_the_memory_of_a_tensor_are_set_to_zero():
    """Since it can be written."""
    p = np.zeros(3, np.float32)
    optimizer = fastopt.SGD(p, lr=1.0)
    for step in range(1, 4):
        g = torch.ones(3)
        optimizer.step(g, zero_grads=True)
        assert not g.any()
        assert not (p + step).any()


def test_bound_gradients_are_set_to_zero():
    """At each step that asks for it, whoever takes it; they can be accumulated into, as in torch."""
    [p], [g] = arrays([(2 * CHUNK_ELEMENTS,)]), arrays([(2 * CHUNK_ELEMENTS,)], seed=1)
    q = p.copy()
    optimizer, twin = fastopt.SGD(p, lr=0.1), fastopt.SGD(q, lr=0.1)
    optimizer.bind(g)
    for step in range(6):
        [more] = gradients([p], step)
        g += more
        given = g.copy()
        optimizer.step(zero_grads=step % 3 != 0)
        twin.step(given)
        np.testing.assert_array_equal(p, q)
        np.testing.assert_array_equal(g, given if step % 3 == 0 else np.zeros_like(g))


def test_gradients_of_skipped_steps_are_set_to_zero_too():
    """Otherwise NaN would stay for good where gradients are added up."""
    for options in (NORM, {**NORM, **AVERAGE, **VALUE}):
        [p] = arrays([(CHUNK_ELEMENTS + 1,)])
        optimizer = fastopt.SGD(p, lr=0.1, skip_nonfinite=True, **options)
        for step in range(4):
            [g] = gradients([p], step)
            g[-1] = math.nan if step % 2 == 0 else g[-1]
            before = p.copy()
            optimizer.step(g, zero_grads=True)
            assert not g.any()
            assert (p == before).all() == (step % 2 == 0)
        assert optimizer.skipped_steps == 2


def test_the_last_factor_does_not_stay():
    """The extension has written it; without clipping, the next gradients are taken as they are."""
    p = np.zeros(3)
    optimizer = fastopt.SGD(p, lr=1.0, max_grad_norm=1.0)
    for size in (0.1, 0.1, 10.0):  # the first by Python, the last one alone is clipped
        optimizer.step(np.full(3, size))
    optimizer.max_grad_norm = None
    before = p.copy()
    optimizer.step(np.full(3, 10.0))
    np.testing.assert_array_equal(p, before - 10.0)


def test_an_average_that_begins_later_begins_nothing_else():
    """The momentum has begun: its gradients go on being dampened."""
    p, twin = np.ones(3, np.float32), np.ones(3, np.float32)
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    averaged, plain = fastopt.SGD(p, **options), fastopt.SGD(twin, **options)
    for step in range(4):
        if step == 2:
            averaged.ema_decay = 0.5
        averaged.step(np.ones(3, np.float32))
        plain.step(np.ones(3, np.float32))
    assert p.tobytes() == twin.tobytes()


def test_what_a_skipped_step_would_have_begun_begins_later():
    """The average starts at the parameter of then, which somebody may have written meanwhile."""
    p = np.zeros(3)
    optimizer = fastopt.SGD(p, lr=0.1, skip_nonfinite=True, ema_decay=0.5)
    optimizer.step(np.full(3, np.inf))
    p[...] = 5.0
    optimizer.step(np.zeros(3))
    np.testing.assert_array_equal(optimizer.state[0]["ema"], 5.0)
