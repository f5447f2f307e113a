"""Schedules against torch's schedulers, step by step."""

import numpy as np
import pytest
import torch
from tolerances import SCHEDULE_TINY, SCHEDULE_TORCH, SCHEDULE_TORCH_RECURSIVE
from torch.optim import lr_scheduler

from fastopt.schedules import (
    Cosine,
    Cyclic,
    Exponential,
    Linear,
    MultiStep,
    OneCycle,
    Piecewise,
    Polynomial,
    Product,
    Sequence,
    StepDecay,
    WarmRestarts,
    Warmup,
)

STEPS = 450


def run_torch(make, lr, count=STEPS):
    """Learning rates and momenta of torch over so many steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.5)
    scheduler = make(optimizer)
    group, values = optimizer.param_groups[0], []
    for _ in range(count - 1):
        values.append((group["lr"], group["momentum"]))
        optimizer.step()
        scheduler.step()
    values.append((group["lr"], group["momentum"]))
    assert {type(lr) for lr, _ in values} <= {float, int}
    return np.array(values, np.float64).T


def chained(*makers):
    """Make torch's product."""
    return lambda o: lr_scheduler.ChainedScheduler([make(o) for make in makers])


def sequential(milestones, *makers):
    """Make torch's sequence."""
    return lambda o: lr_scheduler.SequentialLR(o, [make(o) for make in makers], milestones)


PARITY = {
    "linear": (Linear(0.01, 0.1, 300), lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 300)),
    "linear down": (Linear(0.1, 0.0, 449), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, 449)),
    "polynomial": (Polynomial(0.1, 430, 0.9), lambda o: lr_scheduler.PolynomialLR(o, 430, 0.9)),
    "polynomial 3": (Polynomial(0.1, 500, 3.0), lambda o: lr_scheduler.PolynomialLR(o, 500, 3.0)),
    "exponential": (Exponential(0.1, 0.97), lambda o: lr_scheduler.ExponentialLR(o, 0.97)),
    "exponential up": (Exponential(0.1, 1.03), lambda o: lr_scheduler.ExponentialLR(o, 1.03)),
    "step": (StepDecay(0.1, 30), lambda o: lr_scheduler.StepLR(o, 30)),
    "step 7": (StepDecay(0.1, 7, 0.9), lambda o: lr_scheduler.StepLR(o, 7, 0.9)),
    "multi-step": (MultiStep(0.1, [30, 200, 400]), lambda o: lr_scheduler.MultiStepLR(o, [30, 200, 400])),
    "multi-step twice": (
        MultiStep(0.1, [1, 30, 30, 200, 200, 200], 0.7),
        lambda o: lr_scheduler.MultiStepLR(o, [1, 30, 30, 200, 200, 200], 0.7),
    ),
    "constant": (Piecewise([0.1 / 3, 0.1], [40]), lambda o: lr_scheduler.ConstantLR(o, 1 / 3, 40)),
    "cosine": (Cosine(0.1, 449), lambda o: lr_scheduler.CosineAnnealingLR(o, 449)),
    "cosine to an end": (Cosine(0.1, 449, 0.003), lambda o: lr_scheduler.CosineAnnealingLR(o, 449, 0.003)),
    "cosine up": (Cosine(0.1, 449, 0.3), lambda o: lr_scheduler.CosineAnnealingLR(o, 449, 0.3)),
    "cosine periodic": (
        Cosine(0.1, 50, 0.003, periodic=True),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 50, 0.003),
    ),
    "chained": (
        Product([Linear(0.1 * 0.1, 0.1, 20), Exponential(1.0, 0.99), StepDecay(1.0, 100)]),
        chained(
            lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 20),
            lambda o: lr_scheduler.ExponentialLR(o, 0.99),
            lambda o: lr_scheduler.StepLR(o, 100),
        ),
    ),
    "sequential": (
        Sequence([Linear(0.01, 0.1, 20), Cosine(0.1, 200, 0.001), Exponential(0.1, 0.98)], [20, 150]),
        sequential(
            [20, 150],
            lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 20),
            lambda o: lr_scheduler.CosineAnnealingLR(o, 200, 0.001),
            lambda o: lr_scheduler.ExponentialLR(o, 0.98),
        ),
    ),
    "warm-up": (
        Warmup(StepDecay(0.1, 100), 20, 0.05),
        sequential(
            [20], lambda o: lr_scheduler.LinearLR(o, 0.05, 1.0, 20), lambda o: lr_scheduler.StepLR(o, 100)
        ),
    ),
}  # fmt: skip
EXACT_PARITY = {
    "restarts": (WarmRestarts(0.1, 50), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 50)),
    "restarts 1": (WarmRestarts(0.1, 7, 1, 0.01), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7, 1, 0.01)),
    "restarts 2": (WarmRestarts(0.1, 10, 2), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10, 2)),
    "restarts 3": (WarmRestarts(0.1, 5, 3, 1e-4), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5, 3, 1e-4)),
}
# with the options of both, and those of the momentum that torch has by default
CYCLES = [
    (OneCycle(0.1, STEPS), {}),
    (OneCycle(0.1, STEPS, anneal="linear"), {"anneal_strategy": "linear"}),
    (OneCycle(0.1, STEPS, 0.37), {"pct_start": 0.37}),
    (OneCycle(0.1, STEPS, 0.0), {"pct_start": 0.0}),
    (OneCycle(0.1, STEPS, 1.0), {"pct_start": 1.0}),
    (OneCycle(0.1, STEPS, div=3.0, final_div=7.0), {"div_factor": 3.0, "final_div_factor": 7.0}),
    (OneCycle(0.1, STEPS, 0.2, three_phase=True), {"pct_start": 0.2, "three_phase": True}),
    (OneCycle(0.1, STEPS, 0.5, three_phase=True), {"pct_start": 0.5, "three_phase": True}),
    (
        OneCycle(0.1, STEPS, 0.3, "linear", three_phase=True),
        {"pct_start": 0.3, "anneal_strategy": "linear", "three_phase": True},
    ),
    (Cyclic(0.01, 0.1, 25), {}),
    (Cyclic(0.0, 0.1, 13, 30), {}),
    (Cyclic(0.01, 0.1, 30, 7), {}),
    (Cyclic(0.1, 0.01, 30, 7), {}),
    (Cyclic(0.01, 0.1, 25, mode="triangular2"), {}),
    (Cyclic(0.001, 0.1, 13, 30, "triangular2"), {}),
    (Cyclic(0.01, 0.1, 25, mode="exp_range", gamma=0.99), {}),
    (Cyclic(0.0, 0.1, 30, 7, "exp_range", 0.995), {}),
]


def torch_cycle(schedule, options):
    """Make torch's scheduler of the same cycle."""
    if isinstance(schedule, OneCycle):
        return lambda o: lr_scheduler.OneCycleLR(o, schedule.peak, schedule.steps, **options)
    fields = {"step_size_up": schedule.up, "step_size_down": schedule.down, "mode": schedule.mode}
    return lambda o: lr_scheduler.CyclicLR(o, schedule.lr, schedule.peak, gamma=schedule.gamma, **fields, **options)


@pytest.mark.parametrize(("schedule", "make"), PARITY.values(), ids=PARITY)
def test_parity_with_recursive_schedulers(schedule, make):
    """Torch multiplies the rate of the step before."""
    rates, _ = run_torch(make, lr=0.1)
    np.testing.assert_allclose(schedule(range(STEPS)), rates, rtol=SCHEDULE_TORCH_RECURSIVE, atol=SCHEDULE_TINY)


@pytest.mark.parametrize(("schedule", "make"), EXACT_PARITY.values(), ids=EXACT_PARITY)
def test_parity_with_closed_forms(schedule, make):
    """Where torch computes the value of a step from the step."""
    rates, _ = run_torch(make, lr=0.1)
    np.testing.assert_allclose(schedule(range(STEPS)), rates, rtol=SCHEDULE_TORCH, atol=SCHEDULE_TINY)


@pytest.mark.parametrize("momenta", [None, (0.7, 0.97)])
@pytest.mark.parametrize(("schedule", "options"), CYCLES, ids=repr)
def test_parity_with_cycles(schedule, options, momenta):
    """Rates and momenta of OneCycleLR and CyclicLR, with torch's own momenta and with others."""
    given = {} if momenta is None else {"base_momentum": momenta[0], "max_momentum": momenta[1]}
    rates, torch_momenta = run_torch(torch_cycle(schedule, {**options, **given}), lr=0.1)
    np.testing.assert_allclose(schedule(range(STEPS)), rates, rtol=SCHEDULE_TORCH, atol=SCHEDULE_TINY)
    opposite = schedule.momentum(*momenta or ())
    np.testing.assert_allclose(opposite(range(STEPS)), torch_momenta, rtol=SCHEDULE_TORCH)
    rates_alone, constant = run_torch(torch_cycle(schedule, {**options, "cycle_momentum": False}), lr=0.1)
    assert rates_alone.tolist() == rates.tolist()
    assert set(constant) == {0.5}
    assert len(set(opposite(range(STEPS)))) > 5
