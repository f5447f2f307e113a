"""CUDA kernels that round stochastically, compiled for the host: the random bits, and rounding, of the oracle."""

import numpy as np
import pytest
from cuda_cases import Guards, meant, normal, stored
from cuda_jobs import Job, Tensor
from fastopt.kernels import cpu, cuda
from halves import values
from host_cuda import RANDOM
from noise import noise, numbers, stochastic
from pairs import usually
from rule_cases import HALVES
from test_rounding import samples

SIZES = (0, 1, 3, 511, 512, 513, 2049, 5000)
KEY, STEPS = -(2**62) - 12345, 7
USUAL = [("adamw", "bfloat16", ("bfloat16", "bfloat16"))]

kinds = pytest.mark.parametrize(
    ("name", "dtype", "states"),
    [
        pytest.param(*kind, marks=[] if kind in USUAL else pytest.mark.exhaustive)
        for kind in dict.fromkeys((name, dtype, states) for name, dtype, _, _, states, *_ in RANDOM)
    ],
)


def random_job(name, dtype, tensors, row, states=(), **more):
    """A job with a key for each tensor."""
    job = Job(name, dtype, tensors, [row], states=states, rounding=cpu.STOCHASTIC, **more)
    job.storages["key"] = KEY + np.arange(len(tensors))
    job.steps = STEPS
    return job


def rounded_alike(x, dtype, index, number=0, key=KEY, steps=STEPS):
    """Float32 numbers as kernels store them."""
    return stochastic(x, dtype, noise(key, steps, index, number)) if dtype in HALVES else x


@kinds
def test_what_a_kernel_stores(name, dtype, states):
    """What the same kernel computes in float32, rounded alike: at all sizes, and off the packs' borders."""
    row = (1.0, 0.25, 0.0625, 0.5, 0.25, 2.0**-20, 0.5)[: 2 + cpu.counts_of(name)[1]]
    dtypes = (dtype, *(states or ("float32",) * cpu.STATES_OF[name]))
    rng = np.random.default_rng(1)
    for size, offset in [*((size, 0) for size in SIZES), (1000, 1)]:
        guards = Guards()
        arrays = [stored(np.abs(rng.standard_normal(size)), of) for of in dtypes]
        gradient = normal(rng, size, dtype)
        exact = [meant(array, of).astype(np.float32) for array, of in zip(arrays, dtypes, strict=True)]
        placed = [guards.place(array, offset) for array in arrays]
        tensor = Tensor(placed[0], guards.place(gradient, offset), placed[1:])
        guards.launch(random_job(name, dtype, [tensor], row, states))
        Job(name, "float32", [Tensor(exact[0], meant(gradient, dtype).astype(np.float32), exact[1:])], [row]).launch()
        for place, (of, number) in enumerate(zip(dtypes, numbers(dtypes), strict=True)):
            want = rounded_alike(exact[place], of, np.arange(size), number)
            assert placed[place].tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", usually(["bfloat16"], HALVES))
def test_rounding_is_that_of_the_cpu(dtype):
    """Bit for bit, for float32 numbers of all kinds, but subnormals, which the arithmetic before it flushes to zero."""
    x = samples(dtype)
    g, p = (np.zeros(x.size, np.uint16) for _ in range(2))
    row = (1.0, 0.0, -1.0, 1.0)  # v <- 1 * v + 0, and p <- 0 - (-1) * v
    random_job("momentum", dtype, [Tensor(p, g, [x.copy()])], row).launch()
    kept = np.abs(x) >= np.float32(2.0**-126)
    np.testing.assert_array_equal(p[kept], rounded_alike(x, dtype, np.arange(x.size))[kept])
    assert np.isnan(values(p[np.isnan(x)], dtype)).all()


def test_indices_beyond_32_bits():
    """The upper half of an index counts; the arrays lie as if they were the end of larger ones."""
    for start in (0, 2**32, 2**33 + 4096):
        p, g = np.zeros(100, np.uint16), stored(np.full(100, 0.3), "bfloat16")
        job = random_job("sgd", "bfloat16", [Tensor(p, g, [])], (1.0, 0.0, 0.01))
        job.chunks["offset"] = job.chunks["grad_offset"] = start
        for name in ("param", "grad"):
            job.table[name] -= 2 * start
        job.launch()
        exact = np.float32(-0.01) * values(g, "bfloat16")
        assert p.tobytes() == rounded_alike(exact, "bfloat16", start + np.arange(100)).tobytes()


def test_a_gradient_in_another_order():
    """The same bits as with the gradient in the parameter's order."""
    rng = np.random.default_rng(2)
    p, g = (normal(rng, (67, 45), "bfloat16") for _ in range(2))
    other = p.copy()
    random_job("sgd", "bfloat16", [Tensor(p, g, [])], (1.0, 0.0, 0.01)).launch()
    random_job("sgd", "bfloat16", [Tensor(other, np.asfortranarray(g), [])], (1.0, 0.0, 0.01)).launch()
    assert p.tobytes() == other.tobytes()


def test_a_count_of_the_device_is_added():
    """And tensors have keys of their own."""
    tensors = [Tensor(np.zeros(300, np.uint16), stored(np.full(300, 0.3), "bfloat16"), []) for _ in range(2)]
    job = random_job("sgd", "bfloat16", tensors, (1.0, 0.0, 0.01))
    job.counted = np.array([5], np.int64)
    job.launch()
    exact = np.float32(-0.01) * values(tensors[0].grad, "bfloat16")
    for number, tensor in enumerate(tensors):
        want = rounded_alike(exact, "bfloat16", np.arange(300), key=KEY + number, steps=STEPS + 5)
        assert tensor.param.tobytes() == want.tobytes()


def test_names():
    """A kernel says how it rounds."""
    name = cuda.Kind("adam", "bfloat16", stages=("average",), rounding="stochastic").name
    assert name == "adam_bfloat16_bfloat16_float32_average_stochastic_512"
    assert (
        "Stage::average | fastopt::cuda::Stage::stochastic"
        in cuda.Kind("adam", "bfloat16", stages=("average",), rounding="stochastic").source()
    )
