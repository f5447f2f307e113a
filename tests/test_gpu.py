"""Updates of arrays on a GPU against the oracle: on a stand-in for CuPy, and on a real GPU if there is one."""

import gc
import importlib

import cuda_stand_in
import cupy_stand_in
import host_cuda
import numpy as np
import pytest
from fastopt.bench import oracle
from fastopt.kernels import cuda, tables
from gpu_steps import (
    DTYPES,
    REAL,
    arrays,
    assert_trained,
    bits,
    follow,
    normal,
    plain,
    state_arrays,
    warm,
    warmed_up,
)
from halves import DIGITS, LEAST
from pairs import swept, usually
from rule_cases import OPTIMIZERS, numbers
from test_rules import VARIED
from tolerances import BFLOAT16, CARRIED, TRAJECTORY, assert_close, assert_rounded

import fastopt
from fastopt import fused, rules
from fastopt.schedules import Cosine, Linear

WORLD = cuda_stand_in.WORLD


# Every rule

OF_EACH = list({rule: (rule, options) for rule, options in VARIED}.values())  # the last of each rule


@swept(together=1, usual=lambda varied, dtype: varied in OF_EACH, varied=VARIED, dtype=DTYPES)
def test_trajectories(device, varied, dtype):
    """Sixty steps, with gradients that are missing now and then or come late; no elements, one, and several chunks."""
    (name, options), rng = varied, np.random.default_rng(2)
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
        if dtype == np.float16:  # each step starts from the last result, so that rounding does not accumulate
            for i, p in enumerate(plain(device, params)):
                got, want = p.astype(np.float64), trainer.params[i]
                if grads[i] is not None:
                    assert_rounded(got, want, DIGITS["float16"], LEAST["float16"], TRAJECTORY)
                trainer.params[i] = got
    assert_trained(device, opt, params, trainer, of_half=TRAJECTORY)
    assert [opt.param_groups[0]["step"], *trainer.steps] == [60, *(opt.state[i]["step"] for i in range(6))]


@pytest.mark.parametrize("name", rules.RULES)
def test_non_finite_gradients_propagate(device, name):
    """A NaN or an infinity reaches its own element and no other: of the parameter, or of a state at least."""
    make, options = OPTIMIZERS[name]
    p, g = device.array(np.ones(40, np.float32)), np.full(40, 0.5, np.float32)
    g[7], g[20] = np.nan, np.inf
    optimizer = make(p, **options)
    optimizer.step(device.array(g))
    states = [optimizer.state[0][state] for state in rules.RULES[name].states]
    finite = np.isfinite([device.get(array) for array in (p, *states)]).all(axis=0)
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


@pytest.mark.parametrize("shape", [(5, 7), pytest.param((300, 257), marks=pytest.mark.exhaustive)], ids=str)
@pytest.mark.parametrize("lay", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("dtype", usually([np.float32], DTYPES))
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


# Groups, devices, streams


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


@pytest.mark.parametrize("array", ["parameter", "single parameter", "velocity"])
def test_what_is_read_only_is_refused(stand_in, array):
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
        acts[array]()
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
    """One launch, with which the rows and the gradients' addresses travel."""
    schedule = Cosine(0.1, 50)
    params = arrays(stand_in)
    opt = fastopt.SGD([{"params": params[:2]}, {"params": params[2:], "momentum": 0.5}], lr=schedule, momentum=0.9)
    kernel = cuda.Kind("momentum", "float32").name
    kept = []
    for t in range(5):
        kept.append(arrays(stand_in, seed=t))
        if t < 2:
            opt.step([kept[t][:2], kept[t][2:]])
    for t in range(2, 5):
        stand_in.log()
        opt.step([kept[t][:2], kept[t][2:]])
        ((_, argument, *_),) = WORLD.launches
        assert stand_in.log() == [kernel]
        words = host_cuda.words(argument)
        assert words[:3].tolist() == [g.data.ptr for g in kept[t]]
        sent = words[3:].view(np.float32)[: 2 * tables.HYPERS].reshape(2, tables.HYPERS)
        assert sent[:, :4].tolist() == [[1.0, 0.0, np.float32(schedule(t)), np.float32(m)] for m in (0.9, 0.5)]


@pytest.mark.parametrize(
    ("name", "kernels"),
    [("momentum", []), ("dampened", []), ("adam", ["advance"]), ("nadam", ["advance"]), ("schedule", ["advance"])],
)
def test_a_replay_is_what_was_captured(stand_in, name, kernels):
    """The update, which counts; where something moves, a kernel that computes the rows is ahead of it."""
    rule = name if name in ("adam", "nadam") else "momentum"
    options = {"dampened": {"lr": 0.1, "dampening": 0.3}, "schedule": {"lr": Cosine(0.1, 50)}}.get(name, {"lr": 0.1})
    opt, params, grads, stream, trainer = warm(stand_in, OPTIMIZERS[rule][0], rule, **options)
    stand_in.log()
    with stand_in.capture(stream) as graph:
        opt.step()
    update = [*kernels, cuda.Kind(rule, "float32").name]
    assert stand_in.log() == update
    for step in range(2, 5):
        graph.launch()
        assert stand_in.log() == update
        follow(stand_in, trainer, rule, grads, numbers({**OPTIMIZERS[rule][1], **options}, step))
    with stream:
        opt.step()
    assert stand_in.log() == update
    follow(stand_in, trainer, rule, grads, numbers({**OPTIMIZERS[rule][1], **options}, 5))
    assert_trained(stand_in, opt, params, trainer)


@pytest.mark.parametrize("rate", [0.1, Cosine(0.1, 50)], ids=["number", "schedule"])
def test_a_step_of_several_launches_is_counted_once(device, rate):
    """By the first one that has elements."""
    shapes = [(0,), (5,)], [(7,)], [(3,)]
    params = [p for s, dtype in zip(shapes, DTYPES, strict=True) for p in arrays(device, s, dtype)]
    grads = [p.copy() for p in params]
    opt = fastopt.SGD(params, lr=rate, momentum=0.9)
    opt.bind(grads)
    graph = warmed_up(device, opt)
    for _ in range(3):
        graph.launch()
    device.synchronize()
    assert opt.param_groups[0]["step"] == 5


@pytest.mark.parametrize(
    ("rate", "kernels"), [(0.1, ["count"]), (Cosine(0.1, 50), ["advance", "count"])], ids=["number", "schedule"]
)
def test_a_replay_of_nothing_but_empty_arrays(stand_in, rate, kernels):
    """A kernel counts, since there is no update."""
    opt = fastopt.SGD(arrays(stand_in, [(0,), (3, 0)]), lr=rate, momentum=0.9)
    opt.bind(arrays(stand_in, [(0,), (3, 0)]))
    graph = warmed_up(stand_in, opt)
    stand_in.log()
    graph.launch()
    assert stand_in.log() == kernels
    assert opt.param_groups[0]["step"] == 3


def test_nothing_but_empty_arrays_is_counted(device):
    """So are the numbers carried."""
    opt, twin = fastopt.NAdam(arrays(device, [(0,), (3, 0)])), fastopt.NAdam(np.zeros(0))
    opt.bind(arrays(device, [(0,), (3, 0)]))
    graph = warmed_up(device, opt)
    for _ in range(3):
        graph.launch()
    for _ in range(5):
        twin.step(np.zeros(0))
    assert opt.param_groups[0]["step"] == 5
    assert opt.state[1]["mu_product"] == pytest.approx(twin.state[0]["mu_product"], rel=CARRIED)


def test_numbers_after_a_capture(device):
    """One that is assigned takes effect in replays after the next step outside; what would change them is refused."""
    opt, params, grads, stream, trainer = warm(device)
    with device.capture(stream) as graph:
        opt.step()
    rates = [0.1, 0.1, 0.25, 0.25, 0.25]
    for number, rate in enumerate(rates):
        if number == 2:
            opt.param_groups[0]["lr"] = rate
            with stream:
                opt.step()
        else:
            graph.launch()
        follow(device, trainer, "momentum", grads, {"lr": rate, "momentum": 0.9})
    opt.param_groups[0]["lr"] = Cosine(0.1, 50)
    with stream, pytest.raises(RuntimeError, match="captured while its numbers stayed the same"):
        opt.step()
    opt.param_groups[0]["lr"] = 0.5
    with stream:
        opt.step()
    follow(device, trainer, "momentum", grads, {"lr": 0.5, "momentum": 0.9})
    graph.launch()
    follow(device, trainer, "momentum", grads, {"lr": 0.5, "momentum": 0.9})
    device.synchronize()
    assert_trained(device, opt, params, trainer)


def test_a_rate_that_decays_after_a_capture(device):
    """AdaGrad's row stays without lr_decay."""
    opt, _, _, stream, _ = warm(device, fastopt.Adagrad, "adagrad", lr=0.1)
    with device.capture(stream):
        opt.step()
    opt.param_groups[0]["lr_decay"] = 0.1
    with stream, pytest.raises(RuntimeError, match="captured while its numbers stayed the same"):
        opt.step()
    device.synchronize()


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


# A real GPU


@pytest.mark.gpu
def test_small_numbers_of_float32_are_zero():
    """CuPy compiles so; float16's own and float64's are not affected."""
    cupy = importlib.import_module("cupy")
    for dtype, tiny, kept in ((np.float32, 1e-40, 0.0), (np.float64, 1e-310, 1e-310), (np.float16, 6e-8, 6e-8)):
        p = cupy.asarray(np.full(9, tiny, dtype))
        fused.sgd(p, cupy.asarray(np.zeros(9, dtype)), lr=1.0)
        cupy.cuda.Device(0).synchronize()
        np.testing.assert_array_equal(p.get(), np.full(9, kept, dtype))
