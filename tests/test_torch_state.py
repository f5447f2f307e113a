"""State dicts: to torch.optim and back in the middle of a training, saved files, schedules, refusals."""

import copy
import inspect
import itertools
import pickle

import pytest
import torch
import torch_cases
from pairs import swept
from tolerances import TORCH
from torch_cases import (
    ALL,
    KINDS,
    NAMES,
    all_with,
    assert_refused,
    assert_same,
    bits,
    late,
    now_and_then,
    snapshot,
    states,
    train,
)

import fastopt.torch as subject
from fastopt import schedules
from fastopt.torch.base import ADDED

TORCHS = [{"foreach": False}, {"foreach": True}, {"fused": True}]


def grouped(cls, params, options, **flags):
    """An optimizer over two groups, one with a rate and a decay of its own; with the flags that its class has."""
    flags = {flag: value for flag, value in flags.items() if flag in inspect.signature(cls).parameters}
    return cls([{"params": params[:2]}, {"params": params[2:], "lr": 0.02, "weight_decay": 0.1}], **options, **flags)


def moved(optimizer, cls, params, options, through=lambda saved: saved, **flags):
    """The same training under another optimizer, made on the state dict of the first one."""
    other = grouped(cls, params, options, **flags)
    other.load_state_dict(through(optimizer.state_dict()))
    return other


@pytest.mark.parametrize("flags", TORCHS, ids=str)
@ALL
def test_there_and_back(name, options, flags):
    """From here to torch and back, with no break in the trajectory, counts or options."""
    mine, theirs = getattr(subject, name), getattr(torch.optim, name)
    params, alone = torch_cases.parameters(), torch_cases.parameters()
    optimizer = grouped(mine, params, options)
    train(optimizer, params, 5)
    optimizer = moved(optimizer, theirs, params, options)
    for group in optimizer.param_groups:
        group.update({flag: flags.get(flag) for flag in torch_cases.FLAGS if flag in group})
    train(optimizer, params, 5, start=5)
    optimizer = moved(optimizer, mine, params, {"lr": 9.0})
    train(optimizer, params, 5, start=10)
    reference = grouped(theirs, alone, options, foreach=False)
    train(reference, alone, 15)
    assert_same(params, alone, optimizer, reference, TORCH)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups][1] == (0.02, 0.1)


@pytest.mark.parametrize("flags", TORCHS, ids=str)
@ALL
def test_back_and_there(name, options, flags):
    """From torch, in any of its codes, to here and back."""
    mine, theirs = getattr(subject, name), getattr(torch.optim, name)
    params, alone = torch_cases.parameters(), torch_cases.parameters()
    optimizer = grouped(theirs, params, options, **flags)
    train(optimizer, params, 5)
    optimizer = moved(optimizer, mine, params, {"lr": 9.0})
    train(optimizer, params, 5, start=5)
    optimizer = moved(optimizer, theirs, params, {"lr": 9.0})
    train(optimizer, params, 5, start=10)
    reference = grouped(theirs, alone, options, foreach=False)
    train(reference, alone, 15)
    assert_same(params, alone, optimizer, reference, TORCH)


@pytest.mark.parametrize("given", [late, now_and_then])
@ALL
def test_parameters_that_have_had_no_gradient(name, options, given):
    """torch saves None for their buffers, or nothing; both mean no buffer."""
    mine, theirs = getattr(subject, name), getattr(torch.optim, name)
    params, alone = torch_cases.parameters(), torch_cases.parameters()
    optimizer = grouped(mine, params, options)
    for turn, cls in enumerate((theirs, mine, theirs, mine, mine)):
        train(optimizer, params, 2, start=2 * turn, given=given)
        optimizer = moved(optimizer, cls, params, options)
    train(optimizer, params, 2, start=10, given=given)
    reference = grouped(theirs, alone, options, foreach=False)
    train(reference, alone, 12, given=given)
    assert_same(params, alone, optimizer, reference, TORCH)


def test_an_entry_of_none():
    """As torch's SGD leaves it after a load: a momentum_buffer that is None is made at the first gradient."""
    [p] = torch_cases.parameters([(3,)])
    optimizer = subject.SGD([p], lr=0.1, momentum=0.9, dampening=0.5)
    saved = optimizer.state_dict()
    saved["state"][0] = {"momentum_buffer": None}
    optimizer.load_state_dict(saved)
    p.grad = torch.ones(3)
    optimizer.step()
    assert bits(optimizer.state[p]["momentum_buffer"]) == bits(torch.ones(3))


@all_with(torch.float32, torch.bfloat16, torch.complex64)
def test_the_default_load_opens_a_saved_file(name, options, dtype, tmp_path):
    """torch.load with weights_only, schedules and all; the trajectory goes on to the bit."""
    options = {**options, "lr": schedules.Warmup(schedules.Cosine(0.1, 20), 5)}
    params = torch_cases.parameters(dtype=dtype)
    optimizer = torch_cases.make(name, params, **options)
    train(optimizer, params, 5, given=now_and_then)
    torch.save({"params": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt")
    others = [torch.nn.Parameter(p) for p in saved["params"]]
    other = torch_cases.make(name, others, lr=9.0)
    other.load_state_dict(saved["optimizer"])
    train(other, others, 5, start=5, given=now_and_then)
    train(optimizer, params, 5, start=5, given=now_and_then)
    assert snapshot(other) == snapshot(optimizer)


@ALL
def test_what_is_copied(name, options):
    """As in torch: a state dict refers to the states, loading copies options, and a loaded dict stays as it is."""
    params = torch_cases.parameters()
    optimizer = torch_cases.make(name, params, **options)
    train(optimizer, params, 2)
    saved = optimizer.state_dict()
    for i, p in enumerate(params):
        for state, value in states(optimizer, p).items():
            assert saved["state"][i][state] is value
    kept = copy.deepcopy(saved)
    other = torch_cases.make(name, torch_cases.parameters(), **options)
    other.load_state_dict(kept)
    before = bits(kept)
    other.param_groups[0]["lr"] = 5.0
    other.load_state_dict(copy.deepcopy(kept))
    train(other, other.param_groups[0]["params"], 2)
    assert bits(kept["param_groups"]) == before["param_groups"]
    assert kept.keys() == before.keys()
    assert optimizer.param_groups[0]["lr"] == options["lr"]


@ALL
def test_the_form_is_torchs(name, options):
    """The same keys in state and groups, but for those of the schedules."""
    mine, theirs, ours, others = torch_cases.pair(name, **options)
    train(ours, mine, 2)
    train(others, theirs, 2)
    saved, wanted = ours.state_dict(), others.state_dict()
    assert saved.keys() == wanted.keys()
    assert {i: set(state) for i, state in saved["state"].items()} == {i: set(s) for i, s in wanted["state"].items()}
    [group], [other] = saved["param_groups"], wanted["param_groups"]
    assert group["params"] == other["params"]
    assert other.keys() <= group.keys()
    assert group.keys() - other.keys() <= {"schedules", "step", "fused"}  # the last one of RMSprop


@all_with(torch.bfloat16, torch.float16)
def test_float32_state_keeps_its_bits(name, options, dtype):
    """Loading does not round it to the parameter's dtype, as torch's does (bug 8)."""
    params, others = torch_cases.parameters(dtype=dtype), torch_cases.parameters(dtype=dtype)
    optimizer, other = torch_cases.make(name, params, **options), torch_cases.make(name, others, **options)
    train(optimizer, params, 3)
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, params, 3, start=3)
    train(other, others, 3, start=3)
    assert snapshot(other) == snapshot(optimizer)


@all_with(torch.bfloat16, torch.float16)
def test_state_that_torch_has_rounded(name, options, dtype):
    """From torch.optim comes state of the parameter's dtype: it is taken up, in float32, and the training goes on."""
    params = torch_cases.parameters(dtype=dtype)
    theirs = torch_cases.make(name, params, True, **options)
    train(theirs, params, 3)
    optimizer = torch_cases.make(name, params, **options)
    optimizer.load_state_dict(theirs.state_dict())
    for p in params:
        for state, value in states(theirs, p).items():
            assert torch.equal(states(optimizer, p)[state].double(), value.double())
    train(optimizer, params, 3, start=3)
    assert all(p.isfinite().all() for p in params)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adagrad", "rmsprop_centered_momentum", "adamw_amsgrad"])
def test_schedules_go_on(kind):
    """A resumed trajectory is the uninterrupted one, whatever the optimizer was made with; a plateau remembers."""
    name, options = KINDS[kind]
    plateau = schedules.Plateau(0.1, patience=1)
    more = {"weight_decay": schedules.Linear(0.1, 0.0, 20)}
    if "momentum" in options:
        more["momentum"] = schedules.Linear(0.5, 0.9, 20)
    for lr in (schedules.Sequence([schedules.Linear(0.0, 0.1, 3), schedules.Exponential(0.1, 0.9)], [3]), plateau):
        params = torch_cases.parameters()
        optimizer = torch_cases.make(name, params, **{**options, **more, "lr": lr})
        train(optimizer, params, 4, scheduler=lambda step: plateau.update(1.0))
        saved = copy.deepcopy(optimizer.state_dict())
        others = copy.deepcopy(params)
        other = torch_cases.make(name, others, lr=9.0)
        other.load_state_dict(saved)
        assert bits(other.param_groups[0]["schedules"]) == bits(optimizer.param_groups[0]["schedules"])
        train(optimizer, params, 6, start=4)
        train(other, others, 6, start=4)
        assert snapshot(other) == snapshot(optimizer)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_number_ends_a_schedule(name):
    """What was saved counts: a number, with its count of steps; one from torch too, which has neither."""
    params = torch_cases.parameters()
    plain = torch_cases.make(name, params, lr=0.3)
    train(plain, params, 2)
    theirs = torch_cases.make(name, params, True, lr=0.3)
    for other in (plain, theirs):
        optimizer = torch_cases.make(name, params, lr=schedules.Linear(0.1, 0.0, 10))
        optimizer.load_state_dict(other.state_dict())
        train(optimizer, params, 1)
        assert optimizer.param_groups[0]["lr"] == 0.3
        assert not optimizer.param_groups[0].get("schedules")


@pytest.mark.parametrize("name", NAMES)
def test_the_saved_options_count(name):
    """Each group's own, as in torch, over those that the optimizer was made with."""
    for source in (subject, torch.optim):
        params = torch_cases.parameters()
        options = {"lr": 0.3, "weight_decay": 0.2, "maximize": True}
        first = getattr(source, name)([{"params": params[:2]}, {"params": params[2:], "lr": 0.5}], **options)
        saved = first.state_dict()
        optimizer = getattr(subject, name)([{"params": params[:2]}, {"params": params[2:]}], lr=7.0)
        optimizer.load_state_dict(saved)
        assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.5]
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.2}
        assert all(group["maximize"] for group in optimizer.param_groups)
        assert optimizer.param_groups[1]["params"][0] is params[2]


@pytest.mark.parametrize(("name", "options"), [*KINDS.values(), ("RMSprop", {"lr": 0.01}), ("Adam", {"lr": 0.1})])
def test_checkpoints_of_older_versions_of_torch(name, options):
    """Their groups lack the newer options, which were as their defaults are, and they count steps in plain numbers."""
    params, alone = torch_cases.parameters(), torch_cases.parameters()
    theirs, reference = torch_cases.make(name, params, True, **options), torch_cases.make(name, alone, True, **options)
    train(theirs, params, 3)
    train(reference, alone, 6)
    saved = theirs.state_dict()
    [group] = saved["param_groups"]
    for option in (option for option in ADDED if option in group and option not in options):
        del group[option]
    for state in saved["state"].values():
        if "step" in state:
            state["step"] = int(state["step"])
    optimizer = torch_cases.make(name, params, lr=9.0)
    optimizer.load_state_dict(saved)
    train(optimizer, params, 3, start=3)
    assert_same(params, alone, optimizer, reference, TORCH)


@pytest.mark.parametrize("module", [subject, torch.optim])
def test_adamw_stays_adamw(module):
    """Whatever is loaded: what Adam has saved, an older AdamW, or a pickled one that had no such option."""
    params, alone = torch_cases.parameters(), torch_cases.parameters()
    options = {"lr": 0.1, "weight_decay": 0.1}
    theirs, reference = module.Adam(params, **options), torch_cases.make("AdamW", alone, True, **options)
    optimizer = subject.AdamW(params, lr=9.0)
    optimizer.load_state_dict(theirs.state_dict())
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True
    del optimizer.param_groups[0]["decoupled_weight_decay"]
    params, optimizer = pickle.loads(pickle.dumps((params, optimizer)))
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True
    train(optimizer, params, 5)
    train(reference, alone, 5)
    assert_same(params, alone, optimizer, reference, TORCH)
    adam = subject.Adam(params)
    adam.load_state_dict(optimizer.state_dict())
    assert adam.param_groups[0]["decoupled_weight_decay"] is True  # as in torch: an option that is saved counts


def test_names_are_kept():
    """A saved optimizer's names override, and where it has none the own ones stay, as in torch."""
    params = torch_cases.parameters([(2,), (3,)])
    named = subject.SGD(zip("ab", params, strict=True), lr=0.1)
    plain = subject.SGD(params, lr=0.1)
    named.load_state_dict(plain.state_dict())
    assert named.param_groups[0]["param_names"] == ["a", "b"]
    plain.load_state_dict(named.state_dict())
    assert plain.param_groups[0]["param_names"] == ["a", "b"]


@ALL
def test_hooks_of_state_dicts(name, options):
    """Before and after saving and loading, in torch's order; what they return counts."""
    params = torch_cases.parameters()
    optimizer = torch_cases.make(name, params, **options)
    train(optimizer, params, 2)
    calls = []

    def before_load(instance, saved):
        calls.append("before load")
        saved = copy.deepcopy(saved)
        saved["param_groups"][0]["lr"] = 0.7
        return saved

    optimizer.register_state_dict_pre_hook(lambda instance: calls.append("before save"))
    optimizer.register_state_dict_post_hook(lambda instance, saved: calls.append("after save") or {**saved, "mine": 1})
    optimizer.register_load_state_dict_pre_hook(before_load)
    optimizer.register_load_state_dict_post_hook(lambda instance: calls.append("after load"))
    saved = optimizer.state_dict()
    assert saved["mine"] == 1
    optimizer.load_state_dict(saved)
    assert calls == ["before save", "after save", "before load", "after load"]
    assert optimizer.param_groups[0]["lr"] == 0.7


@ALL
def test_a_load_after_the_first_steps_and_again(name, options):
    """Over states that there are, as a training that goes back to its best checkpoint."""
    params = torch_cases.parameters()
    optimizer = torch_cases.make(name, params, **options)
    train(optimizer, params, 3)
    kept = [p.detach().clone() for p in params]
    saved = copy.deepcopy(optimizer.state_dict())
    ends = []
    for _ in range(2):
        train(optimizer, params, 3, start=3)
        ends.append(snapshot(optimizer))
        optimizer.load_state_dict(copy.deepcopy(saved))
        with torch.no_grad():
            for p, q in zip(params, kept, strict=True):
                p.copy_(q)
    assert ends[0] == ends[1]


def without(key):
    """A state dict without an entry."""
    return lambda saved: saved.pop(key)


def in_state(name, value):
    """Another value in the third parameter's state."""
    return lambda saved: saved["state"][2].__setitem__(name, value)


def counted_from(step):
    """Another count of steps, which a schedule uses; without a schedule it is ignored."""
    described = {"lr": schedules.Constant(0.1).to_dict()}
    return lambda saved: saved["param_groups"][0].update(schedules=described, step=step)


def in_group(name, value):
    """Another value in the group."""
    return lambda saved: saved["param_groups"][0].__setitem__(name, value)


NONSENSE = {
    "no state": (without("state"), (KeyError, *torch_cases.REFUSAL), None),
    "no groups": (without("param_groups"), (KeyError, *torch_cases.REFUSAL), None),
    "more groups": (
        lambda saved: saved["param_groups"].append(saved["param_groups"][0]),
        ValueError,
        "loaded state dict has a different number of parameter groups",
    ),
    "fewer parameters": (
        lambda saved: saved["param_groups"][0]["params"].pop(),
        ValueError,
        "loaded state dict contains a parameter group that doesn't match the size of optimizer's group",
    ),
    "differentiable": (in_group("differentiable", True), ValueError, "differentiable"),
    "capturable": (in_group("capturable", True), ValueError, "capturable"),
    "a negative rate": (in_group("lr", -1.0), torch_cases.REFUSAL, "(?i)lr|rate"),
    "a schedule of nothing": (in_group("schedules", {"lr": {"name": "Nothing"}}), torch_cases.REFUSAL, "(?i)Nothing"),
    "schedules that are none": (in_group("schedules", 7), torch_cases.REFUSAL, "schedules"),
    "a count below zero": (counted_from(-3), torch_cases.REFUSAL, "step"),
}
WRONG_SHAPE, WRONG_DTYPE = torch.zeros(16), torch.zeros(17, dtype=torch.int64)
WRONG_STATES = {
    "adagrad": [("sum", WRONG_SHAPE), ("sum", WRONG_DTYPE), ("sum", 3.0), ("sum", None), ("step", torch.tensor(-1.0)),
                ("step", torch.zeros(2)), ("step", "two"), ("step", torch.tensor(0.5))],
    "momentum": [("momentum_buffer", WRONG_SHAPE), ("momentum_buffer", WRONG_DTYPE), ("momentum_buffer", 3.0)],
    "rmsprop_centered_momentum": [("grad_avg", WRONG_SHAPE), ("square_avg", WRONG_DTYPE), ("step", torch.tensor(-1.0))],
    "adamw_amsgrad": [("exp_avg", WRONG_SHAPE), ("exp_avg_sq", WRONG_DTYPE), ("max_exp_avg_sq", 3.0),
                      ("step", torch.zeros(2)), ("step", torch.tensor(0.5))],
}  # fmt: skip


@swept(1, case=NONSENSE, kind=KINDS)
def test_nonsense_is_not_loaded(case, kind):
    """Refused, with torch's message where torch has one, and nothing has changed."""
    change, error, words = NONSENSE[case]
    name, options = KINDS[kind]
    params = torch_cases.parameters()
    optimizer = torch_cases.make(name, params, **options)
    train(optimizer, params, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    train(optimizer, params, 1, start=2)
    change(saved)
    assert_refused(optimizer, lambda: optimizer.load_state_dict(saved), words, error)


@pytest.mark.parametrize(
    ("kind", "state", "value"), [(kind, *case) for kind, cases in WRONG_STATES.items() for case in cases]
)
def test_states_that_do_not_fit_are_not_loaded(kind, state, value):
    """Refused with the parameter's index and the state's name, and nothing has changed."""
    name, options = KINDS[kind]
    params = torch_cases.parameters()
    optimizer = torch_cases.make(name, params, **options)
    train(optimizer, params, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    in_state(state, value)(saved)
    assert_refused(optimizer, lambda: optimizer.load_state_dict(saved), rf"(?s)(?=.*\b2\b)(?=.*{state})")
    train(optimizer, params, 1, start=2)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        (name, other)
        for name, other in itertools.permutations(NAMES, 2)
        if name not in ("Adam", "AdamW") or other not in ("Adam", "AdamW", "NAdam")  # whose averages are Adam's
    ],
)
def test_another_optimizers_state_is_not_loaded(name, other):
    """AdaGrad's into SGD, say: its groups lack options."""
    params = torch_cases.parameters()
    optimizer, stranger = (torch_cases.make(each, params, lr=0.1) for each in (name, other))
    train(optimizer, params, 1)
    train(stranger, params, 1)
    assert_refused(optimizer, lambda: optimizer.load_state_dict(stranger.state_dict()), "another optimizer", ValueError)


def test_a_plateau_keeps_its_memory_where_another_group_is_refused():
    """It is the user's own object, into which the state dict's would have gone."""
    plateau, params = schedules.Plateau(0.1, patience=0), torch_cases.parameters([(3,), (4,)])
    optimizer = subject.SGD([{"params": params[:1], "lr": plateau}, {"params": params[1:]}], lr=0.1)
    saved = optimizer.state_dict()
    plateau.update(1.0)
    plateau.update(2.0)
    saved["param_groups"][1]["lr"] = -1.0
    assert_refused(optimizer, lambda: optimizer.load_state_dict(saved), "learning rate")
    assert plateau.state_dict() == {"lr": 0.010000000000000002, "best": 1.0, "bad": 0, "cooling": 0}


def test_a_schedule_whose_next_number_contradicts_an_option_is_not_loaded():
    """Nesterov's momentum would be 0 at the next step; the states are the old ones, and steps go on with them."""
    params, twins = torch_cases.parameters(), torch_cases.parameters()
    optimizer, twin = (subject.SGD(made, lr=0.1, momentum=0.9) for made in (params, twins))
    train(optimizer, params, 2)
    train(twin, twins, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0].update(nesterov=True, step=2, schedules={"momentum": schedules.Constant(0.0).to_dict()})
    assert_refused(optimizer, lambda: optimizer.load_state_dict(saved), "Nesterov momentum requires a momentum")
    train(optimizer, params, 2, start=2)
    train(twin, twins, 2, start=2)
    assert all(torch.equal(param, other) for param, other in zip(params, twins, strict=True))


@pytest.mark.parametrize("step", [2.0**53, 2.0**63, float(2**51 - 1) + 0.5])
def test_counts_that_cannot_go_on_are_not_loaded(step):
    """Those that float64 does not count, and none."""
    params = torch_cases.parameters([(3,)])
    optimizer = subject.Adam(params)
    train(optimizer, params, 1)
    saved = optimizer.state_dict()
    saved["state"][0]["step"] = torch.tensor(step, dtype=torch.float64)
    assert_refused(optimizer, lambda: optimizer.load_state_dict(saved), "step of parameter 0", (TypeError, ValueError))
