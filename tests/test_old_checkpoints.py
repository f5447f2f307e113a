"""State dicts written by version 0.1.0 load, and training goes on as it did then."""

import numpy as np
import pytest
import torch
from tolerances import TORCH, assert_close

import fastopt
import fastopt.torch

WARM_UP = {
    "name": "Warmup",
    "schedule": {"name": "Cosine", "lr": 0.5, "steps": 8, "end": 0.0, "dips": 1, "periodic": False},
    "steps": 2,
    "start": 0.0,
}


def array(*values):
    """float32, as the parameters were."""
    return np.array(values, np.float32)


def test_torch():
    """AdamW under a schedule, after three steps."""
    p = torch.nn.Parameter(torch.tensor([0.21988672018051147, 2.757650852203369]))
    saved = {
        "state": {
            0: {
                "step": torch.tensor(3.0, dtype=torch.float64),
                "exp_avg": torch.tensor([1.0625, -0.53125]),
                "exp_avg_sq": torch.tensor([0.78515625, 0.1962890625]),
            }
        },
        "param_groups": [
            {"lr": 0.5, "betas": (0.5, 0.75), "eps": 1e-08, "weight_decay": 0.01, "amsgrad": False, "maximize": False,
             "foreach": None, "capturable": False, "differentiable": False, "fused": None,
             "decoupled_weight_decay": True, "schedules": {"lr": WARM_UP}, "step": 3, "params": [0]}
        ],
    }  # fmt: skip
    optimizer = fastopt.torch.AdamW([p])
    optimizer.load_state_dict(saved)
    for step in (3, 4):
        p.grad = torch.tensor([0.5, -0.25]) * (step + 1)
        optimizer.step()
    assert_close(p.detach().numpy(), array(-0.7624746561050415, 3.7130448818206787), TORCH)
    assert optimizer.param_groups[0]["step"] == 5


def test_numpy():
    """Adam under a schedule, with named parameters."""
    w, v = array(-0.3720192611217499, 3.3720192909240723), array(-0.34999996423721313)
    saved = {
        "state": {
            "w": {"step": 3, "exp_avg": array(1.0625, -0.53125), "exp_avg_sq": array(0.78515625, 0.1962890625)},
            "v": {"step": 3, "exp_avg": array(0.875), "exp_avg_sq": array(0.578125)},
        },
        "param_groups": [
            {"step": 3, "lr": 0.4, "betas": (0.5, 0.75), "eps": 1e-08, "weight_decay": 0.0, "amsgrad": False,
             "maximize": False, "schedules": {"lr": {"name": "Linear", "lr": 0.5, "end": 0.1, "steps": 8}},
             "params": ["w", "v"]}
        ],
    }  # fmt: skip
    optimizer = fastopt.Adam({"w": w, "v": v})
    optimizer.load_state_dict(saved)
    for step in (3, 4):
        optimizer.step({"w": array(0.5, -0.25) * (step + 1), "v": array(1.0)})
    assert_close(w, array(-1.0754647254943848, 4.075464725494385), TORCH)
    assert_close(v, array(-0.9999999403953552), TORCH)


@pytest.mark.parametrize("container", [list, tuple])
def test_numpy_by_index(container):
    """A flat list's states have integers for keys."""
    w = array(0.5, 1.5)
    saved = {
        "state": {0: {"step": 1, "momentum_buffer": array(1.0, 1.0)}},
        "param_groups": [
            {"step": 1, "lr": 0.5, "momentum": 0.5, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False,
             "maximize": False, "schedules": {}, "params": [0]}
        ],
    }  # fmt: skip
    optimizer = fastopt.SGD(container([w]), lr=0.5, momentum=0.5)
    optimizer.load_state_dict(saved)
    optimizer.step(container([array(1.0, 1.0)]))
    assert w.tolist() == [-0.25, 0.75]
