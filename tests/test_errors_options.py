"""Options that are wrong, alone or together, wherever they are given: refused, and nothing has changed."""

import math

import numpy as np
import pytest
import torch
from refusals import (
    BAD_NUMBERS,
    F32,
    F64,
    KINDS,
    OPTIONS,
    OTHERS,
    Subject,
    assert_refused,
    bad_values,
    every_option,
    frozen,
    refused,
    values,
)

import fastopt


@every_option
def test_options_of_constructors(kind, name):
    """A constructor refuses them, for all parameters and in a group; the parameters are as before and can be used."""
    make, defaults = {**KINDS, **OTHERS}[kind]
    params = values()
    for value, error in bad_values(name):
        for call in (
            lambda value=value: make(params, **{**defaults, name: value}),
            lambda value=value: make([{"params": params, name: value}], **defaults),
            lambda value=value: make([{"params": params}, {"params": np.ones(2), name: value}], **defaults),
        ):
            assert_refused(error, [name, "must be"], call, value)
    assert frozen(params) == frozen(values())
    make(params, **defaults).step(values(5))


@every_option
def test_options_assigned(kind, name):
    """Assigning them to a group raises at once; the former value stays."""
    for value, error in bad_values(name):
        act = lambda s, value=value: s.group.__setitem__(name, value)  # noqa: E731
        refused(error, [name, "must be"], act, value, kind=kind, steps=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", [1, 3])
def test_values_of_schedules(kind, when):
    """A schedule's value is checked at every step; the next step asks the schedule again."""
    for value, error in BAD_NUMBERS:
        wrong = []
        schedule = lambda step, wrong=wrong: wrong[0] if wrong and step == when else 0.1 / (1 + step)  # noqa: E731
        victim, twin = (Subject(kind, steps=when, lr=schedule) for _ in range(2))
        before = victim.snapshot()
        wrong.append(value)
        for _ in range(2):
            assert_refused(error, ["lr", "must be"], lambda victim=victim: victim.opt.step(victim.grads()), value)
            assert victim.snapshot() == before
        wrong.clear()
        assert victim.steps() == twin.steps()


@pytest.mark.parametrize("kind", KINDS)
def test_first_values_of_schedules(kind):
    """The value for step 0 is checked at construction, and the present one where a schedule is assigned."""
    for value, error in BAD_NUMBERS:
        schedule = lambda step, value=value: value if step in (0, 2) else 0.1  # noqa: E731
        assert_refused(error, ["lr", "must be"], lambda schedule=schedule: Subject(kind, lr=schedule), value)
        act = lambda s, schedule=schedule: s.group.__setitem__("lr", schedule)  # noqa: E731
        refused(error, ["lr", "must be"], act, value, kind=kind, steps=2)


def test_schedules_that_raise():
    """The error of a schedule itself comes through, and nothing has changed."""

    def schedule(step):
        if broken:
            raise ZeroDivisionError("mine")
        return 0.1

    broken = False
    victim, twin = (Subject(steps=1, lr=schedule, bound=True) for _ in range(2))
    before = victim.snapshot()
    broken = True
    for act in (victim.opt.step, lambda: victim.opt.step(victim.grads())):
        with pytest.raises(ZeroDivisionError, match="mine"):
            act()
    assert victim.snapshot() == before
    broken = False
    assert victim.steps() == twin.steps()


def test_a_bad_rate_of_one_group_stops_all_groups():
    """Rates of all groups are checked before any is taken."""
    box = [0.1]
    p, q = np.ones(3, F32), np.ones(3, F64)
    opt = fastopt.SGD([{"params": p, "lr": lambda step: 0.5 / (1 + step)}, {"params": q, "lr": lambda step: box[0]}])
    opt.step([np.ones(3, F32), np.ones(3)])
    box[0] = -1.0
    before = frozen([p, q, opt.state_dict()])
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        opt.step([np.ones(3, F32), np.ones(3)])
    assert frozen([p, q, opt.state_dict()]) == before
    box[0] = 0.1
    opt.step([np.ones(3, F32), np.ones(3)])
    np.testing.assert_array_equal(p, F32(0.25))
    np.testing.assert_array_equal(q, 1 - 0.1 - 0.1)


def test_a_failed_first_step_leaves_no_prepared_state():
    """States begin with what the group says at the step that succeeds, not at one that failed before."""
    box = [0.1]
    p = np.ones(4, F32)
    opt = fastopt.Adagrad(p, lr=lambda step: box[0])
    box[0] = math.nan
    with pytest.raises(ValueError, match="lr must be"):
        opt.step(np.ones(4, F32))
    assert dict(opt.state) == {}
    box[0] = 0.1
    opt.param_groups[0]["initial_accumulator_value"] = 3.0
    opt.step(np.ones(4, F32))
    np.testing.assert_array_equal(opt.state[0]["sum"], F32(4))
    np.testing.assert_array_equal(p, F32(1) - F32(0.1) * F32(1) / (F32(2) + F32(1e-10)))


@pytest.mark.parametrize(
    "options",
    [
        {"nesterov": True},
        {"nesterov": True, "momentum": 0.0},
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        {"nesterov": True, "momentum": 0.9, "dampening": -0.1},
    ],
)
def test_nesterov_without_momentum_or_with_dampening(options):
    """Refused by the constructor, in any group, by load_state_dict and by the single call."""
    params = values()
    for call in (
        lambda: fastopt.SGD(params, **options),
        lambda: fastopt.SGD([{"params": params, **options}]),
        lambda: fastopt.fused.momentum(
            params["w1"], values(1)["w1"], values(2)["w1"], **{"lr": 0.1, "momentum": 0.0, **options}
        ),
    ):
        with pytest.raises(ValueError, match="Nesterov momentum requires a momentum and zero dampening"):
            call()
    assert frozen(params) == frozen(values())

    def load(s):
        state_dict = s.opt.state_dict()
        state_dict["param_groups"][0].update({"momentum": 0.0, **options})
        s.opt.load_state_dict(state_dict)

    refused(ValueError, ["Nesterov momentum requires"], load, steps=1)


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("nesterov", {"momentum": 0.0}),
        ("nesterov", {"dampening": 0.5}),
        ("momentum", {"nesterov": True}),
        ("sgd", {"nesterov": True}),
    ],
)
def test_contradictions_between_steps(kind, change, bound):
    """Options that contradict each other raise at every step until they no longer do."""
    victim, twin = (Subject(kind, steps=2, bound=bound) for _ in range(2))
    before = victim.snapshot()
    former = {name: victim.group[name] for name in change}
    for name, value in change.items():
        victim.group[name] = value
    for _ in range(2):
        with pytest.raises(ValueError, match="Nesterov momentum requires a momentum and zero dampening"):
            victim.opt.step() if bound else victim.opt.step(victim.grads())
    for name, value in former.items():
        victim.group[name] = value
    assert victim.snapshot() == before
    if bound:
        victim.opt.step()
        twin.opt.step()
    assert victim.steps() == twin.steps()


# Options that do not exist


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("name", ["learning_rate", "beta", "step", "foreach", "Lr"])
def test_unknown_options(kind, name):
    """Unknown to the constructor, in a group, and when assigned."""
    make, defaults = {**KINDS, **OTHERS}[kind]
    params = values()
    with pytest.raises(TypeError, match=name):
        make(params, **defaults, **{name: 0.1})
    with pytest.raises(ValueError, match=f"unknown option '{name}'.*lr"):
        make([{"params": params, name: 0.1}], **defaults)
    assert frozen(params) == frozen(values())
    if name != "step":
        refused(ValueError, [f"unknown option '{name}'", "lr"], lambda s: s.group.__setitem__(name, 0.1), kind=kind)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize(
    ("error", "words", "act"),
    [
        (ValueError, ["lr", "deleted"], lambda s: s.group.__delitem__("lr")),
        (ValueError, ["deleted"], lambda s: s.group.pop("weight_decay")),
        (ValueError, ["deleted"], lambda s: s.group.clear()),
        (ValueError, ["parameters", "add_param_group"], lambda s: s.group.__setitem__("params", s.params)),
        (ValueError, ["step", "0 or more"], lambda s: s.group.__setitem__("step", -1)),
        (TypeError, ["step", "int"], lambda s: s.group.__setitem__("step", 1.0)),
        (TypeError, ["step", "int"], lambda s: s.group.__setitem__("step", True)),
        (TypeError, ["step", "int"], lambda s: s.group.__setitem__("step", np.array(1.5))),
        (TypeError, ["step", "int"], lambda s: s.group.__setitem__("step", np.array([1]))),
        (TypeError, ["step", "int"], lambda s: s.group.__setitem__("step", torch.tensor(1.0))),
        (ValueError, ["step"], lambda s: s.group.__setitem__("step", 10**400)),
        (ValueError, ["unknown option 'beta'"], lambda s: s.group.update(beta=0.1)),
        (ValueError, ["weight_decay"], lambda s: s.group.update(maximize=True, weight_decay=-1)),
    ],
)
def test_groups_keep_their_entries(kind, error, words, act):
    """Entries can be neither deleted nor exchanged for nonsense; an update of several is all or nothing."""
    refused(error, words, act, kind=kind, steps=2)


def test_groups_cannot_be_exchanged():
    """What would be dropped in silence raises."""
    opt = Subject().opt
    for act in (
        lambda: setattr(opt, "param_groups", []),
        lambda: opt.param_groups.__setitem__(0, {"lr": 1.0}),
        lambda: opt.param_groups.append({"params": np.ones(3)}),
        lambda: setattr(opt, "state", {}),
        lambda: opt.state.__setitem__("w1", {}),
    ):
        with pytest.raises((TypeError, AttributeError)):
            act()
