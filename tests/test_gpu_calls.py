"""Single calls, errors and state dicts on a GPU."""

import json

import cuda_stand_in
import numpy as np
import pytest
from fastopt.bench import oracle
from fastopt.kernels import cuda
from gpu_steps import DTYPES, REAL, arrays, assert_trained, bits, normal, plain, state_arrays, state_arrays_of, warm
from rule_cases import OPTIMIZERS
from tolerances import BFLOAT16, TRAJECTORY, assert_close

import fastopt
from fastopt import fused, rules
from fastopt.schedules import Cosine

WORLD = cuda_stand_in.WORLD


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
    """The memory of the last call of a kind is used again."""
    p, g, v = (stand_in.array(np.ones(61, np.float32)) for _ in range(3))
    fused.momentum(p, g, v, lr=0.1, momentum=0.9)
    before = WORLD.allocated
    for i in range(5):
        stand_in.log()
        fused.momentum(p, g, v, lr=0.1 * i, momentum=0.9)
        assert WORLD.allocated == before
        assert stand_in.log() == [cuda.Kind("momentum", "float32").name]  # its table is there


def test_single_calls_are_not_captured(device):
    """They would send their numbers only once; nothing is captured."""
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
    """They are refused, not copied silently."""
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
        {"momentum_buffer": device.array(np.ones((3, 5), np.int16))},
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
