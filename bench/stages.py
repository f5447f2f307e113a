"""Times what a step does beside the update, clipping gradients by their norm and averaging parameters.

Each is timed within fastopt's step, and as a pass of its own before or after a step of NumPy or torch. This file has
clipping in NumPy; `torch_stages` has clipping and averages in torch, and `trainer` the iterations of a trainer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

import fastopt
from fastopt.progress import track

from .contenders import FASTOPT, FASTOPT_TORCH, NUMPY, Step, numpy_step, optimizer
from .measure import WARM_UP, Pace, back_to_back, settled
from .rounds import Comparison, Rounds, comparisons
from .workloads import Array, Arrays, Workload, like

SHARE = 0.5  # of an optimizer workload's time: there is one mode, not two
MAX_NORM = 1.0  # less than that of the workloads' gradients, so that all are clipped
DECAY = 0.999  # of averages

CLIPPING, AVERAGING = "clipping", "averaging"
TORCH = "torch-fused"
SUBJECTS = {NUMPY: FASTOPT, TORCH: FASTOPT_TORCH}  # by what they are compared with, which has passes of its own
IN_PLACE, COPIED = "numpy-in-place", "numpy-copied"
CALLED = "opt.clip_grad_norm_"  # of fastopt.torch, before its step: what trainers call

NUMPY_WORKLOADS = ("mlp", "resnet50")
NUMPY_RULES = ("momentum", "adam")


class Stage(Comparison):
    """One contender's step that clips or averages; the subject is fastopt's own."""

    stage: str
    against: str
    workload: str
    rule: str


def clipping(arrays: Arrays, rule: str) -> dict[str, Step]:
    """Make steps that clip: fastopt's, and what a careful NumPy user writes, in both ways to do it."""
    opt = optimizer(fastopt, arrays.params, rule, max_grad_norm=MAX_NORM)
    opt.bind(arrays.grads)
    own, copies = ([like(grad) for grad in arrays.grads] for _ in range(2))
    return {
        FASTOPT: opt.step,
        IN_PLACE: clipped(own, own, numpy_step(Arrays(arrays.params, own), rule)),
        COPIED: clipped(arrays.grads, copies, numpy_step(Arrays(arrays.params, copies), rule)),
    }


def clipped(grads: Sequence[Array], into: Sequence[Array], update: Step) -> Step:
    """Make a step that multiplies gradients by the factor that clips them, also where that is 1, and updates.

    Gradients that are clipped in place have about the largest norm from then on; training makes new ones, which are
    clipped again.
    """
    flat = [grad.reshape(-1) for grad in grads]

    def step() -> None:
        norm = math.sqrt(sum(float(np.dot(grad, grad)) for grad in flat))
        factor = np.float32(min(1.0, MAX_NORM / (norm + 1e-6)))
        for grad, out in zip(grads, into, strict=True):
            np.multiply(grad, factor, out=out)
        update()

    return step


def in_numpy(workloads: Sequence[Workload], pace: Pace) -> list[Stage]:
    """Measure clipping in NumPy."""
    pace = pace.share(SHARE)
    found = []
    for workload in track([one for one in workloads if one.name in NUMPY_WORKLOADS], "Clipping"):
        arrays = Arrays.draw(workload)
        for rule in NUMPY_RULES:
            contestants = clipping(arrays, rule)
            for _ in range(WARM_UP):
                for step in contestants.values():
                    step()
            rounds = settled(contestants, back_to_back, pace, (FASTOPT,))
            found += rows(CLIPPING, NUMPY, workload.name, rule, rounds)
    return found


def rows(stage: str, against: str, workload: str, rule: str, rounds: Rounds) -> list[Stage]:
    """Make a row for each contestant, with its ratio over fastopt's."""
    return [
        {"stage": stage, "against": against, "workload": workload, "rule": rule, **one}
        for one in comparisons(rounds, SUBJECTS[against])
    ]
