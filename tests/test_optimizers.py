"""What an optimizer does for its user: groups, schedules, late gradients, binding, state dicts."""

import copy
import json
import pickle
import signal
import threading
import time

import numpy as np
import pytest
from fastopt.bench import oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_cases import OPTIMIZERS
from tolerances import TRAJECTORY, assert_close

import fastopt
from fastopt import schedules
from fastopt.rules import RULES


def arrays(rng, *shapes, dtype=np.float32):
    """Random arrays of these shapes."""
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def test_params_in_every_form():
    """One array, a list, a tuple, a generator, a dict, groups of each: gradients mirror them."""
    rng = np.random.default_rng(0)
    g = arrays(rng, (3,), (2, 2))
    forms = [
        (lambda p: p[0], lambda g: g[0]),
        (lambda p: [p[0], p[1]], lambda g: [g[0], g[1]]),
        (lambda p: (p[0], p[1]), lambda g: (g[0], g[1])),
        (lambda p: (x for x in p), list),
        (lambda p: {"a": p[0], "b": p[1]}, lambda g: {"b": g[1], "a": g[0]}),
        (lambda p: [{"params": p[0]}, {"params": {"b": p[1]}}], lambda g: [g[0], {"b": g[1]}]),
        (lambda p: [{"params": [p[0]]}, {"params": [p[1]]}], lambda g: [[g[0]], [g[1]]]),
    ]
    for params, grads in forms:
        p = [np.ones((3,), np.float32), np.ones((2, 2), np.float32)]
        opt = fastopt.SGD(params(p), lr=0.5)
        assert opt.step(grads(g)) is None
        np.testing.assert_array_equal(p[0], 1 - np.float32(0.5) * g[0])
        trained = len(opt.state)
        np.testing.assert_array_equal(p[1], 1 - np.float32(0.5) * g[1] if trained == 2 else 1)


def test_groups_have_their_own_options_and_keys():
    """Names are keys, the others are counted across groups; defaults fill what a group leaves open."""
    a, b, c = (np.ones(2, np.float32) for _ in range(3))
    opt = fastopt.SGD([{"params": [a], "lr": 0.5}, {"params": {"b": b}}, {"params": c, "maximize": True}], lr=0.25)
    assert [group["lr"] for group in opt.param_groups] == [0.5, 0.25, 0.25]
    one = np.ones(2, np.float32)
    opt.step([[one], {"b": one}, one])
    assert (a[0], b[0], c[0]) == (0.5, 0.75, 1.25)
    assert list(opt.state) == [0, "b", 2]
    assert [group["params"] for group in opt.state_dict()["param_groups"]] == [[0], ["b"], [2]]


def test_mixed_dtypes_and_rules_in_one_optimizer():
    """Each (rule, dtype) is one launch, of parameters that do not stand side by side; together they are one step."""
    rng = np.random.default_rng(1)
    p = [*arrays(rng, 5, 6), *arrays(rng, 7, 8, dtype=np.float64), *arrays(rng, 9, 10)]
    options = [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9}] * 3
    trainer = oracle.Trainer(p)
    opt = fastopt.SGD([{"params": [x], **o} for x, o in zip(p, options, strict=True)])
    for _ in range(6):
        g = [rng.standard_normal(x.shape).astype(x.dtype) for x in p]
        opt.step([[x] for x in g])
        for rule in ("sgd", "momentum"):
            mine = [x if ("momentum" in o) == (rule == "momentum") else None for x, o in zip(g, options, strict=True)]
            trainer.step(rule, mine, options)
    for x, want in zip(p, trainer.params, strict=True):
        assert_close(x, want, TRAJECTORY)


def test_schedule_gets_the_count_of_completed_steps():
    """From 0, in each group its own; the current number stands in the group, and is the one that was used."""
    p, q = np.zeros(1), np.zeros(1)
    seen = []

    def schedule(step):
        seen.append(step)
        return 1.0 / (step + 1)

    opt = fastopt.SGD([{"params": p}, {"params": q, "lr": lambda step: 10.0 * step}], lr=schedule)
    assert opt.param_groups[0]["lr"] == 1.0
    for step in range(4):
        opt.step([np.ones(1), np.ones(1)])
        assert opt.param_groups[0]["lr"] == 1.0 / (step + 1)
        assert opt.param_groups[1]["lr"] == 10.0 * step
    assert seen[1:] == [0, 1, 2, 3]
    assert p[0] == pytest.approx(-(1 + 1 / 2 + 1 / 3 + 1 / 4))
    assert q[0] == -60.0


@pytest.mark.parametrize("rule", ["momentum", "nesterov", "adagrad", "rmsprop_momentum", "adamw"])
def test_schedules_drive_rate_momentum_and_weight_decay(rule):
    """Each step by the numbers of its own, in each group its own, as the oracle has it."""
    rng = np.random.default_rng(11)
    options = [
        {"lr": schedules.OneCycle(0.1, 30), "weight_decay": schedules.Linear(0.1, 0.0, 20)},
        {"lr": schedules.Warmup(schedules.Cosine(0.2, 20), 5), "weight_decay": 0.01},
    ]
    if "momentum" in RULES[rule].options:
        options[0]["momentum"] = options[0]["lr"].momentum(0.5, 0.9)
        options[1]["momentum"] = lambda step: 0.3 + 0.01 * step
    p = arrays(rng, (4, 3), (5,))
    trainer = oracle.Trainer(p)
    groups = [{"params": [x], **o} for x, o in zip(p, options, strict=True)]
    make, defaults = OPTIMIZERS[rule]
    opt = make(groups, **defaults)
    for step in range(40):
        g = [rng.standard_normal(x.shape).astype(x.dtype) for x in p]
        opt.step([[x] for x in g])
        now = [{name: value(step) if callable(value) else value for name, value in o.items()} for o in options]
        trainer.step(rule, g, now)
        for group, numbers in zip(opt.param_groups, now, strict=True):
            assert {name: group[name] for name in numbers} == numbers
    for x, want in zip(p, trainer.params, strict=True):
        assert_close(x, want, TRAJECTORY)


def test_a_schedule_without_the_momentum_that_nesterov_needs():
    """The step at which it is 0 raises, and changes nothing."""
    p = np.zeros(1)
    opt = fastopt.SGD(p, lr=1.0, momentum=schedules.Linear(0.5, 0.0, 2), nesterov=True)
    opt.step(np.ones(1))
    opt.step(np.ones(1))
    before = p.copy()
    with pytest.raises(ValueError, match="Nesterov momentum requires a momentum"):
        opt.step(np.ones(1))
    assert (p == before).all()
    assert opt.param_groups[0]["step"] == 2
    assert opt.param_groups[0]["momentum"] == 0.25


def test_a_group_describes_its_schedules():
    """As plain Python, beside the numbers; a number ends a schedule, and the description with it."""
    schedule = schedules.Warmup(schedules.Cosine(0.1, 100), 10)
    opt = fastopt.SGD(np.zeros(1), lr=schedule, momentum=0.9, weight_decay=lambda step: 0.0)
    group = opt.param_groups[0]
    assert group["lr"] == 0.0
    assert group["schedules"] == {"lr": schedule.to_dict(), "weight_decay": {"name": "callable"}}
    assert json.loads(json.dumps(group["schedules"])) == group["schedules"]
    assert group.schedules["lr"] is schedule
    assert repr(schedule) in repr(opt)
    group["schedules"]["lr"]["lr"] = 5.0  # a copy
    with pytest.raises(ValueError, match="assign a schedule to the option itself"):
        group["schedules"] = {}
    group["weight_decay"] = 0
    group["lr"] = 0.3
    group["momentum"] = schedules.Constant(0.5)
    assert group["schedules"] == {"momentum": {"name": "Constant", "lr": 0.5}}
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.5, 0.0)
    opt.step(np.ones(1))
    assert group["lr"] == 0.3


def test_only_what_may_change_can_be_a_schedule():
    """Dampening, eps and flags are numbers and flags."""
    for make, name in [(fastopt.SGD, "dampening"), (fastopt.SGD, "nesterov"), (fastopt.Adagrad, "eps")]:
        with pytest.raises(TypeError, match=name):
            make(np.zeros(1), **{name: schedules.Constant(0.1)})


def test_a_state_dict_brings_its_schedules():
    """Into an optimizer that was made with others, or with none; and takes those away that it does not have."""
    rng = np.random.default_rng(12)
    schedule = schedules.OneCycle(0.1, 20)
    p = arrays(rng, (4,))
    opt = fastopt.SGD(p, lr=schedule, momentum=schedule.momentum())
    for _ in range(7):
        opt.step([rng.standard_normal(4).astype(p[0].dtype)])
    saved = json.loads(json.dumps(opt.state_dict()["param_groups"]))
    state = opt.state_dict()["state"]
    others = [{"lr": 0.5}, {"lr": schedules.Cosine(0.3, 5), "weight_decay": schedules.Constant(0.1)}]
    for options in others:
        q = [x.copy() for x in p]
        resumed = fastopt.SGD(q, **options)
        resumed.load_state_dict({"state": state, "param_groups": saved})
        assert resumed.param_groups[0].schedules == {"lr": schedule, "momentum": schedule.momentum()}
        g = [rng.standard_normal(4).astype(p[0].dtype)]
        opt.load_state_dict({"state": state, "param_groups": saved})
        kept = [x.copy() for x in p]
        opt.step(g)
        resumed.step(g)
        np.testing.assert_array_equal(p[0], q[0])
        assert resumed.param_groups[0]["lr"] == schedule(7)
        p[0][...] = kept[0]


def test_a_function_cannot_be_saved():
    """The optimizer's own function replaces it; without one, loading says what to do, and changes nothing."""
    opt = fastopt.SGD(np.zeros(1), lr=lambda step: 1.0 / (1 + step))
    opt.step(np.ones(1))
    saved = opt.state_dict()
    other = fastopt.SGD(np.zeros(1), lr=lambda step: 7.0)
    other.load_state_dict(saved)
    other.step(np.ones(1))
    assert other.param_groups[0]["lr"] == 7.0
    fixed = fastopt.SGD(np.zeros(1), lr=0.5)
    with pytest.raises(ValueError, match="assign it to the group before loading"):
        fixed.load_state_dict(saved)
    assert fixed.param_groups[0]["lr"] == 0.5
    assert fixed.param_groups[0]["step"] == 0
    del saved["param_groups"][0]["schedules"]["lr"]
    fixed.load_state_dict(saved)
    assert fixed.param_groups[0]["lr"] == 1.0


def test_a_plateau_drives_and_is_kept():
    """Its memory is in the state dict; the object that drives stays the same when one is loaded."""

    def make():
        plateau = schedules.Plateau(1.0, factor=0.5, patience=1)
        return plateau, fastopt.SGD(np.zeros(1), lr=plateau)

    plateau, opt = make()
    for metric in (3.0, 2.0, 2.0, 2.0):
        opt.step(np.ones(1))
        plateau.update(metric)
    assert opt.param_groups[0]["lr"] == 1.0  # of the latest step
    opt.step(np.ones(1))
    assert opt.param_groups[0]["lr"] == plateau.lr == 0.5
    saved = json.loads(json.dumps(opt.state_dict()["param_groups"]))
    again, resumed = make()
    resumed.load_state_dict({"state": opt.state_dict()["state"], "param_groups": saved})
    assert resumed.param_groups[0].schedules["lr"] is again
    assert again.state_dict() == plateau.state_dict()
    for metric in (2.0, 2.0, 1.0, 1.0):
        assert again.update(metric) == plateau.update(metric)
    bare = fastopt.SGD(np.zeros(1))
    bare.load_state_dict({"state": opt.state_dict()["state"], "param_groups": saved})
    bare.step(np.ones(1))
    assert bare.param_groups[0]["lr"] == 0.5


def test_one_plateau_may_drive_several_groups():
    """It stays one when a state dict is loaded, unless that would make two of it: then nothing changes."""
    plateau = schedules.Plateau(1.0, factor=0.5, patience=0)
    opt = fastopt.SGD([{"params": np.zeros(1)}, {"params": np.zeros(1)}], lr=plateau)
    plateau.update(1.0)
    plateau.update(1.0)
    saved = opt.state_dict()
    plateau.update(1.0)
    opt.load_state_dict(saved)
    assert [group.schedules["lr"] for group in opt.param_groups] == [plateau] * 2
    assert plateau.lr == 0.5
    saved["param_groups"][1]["schedules"]["lr"]["state"]["lr"] = 0.25
    with pytest.raises(ValueError, match="drives another group as well"):
        opt.load_state_dict(saved)
    assert plateau.lr == 0.5


def test_schedules_of_classes_of_your_own():
    """They drive as any callable does, and are not described as what they are not."""

    class Mine(schedules.Cosine):
        pass_on = 0.5

    class Patient(schedules.Plateau):
        pass_on = 0.5

    for schedule in (Mine(0.1, 10), schedules.Warmup(Mine(0.1, 10), 5), Patient(0.1)):
        opt = fastopt.SGD(np.zeros(1), lr=schedule)
        opt.step(np.ones(1))
        assert opt.param_groups[0]["lr"] == schedule(0)
        assert opt.param_groups[0]["schedules"] == {"lr": {"name": "callable"}}
        opt.load_state_dict(opt.state_dict())
        assert opt.param_groups[0].schedules["lr"] is schedule
        with pytest.raises(TypeError, match="cannot be described"):
            schedule.to_dict()


def test_a_step_assigned_with_a_schedule_counts_for_it():
    """All entries of one update belong together."""
    opt = fastopt.SGD(np.zeros(1))
    opt.param_groups[0].update(lr=schedules.Linear(0.0, 1.0, 10), step=5)
    assert opt.param_groups[0]["lr"] == 0.5


def test_schedules_assigned_while_others_read():
    """A step, a state dict or a repr in one thread sees the schedules of before or after an assignment in another."""
    opt = fastopt.SGD([{"params": np.zeros(1)}, {"params": np.zeros(1)}], momentum=0.5)
    ended = threading.Event()
    errors = []

    def repeat(act):
        try:
            while not ended.is_set():
                act()
        except Exception as error:
            errors.append(error)

    def assign():
        for group in opt.param_groups:
            group["weight_decay"] = schedules.Constant(0.1)
            group["momentum"] = schedules.Constant(0.5)
            group["momentum"] = 0.5
            group["weight_decay"] = 0.0

    acts = [assign, lambda: opt.step([np.ones(1), np.ones(1)]), opt.state_dict, lambda: repr(opt)]
    threads = [threading.Thread(target=repeat, args=[act]) for act in acts]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    ended.set()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_number_ends_a_schedule_and_a_callable_begins_one():
    """Assigned between steps."""
    p = np.zeros(1)
    opt = fastopt.SGD(p, lr=lambda step: 100.0)
    opt.param_groups[0]["lr"] = 1
    opt.step(np.ones(1))
    assert p[0] == -1.0
    opt.param_groups[0]["lr"] = lambda step: float(step)
    opt.step(np.ones(1))
    opt.step(np.ones(1))
    assert p[0] == -1.0 - 1.0 - 2.0


def test_options_changed_between_steps_take_effect():
    """Rate, weight decay, direction; also momentum from nothing, which takes the next gradient whole, as torch does."""
    p = np.zeros(1)
    opt = fastopt.SGD(p, lr=1.0)
    group = opt.param_groups[0]
    opt.bind(np.ones(1))
    opt.step()
    group["lr"] = 0.5
    opt.step()
    assert p[0] == -1.5
    group["maximize"] = True
    opt.step()
    assert p[0] == -1.0
    group.update(maximize=False, momentum=0.5, dampening=0.25)
    opt.step()
    assert p[0] == -1.5
    assert opt.state[0]["momentum_buffer"][0] == 1.0
    opt.step()
    assert opt.state[0]["momentum_buffer"][0] == 0.5 + 0.75
    group["momentum"] = 0.0
    opt.step()
    assert opt.state[0]["step"] == 6
    assert opt.state[0]["momentum_buffer"][0] == 1.25


def test_late_parameters_start_late():
    """A parameter counts its own steps: lr_decay, the first undampened gradient and state begin with its own first."""
    p = [np.zeros(1), np.zeros(1)]
    opt = fastopt.Adagrad(p, lr=1.0, lr_decay=1.0, eps=0.0)
    one = np.ones(1)
    opt.step([one, None])
    opt.step([one, None])
    assert p[1][0] == 0
    assert list(opt.state) == [0]
    opt.step([one, one])
    assert p[1][0] == -1.0
    assert opt.state[0]["step"] == 3
    assert opt.state[1]["step"] == 1


def test_initial_accumulator_value_of_a_group():
    """Counts for its own parameters, also when it is changed before a late parameter starts."""
    p = [np.zeros(1), np.zeros(1), np.zeros(1)]
    opt = fastopt.Adagrad([{"params": [p[0]], "initial_accumulator_value": 8.0}, {"params": p[1:]}], lr=1.0, eps=0.0)
    one = np.ones(1)
    opt.step([[one], [one, None]])
    opt.param_groups[1]["initial_accumulator_value"] = 3.0
    opt.step([[None], [None, one]])
    assert [x[0] for x in p] == [-1 / 3, -1.0, -0.5]


def test_all_gradients_missing():
    """A step without any gradient counts for the group's schedule and for no parameter."""
    p = np.ones(2)
    opt = fastopt.SGD([p], momentum=0.9)
    opt.step([None])
    assert opt.param_groups[0]["step"] == 1
    assert opt.state == {}
    assert (p == 1).all()


def test_bound_gradients_are_read_at_each_step():
    """The arrays stay, their numbers change; step(grads) leaves the binding as it is."""
    p, g = np.zeros(3), np.zeros(3)
    opt = fastopt.SGD(p, lr=1.0)
    opt.bind(g)
    g[...] = 1
    opt.step()
    g[...] = 2
    opt.step()
    opt.step(np.full(3, 10.0))
    opt.step()
    assert (p == -15.0).all()
    opt.bind(np.full(3, 0.5))
    opt.step()
    assert (p == -15.5).all()


def test_zero_dimensional_parameters_take_scalars():
    """What a reduction over all axes returns is a NumPy scalar."""
    p = np.array(1.0, np.float32)
    opt = fastopt.SGD(p, lr=0.5)
    opt.step(np.float32(1.0))
    opt.step(np.ones(3, np.float32).sum())
    fastopt.fused.sgd(p, np.float32(1.0), lr=0.5)
    assert p == -1.5


@pytest.mark.parametrize(
    "make",
    [
        lambda p: fastopt.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
        lambda p: fastopt.Adagrad(p, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.1),
        lambda p: fastopt.SGD(p, lr=lambda step: 0.1 / (step + 1)),
    ],
)
def test_state_dict_resumes_to_the_bit(make):
    """Saved in the middle, pickled, loaded into a new optimizer over copies: the same trajectory, to the bit."""
    rng = np.random.default_rng(5)
    p = dict(zip("abc", arrays(rng, (4, 3), (), (5,)), strict=True))
    opt = make(p)
    for _ in range(7):
        opt.step({k: rng.standard_normal(x.shape).astype(x.dtype) if k != "c" else None for k, x in p.items()})
    q = {k: x.copy() for k, x in p.items()}
    saved = pickle.loads(pickle.dumps(opt.state_dict()))
    resumed = make(q)
    resumed.load_state_dict(saved)
    for _ in range(5):
        g = {k: rng.standard_normal(x.shape).astype(x.dtype) for k, x in p.items()}
        opt.step(g)
        resumed.step(g)
    for k in p:
        np.testing.assert_array_equal(p[k], q[k])
    assert repr(opt.state_dict()) == repr(resumed.state_dict())


def test_state_dict_is_plain_and_a_copy():
    """Python's own types and arrays; nothing in it changes with the next step."""
    p = {"w": np.ones((2, 3), np.float32)}
    opt = fastopt.SGD(p, lr=0.1, momentum=0.9)
    opt.step({"w": np.ones((2, 3), np.float32)})
    saved = opt.state_dict()
    assert set(saved) == {"state", "param_groups"}
    assert set(saved["state"]["w"]) == {"step", "momentum_buffer"}
    group = saved["param_groups"][0]
    assert group == {
        "step": 1, "lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False,
        "maximize": False, "params": ["w"], "schedules": {},
    }  # fmt: skip
    assert {type(value) for value in group.values()} == {int, float, bool, list, dict}
    assert type(saved["state"]["w"]["step"]) is int
    before = copy.deepcopy(saved)
    opt.step({"w": np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(saved["state"]["w"]["momentum_buffer"], before["state"]["w"]["momentum_buffer"])
    assert saved["state"]["w"]["step"] == 1


def test_loading_forgets_what_the_dict_does_not_have():
    """A state dict from before the first step takes an optimizer back there."""
    p = [np.zeros(2)]
    opt = fastopt.SGD(p, lr=1.0, momentum=0.5)
    start = opt.state_dict()
    opt.bind([np.ones(2)])
    opt.step()
    opt.step()
    opt.load_state_dict(start)
    assert opt.state == {}
    assert opt.param_groups[0]["step"] == 0
    p[0][...] = 0
    opt.step()
    assert (p[0] == -1.0).all()


def test_state_is_live_and_read_only():
    """Writing into a state array changes the state; exchanging it is refused."""
    p = {"w": np.zeros(2)}
    opt = fastopt.SGD(p, lr=1.0, momentum=0.5)
    opt.step({"w": np.ones(2)})
    opt.state["w"]["momentum_buffer"][...] = 4.0
    opt.step({"w": np.ones(2)})
    assert (p["w"] == -1.0 - 3.0).all()
    with pytest.raises(TypeError):
        opt.state["w"]["momentum_buffer"] = np.zeros(2)


def test_groups_can_be_added():
    """The new parameters start at their own first step; the old ones go on."""
    p, q = np.zeros(1), np.zeros(1)
    opt = fastopt.SGD([{"params": [p]}], lr=1.0, momentum=0.5)
    opt.step([[np.ones(1)]])
    with pytest.raises(ValueError, match="overlap"):
        opt.add_param_group({"params": [p]})
    opt.add_param_group({"params": [q], "lr": 2.0})
    opt.step([[np.ones(1)], [np.ones(1)]])
    assert p[0] == -2.5
    assert q[0] == -2.0
    assert [opt.state[k]["step"] for k in (0, 1)] == [2, 1]


def test_repr_names_class_sizes_and_options():
    """One line for each group."""
    text = repr(fastopt.SGD({"w": np.ones((10, 100), np.float32)}, lr=0.1, momentum=0.9))
    assert text.startswith("SGD(")
    assert "1,000 elements, float32" in text
    assert "lr=0.1, momentum=0.9" in text


def test_optimizers_are_not_copied():
    """A copy would train arrays that nobody holds; the error says what to do."""
    opt = fastopt.SGD(np.ones(2))
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(opt)
    with pytest.raises(TypeError, match="state_dict"):
        copy.deepcopy(opt)


def test_hyperparameters_are_keyword_only():
    """A rate given by position would mean something else in torch's order."""
    with pytest.raises(TypeError):
        fastopt.SGD(np.ones(2), 0.1)


options = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([0.0, 0.1]),
        "weight_decay": st.sampled_from([0.0, 0.01]),
        "maximize": st.booleans(),
    }
)
momenta = st.sampled_from(
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.5, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True},
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(
        st.tuples(options, momenta, st.lists(st.integers(0, 9), min_size=1, max_size=3)), min_size=1, max_size=4
    ),
    steps=st.lists(st.integers(0, 2**12 - 1), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_any_groups_and_any_missing_gradients(groups, steps, seed):
    """Groups of any rules, and any gradients missing at any step, equal the oracle; counts too."""
    rng = np.random.default_rng(seed)
    given_groups = [
        {"params": [rng.standard_normal(size) for size in sizes], **chosen, **momentum}
        for chosen, momentum, sizes in groups
    ]
    owners = [group for group in given_groups for _ in group["params"]]
    params = [p for group in given_groups for p in group["params"]]
    rules = [("nesterov" if "nesterov" in o else "momentum") if "momentum" in o else "sgd" for o in owners]
    trainer = oracle.Trainer(params)
    opt = fastopt.SGD(given_groups)
    for mask in steps:
        grads = [rng.standard_normal(p.shape) if mask >> i & 1 else None for i, p in enumerate(params)]
        rest = iter(grads)
        opt.step([[next(rest) for _ in group["params"]] for group in given_groups])
        for rule in set(rules):
            trainer.step(rule, [g if r == rule else None for g, r in zip(grads, rules, strict=True)], owners)
    for i, (p, want) in enumerate(zip(params, trainer.params, strict=True)):
        assert_close(p, want, TRAJECTORY)
        assert opt.state.get(i, {"step": 0})["step"] == trainer.steps[i]


def test_an_interrupt_during_a_launch_finds_the_books_in_order():
    """Ctrl-C is delivered when the kernel returns: its step counts, and its state can be saved."""
    p = np.ones(2)
    opt = fastopt.SGD(p, lr=1.0, momentum=0.5, dampening=0.5)
    opt.bind(np.ones(2))
    opt.step()
    opt._stepper.clock.stop_repeating()
    launch = opt._stepper.plan.launches[0]
    run = launch.run

    def interrupted(*arguments):
        run(*arguments)
        signal.raise_signal(signal.SIGINT)

    launch.run = interrupted
    with pytest.raises(KeyboardInterrupt):
        opt.step()
    launch.run = run
    assert opt.state[0]["step"] == 2
    assert (opt.state[0]["momentum_buffer"] == 0.5 * 1 + 0.5).all()
    opt.step()
    assert opt.state[0]["step"] == 3
    assert (opt.state[0]["momentum_buffer"] == 1).all()


def test_what_a_schedule_assigns_to_another_group_stays():
    """It counts for the next step, and is not overwritten by this one."""
    p, q = np.zeros(1), np.zeros(1)

    def schedule(step):
        if step == 1:
            opt.param_groups[0]["lr"] = 0.5
        return 0.0

    opt = fastopt.SGD([{"params": p, "lr": 1.0}, {"params": q, "lr": schedule}])
    for _ in range(3):
        opt.step([np.ones(1), np.ones(1)])
    assert opt.param_groups[0]["lr"] == 0.5
    assert p[0] in (-2.0, -2.5)


def test_a_step_inside_a_step_is_refused():
    """A schedule may read its optimizer, and not step it."""
    p = np.zeros(1)
    opt = fastopt.SGD(p, lr=lambda step: opt.step(np.ones(1)) or 0.1 if step else 0.1)
    opt.step(np.ones(1))
    with pytest.raises(RuntimeError, match="inside a step"):
        opt.step(np.ones(1))
    assert p[0] == pytest.approx(-0.1)


def test_the_base_class_is_not_an_optimizer():
    """It says which are."""
    with pytest.raises(TypeError, match="use SGD, Adam or another of its subclasses"):
        fastopt.Optimizer(np.ones(2), {})


def test_a_group_outlives_its_optimizer():
    """Its count and numbers are those of the last step."""
    opt = fastopt.SGD(np.ones(3), lr=fastopt.schedules.Linear(1.0, 0.0, 10))
    group = opt.param_groups[0]
    for _ in range(6):
        opt.step(np.ones(3))
    del opt
    assert (group["step"], group["lr"]) == (6, 0.5)
    assert (group["step"], group["lr"]) == (6, 0.5)
