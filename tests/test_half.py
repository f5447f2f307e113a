"""float16 and bfloat16 parameters: conversions bit for bit, every rule, gradients in another order, and the code."""

import itertools
import re

import numpy as np
import pytest
import torch
from fastopt.bench import oracle
from fastopt.kernels import cache, cpu, lazy, pool
from fastopt.kernels.dtypes import DTYPES
from fastopt.kernels.tables import ABI, HYPERS, JOB, STATES, TENSOR
from gradient_layouts import STRIDED
from guarded import Guarded
from halves import (
    DIGITS,
    INFINITY,
    LEAST,
    assert_converts,
    borders,
    every_pattern,
    rounded,
    values,
)
from instructions import FUSED, OUTLINED, SHIFT, any_arithmetic, operations, packed
from numba import njit
from pairs import usually
from rule_cases import BY_STATES, HALVES, OPTIONS
from tolerances import ONE_STEP, assert_close, assert_rounded

from fastopt import rules
from fastopt.step.chunks import CHUNK_ELEMENTS, TILE_ELEMENTS, Strides, chunk_table

SIZES = [*range(36), 63, 64, 65, CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS, CHUNK_ELEMENTS + 1]
SOME = [("sgd", "bfloat16"), ("adagrad", "bfloat16"), ("adamw_amsgrad", "bfloat16"), ("sgd", "float16")]
halves = pytest.mark.parametrize("dtype", HALVES)
each_rule = pytest.mark.parametrize(("name", "dtype"), usually(SOME, itertools.product(rules.RULES, HALVES)))


@njit
def widen_all(patterns, out):
    for i in range(patterns.size):
        out[i] = cpu.widen(patterns[i])


@njit
def narrow_all(x, out):
    for i in range(x.size):
        out[i] = cpu.narrow(x[i], out, 0, i, None)


def widened(patterns, dtype):
    """16-bit patterns as float32, by the kernels' conversion."""
    out = np.empty(patterns.shape, np.float32)
    widen_all(patterns.view(DTYPES[dtype].stored), out)
    return out


def narrowed(x, dtype):
    """The bits of float32 numbers rounded to halves, by the kernels' conversion."""
    out = np.empty(x.shape, DTYPES[dtype].stored)
    narrow_all(x, out)
    return out.view(np.uint16)


# Conversions


@halves
def test_conversions(dtype):
    """All patterns, and every border between two of them."""
    assert_converts(widened, narrowed, dtype)


@halves
def test_halves_survive_where_subnormals_are_flushed(dtype):
    """The processor then flushes float32's to zero; float16's are normal in float32, and bfloat16's are only copied."""
    patterns = every_pattern()
    patterns = patterns[~np.isnan(values(patterns, dtype))]
    x = borders(dtype)
    want = widened(patterns, dtype), narrowed(x, dtype)
    try:
        torch.set_flush_denormal(True)  # of this thread alone; without effect on some processors
        got = widened(patterns, dtype), narrowed(x, dtype)
    finally:
        torch.set_flush_denormal(False)
    assert [array.tobytes() for array in got] == [array.tobytes() for array in want]


# Kernels


def step(name, dtype, p, g, states, row):
    """Run a kernel once: patterns p in C order, patterns g of any strides, float32 states."""
    strided = {} if g.flags.c_contiguous else {0: Strides.of(g)}
    chunks, layouts = chunk_table([p.size], strided)
    guarded = [Guarded(array) for array in (p, *states)]
    scratch = Guarded(np.zeros(TILE_ELEMENTS, np.uint16))
    table, hypers, job = np.zeros(1, TENSOR), np.zeros((1, HYPERS)), np.zeros((), JOB)
    addresses = [array.array.ctypes.data for array in guarded]
    table["param"], table["grad"] = addresses[0], g.ctypes.data
    table["states"] = addresses[1:] + [0] * (STATES - len(states))
    table["layout"] = layouts.ctypes.data if strided else 0
    hypers[0, : len(row)] = row
    job["abi"], job["power"], job["coefficient"] = ABI, 1, 1
    job["tensors"], job["chunks"], job["hypers"] = table.ctypes.data, chunks.ctypes.data, hypers.ctypes.data
    job["scratch"], job["scratch_bytes"] = scratch.array.ctypes.data, scratch.array.nbytes
    before = g.copy()
    pool.runner(cpu.kernel(name, dtype), job.ctypes.data)(len(chunks), 1, 1)
    for array in (*guarded, scratch):
        array.assert_kept()
    np.testing.assert_array_equal(g, before)
    for array, result in zip((p, *states), guarded, strict=True):
        array[...] = result.array


def normal(rng, shape, dtype):
    """Random halves, as bits."""
    return rounded(rng.standard_normal(shape, np.float32), dtype)


@pytest.mark.parametrize("more", [{}, {"weight_decay": 0.01, "maximize": True}], ids=["plain", "all options"])
@each_rule
def test_rules_against_the_oracle(name, dtype, more):
    """Three steps at every size, each from what the last one left, and not an element further."""
    rng = np.random.default_rng(2)
    options = {**OPTIONS, **more}
    for size in SIZES:
        p = normal(rng, size, dtype)
        states = [np.zeros(size, np.float32) for _ in rules.RULES[name].states]
        for count in (1, 2, 3):
            g = normal(rng, size, dtype)
            before = [array.astype(np.float64) for array in (values(p, dtype), values(g, dtype), *states)]
            want, want_states = oracle.RULES[name](*before[:2], before[2:] if count > 1 else None, count, options)
            step(name, dtype, p, g, states, rules.RULES[name].row(options, count, count == 1))
            assert_rounded(values(p, dtype).astype(np.float64), want, DIGITS[dtype], LEAST[dtype], ONE_STEP)
            for state, expected in zip(states, want_states, strict=True):
                assert_close(state, expected, ONE_STEP)


@pytest.mark.parametrize("strided", STRIDED.values(), ids=STRIDED)
@pytest.mark.parametrize(("name", "dtype"), usually(SOME, itertools.product(BY_STATES, HALVES)))
def test_strided_gradients(name, dtype, strided):
    """The same bits as with a gradient in the parameter's order."""
    rng = np.random.default_rng(3)
    g = strided(normal(rng, (67, 45), dtype))
    assert not g.flags.c_contiguous
    p = normal(rng, g.shape, dtype)
    states = [rng.random(g.shape, np.float32) for _ in rules.RULES[name].states]
    row = rules.RULES[name].row({**OPTIONS, "weight_decay": 0.01}, 2, False)
    want, want_states = p.copy(), [state.copy() for state in states]
    step(name, dtype, want, np.ascontiguousarray(g), want_states, row)
    step(name, dtype, p, g, states, row)
    np.testing.assert_array_equal(p, want)
    for state, expected in zip(states, want_states, strict=True):
        np.testing.assert_array_equal(state, expected)


@each_rule
def test_non_finite_gradients_propagate(name, dtype):
    """A NaN or an infinity reaches its own element and no other."""
    p, g = np.ones(40, np.float32), np.full(40, 0.5, np.float32)
    g[7], g[20] = np.nan, np.inf
    p, g = rounded(p, dtype), rounded(g, dtype)
    states = [np.zeros(40, np.float32) for _ in rules.RULES[name].states]
    step(name, dtype, p, g, states, rules.RULES[name].row(OPTIONS, 1, True))
    finite = np.isfinite([values(p, dtype), *states]).all(axis=0)  # lion's parameter moves by a sign
    assert not finite[[7, 20]].any()
    assert np.delete(finite, [7, 20]).all()


@halves
def test_what_is_too_large_becomes_infinity(dtype):
    """The largest half and a half of its last bit are rounded up, to even; with less, it stays."""
    largest = np.full(2, INFINITY[dtype] - 1, np.uint16)
    last_bit = values(largest, dtype)[0] - values(largest - 1, dtype)[0]
    p, g = largest.copy(), rounded(np.array([-0.5, -0.25], np.float32) * last_bit, dtype)
    step("sgd", dtype, p, g, [], (1.0, 0.0, 1.0))
    assert list(p) == [INFINITY[dtype], INFINITY[dtype] - 1]


@halves
def test_names_of_a_dtype(dtype):
    """A kernel is found by the dtype's name, and by NumPy's dtype if there is one; once, and in the cache."""
    kernel = cpu.kernel("sgd", dtype)
    assert lazy.kernel("sgd", dtype) is kernel
    assert cpu.cached("sgd", dtype) == (cache.directory() is not None)
    if dtype == "float16":
        assert cpu.kernel("sgd", np.float16) is cpu.kernel("sgd", np.dtype(np.float16)) is kernel


# The code


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if (name, dtype) == ("momentum", "bfloat16") else pytest.mark.exhaustive)
        for name in rules.RULES
        for dtype in HALVES
    ],
)
def test_loops_are_vectorised(name, dtype):
    """Arithmetic and conversions are packed, in float32 and nothing wider; no function converts, nothing is fused."""
    code = cpu.make_cfunc(cache=False)(cpu.make_kernel(name, dtype))._library.get_asm_str()
    for operation in operations(name):
        assert re.search(packed(operation, "float32"), code), operation
    assert re.search(SHIFT, code)
    assert [line.strip() for line in code.splitlines() if re.search(any_arithmetic("float64"), line)] == []
    assert re.findall(FUSED, code) == []
    assert re.findall(r"__\w*hf\w*|__\w*bf\w*", code) == []
    assert not re.search(OUTLINED, code)
