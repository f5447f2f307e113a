"""What users do to parameters, gradients and states between steps."""

import pytest
import torch
import torch_cases
from tolerances import TORCH
from torch_cases import ALL, KINDS, ONE_STATE_EACH, assert_same, bits, give, states, train, victim

MOMENTUM = {"lr": 0.1, "momentum": 0.9}


@ALL
def test_parameters_whose_data_is_swapped(name, options):
    """`p.data = ...` is the new memory from then on; the old one is left alone."""
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters()
        optimizer = torch_cases.make(name, params, plainest, **options)
        train(optimizer, params, 2)
        old = params[0].data
        was = bits(old)
        params[0].data = torch.full_like(old, 0.5)
        train(optimizer, params, 3, start=2)
        assert bits(old) == was
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


@ALL
def test_frozen_parameters(name, options):
    """Without a gradient a parameter rests, and its state and count with it."""
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters()
        optimizer = torch_cases.make(name, params, plainest, **options)
        train(optimizer, params, 2)
        params[1].requires_grad_(False)
        params[1].grad = None
        resting = bits([params[1], states(optimizer, params[1])])
        for step in range(2, 5):
            give([p for p in params if p.requires_grad], step)
            optimizer.step()
        assert bits([params[1], states(optimizer, params[1])]) == resting
        params[1].requires_grad_(True)
        train(optimizer, params, 2, start=5)
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


@ALL
def test_gradients_in_place_and_replaced(name, options):
    """A gradient's memory may stay or be another one; its address tells nothing of its values."""
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters()
        optimizer = torch_cases.make(name, params, plainest, **options)
        for step in range(8):
            new = [torch_cases.gradient(p, step) for p in params]
            for p, g in zip(params, new, strict=True):
                if step % 3 == 0 or p.grad is None:
                    p.grad = g
                elif step % 3 == 1:
                    p.grad.copy_(g)
                else:
                    p.grad.data = g
            optimizer.step()
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


@ALL
def test_empty_and_scalar_parameters(name, options):
    """They step and count like all others; alone, too."""
    for shapes in ([(0,), (3, 0), (), (1,)], [(0,)], [()]):
        mine, theirs, ours, others = torch_cases.pair(name, shapes=shapes, **options)
        train(ours, mine, 3)
        train(others, theirs, 3)
        assert_same(mine, theirs, ours, others, TORCH)


def test_steps_without_any_gradient():
    """Nothing happens to the parameters, nothing is made."""
    for kind in KINDS:
        params, optimizer = victim(kind, steps=0)
        before = bits([params, [states(optimizer, p) for p in params]])
        optimizer.step()
        assert bits([params, [states(optimizer, p) for p in params]]) == before


@pytest.mark.parametrize("way", ["replaced", "data", "in place", "cleared", "popped"])
@pytest.mark.parametrize(("kind", "state"), ONE_STATE_EACH)
def test_states_that_users_change(kind, state, way):
    """Replaced, with other memory, in place, or taken away: what stands in the optimizer's state is what counts."""
    name, options = KINDS[kind]
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters()
        optimizer = torch_cases.make(name, params, plainest, **options)
        train(optimizer, params, 3)
        for p in params:
            new = torch.full_like(p, 0.25).detach()
            if way == "replaced":
                optimizer.state[p][state] = new
            elif way == "data":
                optimizer.state[p][state].data = new
            elif way == "in place":
                optimizer.state[p][state].fill_(0.25)
            elif way == "popped":
                optimizer.state.pop(p)
        if way == "cleared":
            optimizer.state.clear()
        train(optimizer, params, 3, start=3)
        if way == "replaced":
            train(optimizer, params, 1, start=6)
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


def test_a_momentum_that_reaches_zero_changes_the_rule():
    """As in torch: without momentum there is no buffer; what there was is taken up again later."""
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters(dtype=torch.float64)
        optimizer = torch_cases.make("SGD", params, plainest, **MOMENTUM)
        for step in range(9):
            optimizer.param_groups[0]["momentum"] = (0.9, 0.0, 0.5)[step // 3]
            train(optimizer, params, 1, start=step)
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


def test_shared_memory():
    """Adagrad's accumulators can be moved into memory that processes share, and go on from there."""
    runs = []
    for shared in (True, False):
        params, optimizer = victim("adagrad")
        if shared:
            optimizer.share_memory()
        train(optimizer, params, 2, start=2)
        assert all(state["sum"].is_shared() is shared for state in optimizer.state.values())
        runs.append(bits([params, [states(optimizer, p) for p in params]]))
    assert runs[0] == runs[1]
