"""States in 8 bits: the codes, and steps of arrays against steps whose float32 states are encoded after each."""

import itertools
import pickle

import numpy as np
import pytest
from eight_bits import BLOCK, LARGEST, SMALLEST, decoded, encoded, name_of, through
from fastopt.kernels import cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as arrays_of
from pairs import usually
from rule_cases import OPTIMIZERS

import fastopt
from fastopt.rules import RULES
from fastopt.step import codes

SIZES = (1, 63, 64, 65, 1023, 1025, 4096, 4097, 70_001)
EVERY_SIZE = {"min_quantized_size": 0}
NEAREST = {**EVERY_SIZE, "stochastic_rounding": False}
NAMES = ("int8", "uint8")
USUAL = ("momentum",)

each_name = pytest.mark.parametrize("name", NAMES)
each_rule = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in USUAL else pytest.mark.exhaustive)
        for name, rule in RULES.items()
        if rule.states
    ],
)


def numbers(seed=1, sizes=SIZES, dtype=np.float32):
    """Parameters, or gradients, of all sizes, whose blocks differ in magnitude."""
    rng = np.random.default_rng(seed)
    made = [rng.standard_normal(size) * np.exp(rng.standard_normal(size)) for size in sizes]
    return [array.astype(dtype) for array in made]


def encode_states(optimizer):
    """Replace float32 states by what their codes decode to."""
    for entry in optimizer.state.values():
        for name, array in entry.items():
            if isinstance(array, np.ndarray) and name != "ema":
                stored = array.T if array.flags.f_contiguous else array
                stored[...] = through(stored.ravel(), name_of(name)).reshape(stored.shape)


def decode_states(optimizer):
    """The numbers in all states, by parameter and name."""
    return [
        {name: in_order(array, entry.get(f"{name}_scale")) for name, array in entry.items() if is_state(name)}
        for entry in optimizer.state.values()
    ]


def is_state(name):
    return name not in ("step", "mu_product") and not name.endswith("_scale")


def in_order(array, scales):
    """A state's numbers in storage order."""
    flat = array.ravel(order="K")
    return flat if scales is None else decoded(flat, scales)


def assert_same(some, others):
    """Assert that arrays are the same to the bit."""
    for one, other in zip(some, others, strict=True):
        assert one.tobytes() == other.tobytes()


def assert_same_states(mine, theirs):
    for one, other in zip(decode_states(mine), decode_states(theirs), strict=True):
        assert one.keys() == other.keys()
        assert_same(one.values(), other.values())


# The codes

HARD = [0.0, -0.0, 1e-45, -1e-45, 1e-38, float(SMALLEST), float(LARGEST), 3e38, np.inf, -np.inf, np.nan, 1.0, -1.0]


@each_name
@settings(deadline=None)  # the first example compiles
@given(x=arrays_of(np.float32, st.integers(1, 200), elements=st.floats(width=32) | st.sampled_from(HARD)))
def test_codes_are_those_of_numpy(name, x):
    """Of any numbers, in whole blocks and parts of one; what decodes to a number does so to the same bits."""
    x = np.abs(x) if name == "uint8" else x
    found, scales = codes.encode(x, name)
    expected, of_blocks = encoded(x, name)
    np.testing.assert_array_equal(scales, of_blocks)
    valid = np.repeat(~np.isnan(scales), BLOCK)[: x.size]  # a block without a scale has any codes
    np.testing.assert_array_equal(found[valid], expected[valid])
    np.testing.assert_array_equal(codes.decode(found, scales), decoded(found, scales))
    assert np.isnan(codes.decode(found, scales)[~valid]).all()


@each_name
def test_codes_stay_when_they_are_encoded_again(name):
    """For all codes and scales of many sizes: a state that no step has changed does not drift."""
    last = 126 if name == "int8" else 255
    every = np.arange(-126 if name == "int8" else 0, last + 1).astype(name)
    for scale in np.float32(2.0) ** np.arange(-90, 119, 7) * np.float32(1.37):
        blocks = [np.append(part, every[-1:]) for part in np.array_split(every, 5)]
        for block in blocks:
            again, found = codes.encode(codes.decode(block, np.float32([scale])), name)
            np.testing.assert_array_equal(again, block)
            assert found[0] == scale


def test_special_blocks():
    """Zeros stay zeros; NaN and infinity make their own block NaN; beside a huge value, others become 0."""
    x = np.zeros(5 * BLOCK, np.float32)
    x[BLOCK : 2 * BLOCK] = 1.0
    x[BLOCK + 3] = np.inf
    x[2 * BLOCK] = np.nan
    x[3 * BLOCK : 4 * BLOCK] = 1e-30
    x[3 * BLOCK + 5] = 1e30
    x[4 * BLOCK :] = 1e-40  # subnormal
    for name in NAMES:
        blocks = codes.decode(*codes.encode(x, name)).reshape(-1, BLOCK)
        assert (blocks[0] == 0).all()
        assert np.isnan(blocks[1:3]).all()
        np.testing.assert_allclose(blocks[3, 5], 1e30, rtol=1e-6)
        assert (np.delete(blocks[3], 5) <= 1e30 * 2.0**-35).all()
        assert (blocks[4] < 3e-38).all()


def test_a_positive_square_is_never_zero():
    """Else a step would be divided by eps alone."""
    squares = np.float32([1.0, *10.0 ** -np.arange(1.0, 30.0), 0.0])
    found, _ = codes.encode(squares, "uint8")
    assert (found[:-1] > 0).all()
    assert found[-1] == 0


@pytest.mark.parametrize(("name", "error"), [("int8", 1 / 64), ("uint8", 1 / 16)])
def test_errors_are_as_small_as_codes_allow(name, error):
    """Relative to what is encoded, in the upper half of a block; near 0, averages are finer still."""
    x = np.linspace(0.5, 1.0, 1000, dtype=np.float32)
    assert np.abs(codes.decode(*codes.encode(x, name)) / x - 1).max() < error


@pytest.mark.exhaustive  # compiles kernels for itself
def test_the_arithmetic_is_vectorised():
    """Codes are widened, encoded and packed by eight or more at once; the largest magnitude is an integer maximum."""
    code = cpu.make_cfunc(cache=False)(cpu.make_kernel("adamw", "float32", (), NAMES))._library.get_asm_str()
    for wide in ("pmovsxbd", "pmovzxbd", "packsswb", "packuswb", "pmaxud", "pminsd"):
        assert wide in code


# Steps


@each_rule
def test_steps_are_those_of_float32_states_that_are_encoded(name):
    """At all sizes, for new and repeated steps, to the bit."""
    make, options = OPTIMIZERS[name]
    params, twins = numbers(), numbers()
    mine, theirs = make(params, state_dtype="int8", **NEAREST, **options), make(twins, **options)
    for seed in range(4):
        for optimizer in (mine, theirs):
            optimizer.step(numbers(10 + seed))
        encode_states(theirs)
        assert_same_states(mine, theirs)
    assert_same(params, twins)


@pytest.mark.parametrize("order", ["C", "F"])
def test_gradients_in_another_order(order):
    """They are copied, so that blocks stay whole; what is set to zero is the gradient itself."""
    rng = np.random.default_rng(3)
    shape = (300, 70)
    params = [np.array(rng.standard_normal(shape), np.float32, order=order)]
    twins = [param.copy(order="K") for param in params]
    mine = fastopt.SGD(params, lr=0.1, momentum=0.9, state_dtype="int8")
    theirs = fastopt.SGD(twins, lr=0.1, momentum=0.9)
    for zero in (False, True, False):
        g = np.array(rng.standard_normal(shape), np.float32, order="F" if order == "C" else "C")
        theirs.step([g.copy(order="K")])
        mine.step([g], zero_grads=zero)
        assert (g == 0).all() == zero
        encode_states(theirs)
        assert_same_states(mine, theirs)
    assert_same(params, twins)
    with pytest.raises(ValueError, match=r"gradient of parameter 0 does not lie .* bind np.empty_like"):
        mine.bind([g])


@pytest.mark.exhaustive  # compiles kernels for itself
def test_stages_and_dicts():
    """Clipping and averages meet codes, beside a state in float32 and one in bfloat16."""
    params, twins = numbers(), numbers()
    options = {"max_grad_norm": 1.0, "ema_decay": 0.9}
    mine = fastopt.AdamW(params, state_dtype={"exp_avg_sq": "int8"}, **NEAREST, **options)
    theirs = fastopt.AdamW(twins, **options)
    for seed in range(3):
        for optimizer in (mine, theirs):
            optimizer.step(numbers(10 + seed))
        for entry in theirs.state.values():
            entry["exp_avg_sq"][...] = through(entry["exp_avg_sq"], "uint8")
    assert_same_states(mine, theirs)
    assert_same(params, twins)
    assert {array.dtype.name for array in (mine.state[0]["exp_avg"], mine.state[0]["ema"])} == {"float32"}


@pytest.mark.exhaustive  # compiles kernels for itself
def test_other_parameters():
    """float64 ones by way of float32; those of 16 bits; small ones keep float32."""
    for dtype in (np.float64, np.float16):
        params = [*numbers(sizes=(4095, 5000), dtype=dtype)]
        optimizer = fastopt.SGD(params, lr=0.1, momentum=0.9, state_dtype=np.int8)
        expected = params[1].astype(np.float64)
        momentum = np.zeros(5000)
        for seed in range(2):
            gradients = numbers(5 + seed, (4095, 5000), dtype)
            optimizer.step(gradients)
            fresh = (np.float32(0.9) * momentum + gradients[1]).astype(np.float64)
            expected = (expected - 0.1 * fresh).astype(dtype).astype(np.float64)
            momentum = through(fresh.astype(np.float32), "int8").astype(np.float64)
        tolerance = 2e-3 if dtype == np.float16 else 1e-6
        np.testing.assert_allclose(params[1].astype(np.float64), expected, rtol=tolerance, atol=1e-3)
        shown = [entry["momentum_buffer"].dtype for entry in optimizer.state.values()]
        assert shown == [np.dtype(dtype) if dtype == np.float64 else np.float32, np.int8]


@pytest.mark.exhaustive  # compiles kernels for itself
def test_initial_values():
    """AdaGrad's accumulators begin with the number to within its rounding."""
    p = np.zeros(5000, np.float32)
    optimizer = fastopt.Adagrad(p, initial_accumulator_value=0.1, state_dtype="int8")
    optimizer.step(np.zeros_like(p))
    np.testing.assert_allclose(decode_states(optimizer)[0]["sum"], np.float32(0.1), rtol=1e-6)


def test_memory():
    """Scales count by themselves: one number for 64 elements."""
    optimizer = fastopt.AdamW([np.zeros(4096, np.float32), np.zeros(10, np.float32)], state_dtype="int8")
    found = optimizer.memory()
    assert found["states"] == 2 * 4096 + 8 * 10
    assert found["scales"] == 2 * 4 * 64


# State dicts

SOME = [None, "bfloat16", "int8", {"exp_avg": "int8"}]
CONVERTED = [(None, "int8", True), ("int8", None, True), ("int8", "int8", True), ("int8", "int8", False)]


def assert_converted(before, after, dtype, from_dtype):
    """Assert that loading has rounded numbers to their new dtype, and no more."""
    if dtype in NAMES and from_dtype not in NAMES:
        before = through(before, dtype)
    elif dtype not in NAMES:
        before = before.astype(dtype)
    np.testing.assert_allclose(after.astype(np.float32), before.astype(np.float32), rtol=1e-6)


@pytest.mark.parametrize(
    ("before", "after", "compress"), usually(CONVERTED, itertools.product(SOME, SOME, [True, False])), ids=str
)
def test_loading_converts(before, after, compress):
    """Codes stay as they are between optimizers that have them; else numbers are the same, or encoded."""
    if "int8" not in str((before, after)):
        before = after = "int8"
    gradients = numbers(2, (5000, 10))
    params = numbers(sizes=(5000, 10))
    saving = fastopt.AdamW(params, state_dtype=before, compress_state_dict=compress)
    saving.step(gradients)
    saved = pickle.loads(pickle.dumps(saving.state_dict()))
    assert compress or {a.dtype.name for a in saved["state"][0].values() if isinstance(a, np.ndarray)} <= {
        "float32",
        "bfloat16",
    }
    loading = fastopt.AdamW([param.copy() for param in params], state_dtype=after)
    loading.load_state_dict(saved)
    for key, entry in loading.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            want, got = decode_states(saving)[key][name], decode_states(loading)[key][name]
            assert_converted(want, got, entry[name].dtype.name, saving.state[key][name].dtype.name)
    if before == after and compress:
        for optimizer in (saving, loading):
            optimizer.step(gradients)
        assert_same_states(saving, loading)


def test_parameters_in_another_order_are_saved_as_numbers():
    """Since blocks run in storage order, which files do not keep."""
    param = np.asfortranarray(np.ones((80, 70), np.float32))
    optimizer = fastopt.SGD(param, momentum=0.9, state_dtype="int8")
    gradient = np.asfortranarray(np.random.default_rng(0).standard_normal((80, 70)), np.float32)
    optimizer.step(gradient.astype(np.float32))
    saved = optimizer.state_dict()["state"][0]
    assert saved.keys() == {"step", "momentum_buffer"}
    expected = through(gradient.astype(np.float32).T.ravel(), "int8").reshape(70, 80).T
    np.testing.assert_array_equal(saved["momentum_buffer"], expected)
    loading = fastopt.SGD(np.ones((80, 70), np.float32), momentum=0.9, state_dtype="int8")
    loading.load_state_dict(optimizer.state_dict())
    assert loading.state[0]["momentum_buffer"].dtype == np.int8


def damaged(change):
    """A state dict in which something is wrong."""
    optimizer = fastopt.SGD(np.zeros(5000, np.float32), momentum=0.9, state_dtype="int8")
    optimizer.step(np.ones(5000, np.float32))
    saved = optimizer.state_dict()
    change(saved["state"][0])
    return optimizer, saved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("momentum_buffer_scale"), r"needs its momentum_buffer_scale, a float32 .* \(79,\)"),
        (lambda entry: entry.update(momentum_buffer_scale=np.ones(78, np.float32)), r"of shape \(79,\)"),
        (lambda entry: entry.update(momentum_buffer_scale=np.ones(79)), "needs its momentum_buffer_scale, a float32"),
        (lambda entry: entry.update(momentum_buffer=np.ones(5000, np.uint8)), "must be int8 of the parameter's shape"),
        (lambda entry: entry.update(momentum_buffer=np.ones(50, np.int8)), r"must be int8 .* \(5000,\)"),
    ],
    ids=["missing", "short", "float64", "unsigned", "shape"],
)
def test_damaged_state_dicts(change, message):
    """The error names the state, and nothing has changed."""
    optimizer, saved = damaged(change)
    before = pickle.dumps(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert pickle.dumps(optimizer.state_dict()) == before


# Rounded stochastically


@pytest.mark.parametrize(
    ("make", "state", "of_gradient"),
    [
        pytest.param(fastopt.SGD, "momentum_buffer", np.abs, id="int8"),
        pytest.param(fastopt.Adagrad, "sum", np.square, id="uint8", marks=pytest.mark.exhaustive),
    ],
)
def test_the_mean_of_many_seeds_is_what_was_encoded(make, state, of_gradient):
    """A number becomes one of its two neighbours, so often that the mean is the number; averages to 1 % of a code."""
    options = {"momentum": 0.9} if make is fastopt.SGD else {}
    gradient = np.geomspace(1.0, 1e-3, 4 * BLOCK, dtype=np.float32)
    found = []
    for seed in range(400):
        given = {"state_dtype": "int8", "stochastic_rounding": True, "seed": seed, **EVERY_SIZE, **options}
        optimizer = make(np.zeros_like(gradient), **given)
        optimizer.step(gradient)
        found.append(decode_states(optimizer)[0][state])
    found, expected = np.array(found, np.float64), of_gradient(gradient.astype(np.float64))
    nearest = codes.encode(expected.astype(np.float32), name_of(state))
    below, above = (decoded(nearest[0] + np.array(step).astype(nearest[0].dtype), nearest[1]) for step in (-1, 1))
    steps = above.astype(np.float64) - below
    inner = (nearest[0] > 1) & (nearest[0] < np.iinfo(nearest[0].dtype).max)
    assert (np.abs(found - expected) <= steps)[:, inner].all()
    spread = found.std(axis=0) / np.sqrt(len(found))
    error = np.abs(found.mean(axis=0) - expected)
    assert (error <= 5 * spread + 0.01 * steps)[inner].all()
    assert (spread > 0)[inner].mean() > 0.9
