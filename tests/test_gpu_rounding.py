"""Stochastic rounding on GPUs, of arrays and tensors: the bits of the same steps on the host; on a stand-in, and a GPU.

Rates are powers of two: a product is exact then, and a GPU that adds to it in the same instruction rounds no less.
"""

import numpy as np
import pytest
import torch
from cuda_tensors import on_gpu, on_host, pair
from gpu_models import scaled_step
from gpu_steps import arrays, bits, normal, plain

import fastopt
from fastopt.schedules import Piecewise

SHAPES = [(3, 5), (700,), ()]
RANDOM = {"lr": 0.125, "stochastic_rounding": True}
LATER = Piecewise([0.25, 0.125], [5])


def grads_of(device, step, *, broken=False):
    """Gradients of a step, on the device and on the host."""
    rng = np.random.default_rng(step + 1)
    here = [normal(rng, shape, np.float16) for shape in SHAPES]
    if broken:
        here[1][5] = np.nan
    return [device.array(g) for g in here], here


def model(device, **options):
    """Parameters on a device and on the host, with their optimizers."""
    params = arrays(device, SHAPES, np.float16)
    twins = plain(device, params)
    return params, twins, fastopt.SGD(params, **options), fastopt.SGD(twins, **options)


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0, "skip_nonfinite": True}], ids=["plain", "skipping"])
def test_arrays_as_on_the_host(device, options):
    """In steps that the extension repeats, in others, in those that a GPU decides about, and after a state dict."""
    params, twins, ours, theirs = model(device, **RANDOM, **options, seed=8)
    for step in range(9):
        there, here = grads_of(device, step, broken=bool(options) and step in (2, 3, 7))
        if step == 4:
            ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 0.25
        if step == 6:  # exchanged
            saved = ours.state_dict(), theirs.state_dict()
            ours.load_state_dict(saved[1])
            theirs.load_state_dict(saved[0])
        ours.step(there)
        theirs.step(here)
        if not options:
            assert bits(device, params) == bits(device, twins)
    assert ours.param_groups[0]["step"] == theirs.param_groups[0]["step"] == (6 if options else 9)
    assert ours.skipped_steps == theirs.skipped_steps


@pytest.mark.parametrize("lr", [0.125, LATER], ids=["rows stay", "rows move"])
def test_replays(device, lr):
    """A captured step goes on with the count, also where the host takes steps between replays, or asks for it."""
    params, twins, ours, theirs = model(device, lr=lr, stochastic_rounding=True)
    there, here = grads_of(device, 0)
    ours.bind(there)
    stream = device.stream()
    with stream:
        ours.step()
        ours.step()
    with device.capture(stream) as graph:
        ours.step()
    for step in range(2, 12):
        if step in (5, 6, 9):
            with stream:
                ours.step()
        else:
            graph.launch()
        if step in (4, 9):
            assert ours.param_groups[0]["step"] == step + 1
    for _ in range(12):
        theirs.step(here)
    stream.synchronize()
    assert bits(device, params) == bits(device, twins)


@pytest.mark.exhaustive  # compiles a kernel of its own
def test_states(device):
    """A float32 parameter stays as it is; its state is rounded as on the host, by a factor of a half."""
    rng = np.random.default_rng(1)
    twins = [rng.standard_normal(5000).astype(np.float32)]
    params = [device.array(twins[0])]
    options = {"momentum": 0.5, "state_dtype": "bfloat16", **RANDOM}
    ours, theirs = fastopt.SGD(params, **options), fastopt.SGD(twins, **options)
    for _ in range(4):
        g = rng.standard_normal(5000).astype(np.float32)
        ours.step([device.array(g)])
        theirs.step([g])
    there, here = (opt.state[0]["momentum_buffer"] for opt in (ours, theirs))
    assert device.get(there).tobytes() == here.tobytes()


# Tensors


def tensors(**options):
    """A model of bfloat16 on the pretended GPU and its twin on the host, with their optimizers."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator).bfloat16() for shape in SHAPES]
    return pair("SGD", made, **RANDOM, **options)


def give_both(there, here, step):
    """Give both the same gradients."""
    generator = torch.Generator().manual_seed(100 + step)
    for p, q in zip(there, here, strict=True):
        q.grad = torch.randn(q.shape, generator=generator).bfloat16()
        p.grad = on_gpu(q.grad.clone())


def assert_same(there, here):
    """Assert that both have the same bits."""
    for p, q in zip(there, here, strict=True):
        assert torch.equal(on_host(p).detach().view(torch.int16), q.detach().view(torch.int16))


@pytest.mark.usefixtures("pretended")
def test_tensors_as_on_the_host():
    """Repeated steps, and one after a state dict from the host."""
    there, here, ours, others = tensors(seed=3)
    for step in range(7):
        give_both(there, here, step)
        ours.step()
        others.step()
        if step == 4:
            ours.load_state_dict(others.state_dict())
    assert_same(there, here)
    assert ours.state_dict()["param_groups"][0]["step"] == 7


@pytest.mark.usefixtures("pretended")
def test_a_step_that_a_scaler_skips_takes_no_bits():
    """Whether it is skipped is known on the GPU alone, which counts."""
    there, here, ours, others = tensors(fused=True)
    for step, flag in enumerate(["taken", "skipped", "taken", "skipped", "skipped", "taken", "taken"]):
        give_both(there, here, step)
        scaled_step(ours, flag, scale=1.0)
        if flag == "taken":
            others.step()
    assert ours.param_groups[0]["step"] == 4
    assert_same(there, here)
