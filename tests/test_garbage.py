"""Garbage collection: how many of a torch optimizer's objects a full collection, which stalls a step, walks."""

import copy
import gc

import pytest
import torch
import torch_cases
from pairs import usually
from torch.nn import Parameter

from fastopt.rules import FAMILIES, RULES

LAYERS = [(24, 8), (24,), (8, 8), (8,), (8,), (8,), (32, 8), (32,), (8, 32), (8,), (8,), (8,)]
SHAPES = [(97, 8), (16, 8), *12 * LAYERS, (8,), (8,)]  # those of GPT-2's 148 parameters
KINDS = {**torch_cases.KINDS, "rmsprop": ("RMSprop", {}), "adam": ("Adam", {}), "adamw": ("AdamW", {})}
ALL = pytest.mark.parametrize("kind", usually(list(KINDS)[::4], KINDS))
A_FEW = 12  # objects of all parameters together


@pytest.fixture(autouse=True)
def no_collections():
    """Nothing is collected but where it is asked for."""
    gc.disable()
    yield
    gc.enable()


def count():
    """How many objects the next full collection would walk, after one."""
    gc.collect()
    return len(gc.get_objects())


def bound(kind):
    """What all parameters may have: beside torch's own dict, states and count one each, and one for each state."""
    name, _ = KINDS[kind]
    carried = FAMILIES[name].carried is not None
    return (3 + 2 * len(RULES[kind].states) + FAMILIES[name].counts + carried) * len(SHAPES)


def give_gradients(params):
    """New gradients, from backward."""
    for p in params:
        p.grad = None
    torch.stack([p.square().sum() for p in params]).sum().backward()


def model():
    """Parameters that have gradients."""
    params = [Parameter(torch.randn(shape)) for shape in SHAPES]
    give_gradients(params)
    return params


def make(kind, params):
    """An optimizer of a kind."""
    name, options = KINDS[kind]
    return torch_cases.make(name, params, **options)


def steps(optimizer, count):
    """Take steps with the gradients that are there."""
    for _ in range(count):
        optimizer.step()


def warm_up(kind):
    """Compile what steps need."""
    steps(make(kind, model()[-2:]), 3)


@ALL
def test_few_objects_for_each_parameter(kind):
    """After steps, whether what these have left was collected or not; and none more after further ones."""
    warm_up(kind)
    params = model()
    before = count()
    optimizer = make(kind, params)
    steps(optimizer, 3)
    assert len(gc.get_objects()) - before <= bound(kind) + A_FEW
    made = count() - before
    assert made <= bound(kind) + A_FEW
    steps(optimizer, 7)
    assert count() - before <= made + A_FEW


@ALL
def test_new_gradients_add_nothing(kind):
    """Those of each step go, and leave nothing with the parameters."""
    warm_up(kind)
    params = model()
    optimizer = make(kind, params)
    steps(optimizer, 3)
    before = count()
    for _ in range(5):
        give_gradients(params)
        optimizer.step()
    assert count() <= before + A_FEW


@ALL
def test_few_objects_after_loading(kind):
    """States that were copied from a state dict are held as new ones are."""
    warm_up(kind)
    params = model()
    before = count()
    optimizer = make(kind, params)
    steps(optimizer, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    steps(optimizer, 3)
    assert count() - before <= bound(kind)


@ALL
def test_few_objects_in_a_copy(kind):
    """Beside the copies of parameters, gradients and states, whose storages torch keeps objects for."""
    warm_up(kind)
    optimizer = make(kind, model())
    steps(optimizer, 2)
    copied = copy.deepcopy(optimizer)
    before = count()
    steps(copied, 3)
    assert count() - before <= 2 * len(SHAPES)


@ALL
def test_few_objects_of_a_group_that_is_added(kind):
    """As many as if it had been there from the start."""
    warm_up(kind)
    params = model()
    before = count()
    optimizer = make(kind, params[:70])
    steps(optimizer, 2)
    optimizer.add_param_group({"params": params[70:]})
    steps(optimizer, 3)
    assert count() - before <= bound(kind)
