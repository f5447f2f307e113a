"""CUDA kernels whose states have other dtypes than they compute in, compiled for the host: against the oracle."""

import numpy as np
import pytest
from cuda_cases import MORE, Guards, meant, normal, options_of, row_of, stored
from cuda_jobs import Job, Numbers, Tensor
from fastopt.bench import oracle
from fastopt.kernels import cuda
from fastopt.kernels.dtypes import DTYPES
from halves import DIGITS, LEAST
from host_cuda import STAGES, STORED
from tolerances import ONE_STEP, assert_close, assert_rounded

SIZES = (0, 1, 3, 511, 512, 513, 2049, 5000)
USUAL = [("adamw", "float32", ("bfloat16", "float32"))]
KINDS = dict.fromkeys((name, dtype, states) for name, dtype, _, _, states in STORED)

kinds = pytest.mark.parametrize(
    ("name", "dtype", "states"),
    [pytest.param(*kind, marks=[] if kind in USUAL else pytest.mark.exhaustive) for kind in KINDS],
)


def tensor_of(guards, rng, size, dtype, states, offsets=(0, 0, 0), of_squares=0.5):
    """Place a parameter, a gradient, states and an average, with random numbers that are no average of squares."""
    arrays = [normal(rng, size, dtype) for _ in range(2)]
    param, grad = (guards.place(array, offset) for array, offset in zip(arrays, offsets[:2], strict=True))
    kept = [guards.place(stored(np.full(size, of_squares), state), offsets[2]) for state in states]
    average = guards.place(rng.standard_normal(size).astype(DTYPES[dtype].real))
    return Tensor(param, grad, kept, average=average)


def assert_stored(array, want, dtype, real):
    """Assert that numbers are those of the oracle, rounded once to a dtype."""
    if dtype in DIGITS:
        assert_rounded(meant(array, dtype), want, DIGITS[dtype], LEAST[dtype], ONE_STEP)
    else:
        assert_close(array.astype(real), want, ONE_STEP)


def check(name, dtype, states, tensor, launch):
    """Launch the third step, and compare all arrays."""
    options = options_of(name, MORE)
    was = [meant(tensor.param, dtype), meant(tensor.grad, dtype)]
    kept = [meant(array, state) for array, state in zip(tensor.states, states, strict=True)]
    want, want_states = oracle.RULES[name](*was, kept, 3, options)
    moved = launch([tensor], [row_of(name, options, 3)])
    for array, expected, state in zip(tensor.states, want_states, states, strict=True):
        assert_stored(array, expected, state, np.float32 if state != "float64" else np.float64)
    assert_stored(tensor.param, want, dtype, DTYPES[dtype].real)
    return moved


@kinds
def test_sizes(name, dtype, states):
    """At sizes around packs and chunks; 16 bytes at once where a pack has as many."""
    rng = np.random.default_rng(1)
    for size in SIZES:
        guards = Guards()

        def launch(tensors, rows, guards=guards):
            return guards.launch(Job(name, dtype, tensors, rows, states=states))

        moved = check(name, dtype, states, tensor_of(guards, rng, size, dtype, states), launch)
        width = cuda.pack(dtype)
        pieces = sum(width * DTYPES[state].itemsize // 16 for state in states)
        assert moved == size // width * (3 + 2 * pieces)


@kinds
def test_alignments(name, dtype, states):
    """Whatever lies off the borders of 16 bytes, packs are moved only where all of them may be."""
    rng = np.random.default_rng(2)
    for offsets in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 3), (0, 0, 4), (2, 2, 2)):
        guards = Guards()
        tensor = tensor_of(guards, rng, 1000, dtype, states, offsets)
        aligned = all(array.ctypes.data % 16 == 0 for array in (tensor.param, tensor.grad, *tensor.states))

        def launch(tensors, rows, guards=guards):
            return guards.launch(Job(name, dtype, tensors, rows, states=states))

        assert (check(name, dtype, states, tensor, launch) > 0) == aligned


@kinds
def test_with_all_stages(name, dtype, states):
    """Clipped by value, averaged and zeroed."""
    rng = np.random.default_rng(3)
    guards = Guards()
    tensor = tensor_of(guards, rng, 3000, dtype, states)
    average = tensor.average.astype(np.float64)
    numbers = Numbers(limit=np.inf, gain=0.25)

    def launch(tensors, rows):
        return Job(name, dtype, tensors, rows, stages=STAGES, numbers=numbers, states=states).launch()

    check(name, dtype, states, tensor, launch)
    for guarded in guards.all:
        guarded.assert_kept()
    assert_close(tensor.average, 0.75 * average + 0.25 * meant(tensor.param, dtype), ONE_STEP)
    assert not tensor.grad.any()


def test_names():
    """A kernel says what its states are, if that is not what it computes in."""
    assert cuda.Kind("adam", "float32", states=("bfloat16", "float32")).name == (
        "adam_float32_float32_bfloat16_float32_512"
    )
    assert cuda.Kind("sgd", "bfloat16").name == "sgd_bfloat16_bfloat16_float32_512"
