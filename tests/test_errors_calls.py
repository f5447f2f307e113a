"""Single calls with wrong gradients, states and options: refused, and no argument has changed."""

from functools import partial

import numpy as np
import pytest
from refusals import BAD_GRADIENTS, F32, F64, Subject, assert_refused, bad_values, frozen

import fastopt

# Single calls: their states, all that they can take, and options that they need; and the states that they need.
MOMENTUM = {"lr": 0.1, "momentum": 0.9}
ADAMS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
CALLS = {
    "sgd": ((), {"lr": 0.1}),
    "momentum": (("velocity",), MOMENTUM),
    "nesterov": (("velocity",), MOMENTUM),
    "adagrad": (("accumulator",), {"lr": 0.1}),
    "rmsprop": (("square_avg", "momentum_buffer", "grad_avg"), {"lr": 0.1}),
    "adam": (ADAMS, {"lr": 0.1, "step": 1}),
    "adamw": (ADAMS, {"lr": 0.1, "step": 1}),
}
NEEDED = {name: states[:2] if "adam" in name else states[:1] for name, (states, _) in CALLS.items()}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("make_array", "error", "words"), BAD_GRADIENTS.values(), ids=BAD_GRADIENTS.keys())
def test_gradients_of_single_calls(name, make_array, error, words):
    """The same gradients are refused there, and no argument has changed."""
    subject = Subject()
    p, options = subject.params["w1"], CALLS[name][1]
    states = [np.ones((3, 4), F32) for _ in CALLS[name][0]]
    gradient = make_array(subject)
    if isinstance(gradient, np.ndarray) and error is ValueError and not np.shares_memory(gradient, p):
        words = ["(3, 4)"]
        if gradient.shape == (3, 4):
            return  # over another parameter, of which a single call knows nothing
    before = frozen([p, states])
    assert_refused(
        error,
        ["g", *(word.replace("parameter 'w1'", "p") for word in words if "'w1'" not in word)],
        lambda: getattr(fastopt.fused, name)(p, gradient, *states, **options),
    )
    assert frozen([p, states]) == before
    getattr(fastopt.fused, name)(p, np.ones_like(p), *states, **options)


@pytest.mark.parametrize(("name", "state_name"), [(name, state) for name in CALLS for state in CALLS[name][0]])
@pytest.mark.parametrize(
    ("make_state", "error", "words"),
    [
        (lambda p, g: np.zeros((3, 4), F64), TypeError, ["float64", "astype(np.float32)"]),
        (lambda p, g: np.zeros((4, 3), F32), ValueError, ["(4, 3)", "(3, 4)"]),
        (lambda p, g: np.zeros((2, 6), F32), ValueError, ["(2, 6)", "(3, 4)"]),
        (lambda p, g: None, TypeError, ["None"]),
        (lambda p, g: [[0.0] * 4] * 3, TypeError, ["list"]),
        (lambda p, g: p, ValueError, ["p and", "overlap", ".copy()"]),
        (lambda p, g: p[::-1], ValueError, []),
        (lambda p, g: g, ValueError, ["overlap", ".copy()"]),
        (lambda p, g: g[:], ValueError, ["overlap", ".copy()"]),
    ],
)
def test_states_of_single_calls(name, state_name, make_state, error, words):
    """A velocity or accumulator must be like the parameter, lie like it, and be apart from all else."""
    p, g = np.ones((3, 4), F32), np.ones((3, 4), F32)
    states, options = CALLS[name]
    given = {state: np.ones((3, 4), F32) for state in states}
    given[state_name] = make_state(p, g)
    if given[state_name] is None and state_name not in NEEDED[name]:
        return  # without it, the call asks for another rule
    others = [given[state] for state in states if state != state_name]
    assert_refused(error, [state_name, *words], partial(getattr(fastopt.fused, name), p, g, **given, **options))
    assert frozen([p, g, *others]) == frozen([np.ones((3, 4), F32)] * (1 + len(states)))


@pytest.mark.parametrize("name", CALLS)
def test_arrays_of_single_calls_that_overlap_in_part(name):
    """By one element or by all but one, of the parameter with any other array; neighbours do not."""
    (states, options), function = CALLS[name], getattr(fastopt.fused, name)
    for which in range(1 + len(states)):
        for apart in (1, 11, 12):
            buffer = np.ones(24, F32)
            p, others = buffer[:12], [np.ones(12, F32) for _ in range(1 + len(states))]
            others[which] = buffer[apart : apart + 12]
            if apart < 12:
                assert_refused(ValueError, ["overlap", ".copy()"], partial(function, p, *others, **options))
                assert (buffer == 1).all()
            else:
                function(p, *others, **options)
                assert (p != 1).any()


@pytest.mark.parametrize("call", CALLS)
def test_options_of_single_calls(call):
    """Hyperparameters are checked before the arrays change."""
    function = getattr(fastopt.fused, call)
    states, options = CALLS[call]
    arrays = [np.ones(3, F32) for _ in ("p", "g", *states)]
    for name in {*options, *function.__kwdefaults__} - {"step"}:
        for value, error in bad_values(name):
            act = lambda name=name, value=value: function(*arrays, **{**options, name: value})  # noqa: E731
            assert_refused(error, [name, "must be"], act, value)
    assert frozen(arrays) == frozen([np.ones(3, F32)] * len(arrays))


@pytest.mark.parametrize("call", ["adam", "adamw"])
def test_steps_of_single_calls(call):
    """A step is a whole number from 1; with another one a correction would be of nothing, or of a power that grows."""
    arrays = [np.ones(3, F32) for _ in range(4)]
    for step, error in ((0, ValueError), (-1, ValueError), (2**63, ValueError), (1.0, TypeError), (None, TypeError)):
        act = partial(getattr(fastopt.fused, call), *arrays, lr=0.1, step=step)
        assert_refused(error, ["step must be"], act, step)
    assert frozen(arrays) == frozen([np.ones(3, F32)] * 4)
    getattr(fastopt.fused, call)(*arrays, lr=0.1, step=np.int64(1))


def test_a_momentum_needs_its_buffer():
    """RMSProp's call says so; without a momentum, a buffer is used all the same."""
    p, g, s, v = (np.ones(3, F32) for _ in range(4))
    act = partial(fastopt.fused.rmsprop, p, g, s, lr=0.1, momentum=0.9)
    assert_refused(ValueError, ["momentum=0.9 needs a momentum_buffer", "zeros"], act)
    assert frozen([p, g, s, v]) == frozen([np.ones(3, F32)] * 4)
    fastopt.fused.rmsprop(p, 2 * g, s, v, lr=0.1)
    assert (v != 1).all()


def test_single_calls_have_no_other_options():
    """Unknown names, missing ones, and hyperparameters by position are Python's own TypeError."""
    p, g, v = (np.ones(3, F32) for _ in range(3))
    for call in (
        lambda: fastopt.fused.sgd(p, g, 0.1),
        lambda: fastopt.fused.sgd(p, g),
        lambda: fastopt.fused.sgd(p, g, lr=0.1, momentum=0.9),
        lambda: fastopt.fused.sgd(p, g, lr=lambda step: 0.1),
        lambda: fastopt.fused.momentum(p, g, v, lr=0.1),
        lambda: fastopt.fused.momentum(p, g, lr=0.1, momentum=0.9),
        lambda: fastopt.fused.nesterov(p, g, v, lr=0.1, momentum=0.9, dampening=0.0),
        lambda: fastopt.fused.adagrad(p, g, v, lr=0.1, lr_decay=0.1),
        lambda: fastopt.fused.rmsprop(p, g, lr=0.1),
        lambda: fastopt.fused.rmsprop(p, g, v, lr=0.1, centered=True),
        lambda: fastopt.fused.adam(p, g, v, v, lr=0.1),
        lambda: fastopt.fused.adam(p, g, v, lr=0.1, step=1),
        lambda: fastopt.fused.adamw(p, g, v, v, lr=0.1, step=1, amsgrad=True),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="Nesterov momentum requires"):
        fastopt.fused.nesterov(p, g, v, lr=0.1, momentum=0.0)
    assert frozen([p, g, v]) == frozen([np.ones(3, F32)] * 3)
