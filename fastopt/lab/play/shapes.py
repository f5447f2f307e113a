"""The schedules of a marble's rate and momentum: each made from a value, the run's steps and a few numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...schedules import (
    Constant,
    Cosine,
    Cyclic,
    Exponential,
    InverseSqrt,
    Linear,
    OneCycle,
    Polynomial,
    Schedule,
    Sequence,
    StepDecay,
    WarmRestarts,
    Warmup,
    WarmupStableDecay,
)
from .fields import Field

# Their own numbers; each is a field of its name, with the prefix lr_ or momentum_.
NUMBERS = {
    "end": Field("end, as a share", 0.0, 0.0, 1e6, reach=(0.0, 2.0), help="The last value as a share of the first."),
    "fall": Field("end, as a share", 0.01, 1e-12, 1.0, "logarithmic", (1e-4, 1.0), help="The last value's share."),
    "power": Field("power", 2.0, 0.01, 100.0, "logarithmic", (0.1, 10.0), help="1 is a straight line."),
    "every": Field("steps of a stair", 100, 1, 2**20, "logarithmic", (1, 1000), whole=True),
    "gamma": Field("factor of a stair", 0.3, 0.0, 100.0, reach=(0.0, 1.0)),
    "dips": Field("dips", 1, 1, 100, reach=(1, 10), whole=True, help="How many times the cosine falls."),
    "period": Field("first period", 100, 1, 2**20, "logarithmic", (1, 1000), whole=True),
    "mult": Field("growth of a period", 1, 1, 100, reach=(1, 5), whole=True),
    "rise": Field("share of the rise", 0.3, 0.0, 1.0, reach=(0.0, 1.0)),
    "div": Field("peak / first value", 25.0, 1e-3, 1e9, "logarithmic", (1.0, 1000.0)),
    "low": Field("lowest, as a share", 0.9, 1e-6, 1.0, reach=(0.5, 1.0)),
    "up": Field("steps up", 50, 1, 2**20, "logarithmic", (1, 1000), whole=True),
    "warmup": Field("steps of the warm-up", 50, 1, 2**20, "logarithmic", (1, 1000), whole=True),
    "decay": Field("steps of the decay", 100, 1, 2**20, "logarithmic", (1, 1000), whole=True),
    "peak": Field("peak, times the rate", 20.0, 0.0, 1e6, "logarithmic", (1.0, 100.0)),
    "waves": Field("reheatings", 2, 1, 100, reach=(1, 6), whole=True),
}


@dataclass(frozen=True)
class Shape:
    """A schedule: its name on the page, its own numbers, and how it is made: ``make(value, steps, *numbers)``."""

    title: str
    numbers: tuple[str, ...]
    make: Callable[..., Schedule]


def reheating(value: float, steps: int, peak: float, waves: int) -> Schedule:
    """Return a constant for a quarter of the steps, then waves from a peak down to 0, as in `landscape`."""
    quarter = steps // 4
    if quarter == 0:
        return Constant(value)
    return Sequence([Constant(value), Cosine(peak * value, steps - quarter, dips=waves)], [quarter])


def stable(value: float, steps: int, warmup: int, decay: int) -> Schedule:
    """Return a warm-up, a constant, and a decay at the end of the run."""
    return WarmupStableDecay(value, warmup, max(0, steps - warmup - decay), decay)


SHAPES = {
    "constant": Shape("constant", (), lambda value, steps: Constant(value)),
    "linear": Shape("linear", ("end",), lambda value, steps, end: Linear(value, end * value, steps)),
    "polynomial": Shape(
        "polynomial", ("power", "end"), lambda value, steps, power, end: Polynomial(value, steps, power, end * value)
    ),
    "exponential": Shape(
        "exponential", ("fall",), lambda value, steps, fall: Exponential(value, fall, steps)
    ),
    "stairs": Shape("stairs", ("every", "gamma"), lambda value, steps, every, gamma: StepDecay(value, every, gamma)),
    "cosine": Shape(
        "cosine", ("dips", "end"), lambda value, steps, dips, end: Cosine(value, steps, end * value, dips)
    ),
    "restarts": Shape(
        "warm restarts", ("period", "mult", "end"),
        lambda value, steps, period, mult, end: WarmRestarts(value, period, mult, end * value),
    ),
    "one-cycle": Shape(
        "one cycle", ("rise", "div"), lambda value, steps, rise, div: OneCycle(value, steps, rise, div=div)
    ),
    "counter-cycle": Shape(
        "one cycle's opposite", ("rise", "low"),
        lambda value, steps, rise, low: OneCycle(1.0, steps, rise).momentum(low * value, value),
    ),
    "cyclic": Shape("triangles", ("up", "end"), lambda value, steps, up, end: Cyclic(end * value, value, up)),
    "inverse-root": Shape("inverse root", ("warmup",), lambda value, steps, warmup: InverseSqrt(value, warmup)),
    "warmup": Shape(
        "warm-up, then a cosine", ("warmup",),
        lambda value, steps, warmup: Warmup(Cosine(value, max(1, steps - warmup)), warmup),
    ),
    "stable": Shape("warm-up, stable, decay", ("warmup", "decay"), stable),
    "reheating": Shape("reheating", ("peak", "waves"), reheating),
}  # fmt: skip
