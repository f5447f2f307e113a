"""Steps over arrays that the extension takes, with rows that it computes itself, or that Python computes for it."""

import gc

import numpy as np
import pytest
from fastopt.kernels import pool
from rule_cases import OPTIMIZERS

import fastopt
from fastopt.schedules import Cosine, Linear
from fastopt.step.clock import REPEATED_LIMIT, Clock

pytestmark = pytest.mark.skipif(not pool.available, reason="without the extension, Python takes all steps")


def optimizer_of(make=fastopt.SGD, **options):
    """An optimizer over arrays of two dtypes, and a function that takes a step with gradients of its own."""
    params = [np.full(5, 0.5, dtype) for dtype in ("f4", "f8")]
    optimizer = make(params, **{"lr": 0.1, **options})
    rng = np.random.default_rng(0)

    def step():
        optimizer.step([rng.standard_normal(p.shape).astype(p.dtype) for p in params])

    return optimizer, step


def seen(optimizer):
    """Everything that a user sees of an optimizer, as text."""
    with np.printoptions(floatmode="unique"):
        return repr([group["params"] for group in optimizer.param_groups]), repr(optimizer.state_dict())


def assign(step, group):
    """Options that are assigned between steps: numbers, functions, schedules, and another rule."""
    changes = {
        2: {"lr": 0.2},
        3: {"lr": 0.3},
        6: {"weight_decay": lambda step: 0.01 * step},
        8: {"lr": Cosine(0.1, 30)},
    }
    changes |= {11: {"lr": 0.25, "weight_decay": 0.0}, 14: {"lr": lambda step: 0.3 / (1 + step)}, 17: {"lr": 0.2}}
    if not group.get("nesterov", True):
        changes |= {12: {"momentum": 0.0}, 13: {"momentum": 0.5}, 15: {"momentum": 0.0}}
    for name, value in changes.get(step, {}).items():
        group[name] = value


def trained(make, options, between):
    """What is seen after steps with something in between, and before the last one of them at every third."""
    optimizer, step = optimizer_of(make, **options)
    looks = []
    for number in range(20):
        between(number, optimizer.param_groups[0])
        step()
        if number % 3 == 0:
            looks.append(seen(optimizer))
    return [*looks, seen(optimizer)]


BETWEEN = {"assigned": assign, "function": lambda step, group: None}


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_they_are_the_steps_that_python_takes(rule, between, monkeypatch):
    """To the bit, whoever computes the rows and whenever somebody looks."""
    make, options = OPTIMIZERS[rule]
    options = {**options, "lr": lambda step: 0.1 + 0.01 * step}
    repeated = trained(make, options, BETWEEN[between])
    monkeypatch.setattr(Clock, "start_repeating", lambda self: None)
    assert trained(make, options, BETWEEN[between]) == repeated


def repeats(optimizer):
    """Whether the extension takes the next step, and whether it computes the rows too."""
    clock = optimizer._stepper.clock
    return clock.repetition is not None, clock.tally.asked is None


def test_who_computes_the_rows():
    """The extension, unless an option was assigned since the last step; it takes the step even then."""
    optimizer, step = optimizer_of(momentum=0.9)
    group = optimizer.param_groups[0]
    for _ in range(2):
        step()
        assert repeats(optimizer) == (True, True)
    for _ in range(2):
        group["lr"] = 0.2
        step()
        assert repeats(optimizer) == (True, False)
    step()
    assert repeats(optimizer) == (True, True)
    group["lr"] = lambda step: 0.1
    for _ in range(2):
        step()
        assert repeats(optimizer) == (True, False)
    group["momentum"] = Linear(0.5, 0.9, 10)  # which may reach 0, where another rule begins
    step()
    assert repeats(optimizer)[0] is False


def test_a_function_is_called_once_for_each_step():
    asked = []
    optimizer, step = optimizer_of(fastopt.Adam, lr=lambda step: asked.append(step) or 0.1 * (step + 1))
    asked.clear()  # the constructor has called it
    for number in range(6):
        step()
        if number % 2:
            assert optimizer.param_groups[0]["lr"] == 0.1 * (number + 1)
            assert optimizer.param_groups[0]["step"] == number + 1
    assert asked == list(range(6))
    assert optimizer.param_groups[0]["lr"] == 0.1 * 6


def test_a_function_that_fails_changes_nothing():
    for error, bad in [(ZeroDivisionError, lambda: 1 / 0), (ValueError, lambda: -1.0), (ValueError, lambda: 1e300)]:
        fails = []
        optimizer, step = optimizer_of(lr=lambda step, bad=bad, fails=fails: bad() if fails else 0.1, momentum=0.9)
        twin, twins_step = optimizer_of(lr=0.1, momentum=0.9)
        for _ in range(4):
            step()
            twins_step()
        before = seen(optimizer)
        fails.append(True)
        for _ in range(2):
            with pytest.raises(error):
                optimizer.step([np.ones(5, "f4"), np.ones(5)])
            assert seen(optimizer) == before
        fails.clear()
        for _ in range(2):
            step()
            twins_step()
        assert [p.tolist() for p in optimizer.param_groups[0]["params"]] == [
            p.tolist() for p in twin.param_groups[0]["params"]
        ]


def test_a_function_may_look_but_not_step():
    """It sees the state after the latest step, and this is a step that is under way."""
    looks = []

    def rate(step):
        if looks is not None and step > 2:
            group = optimizer.param_groups[0]
            looks.append((group["step"], group["lr"], optimizer.state[0]["step"]))
            for act in (optimizer.step, lambda: optimizer.load_state_dict(optimizer.state_dict())):
                with pytest.raises(RuntimeError, match="inside a step"):
                    act()
        return 0.1 * (step + 1)

    optimizer, step = optimizer_of(fastopt.Adam, lr=rate)
    optimizer.bind([np.zeros(5, "f4"), np.zeros(5)])
    for _ in range(6):
        step()
    assert looks == [(number, 0.1 * number, number) for number in range(3, 6)]


def test_options_that_contradict_each_other_change_nothing():
    optimizer, step = optimizer_of(momentum=0.9, nesterov=True)
    for _ in range(3):
        step()
    optimizer.param_groups[0]["dampening"] = 0.5
    before = seen(optimizer)
    with pytest.raises(ValueError, match="zero dampening"):
        step()
    assert seen(optimizer) == before
    optimizer.param_groups[0]["dampening"] = 0.0
    step()
    assert optimizer.param_groups[0]["step"] == 4


@pytest.mark.parametrize("rate", [Cosine(0.1, 20), lambda step: 0.1 / (step + 1)], ids=["schedule", "function"])
def test_a_group_outlives_its_optimizer(rate):
    """It shows the numbers of the last step, which nobody has looked at before."""
    asked = []

    def counted(step):
        asked.append(step)
        return rate(step)

    optimizer, step = optimizer_of(lr=rate if isinstance(rate, Cosine) else counted)
    group = optimizer.param_groups[0]
    for _ in range(6):
        step()
    calls = len(asked)
    del optimizer, step
    gc.collect()
    assert (group["step"], group["lr"]) == (6, rate(5))
    assert len(asked) == calls


def test_counts_beyond_those_of_the_extension():
    """It leaves schedules to Python where their numbers would be wrong soon."""
    optimizer, step = optimizer_of(lr=Linear(0.1, 0.2, 10))
    optimizer.param_groups[0]["step"] = REPEATED_LIMIT
    for _ in range(3):
        step()
        assert repeats(optimizer) == (True, False)
    assert (optimizer.param_groups[0]["step"], optimizer.param_groups[0]["lr"]) == (REPEATED_LIMIT + 3, 0.2)
