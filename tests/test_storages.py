"""States in other dtypes than kernels compute in, on NumPy's arrays: against steps whose float32 states are rounded."""

import itertools
import pickle

import numpy as np
import pytest
from halves import rounded, values
from pairs import usually
from rule_cases import OPTIMIZERS

import fastopt
from fastopt import extras
from fastopt.rules import RULES

HALVES = ("bfloat16", "float16")
WITH_STATES = [name for name, rule in RULES.items() if rule.states]
SIZES = (0, 1, 7, 16_384, 16_385, 50_000)
EVERY_SIZE = {"min_quantized_size": 0}
NEAREST = {**EVERY_SIZE, "stochastic_rounding": False}


def usual(name, dtype):
    """Whether a case is no exhaustive one: each kernel is compiled for itself."""
    return (name, dtype) == ("momentum", "bfloat16")


each_rule = pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if usual(name, dtype) else pytest.mark.exhaustive)
        for name in WITH_STATES
        for dtype in HALVES
    ],
)


def arrays(seed=1, dtype=np.float32, sizes=SIZES):
    """Parameters, or gradients, of all sizes."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size).astype(dtype) for size in sizes]


def to_half(x, dtype):
    """Numbers as they are in a state of 16 bits, in their own dtype."""
    return values(rounded(np.asarray(x, np.float32), dtype), dtype).astype(x.dtype)


def states_of(optimizer):
    """The numbers in all states, in order."""
    found = [array for entry in optimizer.state.values() for array in entry.values() if isinstance(array, np.ndarray)]
    return [array.astype(np.float64) for array in found]


def round_states(optimizer, dtype):
    """Round all states of an optimizer in place."""
    for entry in optimizer.state.values():
        for array in entry.values():
            if isinstance(array, np.ndarray):
                array[...] = to_half(array, dtype)


def assert_same(some, others):
    """Assert that arrays are the same to the bit."""
    for one, other in zip(some, others, strict=True):
        assert one.tobytes() == other.tobytes()


def train_both(mine, theirs, dtype, steps=4, real=np.float32, also=lambda optimizer: None):
    """Take steps with states of a dtype, and with float32 ones that are rounded after each, and compare all."""
    for seed in range(steps):
        for optimizer in (mine, theirs):
            optimizer.step(arrays(10 + seed, real))
            also(optimizer)
        round_states(theirs, dtype)
        assert_same(states_of(mine), states_of(theirs))


@each_rule
def test_steps_are_those_of_float32_states_that_are_rounded(name, dtype):
    """At all sizes, for new and repeated steps: rules compute as they do, and only what is written is rounded."""
    make, options = OPTIMIZERS[name]
    params, twins = arrays(), arrays()
    mine, theirs = make(params, state_dtype=dtype, **NEAREST, **options), make(twins, **options)
    train_both(mine, theirs, dtype)
    assert_same(params, twins)
    shown = {array.dtype.name for array in mine.state[1].values() if isinstance(array, np.ndarray)}
    assert shown == {dtype}


@pytest.mark.parametrize(
    "options",
    [
        {"max_grad_norm": 1.0},
        pytest.param(
            {"clip_grad_value": 0.5, "max_grad_norm": 1.0, "skip_nonfinite": True}, marks=pytest.mark.exhaustive
        ),
        pytest.param({"clip_grad_value": 0.5, "ema_decay": 0.9}, marks=pytest.mark.exhaustive),
    ],
    ids="-".join,
)
def test_stages_with_such_states(options):
    """Clipping and averages meet them; averages stay float32."""
    params, twins = arrays(), arrays()
    mine = fastopt.Adam(params, state_dtype="bfloat16", **NEAREST, **options)
    theirs = fastopt.Adam(twins, **options)
    for seed in range(3):
        for optimizer in (mine, theirs):
            optimizer.step(arrays(10 + seed))
        for entry in theirs.state.values():
            for state in ("exp_avg", "exp_avg_sq"):
                entry[state][...] = to_half(entry[state], "bfloat16")
        assert_same(states_of(mine), states_of(theirs))
    assert_same(params, twins)
    assert all(entry["ema"].dtype == np.float32 for entry in mine.state.values() if "ema" in entry)


@pytest.mark.exhaustive  # compiles a kernel of its own
def test_float64_parameters():
    """Their states may be smaller, too: in float32 and in half precision, by way of float32."""
    params, twins, others = (arrays(dtype=np.float64) for _ in range(3))
    options = {"lr": 0.1, "momentum": 0.9, **EVERY_SIZE}
    halves = fastopt.SGD(params, state_dtype="bfloat16", **options)
    singles = fastopt.SGD(others, state_dtype=np.float32, **options)
    train_both(halves, fastopt.SGD(twins, lr=0.1, momentum=0.9), "bfloat16", real=np.float64)
    assert_same(params, twins)
    singles.step(arrays(3, np.float64))
    assert singles.state[1]["momentum_buffer"].dtype == np.float32
    assert_same(states_of(singles), [g.astype(np.float32).astype(np.float64) for g in arrays(3, np.float64)])


def test_each_state_may_have_its_own():
    """A dict names some; the others are as by default, and the launches of one optimizer differ."""
    params, twins = arrays(), arrays()
    own = {"exp_avg": "float16"}
    mine = fastopt.AdamW([{"params": params, "state_dtype": own}, {"params": arrays(2)}], **EVERY_SIZE)
    theirs = fastopt.AdamW([{"params": twins}, {"params": arrays(2)}])
    for seed in range(3):
        for optimizer in (mine, theirs):
            optimizer.step([arrays(10 + seed), arrays(20 + seed)])
        for entry in list(theirs.state.values())[: len(SIZES)]:
            entry["exp_avg"][...] = to_half(entry["exp_avg"], "float16")
    assert_same(params, twins)
    assert_same(states_of(mine), states_of(theirs))
    dtypes = [
        {name: array.dtype.name for name, array in entry.items() if name != "step"} for entry in mine.state.values()
    ]
    assert dtypes[0] == {"exp_avg": "float16", "exp_avg_sq": "float32"}
    assert dtypes[-1] == {"exp_avg": "float32", "exp_avg_sq": "float32"}


def test_small_parameters_keep_float32():
    """Below 4096 elements, or what is asked for."""
    params = [np.zeros(4095, np.float32), np.zeros(4096, np.float32)]
    optimizer = fastopt.SGD(params, momentum=0.9, state_dtype="float16")
    optimizer.step([np.ones_like(param) for param in params])
    assert [entry["momentum_buffer"].dtype.name for entry in optimizer.state.values()] == ["float32", "float16"]
    assert optimizer.memory() == {
        "parameters": 4 * 8191,
        "gradients": 4 * 8191,
        "states": 4 * 4095 + 2 * 4096,
        "scales": 0,
        "masters": 0,
    }


@pytest.mark.parametrize("order", ["C", "F"])
def test_gradients_in_another_order(order):
    """Parameters in either order, with gradients in the other one."""
    rng = np.random.default_rng(3)
    given = rng.standard_normal((300, 70)).astype(np.float32)
    params = [np.array(given, order=order) for _ in range(2)]
    mine = fastopt.SGD(params[:1], lr=0.1, momentum=0.9, state_dtype="bfloat16", **EVERY_SIZE)
    theirs = fastopt.SGD(params[1:], lr=0.1, momentum=0.9)
    for _ in range(3):
        g = np.array(rng.standard_normal((300, 70)), np.float32, order="F" if order == "C" else "C")
        mine.step([g])
        theirs.step([g])
        round_states(theirs, "bfloat16")
    assert_same([np.ascontiguousarray(params[0])], [np.ascontiguousarray(params[1])])


def test_initial_values_are_rounded():
    """AdaGrad's accumulators may begin with any number."""
    p = np.zeros(5000, np.float32)
    optimizer = fastopt.Adagrad(p, initial_accumulator_value=0.1, state_dtype="bfloat16")
    optimizer.step(np.zeros_like(p))
    assert set(optimizer.state[0]["sum"].astype(np.float32)) == {to_half(np.float32([0.1]), "bfloat16")[0]}


# State dicts

SOME = [None, *HALVES, {"exp_avg": "bfloat16"}]
CONVERTED = [(None, "bfloat16"), ("bfloat16", None), ("bfloat16", "bfloat16")]


@pytest.mark.parametrize(("before", "after"), usually(CONVERTED, itertools.product(SOME, SOME)), ids=str)
def test_loading_converts(before, after):
    """An optimizer keeps the states in its own dtypes, whatever was saved, and goes on from the same numbers."""
    params = arrays(sizes=(5000, 10))
    saving = fastopt.Adam(params, state_dtype=before)
    saving.step(arrays(2, sizes=(5000, 10)))
    saved = pickle.loads(pickle.dumps(saving.state_dict()))
    loading = fastopt.Adam([param.copy() for param in params], state_dtype=after)
    loading.load_state_dict(saved)
    fresh = fastopt.Adam([param.copy() for param in params], state_dtype=after)
    fresh.step(arrays(2, sizes=(5000, 10)))
    for key, entry in loading.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            assert entry[name].dtype == fresh.state[key][name].dtype
            want = saving.state[key][name].astype(np.float32)
            want = to_half(want, entry[name].dtype.name) if entry[name].itemsize == 2 else want
            np.testing.assert_array_equal(entry[name].astype(np.float32), want)
    assert loading.param_groups[0].get("state_dtype") == after
    if before == after:
        for optimizer in (saving, loading):
            optimizer.step(arrays(3, sizes=(5000, 10)))
        assert_same(states_of(saving), states_of(loading))


def test_other_dtypes_are_refused():
    """float64 states do not become float32 ones unseen, nor do integers."""
    optimizer = fastopt.SGD(np.zeros(5000, np.float32), momentum=0.9, state_dtype="bfloat16")
    optimizer.step(np.ones(5000, np.float32))
    for dtype in (np.float64, np.int16):
        saved = optimizer.state_dict()
        saved["state"][0]["momentum_buffer"] = np.ones(5000, dtype)
        with pytest.raises(TypeError, match="momentum_buffer of parameter 0 in the state dict has dtype"):
            optimizer.load_state_dict(saved)


# Options


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("bfloat16", "bfloat16"),
        (np.float16, "float16"),
        (np.dtype("float32"), "float32"),
        ({"momentum_buffer": np.dtype("float16")}, {"momentum_buffer": "float16"}),
        (None, None),
    ],
    ids=str,
)
def test_dtypes_are_named_in_many_ways(given, name):
    """And shown by name in the group, which is where the option is."""
    for groups in (np.zeros(3), [{"params": np.zeros(3), "state_dtype": given}]):
        options = {"state_dtype": given} if isinstance(groups, np.ndarray) else {}
        group = fastopt.SGD(groups, momentum=0.9, **options).param_groups[0]
        assert group.get("state_dtype") == name


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ("int4", ValueError, "Invalid state_dtype: 'int4'; it must be one of float32, bfloat16, float16"),
        (np.float64, ValueError, "it must be one of float32, bfloat16, float16"),
        (16, TypeError, "Invalid state_dtype: 16"),
        (["float16"], TypeError, "Invalid state_dtype"),
        ({"momentum_buffer": "int4"}, ValueError, r"Invalid state_dtype\['momentum_buffer'\]"),
        ({"velocity": "float16"}, ValueError, "there is no state 'velocity'; the states are momentum_buffer"),
    ],
    ids=str,
)
def test_bad_dtypes(bad, error, message):
    """The error names what is wrong; for a group, too."""
    with pytest.raises(error, match=message):
        fastopt.SGD(np.zeros(3), state_dtype=bad)
    with pytest.raises(error, match=message):
        fastopt.SGD([{"params": np.zeros(3), "state_dtype": bad}])


def test_states_keep_their_dtypes():
    """An assignment says what to do instead; one that changes nothing is none."""
    p = np.zeros(5000, np.float32)
    optimizer = fastopt.SGD(p, momentum=0.9, state_dtype="float16")
    group = optimizer.param_groups[0]
    group["state_dtype"] = np.float16
    for name, value in {"state_dtype": "bfloat16", "min_quantized_size": 10_000}.items():
        with pytest.raises(ValueError, match=rf"{name} of group 0 is fixed.* load this one's state_dict\(\) there"):
            group[name] = value
    optimizer.step(np.ones_like(p))
    assert optimizer.state[0]["momentum_buffer"].dtype == np.float16


def test_without_ml_dtypes(monkeypatch):
    """The error comes with the optimizer, and names the extra; float16 does not need it."""

    def missing(module_name, extra):
        raise extras.MissingExtraError(f"{module_name} is not installed: pip install 'fastopt[{extra}]'")

    monkeypatch.setattr("fastopt.backends.numpy.memory.require", missing)
    with pytest.raises(ImportError, match=r"fastopt\[bfloat16\]"):
        fastopt.SGD(np.zeros(3), momentum=0.9, state_dtype={"momentum_buffer": "bfloat16"})
    fastopt.SGD(np.zeros(3), momentum=0.9, state_dtype="float16").step(np.ones(3))
