"""States of 16 bits on GPUs, of arrays and of tensors; on a stand-in, and arrays on a real GPU."""

import numpy as np
import pytest
import torch
from cuda_tensors import on_host, pair
from gpu_models import give
from gpu_steps import arrays, plain
from pairs import usually
from tolerances import TIPPED, TIPPED_TIMES_RATE, assert_close

import fastopt

EVERY_SIZE = {"min_quantized_size": 0}
DTYPES = ["float16", "bfloat16", {"exp_avg": "bfloat16"}]
OPTIONS = {"lr": 0.1, **EVERY_SIZE}


def numbers(array):
    """A state's numbers in float32."""
    return np.asarray(array).astype(np.float32)


@pytest.mark.parametrize("dtype", usually(["bfloat16"], DTYPES), ids=str)
def test_arrays_as_on_the_host(device, dtype):
    """Steps, state dicts to and from the host, and what they take."""
    params = arrays(device)
    host = [array.copy() for array in plain(device, params)]
    ours, twin = (fastopt.AdamW(given, state_dtype=dtype, **OPTIONS) for given in (params, host))
    for step in range(4):
        grads = plain(device, arrays(device, seed=step + 1))
        ours.step([device.array(g) for g in grads])
        twin.step(grads)
        if step == 2:  # exchange states
            saved = ours.state_dict(), twin.state_dict()
            twin.load_state_dict(on_the_host(device, saved[0]))
            ours.load_state_dict(saved[1])
    for there, here in zip(params, host, strict=True):
        assert_close(device.get(there), here.astype(np.float64), TIPPED_TIMES_RATE)
    for key, entry in twin.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            there = ours.state[key][name]
            assert there.dtype == entry[name].dtype
            assert_close(numbers(device.get(there)), numbers(entry[name]).astype(np.float64), TIPPED)
    assert ours.memory() == twin.memory()


def on_the_host(device, saved):
    """A state dict with the arrays of a GPU copied to the host."""
    state = {
        key: {name: value if isinstance(value, int) else device.get(value) for name, value in entry.items()}
        for key, entry in saved["state"].items()
    }
    return {**saved, "state": state}


@pytest.mark.parametrize("dtype", usually(["bfloat16"], DTYPES), ids=str)
def test_tensors_as_on_the_host(pretended, dtype):
    """Steps of a model on a pretended GPU."""
    torch.manual_seed(0)
    shapes = [(40, 30), (7,), (300, 5)]
    there, here, ours, others = pair("AdamW", [torch.randn(shape) for shape in shapes], state_dtype=dtype, **OPTIONS)
    for step in range(4):
        give(there, here, step)
        ours.step()
        others.step()
    for p, q in zip(there, here, strict=True):
        assert_close(on_host(p).detach().numpy(), q.detach().double().numpy(), TIPPED_TIMES_RATE)
        for name in ("exp_avg", "exp_avg_sq"):
            state, twin = ours.state[p][name], others.state[q][name]
            assert state.dtype == twin.dtype
            assert_close(on_host(state).float().numpy(), twin.double().numpy(), TIPPED)
