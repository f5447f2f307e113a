"""Arrays on a device, warmed-up optimizers for them, and the oracle's result of the same steps; no tests here."""

import numpy as np
import pytest
from fastopt.bench import oracle
from rule_cases import numbers
from tolerances import BFLOAT16, CARRIED, STATE_OF_HALF, TRAJECTORY, assert_close

import fastopt
from fastopt.rules import RULES

CARRIED_NAMES = {rule.carried for rule in RULES.values() if rule.carried is not None}
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
    return [value for entry in opt.state.values() for value in entry.values() if not isinstance(value, int | float)]


def assert_trained(device, opt, params, trainer, of_half=STATE_OF_HALF):
    """Assert that parameters, states and counts are the oracle's."""
    kept = opt.state
    for i, (p, want) in enumerate(zip(params, trainer.params, strict=True)):
        got = device.get(p)
        half = got.dtype == np.float16
        assert_close(got, want, BFLOAT16 if half else TRAJECTORY)
        entry = dict(kept.get(i, {"step": 0}))
        assert entry.pop("step") == trainer.steps[i]
        for name in CARRIED_NAMES & entry.keys():
            assert entry.pop(name) == pytest.approx(trainer.carried[i], rel=CARRIED)
        for state, expected in zip(entry.values(), trainer.states[i] or [], strict=True):
            assert state.dtype == REAL[p.dtype.name]
            assert_close(device.get(state), expected, of_half if half else TRAJECTORY)


def state_arrays_of(saved):
    """All states in a state dict, or in its entry of states."""
    entries = saved.get("state", saved).values()
    return [value for entry in entries for value in entry.values() if not isinstance(value, int | float)]


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
