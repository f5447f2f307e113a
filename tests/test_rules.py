"""Every rule, in every dtype, against the float64 oracle."""

import inspect
import itertools
import re
from dataclasses import replace
from pathlib import Path

import mpmath
import numpy as np
import pytest
from fastopt.bench import oracle
from fastopt.kernels import cpu
from numba import njit
from pairs import pairs, usually
from rule_cases import BY_STATES, CALLED, OPTIMIZERS, OPTIONS
from tolerances import BIAS, CARRIED, ONE_STEP, TRAJECTORY, assert_close

import fastopt
from fastopt import rules
from fastopt.step.chunks import CHUNK_ELEMENTS
from fastopt.step.cpu import ELEMENTS_PER_THREAD

DTYPES = [np.float32, np.float64]
# around every vector width and unrolled loop, around the chunk, and around the size at which threads come in
SIZES = [0, *range(1, 36), 63, 64, 65, 127, 128, 129, 255, 256, 257]
SIZES += [n * CHUNK_ELEMENTS + d for n in (1, 2, 3) for d in (-1, 0, 1)]
SIZES += [2 * ELEMENTS_PER_THREAD + d for d in (-1, 0, 1)]

VARIED = [
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
    ("rmsprop", {}),
    ("rmsprop", {"alpha": 0.9, "weight_decay": 0.01, "maximize": True}),
    ("rmsprop", {"alpha": 0.0, "eps": 0.1}),
    ("rmsprop_momentum", {}),
    ("rmsprop_momentum", {"momentum": 0.5, "weight_decay": 0.01, "maximize": True}),
    ("rmsprop_centered", {"weight_decay": 0.01, "maximize": True}),
    ("rmsprop_centered_momentum", {}),
    ("adam", {}),
    ("adam", {"weight_decay": 0.01, "maximize": True}),
    ("adam", {"betas": (0.0, 0.5), "eps": 1e-3}),
    ("adam_amsgrad", {"betas": (0.5, 0.9), "weight_decay": 0.01}),
    ("adamw", {}),
    ("adamw", {"weight_decay": 0.0, "maximize": True}),
    ("adamw_amsgrad", {"betas": (0.9, 0.5), "maximize": True}),
    ("lion", {}),
    ("lion", {"betas": (0.5, 0.9), "weight_decay": 0.0, "maximize": True}),
    ("nadam", {}),
    ("nadam", {"momentum_decay": 0.3, "weight_decay": 0.01, "maximize": True}),
    ("nadam", {"betas": (0.0, 0.5), "eps": 1e-3}),
    ("nadamw", {}),
    ("nadamw", {"betas": (0.9, 0.5), "momentum_decay": 0.0, "maximize": True}),
]


def normal(rng, shape, dtype):
    """Random numbers of a dtype."""
    return rng.standard_normal(shape).astype(dtype)


def test_the_four_places_hold_the_same_names():
    """Registry, Numba, C++ and oracle; order included, from the simplest to the hardest."""
    header = (Path(cpu.__file__).parent / "rules.h").read_text(encoding="utf-8")
    macro = header[header.index("#define FASTOPT_RULES(X)") : header.index("namespace fastopt")]
    in_header = [line.split("(")[1].split(",")[0] for line in macro.splitlines()[1:] if "X(" in line]
    assert list(rules.RULES) == list(cpu.STATES_OF) == in_header == list(oracle.RULES)


def test_the_worked_example_is_the_code():
    """What CONTRIBUTING shows of Lion's diff is in the files, unchanged, but for a docstring that it leaves out."""
    repository = Path(__file__).parents[1]
    page = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    places = (
        "fastopt/options.py",
        "fastopt/rules.py",
        "kernels/cpu.py",
        "kernels/rules.h",
        "bench/oracle.py",
        "fastopt/optimizers.py",
    )
    blocks = re.findall(r"^```diff\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == len(places)
    for place, block in zip(places, blocks, strict=True):
        code = [line.rstrip(" \\") for line in (repository / place).read_text(encoding="utf-8").splitlines()]
        added = [line[1:].rstrip(" \\") for line in block.splitlines() if line.startswith("+")]
        others = [line for line in added if line not in code]
        assert all('r"""' in line or "__all__" in line for line in others), (place, others)


def test_options_are_varied_for_every_rule():
    """A rule that is not in that list would have no trajectory, here and on GPUs."""
    assert list(dict.fromkeys(name for name, _ in VARIED)) == list(rules.RULES)


@pytest.mark.parametrize("name", rules.RULES)
def test_registry_and_numba_agree_on_arguments(name):
    """A scalar function takes p, g, its states and its hyperparameters, which the hyper row lists in that order."""
    rule = rules.RULES[name]
    arguments = list(inspect.signature(getattr(cpu, name).py_func).parameters)
    assert cpu.STATES_OF[name] == len(rule.states)
    assert tuple(arguments[2 + len(rule.states) :]) == rule.hypers


def four_states(p, g, a, b, c, d, lr):
    return p, a, b, c, d


def seven_numbers(p, g, v, lr, a, b, c, d, e, f):
    return p, v


@pytest.mark.parametrize(
    ("function", "states", "words"),
    [
        (four_states, 4, "rule 'four_states' has 4 states; the tables have room for 3: raise STATES in"),
        (seven_numbers, 1, "rule 'seven_numbers' has 7 numbers; the tables have room for 6: raise NUMBERS in"),
    ],
)
def test_a_rule_that_the_tables_have_no_room_for(function, states, words):
    """Is refused where it is written, in Numba and in the registry, and nothing is registered."""
    before = dict(cpu.STATES_OF), list(cpu.FUNCTIONS)
    with pytest.raises(ValueError, match=re.escape(words)):
        cpu.rule(states=states)(function)
    assert before == (cpu.STATES_OF, cpu.FUNCTIONS)
    names = tuple(inspect.signature(function).parameters)[2:]
    with pytest.raises(ValueError, match=re.escape(words)):
        replace(rules.SGD, name=function.__name__, states=names[:states], hypers=names[states:])


def test_a_rule_of_too_many_options():
    """Of which a pair counts as two."""
    options = ("lr", "betas", "a", "b", "c", "d", "e")
    assert replace(rules.SGD, options=options).options == options
    with pytest.raises(ValueError, match="rule 'sgd' has 9 options; the tables have room for 8: raise OPTIONS in"):
        replace(rules.SGD, options=(*options, "f"))


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
@pytest.mark.parametrize(("name", "options"), VARIED)
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
        if (carried := rules.RULES[name].carried) is not None:
            assert opt.state[i][carried] == pytest.approx(trainer.carried[i], rel=CARRIED)
        for state, expected in zip(rules.RULES[name].states, trainer.states[i], strict=True):
            assert_close(opt.state[i][state], expected, TRAJECTORY)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 5, 1000, 3 * CHUNK_ELEMENTS + 7])
def test_fused_calls(size, dtype):
    """Three calls of each, with every option."""
    rng = np.random.default_rng(3)
    options = {"lr": 0.1, "weight_decay": 0.01, "maximize": True}
    with_momentum = {**options, "momentum": 0.9}
    averaged = {**options, "eps": 1e-4}
    fused = fastopt.fused
    calls = [
        ("sgd", fused.sgd, options),
        ("momentum", fused.momentum, {**with_momentum, "dampening": 0.25}),
        ("nesterov", fused.nesterov, with_momentum),
        ("nesterov", fused.momentum, {**with_momentum, "nesterov": True}),
        ("adagrad", fused.adagrad, averaged),
        ("rmsprop", fused.rmsprop, {**averaged, "alpha": 0.9}),
        ("rmsprop_momentum", fused.rmsprop, {**averaged, "momentum": 0.9}),
        ("rmsprop_centered", lambda p, g, s, a, **given: fused.rmsprop(p, g, s, grad_avg=a, **given), averaged),
        ("rmsprop_centered_momentum", fused.rmsprop, {**averaged, "momentum": 0.5}),
        ("adam", fused.adam, {**averaged, "betas": (0.8, 0.9)}),
        ("adam_amsgrad", fused.adam, averaged),
        ("adamw", fused.adamw, averaged),
        ("adamw_amsgrad", fused.adamw, {**averaged, "betas": (0.8, 0.9)}),
    ]
    assert {name for name, _, _ in calls} == {*CALLED}
    for name, call, given in calls:
        p = normal(rng, size, dtype)
        states = [np.full(size, 0.5, dtype) for _ in rules.RULES[name].states]
        want, want_states = p.astype(np.float64), tuple(state.astype(np.float64) for state in states)
        for step in range(1, 4):
            g = normal(rng, size, dtype)
            counted = {"step": step} if name.startswith("adam") else {}
            assert call(p, g, *states, **given, **counted) is None
            want, want_states = oracle.RULES[name](want, g, want_states, step, given)
        assert_close(p, want, TRAJECTORY)
        for state, expected in zip(states, want_states, strict=True):
            assert_close(state, expected, TRAJECTORY)


@pytest.mark.parametrize("name", rules.RULES)
def test_non_finite_gradients_propagate(name):
    """As in torch: a NaN or an infinity reaches its own element and no other, of the parameter or of a state."""
    make, options = OPTIMIZERS[name]
    p = np.ones(40, np.float32)
    g = np.full(40, 0.5, np.float32)
    g[7], g[20] = np.nan, np.inf
    optimizer = make(p, **options)
    optimizer.step(g)
    finite = np.isfinite([p, *(optimizer.state[0][state] for state in rules.RULES[name].states)]).all(axis=0)
    assert not finite[[7, 20]].any()
    assert np.delete(finite, [7, 20]).all()


def test_zero_gradient_of_adagrad_moves_nothing():
    """0 / (sqrt(0) + eps) is 0, in float32 too."""
    p = np.ones(5, np.float32)
    fastopt.Adagrad(p).step(np.zeros(5, np.float32))
    assert (p == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_variance_that_rounding_makes_negative_is_zero(dtype):
    """With a constant gradient, mean square and squared mean become equal; torch goes on with NaN from there."""
    p = np.ones(64, dtype)
    g = np.linspace(0.1, 3.0, 64).astype(dtype)
    opt = fastopt.RMSprop(p, lr=1e-6, alpha=0.5, eps=1e-3, centered=True)
    for _ in range(200):
        opt.step(g)
    s, a = (opt.state[0][name] for name in ("square_avg", "grad_avg"))
    assert (s - a * a < 0).any()
    assert np.isfinite(p).all()


@pytest.mark.parametrize("name", ["adam_amsgrad", "adamw_amsgrad"])
def test_a_nan_is_the_largest_average(name):
    """As in torch.maximum: a NaN stays in everything computed from it."""
    optimizer, options = OPTIMIZERS[name]
    p = np.ones(9, np.float32)
    opt = optimizer(p, **options)
    for value in (1.0, np.nan, 1.0):
        opt.step(np.full(9, value, np.float32))
    assert np.isnan(opt.state[0]["max_exp_avg_sq"]).all()


HYPERS = [0.1, np.float64(0.1), np.float32(0.1)]


@pytest.mark.parametrize(
    ("name", "dtype", "hyper"),
    usually(pairs(1, name=BY_STATES, dtype=DTYPES, hyper=HYPERS), itertools.product(rules.RULES, DTYPES, HYPERS)),
)
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
    row = rules.ADAGRAD.row({**OPTIONS, "lr_decay": 0.3}, 2**24 + 2, False)
    assert row[2] == 0.1 / (1.0 + (2**24 + 1) * 0.3)


@pytest.mark.parametrize("step", [1, 2, 1000, 2**24 + 1, 2**40 + 1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (1 - 2.0**-30, 1 - 2.0**-32), (0.0, 0.0)])
def test_bias_corrections_are_exact(betas, step):
    """In float64, by the count itself, where float32 counts no further; and before the averages fill as after it."""
    first, second, lr, gain1, gain2, eps = rules.ADAM.row({**OPTIONS, "betas": betas}, step, False)
    with mpmath.workdps(50):
        bias1, bias2 = (1 - mpmath.mpf(beta) ** step for beta in betas)
        assert lr == pytest.approx(float(0.1 * mpmath.sqrt(bias2) / bias1), rel=BIAS)
        assert eps == pytest.approx(float(1e-10 * mpmath.sqrt(bias2)), rel=BIAS)
    assert (first, second, gain1, gain2) == (1.0, 0.0, 1 - betas[0], 1 - betas[1])


def test_steps_past_the_integers_of_float32():
    """The next one is another one there, and its correction its own; through the optimizer, as the oracle has it."""
    betas = (1 - 2.0**-24, 1 - 2.0**-25)
    p, g = np.ones(3), np.array([1.0, -2.0, 0.5])
    opt = fastopt.Adam(p, lr=0.1, betas=betas)
    opt.step(g)
    saved = opt.state_dict()
    saved["state"][0]["step"] = 2**24
    opt.load_state_dict(saved)
    trainer = oracle.Trainer([p])
    trainer.steps, trainer.states = [2**24], [tuple(saved["state"][0][name] for name in rules.ADAM.states)]
    for count in (2**24 + 1, 2**24 + 2, 2**24 + 3):
        opt.step(g)
        trainer.step("adam", [g], {"lr": 0.1, "betas": betas})
        assert opt.state[0]["step"] == count
    assert_close(p, trainer.params[0], TRAJECTORY)


def test_adams_first_step_moves_by_the_rate():
    """Whatever the gradient; with AdamW, a weight also decays by itself."""
    for scale in (1e-6, 1.0, 1e6):
        p, q = np.full(3, 2.0), np.full(3, 2.0)
        g = scale * np.array([1.0, -3.0, 100.0])
        fastopt.Adam(p, lr=0.5, eps=0.0).step(g)
        fastopt.AdamW(q, lr=0.5, eps=0.0, weight_decay=0.25).step(g)
        assert_close(p, 2.0 - 0.5 * np.sign(g), ONE_STEP)
        assert_close(q, 2.0 - 0.125 * 2.0 - 0.5 * np.sign(g), ONE_STEP)
