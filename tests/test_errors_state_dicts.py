"""State dicts that do not fit: refused whole."""

import copy

import numpy as np
import pytest
import torch
from refusals import F32, F64, KINDS, STATE, Subject, bad_values, every_option, refused, values

from fastopt import schedules


def entry(*path):
    """Where a state dict is changed."""

    def change(value):
        def act(state_dict):
            target = state_dict
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = value(target.get(path[-1])) if callable(value) else value

        return act

    return change


def without(*path):
    """Delete an entry."""

    def act(state_dict):
        target = state_dict
        for key in path[:-1]:
            target = target[key]
        del target[path[-1]]

    return act


def renamed(state_dict):
    """Other names, consistently."""
    state_dict["state"]["v1"] = state_dict["state"].pop("w1")
    state_dict["param_groups"][0]["params"] = ["v1", "w2", "w3"]


GROUP = ("param_groups", 0)
BAD_STATE_DICTS = {
    "no state": (without("state"), ValueError, ["'state'", "state_dict()"]),
    "no groups": (without("param_groups"), ValueError, ["'param_groups'", "state_dict()"]),
    "groups not a list": (entry("param_groups")({}), ValueError, ["param_groups"]),
    "no group": (entry("param_groups")([]), ValueError, ["1 param_groups"]),
    "a group too many": (entry("param_groups")(lambda g: g * 2), ValueError, ["1 param_groups"]),
    "group not a dict": (entry("param_groups")([3]), ValueError, ["group 0", "entries"]),
    "group without lr": (without(*GROUP, "lr"), ValueError, ["group 0", "lr"]),
    "group without step": (without(*GROUP, "step"), ValueError, ["group 0", "step"]),
    "group without params": (without(*GROUP, "params"), ValueError, ["group 0", "params"]),
    "option too many": (entry(*GROUP, "foreach")(None), ValueError, ["group 0", "entries"]),
    "params are fewer": (entry(*GROUP, "params")(["w1", "w2"]), ValueError, ["group 0", "'w3'"]),
    "params in another order": (entry(*GROUP, "params")(["w2", "w1", "w3"]), ValueError, ["group 0", "'w2', 'w1'"]),
    "params by index": (entry(*GROUP, "params")([0, 1, 2]), ValueError, ["group 0", "[0, 1, 2]", "'w1'"]),
    "params as arrays": (
        entry(*GROUP, "params")(lambda p: [np.ones(3), np.ones(3), np.ones(3)]),
        ValueError,
        ["group 0", "'w1'"],
    ),
    "params as text": (entry(*GROUP, "params")("w1"), ValueError, ["group 0"]),
    "other names": (renamed, ValueError, ["'v1'", "'w1'"]),
    "schedule as lr": (entry(*GROUP, "lr")(lambda lr: lambda step: 0.1), TypeError, ["lr", "number"]),
    "group step negative": (entry(*GROUP, "step")(-1), ValueError, ["group 0", "step"]),
    "group step a float": (entry(*GROUP, "step")(2.0), TypeError, ["group 0", "step", "int"]),
    "group step a tensor": (entry(*GROUP, "step")(torch.tensor(2.0)), TypeError, ["group 0", "step", "int"]),
    "state not a dict": (entry("state")([]), ValueError, ["state", "'w1'"]),
    "state of a stranger": (entry("state", "w9")({"step": 1}), ValueError, ["'w9'", "'w1'"]),
    "state an array": (entry("state", "w1")(np.ones((3, 4), F32)), ValueError, ["parameter 'w1'", "step"]),
    "state without step": (without("state", "w1", "step"), ValueError, ["parameter 'w1'", "step"]),
    "state of another rule": (entry("state", "w1", "square_avg")(np.ones((3, 4), F32)), ValueError, ["parameter 'w1'"]),
    "step negative": (entry("state", "w1", "step")(-1), ValueError, ["parameter 'w1'", "step"]),
    "step a float": (entry("state", "w1", "step")(1.0), TypeError, ["parameter 'w1'", "step", "int"]),
    "step a bool": (entry("state", "w1", "step")(True), TypeError, ["parameter 'w1'", "step", "int"]),
    "step a tensor": (entry("state", "w1", "step")(torch.tensor(1.0)), TypeError, ["parameter 'w1'", "step", "int"]),
    "step half": (entry("state", "w1", "step")(np.array(1.5)), TypeError, ["parameter 'w1'", "step", "int"]),
    "step an array": (entry("state", "w1", "step")(np.array([1])), TypeError, ["parameter 'w1'", "step", "int"]),
    "step text": (entry("state", "w1", "step")("1"), TypeError, ["parameter 'w1'", "step", "int"]),
    "step None": (entry("state", "w1", "step")(None), TypeError, ["parameter 'w1'", "step", "int"]),
    "step beyond counting": (entry("state", "w1", "step")(10**400), ValueError, ["parameter 'w1'", "step"]),
}
BAD_STATES = {
    "transposed": (lambda a: a.T, ValueError, ["(4, 3)", "(3, 4)"]),
    "same size": (lambda a: a.reshape(2, 6), ValueError, ["(2, 6)", "(3, 4)"]),
    "float64": (lambda a: a.astype(F64), TypeError, ["float64", "astype(np.float32)"]),
    "int": (lambda a: a.astype(int), TypeError, ["int64", "astype(np.float32)"]),
    "foreign": (lambda a: a.astype(a.dtype.newbyteorder()), TypeError, ["order", "astype(np.float32)"]),
    "list": (lambda a: a.tolist(), TypeError, ["list", "np.asarray"]),
    "tensor": (lambda a: torch.as_tensor(a), TypeError, ["torch.Tensor", ".numpy(force=True)"]),
    "None": (lambda a: None, TypeError, ["None"]),
    "masked": (lambda a: np.ma.array(a), TypeError, ["masked"]),
}


def loaded(change):
    """Load a copy of the own state dict with one error, and with valid changes that would reveal a partial load."""

    def act(s):
        state_dict = copy.deepcopy(s.opt.state_dict())
        state_dict["state"]["w2"]["step"] = 99
        state_dict["param_groups"][0]["weight_decay"] = 0.5
        change(state_dict)
        s.opt.load_state_dict(state_dict)

    return act


@every_option
def test_options_of_state_dicts(kind, name):
    """A state dict with one of them is refused whole."""
    for value, error in bad_values(name):
        refused(error, [name, "must be"], loaded(entry(*GROUP, name)(value)), value, kind=kind, steps=1)


@pytest.mark.parametrize("kind", STATE)
@pytest.mark.parametrize(("change", "error", "words"), BAD_STATE_DICTS.values(), ids=BAD_STATE_DICTS.keys())
def test_state_dicts_that_do_not_fit(kind, change, error, words):
    """Entries that are missing, unknown, of another name or type."""
    refused(error, words, loaded(change), kind=kind, steps=2, bound=True)


@pytest.mark.parametrize("kind", STATE)
@pytest.mark.parametrize(("change", "error", "words"), BAD_STATES.values(), ids=BAD_STATES.keys())
def test_states_that_do_not_fit(kind, change, error, words):
    """Arrays of another shape, dtype or kind."""
    act = loaded(lambda state_dict: entry("state", "w1", STATE[kind])(change)(state_dict))
    refused(error, [f"the {STATE[kind]} of parameter 'w1'", *words], act, kind=kind, steps=2)


def test_an_accumulator_cannot_be_missing():
    """A parameter that has counted steps by AdaGrad has an accumulator; without it the rate would jump."""
    act = loaded(without("state", "w1", "sum"))
    refused(ValueError, ["parameter 'w1'", "sum"], act, kind="adagrad", steps=2)


@pytest.mark.parametrize("given", [None, 3, [], "state", np.ones(3), {}, {"state": {}}, {"param_groups": []}])
def test_what_is_no_state_dict(given):
    """Anything else than a dict with its two entries."""
    refused(ValueError, ["'state'", "'param_groups'"], lambda s: s.opt.load_state_dict(given), steps=1)


@pytest.mark.parametrize(
    ("kind", "other"), [("momentum", "adagrad"), ("adagrad", "momentum"), ("sgd", "adagrad"), ("adam", "rmsprop")]
)
def test_state_dicts_of_another_class(kind, other):
    """SGD's for Adagrad and the other way round, RMSprop's for Adam."""
    foreign = Subject(other, steps=2).opt.state_dict()
    refused(ValueError, [KINDS[kind][0].__name__], lambda s: s.opt.load_state_dict(foreign), kind=kind, steps=1)


def driven(momentum, schedule):
    """Change a state dict to Nesterov momentum: the latest number, and the schedule of the next ones."""

    def change(state_dict):
        group = state_dict["param_groups"][0]
        group.update(nesterov=True, dampening=0.0, momentum=momentum, schedules={"momentum": schedule.to_dict()})

    return change


def test_a_schedule_whose_next_number_contradicts_an_option():
    """Refused whole: the next step would be."""
    act = loaded(driven(0.9, schedules.Constant(0.0)))
    refused(ValueError, ["Nesterov momentum requires a momentum"], act, steps=2)


def test_a_latest_number_that_contradicts_an_option():
    """Nobody computes with it again: the state dict is loaded, shows it, and the optimizer goes on."""
    victim, twin = Subject(steps=2), Subject(steps=2)
    loaded(driven(0.0, schedules.Constant(0.9)))(victim)
    assert victim.opt.param_groups[0]["momentum"] == 0.0
    loaded(driven(0.9, schedules.Constant(0.9)))(twin)
    assert victim.steps() == twin.steps()
    assert victim.opt.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize("form", [list, "groups"])
def test_state_dicts_of_other_groups(form):
    """Of the same parameters, in other groups or under other keys."""
    foreign = Subject(form=form).opt.state_dict()
    refused(ValueError, ["state dict", "group"], lambda s: s.opt.load_state_dict(foreign), steps=1)


@pytest.mark.parametrize("as_arrays", [False, True])
@pytest.mark.parametrize(("make", "kind"), [(torch.optim.SGD, "momentum"), (torch.optim.Adagrad, "adagrad")])
def test_state_dicts_of_torch(make, kind, as_arrays):
    """What torch.optim saves is refused, its tensors turned into arrays or not."""
    tensors = [torch.from_numpy(array).requires_grad_() for array in values().values()]
    options = {"momentum": 0.9} if kind == "momentum" else {}
    optimizer = make(tensors, lr=0.1, **options)
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    state_dict = optimizer.state_dict()
    if as_arrays:
        state_dict["state"] = {
            key: {name: value.detach().numpy() for name, value in state.items()}
            for key, state in state_dict["state"].items()
        }
    act = lambda s: s.opt.load_state_dict(state_dict)  # noqa: E731
    refused(ValueError, ["group 0", "entries"], act, kind=kind, steps=1, form=list)
