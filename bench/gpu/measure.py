"""How time is measured on a GPU: rounds as on the CPU, of steps that the host enqueues without waiting.

A step has two costs: the GPU's time, between two events around steps that were all enqueued before the first one began,
and the host's time to enqueue them. The slower side determines the speed of a training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from fastopt.rules import RULES as REGISTRY

from ..contenders import RULES, Step
from ..measure import LIMIT, WARM_UP, Pace, Timing
from ..rounds import Rounds
from ..workloads import Arrays, Workload
from .contenders import Contender, Say, left_out, make
from .device import Cost, Device

ITEMSIZE = 4
SHARE_OF_MEMORY = 0.8

LONG_SECONDS = 20e-3  # a run need not take longer

COPY = "copy"
GRAPH = ", graph"  # the suffix of a contestant in a graph


class Both(NamedTuple):
    """The times of one workload and rule: the GPU's, with a copy as the limit, and the host's."""

    gpu: Timing
    host: Timing


class Budget:
    """The time that is left, in equal shares for the remaining parts.

    Parameters
    ----------
    seconds : float
        From now on, for everything: checks, compilation, and all parts.
    fewest, most : int
        How many rounds a part has.
    clock : callable, optional
    """

    def __init__(self, seconds: float, fewest: int, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.end = clock, clock() + seconds
        self.fewest, self.most = fewest, most

    def pace(self, parts: int) -> Pace:
        """Return the pace of the next part, of `parts` that are left."""
        return Pace(max(0.0, self.end - self.clock()) / parts, self.fewest, self.most)


def needed(elements: int, contestants: int) -> int:
    """Return the most bytes that a workload needs.

    Parameters, gradients, the separate ones of the two contestants that overwrite them, a scratch, three temporaries,
    the states of each contestant, and source and target of a copy.
    """
    states = max(len(REGISTRY[rule].states) for rule in RULES) * contestants
    copied = max(REGISTRY[rule].bytes_moved(ITEMSIZE) for rule in RULES)
    return elements * (ITEMSIZE * (8 + states) + copied)


def fits(device: Device, workload: Workload, contestants: int, say: Say) -> bool:
    """Return whether the device's memory is large enough for a workload; if it is not, print a message."""
    available = SHARE_OF_MEMORY * device.free_memory()
    bytes_needed = needed(workload.elements, contestants)
    if bytes_needed <= available:
        return True
    say(
        f"{workload.name} is left out: it needs {bytes_needed / 1e9:.1f} GB of the GPU's memory, "
        f"and {SHARE_OF_MEMORY:.0%} of what is free there are {available / 1e9:.1f} GB"
    )
    return False


def queued(device: Device, counts: Mapping[str, int]) -> Callable[[Mapping[str, Step]], dict[str, Any]]:
    """Make a mode of `measure`: some steps in a row, all enqueued before the GPU begins.

    Long steps are fewer than `counts` says. A contestant whose count is 0 takes one step, and the GPU does not wait
    first: the host is slower anyway.
    """

    def clock(name: str, step: Step) -> Callable[[Step], Cost]:
        first = device.cost(step, max(1, counts[name]), 0.0)
        count = max(1, min(counts[name], int(LONG_SECONDS / first.gpu)))
        return partial(device.cost, count=count, hold=1.5 * first.host * count + 50e-6 if counts[name] else 0.0)

    return lambda contestants: {name: clock(name, step) for name, step in contestants.items()}


def started(
    device: Device, contenders: Mapping[str, Contender], rule: str, arrays: Arrays, say: Say
) -> dict[str, Step]:
    """Make contestants and take their first steps."""
    found = {}
    for name, contender in contenders.items():
        with left_out(name, rule, say):
            step = make(contender, name, rule, arrays, device.cupy)
            for _ in range(WARM_UP):
                step()
            device.synchronize()
            found[name] = step
    return found


def timed(workload: Workload, rule: str, bytes_moved: int, costs: Sequence[Mapping[str, Cost]]) -> Both:
    """Split the costs of all rounds into the GPU's and the host's; the copy is the limit of the others."""
    sides = []
    for side in Cost._fields:
        rounds = [
            {LIMIT if name == COPY else name: getattr(cost, side) for name, cost in round_.items()} for round_ in costs
        ]
        sides.append(Timing(workload.name, rule, bytes_moved, Rounds(rounds)))
    return Both(*sides)
