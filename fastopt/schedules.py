r"""Learning-rate schedules as values: functions of the step that can be called, compared, printed, saved and combined.

>>> from fastopt.schedules import Cosine, Warmup
>>> schedule = Warmup(Cosine(0.1, steps=9_000), steps=1_000)
>>> schedule(500), schedule(10_000)
(0.05, 0.0)
>>> (0.5 * schedule)([0, 500, 1_000])
array([0.   , 0.025, 0.05 ])

A schedule can be an optimizer's ``lr``, ``momentum``, ``weight_decay`` or one of its ``betas``. Its argument is the
number of completed *steps* of the group, from 0; with ``schedule.per_epoch(steps_per_epoch)`` it is the epoch. Each
schedule is a closed form, without memory and without drift: step 10**12 costs as much as step 0. Only `Plateau` has a
memory; it depends on a metric. An optimizer also takes any other function of the step.

Each class has its formula in the docstring. The arithmetic is in ``kernels/schedules.py``, compiled by Numba, and in
``kernels/schedules.h``; both read the numbers that `Schedule.record` returns.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, TypeAlias, TypeVar, get_type_hints, overload

import numpy as np
import numpy.typing as npt

from .checks import SMALLEST, Choice, Count, Flag, Number, Several, nested_too_deeply
from .closed_form import ClosedForm
from .extras import require
from .kernels import lazy, tables
from .kernels.tables import STEP_LIMIT
from .plateau import Plateau

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch.optim import Optimizer as TorchOptimizer
    from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "STEP_LIMIT", "Constant", "Cosine", "Cyclic", "Exponential", "InverseSqrt", "Linear", "MultiStep", "OneCycle",
    "PerEpoch", "Piecewise", "Plateau", "Polynomial", "Product", "Schedule", "Sequence", "StepDecay", "WarmRestarts",
    "Warmup", "WarmupStableDecay", "from_dict",
]  # fmt: skip

POINTS = 2000  # of a plotted curve
DEEPEST = 50  # levels of schedules within schedules; repr, to_dict and == are recursive

Array: TypeAlias = npt.NDArray[np.float64]
AnySchedule = TypeVar("AnySchedule", bound="Schedule")


class Part:
    """A schedule that another one is made of; a number stands for a constant."""

    def check(self, name: str, value: Any) -> Schedule:
        """Return the schedule, or raise an error that says why it cannot be a part."""
        if isinstance(value, Schedule):
            if value._depth >= DEEPEST:
                raise ValueError(f"{name} is {DEEPEST} schedules deep, and can be part of no other")
            return value
        if isinstance(value, Plateau):
            raise TypeError(f"{name} is a Plateau, which has a memory and no closed form: it cannot be combined")
        if callable(value):
            raise TypeError(f"{name} is a bare callable, {value!r:.80}, which has no record: it cannot be combined")
        return Constant(Number("rate").check(name, value))


Rate = Annotated[float, Number("rate")]
Factor = Annotated[float, Number("factor")]
Positive = Annotated[float, Number("value", minimum=SMALLEST)]
Steps = Annotated[int, Count(1, STEP_LIMIT)]
Stretch = Annotated[int, Count(0, STEP_LIMIT)]
Milestones = Annotated[Items[int], Several(Count(1, STEP_LIMIT))]
# Named too, so that `help` shows "Share" instead of the whole annotation.
Rates = Annotated[Items[float], Several(Number("rate"))]
Share = Annotated[float, Number("share", maximum=1.0)]
Decay = Annotated[float, Number("factor", minimum=SMALLEST, maximum=1.0)]
Switch = Annotated[bool, Flag()]
Anneal = Annotated[str, Choice(("linear", "cos"))]
Mode = Annotated[str, Choice(tables.MODES)]
Shape = Annotated[str, Choice(tables.SHAPES)]
Inner = Annotated["Schedule", Part()]
Parts = Annotated[Items["Schedule"], Several(Part())]


class Schedule(ClosedForm):
    """The base class of all closed-form schedules. Use one of its subclasses."""

    kind: ClassVar[str] = ""  # the name of its formula in the kernels
    _record: Array
    _depth = 1  # levels, its parts included

    def __new__(cls, *fields: Any, **more: Any) -> Schedule:
        """Refuse to make an instance of the base class."""
        if cls is Schedule:
            raise TypeError("Schedule is what all schedules share: use one of its classes, as Cosine")
        return super().__new__(cls)

    @classmethod
    @functools.cache
    def _checks(cls) -> dict[str, Any]:
        """Return the checks that the fields' types are annotated with, in the order of the fields."""
        hints = get_type_hints(cls, include_extras=True)
        return {field.name: hints[field.name].__metadata__[0] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        """Check every field by the check that its type is annotated with."""
        for name, check in self._checks().items():
            object.__setattr__(self, name, check.check(name, getattr(self, name)))
        self._check_together()
        given = (getattr(self, name) for name in self._checks())
        parts = [part for value in given for part in (value if isinstance(value, tuple) else (value,))]
        depth = 1 + max((part._depth for part in parts if isinstance(part, Schedule)), default=0)
        object.__setattr__(self, "_depth", depth)
        terms = [*itertools.chain(*self._terms())]
        object.__setattr__(self, "_record", np.array([1 + len(terms), *terms], np.float64))

    def _check_together(self) -> None:
        """Check conditions on several fields; subclasses override it."""

    @overload
    def __call__(self, t: int) -> float: ...

    @overload
    def __call__(self, t: npt.NDArray[Any] | Items[int]) -> Array: ...

    def __call__(self, t: Any) -> Any:
        """Return the value at a step, or at each of an array of steps; the two agree to the bit.

        Parameters
        ----------
        t : int, or array of ints of any shape
            Steps, from 0 and below 2**51.

        Returns
        -------
        float, or ndarray of float64 in the shape of t

        Raises
        ------
        TypeError
            If a step is not of an integer type.
        ValueError
            If a step is negative, or 2**51 or more.
        """
        if type(t) is int and 0 <= t < STEP_LIMIT:
            value: float = lazy.evaluators()[0](self._record, float(t))
            return value
        if not isinstance(t, np.ndarray) and np.ndim(t) == 0:
            return self(Count(0, STEP_LIMIT).check("the step", t))
        steps = np.asarray(t)
        if steps.dtype.kind not in "iu" and not isinstance(t, np.ndarray):
            given = np.asarray(t, object)  # ints that fit no common type must not become floats
            checked = [Count(0, STEP_LIMIT).check("a step", step) for step in given.flat]
            steps = np.array(checked, np.int64).reshape(given.shape)
        return self._values(steps)

    def _values(self, steps: npt.NDArray[Any]) -> Array:
        if not steps.size:
            return np.empty(steps.shape)  # an empty list has no meaningful dtype to check
        if steps.dtype.kind not in "iu":
            raise TypeError(f"steps must be ints, not {steps.dtype}")
        values = np.empty(steps.shape)
        flat = np.require(steps, np.int64, ["C", "A", "W"]).reshape(-1)  # the evaluator is compiled for these
        if not lazy.evaluators()[1](self._record, flat, values.reshape(-1)):
            raise ValueError(f"steps must be 0 or more, and below 2**51, not {steps.min()} to {steps.max()}")
        return values

    def record(self) -> Array:
        """Return the schedule as a flat array of numbers, for ``fastopt.kernels.cpu.schedule(record, t)``.

        You can call that function in your own Numba loop, and its twin in ``rules.h`` from C++ and CUDA.

        Returns
        -------
        ndarray of float64, shape (n,)
            A new array at each call. Its layout is private to the kernels: to save a schedule, use `to_dict`.
        """
        return self._record.copy()

    def _terms(self) -> list[list[float]]:
        """Return terms whose product is the value; see ``kernels/schedules.py``."""
        return [self._term(self._numbers())]

    def _term(self, numbers: Items[float], part: Items[float] = ()) -> list[float]:
        return [tables.KINDS.index(self.kind), 2 + len(numbers) + len(part), *numbers, *part]

    def _numbers(self) -> list[float]:
        numbers: list[float] = []
        for name, check in self._checks().items():
            value = getattr(self, name)
            if isinstance(value, tuple):
                numbers += [len(value), *value]
            else:
                numbers.append(check.words.index(value) if isinstance(value, str) else value)
        return numbers

    def _span(self) -> int:
        """Return how many steps a plot needs to show the whole schedule; some number, if it is constant."""
        return 100

    def maximum(self) -> float:
        """Return the highest value, over all steps; of a long schedule over 65,536 steps, denser at the beginning."""
        last = min(self._span(), STEP_LIMIT - 1)
        if last < 2**16:
            return float(np.max(self(np.arange(last + 1))))
        spread = np.linspace(0, last, 2**15), np.geomspace(1, last, 2**15)
        return float(np.max(self(np.concatenate(spread).astype(np.int64))))

    def per_epoch(self, steps_per_epoch: int) -> PerEpoch:
        """Return this schedule as a function of the epoch, constant within each: ``self(t // steps_per_epoch)``."""
        return PerEpoch(self, steps_per_epoch)

    def __mul__(self, other: Any) -> Product:
        """Multiply by a number or another schedule."""
        if isinstance(other, Schedule):
            return Product((self, other))
        return Product((self, Constant(other))) if _is_number(other) else NotImplemented

    def __rmul__(self, other: Any) -> Product:
        """Multiply by a number."""
        return Product((Constant(other), self)) if _is_number(other) else NotImplemented

    __array_ufunc__ = None  # so that a NumPy number calls __rmul__

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule as plain Python, fit for JSON: ``{"name": "Linear", "lr": 0.1, ...}``.

        Raises
        ------
        TypeError
            If its class is not one of fastopt's, so that `from_dict` could not make it.
        """
        if SCHEDULES.get(type(self).__name__) is not type(self):
            raise TypeError(f"{type(self).__name__} is not one of fastopt's schedules, so it cannot be described")
        fields = {name: _plain(getattr(self, name)) for name in self._checks()}
        return {"name": type(self).__name__, **fields}

    @classmethod
    def from_dict(cls: type[AnySchedule], plain: Mapping[str, Any]) -> AnySchedule:
        """Return the schedule that a `to_dict` describes; ``Schedule.from_dict`` accepts every class.

        Raises
        ------
        TypeError, ValueError
            If the dict does not describe a schedule of this class.
        """
        schedule = from_dict(plain)
        if not isinstance(schedule, cls):
            raise ValueError(f"this describes a {type(schedule).__name__}, not a {cls.__name__}")
        return schedule

    @staticmethod
    def _described(plain: Mapping[str, Any]) -> Schedule:
        return Schedule.from_dict(plain)

    def plot(self, steps: int | None = None, axes: Axes | None = None) -> Figure:
        """Draw the schedule with matplotlib.

        Parameters
        ----------
        steps : int, optional
            The last step; by default far enough to show the whole schedule.
        axes : matplotlib.axes.Axes, optional
            Where to draw; by default a new figure, which pyplot does not know.

        Returns
        -------
        matplotlib.figure.Figure
            The figure of the axes: notebooks show it, and ``.savefig("schedule.png")`` writes it.

        Raises
        ------
        ImportError
            If matplotlib is not installed; the extra ``fastopt[lab]`` has it.
        """
        last = min(math.ceil(1.08 * self._span()), STEP_LIMIT - 1)
        if steps is not None:
            last = Count(1, STEP_LIMIT).check("steps", steps)
        if axes is None:
            axes = require("matplotlib.figure", "lab").Figure((6.4, 3.6), dpi=150, layout="constrained").add_subplot()
            axes.spines[["top", "right"]].set_visible(False)
        t = np.unique(np.linspace(0, last, POINTS).astype(np.int64))
        axes.plot(t, self(t), drawstyle="steps-post" if last < POINTS / 4 else "default", label=repr(self))
        axes.set(xlabel="step", ylabel="value")
        axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1], auto=None)  # keeps a value of 0 visible above the frame
        return axes.figure  # type: ignore[return-value]  # a SubFigure if the axes are in one

    def torch_scheduler(self, optimizer: TorchOptimizer, last_epoch: int = -1) -> LRScheduler:
        """Return a PyTorch learning-rate scheduler that follows this schedule, for any optimizer of torch.

        It sets the schedule's value in every parameter group, and ignores the groups' initial rates and rates that
        other schedulers have set: multiply schedules instead of chaining schedulers.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
        last_epoch : int, default -1
            To resume without a state dict: the last step that was taken; the scheduler sets the rate of the next one.
            -1 begins at step 0.

        Returns
        -------
        fastopt.torch.Scheduler
            Call its ``step()`` after each step of the optimizer.

        Raises
        ------
        ImportError
            If PyTorch is not installed; the extra ``fastopt[torch]`` has it.
        """
        require("torch", "torch")
        from .backends.torch.scheduler import Scheduler

        return Scheduler(optimizer, self, last_epoch)

    def __reduce__(self) -> Any:
        """Pickle the fields; unpickling checks them again."""
        return type(self), tuple(getattr(self, name) for name in self._checks())


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.to_dict() if isinstance(value, Schedule) else value


def _check_ascending(name: str, values: Items[int], strictly: bool = True) -> None:
    for before, after in itertools.pairwise(values):
        if after < before or (strictly and after == before):
            raise ValueError(f"{name} must be sorted{', each once' if strictly else ''}: {after} follows {before}")


@dataclass(frozen=True)
class Constant(Schedule):
    """A constant: ``lr``.

    Parameters
    ----------
    lr : float
    """

    lr: Rate
    kind: ClassVar[str] = "constant"


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from lr to end: ``lr + (end - lr) * min(t, steps) / steps``.

    Down to zero, the simplest good choice for a run of known length [1]_; upwards, a range test of rates. Like
    torch.optim.lr_scheduler.LinearLR, with rates instead of factors.

    Parameters
    ----------
    lr, end : float
        First and last value, 0 or more.
    steps : int
        The step from which it stays at end.

    References
    ----------
    .. [1] A. Defazio, A. Cutkosky, H. Mehta, K. Mishchenko, "Optimal Linear Decay Learning Rate Schedules and Further
       Refinements", 2023.
    """

    lr: Rate
    end: Rate
    steps: Steps
    kind: ClassVar[str] = "linear"

    def _span(self) -> int:
        return self.steps


@dataclass(frozen=True)
class Polynomial(Schedule):
    """A power of the remaining share of steps: ``end + (lr - end) * (1 - min(t, steps) / steps) ** power``.

    Power 1 is a straight line; 0.9 is usual in semantic segmentation [1]_; 2 spends more time at low rates. Like
    torch.optim.lr_scheduler.PolynomialLR, whose end is 0.

    Parameters
    ----------
    lr : float
        First value, 0 or more.
    steps : int
        The step from which it stays at end.
    power : float
        Above 0.
    end : float, default 0.0

    References
    ----------
    .. [1] L.-C. Chen, G. Papandreou, I. Kokkinos, K. Murphy, A. Yuille, "DeepLab", 2016.
    """

    lr: Rate
    steps: Steps
    power: Positive
    end: Rate = 0.0
    kind: ClassVar[str] = "polynomial"

    def _span(self) -> int:
        return self.steps


@dataclass(frozen=True)
class Exponential(Schedule):
    """The same factor at every step: ``lr * gamma ** (t / every)``.

    For runs without a known end, and for tests of rates over several orders of magnitude (gamma above 1). With every=1
    it is torch.optim.lr_scheduler.ExponentialLR; every is TensorFlow's decay_steps.

    Parameters
    ----------
    lr : float
        First value, 0 or more.
    gamma : float
        Factor, 0 or more.
    every : int, default 1
        How many steps it takes to multiply by gamma once.
    """

    lr: Rate
    gamma: Factor
    every: Steps = 1
    kind: ClassVar[str] = "exponential"

    @classmethod
    def between(cls, lr: float, end: float, steps: int) -> Exponential:
        """Return the schedule that goes from lr to end, both above 0, in the given steps, and on after that.

        Each step multiplies by the steps-th root of end / lr. The schedule stores ``gamma=end / lr, every=steps``,
        since the root rounded to a float would be off by 1e-7 after 10**9 steps.
        """
        above = Number("endpoint", minimum=SMALLEST)
        lr, end = above.check("lr", lr), above.check("end", end)
        return cls(lr, end / lr, Count(1, STEP_LIMIT).check("steps", steps))

    def _span(self) -> int:
        folds = math.log(100) / abs(math.log(self.gamma)) if self.gamma not in (0.0, 1.0) else 1.0
        return max(2, min(math.ceil(folds * self.every), STEP_LIMIT // 2))


@dataclass(frozen=True)
class StepDecay(Schedule):
    """A staircase: ``lr * gamma ** floor(t / every)``.

    The classic of image classification: a tenth every 30 epochs, with the network of [1]_, whose authors divided by 10
    when the error stalled. Like torch.optim.lr_scheduler.StepLR.

    Parameters
    ----------
    lr : float
        First value, 0 or more.
    every : int
        Length of a stair, in steps.
    gamma : float, default 0.1
        Factor of a stair, 0 or more.

    References
    ----------
    .. [1] K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", 2015.
    """

    lr: Rate
    every: Steps
    gamma: Factor = 0.1
    kind: ClassVar[str] = "step_decay"

    def _span(self) -> int:
        return 4 * self.every


@dataclass(frozen=True)
class MultiStep(Schedule):
    """A staircase with stairs of any length: ``lr * gamma ** (number of milestones <= t)``.

    For known steps at which to drop, such as those at which the loss stalled in an earlier run. Like
    torch.optim.lr_scheduler.MultiStepLR; a milestone given twice counts twice.

    Parameters
    ----------
    lr : float
        First value, 0 or more.
    milestones : sequence of int
        Steps, 1 or more, in order.
    gamma : float, default 0.1
        Factor of a milestone, 0 or more.
    """

    lr: Rate
    milestones: Milestones
    gamma: Factor = 0.1
    kind: ClassVar[str] = "multi_step"

    def _check_together(self) -> None:
        """Check the order."""
        _check_ascending("milestones", self.milestones, strictly=False)

    def _span(self) -> int:
        return math.ceil(1.25 * self.milestones[-1]) if self.milestones else 100


@dataclass(frozen=True)
class Piecewise(Schedule):
    """A value for each stretch of steps: ``values[number of boundaries <= t]``.

    For everything without a formula: a short phase of another rate, a constant factor for the first steps (like
    torch.optim.lr_scheduler.ConstantLR).

    Parameters
    ----------
    values : sequence of float
        0 or more each, one more than there are boundaries.
    boundaries : sequence of int
        The steps at which the second and later values begin, 1 or more, in order.
    """

    values: Rates
    boundaries: Milestones
    kind: ClassVar[str] = "piecewise"

    def _check_together(self) -> None:
        """Check lengths and order."""
        _check_ascending("boundaries", self.boundaries)
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"there must be one value more than boundaries, not {len(self.values)} for {len(self.boundaries)}"
            )

    def _span(self) -> int:
        return math.ceil(1.25 * self.boundaries[-1]) if self.boundaries else 100


@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """Up in a line, down by the square root: ``lr * min(t / warmup, sqrt(warmup / t))``, 0 at t = 0.

    The schedule of the first transformer [1]_, called "noam" in its code. It never ends, so it suits runs of unknown
    length.

    Parameters
    ----------
    lr : float
        The highest value, at t = warmup; 0 or more.
    warmup : int
        Steps of the rise from 0, 1 or more.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017.
    """

    lr: Rate
    warmup: Steps
    kind: ClassVar[str] = "inverse_sqrt"

    def _span(self) -> int:
        return 8 * self.warmup


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a wave from lr down to end: ``end + (lr - end) * (1 + cos(pi * t / steps)) / 2``, and end after that.

    The usual choice for a run of known length: high for long, and gentle at the end [1]_. With several dips, t is
    multiplied by 2 * dips - 1: the rate falls to end that many times, the last time at t = steps, and rises to lr in
    between. With one dip it equals torch.optim.lr_scheduler.CosineAnnealingLR up to T_max; after that, torch's rises
    again, as with periodic=True.

    Parameters
    ----------
    lr : float
        First value, 0 or more.
    steps : int
        The step of the last minimum.
    end : float, default 0.0
        The minimum.
    dips : int, default 1
        The number of minima.
    periodic : bool, default False
        Continue the wave after steps.

    References
    ----------
    .. [1] I. Loshchilov, F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.
    """

    lr: Rate
    steps: Steps
    end: Rate = 0.0
    dips: Steps = 1
    periodic: Switch = False
    kind: ClassVar[str] = "cosine"

    def _check_together(self) -> None:
        """Check that phases can be counted exactly."""
        if (2 * self.dips - 1) * self.steps >= STEP_LIMIT:
            raise ValueError(
                f"{self.dips} dips in {self.steps} steps are too many: (2 * dips - 1) * steps is 2**51 or more"
            )

    def _span(self) -> int:
        return 3 * self.steps if self.periodic else self.steps


@dataclass(frozen=True)
class WarmRestarts(Schedule):
    """Half a wave, again and again: ``end + (lr - end) * (1 + cos(pi * x)) / 2`` at the share x of the current period.

    Each restart leaves a valley in search of a better one; the model at the end of each period can be kept or averaged
    [1]_. Like torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, at whole steps.

    Parameters
    ----------
    lr : float
        Value at each restart, 0 or more.
    period : int
        Steps until the first restart.
    mult : int, default 1
        How many times as long as the period before each period is.
    end : float, default 0.0

    References
    ----------
    .. [1] I. Loshchilov, F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.
    """

    lr: Rate
    period: Steps
    mult: Steps = 1
    end: Rate = 0.0
    kind: ClassVar[str] = "warm_restarts"

    def _span(self) -> int:
        return min(self.period * (1 + self.mult + self.mult**2), STEP_LIMIT // 2)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """One rise and one fall: from peak / div to peak within pct_start, then down to peak / div / final_div.

    With three_phase, the rate first falls to peak / div, in as many steps as the rise took, and then to the end in the
    remaining steps. The rise ends at step pct_start * steps - 1 and the fall at steps - 1, as in
    torch.optim.lr_scheduler.OneCycleLR; after that, torch's raises an error and this one stays at the end. For short
    runs at high rates, with `momentum` going the opposite way [1]_.

    Parameters
    ----------
    peak : float
        The highest value, 0 or more.
    steps : int
        Length of the cycle.
    pct_start : float, default 0.3
        The rise's share of the steps, from 0 to 1.
    anneal : {"cos", "linear"}
        Shape of rise and fall.
    div, final_div : float, default 25.0 and 1e4
        Above 0.
    three_phase : bool, default False
        The rise and the first fall take a share of pct_start each, so pct_start is 0.5 at most.

    References
    ----------
    .. [1] L. Smith, N. Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates",
       2017.
    """

    peak: Rate
    steps: Steps
    pct_start: Share = 0.3
    anneal: Anneal = "cos"
    div: Positive = 25.0
    final_div: Positive = 1e4
    three_phase: Switch = False
    kind: ClassVar[str] = "one_cycle"

    def _check_together(self) -> None:
        """Check that three phases fit."""
        if self.three_phase and self.pct_start > 0.5:
            raise ValueError(f"pct_start must be 0.5 at most with three_phase, not {self.pct_start!r}")

    def momentum(self, base: float = 0.85, peak: float = 0.95) -> OneCycle:
        """Return the opposite cycle for momentum: from peak down to base while the rate rises, and back.

        With Adam, pass it as the first of ``betas``: ``betas=(cycle.momentum(), 0.999)``.

        Parameters
        ----------
        base, peak : float
            The lowest and the highest momentum, above 0.
        """
        above = Number("momentum", minimum=SMALLEST)
        base, peak = above.check("base", base), above.check("peak", peak)
        return dataclasses.replace(self, peak=base, div=base / peak, final_div=1.0)

    def _span(self) -> int:
        return self.steps


@dataclass(frozen=True)
class Cyclic(Schedule):
    """Up and down in lines, again and again: ``lr + (peak - lr) * height * scale``, height between 0 and 1.

    The scale is 1 for mode "triangular", halved with each cycle for "triangular2", and ``gamma ** t`` for "exp_range".
    It helps to leave saddle points and to search for rates: one slow rise is a range test [1]_. Like
    torch.optim.lr_scheduler.CyclicLR.

    Parameters
    ----------
    lr, peak : float
        The lowest value of all cycles and the highest of the first, 0 or more.
    up : int
        Length of a rise, in steps.
    down : int, default None
        Length of a fall, in steps; up if None.
    mode : {"triangular", "triangular2", "exp_range"}
    gamma : float, default 1.0
        Above 0, and 1 at most; for "exp_range".

    References
    ----------
    .. [1] L. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017.
    """

    lr: Rate
    peak: Rate
    up: Steps
    down: Steps = None  # type: ignore[assignment]  # never after __post_init__
    mode: Mode = "triangular"
    gamma: Decay = 1.0
    kind: ClassVar[str] = "cyclic"

    def __post_init__(self) -> None:
        """Make a fall as long as a rise by default."""
        if self.down is None:
            object.__setattr__(self, "down", self.up)
        super().__post_init__()

    def momentum(self, base: float = 0.8, peak: float = 0.9) -> Cyclic:
        """Return the opposite cycles for momentum: from peak down to base while the rate rises, and back.

        With Adam, pass them as the first of ``betas``: ``betas=(cycle.momentum(), 0.999)``.

        Parameters
        ----------
        base, peak : float
            The lowest and the highest momentum, 0 or more.
        """
        number = Number("momentum")
        return dataclasses.replace(self, lr=number.check("peak", peak), peak=number.check("base", base))

    def _span(self) -> int:
        return 3 * (self.up + self.down)


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """Up in a line, level, and down: 0 to lr over warmup steps, lr for stable steps, to end over decay steps.

    A trapezoid. A decay can begin anywhere in the stable part, so one run gives models of several lengths, and its
    checkpoints can be trained further [1]_. The best shape of the decay is 1-sqrt [2]_.

    Parameters
    ----------
    lr : float
        The highest value, 0 or more.
    warmup, stable : int
        Steps, 0 or more.
    decay : int
        Steps, 1 or more.
    end : float, default 0.0
    shape : {"linear", "cosine", "1-sqrt"}
        Shape of the decay: for x from 0 to 1, lr's share is ``1 - x``, ``(1 + cos(pi * x)) / 2`` or ``1 - sqrt(x)``.

    References
    ----------
    .. [1] S. Hu et al., "MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies",
       2024.
    .. [2] A. Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", 2024.
    """

    lr: Rate
    warmup: Stretch
    stable: Stretch
    decay: Steps
    end: Rate = 0.0
    shape: Shape = "linear"
    kind: ClassVar[str] = "warmup_stable_decay"

    def _span(self) -> int:
        return self.warmup + self.stable + self.decay


@dataclass(frozen=True)
class Warmup(Schedule):
    """A linear rise to another schedule's first value: ``schedule(0) * (start + (1 - start) * t / steps)``.

    From t = steps on it is ``schedule(t - steps)``. Large batches and transformers diverge without a warm-up [1]_.

    Parameters
    ----------
    schedule : Schedule
    steps : int
        Length of the rise.
    start : float, default 0.0
        Factor at step 0, 0 or more.

    References
    ----------
    .. [1] P. Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017.
    """

    schedule: Inner
    steps: Steps
    start: Factor = 0.0
    kind: ClassVar[str] = "warmup"

    def _terms(self) -> list[list[float]]:
        starts: Iterator[float] = itertools.chain([self.start], itertools.repeat(1.0))  # only one term has the rise
        terms = zip(starts, self.schedule._terms(), strict=False)
        return [self._term([self.steps, start], term) for start, term in terms]

    def _span(self) -> int:
        return self.steps + self.schedule._span()


@dataclass(frozen=True)
class Sequence(Schedule):
    """One schedule after the other, each from its own step 0: ``schedules[i](t - milestones[i - 1])``.

    Like torch.optim.lr_scheduler.SequentialLR.

    Parameters
    ----------
    schedules : sequence of Schedule
        One more than there are milestones; a number stands for a constant.
    milestones : sequence of int
        The steps at which the second and later schedules begin, 1 or more, in order.
    """

    schedules: Parts
    milestones: Milestones
    kind: ClassVar[str] = "sequence"

    def _check_together(self) -> None:
        """Check lengths and order."""
        _check_ascending("milestones", self.milestones)
        if len(self.schedules) != len(self.milestones) + 1:
            raise ValueError(
                f"there must be one schedule more than milestones, not {len(self.schedules)} for {len(self.milestones)}"
            )

    def _terms(self) -> list[list[float]]:
        (one,) = Constant(1.0)._terms()
        columns = itertools.zip_longest(*(schedule._terms() for schedule in self.schedules), fillvalue=one)
        numbers = [len(self.milestones), *self.milestones]
        return [self._term(numbers, [*itertools.chain(*column)]) for column in columns]

    def _span(self) -> int:
        return (self.milestones[-1] if self.milestones else 0) + self.schedules[-1]._span()


@dataclass(frozen=True)
class PerEpoch(Schedule):
    """Another schedule as a function of the epoch: ``schedule(t // steps_per_epoch)``, constant within each epoch.

    Parameters
    ----------
    schedule : Schedule
    steps_per_epoch : int
    """

    schedule: Inner
    steps_per_epoch: Steps
    kind: ClassVar[str] = "per_epoch"

    def _terms(self) -> list[list[float]]:
        return [self._term([self.steps_per_epoch], term) for term in self.schedule._terms()]

    def _span(self) -> int:
        return min(self.steps_per_epoch * self.schedule._span(), STEP_LIMIT // 2)


@dataclass(frozen=True)
class Product(Schedule):
    """The product of schedules at the same step: the result of ``0.5 * schedule`` and ``schedule * other``.

    Like torch.optim.lr_scheduler.ChainedScheduler.

    Parameters
    ----------
    schedules : sequence of Schedule
        At least one; a number stands for a constant, and the factors of a product are taken one by one.
    """

    schedules: Parts

    def _check_together(self) -> None:
        """Replace products among the schedules by their factors."""
        if not self.schedules:
            raise ValueError("a product needs at least one schedule")
        nested = (each.schedules if isinstance(each, Product) else (each,) for each in self.schedules)
        object.__setattr__(self, "schedules", tuple(itertools.chain(*nested)))

    def _terms(self) -> list[list[float]]:
        return [term for schedule in self.schedules for term in schedule._terms()]

    def _span(self) -> int:
        return max(schedule._span() for schedule in self.schedules)


SCHEDULES: Final[dict[str, type[Schedule]]] = {
    cls.__name__: cls
    for cls in (
        Constant, Linear, Polynomial, Exponential, StepDecay, MultiStep, Piecewise, InverseSqrt, Cosine, WarmRestarts,
        OneCycle, Cyclic, WarmupStableDecay, Warmup, Sequence, PerEpoch, Product,
    )
}  # fmt: skip


def from_dict(plain: Mapping[str, Any]) -> Schedule | Plateau:
    """Return the schedule, or the Plateau with its memory, that a ``to_dict`` describes.

    Parameters
    ----------
    plain : dict
        ``{"name": name of the class, field: value, ...}``.

    Raises
    ------
    TypeError, ValueError
        If it does not describe a schedule.
    """
    with nested_too_deeply("the description of a schedule"):
        return _described(plain, DEEPEST)


def _described(plain: Any, room: int) -> Schedule | Plateau:
    if room == 0:
        raise ValueError(f"a schedule is made of others in at most {DEEPEST} levels, and not of itself")
    if not isinstance(plain, Mapping) or "name" not in plain:
        raise ValueError(f"a schedule is described by a dict with an entry 'name', not by {plain!r:.80}")
    fields = {name: value for name, value in plain.items() if name != "name"}
    if plain["name"] == "Plateau":
        state = fields.pop("state", None)
        plateau: Plateau = _made(Plateau, fields)
        plateau.load_state_dict(state)
        return plateau
    if not isinstance(plain["name"], str) or plain["name"] not in SCHEDULES:
        raise ValueError(f"unknown schedule {plain['name']!r:.40}; there are {', '.join(SCHEDULES)} and Plateau")
    parsed = {name: _parsed(value, room - 1) for name, value in fields.items()}
    schedule: Schedule = _made(SCHEDULES[plain["name"]], parsed)
    return schedule


def _made(cls: Callable[..., Any], fields: Mapping[str, Any]) -> Any:
    try:
        return cls(**fields)
    except TypeError as error:  # usually a field is missing or unknown
        raise TypeError(f"this describes no {cls.__name__}: {error}") from error


def _parsed(value: Any, room: int) -> Any:
    if isinstance(value, (list, tuple)):
        return [_parsed(item, room) for item in value]
    return _described(value, room) if isinstance(value, Mapping) else value
