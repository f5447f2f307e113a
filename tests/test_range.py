"""Gradients near both ends of a dtype's range, where the order of multiplications matters: every rule with squares.

The square of a gradient above the root of the largest number is infinite; its share in an average need not be.
"""

import numpy as np
import pytest
import torch
import torch_cases
from cuda_jobs import Job, Tensor
from fastopt.bench import oracle
from fastopt.kernels import cpu
from loop_cases import numbers_of, options_of
from rule_cases import BY_STATES, OF_SQUARES, OPTIMIZERS
from tolerances import TRAJECTORY, assert_close
from torch.nn import Parameter

import fastopt.torch
from fastopt import embed
from fastopt.rules import RULES

ROOTS = np.array([1e-3, 0.9, 1.1, 2.0, 3.0, -4.0, -4.9])  # times that of the largest number
ENDS = [*ROOTS, 13.0, 40.0]  # of which averages are infinite, in torch as well

averaging = pytest.mark.parametrize("name", OF_SQUARES)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def large(dtype, roots=ROOTS):
    """Gradients around the root of a dtype's largest number."""
    return np.tile(np.sqrt(np.finfo(dtype).max) * np.asarray(roots), 5).astype(dtype)


def small(dtype):
    """Gradients whose shares in an average of squares end in subnormal numbers, or in 0."""
    return np.tile(np.sqrt(np.finfo(dtype).tiny) * 10.0 ** np.arange(-4, 4), 5).astype(dtype)


def assert_agree(got, want, count=TRAJECTORY):
    """Assert that parameters agree, and each element of the states by its own size, or the smallest number's."""
    assert_close(got[0], want[0], count)
    for state, wanted in zip(got[1:], want[1:], strict=True):
        info = np.finfo(state.dtype)
        np.testing.assert_array_equal(np.isfinite(state), np.isfinite(wanted))
        np.testing.assert_allclose(state, wanted, rtol=count * info.eps, atol=count * float(info.smallest_subnormal))


def by_numba(name, p, g, states, step):
    """Update arrays in a loop of one's own, which Numba compiles."""
    getattr(cpu, f"update_{name}")(p, g, *states, *numbers_of(name, step))


def by_pointer(name, p, g, states, step):
    """Update arrays as C does."""
    buffer = embed.ffi.from_buffer
    kept, numbers = embed.ffi.new("void *[]", [buffer(state) for state in states]), np.array(numbers_of(name, step))
    embed.update(name, p.dtype)(buffer(p), buffer(g), kept, p.size, buffer("double *", numbers))


def by_cuda(name, p, g, states, step):
    """Update arrays by the kernel for GPUs, on the host."""
    row = RULES[name].row({**options_of(name), "maximize": False}, step, False)
    Job(name, p.dtype.name, [Tensor(p, g, states)], [row]).launch()


@pytest.mark.parametrize(
    ("update", "name"),
    [
        pytest.param(
            update,
            name,
            marks=[] if update is by_cuda or name == BY_STATES[-1] else pytest.mark.exhaustive,  # Numba compiles long
            id=f"{name}-{update.__name__}",
        )
        for update in (by_numba, by_pointer, by_cuda)
        for name in OF_SQUARES
    ],
)
def test_large_gradients_against_the_oracle(update, name):
    """Three steps in which the average of squares stays finite, and all elements move; float64 is the oracle's own."""
    g = large("float32")
    p, states = np.ones_like(g), [np.zeros_like(g) for _ in RULES[name].states]
    trainer = oracle.Trainer([p])
    for step in (1, 2, 3):
        update(name, p, g, states, step)
        trainer.step(name, [g], options_of(name))
    assert_agree([p, *states], [trainer.params[0], *trainer.states[0]])
    assert (p != 1).all()


def of_numpy(name, p, gradients):
    """A parameter and its states after steps of fastopt's optimizer for NumPy."""
    kind, options = OPTIMIZERS[name]
    optimizer = kind(p, **options)
    for g in gradients:
        optimizer.step(g)
    return [p, *(optimizer.state[0][state] for state in RULES[name].states)]


def of_torch(module, name, p, gradients, **flags):
    """The same in an optimizer for torch, fastopt's or its own."""
    parameter = Parameter(torch.from_numpy(p))
    kind, options = OPTIMIZERS[name]
    optimizer = getattr(module, kind.__name__)([parameter], **options, **flags)
    optimizer = torch_cases.exact(optimizer) if module is torch.optim else optimizer
    for g in gradients:
        parameter.grad = torch.from_numpy(g.copy())
        optimizer.step()
    return [p, *(optimizer.state[parameter][state].numpy() for state in RULES[name].states)]


@pytest.mark.parametrize("sizes", [lambda dtype: large(dtype, ENDS), small], ids=["large", "small"])
@dtypes
@averaging
def test_as_torch(name, dtype, sizes):
    """Elements move, overflow and underflow as torch's do: real ones in NumPy and torch, and complex ones."""
    # Of NAdam torch divides the average by its correction before the root, and overflows where fastopt does not.
    gradients = sizes(dtype) / (256 if name in ("nadam", "nadamw") else 1)
    gradients = [gradients, gradients / 2]
    want = of_torch(torch.optim, name, np.ones_like(gradients[0]), gradients, foreach=False)
    results = [
        of_numpy(name, np.ones_like(gradients[0]), gradients),
        of_torch(fastopt.torch, name, np.ones_like(gradients[0]), gradients),
    ]
    for result in results:
        assert_agree(result, want)
    pairs = [g[: g.size // 2 * 2].view(np.result_type(dtype, np.complex64)) for g in gradients]
    results = [
        of_torch(module, name, np.ones_like(pairs[0]), pairs, **flags)
        for module, flags in ((fastopt.torch, {}), (torch.optim, {"foreach": False}))
    ]
    assert_agree(*([array.view(dtype) for array in result] for result in results))
