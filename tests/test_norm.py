"""The norm of gradients on the CPU: its kernels, and the sum over chunks and launches."""

import math
import re

import numpy as np
import pytest
import torch
from fastopt.kernels import cpu, pool
from fastopt.kernels.dtypes import DTYPES
from fastopt.kernels.tables import ABI
from gradient_layouts import STRIDED
from instructions import packed
from pairs import swept, usually
from tolerances import NORM

from fastopt.step.chunks import CHUNK_ELEMENTS, Strides
from fastopt.step.cpu import ELEMENTS_PER_THREAD, Cpu, CpuLaunch, CpuTables
from fastopt.step.launch import Variant
from fastopt.step.memory import Layout
from fastopt.step.norm import DOWN, LOST, UP, Piece, coefficient, measure

NAMES = [*DTYPES]
SIZES = [0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 100, *(CHUNK_ELEMENTS * k + d for k in (1, 3) for d in (-1, 0, 1))]
each_dtype = pytest.mark.parametrize("dtype", NAMES)


def stored(tensor):
    """A tensor's memory, in the type in which kernels read it."""
    whole = tensor.view(torch.int16) if tensor.itemsize == 2 else tensor
    return whole.numpy().view(DTYPES[str(tensor.dtype).removeprefix("torch.")].stored)


def random(dtype, size, seed=0):
    """Random numbers as they are stored, and in float64."""
    values = torch.from_numpy(np.random.default_rng(seed).standard_normal(size)).to(getattr(torch, dtype))
    return stored(values), values.to(torch.float64).numpy()


def pieces(dtype, arrays):
    """Where gradients lie."""
    return [Piece.of(dtype, array) for array in arrays]


def norm(dtype, *arrays, threads=pool):
    """The norm of gradients of one dtype."""
    return Cpu(threads).norm(pieces(dtype, arrays))


def exact(*arrays):
    """The norm in float64, without overflow or loss, rounded once or twice."""
    return math.hypot(*(number for array in arrays for number in np.asarray(array, np.float64).ravel().tolist()))


class Threads:
    """So many threads of the pool."""

    parallel = 0
    runner = staticmethod(pool.runner)

    def __init__(self, count):
        self.get_num_threads = lambda: count


# Values


@each_dtype
def test_sizes_around_chunks(dtype):
    """Each alone, and all together."""
    arrays, values = zip(*(random(dtype, size, size) for size in SIZES), strict=True)
    for array, value in zip(arrays, values, strict=True):
        assert norm(dtype, array) == (pytest.approx(exact(value), rel=NORM), True)
    assert norm(dtype, *arrays).norm == pytest.approx(exact(*values), rel=NORM)


@swept(1, dtype=NAMES, layout=STRIDED)
def test_layouts(dtype, layout):
    """Whatever the storage order, with dense gradients before and after."""
    for shape in ((3, 5), (130, 300), (300, 130)):
        arrays, wide = ([lay(array) for lay in (np.copy, STRIDED[layout], np.copy)] for array in random(dtype, shape))
        assert norm(dtype, *arrays).norm == pytest.approx(exact(*wide), rel=NORM)


def test_gradients_that_are_not_aligned():
    """To their elements, as those in a packed file."""
    array = np.frombuffer(b"\0" + np.arange(9000, dtype=np.float32).tobytes(), np.float32, offset=1)
    assert not array.flags.aligned
    assert norm("float32", array).norm == pytest.approx(exact(array), rel=NORM)


def test_several_dtypes_together():
    arrays, values = zip(*(random(dtype, 5000, seed) for seed, dtype in enumerate(NAMES)), strict=True)
    together = [Piece.of(dtype, array) for dtype, array in zip(NAMES, arrays, strict=True)]
    assert Cpu(pool).norm(together).norm == pytest.approx(exact(*values), rel=NORM)


@pytest.mark.parametrize("seed", range(5))
def test_no_less_exact_than_torch(seed):
    """Which adds in float32."""
    values = np.random.default_rng(seed).standard_normal(300_001).astype(np.float32)
    want = exact(values)
    assert abs(norm("float32", values).norm - want) <= abs(float(torch.from_numpy(values).norm()) - want)


def test_tensors_without_a_gradient_count_as_zero():
    """Their chunks' sums are written too."""
    (first, last), sizes = (np.full(size, 2.0) for size in (1, 3)), [1, 2 * CHUNK_ELEMENTS, 3]
    tables = CpuTables("float64", sizes)
    tables.sums[:] = np.nan
    tables.write_gradients(np.array([first.ctypes.data, 0, last.ctypes.data]), {})
    assert tables.sum_squares(1.0).tolist() == [4.0, 0.0, 0.0, 12.0]
    assert tables.sum_squares(0.5).tolist() == [1.0, 0.0, 0.0, 3.0]


def test_nothing_at_all():
    assert Cpu(pool).norm([]) == (0.0, True)
    assert measure([]) == (0.0, True)
    assert norm("float32", np.zeros(0, np.float32), np.zeros((3, 0), np.float32)) == (0.0, True)
    assert norm("float64", np.zeros(9000)) == (0.0, True)


# A fixed order


@swept(1, dtype=NAMES, strided=[False, True])
def test_threads_do_not_change_a_bit(dtype, strided):
    """Nor do claims, and whether the chunks of a tensor come one after the other."""
    sizes = [(5 * ELEMENTS_PER_THREAD + 3,), (7,), (700, 450), (2 * CHUNK_ELEMENTS,)]
    arrays = [random(dtype, size, 1)[0] for size in sizes]
    if strided:
        arrays[2] = arrays[2].T
    results = {norm(dtype, *arrays, threads=Threads(count)).norm for count in range(1, 9)}
    assert len(results) == 1


def test_the_sum_is_in_the_order_of_launches_and_chunks():
    """One after the other, as in C; NumPy's sum adds in pairs."""

    class Part:
        def __init__(self, sums):
            self.sums = sums

        def sum_squares(self, power):
            return self.sums

    sums = np.random.default_rng(0).random(1000) * 10.0 ** np.random.default_rng(1).integers(-8, 8, 1000)
    total = 0.0
    for number in sums.tolist():
        total += number
    assert measure([Part(sums[:300]), Part(sums[300:300]), Part(sums[300:])]).norm == math.sqrt(total)
    assert total != sums.sum()


def test_tables_are_kept():
    """For the next gradients of these sizes; other strides are cut anew."""
    device = Cpu(pool)
    first, other = random("float32", (40, 50), 1)[0], random("float32", (40, 50), 2)[0]
    for array in (first, other, first.T, other[::-1, ::2].repeat(2, 1), other):
        assert device.norm(pieces("float32", [array])).norm == pytest.approx(exact(array), rel=NORM)
        assert len(device.cache) == 1


# Extremes


@pytest.mark.parametrize("size", [1, 3, CHUNK_ELEMENTS + 1])
@pytest.mark.parametrize("value", [1e300, -1e300, 1e160, 1e-160, 1e-300, 5e-324, 2.0**-1022, -(2.0**-490), 1.3e154])
def test_squares_beyond_float64(value, size):
    """They overflow or get lost, the norm does not."""
    array = np.full(size, value)
    got = norm("float64", array)
    assert got == (pytest.approx(exact(array), rel=NORM, abs=5e-324), True)


def test_squares_beyond_float64_beside_others():
    """A large gradient counts, whatever is beside it; small ones do not count beside it."""
    for values in ([1e300, 1.0, 1e-300], [1e-300, 1e-170, 1e-163], [0.0, 1e-310, 2e-310]):
        assert norm("float64", np.array(values)).norm == pytest.approx(exact(values), rel=NORM)
    large, usual = np.array([3e200]), np.array([2.0], np.float32)
    assert Cpu(pool).norm([Piece.of("float32", usual), Piece.of("float64", large)]) == (
        pytest.approx(3e200, rel=NORM),
        True,
    )


def test_a_norm_beyond_float64():
    """It is infinite, but all gradients are finite."""
    assert norm("float64", np.full(100, 1.7e308)) == (math.inf, True)


def test_powers_suffice():
    """Nothing overflows after the one, and no sum loses more than a bit that is above the limit."""
    most = 2.0**50
    assert (np.finfo(np.float64).max * DOWN) ** 2 * most < math.inf
    assert (math.sqrt(LOST) * UP) ** 2 * most < math.inf
    assert most * 2.0**-1075 / LOST < np.finfo(np.float64).eps


@pytest.mark.parametrize(
    ("dtype", "largest", "least"),
    [("float32", 3.4e38, 1.4e-45), ("float16", 65504.0, 6e-8), ("bfloat16", 3.3e38, 9.2e-41)],
)
def test_the_largest_and_the_least_of_other_dtypes(dtype, largest, least):
    """Subnormal ones count as well."""
    for value in (largest, -largest, least):
        tensor = torch.full((9000,), value, dtype=getattr(torch, dtype))
        want = pytest.approx(exact(tensor.to(torch.float64).numpy()), rel=NORM)
        assert norm(dtype, stored(tensor)) == (want, True)


@each_dtype
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_not_finite_in_any_chunk(dtype, value):
    """Wherever it is, dense or not."""
    good, _ = random(dtype, 3 * CHUNK_ELEMENTS + 5)
    bad = stored(torch.tensor([value], dtype=getattr(torch, dtype)))
    for place in (0, 1, CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS, 2 * CHUNK_ELEMENTS + 77, good.size - 1):
        array = good.copy()
        array[place] = bad[0]
        for view in (array, np.repeat(array, 2)[::2], array[::-1]):
            got = norm(dtype, good, view)
            assert not got.finite
            assert math.isnan(got.norm) if math.isnan(value) else got.norm == math.inf


def test_infinite_beside_nan():
    assert math.isnan(norm("float32", np.array([np.inf, np.nan], np.float32)).norm)


@pytest.mark.parametrize("factor", [1.0, 0.5, 2.0**-16, 1e-3, 1e-200, 1e200])
def test_factors(factor):
    """Multiply the norm, also where squares overflow."""
    for value in (1.0, 1e300 if factor <= 1 else 1e-300):
        tables = CpuTables("float64", [3])
        array = np.full(3, value)
        tables.write_gradients(np.array([array.ctypes.data]), {})
        assert measure([tables], factor).norm == pytest.approx(exact(array) * factor, rel=NORM)


@pytest.mark.parametrize("norm", [0.0, 0.5, 1.0, 3.0, 1e30, math.inf, math.nan])
@pytest.mark.parametrize("most", [0.0, 1e-3, 1.0, 1e30, math.inf])
def test_coefficients_are_those_of_torch(norm, most):
    want = float(torch.clamp(most / (torch.tensor(norm, dtype=torch.float64) + 1e-6), max=1.0))
    assert coefficient(most, norm) == pytest.approx(want, rel=0.0, nan_ok=True)


# Launches


def test_a_launch_of_a_rule_has_the_norm():
    """It updates as before; the kernel of the norm is there for the extension once it was asked for."""
    p, g = np.ones((300, 200), np.float32), random("float32", (300, 200))[0]
    launch = CpuLaunch(Variant("sgd", "float32"), [p.size])
    assert launch.again()[1] == 0
    launch.addresses[0, :2] = p.ctypes.data, g.ctypes.data
    launch.hypers[0, :3] = 1.0, 0.0, 0.5
    for gradient in (g, np.asfortranarray(g), g):
        layout = Layout(p)
        strides = {} if gradient.flags.c_contiguous else {0: Strides.of(layout.in_storage_order(gradient))}
        launch.write_gradients(np.array([gradient.ctypes.data]), strides)
        p[...] = 1.0
        assert measure([launch]).norm == pytest.approx(exact(g), rel=NORM)
        assert (p == 1.0).all()
        launch()
        np.testing.assert_array_equal(p, 1.0 - np.float32(0.5) * g)
    assert launch.again()[1] == cpu.kernel("norm", "float32").address


# The code


@pytest.mark.parametrize("dtype", usually(["bfloat16"], DTYPES))
def test_loops_are_vectorised(dtype):
    """Products and sums are packed, in float64."""
    code = cpu.make_cfunc(cache=False)(cpu.make_norm(dtype))._library.get_asm_str()
    assert re.search(packed("mul", "float64"), code)
    assert re.search(packed("add", "float64"), code)


@each_dtype
def test_kernels_are_compiled_once(dtype):
    kernel = cpu.kernel("norm", dtype)
    assert kernel is cpu.kernel("norm", dtype)
    assert kernel.__name__ == f"norm_{dtype}_abi{ABI}"
