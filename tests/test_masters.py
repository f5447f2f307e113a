"""Masters of parameters of 16 bits, on NumPy's arrays: the arithmetic, and steps against float32 parameters."""

import re

import numpy as np
import pytest
from fastopt.kernels import cpu
from halves import values
from instructions import any_arithmetic, operations, packed
from ml_dtypes import bfloat16
from numba import njit
from pairs import usually
from rule_cases import OPTIMIZERS

import fastopt
from fastopt.rules import RULES

SIZES = (0, 1, 7, 16_384, 16_385, 50_000)


# The arithmetic of elements


@njit
def wrong(start, count):
    """Count the float32 patterns that are not kept, or of which a parameter does not show what rounds half up."""
    found = 0
    for i in range(count):
        pattern = np.uint32(start + i)
        x = cpu.from_bits(pattern)
        param, remainder = cpu.split(x, 0)
        short_param, short = cpu.split(x, 8)
        whole, of_24 = cpu.joined(param, remainder, 0), cpu.joined(short_param, short, 8)
        if x != x:
            right = whole != whole and of_24 != of_24 and cpu.from_bfloat16(param) != cpu.from_bfloat16(param)
        else:
            kept = np.uint32(pattern + 0x80) & np.uint32(0xFFFFFF00)
            right = cpu.bits(whole) == pattern and cpu.bits(of_24) == kept
            right &= np.uint16(param) == np.uint16(np.uint32(pattern + 0x8000) >> 16)
            right &= np.uint16(short_param) == np.uint16(np.uint32(kept + 0x8000) >> 16)
        found += not right
    return found


# Around 0, the largest numbers and infinity, in both signs; and some in between.
AROUND = [0, 0x00800000, 0x3F800000, 0x7F7F0000, 0x80000000, 0xBF800000, 0xFF7F0000, 0xFFFE0000]


@pytest.mark.parametrize("start", AROUND, ids=hex)
def test_splitting_and_joining(start):
    """A remainder of 16 bits keeps all bits, one of 8 the upper 24; a NaN stays one."""
    assert wrong(start, 2**17) == 0


@pytest.mark.exhaustive
def test_all_patterns():
    """The same of all that float32 has."""
    assert wrong(0, 2**32) == 0


@njit
def join_all(patterns, remainders, out, short):
    for i in range(out.size):
        out[i] = cpu.joined(patterns[i], remainders[i], 8 if short else 0)


@pytest.mark.parametrize("remainder", [-0x8000, -1, 0, 1, 0x7FFF])
@pytest.mark.parametrize("short", [False, True])
def test_what_somebody_writes_counts(remainder, short):
    """Whatever the remainder was, the master rounds to the parameter; beside 0 and infinity it could be NaN."""
    patterns, out = np.arange(2**16, dtype=np.uint16), np.empty(2**16, np.float32)
    remainders = np.full(2**16, remainder >> 8 if short else remainder, np.int8 if short else np.int16)
    join_all(patterns.view(np.int16), remainders, out, short)
    written = values(patterns, "bfloat16")
    nan = np.isnan(written)
    assert np.array_equal(np.isnan(out), nan)
    back = ((out.view(np.uint32) + np.uint32(0x8000)) >> 16).astype(np.uint16)
    assert np.array_equal(back[~nan], patterns[~nan])


@pytest.mark.parametrize(
    ("dtype", "master", "gradient"),
    usually(
        [("bfloat16", "int16", "")],
        [("bfloat16", "int16", ""), ("bfloat16", "int8", "float32"), ("float16", "float32", "")],
    ),
)
def test_loops_are_vectorised(dtype, master, gradient):
    """In float32, and integers of 32 bits: nothing is wider."""
    code = cpu.make_cfunc(cache=False)(cpu.make_kernel("adamw", dtype, (), (), gradient, master))._library.get_asm_str()
    for operation in operations("adamw"):
        assert re.search(packed(operation, "float32"), code), operation
    assert [line for line in code.splitlines() if re.search(any_arithmetic("float64"), line)] == []
    assert not re.search(r"\bv?p(add|sub|sll|srl|movsxd|movzxd)q\b|\bv?blendvpd\b", code)


# Steps

DTYPES = {"float16": np.float16, "bfloat16": bfloat16}


def arrays(seed, dtype=np.float32, sizes=SIZES):
    """Parameters, or gradients, of all sizes, one of them in Fortran's order."""
    rng = np.random.default_rng(seed)
    made = [rng.standard_normal(size).astype(np.float32).astype(dtype) for size in sizes]
    return [*made, np.asfortranarray(rng.standard_normal((30, 20)).astype(np.float32).astype(dtype))]


def bits(array):
    """The bits of an array, in C order."""
    return np.ascontiguousarray(array).tobytes()


def wide(given):
    """Arrays in float32."""
    return [array.astype(np.float32) for array in given]


def half_up(x):
    """The bfloat16 numbers to which float32 ones are rounded half up."""
    return ((x.view(np.uint32) + np.uint32(0x8000)) >> 16).astype(np.uint16).view(bfloat16)


def seen(x, dtype):
    """What a parameter shows of its master."""
    return half_up(x) if dtype == "bfloat16" else x.astype(np.float16)


def assert_masters(optimizer, singles):
    """Assert that the masters are these float32 parameters to the bit."""
    for i, (found, single) in enumerate(zip(optimizer.master_state_dict().values(), singles, strict=True)):
        assert found.dtype == np.float32
        assert bits(found) == bits(single), i


def step_both(mine, theirs, dtype, seed):
    """Take a step with gradients of 16 bits, and with the same numbers in float32."""
    grads = arrays(seed, DTYPES[dtype])
    mine.step(grads)
    theirs.step(wide(arrays(seed, DTYPES[dtype])))


USUAL = [("momentum", "bfloat16")]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if (name, dtype) in USUAL else pytest.mark.exhaustive)
        for name in RULES
        for dtype in DTYPES
    ],
)
def test_masters_are_float32_parameters(name, dtype):
    """A training of parameters of 16 bits with masters is that of float32 parameters, to the bit, states included."""
    make, options = OPTIMIZERS[name]
    params = arrays(0, DTYPES[dtype])
    singles = wide(params)
    mine, theirs = make(params, master_weights=True, **options), make(singles, **options)
    for seed in range(4):
        step_both(mine, theirs, dtype, 10 + seed)
        assert_masters(mine, singles)
        assert [bits(param) for param in params] == [bits(seen(single, dtype)) for single in singles]
    for i in range(len(params)):
        for state in RULES[name].states:
            assert bits(mine.state[i][state]) == bits(theirs.state[i][state])
        assert mine.state[i]["master"].dtype == (np.int16 if dtype == "bfloat16" else np.float32)


def test_masters_of_24_bits():
    """Against float32 parameters that are rounded half up to as many after each step."""
    params = arrays(0, bfloat16)
    singles = wide(params)
    options = {"lr": 0.01, "momentum": 0.9}
    mine, theirs = fastopt.SGD(params, master_weights=24, **options), fastopt.SGD(singles, **options)
    for seed in range(4):
        step_both(mine, theirs, "bfloat16", 10 + seed)
        for single in singles:
            patterns = single.view(np.uint32)
            patterns[...] = (patterns + np.uint32(0x80)) & np.uint32(0xFFFFFF00)
        assert_masters(mine, singles)
        assert [bits(param) for param in params] == [bits(half_up(single)) for single in singles]
    assert mine.state[1]["master"].dtype == np.int8


@pytest.mark.parametrize("dtype", usually(["bfloat16"], DTYPES))
def test_small_steps_add_up(dtype):
    """What masters are for: steps of less than half of the last bit move the parameter in the end."""
    stuck, moving = np.ones(5, DTYPES[dtype]), np.ones(5, DTYPES[dtype])
    plain, master = fastopt.SGD(stuck, lr=1e-4), fastopt.SGD(moving, lr=1e-4, master_weights=True)
    for _ in range(1000):
        plain.step(np.ones_like(stuck))
        master.step(np.ones_like(moving))
    assert (stuck == 1).all()
    np.testing.assert_allclose(moving.astype(np.float64), 0.9, rtol=2.0**-8)
    np.testing.assert_allclose(master.master_state_dict()[0], 0.9, rtol=1e-4)


def test_stages():
    """Clipping is that of float32, averages are those of the masters, also where a parameter takes no part."""
    params = arrays(0, bfloat16)
    singles = wide(params)
    options = {"lr": 0.1, "max_grad_norm": 0.5, "clip_grad_value": 2.0, "ema_decay": 0.5}
    mine, theirs = fastopt.AdamW(params, master_weights=True, **options), fastopt.AdamW(singles, **options)
    for seed in range(4):
        mine_grads, grads = arrays(10 + seed, bfloat16), wide(arrays(10 + seed, bfloat16))
        if seed == 2:
            mine_grads[4] = grads[4] = None
        mine.step(mine_grads)
        theirs.step(grads)
        assert_masters(mine, singles)
        assert mine.grad_norm == theirs.grad_norm
    for i in range(len(params)):
        assert bits(mine.state[i]["ema"]) == bits(theirs.state[i]["ema"])
    before = [bits(param) for param in params]
    with mine.swap_ema_weights():
        assert [bits(param) for param in params] != before
    step_both(mine, theirs, "bfloat16", 20)
    assert_masters(mine, singles)


def test_averages_begin_at_the_masters():
    """Where they begin later than these, and a loaded average without a master begins with one, whoever takes part."""
    params = arrays(0, bfloat16)
    mine = fastopt.SGD(params, lr=0.3, momentum=0.9, master_weights=True)
    mine.step(arrays(1, bfloat16))
    masters = mine.master_state_dict()
    mine.ema_decay = 1.0
    mine.step(arrays(2, bfloat16))
    assert all(bits(mine.state[i]["ema"]) == bits(master) for i, master in masters.items())
    saved = mine.state_dict()
    for entry in saved["state"].values():
        del entry["master"]
    mine.load_state_dict(saved)
    mine.ema_decay = 0.0
    mine.step([*arrays(3, bfloat16)[:2], *[None] * 5])  # the others are averaged all the same
    for i, param in enumerate(params[2:], 2):
        assert bits(mine.state[i]["ema"]) == bits(param.astype(np.float32))
        assert not mine.state[i]["master"].any()


@pytest.mark.exhaustive  # compiles a kernel of its own
def test_gradients_in_another_order_and_zeroed():
    """As for all kernels: tiles, and gradients that are set to zero."""
    rng = np.random.default_rng(3)
    start = rng.standard_normal((300, 70)).astype(bfloat16)
    param, single = start.copy(), start.astype(np.float32)
    mine = fastopt.SGD(param, lr=0.1, momentum=0.9, master_weights=True)
    theirs = fastopt.SGD(single, lr=0.1, momentum=0.9)
    for order in ("F", "C"):
        g = np.array(rng.standard_normal((300, 70)), np.float32).astype(bfloat16)
        theirs.step(g.astype(np.float32))
        g = np.array(g, order=order)
        mine.step(g, zero_grads=True)
        assert not g.astype(np.float32).any()
        assert bits(mine.master_state_dict()[0]) == bits(single)


@pytest.mark.parametrize("dtype", usually(["bfloat16"], DTYPES))
@pytest.mark.parametrize("bits_kept", [True, 24])
def test_what_is_written_between_steps_counts(dtype, bits_kept):
    """A new value is the next step's: it stays within half of its last bit, and 0 stays 0."""
    param = np.full(40, 1.7, DTYPES[dtype])
    optimizer = fastopt.SGD(param, lr=1e-3, master_weights=bits_kept)
    for _ in range(3):
        optimizer.step(np.linspace(-1, 1, 40).astype(DTYPES[dtype]))
    for new in (0.0, -0.0, 3.0, -0.1, np.inf, 1e-30):
        param[...] = new
        written = param.copy()
        optimizer.step(np.zeros_like(param))
        assert param.tobytes() == written.tobytes()
        assert not np.isnan(optimizer.master_state_dict()[0]).any()


def test_infinite_and_missing_numbers():
    """A NaN, an infinity, and numbers that round to infinity reach their own element and no other."""
    param, single = np.ones(40, bfloat16), np.ones(40, np.float32)
    largest = np.finfo(np.float32).max
    g = np.zeros(40, np.float32)
    g[[3, 7, 20]] = np.nan, np.inf, largest
    mine, theirs = fastopt.SGD(param, lr=1.0, master_weights=True), fastopt.SGD(single, lr=1.0)
    mine.step(g.astype(bfloat16))
    theirs.step(g.astype(bfloat16).astype(np.float32))
    np.testing.assert_array_equal(mine.master_state_dict()[0], single)
    assert np.isnan(param[3])
    assert param[7] == -np.inf


# State dicts


def masters_after(given, before, after, change=lambda saved: None):
    """The masters of an optimizer with some bits, and of one with others that loads its state dict."""
    params = given
    saving = fastopt.SGD(params, lr=0.01, momentum=0.9, master_weights=before)
    saving.step(arrays(2, params[1].dtype))
    saved = saving.state_dict()
    change(saved)
    loading = fastopt.SGD([param.copy(order="K") for param in params], lr=0.01, momentum=0.9, master_weights=after)
    loading.load_state_dict(saved)
    return saving, loading


KEPT = [False, True, 24]


@pytest.mark.parametrize("after", KEPT, ids=str)
@pytest.mark.parametrize("before", KEPT, ids=str)
def test_loading_converts(before, after):
    """Remainders are cut to 8 bits or widened to 16; where there are none, masters begin at the parameters."""
    params = arrays(0, bfloat16)
    saving, loading = masters_after(params, before, after)
    for i, param in enumerate(params):
        want, got = saving.master_state_dict()[i], loading.master_state_dict()[i]
        if not before or not after:
            want = param.astype(np.float32)
        apart = np.abs(want.view(np.uint32).astype(np.int64) - got.view(np.uint32).astype(np.int64))
        assert (apart <= (128 if (before, after) == (True, 24) else 0)).all()
        assert ("master" in loading.state[i]) == bool(after)
    if before == after:
        for optimizer in (saving, loading):
            optimizer.step(arrays(3, bfloat16))
        assert_masters(loading, saving.master_state_dict().values())


def test_other_remainders_begin_anew():
    """A float32 copy, of float16, says nothing of bfloat16; one of another shape is refused."""

    def replace(saved):
        for entry in saved["state"].values():
            entry["master"] = entry["master"].astype(np.float32)

    params = arrays(0, bfloat16)
    _, loading = masters_after(params, True, True, replace)
    assert_masters(loading, wide(params))

    def cut(saved):
        saved["state"][3]["master"] = np.zeros(3, np.int16)

    with pytest.raises(ValueError, match=r"the master of parameter 3 in the state dict has shape \(3,\)"):
        masters_after(params, True, True, cut)


# Options


@pytest.mark.parametrize(
    ("given", "kept"), [(True, True), (32, True), (np.int64(24), 24), (False, False), (np.True_, True)]
)
def test_ways_to_ask(given, kept):
    """By a flag, or the number of bits."""
    group = fastopt.SGD(np.zeros(3, bfloat16), master_weights=given).param_groups[0]
    assert group.get("master_weights", False) is kept


@pytest.mark.parametrize(
    ("bad", "error"), [(16, ValueError), (1, ValueError), ("float32", TypeError), (None, TypeError)]
)
def test_bad_options(bad, error):
    """The error says what may be."""
    with pytest.raises(error, match=r"Invalid master_weights: .* 24"):
        fastopt.SGD(np.zeros(3, bfloat16), master_weights=bad)


def test_masters_stay():
    """An assignment says what to do instead; groups may differ."""
    first, second, third = (np.zeros(9, dtype) for dtype in (bfloat16, bfloat16, np.float32))
    optimizer = fastopt.SGD([{"params": first, "master_weights": 24}, {"params": second}, {"params": third}], lr=0.1)
    with pytest.raises(ValueError, match="master_weights of group 0 is fixed"):
        optimizer.param_groups[0]["master_weights"] = True
    optimizer.step([np.ones(9, bfloat16), np.ones(9, bfloat16), np.ones(9, np.float32)])
    assert ["master" in entry for entry in optimizer.state.values()] == [True, False, False]
    assert {found.dtype.name for found in optimizer.master_state_dict().values()} == {"float32"}


def test_memory():
    """Remainders are counted for themselves: AdamW with states of 16 bits and masters of 24 takes 9 bytes."""
    options = {"state_dtype": "bfloat16", "min_quantized_size": 0}
    found = fastopt.AdamW(np.zeros(1000, bfloat16), master_weights=24, **options).memory()
    assert found == {"parameters": 2000, "gradients": 2000, "states": 4000, "scales": 0, "masters": 1000}
    assert fastopt.AdamW(np.zeros(10, np.float16), master_weights=24).memory()["masters"] == 40
    assert fastopt.AdamW(np.zeros(10, np.float32), master_weights=True).memory()["masters"] == 0
