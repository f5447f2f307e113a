"""How time is taken: every contestant once per round, in shuffled order, and nothing but ratios within a round.

A shared machine drifts by a factor of two between minutes, so that only what ran side by side can be compared: a
speed-up is the median over the rounds of the ratio within each.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from statistics import fmean, median
from typing import TypeVar

import numpy as np

from .contenders import Step

RUN_SECONDS = 200e-6  # a timed run takes at least so long: the clock, and what came before, should not show
LONG_SECONDS = 10e-3
OTHER_WORK_NS = 1_000_000
WARM_UP = 3  # the first step compiles and allocates states, the second finds them for the first time

Taken = TypeVar("Taken")  # what a clock says of a step

Clock = Callable[[Step], float]  # times a step, in seconds
Mode = Callable[[Mapping[str, Step]], dict[str, Clock]]  # how contestants are timed


@dataclass(frozen=True)
class Pace:
    """How many rounds are run: as many as a budget allows, between two bounds."""

    seconds: float
    fewest: int
    most: int


@dataclass(frozen=True)
class Timing:
    """What one workload and rule took.

    Attributes
    ----------
    workload, rule : str
    bytes_moved : int
        Requested reads and writes of a step, by the rule's own count, without what a cache fetches in order to write.
    seconds : dict of str to sequence of float
        Per step, by contestant, one for each round.
    limit : sequence of float
        The same for the memory's limit.
    """

    workload: str
    rule: str
    bytes_moved: int
    seconds: Mapping[str, Sequence[float]]
    limit: Sequence[float]

    def typical(self, name: str) -> float:
        """Return a contestant's median time of a step, in seconds."""
        return median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """Return how many times as long the one takes as the other."""
        return median_ratio(self.seconds[slow], self.seconds[fast])

    def gbps(self, name: str) -> float:
        """Return how much a contestant moves, in 10^9 bytes per second."""
        return self.bytes_moved / self.typical(name) / 1e9

    def of_limit(self, name: str) -> float:
        """Return the fraction of the limit's bandwidth that a contestant reaches."""
        return median_ratio(self.limit, self.seconds[name])


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the ratios within each round."""
    return median(n / d for n, d in zip(numerators, denominators, strict=True))


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep the collector from running in between, and leave it as it was."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def timed(step: Step, count: int = 1) -> float:
    """Return the seconds that a step takes, as the mean over some in a row."""
    start = time.perf_counter_ns()
    for _ in repeat(None, count):
        step()
    return (time.perf_counter_ns() - start) / count / 1e9


def steps_per_run(step: Step, clock: Callable[[Step, int], float]) -> int:
    """Find how many steps in a row take long enough to be timed."""
    count = 1
    while (seconds := clock(step, count)) * count < RUN_SECONDS:
        count *= 2
    return max(1, round(RUN_SECONDS / seconds))


def one_by_one(contestants: Mapping[str, Step]) -> dict[str, Clock]:
    """Time single steps."""
    return dict.fromkeys(contestants, timed)


def back_to_back(contestants: Mapping[str, Step]) -> dict[str, Clock]:
    """Time steps in a row, with what they touch as warm as they leave it; small ones by the run."""
    return {name: functools.partial(timed, count=steps_per_run(step, timed)) for name, step in contestants.items()}


def each_after(prepare: Step) -> Mode:
    """Make a mode: steps in a row, small ones by the run, with something before each that is not timed.

    Parameters
    ----------
    prepare : callable
        What every contestant's step needs.
    """

    def prepared(step: Step) -> float:
        prepare()
        return timed(step)

    def clock(step: Step, count: int = 1) -> float:
        # The first step finds caches as another contestant left them, as in no training: an MLP's takes three times as
        # long as the next. A long one goes through more memory than they hold, and shows nothing of it.
        first = prepared(step)
        return first if first > LONG_SECONDS else fmean(prepared(step) for _ in range(count))

    def mode(contestants: Mapping[str, Step]) -> dict[str, Clock]:
        counts = {name: steps_per_run(step, clock) for name, step in contestants.items()}
        return {name: functools.partial(clock, count=count) for name, count in counts.items()}

    return mode


def after_other_work(contestants: Mapping[str, Step]) -> dict[str, Clock]:
    """Time single steps, each after a millisecond in which Python and NumPy did something else to other memory."""
    # A megabyte, as much as a small network's batch: it takes the place of the parameters in the nearest caches.
    memory = np.ones((16, 1 << 14), np.float32)

    def rested(step: Step) -> float:
        rows = itertools.cycle(memory)
        end = time.perf_counter_ns() + OTHER_WORK_NS
        while time.perf_counter_ns() < end:
            row = next(rows)
            np.negative(row, out=row)
        return timed(step)

    return dict.fromkeys(contestants, rested)


def measure(
    contestants: Mapping[str, Step],
    mode: Callable[[Mapping[str, Step]], Mapping[str, Callable[[Step], Taken]]],
    pace: Pace,
    seed: int = 0,
) -> dict[str, list[Taken]]:
    """Run every contestant once per round, in an order of its own for each round.

    Parameters
    ----------
    contestants : dict of str to callable
        Their first steps, which compile and allocate, are over.
    mode : callable
        `back_to_back`, `after_other_work`, `one_by_one`, or what `each_after` makes; on a GPU, what `queued` makes.
    pace : Pace
    seed : int
        Of the order; the global random state is left alone.

    Returns
    -------
    dict of str to list
        What the mode's clocks say, seconds per step as a rule, by contestant, one for each round.
    """
    shuffle = random.Random(seed).shuffle
    order = list(contestants)
    seconds: dict[str, list[Taken]] = {name: [] for name in contestants}
    with no_garbage_collection():
        clocks = mode(contestants)
        end = time.perf_counter() + pace.seconds
        for rounds in range(pace.most):
            if rounds >= pace.fewest and time.perf_counter() > end:
                break
            shuffle(order)
            for name in order:
                seconds[name].append(clocks[name](contestants[name]))
    return seconds


MODES = {"": back_to_back, ", after other work": after_other_work}  # what a workload's name is followed by
