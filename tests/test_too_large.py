"""Options that are infinite in the dtype that kernels compute in: refused, by name, before anything changes."""

import numpy as np
import pytest
import torch
import torch_cases
from devices import standing_in
from pairs import usually
from torch.nn import Parameter

import fastopt
import fastopt.torch
from fastopt import fused, schedules
from fastopt.options import OPTIONS

MOST = float(np.finfo(np.float32).max)
BEYOND = float(np.nextafter(MOST, np.inf))
CASES = {  # what is too large for float32, by what the message names
    "lr": ("SGD", {"lr": 1e39}),
    "weight_decay": ("SGD", {"lr": 0.1, "weight_decay": BEYOND}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 1e39}),
    "1 - dampening": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": -1e39}),
    "lr of group 0 comes to 1e": ("Adagrad", {"lr": 1e40, "lr_decay": 1e40}),
    "initial_accumulator_value": ("Adagrad", {"initial_accumulator_value": 1e39}),
    "eps": ("RMSprop", {"eps": 1e39}),
    "momentum of group 0": ("RMSprop", {"centered": True, "momentum": 1e39}),
    "lr of group 0": ("Adam", {"lr": 1e38, "betas": (0.99, 0.9)}),  # times the correction of the bias at the first step
    "lr of group 0 comes to 1e[+]39": ("Adam", {"lr": 1e39, "betas": (0.0, 0.999999)}),  # and at the last
    "eps of group 0": ("AdamW", {"eps": 1e39, "amsgrad": True}),
    r"1 - lr \* weight_decay": ("AdamW", {"lr": 1e30, "weight_decay": 1e30}),
    r"lr \* \(1 - mu\) / \(1 - mu_product\) of group 0": ("NAdam", {"lr": 1e39, "betas": (0.0, 0.9)}),
    r"lr \* next mu / \(1 - mu_product \* next mu\) of group 0": ("NAdam", {"lr": 2e38}),
}
ALLOWED = {
    "lr": ("SGD", {"lr": MOST}),
    "lr_decay": ("Adagrad", {"lr": 0.1, "lr_decay": 1e39}),
    "corrected": ("Adam", {"lr": 1e38}),
}
refused = pytest.mark.parametrize(("message", "case"), CASES.items(), ids=map(str, range(len(CASES))))


def assert_refused(act, message, *arrays):
    """Assert that an act raises an error that names an option, and leaves arrays as they are."""
    before = [np.array(array) for array in arrays]
    with pytest.raises(ValueError, match=f"{message}.* too large for"):
        act()
    for array, was in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, was)


@refused
def test_for_numpy(message, case):
    """When an optimizer is made or loads, and at the next step after an assignment; not for float64."""
    name, options = case
    kind = getattr(fastopt, name)
    assert_refused(lambda: kind(np.ones(3, np.float32), **options), message)
    assert_refused(lambda: kind([np.ones(3), np.ones(3, np.float32)], **options), message)
    wide = kind(np.ones(3), **options)
    wide.step(np.zeros(3))
    switches = {option: value for option, value in options.items() if option in ("amsgrad", "centered")}
    p = np.ones(3, np.float32)
    optimizer = kind(p, **switches)
    optimizer.step(np.ones(3, np.float32))
    counts = optimizer.state[0]["step"]
    large = optimizer.state_dict()
    large["param_groups"][0].update(options)
    assert_refused(lambda: optimizer.load_state_dict(large), message, p)
    before = dict(optimizer.param_groups[0])
    optimizer.param_groups[0].update(options)
    assert_refused(lambda: optimizer.step(np.ones(3, np.float32)), message, p)
    assert (optimizer.state[0]["step"], optimizer.param_groups[0]["step"]) == (counts, 1)
    optimizer.param_groups[0].update({option: before[option] for option in options})
    optimizer.step(np.ones(3, np.float32))


@refused
@pytest.mark.parametrize("dtype", usually([torch.float32], [torch.float32, torch.float16]), ids=str)
def test_for_torch(message, case, dtype):
    """Likewise, for all that is computed in float32; some of torch's optimizers have an error of their own there."""
    name, options = case
    with pytest.raises(ValueError, match=f"{message}.* too large for"):
        torch_cases.make(name, [Parameter(torch.ones(3, dtype=dtype))], **options)
    p = Parameter(torch.ones(3, dtype=dtype))
    switches = {option: value for option, value in options.items() if option in ("amsgrad", "centered")}
    optimizer = torch_cases.make(name, [p], **{"lr": 0.1, **switches})
    p.grad = torch.ones_like(p)
    optimizer.step()
    before = dict(optimizer.param_groups[0])
    optimizer.param_groups[0].update(options)
    torch_cases.assert_refused(optimizer, optimizer.step, f"{message}.* too large for", ValueError)
    optimizer.param_groups[0].update(before)
    optimizer.step()


@pytest.mark.parametrize("case", ALLOWED.values(), ids=ALLOWED)
def test_what_is_not_too_large(case):
    """The largest number is not, nor what only divides."""
    name, options = case
    p, parameter = np.ones(3, np.float32), Parameter(torch.ones(3))
    getattr(fastopt, name)(p, **options).step(np.zeros(3, np.float32))
    parameter.grad = torch.zeros(3)
    getattr(fastopt.torch, name)([parameter], **options).step()
    np.testing.assert_array_equal(p, 1.0)
    np.testing.assert_array_equal(parameter.detach(), 1.0)


def test_a_schedule():
    """It is refused at the step for which it says so, which is not taken."""
    schedule = schedules.Piecewise([0.1, 1e39], [2])
    p, parameter = np.ones(3, np.float32), Parameter(torch.ones(3))
    optimizer, other = fastopt.SGD(p, lr=schedule), fastopt.torch.SGD([parameter], lr=schedule)
    parameter.grad = torch.ones(3)
    for _ in range(2):
        optimizer.step(np.ones(3, np.float32))
        other.step()
    assert_refused(lambda: optimizer.step(np.ones(3, np.float32)), "lr of group 0", p)
    assert (optimizer.param_groups[0]["step"], optimizer.param_groups[0]["lr"]) == (2, 0.1)
    torch_cases.assert_refused(other, other.step, "lr of group 0 .*too large", ValueError)


def test_single_calls():
    """Of float32, not of float64; numbers for C are float64, and finite."""
    for dtype in (np.float32, np.float64):
        p, g, state, second = np.ones(3, dtype), np.zeros(3, dtype), np.zeros(3, dtype), np.zeros(3, dtype)
        calls = {
            "lr": lambda p=p, g=g: fused.sgd(p, g, lr=1e39),
            "weight_decay": lambda p=p, g=g: fused.sgd(p, g, lr=0.0, weight_decay=1e39),
            "momentum": lambda p=p, g=g, v=state: fused.momentum(p, g, v, lr=0.0, momentum=1e39),
            "eps": lambda p=p, g=g, s=state: fused.adagrad(p, g, s, lr=0.1, eps=1e39),
            r"1 - lr \* weight_decay": lambda p=p, g=g, m=state, v=second: fused.adamw(
                p, g, m, v, lr=1e20, weight_decay=1e20, step=1
            ),
        }
        for message, call in calls.items():
            if dtype is np.float32:
                assert_refused(call, message, p, state, second)
            else:
                call()
                assert np.isfinite(p).all()
    with pytest.raises(ValueError, match=r"1 - lr \* weight_decay"):
        fastopt.embed.hyper_values("adamw", step=1, lr=1e200, weight_decay=1e200)


def test_on_a_gpu(monkeypatch):
    """Optimizers and single calls alike."""
    with standing_in(monkeypatch) as gpu:
        p, g = gpu.array(np.ones(3, np.float32)), gpu.array(np.zeros(3, np.float32))
        assert_refused(lambda: fastopt.SGD(p, lr=1e39), "lr of group 0")
        assert_refused(lambda: fused.sgd(p, g, lr=1e39), "lr")
        np.testing.assert_array_equal(gpu.get(p), 1.0)


def test_every_option_has_a_case():
    """But those that are switches, below 1, or only divide; what is too large for a stage is as good as infinite."""
    tried = {option for _, options in CASES.values() for option in options}
    assert {*OPTIONS} - tried == {"nesterov", "alpha", "decoupled_weight_decay", "maximize", "momentum_decay"}
