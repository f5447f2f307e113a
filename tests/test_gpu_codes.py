"""States in 8 bits on GPUs, of arrays and of tensors; on a stand-in, and arrays on a real GPU."""

import cuda_stand_in
import numpy as np
import pytest
import torch
from cuda_tensors import on_gpu, on_host, pair
from devices import StandIn
from gpu_models import DEVICE, captured, give, scaled_step, warm_up
from gpu_steps import arrays, plain, refused_capture
from tolerances import TIPPED_TIMES_RATE, assert_close

import fastopt

SHAPES = [(70, 91), (700,), (1,), (3, 0)]
OPTIONS = {"lr": 0.1, "state_dtype": "int8", "min_quantized_size": 0}
KINDS = pytest.mark.parametrize(
    ("optimizer", "more"),
    [
        pytest.param(fastopt.AdamW, {}, marks=pytest.mark.exhaustive),
        pytest.param(fastopt.Adagrad, {"initial_accumulator_value": 0.5}, marks=pytest.mark.exhaustive),
        (fastopt.SGD, {"momentum": 0.9, "stochastic_rounding": True, "seed": 3}),
        pytest.param(fastopt.AdamW, {"stochastic_rounding": True}, marks=pytest.mark.exhaustive),
        pytest.param(fastopt.AdamW, {"state_dtype": {"exp_avg": "int8"}}, marks=pytest.mark.exhaustive),
        pytest.param(fastopt.SGD, {"momentum": 0.9}, marks=pytest.mark.exhaustive),
    ],
)


def both(device, optimizer=fastopt.AdamW, turned=False, **more):
    """Parameters on the device and on the host, with optimizers; perhaps in Fortran's order."""
    here = plain(device, arrays(device, SHAPES))
    here = [np.asfortranarray(array) for array in here] if turned else here
    params = [device.array(array) for array in here]
    ours, twin = (optimizer(given, **{**OPTIONS, **more}) for given in (params, here))
    return params, here, ours, twin


def steps(device, ours, twin, turned=False, count=3):
    """Take steps on both sides."""
    for seed in range(count):
        grads = plain(device, arrays(device, SHAPES, seed=seed + 1))
        grads = [np.asfortranarray(array) for array in grads] if turned else grads
        ours.step([device.array(g) for g in grads])
        twin.step(grads)


def of_device(device, entry):
    """A state's arrays on the host."""
    return {name: value if isinstance(value, int) else device.get(value) for name, value in entry.items()}


def assert_alike(device, params, here, ours, twin):
    """Assert that both are the same: to the bit, but on a real GPU, where rules contract products and sums."""
    for there, array in zip(params, here, strict=True):
        assert_close(device.get(there), array.astype(np.float64), TIPPED_TIMES_RATE)
    for key, entry in twin.state.items():
        found = of_device(device, ours.state[key])
        assert found.keys() == entry.keys()
        for name, want in entry.items():
            got = found[name]
            if isinstance(want, int) or isinstance(device, StandIn):
                np.testing.assert_array_equal(got, want)
            elif want.dtype.itemsize == 1:
                assert np.abs(got.astype(int) - want).max(initial=0) <= 1
            else:
                assert_close(got, want.astype(np.float64), TIPPED_TIMES_RATE)


@KINDS
def test_as_on_the_host(device, optimizer, more):
    """Steps, the bytes that they take, and state dicts to and from the host."""
    params, here, ours, twin = both(device, optimizer, **more)
    steps(device, ours, twin)
    assert_alike(device, params, here, ours, twin)
    assert ours.memory() == twin.memory()
    saved = ours.state_dict(), twin.state_dict()
    entries = {key: of_device(device, entry) for key, entry in saved[0]["state"].items()}
    twin.load_state_dict({**saved[0], "state": entries})
    ours.load_state_dict(saved[1])
    steps(device, ours, twin)
    assert_alike(device, params, here, ours, twin)


@pytest.mark.parametrize("turned", [False, True])
def test_gradients_in_another_order(device, turned):
    """They are copied, of each parameter into the order that it has, and are themselves set to zero."""
    params, here, ours, twin = both(device, turned=turned)
    steps(device, ours, twin, turned=not turned)
    assert_alike(device, params, here, ours, twin)
    grads = plain(device, arrays(device, SHAPES, seed=9))
    turned_back = [device.array(np.asarray(g, order="C" if turned else "F")) for g in grads]
    ours.step(turned_back, zero_grads=True)
    twin.step(grads)
    assert_alike(device, params, here, ours, twin)
    assert not any(device.get(g).any() for g in turned_back)


def test_state_dicts(device):
    """Decoded, into an optimizer without codes, and what cannot be loaded."""
    params, here, ours, twin = both(device, turned=True)
    steps(device, ours, twin, turned=True)
    for opt in (ours, twin):
        opt.param_groups[0]["compress_state_dict"] = False
    saved = ours.state_dict()
    entry = of_device(device, saved["state"][0])
    assert entry.keys() == {"step", "exp_avg", "exp_avg_sq"}
    np.testing.assert_array_equal(entry["exp_avg"], twin.state_dict()["state"][0]["exp_avg"])
    for opt in (ours, both(device, state_dtype=None)[2]):
        opt.load_state_dict(saved)
        found = of_device(device, opt.state_dict()["state"][0])
        np.testing.assert_array_equal(found["exp_avg_sq"], entry["exp_avg_sq"])
    steps(device, ours, twin, turned=True)
    assert_alike(device, params, here, ours, twin)


def test_what_cannot_be_loaded(device):
    """Codes without their scales, and numbers that are no floats: nothing has changed."""
    params, here, ours, twin = both(device)
    steps(device, ours, twin)
    saved = ours.state_dict()
    entry = saved["state"][0]
    without = {name: value for name, value in entry.items() if name != "exp_avg_scale"}
    whole = {**entry, "exp_avg": device.array(np.zeros(SHAPES[0], np.int32))}
    other = {**entry, "exp_avg": entry["exp_avg_sq"]}
    for wrong, error, match in (
        (without, ValueError, "needs its exp_avg_scale"),
        (whole, TypeError, "has dtype int32, its parameter needs float32"),
        (other, ValueError, "in 8 bits it must be int8"),
    ):
        with pytest.raises(error, match=match):
            ours.load_state_dict({**saved, "state": {**saved["state"], 0: wrong}})
    assert_alike(device, params, here, ours, twin)


def test_captures(device):
    """Replays; a gradient that would have to be copied is refused, and nothing is written."""
    params, here, ours, twin = both(device)
    grads = arrays(device, SHAPES, seed=1)
    on_the_host = plain(device, grads)
    stream = device.stream()
    ours.bind(grads)
    with stream:
        ours.step()
        ours.step()
    with device.capture(stream) as graph:
        ours.step()
    for _ in range(3):
        graph.launch()
    for _ in range(5):
        twin.step(on_the_host)
    device.synchronize()
    assert_alike(device, params, here, ours, twin)
    turned = [device.array(np.asfortranarray(array)) for array in on_the_host]
    refused_capture(device, ours, stream, turned, params, "made by cupy.empty_like")


def assert_same(there, here, ours, others):
    """Assert that tensors and states have the same bits, each on its device."""
    for p, q in zip(there, here, strict=True):
        assert torch.equal(on_host(p), q)
        got, want = ours.state[p], others.state[q]
        assert got.keys() == want.keys()
        for name in want.keys() - {"step"}:
            assert (got[name].device, want[name].device) == (p.device, q.device)
            assert torch.equal(on_host(got[name]), want[name])


def tensors(name="AdamW", **more):
    """A model on a pretended GPU and on the host, with optimizers."""
    torch.manual_seed(0)
    shapes = [(40, 30), (7,), (300, 5)]
    return pair(name, [torch.randn(shape) for shape in shapes], **{**OPTIONS, **more})


def test_tensors_as_on_the_host(pretended):
    """Steps, gradients in another order, and state dicts between GPU and CPU, decoded and coded."""
    there, here, ours, others = tensors()
    for step in range(6):
        give(there, here, step)
        there[0].grad = on_gpu(here[0].grad.T.contiguous().T)
        ours.step()
        others.step()
        cuda_stand_in.synchronize_all()
        if step in (1, 3):
            ours.param_groups[0]["compress_state_dict"] = step == 3
            saved = ours.state_dict(), others.state_dict()
            assert saved[0]["state"][0]["exp_avg"].dtype is (torch.int8 if step == 3 else torch.float32)
            others.load_state_dict(saved[0])
            ours.load_state_dict(saved[1])
    assert_same(there, here, ours, others)


def test_tensors_in_captures(pretended):
    """Replays; a gradient in another order is refused."""
    there, here, ours, others = tensors()
    stream = cuda_stand_in.Stream()
    warm_up(there, here, ours, others, stream)
    graph = captured(ours, stream)
    for _ in range(3):
        graph.launch()
        others.step()
    cuda_stand_in.synchronize_all()
    assert_same(there, here, ours, others)
    there[0].grad = on_gpu(here[0].grad.T.contiguous().T)
    with stream, pytest.raises(RuntimeError, match=r"made by torch\.empty_like"), DEVICE.capture(stream):
        ours.step()


def test_tensors_whose_step_is_skipped(pretended):
    """Codes and scales stay where GradScaler has found infinity."""
    there, here, ours, others = tensors()
    for step, flag in enumerate(("taken", "skipped", "taken", "skipped", "taken")):
        give(there, here, step, scale=8.0)
        scaled_step(ours, flag)
        if flag == "taken":
            others.step()
    assert_same(there, here, ours, others)
