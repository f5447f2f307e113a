"""Trajectories against torch.optim, and the bugs of torch.optim that fastopt must not have."""

import numpy as np
import pytest
import torch
from tolerances import TORCH, assert_close

import fastopt

SGD_OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"maximize": True},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1, "maximize": True},
    {"momentum": 1.5},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True},
]
ADAGRAD_OPTIONS = [
    {},
    {"lr_decay": 0.2},
    {"weight_decay": 0.1, "maximize": True},
    {"initial_accumulator_value": 0.1, "eps": 1e-4},
    {"lr_decay": 0.2, "weight_decay": 0.1, "eps": 1e-3},
]
CASES = [("SGD", options) for options in SGD_OPTIONS] + [("Adagrad", options) for options in ADAGRAD_OPTIONS]
SHAPES = [(4, 3), (), (17,), (2, 3, 5)]


def pair(name, options, dtype, seed=7):
    """The same model twice: NumPy arrays under fastopt, tensors under torch.optim, with its plainest code."""
    rng = np.random.default_rng(seed)
    params = [np.asarray(rng.standard_normal(shape)).astype(dtype) for shape in SHAPES]
    tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
    mine = getattr(fastopt, name)(params, lr=0.05, **options)
    theirs = getattr(torch.optim, name)(tensors, lr=0.05, foreach=False, **options)
    return rng, params, tensors, mine, theirs


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_trajectories(name, options, dtype):
    """Thirty steps, gradients missing now and then, a rate that changes; parameters and states."""
    rng, params, tensors, mine, theirs = pair(name, options, dtype)
    steps = 6 if options.get("momentum", 0) > 1 else 30
    for step in range(steps):
        grads = [rng.standard_normal(p.shape).astype(dtype) if (step + i) % 4 else None for i, p in enumerate(params)]
        for tensor, g in zip(tensors, grads, strict=True):
            tensor.grad = None if g is None else torch.from_numpy(np.asarray(g))
        mine.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 0.05 / (1 + step)
        mine.step(grads)
        theirs.step()
    for i, (p, tensor) in enumerate(zip(params, tensors, strict=True)):
        assert_close(p, tensor.detach().numpy(), TORCH)
        for state in ("momentum_buffer", "sum"):
            if state in theirs.state[tensor] and theirs.state[tensor][state] is not None:
                assert_close(mine.state[i][state], theirs.state[tensor][state].numpy(), TORCH)


def test_a_groups_initial_accumulator_value_counts():
    """torch.optim.Adagrad ignores it (bug 1)."""
    p = np.zeros(1)
    opt = fastopt.Adagrad([{"params": [p], "initial_accumulator_value": 3.0}], lr=1.0, eps=0.0)
    opt.step([[np.ones(1)]])
    assert p[0] == -0.5


def test_a_failed_first_step_leaves_no_state():
    """torch's fused SGD leaves a buffer uninitialised when its first step is skipped (bug 2)."""
    p = [np.zeros(2), np.zeros(2)]
    opt = fastopt.SGD(p, lr=1.0, momentum=0.5, dampening=0.5)
    with pytest.raises(ValueError, match="shape"):
        opt.step([np.ones(2), np.ones(3)])
    assert opt.state == {}
    opt.step([np.ones(2), np.ones(2)])
    assert (opt.state[0]["momentum_buffer"] == 1).all()


def test_a_first_gradient_may_come_late():
    """torch's fused SGD raises TypeError (bug 3)."""
    p = [np.zeros(2), np.zeros(2)]
    opt = fastopt.SGD(p, lr=1.0, momentum=0.5)
    opt.step([np.ones(2), None])
    opt.step([np.ones(2), np.ones(2)])
    assert (p[0] == -2.5).all()
    assert (p[1] == -1).all()


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_elements_pair_by_index_whatever_the_strides(name):
    """torch's fused CPU kernels pair them by storage order (bug 4)."""
    rng = np.random.default_rng(8)
    g = rng.standard_normal((5, 7))
    p, q = np.zeros((5, 7)), np.zeros((5, 7))
    getattr(fastopt, name)(p, lr=0.1).step(g)
    getattr(fastopt, name)(q, lr=0.1).step(np.asfortranarray(g))
    np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("options", [{"nesterov": True, "momentum": 0.9}, {"weight_decay": 0.1, "maximize": True}])
def test_gradients_are_never_written(options):
    """torch's foreach Nesterov overwrites them (bug 5); here even read-only ones will do."""
    p, g = np.ones(50, np.float32), np.full(50, 0.5, np.float32)
    g.flags.writeable = False
    opt = fastopt.SGD(p, lr=0.1, **options)
    for _ in range(3):
        opt.step(g)
    assert (g == 0.5).all()


def test_steps_count_past_the_integers_of_float32():
    """A float32 step stops at 2**24 (bug 9)."""
    p = np.zeros(1)
    opt = fastopt.Adagrad(p, lr=1.0, lr_decay=1.0, eps=0.0)
    opt.step(np.ones(1))
    saved = opt.state_dict()
    saved["state"][0]["step"] = 2**24
    opt.load_state_dict(saved)
    for _ in range(3):
        opt.step(np.ones(1))
    assert opt.state[0]["step"] == 2**24 + 3
