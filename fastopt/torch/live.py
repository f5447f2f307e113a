"""Groups of torch that schedules drive: dicts that are up to date whenever somebody reads them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..kernels.tensors import PARAMS
from ..pair import goes_by_step
from ..rules import SCHEDULABLE
from ..schedules import Schedule, from_dict
from ..step.group import StepFunction

BASE = "initial_lr"  # what torch's and timm's schedulers start from, and keep in the group
SCHEDULERS = {"lr_scheduler", "param_scheduler", "scheduler"}  # modules that write rates: torch's, ignite's, timm's
LOOKAHEAD = 100_000  # steps in which a function of the step is expected to leave 0


def base_rate(schedule: StepFunction) -> float:
    """Return what a scheduler starts from where a schedule drives the rate: its peak; of a function, the first above 0.

    The rate of step 0 would not do: of a warm-up it is 0, and a scheduler that multiplies would stay there.
    """
    if isinstance(schedule, Schedule):
        return schedule.maximum()
    rates = (float(schedule(step)) for step in range(LOOKAHEAD))
    return next((rate for rate in rates if rate > 0), 0.0)


def is_scheduler(names: Mapping[str, Any]) -> bool:
    """Say whether it is a scheduler that writes, by the names of the module in which it does."""
    return not SCHEDULERS.isdisjoint(str(names.get("__name__")).split("."))


def do_nothing() -> None:
    """Fetch nothing: of a copy, before its optimizer's first step."""


class LiveGroup(dict[str, Any]):
    """One of torch's groups, of which schedules drive some numbers: where a GPU counts, whoever reads one waits for it.

    Whoever reads the parameters alone, as ``zero_grad`` and GradScaler do in every iteration, does not. Whoever asks
    for ``initial_lr`` finds the peak of the schedule that drives the rate.

    Attributes
    ----------
    fetch : callable
        Brings the numbers up to date.
    own : dict
        Schedules that no description brings back, of a copy before its optimizer's first step, and of what is loaded.
    rate : callable or None
        The schedule that drives the rate.
    numbers : dict
        What schedules have put there, by option.
    overruled : set
        Options of which a scheduler has written the number.
    """

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.fetch: Callable[[], object] = do_nothing
        self.own: Mapping[str, StepFunction] = {}
        self.rate: StepFunction | None = None
        self.numbers: dict[str, Any] = {}
        self.overruled: set[str] = set()

    def expect(self, functions: Mapping[str, StepFunction]) -> None:
        """Find out what drives a copy's numbers, before its optimizer's first step: functions, or what is described."""
        described = dict.get(self, "schedules")
        self.own = functions
        if isinstance(described, Mapping):
            self.numbers = {name: dict.get(self, name) for name in described}
            with contextlib.suppress(KeyError, TypeError, ValueError):  # the first step says what is wrong there
                self.rate = functions["lr"] if "lr" in functions else from_dict(described["lr"])

    def assigned(self) -> list[str]:
        """Return the options of which a schedule drove the number, and that have another one now."""
        return [name for name, number in self.numbers.items() if dict.get(self, name) is not number]

    def end(self, name: str) -> None:
        """Take note that a schedule has ended."""
        self.numbers.pop(name, None)
        if name == "lr":
            self.rate = None

    def _read(self, name: Any = None) -> None:
        if name != PARAMS and name != BASE:
            self.fetch()

    def _base(self, default: Any = None) -> Any:
        """Return what a scheduler starts from, where a schedule drives the rate and nobody has put another there."""
        if self.rate is None or "lr" in self.assigned():
            return default
        return base_rate(self.rate)

    def __contains__(self, name: object) -> bool:
        """Say whether there is such an entry."""
        return super().__contains__(name) or (name == BASE and self._base() is not None)

    def __missing__(self, name: str) -> Any:
        """Return the base of a scheduler that goes on from an earlier one, which asks for it by name."""
        base = self._base() if name == BASE else None
        if base is None:
            raise KeyError(name)
        return base

    def __getitem__(self, name: str) -> Any:
        """Return an entry."""
        self._read(name)
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        """Assign an entry; a count only once those before it are counted."""
        if name == "step":
            self.fetch()
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
        """Iterate over the names; without this, ``dict(group)`` would not ask for the entries."""
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
        """Return an entry, which is a default where there was none; a scheduler takes the rate over so.

        Some of torch's schedulers go on from ``initial_lr``, others from ``lr``.
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

    __hash__ = None  # as of any dict

    def __repr__(self) -> str:
        """Show the entries."""
        return repr(self.copy())

    def __reduce__(self) -> Any:
        """Copy and save the entries alone."""
        return LiveGroup, (self.copy(),)


def live(given: dict[str, Any]) -> dict[str, Any]:
    """Return a group as it is to stand among torch's: a live one where schedules drive it, or did."""
    if isinstance(given, LiveGroup):
        return given
    scheduled = "schedules" in given or any(goes_by_step(given.get(name)) for name in SCHEDULABLE)
    return LiveGroup(given) if scheduled else given
