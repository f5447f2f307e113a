"""Times whole training iterations of a small network in torch: torch's step, fastopt's, and one during backward."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from statistics import median
from typing import TypedDict

import torch
from torch import nn

import fastopt.torch
from fastopt.progress import track

from .contenders import FASTOPT_TORCH, IN_BACKWARD, OPTIMIZERS, RULES, Step, optimizer
from .iteration import BATCH, Batches, Training, digits, timed_trainings
from .measure import Pace
from .rounds import Figure, median_of, reasons
from .tensors import CONTENDERS

SIZES = (64, 32, 10)  # as in the lab's network
TORCH = ("torch-default", "torch-fused")
IMPLEMENTATIONS = (*TORCH, FASTOPT_TORCH, IN_BACKWARD)


class TorchTraining(TypedDict):
    """One implementation's iteration: median seconds; `gain` is how many times as long torch's fastest takes.

    The share is the step's, a fraction; it is None if the step is part of backward. An unstable figure is None, and
    `unstable` has the reason.
    """

    rule: str
    implementation: str
    seconds: float | None
    share: float | None
    gain: float | None
    unstable: dict[str, str]


class TorchIterations(TypedDict):
    """What was trained, and the times of its iterations."""

    parameters: int
    batch: int
    rows: list[TorchTraining]


def new_network() -> nn.Sequential:
    """Return the network, always with the same initial weights; the global random state is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(SIZES[0], SIZES[1]), nn.ReLU(), nn.Linear(SIZES[1], SIZES[2]))


def updates(model: nn.Module, implementation: str, rule: str) -> tuple[Step, Step]:
    """Make a model's update: a function that zeroes the gradients before backward, and one that takes the step."""
    if implementation == IN_BACKWARD:
        name, options = OPTIMIZERS[rule]
        fastopt.torch.step_in_backward(model, getattr(fastopt.torch, name), **options)
        return nothing, nothing
    library, mode = CONTENDERS[implementation]
    opt = optimizer(library, model.parameters(), rule, **mode)
    return opt.zero_grad, opt.step


def nothing() -> None:
    """Do nothing: backward has taken the step and freed the gradients."""


def training(batches: Batches, implementation: str, rule: str, model: nn.Module) -> Training:
    """Make a plain training of a model."""
    loss: Callable[..., torch.Tensor] = nn.functional.cross_entropy
    turns = itertools.cycle([(torch.from_numpy(x), torch.from_numpy(y)) for x, y in batches])
    zero, step = updates(model, implementation, rule)

    def gradients() -> None:
        x, y = next(turns)
        zero()
        loss(model(x), y).backward()  # type: ignore[no-untyped-call]

    return Training(gradients, step)


def trained(batches: Batches, rule: str, pace: Pace) -> list[TorchTraining]:
    """Measure the iterations of one rule."""
    trainings = {name: training(batches, name, rule, new_network()) for name in IMPLEMENTATIONS}
    rounds = timed_trainings(trainings, pace, FASTOPT_TORCH)
    fastest = min(TORCH, key=lambda name: median(rounds.of(name)))
    rows: list[TorchTraining] = []
    for name in IMPLEMENTATIONS:
        seconds, gain = rounds.seconds(name), rounds.ratio(fastest, name)
        share = Figure(None) if name == IN_BACKWARD else median_of(trainings[name].shares)
        rows.append(
            {
                "rule": rule,
                "implementation": name,
                "seconds": seconds.value,
                "share": share.value,
                "gain": gain.value,
                "unstable": reasons(seconds=seconds, share=share, gain=gain),
            }
        )
    return rows


def iterations(pace: Pace) -> TorchIterations:
    """Measure the iterations of all rules."""
    batches = digits()
    parameters = sum(param.numel() for param in new_network().parameters())
    rows = [row for rule in track(RULES, "Training in torch") for row in trained(batches, rule, pace)]
    return {"parameters": parameters, "batch": BATCH, "rows": rows}
