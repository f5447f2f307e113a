"""Gradients in another dtype than their parameters: the same bits as with both in the wider one, where that says it."""

import itertools

import numpy as np
import pytest
import torch
from ml_dtypes import bfloat16
from torch_cases import bits

import fastopt
import fastopt.torch as subject

DTYPES = {"float32": np.float32, "bfloat16": bfloat16, "float16": np.float16}
PAIRS = [pair for pair in itertools.product(DTYPES, DTYPES) if pair[0] != pair[1]]
USUAL = [("bfloat16", "float32")]
each_pair = pytest.mark.parametrize(
    ("dtype", "gradient"),
    [pytest.param(*pair, marks=[] if pair in USUAL else pytest.mark.exhaustive) for pair in PAIRS],
)
SHAPES = [(70, 80), (3,), (), (0, 2), (5000,)]
OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


def arrays(seed, dtype):
    """Arrays of a dtype, in Fortran's order."""
    rng = np.random.default_rng(seed)
    made = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    return [np.asfortranarray(array.astype(dtype)) for array in made]


def rounded(given, dtype):
    """Float32 arrays in place rounded as those of a dtype are."""
    for array in given:
        array[...] = array.astype(dtype)


def assert_same(some, others):
    """Assert that arrays hold the same numbers, to the bit."""
    for one, other in zip(some, others, strict=True):
        assert one.astype(np.float32).tobytes() == other.astype(np.float32).tobytes()


@each_pair
def test_arrays(dtype, gradient):
    """As float32 parameters that are rounded after each step: new and bound gradients, in both orders, one missing."""
    params, bound = arrays(0, DTYPES[dtype]), arrays(0, DTYPES[dtype])
    singles = [param.astype(np.float32) for param in params]
    mine, also, theirs = (fastopt.SGD(given, **OPTIONS) for given in (params, bound, singles))
    kept = arrays(1, DTYPES[gradient])
    also.bind(kept)
    for seed in range(4):
        grads = [np.ascontiguousarray(g) if seed == 2 else g for g in arrays(10 + seed, DTYPES[gradient])]
        for place, g in zip(kept, grads, strict=True):
            place[...] = g
        wide = [g.astype(np.float32) for g in grads]
        if seed == 1:
            grads[1] = wide[1] = None
        mine.step(grads)
        theirs.step(wide)
        rounded(singles, DTYPES[dtype])
        assert_same(params, singles)
        if seed == 1:
            also.step(grads)
        else:
            also.step()
        assert_same(bound, singles)


def test_dtypes_may_change_from_step_to_step():
    """A launch for each kind, and no gradient is read as another; repeated steps among them."""
    params = arrays(0, bfloat16)
    singles = [param.astype(np.float32) for param in params]
    mine, theirs = fastopt.SGD(params, **OPTIONS), fastopt.SGD(singles, **OPTIONS)
    kinds = [
        np.float32,
        np.float32,
        np.float32,
        bfloat16,
        bfloat16,
        np.float16,
        bfloat16,
        np.float32,
        bfloat16,
        np.float32,
    ]
    for seed, kind in enumerate(kinds):
        grads = arrays(20 + seed, kind)
        if seed > 6:
            grads[4] = grads[4].astype(bfloat16)
        mine.step(grads)
        theirs.step([g.astype(np.float32) for g in grads])
        rounded(singles, bfloat16)
        assert_same(params, singles)


def test_stages():
    """The norm is that of the gradients as they are; they are clipped, averaged and set to zero."""
    params = arrays(0, bfloat16)
    singles = [param.astype(np.float32) for param in params]
    options = {**OPTIONS, "max_grad_norm": 0.5, "clip_grad_value": 1.5, "ema_decay": 0.5}
    mine, theirs = fastopt.SGD(params, **options), fastopt.SGD(singles, **options)
    for seed in range(4):
        grads = arrays(30 + seed, np.float32)
        theirs.step(grads)
        mine.step(grads, zero_grads=True)
        assert not any(g.any() for g in grads)
        assert mine.grad_norm == theirs.grad_norm
        rounded(singles, bfloat16)
        assert_same(params, singles)
    assert mine.memory()["gradients"] == sum(4 * param.size for param in params)


@pytest.mark.exhaustive  # compiles a kernel of its own
def test_overlaps_count_the_gradients_bytes():
    """Gradients of 4 bytes beside each other, for parameters of 2."""
    memory = np.zeros(100, np.float32)
    params = [np.zeros(50, bfloat16), np.zeros(50, bfloat16)]
    optimizer = fastopt.SGD(params, lr=0.1)
    with pytest.raises(ValueError, match=r"gradient of parameter 0 and the gradient of parameter 1 overlap in memory"):
        optimizer.step([memory[:50], memory[30:80]], zero_grads=True)
    optimizer.step([memory[:50], memory[50:]], zero_grads=True)


@pytest.mark.parametrize(("dtype", "gradient"), [("float32", "float64"), ("float64", "float32"), ("bfloat16", "int16")])
def test_other_pairs_are_refused(dtype, gradient):
    """They would be rounded, or hide a mistake; the error says how to cast, and nothing changes."""
    param = np.zeros(3, DTYPES.get(dtype, dtype))
    with pytest.raises(TypeError, match=rf"has dtype {gradient}, its parameter {dtype}: pass \.astype"):
        fastopt.SGD(param, lr=1.0).step(np.ones(3, gradient))
    assert not param.astype(np.float32).any()


@pytest.mark.exhaustive  # compiles a kernel of its own
def test_single_calls():
    """As an optimizer does it."""
    p, twin = np.ones(40, np.float16), np.ones(40, np.float16)
    g = np.linspace(-1, 1, 40).astype(np.float32)
    fastopt.fused.sgd(p, g, lr=0.1)
    fastopt.SGD(twin, lr=0.1).step(g)
    assert p.tobytes() == twin.tobytes() != np.ones(40, np.float16).tobytes()


# torch


def parameters(dtype, gradient):
    """Parameters whose gradients have a dtype, one of them in another storage order."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    made[0] = made[0].t().contiguous().t()
    params = [torch.nn.Parameter(tensor) for tensor in made]
    for param in params:
        param.grad_dtype = gradient
    return params


def give(params, seed, dtype):
    """Give them gradients of a dtype, rounded to bfloat16."""
    generator = torch.Generator().manual_seed(100 + seed)
    for param in params:
        grad = torch.randn(param.shape, generator=generator).bfloat16().to(dtype)
        param.grad = grad.t().contiguous().t() if grad.ndim == 2 else grad


@each_pair
def test_tensors(dtype, gradient):
    """New steps and repeated ones, which C++ reads: the same bits as with gradients in float32, and masters."""
    dtype, gradient = getattr(torch, dtype), getattr(torch, gradient)
    masters = dtype == torch.bfloat16
    params, singles = parameters(dtype, gradient), parameters(dtype, gradient)
    for single in singles:
        single.grad_dtype = torch.float32
        single.data = single.data.float()
    mine, theirs = subject.SGD(params, master_weights=masters, **OPTIONS), subject.SGD(singles, **OPTIONS)
    for seed in range(6):
        give(params, seed, gradient)
        give(singles, seed, torch.float32)
        stepper = mine._stepper
        mine.step()
        theirs.step()
        if not masters:
            for single in singles:
                single.data.copy_(single.data.to(dtype))
        for found, single in zip(mine.master_state_dict().values(), singles, strict=True):
            assert bits(found) == bits(single)
    assert mine._stepper is stepper
    assert stepper.clock.repetition is not None
    assert stepper.watch.read() == theirs._stepper.watch.read() < len(params)
    assert mine.memory()["gradients"] == sum(param.numel() * gradient.itemsize for param in params)


@pytest.mark.exhaustive  # compiles a kernel of its own
def test_gradients_of_any_dtype():
    """Where a parameter takes any, they may change from step to step, with repeated steps among them."""
    params, singles = parameters(torch.bfloat16, None), parameters(torch.bfloat16, None)
    for single in singles:
        single.data = single.data.float()
    mine, theirs = subject.SGD(params, master_weights=True, **OPTIONS), subject.SGD(singles, **OPTIONS)
    kinds = [torch.bfloat16] * 3 + [torch.float32] * 4 + [torch.bfloat16] * 4 + [torch.float16, torch.float32] * 2
    for seed, kind in enumerate(kinds):
        give(params, seed, kind)
        for param, single in zip(params, singles, strict=True):
            single.grad = param.grad.float()
        mine.step()
        theirs.step()
        for found, single in zip(mine.master_state_dict().values(), singles, strict=True):
            assert bits(found) == bits(single)


@pytest.mark.exhaustive  # compiles a kernel of its own
def test_main_gradients_and_clipping():
    """Gradients that somebody accumulates in float32 are assigned; the norm is theirs."""
    (param,), (single,) = [torch.nn.Parameter(torch.ones(4, 8).bfloat16())], [torch.nn.Parameter(torch.ones(4, 8))]
    param.grad_dtype = torch.float32
    param.main_grad = torch.full((4, 8), 0.1)
    single.grad = param.main_grad.clone()
    param.grad = param.main_grad
    mine = subject.AdamW([param], lr=0.01, max_grad_norm=0.1, master_weights=True)
    theirs = subject.AdamW([single], lr=0.01, max_grad_norm=0.1)
    for _ in range(3):
        mine.step()
        theirs.step()
    assert torch.equal(mine.master_state_dict()[0], single)
    assert mine.grad_norm == theirs.grad_norm
    assert mine.clip_grad_norm_(1.0) == theirs.clip_grad_norm_(1.0)


@pytest.mark.exhaustive  # compiles a kernel of its own
def test_steps_in_backward():
    """Where backward makes gradients of another dtype."""
    models = [torch.nn.Linear(64, 100, dtype=torch.bfloat16) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        for param in model.parameters():
            param.grad_dtype = torch.float32
    handle = subject.step_in_backward(models[0], subject.SGD, lr=0.1, master_weights=True)
    together = subject.SGD(models[1].named_parameters(), lr=0.1, master_weights=True)
    for _ in range(3):
        for model in models:
            together.zero_grad()
            model(torch.ones(1, 64, dtype=torch.bfloat16)).square().sum().backward()
        assert models[1].weight.grad.dtype is torch.float32
        together.step()
    for one, other in zip(handle.master_state_dict().values(), together.master_state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_tensors_that_are_refused():
    """float64 gradients of float32 parameters, and complex ones."""
    param = torch.nn.Parameter(torch.zeros(3))
    param.grad_dtype = None
    optimizer = subject.SGD([param], lr=1.0)
    for dtype in (torch.float64, torch.complex64):
        param.grad = torch.ones(3, dtype=dtype)
        with pytest.raises(TypeError, match=f"gradient of parameter 0 has dtype {dtype}, its parameter torch.float32"):
            optimizer.step()
    assert not param.any()
