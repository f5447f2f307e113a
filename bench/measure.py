"""How time is measured: every contestant once per round, in shuffled order, compared only within a round.

A shared machine drifts by a factor of two between minutes, so only runs side by side can be compared: a speed-up is the
median over the rounds of the ratio within each. If rounds disagree, more are run, see `rounds`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from statistics import fmean
from typing import TypeVar

import numpy as np

from . import quiet
from .contenders import Step
from .rounds import Figure, Rounds

RUN_SECONDS = 200e-6  # a timed run takes at least this long, so that the clock's cost does not show
LONG_SECONDS = 10e-3
OTHER_WORK_NS = 1_000_000
RESTS = 8  # steps after other work, for one measured time
WARM_UP = 3  # the first step compiles and allocates states, the second is the first to find them
AGAIN = 3  # how often rounds that disagree are measured again, at most
LIMIT = "limit"  # the contestant that only moves memory

Taken = TypeVar("Taken")  # what a clock returns for a step

Clock = Callable[[Step], float]  # times a step, in seconds
Mode = Callable[[Mapping[str, Step]], dict[str, Clock]]  # how contestants are timed


@dataclass(frozen=True)
class Pace:
    """How many rounds are run: as many as a budget allows, between two bounds."""

    seconds: float
    fewest: int
    most: int

    def share(self, of: float) -> Pace:
        """Return the same pace with a share of the seconds."""
        return replace(self, seconds=of * self.seconds)


@dataclass(frozen=True)
class Timing:
    """The times of one workload and rule.

    Attributes
    ----------
    workload, rule : str
    bytes_moved : int
        Bytes that a step reads and writes by the rule's own count, without lines that a cache fetches before a write.
    rounds : Rounds
        Seconds of a step, by contestant; the memory's limit is one of them.
    """

    workload: str
    rule: str
    bytes_moved: int
    rounds: Rounds

    @property
    def names(self) -> list[str]:
        """Name the contestants that update."""
        return [name for name in self.rounds.names if name != LIMIT]

    def gbps(self, name: str) -> Figure:
        """Return how much a contestant moves, in 10^9 bytes per second."""
        return self.rounds.seconds(name).map(lambda seconds: self.bytes_moved / seconds / 1e9)

    def of_limit(self, name: str) -> Figure:
        """Return the fraction of the limit's bandwidth that a contestant reaches."""
        return self.rounds.ratio(LIMIT, name)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Turn the garbage collector off, and leave it as it was."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def timed(step: Step, count: int = 1) -> float:
    """Return the seconds of a step, as the mean over `count` steps in a row."""
    start = time.perf_counter_ns()
    for _ in repeat(None, count):
        step()
    return (time.perf_counter_ns() - start) / count / 1e9


def steps_per_run(step: Step, clock: Callable[[Step, int], float]) -> int:
    """Return how many steps in a row take long enough to be timed."""
    count = 1
    while (seconds := clock(step, count)) * count < RUN_SECONDS:
        count *= 2
    return max(1, round(RUN_SECONDS / seconds))


def one_by_one(contestants: Mapping[str, Step]) -> dict[str, Clock]:
    """Time single steps."""
    return dict.fromkeys(contestants, timed)


def back_to_back(contestants: Mapping[str, Step]) -> dict[str, Clock]:
    """Time steps in a row, with caches as the last step left them; short ones many at a time."""
    return {name: functools.partial(timed, count=steps_per_run(step, timed)) for name, step in contestants.items()}


def each_after(prepare: Step) -> Mode:
    """Make a mode: steps in a row, short ones many at a time, with untimed preparation before each.

    Parameters
    ----------
    prepare : callable
        Prepares every contestant's step.
    """

    def prepared(step: Step) -> float:
        prepare()
        return timed(step)

    def clock(step: Step, count: int = 1) -> float:
        # The first step finds caches as another contestant left them, which does not happen in training: an MLP's takes
        # three times as long as the next. A long step uses more memory than caches hold, so it makes no difference.
        first = prepared(step)
        return first if first > LONG_SECONDS else fmean(prepared(step) for _ in range(count))

    def mode(contestants: Mapping[str, Step]) -> dict[str, Clock]:
        counts = {name: steps_per_run(step, clock) for name, step in contestants.items()}
        return {name: functools.partial(clock, count=count) for name, count in counts.items()}

    return mode


def after_other_work(contestants: Mapping[str, Step]) -> dict[str, Clock]:
    """Time steps that each follow a millisecond of other work, by Python and NumPy, on other memory.

    A single step of a few microseconds scatters by half, so a time is the mean of the middle half of eight.
    """
    # A megabyte, as much as a small network's batch: it evicts the parameters from the nearest caches.
    memory = np.ones((16, 1 << 14), np.float32)

    def rested(step: Step) -> float:
        rows = itertools.cycle(memory)
        end = time.perf_counter_ns() + OTHER_WORK_NS
        while time.perf_counter_ns() < end:
            row = next(rows)
            np.negative(row, out=row)
        return timed(step)

    def clock(step: Step) -> float:
        return fmean(sorted(rested(step) for _ in range(RESTS))[RESTS // 4 : -(RESTS // 4)])

    return dict.fromkeys(contestants, clock)


def measure(
    contestants: Mapping[str, Step],
    mode: Callable[[Mapping[str, Step]], Mapping[str, Callable[[Step], Taken]]],
    pace: Pace,
    seed: int = 0,
) -> list[dict[str, Taken]]:
    """Run every contestant once per round, in a new order each round.

    Parameters
    ----------
    contestants : dict of str to callable
        They have taken their first steps, which compile and allocate.
    mode : callable
        `back_to_back`, `after_other_work`, `one_by_one`, or what `each_after` makes; on a GPU, what `queued` makes.
    pace : Pace
    seed : int
        The seed of the order; the global random state is not changed.

    Returns
    -------
    list of dict of str to object
        For each round, what the mode's clocks return by contestant, usually seconds per step.
    """
    shuffle = random.Random(seed).shuffle
    order = list(contestants)
    found: list[dict[str, Taken]] = []
    with no_garbage_collection():
        clocks = mode(contestants)
        end = time.perf_counter() + pace.seconds
        for rounds in range(pace.most):
            if rounds >= pace.fewest and time.perf_counter() > end:
                break
            shuffle(order)
            taken = {name: clocks[name](contestants[name]) for name in order}
            found.append({name: taken[name] for name in contestants})
    return found


def settled(contestants: Mapping[str, Step], mode: Mode, pace: Pace, references: Sequence[str]) -> Rounds:
    """Measure; while rounds disagree, measure the contestants concerned again, with the references.

    Parameters
    ----------
    contestants, mode, pace
        As for `measure`.
    references : sequence of str
        Contestants over which ratios are taken.

    Returns
    -------
    Rounds
        All rounds but those that other programs disturbed. After three repetitions, what is still unstable has no
        figure; nothing has one if all rounds were disturbed.
    """
    some, found, disturbed = contestants, list[dict[str, float]](), ""
    for again in range(1 + AGAIN):
        others = quiet.Others()
        new = measure(some, mode, pace, seed=again)
        if disturbed := others.disturbed():
            continue
        found += new
        unstable = Rounds(found).unstable(references)
        if not unstable:
            break
        some = {name: step for name, step in contestants.items() if name in unstable or name in references}
    return Rounds(found) if found else Rounds(new, disturbed)


MODES = {"": back_to_back, ", after other work": after_other_work}  # by the suffix of a workload's name
