"""Groups of torch with schedules: dicts that are up to date whenever they are read."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..kernels.tensors import PARAMS
from ..options import SCHEDULABLE
from ..pair import goes_by_step
from ..schedules import Schedule, from_dict
from ..step.clock import Tally
from ..step.group import StepFunction, numbers_at

BASE = "initial_lr"  # torch's and timm's schedulers start from this entry
SCHEDULERS = {"lr_scheduler", "param_scheduler", "scheduler"}  # modules that write rates: torch's, ignite's, timm's
LOOKAHEAD = 100_000  # within so many steps a function of the step must be above 0


def base_rate(schedule: StepFunction) -> float:
    """Return the rate from which a scheduler starts if a schedule drives lr: its peak, or a function's first above 0.

    The rate of step 0 is no use: with a warm-up it is 0, and a scheduler that multiplies would stay at 0.
    """
    if isinstance(schedule, Schedule):
        return schedule.maximum()
    rates = (float(schedule(step)) for step in range(LOOKAHEAD))
    return next((rate for rate in rates if rate > 0), 0.0)


def is_scheduler(names: Mapping[str, Any]) -> bool:
    """Say whether code is a scheduler's, by the globals of its module."""
    return not SCHEDULERS.isdisjoint(str(names.get("__name__")).split("."))


def do_nothing(name: Any = None) -> bool:
    """Fetch nothing: the default of a copy, before its optimizer's first step."""
    return True


class LiveGroup(dict[str, Any]):
    """One of torch's groups, with options that schedules drive, or a count for random bits.

    If a GPU counts the steps, reading an option waits.
    Reading only the parameters, as ``zero_grad`` and GradScaler do in every iteration, does not wait. ``initial_lr`` is
    the peak of the schedule that drives lr.

    Attributes
    ----------
    fetch : callable
        Brings the numbers up to date for who reads an entry, and returns True; None if the optimizer is gone.
    tally : Tally or None
        The steps that the extension had taken when the optimizer went away.
    driven : dict
        The schedules, by option; in a copy before its optimizer's first step only that of lr.
    own : dict
        Schedules that cannot be described, of a copy before its optimizer's first step and after loading.
    numbers : dict
        The numbers that schedules have written, by option.
    overruled : set
        Options whose number a scheduler has written.
    """

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.fetch: Callable[[Any], bool | None] = do_nothing
        self.tally: Tally | None = None
        self.driven: Mapping[str, StepFunction] = {}
        self.own: Mapping[str, StepFunction] = {}
        self.numbers: dict[str, Any] = {}
        self.overruled: set[str] = set()

    def _catch_up(self) -> None:
        """Add the last steps of an optimizer that is gone."""
        tally, self.tally = self.tally, None
        if tally is not None and tally.pending and self.driven:
            step = dict.get(self, "step", 0) + tally.pending
            super().__setitem__("step", step)
            overwritten = self.assigned()
            for name, number in numbers_at(step - 1, self.driven).items():
                if name not in overwritten:
                    super().__setitem__(name, number)
                    self.numbers[name] = number

    def expect(self, functions: Mapping[str, StepFunction]) -> None:
        """In a copy before its first step, find the schedules that drive its numbers: functions, or described ones."""
        described = dict.get(self, "schedules")
        self.own = functions
        if isinstance(described, Mapping):
            self.numbers = {name: dict.get(self, name) for name in described}
            with contextlib.suppress(KeyError, TypeError, ValueError):  # the first step says what is wrong there
                self.driven = {"lr": functions["lr"] if "lr" in functions else from_dict(described["lr"])}

    def assigned(self) -> list[str]:
        """Return the options that a schedule drove and that have another value now."""
        return [name for name, number in self.numbers.items() if dict.get(self, name) is not number]

    def end(self, name: str) -> None:
        """Forget a schedule that has ended."""
        self.numbers.pop(name, None)
        self.driven = {other: schedule for other, schedule in self.driven.items() if other != name}

    def _read(self, name: Any = None) -> None:
        if name != PARAMS and name != BASE and not self.fetch(name):
            self._catch_up()

    def _base(self, default: Any = None) -> Any:
        """Return the rate from which a scheduler starts, if a schedule drives lr and no other rate was assigned."""
        rate = self.driven.get("lr")
        return default if rate is None or "lr" in self.assigned() else base_rate(rate)

    def __contains__(self, name: object) -> bool:
        """Say whether there is such an entry."""
        return super().__contains__(name) or (name == BASE and self._base() is not None)

    def __missing__(self, name: str) -> Any:
        """Return ``initial_lr``, which a scheduler reads when it resumes."""
        base = self._base() if name == BASE else None
        if base is None:
            raise KeyError(name)
        return base

    def __getitem__(self, name: str) -> Any:
        """Return an entry."""
        self._read(name)
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        """Assign an entry; before a step count, add the steps so far."""
        if name == "step":
            self._read(name)
        elif self.numbers.get(name, self) is super().get(name) and is_scheduler(sys._getframe(1).f_globals):
            self.overruled.add(name)
        super().__setitem__(name, value)

    def update(self, *given: Any, **more: Any) -> None:
        """Assign several entries."""
        for name, value in dict(*given, **more).items():
            self[name] = value

    def get(self, name: str, default: Any = None) -> Any:
        """Return an entry, or a default."""
        self._read(name)
        return super().get(name, self._base(default) if name == BASE else default)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names; without this method, ``dict(group)`` would bypass `__getitem__`."""
        return super().__iter__()

    def items(self) -> Any:
        """Return all entries, with their names."""
        self._read()
        return super().items()

    def values(self) -> Any:
        """Return all entries."""
        self._read()
        return super().values()

    def pop(self, name: str, *default: Any) -> Any:
        """Remove an entry, and return it."""
        self._read(name)
        return super().pop(name, *default)

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Return an entry, after setting a missing one to the default; schedulers take over lr by this method.

        Some of torch's schedulers start from ``initial_lr``, others from ``lr``, so both are set.
        """
        self._read(name)
        base = self._base() if name == BASE and not super().__contains__(BASE) else None
        if base is not None:
            self.overruled.add("lr")
            super().__setitem__("lr", base)
            super().__setitem__(BASE, base)
        return super().setdefault(name, default)

    def copy(self) -> dict[str, Any]:
        """Return the entries as they are now."""
        return dict(self.items())

    def __eq__(self, other: object) -> bool:
        """Compare the entries."""
        self._read()
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        """Compare the entries."""
        return not self == other

    __hash__ = None  # like any dict

    def __repr__(self) -> str:
        """Show the entries."""
        return repr(self.copy())

    def __reduce__(self) -> Any:
        """Copy and pickle the entries only."""
        return LiveGroup, (self.copy(),)


def live(given: dict[str, Any]) -> dict[str, Any]:
    """Return a group as a `LiveGroup` if its step count matters, for schedules or random bits, else as it is."""
    if isinstance(given, LiveGroup):
        return given
    by_count = not given.keys().isdisjoint(("schedules", "stochastic_rounding"))
    return LiveGroup(given) if by_count or any(goes_by_step(given.get(name)) for name in SCHEDULABLE) else given
