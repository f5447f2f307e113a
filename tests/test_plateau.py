"""The schedule with a memory: equal to torch's, except for torch's errors; its states and dicts."""

import copy
import json
import math
import pickle
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from schedule_cases import FAR
from schedule_checks import named, plain, state_of
from torch.optim import lr_scheduler

from fastopt import schedules
from fastopt.schedules import (
    Plateau,
)

STEPS = 450


def run_plateaus(metrics, lr=0.1, eps=0.0, **options):
    """Rates of a Plateau and of torch's scheduler after each metric."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, eps=eps, **options)
    plateau, ours, theirs = Plateau(lr, **options), [], []
    for metric in metrics:
        scheduler.step(metric)
        ours.append(plateau.update(metric))
        theirs.append(optimizer.param_groups[0]["lr"])
    return ours, theirs


PLATEAUS = [
    {},
    {"factor": 0.5, "patience": 0},
    {"factor": 0.9, "patience": 3, "cooldown": 5},
    {"factor": 0.3, "patience": 1, "cooldown": 1, "min_lr": 1e-3},
    {"factor": 0.0, "patience": 30},
    {"factor": 0.7, "patience": 2, "threshold": 0.1},
    {"factor": 0.7, "patience": 2, "threshold": 0.0},
    {"factor": 0.1, "patience": 2, "min_lr": 0.5},
]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize("options", PLATEAUS, ids=repr)
def test_parity_of_plateau(options, threshold_mode, mode):
    """Exactly, where torch's quirks do not bite: with its eps at 0, and positive metrics for relative thresholds."""
    rng = np.random.default_rng(7)
    noise = rng.standard_normal(STEPS)
    drift = np.linspace(3.0, 0.1, STEPS) + 0.3 * noise if mode == "min" else np.linspace(0.1, 3.0, STEPS) + 0.3 * noise
    steps = np.round(np.abs(drift), 1)  # with equal ones
    for metrics in (np.abs(drift), steps, drift if threshold_mode == "abs" else np.abs(noise) + 1e-3):
        for missing in (math.nan, math.inf, -math.inf if threshold_mode == "abs" else 5.0):
            given = metrics.copy()
            given[rng.integers(0, STEPS, 20)] = missing
            given[0] = missing if math.isnan(missing) else given[0]
            ours, theirs = run_plateaus(given.tolist(), mode=mode, threshold_mode=threshold_mode, **options)
            assert ours == theirs
    if options.get("min_lr", 0.0) < 0.1:
        assert len(set(ours)) > 1


def test_parity_of_plateau_with_the_eps_of_torch():
    """While drops are larger than it."""
    ours, theirs = run_plateaus([1.0] * 60, lr=0.1, eps=1e-8, patience=9)
    assert ours == theirs
    assert ours[-1] == pytest.approx(1e-6)


def test_small_rates_drop():
    """A rate of 1e-8 never does in torch, because of its eps."""
    ours, theirs = run_plateaus([1.0] * 40, lr=1e-8, eps=1e-8, patience=9)
    assert set(theirs) == {1e-8}
    assert ours == [1e-8] * 10 + [1e-8 * 0.1] * 10 + [1e-8 * 0.1 * 0.1] * 10 + [1e-8 * 0.1 * 0.1 * 0.1] * 10


@pytest.mark.parametrize(("mode", "metric"), [("min", -1.0), ("max", -1.0)])
def test_an_equal_metric_is_no_improvement(mode, metric):
    """With a relative threshold and a negative metric it is one in torch, and so is a somewhat worse one."""
    ours, theirs = run_plateaus([metric] * 30, patience=5, mode=mode)
    assert set(theirs) == {0.1}
    assert ours[5:7] == [0.1, pytest.approx(0.01)]
    worse = [metric + (1e-6 if mode == "min" else -1e-6) * i for i in range(30)]
    ours, theirs = run_plateaus(worse, patience=5, mode=mode)
    assert set(theirs) == {0.1}
    assert ours[5:7] == [0.1, pytest.approx(0.01)]


@pytest.mark.parametrize(("mode", "sign"), [("min", 1.0), ("max", -1.0)])
@pytest.mark.parametrize("best", [-2.0, 2.0])
def test_thresholds_of_either_sign(mode, sign, best):
    """A relative threshold is a share of the best metric's magnitude, an absolute one a difference."""
    for threshold_mode, margin in (("rel", 0.02), ("abs", 0.01)):
        for share, improves in ((0.99, False), (1.01, True)):
            plateau = Plateau(0.1, patience=0, threshold=0.01, threshold_mode=threshold_mode, mode=mode)
            plateau.update(best)
            plateau.update(best - sign * share * margin)
            assert (plateau.lr == 0.1) == improves
            assert (plateau.best == best) != improves


def test_plateau_counts():
    """Patience, drop, cooldown and floor, metric by metric."""
    plateau = Plateau(1.0, factor=0.5, patience=2, cooldown=2, min_lr=0.2)
    assert (plateau.lr, plateau.best, plateau.bad, plateau.cooling) == (1.0, None, 0, 0)
    rates = [plateau.update(metric) for metric in [3.0, 2.0, 2.0, 2.0, 2.0]]
    assert rates == [1.0, 1.0, 1.0, 1.0, 0.5]
    assert (plateau.lr, plateau.best, plateau.bad, plateau.cooling) == (0.5, 2.0, 0, 2)
    assert [plateau.update(2.0) for _ in range(5)] == [0.5, 0.5, 0.5, 0.5, 0.25]
    assert [plateau.update(2.0) for _ in range(5)] == [0.25, 0.25, 0.25, 0.25, 0.2]
    assert [plateau.update(2.0) for _ in range(20)] == [0.2] * 20
    assert plateau.update(0.0) == 0.2
    assert plateau.best == 0.0


@pytest.mark.parametrize("metric", [1, 2.5, np.float32(0.5), np.array(2.0), torch.tensor(3.0), Fraction(1, 2), True])
def test_plateau_takes_numbers_of_all_kinds(metric):
    """Whatever float() takes is kept as a float; what update returns is one too."""
    plateau = Plateau(0.1)
    assert type(plateau.update(metric)) is float
    assert type(plateau.best) is float
    assert plateau.best == float(metric)


def test_plateau_is_a_schedule_of_any_step():
    """It is callable, and its value the present rate."""
    plateau = Plateau(np.float32(0.5), patience=0)
    assert [plateau(t) for t in (0, 5, FAR)] == [0.5] * 3
    plateau.update(1.0)
    assert plateau.update(1.0) == plateau(0) == plateau(7) == 0.05
    assert type(plateau(0)) is float


@pytest.mark.parametrize("metric", ["1", b"1", None, [1.0], (), {}, 1j, np.array([1.0, 2.0]), object()], ids=named)
def test_metrics_that_are_no_numbers(metric):
    """TypeError, and nothing has changed."""
    plateau = Plateau(0.1, patience=1)
    plateau.update(1.0)
    plateau.update(2.0)
    before = state_of(plateau)
    with pytest.raises(TypeError):
        plateau.update(metric)
    assert state_of(plateau) == before
    assert plateau.update(2.0) == pytest.approx(0.01)


def test_plateau_never_rises():
    """A floor above the rate leaves it where it is."""
    plateau = Plateau(0.1, min_lr=0.5, patience=0)
    assert [plateau.update(1.0) for _ in range(5)] == [0.1] * 5


OPTIONS = {"factor": 0.5, "patience": 2, "threshold": 0.01, "threshold_mode": "abs", "mode": "max", "cooldown": 1}


@pytest.mark.parametrize("cut", [0, 1, 7, 30, 59])
@pytest.mark.parametrize("options", [{}, {"patience": 1}, OPTIONS], ids=repr)
def test_plateau_resumes(options, cut):
    """From a state dict, a dict of its own, a pickle or a copy, through JSON where it is one, to the same rates."""
    random.seed(cut)
    metrics = [round(random.gauss(0.0, 1.0), 1) for _ in range(60)]
    whole, half = Plateau(0.1, **options), Plateau(0.1, **options)
    want = [whole.update(metric) for metric in metrics]
    for metric in metrics[:cut]:
        half.update(metric)
    loaded = Plateau(0.7, **options)
    state = json.loads(json.dumps(half.state_dict()))
    assert set(state) == {"lr", "best", "bad", "cooling"}
    loaded.load_state_dict(state)
    described = json.loads(json.dumps(half.to_dict()))
    resumed = [loaded, schedules.from_dict(described), copy.deepcopy(half), pickle.loads(pickle.dumps(half))]
    for plateau in resumed:
        assert type(plateau) is Plateau
        assert plateau.state_dict() == half.state_dict()
        assert [plateau.update(metric) for metric in metrics[cut:]] == want[cut:]
        assert plateau.state_dict() == whole.state_dict()
    for plateau in resumed[1:]:
        assert state_of(plateau) == state_of(whole)


def test_a_state_dict_is_a_copy():
    """Neither side sees what happens to the other."""
    plateau = Plateau(0.1)
    plateau.update(2.0)
    state = plateau.state_dict()
    kept = dict(state)
    plateau.update(1.0)
    assert state == kept
    state["best"] = -5.0
    assert plateau.best == 1.0


GOOD_STATE = {"lr": 0.05, "best": 2.0, "bad": 1, "cooling": 0}


@pytest.mark.parametrize(
    "state",
    [
        None, 3, "state", [], {}, [("lr", 0.1)], {"lr": 0.1},
        *({name: value for name, value in GOOD_STATE.items() if name != missing} for missing in GOOD_STATE),
        {**GOOD_STATE, "patience": 3},
        *({**GOOD_STATE, "lr": bad} for bad in (-0.1, math.nan, math.inf, "0.1", None, True)),
        *({**GOOD_STATE, "best": bad} for bad in (math.nan, "2", b"2", [2.0], {}, 1j)),
        *({**GOOD_STATE, "bad": bad} for bad in (-1, 1.0, "1", None, True)),
        *({**GOOD_STATE, "cooling": bad} for bad in (-1, 1.0, "1", None, True)),
    ],
    ids=repr,
)  # fmt: skip
def test_states_that_do_not_fit(state):
    """Refused, and nothing has changed."""
    plateau = Plateau(0.1, patience=3)
    plateau.update(1.0)
    plateau.update(2.0)
    before = state_of(plateau)
    with pytest.raises((TypeError, ValueError)):
        plateau.load_state_dict(state)
    assert state_of(plateau) == before
    plateau.load_state_dict(GOOD_STATE)
    assert plateau.state_dict() == GOOD_STATE


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=repr)
def test_plateau_is_written_as_it_was_made(options):
    """Its repr evaluates back to the options, without the memory; its dict has both."""
    plateau = Plateau(np.float32(0.5), **options)
    fresh = state_of(plateau)
    for _ in range(40):
        plateau.update(1.0)
    assert plateau.lr < 0.5
    back = eval(repr(plateau), {"__builtins__": {}, "Plateau": Plateau})
    assert repr(back) == repr(plateau)
    assert state_of(back) == fresh
    described = plateau.to_dict()
    assert (described["name"], described["lr"], described["state"]["lr"]) == ("Plateau", 0.5, plateau.lr)
    assert plain({**described, "state": {**described["state"], "best": 0.0}})
    assert schedules.from_dict(described).to_dict() == described
