"""Rules in loops that Numba compiles: numbers and whole arrays, against the oracle, and the code that comes out."""

import inspect
import os
import re
import subprocess
import sys

import numpy as np
import oracle
import pytest
from fastopt.kernels import cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from instructions import FUSED, any_arithmetic, body, operations, packed
from numba import njit
from numba.core.errors import TypingError
from processes import run_script
from tolerances import ONE_STEP, TRAJECTORY, assert_close

from fastopt.rules import RULES
from fastopt.schedules import Cosine

names = pytest.mark.parametrize("name", RULES)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
OPTIONS = {"lr": 0.1, "momentum": 0.9, "eps": 1e-4}


def drawn(rng, shape, dtype):
    """A parameter, its gradient, and something that can be any state: a velocity, or a sum of squares."""
    p, g, state = (np.array(rng.standard_normal(shape), dtype) for _ in "pgs")
    return p, g, np.abs(state, out=state)


def hypers(name):
    """A rule's hyperparameters, in its order."""
    return [OPTIONS[hyper] for hyper in RULES[name].hypers]


def update(name, p, g, state):
    """Update an array by the function for whole arrays."""
    getattr(cpu, f"update_{name}")(p, g, *[state] * len(RULES[name].states), *hypers(name))


def expected(name, p, g, state):
    """The parameter and its states as the oracle has them after a step, in float64."""
    p, g, state = (np.asarray(array, np.float64) for array in (p, g, state))
    return oracle.RULES[name](p, g, (state,) * len(RULES[name].states), 2, OPTIONS)


def assert_updated(p, state, want, states):
    """Assert that a step came to what the oracle has."""
    assert_close(p, want, ONE_STEP)
    for expected_state in states:
        assert_close(state, expected_state, ONE_STEP)


@names
def test_there_is_a_function_for_arrays_beside_each_rule(name):
    """With the rule's own arguments, so that keywords do."""
    of_numbers, of_arrays = getattr(cpu, name).py_func, getattr(cpu, f"update_{name}").py_func
    assert inspect.signature(of_arrays) == inspect.signature(of_numbers)


@dtypes
@names
def test_sizes(name, dtype):
    """From plain Python, at every size around a vector's, and not an element further."""
    rng = np.random.default_rng(0)
    for size in [*range(36), 63, 64, 65, 1000]:
        guarded = drawn(rng, (size + 2,), dtype)
        before = [array.copy() for array in guarded]
        inner = [array[1:-1] for array in guarded]
        want = expected(name, *inner)
        update(name, *inner)
        assert_updated(inner[0], inner[2], *want)
        for array, old in zip(guarded, before, strict=True):
            assert (array[0], array[-1]) == (old[0], old[-1])
        assert np.array_equal(guarded[1], before[1])


LAYOUTS = {
    "C": lambda array: array.copy(order="C"),
    "F": lambda array: array.copy(order="F"),
    "every second": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
    "backwards": lambda array: array[::-1].copy()[::-1],
    "transposed": lambda array: np.moveaxis(np.moveaxis(array, 0, -1).copy(), -1, 0),
}


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4)])
@names
def test_layouts(name, shape):
    """Whatever the strides of each array: p, g and the state each lie in every way beside the others in order C."""
    rng = np.random.default_rng(1)
    layouts = LAYOUTS if shape else {"C": LAYOUTS["C"]}
    for layout in layouts.values():
        for which in range(3):
            arrays = list(drawn(rng, shape, np.float32))
            want = expected(name, *arrays)
            arrays[which] = layout(arrays[which])
            update(name, *arrays)
            assert_updated(arrays[0], arrays[2], *want)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(list(RULES)), st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.integers(1, 20))
def test_arrays_are_updated_as_their_elements(name, values, steps):
    """To the bit, step after step, with gradients that follow the parameter."""
    p = np.array(values)
    state = np.zeros_like(p)
    single = [(value, *[0.0] * len(RULES[name].states)) for value in values]
    rule = getattr(cpu, name)
    for _ in range(steps):
        update(name, p, 0.5 * p, state)
        single = [as_tuple(rule(x[0], 0.5 * x[0], *x[1:], *hypers(name))) for x in single]
    np.testing.assert_array_equal(p, [x[0] for x in single])
    if RULES[name].states:
        np.testing.assert_array_equal(state, [x[1] for x in single])


def as_tuple(returned):
    """What a rule returns, which is a number where it has no states."""
    return returned if isinstance(returned, tuple) else (returned,)


# Loops as users write them, with literals, and nothing but @njit.


@njit
def sgd_arrays(p, g, s, steps):
    for _ in range(steps):
        cpu.update_sgd(p, g, 0.1)


@njit
def momentum_arrays(p, g, s, steps):
    for _ in range(steps):
        cpu.update_momentum(p, g, s, 0.1, momentum=0.9)


@njit
def nesterov_arrays(p, g, s, steps):
    for _ in range(steps):
        cpu.update_nesterov(p, g, s, lr=0.1, momentum=0.9)


@njit
def adagrad_arrays(p, g, s, steps):
    for _ in range(steps):
        cpu.update_adagrad(p, g, s, 0.1, 1e-4)


@njit
def sgd_numbers(p, g, s, steps):
    for _ in range(steps):
        for i in range(p.size):
            p[i] = cpu.sgd(p[i], g[i], 0.1)


@njit
def momentum_numbers(p, g, s, steps):
    for _ in range(steps):
        for i in range(p.size):
            p[i], s[i] = cpu.momentum(p[i], g[i], s[i], 0.1, 0.9)


@njit
def nesterov_numbers(p, g, s, steps):
    for _ in range(steps):
        for i in range(p.size):
            p[i], s[i] = cpu.nesterov(p[i], g[i], s[i], 0.1, 0.9)


@njit
def adagrad_numbers(p, g, s, steps):
    for _ in range(steps):
        for i in range(p.size):
            p[i], s[i] = cpu.adagrad(p[i], g[i], s[i], 0.1, 1e-4)


LOOPS = [sgd_arrays, momentum_arrays, nesterov_arrays, adagrad_arrays]
LOOPS += [sgd_numbers, momentum_numbers, nesterov_numbers, adagrad_numbers]
loops = pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)


def test_there_are_loops_for_every_rule():
    assert {loop.__name__ for loop in LOOPS} == {f"{name}_{what}" for name in RULES for what in ("arrays", "numbers")}


@dtypes
@loops
def test_loops_of_users(loop, dtype):
    """Fifty steps in one call."""
    name = loop.__name__.partition("_")[0]
    p, g, state = drawn(np.random.default_rng(2), (100,), dtype)
    want, states = expected(name, p, g, state)
    for _ in range(49):
        want, states = oracle.RULES[name](want, g, states, 2, OPTIONS)
    loop(p, g, state, 50)
    assert_close(p, want, TRAJECTORY)
    for expected_state in states:
        assert_close(state, expected_state, TRAJECTORY)


def written_out(name):
    """The operations of a loop with literals: AdaGrad's rate is negated then, and its subtraction an addition."""
    return {*operations(name)} - ({"sub"} if name == "adagrad" else set())


@dtypes
@loops
def test_code(loop, dtype):
    """Inlined and packed in the user's own function, in the arrays' precision, and no fused multiply-add."""
    name, dtype_name = loop.__name__.partition("_")[0], np.dtype(dtype).name
    loop(*(np.ones(3, dtype) for _ in range(3)), 1)
    (code,) = (code for types, code in loop.inspect_asm().items() if types[0].dtype.name == dtype_name)
    own = body(code, loop.__name__)
    for operation in written_out(name):
        assert re.search(packed(operation, dtype_name), own), operation
    other = any_arithmetic("float64" if dtype == np.float32 else "float32")
    assert [line.strip() for line in code.splitlines() if re.search(other, line)] == []
    assert re.findall(FUSED, code) == []


def test_code_in_two_dimensions():
    """Arrays in order C are packed, whatever their dimension."""

    @njit
    def matrices(p, g, s):
        cpu.update_adagrad(p, g, s, 0.1, 1e-4)

    matrices(*(np.ones((3, 4), np.float32) for _ in range(3)))
    (code,) = matrices.inspect_asm().values()
    for operation in written_out("adagrad"):
        assert re.search(packed(operation, "float32"), body(code, "matrices")), operation


def test_in_a_parallel_function():
    """What Numba's passes for `parallel=True` take for dead is not the update."""

    def train(p, g, v):
        g = g * 2.0
        cpu.update_momentum(p, g, v, 0.1, 0.9)
        return (p * 1.0).sum()

    results = []
    for function in (njit(parallel=True)(train), njit(train)):
        p, g, v = drawn(np.random.default_rng(3), (100,), np.float64)
        results.append((function(p, g, v), p, v))
    assert results[0][0] == pytest.approx(results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    np.testing.assert_array_equal(results[0][2], results[1][2])


def test_schedules_in_a_loop():
    """A rate from a record, step by step, in the function that trains."""

    @njit
    def train(p, g, v, record):
        for step in range(20):
            cpu.update_momentum(p, g, v, cpu.schedule(record, step), 0.9)

    schedule = Cosine(0.1, 20)
    p, g, v = drawn(np.random.default_rng(4), (30,), np.float64)
    want, states = p.copy(), (v.copy(),)
    for step in range(20):
        want, states = oracle.momentum(want, g, states, 2, {**OPTIONS, "lr": schedule(step)})
    train(p, g, v, schedule.record())
    assert_close(p, want, TRAJECTORY)


def one(dtype=np.float64, shape=(3,)):
    """An array."""
    return np.ones(shape, dtype)


def readonly():
    """An array that is not writable."""
    array = one()
    array.flags.writeable = False
    return array


BAD = [
    ((1.0, one(), one()), "update_momentum: p must be an array, not float64"),
    ((one(), (1.0, 1.0), one()), "update_momentum: g must be an array, not "),
    ((one(int), one(int), one(int)), "update_momentum: p must hold float32 or float64, not int64"),
    ((one(), one(np.float32), one()), "update_momentum: g must have dtype and number of axes of p"),
    ((one(), one(), one(shape=(3, 1))), "update_momentum: v must have dtype and number of axes of p"),
    ((readonly(), one(), one()), "update_momentum: p is updated in place"),
    ((one(), one(), readonly()), "update_momentum: v is updated in place"),
]


@pytest.mark.parametrize(("arrays", "message"), BAD)
def test_what_cannot_be_compiled(arrays, message):
    """The error names the function, the argument and what it is."""
    with pytest.raises(TypingError, match=re.escape(message)):
        cpu.update_momentum(*arrays, 0.1, 0.9)


def test_a_gradient_may_be_readonly():
    p, v = one(), np.zeros(3)
    cpu.update_momentum(p, readonly(), v, 0.1, 0.9)
    assert (p == 0.9).all()


@pytest.mark.parametrize("which", ["g", "v"])
def test_shapes_that_differ(which):
    """An error before anything changes, in compiled code as in Python."""

    @njit
    def compiled(p, g, v):
        cpu.update_momentum(p, g, v, 0.1, 0.9)

    for function in (compiled, lambda p, g, v: cpu.update_momentum(p, g, v, 0.1, 0.9)):
        arrays = {"p": one(), "g": one(), "v": one()} | {which: one(shape=(4,))}
        with pytest.raises(ValueError, match="update_momentum: p, g, v must have one shape"):
            function(**arrays)
        assert all((array == 1).all() for array in arrays.values())


def test_where_numba_is_switched_off(tmp_path):
    """As its users do to look into a loop with a debugger."""
    script = """
        import numpy as np
        from numba import njit
        from fastopt.kernels import cpu

        @njit
        def train(p, g, v):
            cpu.update_sgd(p, g, 0.25)
            cpu.update_momentum(p, g, v, 0.5, 0.5)

        p, g, v = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
        train(p, g, v)
        print(p[1, 2], v[0, 0], p.dtype)
        try:
            train(p, g, np.zeros(3, np.float32))
        except ValueError as error:
            print(error)
    """
    code, output, errors = run_script(script, tmp_path, NUMBA_DISABLE_JIT="1")
    assert (code, errors) == (0, "")
    assert output == "0.25 1.0 float32\nupdate_momentum: p, g, v must have one shape\n"


def test_functions_of_users_that_are_cached(tmp_path):
    """A function with `cache=True` is found by the next process, and right there."""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from numba import njit\n"
        "from fastopt.kernels import cpu\n"
        "@njit(cache=True)\n"
        "def train(p, g, v):\n"
        "    for _ in range(2):\n"
        "        cpu.update_nesterov(p, g, v, 0.5, 0.5)\n"
        "        for i in range(p.size):\n"
        "            p[i] = cpu.sgd(p[i], g[i], 0.25)\n"
        "p = np.ones(5, np.float32)\n"
        "train(p, np.ones(5, np.float32), np.zeros(5, np.float32))\n"
        "print(p[0], *train.stats.cache_hits.values())\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    for hits in ("", " 1"):
        command = [sys.executable, "mine.py"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == f"-1.125{hits}", done.stderr
