"""Updates of arrays on a GPU against the oracle: on a stand-in for CuPy, and on a real GPU where there is one."""

import gc
import importlib
import json
from dataclasses import dataclass, field
from typing import Any

import cuda_stand_in
import cupy_stand_in
import numpy as np
import oracle
import pytest
from fastopt.kernels import tables
from halves import DIGITS, LEAST
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from rule_cases import OPTIMIZERS, numbers
from schedule_cases import CASES
from test_rules import VARIED
from tolerances import BFLOAT16, STATE_OF_HALF, TRAJECTORY, assert_close, assert_rounded

import fastopt
from fastopt import fused, rules
from fastopt.schedules import Constant, Cosine, Exponential, Linear, OneCycle, Piecewise, Plateau

WORLD = cuda_stand_in.WORLD
DTYPES = [np.float32, np.float64, np.float16]
SHAPES = [(3, 5), (700,), ()]
REAL = {"float32": np.float32, "float64": np.float64, "float16": np.float32}  # what is computed with


def normal(rng, shape, dtype=np.float32):
    """Random numbers of a dtype, also without axes."""
    return np.asarray(rng.standard_normal(shape)).astype(dtype)


def arrays(device, shapes=SHAPES, dtype=np.float32, seed=0):
    """Random arrays on the device."""
    rng = np.random.default_rng(seed)
    return [device.array(normal(rng, shape, dtype)) for shape in shapes]


def plain(device, given_):
    """Copies on the host of arrays on the device; None stays."""
    return [None if array is None else device.get(array) for array in given_]


def bits(device, given_):
    """All bits of arrays on either side."""
    return [(array if isinstance(array, np.ndarray) else device.get(array)).tobytes() for array in given_]


def state_arrays(opt):
    """All states, of parameters that have some."""
    return [value for entry in opt.state.values() for name, value in entry.items() if name != "step"]


def assert_trained(device, opt, params, trainer, of_half=STATE_OF_HALF):
    """Assert that parameters, states and counts are the oracle's."""
    kept = opt.state
    for i, (p, want) in enumerate(zip(params, trainer.params, strict=True)):
        got = device.get(p)
        half = got.dtype == np.float16
        assert_close(got, want, BFLOAT16 if half else TRAJECTORY)
        entry = dict(kept.get(i, {"step": 0}))
        assert entry.pop("step") == trainer.steps[i]
        for state, expected in zip(entry.values(), trainer.states[i] or [], strict=True):
            assert state.dtype == REAL[p.dtype.name]
            assert_close(device.get(state), expected, of_half if half else TRAJECTORY)


# Every rule


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "options"), VARIED)
def test_trajectories(device, name, options, dtype):
    """Sixty steps, with gradients that are missing now and then or come late; no elements, one, and several chunks."""
    rng = np.random.default_rng(2)
    optimizer, defaults = OPTIMIZERS[name]
    options = {**defaults, **options}
    shapes = [(3, 5), (), (0,), (1,), (513,), (4097,)]
    params = arrays(device, shapes, dtype)
    trainer = oracle.Trainer(plain(device, params))
    opt = optimizer(params, **options)
    for step in range(60):
        grads = [normal(rng, shape, dtype) if (step + i) % 5 or not i else None for i, shape in enumerate(shapes)]
        grads[4] = None if step < 20 else grads[4]
        there = [None if g is None else device.array(g) for g in grads]
        opt.step(there)
        trainer.step(name, grads, options)
        if dtype == np.float16:  # each step from what the last one left, so that rounding does not pile up
            for i, p in enumerate(plain(device, params)):
                got, want = p.astype(np.float64), trainer.params[i]
                if grads[i] is not None:
                    assert_rounded(got, want, DIGITS["float16"], LEAST["float16"], TRAJECTORY)
                trainer.params[i] = got
    assert_trained(device, opt, params, trainer, of_half=TRAJECTORY)
    assert [opt.param_groups[0]["step"], *trainer.steps] == [60, *(opt.state[i]["step"] for i in range(6))]


@pytest.mark.parametrize("name", rules.RULES)
def test_non_finite_gradients_propagate(device, name):
    """A NaN or an infinity reaches its own element and no other."""
    optimizer, options = OPTIMIZERS[name]
    p, g = device.array(np.ones(40, np.float32)), np.full(40, 0.5, np.float32)
    g[7], g[20] = np.nan, np.inf
    optimizer(p, **options).step(device.array(g))
    finite = np.isfinite(device.get(p))
    assert not finite[[7, 20]].any()
    assert np.delete(finite, [7, 20]).all()


# Layouts

PARAMS = {
    "C": lambda a: a,
    "Fortran": lambda a: np.asfortranarray(a),
    "backwards": lambda a: a[::-1],
    "both backwards": lambda a: a[::-1, ::-1],
    "Fortran, backwards": lambda a: np.asfortranarray(a)[:, ::-1],
}
GRADIENTS = {
    "C": lambda a: a,
    "Fortran": lambda a: np.asfortranarray(a),
    "every second": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "every second, transposed": lambda a: np.repeat(a.T, 2, axis=1)[:, ::2].T,
    "backwards": lambda a: a[::-1, ::-1],
    "every second, backwards": lambda a: np.repeat(a, 2, axis=1)[:, ::-2],
    "one row for all": lambda a: np.broadcast_to(a[:1], a.shape),
    "one number for all": lambda a: np.broadcast_to(a[:1, :1], a.shape),
}


@pytest.mark.parametrize("shape", [(5, 7), (300, 257)], ids=str)
@pytest.mark.parametrize("lay", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(device, dtype, lay, shape):
    """Parameters in any order, each with gradients in any, another at each step; which are only read."""
    rng = np.random.default_rng(1)
    here = [lay(normal(rng, shape, dtype)) for _ in GRADIENTS]
    params = [device.array(p) for p in here]
    trainer = oracle.Trainer(here)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    opt = fastopt.SGD(params, **options)
    views = list(GRADIENTS.values())
    for turn in range(3):
        grads = [view(normal(rng, shape, dtype)) for view in views[turn:] + views[:turn]]
        there = [device.array(g) for g in grads]
        opt.step(there)
        assert bits(device, there) == [g.tobytes() for g in grads]
        trainer.step("momentum", grads, options)
        if dtype == np.float16:
            trainer.params = [p.astype(np.float16).astype(np.float64) for p in trainer.params]
    assert_trained(device, opt, params, trainer)
    for p, state in zip(params, state_arrays(opt), strict=True):
        lie = [[s // array.dtype.itemsize for s in array.strides] for array in (p, state)]
        assert lie[0] == lie[1]


@pytest.mark.parametrize("turn", [(2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_three_axes_in_any_order(device, turn):
    """Of parameter and gradient, the one and the other way."""
    rng = np.random.default_rng(3)
    p, g = (normal(rng, (4, 3, 2)) for _ in range(2))
    for lay_p, lay_g in ((turn, (0, 1, 2)), ((0, 1, 2), turn), (turn, turn)):
        shape = (5, 6, 7)
        back = [np.argsort(axes) for axes in (lay_p, lay_g)]
        p, g = (normal(rng, [shape[i] for i in lay]).transpose(b) for lay, b in zip((lay_p, lay_g), back, strict=True))
        there, trainer = device.array(p), oracle.Trainer([p])
        opt = fastopt.Adagrad([there], lr=0.1)
        for _ in range(2):
            opt.step([device.array(g)])
            trainer.step("adagrad", [g], {"lr": 0.1})
        assert_trained(device, opt, [there], trainer)


def test_parameters_that_are_not_dense_are_refused(device):
    """Since they would be updated in place."""
    base = np.ones((6, 8), np.float32)
    for p in (base[::2], base[:, 1:5], base[:, ::-2], np.broadcast_to(base[:1], (6, 8)), base.T[::2]):
        with pytest.raises(ValueError, match="not dense"):
            fastopt.SGD([device.array(p)], lr=0.1)


@pytest.mark.parametrize("start", range(9))
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_alignment(device, dtype, start):
    """Views into larger arrays, of parameter, gradient and state; what stands before and behind stays."""
    size, real = 1030, REAL[np.dtype(dtype).name]
    rng = np.random.default_rng(2)
    for shift in range(3):
        wholes = normal(rng, size + 16, dtype), normal(rng, size + 16, dtype), normal(rng, size + 16, real)
        there = [device.array(whole) for whole in wholes]
        cuts = [slice(first, first + size) for first in (start, start + shift, start + 2 * shift)]
        p, g, v = (array[cut] for array, cut in zip(there, cuts, strict=True))
        fused.momentum(p, g, v, lr=0.5, momentum=0.5)
        before = [whole[cut].astype(np.float64) for whole, cut in zip(wholes, cuts, strict=True)]
        want_p, (want_v,) = oracle.momentum(before[0], before[1], (before[2],), 2, {"lr": 0.5, "momentum": 0.5})
        assert_close(device.get(v), want_v, TRAJECTORY)
        assert_close(device.get(p), want_p, BFLOAT16 if dtype == np.float16 else TRAJECTORY)
        for array, whole, cut in zip(there, wholes, cuts, strict=True):
            np.testing.assert_array_equal(np.delete(device.get(array), cut), np.delete(whole, cut))
        np.testing.assert_array_equal(device.get(there[1]), wholes[1])


@pytest.mark.parametrize("start", range(1, 9))
def test_optimizers_at_every_alignment(device, start):
    """The same of an optimizer, whose states are aligned as its parameters are not."""
    whole, g = normal(np.random.default_rng(4), 1000), normal(np.random.default_rng(5), 900)
    there = device.array(whole)
    p, trainer = there[start : start + 900], oracle.Trainer([whole[start : start + 900]])
    opt = fastopt.SGD([p], lr=0.1, momentum=0.9)
    for _ in range(3):
        opt.step([device.array(g)])
        trainer.step("momentum", [g], {"lr": 0.1, "momentum": 0.9})
    assert_trained(device, opt, [p], trainer)
    cut = slice(start, start + 900)
    np.testing.assert_array_equal(np.delete(device.get(there), cut), np.delete(whole, cut))


# Groups, devices, places


def test_more_tensors_than_a_message_holds(device):
    """Their gradients take several, at each step others."""
    shapes = [(3,)] * 1100
    assert len(shapes) > 2 * tables.WORDS
    params = arrays(device, shapes)
    trainer = oracle.Trainer(plain(device, params))
    opt = fastopt.Adagrad(params, lr=0.1)
    kept = [arrays(device, shapes, seed=seed) for seed in range(3)]
    for grads in kept:
        opt.step(grads)
        trainer.step("adagrad", plain(device, grads), {"lr": 0.1})
    assert_trained(device, opt, params, trainer)


def test_more_groups_than_a_message_holds(device):
    """Their hyper rows take several, and so do their descriptions in a captured step."""
    options = [{"lr": Cosine(0.01 * (i + 1), 20), "momentum": 0.5 + 0.001 * i} for i in range(140)]
    params = arrays(device, [(3,)] * len(options))
    grads = arrays(device, [(3,)] * len(options), seed=1)
    trainer = oracle.Trainer(plain(device, params))
    opt = fastopt.SGD([{"params": [p], **o} for p, o in zip(params, options, strict=True)])
    opt.bind([[g] for g in grads])
    graph = warmed_up(device, opt)
    for _ in range(3):
        graph.launch()
    for t in range(5):
        trainer.step("momentum", plain(device, grads), [numbers(o, t) for o in options])
    assert_trained(device, opt, params, trainer)


def test_groups_of_any_rules_and_dtypes(device):
    """Each with options of its own, in one optimizer."""
    options = [
        {"lr": 0.1},
        {"lr": Linear(0.1, 0.0, 9), "momentum": 0.9, "weight_decay": 0.1},
        {"lr": 0.2, "momentum": 0.8, "nesterov": True, "maximize": True},
    ]
    kinds = ["sgd", "momentum", "nesterov"]
    params = [arrays(device, dtype=dtype, seed=3) for _ in options for dtype in DTYPES]
    groups = [{"params": p, **options[i // 3]} for i, p in enumerate(params)]
    trainers = [oracle.Trainer(plain(device, p)) for p in params]
    opt = fastopt.SGD(groups)
    for t in range(6):
        grads = [arrays(device, dtype=p[0].dtype, seed=t) for p in params]
        opt.step(grads)
        for i, (trainer, g) in enumerate(zip(trainers, grads, strict=True)):
            trainer.step(kinds[i // 3], plain(device, g), numbers(options[i // 3], t))
            if g[0].dtype == np.float16:
                trainer.params = [p.astype(np.float16).astype(np.float64) for p in trainer.params]
    for p, trainer in zip(params, trainers, strict=True):
        for array, want in zip(p, trainer.params, strict=True):
            assert_close(device.get(array), want, BFLOAT16 if array.dtype == np.float16 else TRAJECTORY)


def test_parameters_on_both_sides(device):
    """One optimizer over the GPU's and the host's; also where one of both has no gradient."""
    params, here = arrays(device), [np.ones(1000, np.float32), np.ones(3)]
    trainer = oracle.Trainer([*plain(device, params), *here])
    opt = fastopt.Adagrad([*params, *here], lr=0.1)
    for step in range(4):
        grads = [*arrays(device, seed=step), np.full(1000, 0.5, np.float32), np.ones(3)]
        grads[step] = None
        opt.step(grads)
        trainer.step("adagrad", [*plain(device, grads[:3]), *grads[3:]], {"lr": 0.1})
    assert_trained(device, opt, params, oracle_part(trainer, 3))
    for p, want in zip(here, trainer.params[3:], strict=True):
        assert_close(p, want, TRAJECTORY)
    assert [opt.state[i]["step"] for i in range(5)] == [3, 3, 3, 3, 4]


def oracle_part(trainer, count):
    """The first parameters of a trainer, as one of their own."""
    part = oracle.Trainer([])
    part.params, part.states, part.steps = trainer.params[:count], trainer.states[:count], trainer.steps[:count]
    return part


@pytest.mark.parametrize("wrap", ["foreign", "only_dlpack"])
def test_arrays_of_other_libraries(device, wrap):
    """Parameters, gradients and states are used where they are, without a copy."""
    wrap = getattr(device, wrap)
    p, q, g, v = (device.array(np.full(50, value, np.float32)) for value in (1.0, 1.0, 0.5, 0.0))
    opt = fastopt.SGD([wrap(p)], lr=0.5)
    opt.bind([wrap(g)])
    opt.step()
    opt.step([wrap(g)])
    fused.momentum(wrap(q), wrap(g), wrap(v), lr=0.5, momentum=0.9)
    np.testing.assert_array_equal(device.get(p), np.full(50, 0.5))
    np.testing.assert_array_equal(device.get(q), np.full(50, 0.75))
    np.testing.assert_array_equal(device.get(v), np.full(50, 0.5))
    g[...] = device.array(np.full(50, 0.25, np.float32))
    opt.step()  # the bound one has been written meanwhile
    np.testing.assert_array_equal(device.get(p), np.full(50, 0.375))


@pytest.mark.gpu
def test_tensors_of_torch():
    """Detached ones, through their interface, in place."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    p, g = torch.ones(50, device="cuda"), torch.ones(50, device="cuda")
    torch.cuda.synchronize()
    fastopt.SGD([p.detach()], lr=0.5).step([g.detach()])
    importlib.import_module("cupy").cuda.Device(0).synchronize()
    assert (p == 0.5).all()


@pytest.mark.parametrize("place", ["parameter", "single parameter", "velocity"])
def test_what_is_read_only_is_refused(stand_in, place):
    """Since it would be updated in place."""
    memory = np.zeros(3, np.float32)
    locked = cupy_stand_in.Foreign(memory, readonly=True)
    p, g = (stand_in.array(np.ones(3, np.float32)) for _ in range(2))
    acts = {
        "parameter": lambda: fastopt.SGD([locked], lr=0.1),
        "single parameter": lambda: fused.sgd(locked, g, lr=0.1),
        "velocity": lambda: fused.momentum(p, g, locked, lr=0.1, momentum=0.9),
    }
    with pytest.raises(ValueError, match="read-only"):
        acts[place]()
    stand_in.synchronize()
    assert (memory == 0).all()


def test_devices_have_streams_of_their_own(stand_in):
    """A step puts each device's work on that one's current stream, and leaves devices and streams as they were."""
    cupy = stand_in.cupy
    p = [stand_in.array(np.ones(10, np.float32))]
    g = [stand_in.array(np.ones(10, np.float32))]
    with cupy.cuda.Device(1):
        p.append(stand_in.array(np.ones(600, np.float32)))
        g.append(stand_in.array(np.ones(600, np.float32)))
        second = cupy.cuda.Stream()
    opt = fastopt.SGD(p, lr=0.25, momentum=0.5)
    first = cupy.cuda.Stream()
    cuda_stand_in.synchronize_all()
    stand_in.log()
    with first, cupy.cuda.Device(1), second:
        opt.step(g)
        assert WORLD.devices == [0, 1]
    assert WORLD.launches
    assert {(device, stream) for _, _, device, stream in WORLD.launches} == {(0, first.ptr), (1, second.ptr)}
    assert {pointer for _, pointer in WORLD.log} == {first.ptr, second.ptr}
    assert (WORLD.devices, WORLD.streams) == ([0], [])
    for array in p:
        assert (stand_in.get(array) == 0.75).all()


# Launches, which the stand-in writes down


def test_a_schedule_and_fresh_gradients(stand_in):
    """A message with the rows, one with the column of gradients, and the update; the same again sends no column."""
    schedule = Cosine(0.1, 50)
    params = arrays(stand_in)
    opt = fastopt.SGD([{"params": params[:2]}, {"params": params[2:], "momentum": 0.5}], lr=schedule, momentum=0.9)
    kernel = "momentum_float32_float32_float32"
    kept = []
    for t in range(5):
        kept.append(arrays(stand_in, seed=t))
        if t < 2:
            opt.step([kept[t][:2], kept[t][2:]])
    for t in range(2, 5):
        stand_in.log()
        opt.step([kept[t][:2], kept[t][2:]])
        (_, rows, *_), (_, column, *_), (_, job, *_) = WORLD.launches
        assert stand_in.log() == ["send", "send", kernel]
        assert rows["to"] == job["hypers"]
        sent = rows["words"][0, : rows["count"][0]].view(np.float32).reshape(2, tables.HYPERS)
        assert sent[:, :4].tolist() == [[1.0, 0.0, np.float32(schedule(t)), np.float32(m)] for m in (0.9, 0.5)]
        assert column["to"] == job["tensors"] + tables.TENSOR.fields["grad"][1]
        assert (8 * column["apart"], column["count"]) == (tables.TENSOR.itemsize, 3)
        assert column["words"][0, :3].tolist() == [g.data.ptr for g in kept[t]]
    opt.step([kept[4][:2], kept[4][2:]])
    assert stand_in.log() == ["send", kernel]
    opt.param_groups[0]["lr"] = opt.param_groups[1]["lr"] = 0.1
    opt.step([kept[4][:2], kept[4][2:]])
    assert stand_in.log() == ["send", kernel]
    opt.step([kept[4][:2], kept[4][2:]])
    assert stand_in.log() == [kernel]


def test_a_replay_is_what_was_captured(stand_in):
    """The column, the count with its rows, and the update; what it is computed from is sent by the first graph."""
    opt, _, _, stream, _ = warm(stand_in)
    stand_in.log()
    with stand_in.capture(stream):
        opt.step()
    first = stand_in.log()
    with stand_in.capture(stream) as graph:
        opt.step()
    stand_in.log()
    graph.launch()
    update = ["advance", "send", "momentum_float32_float32_float32"]
    assert first[-3:] == update
    assert stand_in.log()[-3:] == update
    with stream:
        opt.step()
        stand_in.log()
        opt.step()
    assert stand_in.log() == ["advance", "momentum_float32_float32_float32"]
    stand_in.synchronize()  # before the arrays go, which are the default stream's


def test_memory_is_given_back(stand_in):
    """When an optimizer goes, without the garbage collector, and another asks for some; a graph's own stays."""

    def settle():
        """Let released memory be given back, and count what is left."""
        kept = fastopt.SGD([stand_in.array(np.ones(3, np.float32))], lr=0.1)
        count = WORLD.allocated
        del kept
        return count

    settle()
    before = settle()
    gc.disable()
    try:
        for capture in (False, True, True):
            opt, params, grads, stream, _ = warm(stand_in, lr=Cosine(0.1, 9))
            opt.step([grads[0], None, grads[2]])
            opt.step()
            opt.step()
            if capture:
                with stand_in.capture(stream) as graph:
                    opt.step()
                old = stand_in.get(params[0])
                assert settle() > before
                graph.launch()
                assert (stand_in.get(params[0]) != old).all()
                del graph
            assert settle() > before
            del opt, params, grads, stream, _
            settle()
            assert settle() == before
    finally:
        gc.enable()


# Single calls

CALLS = {
    "sgd": (fused.sgd, "sgd", {"lr": 0.1, "weight_decay": 0.01}),
    "momentum": (fused.momentum, "momentum", {"lr": 0.1, "momentum": 0.9, "dampening": 0.25, "maximize": True}),
    "nesterov": (fused.nesterov, "nesterov", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "adagrad": (fused.adagrad, "adagrad", {"lr": 0.1, "eps": 1e-4, "maximize": True}),
    "rmsprop": (fused.rmsprop, "rmsprop_momentum", {"lr": 0.1, "momentum": 0.9, "alpha": 0.9, "maximize": True}),
    "centered": (fused.rmsprop, "rmsprop_centered_momentum", {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.01}),
    "adam": (fused.adam, "adam", {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.01}),
    "adamw": (fused.adamw, "adamw_amsgrad", {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-4, "maximize": True}),
}


@pytest.mark.parametrize("shape", [(), (0,), (1,), (60,), (40, 70)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("call", "name", "options"), CALLS.values(), ids=CALLS)
def test_single_calls(device, call, name, options, dtype, shape):
    """As with NumPy; several times, of which each has another gradient, dense and not."""
    rng = np.random.default_rng(3)
    p, real = normal(rng, shape, dtype), REAL[np.dtype(dtype).name]
    here = [np.full(shape, 0.5, real) for _ in rules.RULES[name].states]
    counted = {"step": 2} if "adam" in name else {}
    there, states = device.array(p), [device.array(state) for state in here]
    want, want_states = p.astype(np.float64), tuple(state.astype(np.float64) for state in here)
    views = [lambda g: g, lambda g: np.repeat(g, 2, axis=-1)[..., ::2] if g.ndim else g, lambda g: g.T.copy().T]
    kept = []
    for view in [*views, views[0]]:
        g = view(normal(rng, shape, dtype))
        kept.append(device.array(g))
        assert call(there, kept[-1], *states, **counted, **options) is None
        want, want_states = oracle.RULES[name](want, g.astype(np.float64), want_states, 2, options)
        if dtype == np.float16:
            want = np.asarray(want).astype(np.float16).astype(np.float64)
    assert_close(device.get(there), want, BFLOAT16 if dtype == np.float16 else TRAJECTORY)
    for state, expected in zip(states, want_states, strict=True):
        assert_close(device.get(state), expected, TRAJECTORY)


def test_single_calls_on_several_streams(device):
    """Each stream has tables of its own: nothing is overwritten that another has still to read."""
    streams = [device.stream() for _ in range(3)]
    g = [device.array(np.full(60, value, np.float32)) for value in (1.0, 2.0, 4.0)]
    p = [[device.array(np.zeros(60, np.float32)) for _ in streams] for _ in range(3)]
    for turn in range(3):
        for i, stream in enumerate(streams):
            with stream:
                fused.sgd(p[turn][i], g[i], lr=2.0**-turn)
    device.take_turns()
    for turn in range(3):
        for i in range(3):
            assert (device.get(p[turn][i]) == -(2.0 ** (i - turn))).all()


def test_repeated_single_calls_need_no_new_memory(stand_in):
    """What the last call of a kind has left idle is used again."""
    p, g, v = (stand_in.array(np.ones(61, np.float32)) for _ in range(3))
    fused.momentum(p, g, v, lr=0.1, momentum=0.9)
    before = WORLD.allocated
    for i in range(5):
        stand_in.log()
        fused.momentum(p, g, v, lr=0.1 * i, momentum=0.9)
        assert WORLD.allocated == before
        assert [name for name in stand_in.log() if name != "send"] == ["momentum_float32_float32_float32"]


def test_single_calls_are_not_captured(device):
    """They would send their numbers once; nothing is recorded."""
    p, g = device.array(np.ones(5, np.float32)), device.array(np.ones(5, np.float32))
    stream = device.stream()
    with stream:
        fused.sgd(p, g, lr=0.5)
    device.log()
    with device.capture(stream) as graph, pytest.raises(RuntimeError, match="captured"):
        fused.sgd(p, g, lr=0.5)
    assert device.log() == []
    graph.launch()
    assert (device.get(p) == 0.5).all()


def test_errors_of_single_calls(device):
    """Each names what is wrong, and nothing has changed."""
    p, g, v = (device.array(np.full((4, 6), value, np.float32)) for value in (1.0, 2.0, 3.0))
    half, half2 = (device.array(np.ones((4, 6), np.float16)) for _ in range(2))
    other = device.array(np.ones((4, 6), np.float64))
    long = device.array(np.arange(30, dtype=np.float32))
    host = np.ones((4, 6), np.float32)
    wrong = [
        ((p, other, v), "dtype float64"),
        ((p, half, v), "dtype float16"),
        ((p, g.transpose((1, 0)), v), r"shape \(6, 4\)"),
        ((p, host, v), "not an array on a GPU"),
        ((p, p, v), "overlap"),
        ((p, g, p), "overlap"),
        ((p, g, g), "overlap"),
        ((long[:24], long[6:], device.array(np.zeros(24, np.float32))), "overlap"),
        ((p, g, other), "velocity"),
        ((half, half2, device.array(np.ones((4, 6), np.float16))), "velocity"),
        ((p, g, long[:24]), "velocity"),
        ((p, g, host), "velocity"),
        ((p, g, device.array(np.ones((6, 4), np.float32).T)), "velocity"),
        ((p[:, ::2], g[:, ::2], v[:, ::2]), "not dense"),
        ((device.array(np.ones(3, np.int32)), g, v), "dtype int32"),
        ((host, g, host.copy()), "not a NumPy array"),
        ((host, host.copy(), v), "not a NumPy array"),
    ]
    watched = [p, g, v, half, other, long, host]
    before = bits(device, watched)
    for given_, match in wrong:
        with pytest.raises((TypeError, ValueError), match=match):
            fused.momentum(*given_, lr=0.1, momentum=0.9)
    for options in ({"lr": -1.0}, {"lr": 0.1, "weight_decay": float("nan")}):
        with pytest.raises((TypeError, ValueError)):
            fused.momentum(p, g, v, **{"momentum": 0.9, **options})
    assert bits(device, watched) == before


# Errors, and what is saved


def test_errors(device):
    """Each names what is wrong, before anything has changed: no parameter, no state, no count."""
    params, grads = arrays(device), arrays(device, seed=1)
    opt = fastopt.SGD(params, lr=0.1, momentum=0.9)
    opt.bind(grads)
    opt.step()
    whole = device.array(np.arange(800, dtype=np.float32))
    wrong = [
        ([device.array(np.ones((3, 5)))], "dtype float64"),
        ([device.array(np.ones((3, 5), np.float16))], "dtype float16"),
        ([device.array(np.ones((3, 5), np.int32))], "dtype int32"),
        ([device.array(np.ones((5, 3), np.float32))], r"shape \(5, 3\)"),
        ([device.array(np.ones(15, np.float32))], r"shape \(15,\)"),
        ([np.ones((3, 5), np.float32)], "not an array on a GPU"),
        ([[[1.0] * 5] * 3], "list"),
        ([params[0]], "overlaps parameter 0"),
        ([grads[0], params[1]], "overlaps parameter 1"),
        ([params[0][::-1]], "overlaps parameter 0"),
        ([opt.state[0]["momentum_buffer"]], "overlaps the momentum_buffer"),
    ]
    watched = [*params, *grads, *state_arrays(opt)]
    before, saved = bits(device, watched), repr(opt.param_groups[0])
    for changed, match in wrong:
        given_ = [*changed, *grads[len(changed) :]]
        for act in (opt.step, opt.bind):
            with pytest.raises((TypeError, ValueError), match=match):
                act(given_)
    for given_ in (grads[:2], [*grads, grads[0]], grads[0], {"w": grads[0]}, None):
        with pytest.raises((TypeError, ValueError)):
            opt.step(given_)
    made = [
        ([device.array(np.ones(3, np.int32))], "dtype int32"),
        ([device.array(np.ones(3, np.complex64))], "dtype complex64"),
        ([device.array(np.ones(3, bool))], "dtype bool"),
        ([params[0], params[0]], "overlap"),
        ([whole[:500], whole[499:]], "overlap"),
    ]
    for given_, match in made:
        with pytest.raises((TypeError, ValueError), match=match):
            fastopt.SGD(given_, lr=0.1)
    fastopt.SGD([whole[:500], whole[500:]], lr=0.1)  # neighbours do not
    with pytest.raises(TypeError, match="not a NumPy array"):
        fastopt.SGD([np.ones((3, 5), np.float32)], lr=0.1).step([grads[0]])
    assert bits(device, watched) == before
    assert repr(opt.param_groups[0]) == saved
    assert [opt.state[i]["step"] for i in range(3)] == [1, 1, 1]
    opt.step()
    assert [opt.state[i]["step"] for i in range(3)] == [2, 2, 2]


def test_gradients_on_another_device(stand_in):
    """They are not copied behind one's back."""
    params, grads = arrays(stand_in), arrays(stand_in, seed=1)
    with stand_in.cupy.cuda.Device(1):
        elsewhere = stand_in.array(np.ones((3, 5), np.float32))
    opt = fastopt.SGD(params, lr=0.1)
    before = bits(stand_in, params)
    with pytest.raises(ValueError, match="is on GPU 1, its parameter on GPU 0"):
        opt.step([elsewhere, *grads[1:]])
    with pytest.raises(ValueError, match="on GPU 0"):
        fused.momentum(params[0], grads[0], elsewhere, lr=0.1, momentum=0.9)
    assert bits(stand_in, params) == before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["momentum", "adagrad", "rmsprop_momentum", "adamw_amsgrad"])
def test_states_go_there_and_back(device, name, dtype):
    """Into a new optimizer, also by way of NumPy; both go on alike, bit for bit."""
    optimizer, options = OPTIMIZERS[name]
    options = {**options, "lr": Cosine(0.1, 20)}
    shapes = [(3, 5), (700,), (), (0,)]
    params = arrays(device, shapes, dtype)
    opt = optimizer(params, **options)
    for step in range(3):
        opt.step([*arrays(device, shapes[:3], dtype, seed=step), None])
    saved = opt.state_dict()
    device.synchronize()
    json.dumps(saved["param_groups"])
    assert list(saved["state"]) == [0, 1, 2]
    by_numpy = {
        i: {n: v if n == "step" else device.get(v) for n, v in entry.items()} for i, entry in saved["state"].items()
    }
    others = [[device.array(p) for p in plain(device, params)] for _ in range(2)]
    resumed = [optimizer(other) for other in others]
    for one, state in zip(resumed, (saved["state"], by_numpy), strict=True):
        one.load_state_dict({**saved, "state": state})
        assert one.param_groups[0]["step"] == 3
        for entry, kept in zip(state_arrays(one), state_arrays(opt), strict=True):
            assert type(entry) is type(kept)
    for step in range(3, 6):
        grads = arrays(device, shapes, dtype, seed=step)
        for one in (opt, *resumed):
            one.step(grads)
    for other, one in zip(others, resumed, strict=True):
        assert bits(device, other) == bits(device, params)
        assert bits(device, state_arrays(one)) == bits(device, state_arrays(opt))
        assert [one.state[i]["step"] for i in range(4)] == [6, 6, 6, 3]
    assert [device.get(v).tobytes() for v in state_arrays_of(saved)] == [v.tobytes() for v in state_arrays_of(by_numpy)]


def state_arrays_of(saved):
    """All states in a state dict, or in its entry of states."""
    entries = saved.get("state", saved).values()
    return [value for entry in entries for name, value in entry.items() if name != "step"]


def test_states_that_do_not_fit(device):
    """Are refused, and nothing has changed."""
    opt, params, *_ = warm(device)
    saved = opt.state_dict()
    device.synchronize()
    watched = [*params, *state_arrays(opt)]
    before = bits(device, watched)
    good = saved["state"][0]
    wrong = [
        {"momentum_buffer": np.ones((3, 5))},
        {"momentum_buffer": device.array(np.ones((3, 5), np.float16))},
        {"momentum_buffer": device.array(np.ones((5, 3), np.float32))},
        {"momentum_buffer": [1.0]},
        {"momentum_buffer": None},
        {"step": -1},
        {"step": 1.5},
        {"sum": good["momentum_buffer"]},
    ]
    for change in wrong:
        state = {**saved["state"], 1: {**saved["state"][1], "step": 9}, 2: {**saved["state"][2]}}
        state[0] = {**good, **change}
        with pytest.raises((TypeError, ValueError)):
            opt.load_state_dict({**saved, "state": {1: state[1], 0: state[0], 2: state[2]}})
    assert bits(device, watched) == before
    assert [opt.state[i]["step"] for i in range(3)] == [2, 2, 2]


def test_groups_can_be_added(device):
    """Later, with options of their own; what overlaps is refused."""
    p, q = arrays(device)[:2]
    g, h = arrays(device, seed=1)[:2]
    trainer = oracle.Trainer(plain(device, [p, q]))
    opt = fastopt.SGD([{"params": [p]}], lr=0.1, momentum=0.9)
    opt.step([[g]])
    trainer.step("momentum", [device.get(g), None], {"lr": 0.1, "momentum": 0.9})
    with pytest.raises(ValueError, match="overlap"):
        opt.add_param_group({"params": [p]})
    opt.add_param_group({"params": [q], "lr": 0.3})
    for _ in range(2):
        opt.step([[g], [h]])
        options = [{"lr": lr, "momentum": 0.9} for lr in (0.1, 0.3)]
        trainer.step("momentum", plain(device, [g, h]), options)
    assert_trained(device, opt, [p, q], trainer)


# Captured steps


def warm(device, optimizer=fastopt.SGD, name="momentum", shapes=SHAPES, dtype=np.float32, **options):
    """An optimizer that can be captured, its stream, and the oracle's trainer at the same point."""
    if optimizer is fastopt.SGD:
        options = {"lr": 0.1, "momentum": 0.9, **options}
    params, grads = arrays(device, shapes, dtype), arrays(device, shapes, dtype, seed=1)
    trainer = oracle.Trainer(plain(device, params))
    opt = optimizer(params, **options)
    opt.bind(grads)
    stream = device.stream()
    for t in range(2):
        with stream:
            opt.step()
        follow(device, trainer, name, grads, numbers(options, t))
    return opt, params, grads, stream, trainer


def warmed_up(device, opt):
    """A graph of an optimizer's third step, after two on the same stream."""
    stream = device.stream()
    with stream:
        opt.step()
        opt.step()
    with device.capture(stream) as graph:
        opt.step()
    return graph


def follow(device, trainer, name, grads, options):
    """Let the oracle take a step; halves are rounded as the device's are."""
    trainer.step(name, plain(device, grads), options)
    for i, g in enumerate(grads):
        if g is not None and g.dtype == np.float16:
            trainer.params[i] = np.asarray(trainer.params[i]).astype(np.float16).astype(np.float64)


CAPTURED = {
    "plain": ("momentum", {}),
    "lr": ("momentum", {"lr": Cosine(0.1, 40)}),
    "everything": (
        "momentum",
        {
            "lr": Cosine(0.1, 40),
            "momentum": OneCycle(0.1, 30).momentum(0.5, 0.9),
            "dampening": 0.2,
            "weight_decay": Linear(0.1, 0.0, 20),
        },
    ),
    "nesterov": ("nesterov", {"lr": Linear(0.1, 0.0, 15), "nesterov": True, "maximize": True, "weight_decay": 0.01}),
    "sgd": ("sgd", {"lr": Exponential(0.1, 0.9), "momentum": 0.0}),
    "adagrad": ("adagrad", {"lr": Cosine(0.1, 40), "lr_decay": 0.1, "eps": 1e-3, "initial_accumulator_value": 0.1}),
    "rmsprop": (
        "rmsprop_centered_momentum",
        {"lr": Cosine(0.01, 40), "momentum": OneCycle(0.1, 30).momentum(0.5, 0.9), "centered": True, "alpha": 0.9},
    ),
    "adam": ("adam", {"lr": 0.01}),
    "adam, everything": (
        "adam_amsgrad",
        {
            "lr": Cosine(0.01, 40),
            "weight_decay": Linear(0.1, 0.0, 20),
            "betas": (OneCycle(0.1, 30).momentum(0.5, 0.9), Linear(0.9, 0.99, 25)),
            "amsgrad": True,
        },
    ),
    "adamw": ("adamw", {"lr": Linear(0.01, 0.0, 30), "weight_decay": Linear(0.1, 0.0, 20), "maximize": True}),
    "adamw, beta2 alone": ("adamw", {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, Piecewise([0.99, 0.9], [12]))}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "options"), CAPTURED.values(), ids=CAPTURED)
def test_replays(device, name, options, dtype):
    """With steps of the host's own between them; groups, states and counts are right whenever they are asked for."""
    optimizer = OPTIMIZERS[name][0]
    opt, params, grads, stream, trainer = warm(device, optimizer, name, dtype=dtype, **options)
    with device.capture(stream) as graph:
        opt.step()
    assert [opt.param_groups[0]["step"], opt.state[0]["step"]] == [2, 2]  # it has only been recorded
    assert_trained(device, opt, params, trainer)
    others = arrays(device, dtype=dtype, seed=7)
    for t in range(2, 24):
        if t in (7, 8, 15):
            with stream:
                opt.step() if t % 2 else opt.step(others)
            follow(device, trainer, name, grads if t % 2 else others, numbers({**opt_defaults(opt), **options}, t))
        else:
            graph.launch()
            follow(device, trainer, name, grads, numbers({**opt_defaults(opt), **options}, t))
        if t % 5 == 0:
            group = opt.param_groups[0]
            assert {k: group[k] for k in options} == numbers(options, t)
            assert group["step"] == opt.state[1]["step"] == t + 1
    assert_trained(device, opt, params, trainer)
    saved = opt.state_dict()
    group = saved["param_groups"][0]
    assert group["step"] == 24
    assert {k: group[k] for k in options} == numbers(options, 23)
    assert [entry["step"] for entry in saved["state"].values()] == [24] * len(saved["state"])
    assert [device.get(v).tobytes() for v in state_arrays_of(saved)] == bits(device, state_arrays(opt))


def opt_defaults(opt):
    """The momentum that `warm` gives an SGD."""
    return {"lr": 0.1, "momentum": 0.9} if isinstance(opt, fastopt.SGD) else {}


def test_every_schedule_in_replays(device):
    """As the host would have called it, in one graph, a group for each; the groups say its numbers."""
    chosen = [schedule for schedule in CASES if min(schedule(t) for t in range(14)) >= 0]
    assert len(chosen) > 0.9 * len(CASES)
    params = [device.array(np.zeros(3, np.float32)) for _ in chosen]
    grads = [device.array(np.full(3, -0.5, np.float32)) for _ in chosen]
    opt = fastopt.SGD([{"params": [p], "lr": schedule} for p, schedule in zip(params, chosen, strict=True)])
    opt.bind([[g] for g in grads])
    graph = warmed_up(device, opt)
    for t in range(2, 12):
        graph.launch()
        if t in (2, 5, 11):
            wrong = [s for s, group in zip(chosen, opt.param_groups, strict=True) if group["lr"] != s(t)]
            assert wrong == []
    for p, schedule in zip(params, chosen, strict=True):
        want = np.full(3, 0.5 * sum(schedule(t) for t in range(12)))
        assert_close(device.get(p), want, TRAJECTORY, scale=max(want[0], 1e-30))


LATE = {
    "adagrad": (fastopt.Adagrad, {"lr": 0.1, "lr_decay": 0.5, "weight_decay": 0.01}),
    "adam": (fastopt.Adam, {"lr": 0.1, "weight_decay": 0.01}),
}


@pytest.mark.parametrize("name", LATE)
def test_replays_with_late_parameters_and_missing_gradients(device, name):
    """Parameters of one group that have taken different numbers of steps, and one that takes part in none."""
    shapes = [(3,), (5,), (600,), (7,)]
    optimizer, options = LATE[name]
    params, grads = arrays(device, shapes), arrays(device, shapes, seed=1)
    trainer = oracle.Trainer(plain(device, params))
    opt = optimizer(params, **options)
    stream = device.stream()
    masks = [[0, 3], [0], [0, 1, 2], [0, 1, 2]]
    for mask in masks:
        some = [g if i in mask else None for i, g in enumerate(grads)]
        with stream:
            opt.step(some)
        follow(device, trainer, name, some, options)
    with device.capture(stream) as graph:
        opt.step(some)
    for _ in range(4):
        graph.launch()
        follow(device, trainer, name, some, options)
    assert trainer.steps == [8, 6, 6, 1]
    assert_trained(device, opt, params, trainer)


def test_groups_with_schedules_of_their_own_in_replays(device):
    """And of several rules and dtypes: several launches in one graph."""
    options = [
        {"lr": Cosine(0.1, 30), "momentum": 0.9, "dampening": 0.1},
        {"lr": Linear(0.0, 0.1, 8), "momentum": OneCycle(0.1, 20).momentum(0.5, 0.9), "nesterov": True},
        {"lr": 0.05, "weight_decay": Exponential(0.1, 0.5)},
        {"lr": Cosine(0.1, 30), "momentum": 0.5},
    ]
    kinds = ["momentum", "nesterov", "sgd", "momentum"]
    dtypes = [np.float32, np.float64, np.float16, np.float64]
    params = [arrays(device, dtype=dtype, seed=i) for i, dtype in enumerate(dtypes)]
    grads = [arrays(device, dtype=dtype, seed=9 + i) for i, dtype in enumerate(dtypes)]
    trainers = [oracle.Trainer(plain(device, p)) for p in params]
    opt = fastopt.SGD([{"params": p, **o} for p, o in zip(params, options, strict=True)])
    opt.bind(grads)
    graph = warmed_up(device, opt)
    for _ in range(10):
        graph.launch()
    for t in range(12):
        for trainer, kind, g, o in zip(trainers, kinds, grads, options, strict=True):
            follow(device, trainer, kind, g, numbers(o, t))
    for group, o in zip(opt.param_groups, options, strict=True):
        assert group["step"] == 12
        assert {k: group[k] for k in o} == numbers(o, 11)
    for p, trainer in zip(params, trainers, strict=True):
        for array, want in zip(p, trainer.params, strict=True):
            assert_close(device.get(array), want, BFLOAT16 if array.dtype == np.float16 else TRAJECTORY)


def test_two_graphs_have_gradients_of_their_own(device):
    """And steps beside them have others again; on another stream, too."""
    schedule = Cosine(0.1, 40)
    opt, params, grads, stream, trainer = warm(device, lr=schedule)
    sets = [grads, arrays(device, seed=11), arrays(device, seed=12)]
    graphs = []
    for each in sets[:2]:
        opt.bind(each)
        with device.capture(stream) as graph:
            opt.step()
        graphs.append(graph)
    other = device.stream()
    for t, which in enumerate([0, 1, 2, 1, 0, 2, 0, 0, 1], 2):
        if which == 2:
            with stream:
                opt.step(sets[2])
        elif t % 3:
            graphs[which].launch()
        else:
            stream.synchronize()
            graphs[which].launch(other)
            other.synchronize()
        follow(device, trainer, "momentum", sets[which], {"lr": schedule(t), "momentum": 0.9})
    assert_trained(device, opt, params, trainer)


def test_a_graph_captured_between_replays_of_another(device):
    """The first one has not been replayed at all, or has; both count on."""
    for early in (0, 2):
        schedule = Cosine(0.1, 30)
        opt, params, grads, stream, trainer = warm(device, lr=schedule, momentum=0.8)
        graphs, t = [], 2
        for launches in (early, 1, 2):
            with device.capture(stream) as graph:
                opt.step()
            graphs.append(graph)
            for one in graphs:
                for _ in range(launches):
                    one.launch()
                    follow(device, trainer, "momentum", grads, {"lr": schedule(t), "momentum": 0.8})
                    t += 1
        assert_trained(device, opt, params, trainer)
        assert opt.param_groups[0]["lr"] == schedule(t - 1)


def test_gradients_written_between_replays(device):
    """Are what the next one reads."""
    opt, params, grads, stream, trainer = warm(device)
    with device.capture(stream) as graph:
        opt.step()
    for t in range(4):
        new = arrays(device, seed=20 + t)
        with stream:
            for g, values in zip(grads, new, strict=True):
                g[...] = values
            graph.launch()
        follow(device, trainer, "momentum", new, {"lr": 0.1, "momentum": 0.9})
    assert_trained(device, opt, params, trainer)


def test_two_optimizers_in_one_graph(device):
    """Each counts its own steps."""
    first, params, grads, stream, trainer = warm(device, lr=Cosine(0.1, 9))
    other = device.array(np.ones(50, np.float32))
    second = fastopt.Adam([other], lr=0.1)
    g = device.array(np.full(50, 0.5, np.float32))
    second.bind([g])
    beside = oracle.Trainer([device.get(other)])
    with stream:
        for _ in range(3):
            second.step()
    with device.capture(stream) as graph:
        first.step()
        second.step()
        first.step()
    for _ in range(2):
        graph.launch()
    for t in range(2, 6):
        follow(device, trainer, "momentum", grads, {"lr": Cosine(0.1, 9)(t), "momentum": 0.9})
    for _ in range(5):
        beside.step("adam", [device.get(g)], {"lr": 0.1})
    assert_trained(device, first, params, trainer)
    assert_trained(device, second, [other], beside)


CHANGES = {
    "rate": {"lr": 0.03},
    "schedule": {"lr": Linear(0.2, 0.0, 30)},
    "end of a schedule": {"momentum": 0.7},
    "weight decay and direction": {"weight_decay": 0.1, "maximize": True},
    "function": {"lr": lambda step: 0.01 * step},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("replayed", [0, 3])
def test_options_assigned_after_a_capture(device, change, replayed):
    """Count from the next step of the host's on, also in all replays after it; until then the old ones do."""
    options = {"lr": Cosine(0.1, 40), "momentum": Linear(0.9, 0.5, 30)}
    opt, params, grads, stream, trainer = warm(device, **options)
    with device.capture(stream) as graph:
        opt.step()
    t = 2

    def replay(times, options):
        nonlocal t
        for _ in range(times):
            graph.launch()
            follow(device, trainer, "momentum", grads, numbers(options, t))
            t += 1

    replay(replayed, options)
    opt.param_groups[0].update(change)
    now = {**options, **change}
    replay(2, options)
    with stream:
        opt.step()
    follow(device, trainer, "momentum", grads, numbers(now, t))
    assert {k: opt.param_groups[0][k] for k in now} == numbers(now, t)
    at, t = t, t + 1
    # A function is asked by the host alone, so that its number of then stays.
    replay(3, {k: v if hasattr(v, "record") or not callable(v) else v(at) for k, v in now.items()})
    assert_trained(device, opt, params, trainer)
    assert opt.param_groups[0]["step"] == t


def test_a_count_assigned_after_a_capture(device):
    """Schedules go by it from the next step of the host's on."""
    schedule = Linear(0.1, 0.0, 100)
    opt, params, grads, stream, trainer = warm(device, lr=schedule)
    with device.capture(stream) as graph:
        opt.step()
    graph.launch()
    opt.param_groups[0]["step"] = 50
    with stream:
        opt.step()
    graph.launch()
    for t in (2, 50, 51):
        follow(device, trainer, "momentum", grads, {"lr": schedule(t), "momentum": 0.9})
    assert opt.param_groups[0]["step"] == 52
    assert opt.param_groups[0]["lr"] == schedule(51)
    assert_trained(device, opt, params, trainer)


def refused_capture(device, opt, stream, grads, watched, match):
    """Assert that a capture is refused, with nothing recorded, written or counted."""
    before, steps = bits(device, watched), [group["step"] for group in opt.param_groups]
    states = {key: entry["step"] for key, entry in opt.state.items()}
    device.log()
    with device.capture(stream) as graph, pytest.raises(RuntimeError, match=match):
        opt.step(grads)
    assert device.log() == []
    graph.launch()
    assert bits(device, watched) == before
    assert [group["step"] for group in opt.param_groups] == steps
    assert {key: entry["step"] for key, entry in opt.state.items()} == states


def test_cold_captures(device):
    """Of a first step, of one after an assignment, and of one with gradients for other parameters."""
    params, grads = arrays(device), arrays(device, seed=1)
    stream = device.stream()
    cold = fastopt.SGD(params, lr=0.1, momentum=0.9)
    refused_capture(device, cold, stream, grads, params, "warm up")
    with stream:
        cold.step(grads)
        cold.step(grads)
    with device.capture(stream) as graph:  # nothing stands in its way now
        cold.step(grads)
    graph.launch()
    assert cold.state[0]["step"] == 3
    opt, params, grads, stream, trainer = warm(device)
    watched = [*params, *state_arrays(opt)]
    refused_capture(device, opt, stream, [grads[0], None, grads[2]], watched, "warm up")
    refused_capture(device, opt, stream, [None] * 3, watched, "warm up")
    opt.param_groups[0]["lr"] = 0.2
    refused_capture(device, opt, stream, grads, watched, "warm up")
    with stream:
        opt.step()
    with device.capture(stream) as graph:
        opt.step()
    graph.launch()
    for _ in range(2):
        follow(device, trainer, "momentum", grads, {"lr": 0.2, "momentum": 0.9})
    assert_trained(device, opt, params, trainer)


def test_empty_parameters_are_captured_with_others(device):
    """Also where they are the only ones of their dtype, so that their kernel is never launched."""
    params = [device.array(np.ones(3, np.float32)), device.array(np.ones((0, 3)))]
    grads = [device.array(np.ones(3, np.float32)), device.array(np.ones((0, 3)))]
    opt = fastopt.SGD(params, lr=0.25)
    opt.bind(grads)
    graph = warmed_up(device, opt)
    graph.launch()
    assert (device.get(params[0]) == 0.25).all()
    assert [opt.state[i]["step"] for i in range(2)] == [3, 3]


@pytest.mark.parametrize("schedule", [lambda step: 0.1, Plateau(0.1)], ids=["function", "plateau"])
def test_what_only_python_can_call_is_not_captured(device, schedule):
    """It would never be asked again."""
    opt, params, grads, stream, _ = warm(device, lr=schedule)
    refused_capture(device, opt, stream, grads, [*params, *state_arrays(opt)], "only Python can call")


def test_strided_gradients_are_not_captured(device):
    """The first time, and after steps with such."""
    opt, params, grads, stream, trainer = warm(device)
    turned = [device.array(np.asfortranarray(device.get(grads[0]))), *grads[1:]]
    watched = [*params, *state_arrays(opt)]
    refused_capture(device, opt, stream, turned, watched, "strides")
    with stream:
        opt.step(turned)
        opt.step(turned)
    refused_capture(device, opt, stream, turned, watched, "strides")
    for _ in range(2):
        follow(device, trainer, "momentum", grads, {"lr": 0.1, "momentum": 0.9})
    assert_trained(device, opt, params, trainer)


def test_parameters_on_the_host_are_not_captured(device):
    """A graph would not update them."""
    params, grads = arrays(device), arrays(device, seed=1)
    here, there = np.ones(3, np.float32), np.ones(3, np.float32)
    opt = fastopt.SGD([*params, here], lr=0.1, momentum=0.9)
    stream = device.stream()
    with stream:
        opt.step([*grads, there])
        opt.step([*grads, there])
    refused_capture(device, opt, stream, [*grads, there], [*params, here], "on the CPU")


def test_a_capture_of_one_device_of_two_is_refused(stand_in):
    """The other one's stream is not recorded: its work would be done at once, and never again."""
    cupy = stand_in.cupy
    p, g = [stand_in.array(np.ones(10, np.float32))], [stand_in.array(np.ones(10, np.float32))]
    with cupy.cuda.Device(1):
        p.append(stand_in.array(np.ones(10, np.float32)))
        g.append(stand_in.array(np.ones(10, np.float32)))
    opt = fastopt.SGD(p, lr=0.25)
    stream = stand_in.stream()
    with stream:
        opt.step(g)
        opt.step(g)
    refused_capture(stand_in, opt, stream, g, p, "device|GPU")


def test_counts_are_not_asked_for_inside_a_capture(device):
    """That would have to wait for work which is only recorded."""
    opt, _, _, stream, _ = warm(device, lr=Cosine(0.1, 9))
    with device.capture(stream) as graph:
        opt.step()
        for ask in (lambda: opt.param_groups[0]["lr"], lambda: opt.state, opt.state_dict):
            with pytest.raises(RuntimeError, match="captured"):
                ask()
    graph.launch()
    assert opt.state[0]["step"] == 3


@pytest.mark.parametrize("active", [False, True])
def test_what_a_graph_uses_stays(device, active):
    """After a capture nothing is loaded or added, and gradients are for the same parameters: replays stay right."""
    schedule = Cosine(0.1, 30)
    params, grads = arrays(device), arrays(device, seed=1)
    trainer = oracle.Trainer(plain(device, params))
    opt = fastopt.SGD([{"params": params}], lr=schedule, momentum=0.9)
    opt.bind([grads])
    stream = device.stream()
    with stream:
        opt.step()
        opt.step()
    device.synchronize()
    saved = opt.state_dict()
    device.synchronize()
    saved["param_groups"][0].update(lr=0.7, step=40, schedules={})
    with device.capture(stream) as graph:
        opt.step()
    if active:
        graph.launch()
        with stream:
            opt.step()
    before, buffers = bits(device, [*params, *state_arrays(opt)]), state_arrays(opt)
    turned = device.array(np.asfortranarray(device.get(grads[0])))
    acts = [
        lambda: opt.load_state_dict(saved),
        lambda: opt.add_param_group({"params": [device.array(np.ones(3, np.float32))]}),
        lambda: opt.step([[grads[0], None, grads[2]]]),
        lambda: opt.step([[turned, *grads[1:]]]),
    ]
    for act in acts:
        with pytest.raises(RuntimeError, match="captured"), stream:
            act()
    opt.param_groups[0]["momentum"] = 0.0
    with pytest.raises(RuntimeError, match="another rule"), stream:
        opt.step()
    opt.param_groups[0]["momentum"] = 0.9
    assert len(opt.param_groups) == 1
    assert opt.param_groups[0]["step"] == 2 + 2 * active
    assert opt.param_groups[0]["lr"] == schedule(1 + 2 * active)
    assert [a is b for a, b in zip(buffers, state_arrays(opt), strict=True)] == [True] * 3
    assert bits(device, [*params, *state_arrays(opt)]) == before
    for _ in range(3):
        graph.launch()
    with stream:
        opt.step()
    for t in range(6 + 2 * active):
        follow(device, trainer, "momentum", grads, {"lr": schedule(t), "momentum": 0.9})
    assert_trained(device, opt, params, trainer)


# Anything in any order

KIND_OPTIONS = {
    "sgd": {"weight_decay": 0.01},
    "momentum": {"dampening": 0.3},
    "nesterov": {"maximize": True},
    "adagrad": {"lr_decay": 0.1},
    "adam_amsgrad": {"betas": (0.8, 0.99), "maximize": True},
}
KINDS = st.one_of(
    st.tuples(st.just(fastopt.SGD), st.lists(st.sampled_from(["sgd", "momentum", "nesterov"]), min_size=1, max_size=3)),
    st.tuples(st.just(fastopt.Adagrad), st.lists(st.just("adagrad"), min_size=1, max_size=3)),
    st.tuples(st.just(fastopt.Adam), st.lists(st.sampled_from(["adam", "adam_amsgrad"]), min_size=1, max_size=3)),
    st.tuples(st.just(fastopt.AdamW), st.lists(st.sampled_from(["adamw", "adamw_amsgrad"]), min_size=1, max_size=3)),
)
VALUES = st.sampled_from(
    [("lr", 0.05), ("lr", Cosine(0.1, 12)), ("lr", Linear(0.0, 0.1, 9)), ("lr", Constant(0.02)), ("weight_decay", 0.1),
     ("weight_decay", Linear(0.1, 0.0, 10)), ("maximize", False)]
)  # fmt: skip
ACTIONS = st.one_of(
    st.tuples(st.just("step"), st.integers(0, 511), st.sampled_from(["dense", "Fortran"])),
    st.tuples(st.just("again"), st.integers(1, 3)),
    st.tuples(st.just("assign"), st.integers(0, 2), VALUES),
    st.tuples(st.just("capture")),
    st.tuples(st.just("replay"), st.integers(0, 3), st.integers(1, 3)),
    st.tuples(st.just("look")),
    st.tuples(st.just("load")),
)
SIZES = st.sampled_from([(), (0,), (1,), (2, 3), (17,), (600,)])


@dataclass
class Machine:
    """An optimizer on a device, and what it should have come to by the oracle."""

    device: Any
    optimizer: Any
    kinds: list[str]
    shapes: list[list[tuple[int, ...]]]
    dtypes: list[Any]
    seed: int = 0
    graphs: list[Any] = field(default_factory=list)

    def __post_init__(self):
        self.groups = [
            arrays(self.device, shapes, dtype, seed=i)
            for i, (shapes, dtype) in enumerate(zip(self.shapes, self.dtypes, strict=True))
        ]
        self.assigned = [{**OPTIMIZERS[kind][1], **KIND_OPTIONS.get(kind, {})} for kind in self.kinds]
        given_ = [{"params": p, **o} for p, o in zip(self.groups, self.assigned, strict=True)]
        self.opt = self.optimizer(given_)
        self.in_force = [dict(o) for o in self.assigned]
        self.trainers = [oracle.Trainer(plain(self.device, p)) for p in self.groups]
        self.stream, self.t = self.device.stream(), 0
        self.captured = False
        self.changed = False  # whether options were assigned since the last step of the host's
        self.mask, self.last = None, None
        self.step(2**9 - 1, "dense")

    def follow(self, grads):
        """Let the oracle take a step."""
        for trainer, kind, g, o in zip(self.trainers, self.kinds, grads, self.in_force, strict=True):
            follow(self.device, trainer, kind, g, numbers(o, self.t))
        self.t += 1

    def step(self, mask, order):
        """Take a step with new gradients, some of which are missing, or lie otherwise."""
        self.seed += 1
        rng, grads, i = np.random.default_rng(self.seed), [], 0
        for shapes, dtype in zip(self.shapes, self.dtypes, strict=True):
            row = []
            for shape in shapes:
                g = normal(rng, shape, dtype)
                g = g.copy(order="F") if order == "Fortran" else g
                row.append(self.device.array(g) if mask >> i & 1 else None)
                i += 1
            grads.append(row)
        taking = [[g is not None for g in row] for row in grads]
        strided = order == "Fortran" and any(g is not None and len(g.shape) == 2 for row in grads for g in row)
        if self.captured and (taking != self.mask or strided):
            with pytest.raises(RuntimeError, match="captured"), self.stream:
                self.opt.step(grads)
            event("refused after a capture")
            return
        self.mask, self.last = taking, grads
        self.take(grads)

    def take(self, grads):
        """Take a step of the host's, with what is assigned by now."""
        with self.stream:
            self.opt.step(grads)
        self.in_force, self.changed = [dict(o) for o in self.assigned], False
        self.follow(grads)

    def again(self, times):
        """Take the last step again."""
        for _ in range(times):
            self.take(self.last)

    def assign(self, group, change):
        """Assign an option."""
        group %= len(self.kinds)
        self.opt.param_groups[group][change[0]] = change[1]
        self.assigned[group][change[0]] = change[1]
        self.changed = True

    def capture(self):
        """Record the last step, if it is warm."""
        self.last = [[None if g is None else self.dense(g) for g in row] for row in self.last]
        self.again(2)
        with self.device.capture(self.stream) as graph:
            self.opt.step(self.last)
        self.graphs.append((graph, self.last))
        self.captured = True
        event(f"graphs: {len(self.graphs)}")

    def dense(self, g):
        """The same gradient, as its parameter lies."""
        return self.device.array(np.ascontiguousarray(self.device.get(g)).reshape(g.shape))

    def replay(self, which, times):
        """Replay one of the graphs."""
        for _ in range(times if self.graphs else 0):
            graph, grads = self.graphs[which % len(self.graphs)]
            graph.launch()
            self.follow(grads)

    def look(self):
        """Compare everything."""
        for group, o in zip(self.opt.param_groups, self.assigned, strict=True):
            assert group["step"] == self.t
            if not self.changed:
                assert {k: group[k] for k in o} == numbers(o, self.t - 1)
        i = 0
        for trainer, params in zip(self.trainers, self.groups, strict=True):
            for p, want, states, steps in zip(params, trainer.params, trainer.states, trainer.steps, strict=True):
                got = self.device.get(p)
                assert_close(got, want, BFLOAT16 if got.dtype == np.float16 else TRAJECTORY)
                entry = dict(self.opt.state.get(i, {"step": 0}))
                assert entry.pop("step") == steps
                for state, expected in zip(entry.values(), states or [], strict=True):
                    half = got.dtype == np.float16
                    assert_close(self.device.get(state), expected, STATE_OF_HALF if half else TRAJECTORY)
                i += 1

    def load(self):
        """Go on from a state dict, unless a graph forbids it."""
        self.device.synchronize()
        saved = self.opt.state_dict()
        self.device.synchronize()
        if self.captured:
            return
        self.opt.load_state_dict(saved)
        self.device.synchronize()


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), kinds=KINDS, actions=st.lists(ACTIONS, min_size=4, max_size=20))
def test_anything_in_any_order(device, data, kinds, actions):
    """Steps with any gradients missing, assignments, captures, replays and looks, of groups of any rules and dtypes."""
    optimizer, names = kinds
    shapes = [[(3,), *data.draw(st.lists(SIZES, max_size=2))] for _ in names]
    dtypes = [data.draw(st.sampled_from(DTYPES)) for _ in names]
    machine = Machine(device, optimizer, names, shapes, dtypes)
    for name, *arguments in [*actions, ("capture",), ("replay", 0, 2), ("again", 1), ("replay", 1, 1), ("look",)]:
        getattr(machine, name)(*arguments)


# A real GPU, and the stand-in itself


@pytest.mark.gpu
def test_small_numbers_of_float32_are_zero():
    """CuPy compiles so; float16's own and float64's are not affected."""
    cupy = importlib.import_module("cupy")
    for dtype, tiny, kept in ((np.float32, 1e-40, 0.0), (np.float64, 1e-310, 1e-310), (np.float16, 6e-8, 6e-8)):
        p = cupy.asarray(np.full(9, tiny, dtype))
        fused.sgd(p, cupy.asarray(np.zeros(9, dtype)), lr=1.0)
        cupy.cuda.Device(0).synchronize()
        np.testing.assert_array_equal(p.get(), np.full(9, kept, dtype))


def test_the_stand_in_waits(stand_in):
    """A kernel has a copy of its argument, and reads all else when its stream gets there, and not before."""
    cupy = stand_in.cupy
    stream = stand_in.stream()
    target = np.zeros(2, np.int64)
    message = np.zeros(1, tables.MESSAGE)
    message["to"], message["apart"], message["count"] = target.ctypes.data, 1, 2
    message["words"][0, :2] = 5, 6
    send = fastopt.kernels.cuda.send_and_advance(cupy)[0]
    with stream:
        send((1,), (32,), (message,))
    message["words"] = 0
    assert target.tolist() == [0, 0]
    stream.synchronize()
    assert target.tolist() == [5, 6]
    source, memory = np.array([1, 2]), cupy.cuda.Memory(16)
    pointer = cupy.cuda.MemoryPointer(memory, 0)
    pointer.copy_from_host_async(source.ctypes.data, 16, stream)
    source[:] = 7  # too early: whoever writes here has to wait
    stream.synchronize()
    pointer.copy_to_host(target.ctypes.data, 16)
    assert target.tolist() == [7, 7]


def test_the_stand_in_catches_gradients_that_are_gone(stand_in):
    """What is read at a replay is what lies there then."""
    p, g = stand_in.array(np.ones(4, np.float32)), stand_in.array(np.ones(4, np.float32))
    opt, stream = fastopt.SGD([p], lr=0.5), stand_in.stream()
    with stream:
        opt.step([g])
    g.host[...] = 2.0
    assert (stand_in.get(p) == 0.0).all()


def test_the_stand_in_is_strict_while_it_captures(stand_in):
    """What CUDA would refuse then, or what would be read anew at each replay, it refuses."""
    cupy = stand_in.cupy
    stream, memory, data = stand_in.stream(), cupy.cuda.Memory(16), np.zeros(2)
    pointer = cupy.cuda.MemoryPointer(memory, 0)
    before = WORLD.allocated
    with stand_in.capture(stream) as graph:
        for act in (
            lambda: cupy.cuda.Memory(8),
            lambda: pointer.copy_from_host_async(data.ctypes.data, 16, stream),
            stream.synchronize,
            cupy.cuda.Device(0).synchronize,
        ):
            with pytest.raises(cuda_stand_in.CUDARuntimeError):
                act()
    assert WORLD.allocated == before
    assert graph.graph.work == []
    with pytest.raises(cuda_stand_in.CUDARuntimeError, match="default stream"):
        cuda_stand_in.get_current_stream().begin_capture()
    with cupy.cuda.Device(1), pytest.raises(RuntimeError, match="does not match"):
        stream.__enter__()
