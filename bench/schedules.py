"""Times schedules: a million steps at once, one step, and what a schedule adds to an optimizer's step."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any, TypedDict

import numpy as np

import fastopt
from fastopt.progress import track
from fastopt.schedules import (
    Constant,
    Cosine,
    Cyclic,
    Exponential,
    InverseSqrt,
    Linear,
    MultiStep,
    OneCycle,
    Piecewise,
    Polynomial,
    Product,
    Schedule,
    Sequence,
    StepDecay,
    WarmRestarts,
    Warmup,
    WarmupStableDecay,
)

from .cases import MOMENTUM
from .contenders import HAS_TORCH, Step
from .measure import Pace, back_to_back, settled
from .rounds import Figure, Rounds, reasons
from .workloads import WORKLOADS, Arrays

STEPS = 1_000_000
ONE = 123_456  # a step that is no schedule's boundary
SHARE = 0.25  # of an optimizer workload's time: there are many schedules, and they need fewer rounds

# One of each class, with parameters for a million steps, and in the mode that costs most.
EXAMPLES: dict[str, Schedule] = {
    type(schedule).__name__: schedule
    for schedule in (
        Constant(0.1),
        Linear(0.1, 1e-3, STEPS),
        Polynomial(0.01, STEPS, power=0.9, end=1e-4),
        Exponential.between(0.1, 1e-4, STEPS),
        StepDecay(0.1, every=300_000),
        MultiStep(0.1, (500_000, 750_000, 900_000)),
        Piecewise((0.01, 0.1, 0.01, 0.001), (10_000, 500_000, 750_000)),
        InverseSqrt(7e-4, warmup=4_000),
        Cosine(0.1, STEPS, end=1e-3),
        WarmRestarts(0.1, period=10_000, mult=2, end=1e-3),
        OneCycle(0.4, STEPS),
        Cyclic(1e-3, 6e-3, up=2_000, mode="exp_range", gamma=0.99999),
        WarmupStableDecay(6e-4, warmup=2_000, stable=798_000, decay=200_000, end=6e-5, shape="cosine"),
        Warmup(Cosine(6e-4, STEPS - 2_000, end=6e-5), steps=2_000),
        Sequence((Linear(0.0, 0.1, 5_000), Cosine(0.1, 595_000, end=0.01), Constant(0.01)), (5_000, 600_000)),
        StepDecay(0.1, every=30).per_epoch(10_000),
        Product((Cosine(1.0, STEPS), Exponential.between(0.1, 0.01, STEPS))),
    )
}


class Evaluation(TypedDict):
    """One schedule: seconds for a vector of steps, their ratio over `np.cos` of the same, and seconds for one step.

    An unstable figure is None, and `unstable` has the reason.
    """

    schedule: str
    seconds: float | None
    ratio: float | None
    call_seconds: float | None
    unstable: dict[str, str]


class Evaluations(TypedDict):
    """The times of schedules.

    Attributes
    ----------
    steps : int
        The length of a vector.
    rows : list
    added_seconds : float or None
        How much longer a bound momentum step of the smallest workload takes with `Cosine` than with a number.
    torch_seconds : float or None
        The time of a step of torch's own cosine, in addition to the optimizer's; None without torch.
    unstable : dict of str to str
        The reasons why either of these is unstable, and None.
    """

    steps: int
    rows: list[Evaluation]
    added_seconds: float | None
    torch_seconds: float | None
    unstable: dict[str, str]


def evaluation(name: str, pace: Pace) -> Evaluation:
    """Measure one of the examples."""
    schedule, steps = EXAMPLES[name], np.arange(STEPS)
    contestants: Mapping[str, Step] = {
        "cos": lambda: np.cos(steps),
        "vector": lambda: schedule(steps),
        "call": lambda: schedule(ONE),
    }
    rounds = warm(contestants, pace, "cos")
    seconds, ratio, call = rounds.seconds("vector"), rounds.ratio("vector", "cos"), rounds.seconds("call")
    return {
        "schedule": name,
        "seconds": seconds.value,
        "ratio": ratio.value,
        "call_seconds": call.value,
        "unstable": reasons(seconds=seconds, ratio=ratio, call_seconds=call),
    }


def warm(contestants: Mapping[str, Step], pace: Pace, reference: str) -> Rounds:
    """Measure back to back, after one step of each, which may compile."""
    for step in contestants.values():
        step()
    return settled(contestants, back_to_back, pace, (reference,))


def momentum_step(arrays: Arrays, lr: Any) -> Step:
    """Make fastopt's fast path with a given learning rate or schedule."""
    opt = fastopt.SGD(arrays.params, lr=lr, momentum=MOMENTUM)
    opt.bind(arrays.grads)
    return opt.step


def torch_step() -> Step:
    """Make a step of torch's scheduler for the same curve."""
    import torch

    opt = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    step: Step = torch.optim.lr_scheduler.CosineAnnealingLR(opt, STEPS).step
    opt.step()  # torch warns if the scheduler steps first
    return step


def evaluations(pace: Pace) -> Evaluations:
    """Measure all examples, and how much a schedule adds to the steps of a small network.

    Parameters
    ----------
    pace : Pace
        The pace of a workload; a schedule gets a share of its time.

    Returns
    -------
    dict
    """
    pace = pace.share(SHARE)
    rows = [evaluation(name, pace) for name in track(EXAMPLES, "Evaluating")]
    arrays = Arrays.draw(WORKLOADS["mlp"])
    contestants = {"number": momentum_step(arrays, 0.1), "schedule": momentum_step(arrays, Cosine(0.1, STEPS))}
    if HAS_TORCH:
        contestants["torch"] = torch_step()
    rounds = warm(contestants, pace, "number")
    added, torch = longer(rounds), rounds.seconds("torch") if HAS_TORCH else Figure(None)
    return {
        "steps": STEPS,
        "rows": rows,
        "added_seconds": added.value,
        "torch_seconds": torch.value,
        "unstable": reasons(added_seconds=added, torch_seconds=torch),
    }


def longer(rounds: Rounds) -> Figure:
    """Return how much a schedule adds to a step. It may be below 0, so the ratio of the two decides its stability."""
    why = rounds.ratio("schedule", "number").unstable
    differences = np.subtract(rounds.of("schedule"), rounds.of("number")).tolist()
    return Figure(None, why) if why else Figure(median(differences))
