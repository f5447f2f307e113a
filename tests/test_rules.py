"""Every rule, in every dtype, against the float64 oracle."""

import inspect
from pathlib import Path

import numpy as np
import oracle
import pytest
from fastopt.kernels import cpu, tables
from numba import cfunc, njit
from tolerances import ONE_STEP, TRAJECTORY, assert_close

import fastopt
from fastopt import rules
from fastopt.chunks import CHUNK_ELEMENTS
from fastopt.host import ELEMENTS_PER_THREAD, Launch

DTYPES = [np.float32, np.float64]
# around every vector width and unrolled loop, around the chunk, and around the size at which threads come in
SIZES = [0, *range(1, 36), 63, 64, 65, 127, 128, 129, 255, 256, 257]
SIZES += [n * CHUNK_ELEMENTS + d for n in (1, 2, 3) for d in (-1, 0, 1)]
SIZES += [2 * ELEMENTS_PER_THREAD + d for d in (-1, 0, 1)]

OPTIMIZERS = {
    "sgd": (fastopt.SGD, {"lr": 0.1}),
    "momentum": (fastopt.SGD, {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (fastopt.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adagrad": (fastopt.Adagrad, {"lr": 0.1}),
}
OPTIONS = [
    ("sgd", {}),
    ("sgd", {"weight_decay": 0.01}),
    ("sgd", {"weight_decay": 0.01, "maximize": True}),
    ("momentum", {}),
    ("momentum", {"dampening": 0.3}),
    ("momentum", {"dampening": 0.3, "weight_decay": 0.01, "maximize": True}),
    ("momentum", {"dampening": 1.0}),
    ("nesterov", {}),
    ("nesterov", {"weight_decay": 0.01, "maximize": True}),
    ("adagrad", {}),
    ("adagrad", {"lr_decay": 0.1}),
    ("adagrad", {"lr_decay": 0.1, "weight_decay": 0.01, "maximize": True}),
    ("adagrad", {"initial_accumulator_value": 0.5, "eps": 1e-3}),
]


def normal(rng, shape, dtype):
    """Random numbers of a dtype."""
    return rng.standard_normal(shape).astype(dtype)


def test_the_four_places_hold_the_same_names():
    """Registry, Numba, C++ and oracle; order included, from the simplest to the hardest."""
    header = (Path(cpu.__file__).parent / "rules.h").read_text(encoding="utf-8")
    macro = header[header.index("#define FASTOPT_RULES(X)") : header.index("namespace fastopt")]
    in_header = [line.split("(")[1].split(",")[0] for line in macro.splitlines()[1:] if "X(" in line]
    assert list(rules.RULES) == list(cpu.STATES) == in_header == list(oracle.RULES)


@pytest.mark.parametrize("name", rules.RULES)
def test_registry_and_numba_agree_on_arguments(name):
    """A scalar function takes p, g, its states and its hyperparameters, which the hyper row lists in that order."""
    rule = rules.RULES[name]
    arguments = list(inspect.signature(getattr(cpu, name).py_func).parameters)
    assert cpu.STATES[name] == len(rule.states) <= tables.STATES
    assert tuple(arguments[2 + len(rule.states) :]) == rule.hypers
    assert 2 + len(rule.hypers) <= tables.HYPERS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", rules.RULES)
def test_sizes(name, dtype):
    """One step at every size, and not an element further."""
    rng = np.random.default_rng(1)
    optimizer, options = OPTIMIZERS[name]
    for size in SIZES:
        guarded = normal(rng, size + 2, dtype)
        before = guarded.copy()
        p, g = guarded[1:-1], normal(rng, size, dtype)
        trainer = oracle.Trainer([p])
        trainer.step(name, [g], options)
        optimizer(p, **options).step(g)
        assert_close(p, trainer.params[0], ONE_STEP)
        assert guarded[0] == before[0]
        assert guarded[-1] == before[-1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_trajectories(name, options, dtype):
    """Sixty steps of a small model with a gradient that is missing now and then, options and state included."""
    rng = np.random.default_rng(2)
    optimizer, defaults = OPTIMIZERS[name]
    params = [normal(rng, shape, dtype) for shape in [(3, 5), (), (7,), (2, 1, 4)]]
    trainer = oracle.Trainer(params)
    opt = optimizer(params, **{**defaults, **options})
    for step in range(60):
        grads = [normal(rng, p.shape, dtype) if (step + i) % 5 or not i else None for i, p in enumerate(params)]
        grads[3] = None if step < 20 else grads[3]
        opt.step(grads)
        trainer.step(name, grads, {**defaults, **options})
    for i, (p, want) in enumerate(zip(params, trainer.params, strict=True)):
        assert_close(p, want, TRAJECTORY)
        assert opt.state[i]["step"] == trainer.steps[i]
        for state, expected in zip(rules.RULES[name].states, trainer.states[i], strict=True):
            assert_close(opt.state[i][state], expected, TRAJECTORY)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 5, 1000, 3 * CHUNK_ELEMENTS + 7])
def test_fused_calls(size, dtype):
    """Three calls of each, with every option."""
    rng = np.random.default_rng(3)
    options = {"lr": 0.1, "weight_decay": 0.01, "maximize": True}
    with_momentum = {**options, "momentum": 0.9}
    calls = [
        ("sgd", fastopt.fused.sgd, options),
        ("momentum", fastopt.fused.momentum, {**with_momentum, "dampening": 0.25}),
        ("nesterov", fastopt.fused.nesterov, with_momentum),
        ("nesterov", fastopt.fused.momentum, {**with_momentum, "nesterov": True}),
        ("adagrad", fastopt.fused.adagrad, {**options, "eps": 1e-4}),
    ]
    for name, call, given in calls:
        p = normal(rng, size, dtype)
        states = [np.full(size, 0.5, dtype) for _ in rules.RULES[name].states]
        want, want_states = p.astype(np.float64), tuple(state.astype(np.float64) for state in states)
        for step in range(1, 4):
            g = normal(rng, size, dtype)
            assert call(p, g, *states, **given) is None
            want, want_states = oracle.RULES[name](want, g, want_states, step, given)
        assert_close(p, want, TRAJECTORY)
        for state, expected in zip(states, want_states, strict=True):
            assert_close(state, expected, TRAJECTORY)


@pytest.mark.parametrize("name", rules.RULES)
def test_non_finite_gradients_propagate(name):
    """As in torch: a NaN or an infinity reaches its own element and no other."""
    optimizer, options = OPTIMIZERS[name]
    p = np.ones(40, np.float32)
    g = np.full(40, 0.5, np.float32)
    g[7], g[20] = np.nan, np.inf
    optimizer(p, **options).step(g)
    assert not np.isfinite(p[[7, 20]]).any()
    assert np.isfinite(np.delete(p, [7, 20])).all()


def test_zero_gradient_of_adagrad_moves_nothing():
    """0 / (sqrt(0) + eps) is 0, in float32 too."""
    p = np.ones(5, np.float32)
    fastopt.Adagrad(p).step(np.zeros(5, np.float32))
    assert (p == 1).all()


@pytest.mark.parametrize("hyper", [0.1, np.float64(0.1), np.float32(0.1)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", rules.RULES)
def test_scalar_rules_stay_in_the_parameters_type(name, dtype, hyper):
    """With hyperparameters of any number type, inside a compiled loop; that is how others embed them."""
    rule, states, hypers = getattr(cpu, name), len(rules.RULES[name].states), len(rules.RULES[name].hypers)
    one = dtype(1)
    signature = tuple([one] * (2 + states) + [hyper] * hypers)

    @njit(error_model="numpy")
    def call(*arguments):
        return rule(*arguments)

    call(*signature)
    returned = call.nopython_signatures[0].return_type
    kinds = {str(kind) for kind in (returned.types if states else [returned])}
    assert kinds == {np.dtype(dtype).name}


def test_hyper_rows_are_computed_once_in_float64():
    """A rate that float32 cannot hold exactly decays exactly on the host."""
    options = {"lr": 0.1, "lr_decay": 0.3, "weight_decay": 0.0, "eps": 1e-10, "maximize": False}
    row = rules.ADAGRAD.row(options, 2**24 + 2, False)
    assert row[2] == 0.1 / (1.0 + (2**24 + 1) * 0.3)


# What the descendants will need: as many states are handed over as a rule says it has, however it is called.


@pytest.fixture(params=[2, 3])
def rule(request, monkeypatch):
    """A rule with so many states, known to Numba."""
    monkeypatch.setattr(cpu, "STATES", dict(cpu.STATES))
    monkeypatch.setattr(cpu, "FUNCTIONS", list(cpu.FUNCTIONS))

    def two(p, g, a, b, lr):
        return p - lr * g, a + g, b + a

    def three(p, g, a, b, c, lr, eps):
        return p - lr * g, a + g, b + a, c + eps

    cpu.rule(states=2)(two)
    cpu.rule(states=3)(three)  # each under a number of its own: by these Numba remembers what it has compiled
    if request.param == 2:
        return rules.Rule("two", ("a", "b"), rules.OF_SGD, ("lr",), rules.sgd_row)
    return rules.Rule("three", ("a", "b", "c"), rules.OF_SGD, ("lr", "eps"), rules.sgd_row)


def assert_called(rule, call):
    """Assert what a call does to a parameter of 1, a gradient of 2 and states of 3, 4 and 5, with 0.5 and 0.25."""
    count = len(rule.states)
    p, g, *states = (np.full(10, value) for value in (1.0, 2.0, 3.0, 4.0, 5.0)[: 2 + count])
    call(p, g, *states)
    assert (p == 0).all()
    assert [array[0] for array in states] == [5.0, 7.0, 5.25][:count]


def test_more_states_in_a_launch(rule, monkeypatch):
    kernel = cfunc(cpu.SIGNATURE, error_model="numpy")(cpu.make_kernel(rule.name, np.float64))
    monkeypatch.setitem(cpu._kernels, (rule.name, "float64"), kernel)
    launch = Launch(rule, "float64", [10])

    def call(*arrays):
        launch.addresses[0, : len(arrays)] = [array.ctypes.data for array in arrays]
        launch.hypers[0, :4] = 1.0, 0.0, 0.5, 0.25
        launch()

    assert_called(rule, call)


def test_more_states_through_a_pointer(rule):
    update = cfunc(cpu.UPDATE, error_model="numpy")(cpu.make_update(rule.name, np.float64))

    def call(p, g, *states):
        addresses, hypers = np.array([array.ctypes.data for array in states]), np.array([0.5, 0.25])
        update.ctypes(p.ctypes.data, g.ctypes.data, addresses.ctypes.data, 10, hypers.ctypes.data)

    assert_called(rule, call)


def test_more_states_over_arrays(rule):
    name, hypers = rule.name, (0.5, 0.25)[: len(rule.hypers)]

    @njit
    def call(p, g, *states):
        cpu.update_each(name, p, g, states, hypers)

    assert_called(rule, call)
    with pytest.raises(ValueError, match=f"update_{name}: p, g, a, .* must have one shape"):
        call(np.ones(3), np.ones(3), *[np.ones(3)] * (len(rule.states) - 1), np.ones(4))
