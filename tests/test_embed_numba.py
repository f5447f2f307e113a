"""Rules in loops that Numba compiles, on numbers and on whole arrays: against the oracle, and the machine code."""

import inspect
import itertools
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from fastopt.bench import oracle
from fastopt.kernels import cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from instructions import FUSED, any_arithmetic, body, operations, packed
from loop_cases import numbers_of, options_of, states_of
from numba import njit
from numba.core.errors import TypingError
from pairs import pairs, usually
from processes import run_script
from rule_cases import BY_STATES
from tolerances import ONE_STEP, TRAJECTORY, assert_close

from fastopt import SGD
from fastopt.rules import RULES
from fastopt.schedules import Cosine

names = pytest.mark.parametrize("name", RULES)
DTYPES = [np.float32, np.float64]


def drawn(name, rng, shape, dtype):
    """A parameter, its gradient, and its states."""
    p, g = (np.array(rng.standard_normal(shape), dtype) for _ in "pg")
    return [p, g, *(np.array(state) for state in states_of(name, rng, shape, np.dtype(dtype).type))]


def update(name, *arrays):
    """Update an array by the function for whole arrays."""
    getattr(cpu, f"update_{name}")(*arrays, *numbers_of(name, 2))


def expected(name, p, g, *states):
    """The parameter and its states as the oracle has them after a step, in float64."""
    p, *states = (np.asarray(array, np.float64) for array in (p, *states))
    want, states = oracle.RULES[name](p, g, states, 2, options_of(name))
    return [want, *states]


def assert_updated(arrays, want, count=ONE_STEP):
    """Assert that parameter and states came to what the oracle has."""
    p, _, *states = arrays
    for got, expected_array in zip((p, *states), want, strict=True):
        assert_close(got, expected_array, count)


@names
def test_there_is_a_function_for_arrays_beside_each_rule(name):
    """With the rule's own arguments, so that keywords do."""
    of_numbers, of_arrays = getattr(cpu, name).py_func, getattr(cpu, f"update_{name}").py_func
    assert inspect.signature(of_arrays) == inspect.signature(of_numbers)


@pytest.mark.parametrize(
    ("name", "dtype"), usually(pairs(1, name=BY_STATES, dtype=DTYPES), itertools.product(RULES, DTYPES))
)
def test_sizes(name, dtype):
    """From plain Python, at every size around a vector's, and not an element further."""
    rng = np.random.default_rng(0)
    for size in [*range(36), 63, 64, 65, 1000]:
        guarded = drawn(name, rng, (size + 2,), dtype)
        before = [array.copy() for array in guarded]
        inner = [array[1:-1] for array in guarded]
        want = expected(name, *inner)
        update(name, *inner)
        assert_updated(inner, want)
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


SHAPES = [(2, 3, 4), (7,), ()]
LAID = [(BY_STATES[1], SHAPES[1]), (BY_STATES[0], ())]  # by default few arrays: Numba compiles for each layout


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(*case, marks=[] if case in LAID else pytest.mark.exhaustive)
        for case in itertools.product(BY_STATES, SHAPES)
    ],
)
def test_layouts(name, shape):
    """Whatever the strides of each array: p, g and each state lie in every way beside the others in order C."""
    rng = np.random.default_rng(1)
    layouts = LAYOUTS if shape else {"C": LAYOUTS["C"]}
    for layout in layouts.values():
        for which in range(2 + len(RULES[name].states)):
            arrays = drawn(name, rng, shape, np.float32)
            want = expected(name, *arrays)
            arrays[which] = layout(arrays[which])
            update(name, *arrays)
            assert_updated(arrays, want)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BY_STATES), st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.integers(1, 20))
def test_arrays_are_updated_as_their_elements(name, values, steps):
    """To the bit, step after step, with gradients that follow the parameter."""
    p = np.array(values)
    states = [np.zeros_like(p) for _ in RULES[name].states]
    single = [(value, *[0.0] * len(states)) for value in values]
    rule, numbers = getattr(cpu, name), numbers_of(name, 2)
    for _ in range(steps):
        update(name, p, 0.5 * p, *states)
        single = [as_tuple(rule(x[0], 0.5 * x[0], *x[1:], *numbers)) for x in single]
    for array, elements in zip((p, *states), zip(*single, strict=True), strict=True):
        np.testing.assert_array_equal(array, elements)


def as_tuple(returned):
    """What a rule returns, which is a number where it has no states."""
    return returned if isinstance(returned, tuple) else (returned,)


# Loops as users write them, with literals, and nothing but @njit.
LOOP = """
@njit
def {name}_arrays(steps, {arrays}):
    for _ in range(steps):
        cpu.update_{name}({arrays}, {literals})

@njit
def {name}_numbers(steps, {arrays}):
    for _ in range(steps):
        for i in range(p.size):
            {elements} = cpu.{name}({given}, {literals})
"""


def written(name):
    """The two loops of a rule, over arrays and over their elements."""
    states = [f"{letter}[i]" for letter in "abc"[: len(RULES[name].states)]]
    source = LOOP.format(
        name=name,
        arrays=", ".join(["p", "g", *"abc"[: len(states)]]),
        elements=", ".join(["p[i]", *states]),
        given=", ".join(["p[i]", "g[i]", *states]),
        literals=", ".join(map(repr, numbers_of(name, 2))),
    )
    defined = {"njit": njit, "cpu": cpu}
    exec(source, defined)
    return {(name, what): defined[f"{name}_{what}"] for what in ("arrays", "numbers")}


LOOPS = {key: loop for name in RULES for key, loop in written(name).items()}
WHATS = ["arrays", "numbers"]
# By default few rules, each in one of the two: whatever the rule, the same function inlines it.
USUAL = pairs(together=1, name=BY_STATES, what=WHATS, dtype=DTYPES)
loops = pytest.mark.parametrize(
    ("name", "what", "dtype"),
    [
        pytest.param(*case, marks=[] if case in USUAL else pytest.mark.exhaustive)
        for case in itertools.product(RULES, WHATS, DTYPES)
    ],
)


@loops
def test_loops_of_users(name, what, dtype):
    """Fifty steps in one call."""
    arrays = drawn(name, np.random.default_rng(2), (100,), dtype)
    p, g, *states = (array.astype(np.float64) for array in arrays)
    for _ in range(50):
        p, states = oracle.RULES[name](p, g, states, 2, options_of(name))
    LOOPS[name, what](50, *arrays)
    assert_updated(arrays, [p, *states], TRAJECTORY)


def written_out(name):
    """The operations of a loop with literals: where it divides, a rate is negated then, its subtraction an addition."""
    negated = "eps" in RULES[name].hypers and "centered" not in name
    return {*operations(name)} - ({"sub"} if negated else set())


@loops
def test_code(name, what, dtype):
    """Inlined and packed in the user's own function, in the arrays' precision, and no fused multiply-add."""
    loop, dtype_name = LOOPS[name, what], np.dtype(dtype).name
    loop(1, *drawn(name, np.random.default_rng(5), (3,), dtype))
    (code,) = (code for types, code in loop.inspect_asm().items() if types[1].dtype.name == dtype_name)
    own = body(code, loop.__name__)
    for operation in written_out(name):
        assert re.search(packed(operation, dtype_name), own), operation
    other = any_arithmetic("float64" if dtype == np.float32 else "float32")
    assert [line.strip() for line in code.splitlines() if re.search(other, line)] == []
    assert re.findall(FUSED, code) == []


@njit
def staged(steps, p, g, v, e):
    """Steps with stages, as users write them."""
    for _ in range(steps):
        for i in range(p.size):
            p[i], v[i] = cpu.nesterov(p[i], cpu.clipped(g[i], 0.5), v[i], 0.1, 0.9)
            e[i] = cpu.averaged(e[i], p[i], 0.25)


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.exhaustive)])
def test_stages_in_a_loop(dtype):
    """What the optimizer does with these options, to the bit, in the arrays' precision."""
    g = np.random.default_rng(4).standard_normal(37).astype(dtype)
    g[:3] = np.nan, np.inf, -np.inf
    p, v, want = np.ones(37, dtype), np.zeros(37, dtype), np.ones(37, dtype)
    e = p.copy()
    opt = SGD(want, lr=0.1, momentum=0.9, nesterov=True, clip_grad_value=0.5, ema_decay=0.75)
    staged(5, p, g, v, e)
    for _ in range(5):
        opt.step(g)
    np.testing.assert_array_equal(p, want)
    np.testing.assert_array_equal(e, opt.state[0]["ema"])
    assert np.isnan(p[0])
    assert np.isfinite(p[1:]).all()
    (code,) = (code for types, code in staged.inspect_asm().items() if types[1].dtype.name == np.dtype(dtype).name)
    other = any_arithmetic("float64" if dtype == np.float32 else "float32")
    assert [line.strip() for line in code.splitlines() if re.search(other, line)] == []


def test_code_in_two_dimensions():
    """Arrays in order C are packed, whatever their dimension."""

    @njit
    def matrices(p, g, s):
        cpu.update_adagrad(p, g, s, 0.1, 1e-4)

    matrices(*(np.ones((3, 4), np.float32) for _ in range(3)))
    (code,) = matrices.inspect_asm().values()
    for operation in written_out("adagrad"):
        assert re.search(packed(operation, "float32"), body(code, "matrices")), operation


@pytest.mark.exhaustive  # compiles long
def test_in_a_parallel_function():
    """Numba's passes for `parallel=True` do not remove the update as dead code."""

    def train(p, g, v):
        g = g * 2.0
        cpu.update_momentum(p, g, v, 0.1, 0.9)
        return (p * 1.0).sum()

    results = []
    for function in (njit(parallel=True)(train), njit(train)):
        p, g, v = drawn("momentum", np.random.default_rng(3), (100,), np.float64)
        results.append((function(p, g, v), p, v))
    assert results[0][0] == pytest.approx(results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    np.testing.assert_array_equal(results[0][2], results[1][2])


@pytest.mark.exhaustive  # compiles long
def test_schedules_in_a_loop():
    """A rate from a record, step by step, in the function that trains."""

    @njit
    def train(p, g, v, record):
        for step in range(20):
            cpu.update_momentum(p, g, v, cpu.schedule(record, step), 0.9)

    schedule = Cosine(0.1, 20)
    p, g, v = drawn("momentum", np.random.default_rng(4), (30,), np.float64)
    want, states = p.copy(), (v.copy(),)
    for step in range(20):
        want, states = oracle.momentum(want, g, states, 2, {"lr": schedule(step), "momentum": 0.9})
    train(p, g, v, schedule.record())
    assert_close(p, want, TRAJECTORY)


def test_the_correction_of_the_bias_in_a_loop():
    """Adam's rate and eps of a step, computed where the steps are counted."""

    @njit
    def train(p, g, m, v):
        for step in range(1, 21):
            root = np.sqrt(1 - 0.999**step)
            lr = 0.1 * root / (1 - 0.9**step)
            cpu.update_adam(p, g, m, v, lr, 1 - 0.9, 1 - 0.999, 1e-8 * root)

    p, g = drawn("sgd", np.random.default_rng(6), (30,), np.float32)
    m, v = np.zeros_like(p), np.zeros_like(p)
    trainer = oracle.Trainer([p])
    for _ in range(20):
        trainer.step("adam", [g], {"lr": 0.1})
    train(p, g, m, v)
    assert_updated([p, g, m, v], [*trainer.params, *trainer.states[0]], TRAJECTORY)


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


@pytest.mark.parametrize("name", BY_STATES)
def test_shapes_that_differ(name):
    """An error before anything changes, in compiled code as in Python; whichever of the arrays is another one."""
    function, numbers = getattr(cpu, f"update_{name}"), numbers_of(name, 2)
    count = 2 + len(RULES[name].states)
    for which in range(1, count):
        arrays = [one(shape=(4 if i == which else 3,)) for i in range(count)]
        with pytest.raises(ValueError, match=f"update_{name}: p, g.* must have one shape"):
            function(*arrays, *numbers)
        assert all((array == 1).all() for array in arrays)


def test_shapes_that_differ_in_a_loop():
    """The error comes out of compiled code."""

    @njit
    def compiled(p, g, v):
        cpu.update_momentum(p, g, v, 0.1, 0.9)

    arrays = one(), one(), one(shape=(4,))
    with pytest.raises(ValueError, match="update_momentum: p, g, v must have one shape"):
        compiled(*arrays)
    assert all((array == 1).all() for array in arrays)


def test_where_numba_is_switched_off(tmp_path):
    """As users do to debug a loop."""
    script = """
        import numpy as np
        from numba import njit
        from fastopt.kernels import cpu

        @njit
        def train(p, g, v):
            cpu.update_sgd(p, g, 0.25)
            cpu.update_momentum(p, g, v, 0.5, 0.5)

        @njit
        def largest(p, g, m, v, w):
            cpu.update_adamw_amsgrad(p, g, m, v, w, 0.5, 0.5, 0.75, 0.0, 0.5)

        p, g, v = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
        train(p, g, v)
        print(p[1, 2], v[0, 0], p.dtype)
        states = [np.full((2, 3), value, np.float32) for value in (0.0, 1.0, 4.0)]
        largest(p, g, *states)
        print(p[1, 2], *(state[0, 0] for state in states), p.dtype)
        try:
            train(p, g, np.zeros(3, np.float32))
        except ValueError as error:
            print(error)
    """
    code, output, errors = run_script(script, tmp_path, NUMBA_DISABLE_JIT="1")
    assert (code, errors) == (0, "")
    lines = ["0.25 1.0 float32", "0.0 0.5 1.0 4.0 float32", "update_momentum: p, g, v must have one shape"]
    assert output.splitlines() == lines


@pytest.mark.exhaustive  # compiles long
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
