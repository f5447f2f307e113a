"""Stochastic rounding on the CPU: its random bits, and steps over NumPy's arrays against float32 ones rounded alike."""

import re

import ml_dtypes
import numpy as np
import pytest
from fastopt.kernels import cpu, pool
from fastopt.kernels.dtypes import DTYPES
from fastopt.kernels.tables import ABI, CHUNK, HYPERS, JOB, STORAGE, TENSOR
from halves import DIGITS, LEAST, borders, every_pattern, values
from instructions import FUSED, OUTLINED, PACKED_PRODUCT, any_arithmetic
from noise import neighbours, noise, numbers, stochastic
from numba import njit
from pairs import pairs, usually
from rule_cases import HALVES, OPTIMIZERS

import fastopt
from fastopt.rules import RULES
from fastopt.step.parameter import random_key

ROUNDED = {"stochastic_rounding": True, "min_quantized_size": 0}
SIZES = (0, 1, 7, 4095, 4097, 20_000)
halves = pytest.mark.parametrize("dtype", HALVES)


@njit
def narrow_all(x, out, place, random):
    for i in range(x.size):
        out[i] = cpu.narrow(x[i], out, place, i, random)


def narrowed(x, dtype, random, place=0):
    """The bits of float32 numbers rounded to halves by the kernels' conversion, with this mix of 64 bits."""
    out = np.empty(x.shape, DTYPES[dtype].stored)
    low, high = np.uint32(random & 0xFFFFFFFF), np.uint32(random >> 32)
    narrow_all(x, out, place, (low, high, np.uint32(0), np.uint32(0x3210)))
    return out.view(np.uint16)


# Random bits


@njit
def mixed(key, count):
    return cpu.mixed(key, count)


def test_bits_stay_the_same():
    """A checkpoint of today is resumed with the same bits in years."""
    assert [random_key(0, 0, 0), random_key(1, 2, 3)] == KEYS
    assert [int(mixed(key, count)) for key, count in ((0, 1), (KEYS[0], 5), (KEYS[1], 2**40))] == MIXED
    assert noise(KEYS[0], 5, [0, 1, 2**32, 2**33 + 7]).tolist() == BITS


KEYS = [2891389769238885931, -5405627362230748553]
MIXED = [16294208416658607535, 9337568181623075970, 8558278094024219391]
BITS = [12244, 26311, 47864, 37020]


def agreement(some, others):
    """How far two sets of 16 bits are from independence: chi-squared of their upper five, in standard deviations."""
    found = np.bincount((some >> 11) * 32 + (others >> 11), minlength=1024)
    expected = some.size / 1024
    return ((found - expected) ** 2 / expected).sum() / np.sqrt(2 * 1023) - np.sqrt(1023 / 2)


def test_bits_are_independent():
    """Between neighbours, near and far, places, steps, tensors, and seeds: all are as chance would have it."""
    index = np.arange(2**18)
    key = random_key(0, 0, 0)
    of = {place: noise(key, 3, index, place).astype(np.int64) for place in range(4)}
    pairs = [(of[a], of[b]) for a in range(4) for b in range(a)]
    pairs += [(of[place][:-apart], of[place][apart:]) for place in (0, 1) for apart in (1, 2, 3, 16, 100, 1024, 4096)]
    others = [(key, 4), (random_key(0, 1, 0), 3), (random_key(1, 0, 0), 3), (random_key(0, 0, 1), 3)]
    pairs += [(of[0], noise(*other, index).astype(np.int64)) for other in others]
    pairs += [(of[0], noise(key, 3, index + 2**32).astype(np.int64))]
    far = [agreement(*pair) for pair in pairs]
    assert max(far) < 4, far
    assert all(abs(bits.mean() / 2**16 - 0.5) < 4 / np.sqrt(12 * index.size) for bits in of.values())


# Rounding


def samples(dtype):
    """Every border between two halves, numbers between them, and subnormals, in both signs."""
    rng = np.random.default_rng(1)
    x = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    near = np.ldexp(rng.uniform(1, 2, 20_000), LEAST[dtype] - rng.integers(-3, DIGITS[dtype] + 20, 20_000))
    tiny = np.arange(3000, dtype=np.uint32).view(np.float32)
    special = np.array([np.inf, np.nan, 0.0], np.float32)
    x = np.concatenate([borders(dtype)[::7], x, near.astype(np.float32), tiny, special])
    return np.concatenate([x, -x])


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@halves
def test_rounding_is_that_of_the_oracle(dtype, place):
    """Bit for bit, for each place."""
    x = samples(dtype)
    mix = int(mixed(12345, 7))
    got = narrowed(x, dtype, mix, place)
    want = stochastic(x, dtype, noise(12345, 7, np.arange(x.size), place))
    nan = np.isnan(x)
    np.testing.assert_array_equal(got[~nan], want[~nan])
    assert np.isnan(values(got[nan], dtype)).all()


@halves
def test_only_neighbours_occur(dtype):
    """What a half can hold stays, with any bits; infinity is a neighbour of the largest one."""
    x = samples(dtype)
    x = x[~np.isnan(x)]
    with np.errstate(invalid="ignore"):
        below, above = neighbours(x, dtype)
    patterns = every_pattern()
    exact = values(patterns[~np.isnan(values(patterns, dtype))], dtype)
    for seed in range(3):
        got = values(narrowed(x, dtype, int(mixed(1, seed))), dtype)
        assert ((got == below) | (got == above)).all()
        same = values(narrowed(exact, dtype, int(mixed(2, seed))), dtype)
        np.testing.assert_array_equal(same.view(np.uint32), exact.view(np.uint32))


@halves
def test_the_mean_is_what_was_rounded(dtype):
    """Over many steps, in normal and subnormal numbers; within four standard deviations."""
    rng = np.random.default_rng(4)
    low = 2.0 ** LEAST[dtype]
    x = np.concatenate([rng.uniform(1, 2, 40), -rng.uniform(100, 200, 40), rng.uniform(0.01, 1, 40) * low])
    x = x.astype(np.float32)
    below, above = neighbours(x, dtype)
    many = 4096
    total = sum(values(narrowed(x, dtype, int(mixed(9, count))), dtype).astype(np.float64) for count in range(many))
    assert (np.abs(total / many - x) < 4 * np.abs(above - below) * 0.5 / np.sqrt(many)).all()


# Kernels


def half_array(numbers, dtype):
    """Numbers as an array of a dtype that NumPy knows, bfloat16 with ml_dtypes."""
    return numbers.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def bits(array):
    """An array's bits."""
    return array.tobytes()


def arrays(dtype, seed=1, sizes=SIZES):
    """Parameters, or gradients, of all sizes."""
    rng = np.random.default_rng(seed)
    return [half_array(rng.standard_normal(size), dtype) for size in sizes]


def round_alike(array, dtype, *of):
    """Round float32 numbers in place as kernels do; `of` are arguments of `noise`."""
    if dtype in HALVES:
        key, count, number = of
        bits = noise(key, count, np.arange(array.size), number)
        array[...] = values(stochastic(array.astype(np.float32), dtype, bits), dtype)


DTYPES_OF = {"dtype": ("float32", "float64", *HALVES), "state": ("float32", *HALVES)}
# All rules round by the same conversion: dtypes of parameters and states all meet on two rules, with one and three
# states; on the others each occurs.
CASES = [(name, *dtypes) for name in RULES for dtypes in pairs(1 + (name in ("adagrad", "adamw_amsgrad")), **DTYPES_OF)]
CASES = [(name, *dtypes) for name, *dtypes in CASES if not {*HALVES}.isdisjoint(dtypes[: 1 + bool(RULES[name].states)])]
USUAL = [
    ("sgd", "bfloat16", "float32"),
    ("adamw_amsgrad", "bfloat16", "bfloat16"),
]

each_case = pytest.mark.parametrize(
    ("name", "dtype", "state"),
    usually(USUAL, CASES),
)


@each_case
def test_steps_are_those_of_float32_rounded_alike(name, dtype, state):
    """At all sizes, for new and repeated steps."""
    make, options = OPTIMIZERS[name]
    params = arrays(dtype)
    real = np.float64 if dtype == "float64" else np.float32
    twins = [param.astype(real) for param in params]
    mine = make(params, state_dtype=state, seed=3, **ROUNDED, **options)
    theirs = make(twins, **options)
    for step in range(4):
        grads = arrays(dtype, 10 + step)
        mine.step(grads)
        theirs.step([g.astype(real) for g in grads])
        first, *others = numbers((dtype, *[state] * len(RULES[name].states)))
        for i, twin in enumerate(twins):
            key = random_key(3, i, 0)
            round_alike(twin, dtype, key, step, first)
            for number, of in zip(others, RULES[name].states, strict=True):
                found, expected = mine.state[i][of], theirs.state[i][of]
                round_alike(expected, state, key, step, number)
                assert bits(found.astype(real)) == bits(expected)
            assert bits(params[i].astype(real)) == bits(twin)


@halves
def test_indices_beyond_32_bits(dtype):
    """The upper half of an index counts; the arrays lie as if they were the end of larger ones."""
    p = np.ones(100, np.float32)
    param, grad = (np.zeros(100, np.uint16) for _ in range(2))
    stored = half_array(p * 0.3, dtype)
    grad[:] = stored.view(np.uint16)
    for start in (0, 2**32, 2**33 + 4096):
        param[:] = 0
        chunk, table, storage, job = (np.zeros(1, kind) for kind in (CHUNK, TENSOR, STORAGE, JOB))
        chunk["offset"] = chunk["grad_offset"] = start
        chunk["rows"], chunk["length"] = 1, 100
        hypers = np.zeros((1, HYPERS))
        hypers[0, :3] = 1, 0, 0.01
        table["param"], table["grad"] = param.ctypes.data - 2 * start, grad.ctypes.data - 2 * start
        storage["key"] = 77
        job["abi"], job["coefficient"], job["count"] = ABI, 1, 5
        for name, array in (("tensors", table), ("chunks", chunk), ("hypers", hypers), ("storages", storage)):
            job[name] = array.ctypes.data
        pool.runner(cpu.kernel("sgd", dtype, rounding=cpu.STOCHASTIC), job.ctypes.data)(1, 1, 1)
        exact = 0 - np.float32(0.01) * stored.astype(np.float32)
        want = stochastic(exact, dtype, noise(77, 5, start + np.arange(100)))
        np.testing.assert_array_equal(param, want)


@pytest.mark.exhaustive  # compiles a kernel of its own
@pytest.mark.parametrize("dtype", [pytest.param("float16"), pytest.param("bfloat16", marks=pytest.mark.exhaustive)])
def test_loops_are_vectorised(dtype):
    """Random bits as well: products of 32 bits are packed, and nothing is wider than float32."""
    kernel = cpu.make_kernel("momentum", dtype, (), (dtype,), rounding=cpu.STOCHASTIC)
    code = cpu.make_cfunc(cache=False)(kernel)._library.get_asm_str()
    assert re.search(PACKED_PRODUCT, code)
    assert not re.search(any_arithmetic("float64"), code)
    assert re.findall(FUSED, code) == []
    assert not re.search(OUTLINED, code)


# Steps


def train(params, steps, *, begin=0, optimizer=None, **options):
    """Take steps of AdamW with states of bfloat16."""
    optimizer = optimizer or fastopt.AdamW(params, state_dtype="bfloat16", **ROUNDED, **options)
    for step in range(begin, begin + steps):
        optimizer.step(arrays("bfloat16", 10 + step))
    return optimizer


def everything(params, optimizer):
    """The bits of parameters and states."""
    states = [array for entry in optimizer.state.values() for array in entry.values() if isinstance(array, np.ndarray)]
    return [bits(array) for array in (*params, *states)]


def test_any_number_of_threads():
    """The bits are the same; so are they in the one call of C and in steps that Python takes in full."""
    found, before = [], pool.get_num_threads()
    try:
        for threads in (1, 2, 3):
            pool.set_num_threads(threads)
            params = arrays("bfloat16", sizes=(*SIZES, 300_000))
            optimizer = fastopt.AdamW(params, state_dtype="bfloat16", **ROUNDED)
            for step in range(3):
                if threads == 2:
                    optimizer.param_groups[0]["lr"] = 1e-3  # ends the repetition
                optimizer.step(arrays("bfloat16", 10 + step, sizes=(*SIZES, 300_000)))
            found.append(everything(params, optimizer))
    finally:
        pool.set_num_threads(before)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("at", [0, 1, 3])
def test_resumed_from_a_checkpoint(at):
    """After none, one or three of four steps, with the seed of the checkpoint, and more than one group."""
    whole, parts = arrays("bfloat16"), arrays("bfloat16")
    once = train(whole, 4, seed=11)
    first = train(parts, at, seed=11)
    copies = [part.copy() for part in parts]
    second = fastopt.AdamW(copies, state_dtype="bfloat16", seed=5, **ROUNDED)
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["seed"] == 11
    train(copies, 4 - at, begin=at, optimizer=second)
    assert everything(copies, second) == everything(whole, once)


def test_groups_have_their_own():
    """A group may round to nearest, or by another seed; all go by the count of the first."""
    params = [arrays("bfloat16", seed) for seed in (1, 1, 1)]
    groups = [
        {"params": params[0]},
        {"params": params[1], "stochastic_rounding": False},
        {"params": params[2], "seed": 1},
    ]
    twins = [arrays("bfloat16") for _ in range(2)]
    ours = fastopt.SGD(groups, lr=0.1, stochastic_rounding=True)
    first = fastopt.SGD(twins[0], lr=0.1, stochastic_rounding=True)
    nearest = fastopt.SGD(twins[1], lr=0.1)
    ours.param_groups[1]["step"] = 7
    for step in range(3):
        grads = arrays("bfloat16", 10 + step)
        ours.step([grads] * 3)
        first.step(grads)
        nearest.step(grads)
    assert [*map(bits, params[0])] == [*map(bits, twins[0])]
    assert [*map(bits, params[1])] == [*map(bits, twins[1])]
    assert len({bits(group[-1]) for group in params}) == 3


def test_parameters_do_not_share_their_bits():
    """Nor do seeds and steps: a thousand alike, and what becomes of them."""
    params = [half_array(np.ones(4000), "bfloat16") for _ in range(2)]
    optimizer = fastopt.SGD(params, lr=1.0, stochastic_rounding=True)
    found = []
    for _ in range(2):
        for param in params:
            param[...] = 1
        optimizer.step([half_array(np.full(4000, 2.0**-9), "bfloat16")] * 2)
        found += [param.copy() for param in params]
    up = np.array([param == 1 for param in found])
    assert (np.abs(up.mean(axis=1) - 0.5) < 4 * 0.5 / np.sqrt(4000)).all()
    assert (np.abs(np.corrcoef(up) - np.eye(4)) < 4 / np.sqrt(4000)).all()


@pytest.mark.parametrize("order", ["C", "F"])
def test_gradients_in_another_order(order):
    """The same bits as with the gradient in the parameter's order."""
    rng = np.random.default_rng(3)
    given = half_array(rng.standard_normal((300, 70)), "bfloat16")
    params = [np.array(given, order=order) for _ in range(2)]
    optimizers = [fastopt.SGD(param, lr=0.1, stochastic_rounding=True) for param in params]
    for _ in range(3):
        g = half_array(rng.standard_normal((300, 70)), "bfloat16")
        for optimizer, other in zip(optimizers, "CF", strict=True):
            optimizer.step(np.array(g, order=other))
    assert bits(params[0]) == bits(params[1])


def test_a_skipped_step_takes_no_bits():
    """One whose gradients are not finite is not counted; the next one is as if it had not been."""
    params, twins = arrays("bfloat16"), arrays("bfloat16")
    ours = fastopt.SGD(params, lr=0.1, skip_nonfinite=True, stochastic_rounding=True)
    theirs = fastopt.SGD(twins, lr=0.1, skip_nonfinite=True, stochastic_rounding=True)
    for step in range(4):
        grads = arrays("bfloat16", 10 + step)
        for _ in range(step % 3):
            broken = [half_array(np.full(g.shape, np.nan), "bfloat16") for g in grads]
            ours.step(broken)
        ours.step(grads)
        theirs.step(grads)
    assert ours.skipped_steps == 3
    assert [*map(bits, params)] == [*map(bits, twins)]


@pytest.mark.exhaustive  # compiles a kernel of its own
def test_averages_are_of_what_is_stored():
    """The average of bfloat16 parameters follows these."""
    params = arrays("bfloat16")
    averages = [param.astype(np.float32) for param in params]
    optimizer = fastopt.SGD(params, lr=0.1, ema_decay=0.5, stochastic_rounding=True)
    for step in range(3):
        optimizer.step(arrays("bfloat16", 10 + step))
        for number, (param, average) in enumerate(zip(params, averages, strict=True)):
            average[...] = np.float32(0.5) * average + np.float32(0.5) * param.astype(np.float32)
            assert bits(optimizer.state[number]["ema"]) == bits(average)


def test_float32_and_float64_stay_as_they_are():
    """With such states there is nothing to round, and no other kernel."""
    for dtype in (np.float32, np.float64):
        params, twins = ([array.astype(dtype) for array in arrays("float16")] for _ in range(2))
        ours = fastopt.SGD(params, lr=0.1, momentum=0.9, stochastic_rounding=True)
        theirs = fastopt.SGD(twins, lr=0.1, momentum=0.9)
        for step in range(2):
            for optimizer in (ours, theirs):
                optimizer.step([array.astype(dtype) for array in arrays("float16", step)])
        assert [*map(bits, params)] == [*map(bits, twins)]
        assert {launch.kernel for launch in ours._stepper.plan.launches} == {
            launch.kernel for launch in theirs._stepper.plan.launches
        }


def distance(**options):
    """How far from 1 parameters of bfloat16 have come by 200 steps of a two-hundredth, which 8 bits cannot hold."""
    p = half_array(np.ones(1000), "bfloat16")
    optimizer = fastopt.SGD(p, lr=1e-3, **options)
    for _ in range(200):
        optimizer.step(half_array(np.ones(1000), "bfloat16"))
    return 1 - p.astype(np.float64).mean()


def test_small_steps_add_up():
    """To nearest, nothing moves; at random, the mean is where float32 would be."""
    assert distance() == 0
    assert abs(distance(stochastic_rounding=True) - 0.2) < 0.005


# Options


def test_options_are_shown_and_saved():
    """In the group, in state dicts, and in what `repr` shows; they are fixed, and the message says what to do."""
    optimizer = fastopt.SGD(np.zeros(3, np.float16), stochastic_rounding=True, seed=5)
    group = optimizer.param_groups[0]
    assert (group["stochastic_rounding"], group["seed"]) == (True, 5)
    assert "stochastic_rounding=True" in repr(optimizer)
    assert "seed" not in fastopt.SGD(np.zeros(3)).state_dict()["param_groups"][0]
    with pytest.raises(ValueError, match=r"stochastic_rounding of group 0 is fixed.* make another optimizer"):
        group["stochastic_rounding"] = False
    with pytest.raises(ValueError, match=r"seed of group 0 is fixed.*'param_groups' of a state_dict\(\)"):
        group["seed"] = 6
    saved = optimizer.state_dict()
    saved["param_groups"][0]["seed"] = 6
    optimizer.load_state_dict(saved)
    assert group["seed"] == 6


def test_a_checkpoint_without_random_bits_leaves_the_seed():
    """And one whose seed is 0 says so by leaving it out."""
    optimizer = fastopt.SGD(np.zeros(3, np.float16), stochastic_rounding=True, seed=5)
    optimizer.load_state_dict(fastopt.SGD(np.zeros(3, np.float16)).state_dict())
    assert optimizer.param_groups[0]["seed"] == 5
    optimizer.load_state_dict(fastopt.SGD(np.zeros(3, np.float16), stochastic_rounding=True).state_dict())
    assert optimizer.param_groups[0]["seed"] == 0


BY_DEFAULT = [
    ("AdamW", {"state_dtype": "bfloat16"}, True),
    ("AdamW", {"state_dtype": np.int8}, True),
    ("RMSprop", {"state_dtype": {"square_avg": "bfloat16"}}, True),
    ("Adagrad", {"state_dtype": "bfloat16", "stochastic_rounding": None}, True),
    ("Adagrad", {"state_dtype": "bfloat16", "stochastic_rounding": False}, False),
    ("AdamW", {"state_dtype": {"exp_avg": "int8"}}, None),
    ("AdamW", {"state_dtype": "float16"}, None),
    ("Lion", {"state_dtype": "int8"}, None),
    ("AdamW", {}, None),
]


@pytest.mark.parametrize(("name", "options", "expected"), BY_DEFAULT, ids=str)
def test_where_it_is_the_default(name, options, expected):
    """For squares in bfloat16 and 8 bits: by the optimizer's options and by a group's, unless somebody says no."""
    make = getattr(fastopt, name)
    for optimizer in (make(np.zeros(3), **options), make([{"params": np.zeros(3), **options}])):
        assert optimizer.param_groups[0].get("stochastic_rounding") is expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": -1}, ValueError, r"seed must be 0 or more, and below 2\*\*63"),
        ({"seed": 2**63}, ValueError, r"seed must be 0 or more, and below 2\*\*63"),
        ({"seed": 1.5}, TypeError, "seed must be an int"),
        ({"stochastic_rounding": "yes"}, TypeError, "stochastic_rounding"),
    ],
    ids=str,
)
def test_bad_options(options, error, message):
    """In the constructor, in a group, and in a state dict."""
    with pytest.raises(error, match=message):
        fastopt.SGD(np.zeros(3), **options)
    with pytest.raises(error, match=message):
        fastopt.SGD([{"params": np.zeros(3), **options}])
    optimizer = fastopt.SGD(np.zeros(3, np.float16), stochastic_rounding=True)
    saved = optimizer.state_dict()
    saved["param_groups"][0] |= options
    if "seed" in options:
        with pytest.raises(error, match=message):
            optimizer.load_state_dict(saved)
