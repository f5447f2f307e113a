"""Masters, and gradients in a dtype of their own, on GPUs: on a stand-in to the bit, and arrays on a real one."""

import numpy as np
import pytest
import torch
from cuda_tensors import on_host, pair
from ml_dtypes import bfloat16
from pairs import usually

import fastopt

SHAPES = [(40, 30), (7,), (300, 5), (5000,)]
DTYPES = {"bfloat16": bfloat16, "float16": np.float16, "float32": np.float32}
KINDS = [("bfloat16", True, "bfloat16"), ("bfloat16", 24, "float32"), ("float16", True, "float16")]
kinds = pytest.mark.parametrize(("dtype", "kept", "gradient"), usually(KINDS[:1], KINDS), ids=str)
OPTIONS = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}


def arrays(seed, dtype):
    """Arrays of a dtype on the host."""
    rng = np.random.default_rng(seed)
    made = [rng.standard_normal(shape).astype(np.float32).astype(DTYPES[dtype]) for shape in SHAPES]
    return [np.asfortranarray(array) for array in made]


def assert_same(device, ours, twin):
    """Assert that the masters, and the states, of two optimizers have the same bits."""
    for key, here in twin.master_state_dict().items():
        np.testing.assert_array_equal(device.get(ours.master_state_dict()[key]), here)
    for key, entry in twin.state.items():
        for name in entry.keys() - {"step"}:
            there = device.get(ours.state[key][name])
            assert there.dtype == entry[name].dtype
            np.testing.assert_array_equal(there, entry[name])


@kinds
def test_arrays_as_on_the_host(device, dtype, kept, gradient):
    """Steps with averages, state dicts both ways, what is written between steps, one that takes no part."""
    host = arrays(0, dtype)
    params = [device.array(array) for array in host]
    options = {**OPTIONS, "ema_decay": 0.5}
    ours, twin = (fastopt.SGD(given, master_weights=kept, **options) for given in (params, host))
    for step in range(5):
        grads = arrays(step + 1, gradient)
        if step == 3:  # exchange states
            saved = ours.state_dict(), twin.state_dict()
            twin.load_state_dict(on_the_host(device, saved[0]))
            ours.load_state_dict(saved[1])
        if step == 4:
            host[0][...] = params[0][...] = 0
            grads[3] = None
        ours.step([None if g is None else device.array(g) for g in grads])
        twin.step(grads)
        assert_same(device, ours, twin)
        for there, here in zip(params, host, strict=True):
            np.testing.assert_array_equal(device.get(there).astype(np.float32), here.astype(np.float32))
    assert ours.memory() == twin.memory()


def on_the_host(device, saved):
    """A state dict with the arrays of a GPU copied to the host."""
    state = {
        key: {name: value if isinstance(value, int) else device.get(value) for name, value in entry.items()}
        for key, entry in saved["state"].items()
    }
    return {**saved, "state": state}


@pytest.mark.exhaustive  # compiles a kernel of its own
@pytest.mark.parametrize(
    ("dtype", "gradient"),
    [("bfloat16", "float32"), pytest.param("float32", "bfloat16", marks=pytest.mark.exhaustive)],
)
def test_gradients_of_another_dtype(device, dtype, gradient):
    """In both storage orders, with a norm, and back to the parameter's own."""
    host = arrays(0, dtype)
    params = [device.array(array) for array in host]
    ours, twin = (fastopt.SGD(given, max_grad_norm=0.5, **OPTIONS) for given in (params, host))
    for step, kind in enumerate([gradient, gradient, gradient, dtype, dtype, gradient]):
        grads = [np.ascontiguousarray(g) if step == 2 else g for g in arrays(step + 1, kind)]
        ours.step([device.array(g) for g in grads])
        twin.step(grads)
        assert float(ours.grad_norm) == pytest.approx(twin.grad_norm, rel=1e-6)
        for there, here in zip(params, host, strict=True):
            wide = here.astype(np.float64)
            assert np.abs(device.get(there).astype(np.float64) - wide).max() <= 2.0**-7 * np.abs(wide).max()


@kinds
def test_tensors_as_on_the_host(pretended, dtype, kept, gradient):
    """Steps of torch on a pretended GPU, and what is loaded in between."""
    made = [torch.randn(shape).to(getattr(torch, dtype)) for shape in SHAPES]
    there, here, ours, others = pair("SGD", made, master_weights=kept, **OPTIONS)
    for param in (*there, *here):
        param.grad_dtype = getattr(torch, gradient)
    for step in range(5):
        if step == 3:
            ours.load_state_dict(others.state_dict())
        for p, q in zip(there, here, strict=True):
            torch.manual_seed(step)
            q.grad = torch.randn(q.shape).bfloat16().to(getattr(torch, gradient))
            p.grad = q.grad.to(p.device)
        ours.step()
        others.step()
    masters = ours.master_state_dict(), others.master_state_dict()
    for key, want in masters[1].items():
        assert torch.equal(on_host(masters[0][key]), want)
