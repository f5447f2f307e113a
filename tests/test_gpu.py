"""Updates of arrays on a GPU against the oracle: on a stand-in for CuPy, and on a real GPU where there is one."""

import importlib
import sys

import cupy_stand_in
import numpy as np
import oracle
import pytest
from fastopt.kernels.tables import WORDS
from gpu_models import captured, host, model, numbers, warm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_rules import OPTIMIZERS, OPTIONS
from tolerances import BFLOAT16, TRAJECTORY, assert_close

import fastopt
from fastopt import rules
from fastopt.schedules import Cosine

DTYPES = [np.float32, np.float64, np.float16]


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.gpu)])
def cupy(request, monkeypatch):
    """CuPy, or what stands in for it."""
    if request.param == "stand-in":
        monkeypatch.setitem(sys.modules, "cupy", cupy_stand_in)
    module = importlib.import_module("cupy")
    yield module
    module.cuda.Device(0).synchronize()


def check(cupy, arrays, wanted):
    """Assert that arrays on the device are the oracle's; of halves, which round at each step, within some of theirs."""
    for array, want in zip(arrays, wanted, strict=True):
        got = host(cupy, array)
        assert_close(got, want, BFLOAT16 if got.dtype == np.float16 else TRAJECTORY)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_trajectories(cupy, name, options, dtype):
    """Thirty steps, with gradients that are missing now and then; no elements, one, and more than a chunk."""
    optimizer, defaults = OPTIMIZERS[name]
    shapes = [(3, 5), (), (0,), (1,), (513,), (4097,)]
    params, _ = model(cupy, shapes, dtype)
    trainer = oracle.Trainer([host(cupy, p) for p in params])
    opt = optimizer(params, **{**defaults, **options})
    for step in range(30):
        _, drawn = model(cupy, shapes, dtype, seed=step)
        grads = [g if (step + i) % 5 or not i else None for i, g in enumerate(drawn)]
        opt.step(grads)
        plain = [None if g is None else host(cupy, g) for g in grads]
        trainer.step(name, plain, {**defaults, **options})
        if dtype == np.float16:  # so that rounding does not pile up
            trainer.params = [host(cupy, p).astype(np.float64) for p in params] if step % 2 else trainer.params
    check(cupy, params, trainer.params)
    for i, steps in enumerate(trainer.steps):
        assert opt.state[i]["step"] == steps
        for state, want in zip(rules.RULES[name].states, trainer.states[i], strict=True):
            kept = opt.state[i][state]
            assert kept.dtype == (np.float64 if dtype == np.float64 else np.float32)
            if dtype != np.float16:
                check(cupy, [kept], [want])


@pytest.mark.parametrize("start", range(8))
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_alignment(cupy, dtype, start):
    """Views into larger arrays; what stands before and behind stays."""
    size = 1030
    rng = np.random.default_rng(2)
    whole = cupy.asarray(rng.standard_normal(size + 16).astype(dtype))
    before = host(cupy, whole)
    p = whole[start : start + size]
    for shift in (0, 1):
        g = cupy.asarray(np.full(size + 16, 0.25, dtype))[start + shift : start + shift + size]
        fastopt.SGD([p], lr=0.5).step([g])
    after = host(cupy, whole)
    want = before.copy()
    want[start : start + size] -= np.asarray(0.125, dtype)
    want[start : start + size] -= np.asarray(0.125, dtype)
    np.testing.assert_array_equal(after, want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layouts(cupy, dtype):
    """Parameters in any order of axes; gradients with any strides, broadcast ones too."""
    rng = np.random.default_rng(1)
    bases = [rng.standard_normal(shape).astype(dtype) for shape in [(5, 7), (4, 3, 2), (40, 30), (6, 4)]]
    turned = [lambda a: a.transpose((1, 0)), lambda a: a.transpose((2, 0, 1)), lambda a: a, lambda a: a[::-1]]
    others = [rng.standard_normal(shape).astype(dtype) for shape in [(7, 10), (2, 4, 3), (30, 40), (6, 8)]]
    views = [lambda a: a[:, ::2], lambda a: a[::-1], lambda a: a.transpose((1, 0)), lambda a: a[:, ::-2]]
    params = [turn(cupy.asarray(base)) for turn, base in zip(turned, bases, strict=True)]
    grads = [view(cupy.asarray(other)) for view, other in zip(views, others, strict=True)]
    trainer = oracle.Trainer([turn(base) for turn, base in zip(turned, bases, strict=True)])
    opt = fastopt.SGD(params, lr=0.1, momentum=0.9)
    for _ in range(3):
        opt.step(grads)
        plain = [view(other) for view, other in zip(views, others, strict=True)]
        trainer.step("momentum", plain, {"lr": 0.1, "momentum": 0.9})
    check(cupy, params, trainer.params)


def test_more_tensors_than_a_message_holds(cupy):
    """Their gradients take several, at each step others."""
    params, _ = model(cupy, [(3,)] * (2 * WORDS + 7))
    trainer = oracle.Trainer([host(cupy, p) for p in params])
    opt = fastopt.Adagrad(params, lr=0.1)
    kept = [model(cupy, [(3,)] * len(params), seed=seed)[1] for seed in range(3)]
    for grads in kept:
        opt.step(grads)
        trainer.step("adagrad", [host(cupy, g) for g in grads], {"lr": 0.1})
    check(cupy, params, trainer.params)


def test_parameters_on_both_sides(cupy):
    """One optimizer over the GPU's and the host's."""
    params, grads = model(cupy)
    here = np.ones(1000, np.float32)
    trainer = oracle.Trainer([*(host(cupy, p) for p in params), here])
    opt = fastopt.Adagrad([*params, here], lr=0.1)
    given_ = [*grads, np.full(1000, 0.5, np.float32)]
    for _ in range(3):
        opt.step(given_)
        trainer.step("adagrad", [*(host(cupy, g) for g in grads), given_[-1]], {"lr": 0.1})
    check(cupy, params, trainer.params[:-1])
    assert_close(here, trainer.params[-1], TRAJECTORY)


@pytest.mark.parametrize("dtype", DTYPES)
def test_single_calls(cupy, dtype):
    """As with NumPy; the same kind again, and on another stream."""
    real = np.float64 if dtype == np.float64 else np.float32
    p, g = cupy.asarray(np.ones(60, dtype)), cupy.asarray(np.full(120, 0.5, dtype))[::2]
    v, s = cupy.asarray(np.zeros(60, real)), cupy.asarray(np.zeros(60, real))
    stream = cupy.cuda.Stream(non_blocking=True)
    for other in (None, stream, None):
        cupy.cuda.Device(0).synchronize()
        with other or cupy.cuda.get_current_stream():
            fastopt.fused.sgd(p, g, lr=0.25)
            fastopt.fused.nesterov(p, g, v, lr=0.125, momentum=1.0)
            fastopt.fused.momentum(p, g, v, lr=0.25, momentum=0.0)
            fastopt.fused.adagrad(p, g, s, lr=0.0)
    # v is 0.5 after each call of momentum, so nesterov's moves by 0.5 + (v + 0.5), of which v is 0 at first
    want = 1 - 3 * 0.25 - 0.125 * (1.0 + 1.5 + 1.5)
    np.testing.assert_array_equal(host(cupy, p), np.full(60, want, dtype))
    np.testing.assert_array_equal(host(cupy, s), np.full(60, 0.75, real))


def refusal(cupy, act, arrays, match, error=(TypeError, ValueError)):
    """Assert that an act raises, and changes nothing."""
    before = [host(cupy, array) for array in arrays]
    with pytest.raises(error, match=match):
        act()
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(host(cupy, array), old)


def test_errors(cupy):
    """Each names what is wrong, before anything has changed."""
    params, grads = model(cupy)
    opt = fastopt.SGD(params, lr=0.1)
    wrong = {
        "dtype float64": cupy.asarray(np.ones((3, 5))),
        r"shape \(5, 3\)": cupy.asarray(np.ones((5, 3), np.float32)),
        "not an array on a GPU": np.ones((3, 5), np.float32),
        "overlaps": params[0],
    }
    for match, gradient in wrong.items():
        refusal(cupy, lambda gradient=gradient: opt.step([gradient, *grads[1:]]), params, match)
    refusal(cupy, lambda: opt.step(grads[:2]), params, "3 parameters and 2 gradients")
    refusal(cupy, lambda: fastopt.SGD([cupy.asarray(np.ones(3, np.int32))], lr=0.1), params, "dtype int32")
    refusal(cupy, lambda: fastopt.SGD([params[1][::2]], lr=0.1), params, "not dense")
    refusal(cupy, lambda: fastopt.SGD([params[0], params[0]], lr=0.1), params, "overlap")
    short = cupy.asarray(np.zeros(3, np.float32))
    refusal(cupy, lambda: fastopt.fused.adagrad(params[0], grads[0], short, lr=0.1), params, "accumulator must be")


def test_states_go_there_and_back(cupy):
    """Also by way of NumPy; what does not fit is refused."""
    opt, params, grads, _, _ = warm(cupy)
    saved = opt.state_dict()
    plain = {i: {n: v if n == "step" else host(cupy, v) for n, v in s.items()} for i, s in saved["state"].items()}
    for state in (saved["state"], plain):
        other = fastopt.SGD([cupy.asarray(host(cupy, p)) for p in params], lr=0.1, momentum=0.9)
        other.load_state_dict({**saved, "state": state})
        other.step(grads)
        assert other.state[0]["step"] == 3
        want = 0.9 * plain[1]["momentum_buffer"] + host(cupy, grads[1])
        check(cupy, [other.state[1]["momentum_buffer"]], [want])
    bad = {**saved, "state": {**plain, 0: {"step": 2, "momentum_buffer": np.ones((3, 5))}}}
    refusal(cupy, lambda: opt.load_state_dict(bad), params, "dtype float64")


CAPTURED = {
    "plain": {},
    "lr": {"lr": Cosine(0.1, 40)},
    "everything": {"lr": Cosine(0.1, 40), "momentum": 0.5 * Cosine(1.8, 90), "dampening": 0.2, "weight_decay": 0.01},
}


@pytest.mark.parametrize("options", CAPTURED.values(), ids=CAPTURED)
def test_replays(cupy, options):
    """Between steps of the host's own, with groups, states and counts as they should be."""
    opt, params, grads, stream, trainer = warm(cupy, **options)
    graph = captured(opt, stream)
    arrays = [host(cupy, g) for g in grads]
    for t in range(2, 20):
        if t % 7 == 0:
            with stream:
                opt.step()
        else:
            graph.launch(stream)
        trainer.step("momentum", arrays, numbers(options, t))
        if t % 5 == 0:
            assert opt.param_groups[0]["lr"] == numbers(options, t)["lr"]
            assert opt.param_groups[0]["step"] == opt.state[1]["step"] == t + 1
    check(cupy, params, trainer.params)
    buffers = [state["momentum_buffer"] for state in opt.state_dict()["state"].values()]
    check(cupy, buffers, [states[0] for states in trainer.states])


def test_two_graphs_have_gradients_of_their_own(cupy):
    """And steps beside them have others again."""
    opt, params, grads, stream, trainer = warm(cupy, lr=Cosine(0.1, 40))
    sets = [grads, model(cupy, seed=11)[1], model(cupy, seed=12)[1]]
    graphs = []
    for each in sets[:2]:
        opt.bind(each)
        graphs.append(captured(opt, stream))
    for t, which in enumerate([0, 1, 2, 1, 0, 2, 0], 2):
        if which == 2:
            with stream:
                opt.step(sets[2])
        else:
            graphs[which].launch(stream)
        trainer.step("momentum", [host(cupy, g) for g in sets[which]], numbers({"lr": Cosine(0.1, 40)}, t))
    check(cupy, params, trainer.params)


KINDS = {
    "momentum": (fastopt.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    "nesterov": (fastopt.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "adagrad": (fastopt.Adagrad, {"lr": 0.1, "lr_decay": 0.05, "eps": 1e-3}),
}
ACTIONS = st.lists(st.sampled_from(["replay", "step", "other gradients", "rate", "schedule", "read"]), max_size=14)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(list(KINDS)), before=ACTIONS, after=ACTIONS)
def test_anything_before_and_after_a_capture(cupy, kind, before, after):
    """Steps, replays, assignments and looks in any order. What is assigned counts from the next step of the host's."""
    make, options = KINDS[kind]
    params, grads = model(cupy)
    others = model(cupy, seed=4)[1]
    trainer = oracle.Trainer([host(cupy, p) for p in params])
    opt = make(params, **options)
    opt.bind(grads)
    stream, graph = cupy.cuda.Stream(non_blocking=True), None
    assigned = in_force = options["lr"]
    taken = 0

    def follow(gradients):
        nonlocal taken
        rate = in_force(taken) if callable(in_force) else in_force
        trainer.step(kind, [host(cupy, g) for g in gradients], {**options, "lr": rate})
        taken += 1

    for action in [*before, "step", "step", "capture", *after, "read"]:
        with stream:
            if action == "replay" and graph is not None:
                graph.launch(stream)
                follow(grads)
            elif action in ("step", "other gradients"):
                in_force = assigned
                opt.step(*([] if action == "step" else [others]))
                follow(grads if action == "step" else others)
            elif action in ("rate", "schedule"):
                assigned = opt.param_groups[0]["lr"] = 0.07 if action == "rate" else Cosine(0.2, 30)
            elif action == "read":
                assert [opt.state[i]["step"] if taken else 0 for i in range(3)] == [taken] * 3
                assert opt.param_groups[0]["step"] == taken
        if action == "capture":
            graph = captured(opt, stream)
    check(cupy, params, trainer.params)
    states = [next(state for name, state in opt.state[i].items() if name != "step") for i in range(3)]
    check(cupy, states, [kept[0] for kept in trainer.states])


@pytest.mark.gpu
def test_small_numbers_of_float32_are_zero():
    """CuPy compiles so; float16's own and float64's are not affected."""
    cupy = importlib.import_module("cupy")
    for dtype, tiny, kept in ((np.float32, 1e-40, 0.0), (np.float64, 1e-310, 1e-310), (np.float16, 6e-8, 6e-8)):
        p = cupy.asarray(np.full(9, tiny, dtype))
        fastopt.fused.sgd(p, cupy.asarray(np.zeros(9, dtype)), lr=1.0)
        np.testing.assert_array_equal(host(cupy, p), np.full(9, kept, dtype))
