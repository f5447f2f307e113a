"""Parameter groups of torch: plain dicts, which anyone may write into between two steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import RESUMABLE
from ..groups import GroupOptions, StepFunction, numbers_at
from ..kernels.tensors import PARAMS
from ..pair import goes_by_step, paired
from ..rules import SCHEDULABLE
from ..schedules import Schedule, from_dict

ARRAYS = (Tensor, np.ndarray)
MOVING = (*ARRAYS, list)  # in which another number may be found at the next step

NOT_OFFERED = {
    "differentiable": "autograd cannot see through a fused update",
    "capturable": "a step on a GPU can be captured without it, and there is nothing to capture on the CPU",
}


ROUNDING = 1e-12  # torch's LinearLR ends so far below 0 where it should end there, and torch goes on with it


def number(name: str, value: Any) -> Any:
    """Return what a tensor, an array or a list holds now, and 0 for a number that rounding has put below it."""
    if name == "betas" and isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            if isinstance(item, Tensor):
                raise TypeError(f"{name}[{i}] is a tensor; only numbers are taken there: pass its .item()")
        return paired(name, tuple(value))
    if isinstance(value, ARRAYS):
        if math.prod(value.shape) != 1:
            raise ValueError(f"Tensor {name} must be 1-element")
        if isinstance(value, Tensor) and value.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{name} is a tensor on a GPU, which nobody can read while a graph is captured: assign one of "
                f"fastopt.schedules, or a number"
            )
        value = value.item()
    return 0.0 if isinstance(value, float) and -ROUNDING < value < 0 else value


BASE = "initial_lr"  # what torch's and timm's schedulers start from, and keep in the group
LOOKAHEAD = 100_000  # steps in which a function of the step is expected to leave 0


def base_rate(schedule: StepFunction) -> float:
    """Return what a scheduler starts from where a schedule drives the rate: its peak; of a function, the first above 0.

    The rate of step 0 would not do: of a warm-up it is 0, and a scheduler that multiplies would stay there.
    """
    if isinstance(schedule, Schedule):
        return schedule.maximum()
    rates = (float(schedule(step)) for step in range(LOOKAHEAD))
    return next((rate for rate in rates if rate > 0), 0.0)


class LiveGroup(dict[str, Any]):
    """One of torch's groups, of which schedules drive some numbers: where a GPU counts, whoever reads one waits for it.

    Whoever reads the parameters alone, as ``zero_grad`` and GradScaler do in every iteration, does not. Whoever asks
    for ``initial_lr`` finds the peak of the schedule that drives the rate.

    Attributes
    ----------
    fetch : callable
        Brings the numbers up to date.
    rate : callable or None
        The schedule that drives the rate.
    numbers : dict
        What schedules have put there, by option.
    released : bool
        Whether the rate was assigned before a scheduler came.
    """

    fetch: Callable[[], object] = staticmethod(lambda: None)  # of a copy, before its optimizer's first step
    rate: StepFunction | None = None
    released = False
    numbers: dict[str, Any]

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.numbers = {}

    def expect(self, functions: Mapping[str, StepFunction]) -> None:
        """Find out what drives a copy's rate, before its optimizer's first step: a function, or what is described."""
        described = dict.get(self, "schedules")
        if isinstance(described, Mapping):
            self.numbers = {name: dict.get(self, name) for name in described}
            if "lr" in described:
                self.rate = functions.get("lr") or from_dict(described["lr"])

    def assigned(self) -> list[str]:
        """Return the options of which a schedule drove the number, and that have another one now."""
        return [name for name, number in self.numbers.items() if dict.get(self, name) is not number]

    def _read(self, name: Any = None) -> None:
        if name == BASE:
            self._note_base()
        elif name != PARAMS:
            self.fetch()

    @property
    def _is_driven(self) -> bool:
        """Whether a schedule drives the rate, and nobody has put another one there."""
        return self.rate is not None and "lr" not in self.assigned()

    def _note_base(self) -> None:
        if self.rate is not None and self._is_driven and not super().__contains__(BASE):
            super().__setitem__(BASE, base_rate(self.rate))

    def __contains__(self, name: object) -> bool:
        """Say whether there is such an entry."""
        if name == BASE:
            self._note_base()
        return super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        """Return an entry."""
        self._read(name)
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        """Assign an entry; a count only once those before it are counted."""
        if name == "step":
            self.fetch()
        super().__setitem__(name, value)

    def update(self, *given: Any, **more: Any) -> None:
        """Assign several entries."""
        for name, value in dict(*given, **more).items():
            self[name] = value

    def get(self, name: str, default: Any = None) -> Any:
        """Return an entry, or a default."""
        self._read(name)
        return super().get(name, default)

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
        if name == BASE and self._is_driven:
            super().__setitem__("lr", super().__getitem__(BASE))
        elif name == BASE and not super().__contains__(BASE):
            self.released = True
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


class Group(GroupOptions):
    """The options of one group of torch.

    A schedule ends when another number than its own is assigned to its option. Some of torch's engines put a rate of 0
    there for a step that shall change nothing, and the old object back afterwards: then it goes on, as if that step had
    not been.

    Parameters
    ----------
    index : int
    given : dict
        The group itself, as torch and the user have it. Its ``lr`` is always a number or a tensor; ``schedules``
        describes those in force as plain Python, where there is any or was, and ``step`` counts the steps they drove.
    names : iterable of str
        Of the optimizer's options.
    own : dict of str to callable, optional
        Schedules that go on where the description cannot bring them back: functions, and a `Plateau` that is held.

    Attributes
    ----------
    seen : dict
        The options as they were last found in the group.
    has_moving : bool
        Whether one of them is a tensor or an array, whose number may be another at the next step.
    overruled : tuple or None
        An option and its schedule, which has ended by a scheduler's number, until somebody was warned.
    told, content : dict or None
        The description as it was last put there: that object, and what was in it.
    written : int
        The count beside it as it was last put there, or found. It stands still where no schedule goes by it.
    ended : dict
        Option -> the schedule that drove it last, the object that it put there last, and the count of steps then.
    """

    def __init__(
        self, index: int, given: dict[str, Any], names: Iterable[str], own: Mapping[str, StepFunction] | None = None
    ) -> None:
        super().__init__(index, {"step": 0, **dict.fromkeys(names, math.nan)})  # which no value equals, None neither
        self.given = given
        self.seen: dict[str, Any] = dict.fromkeys(names, self)  # which is no option's value
        self.told: Any = None
        self.content: dict[str, Any] | None = None
        self.written = 0
        self.ended: dict[str, tuple[StepFunction, Any, int]] = {}
        self.has_moving = False
        self.overruled: tuple[str, StepFunction] | None = None
        if given.get("schedules"):
            self.schedules = dict(own or {})
        if isinstance(given, LiveGroup) and (assigned := given.assigned()):
            self._end_in_copy(assigned)
        self.look()

    def _end_in_copy(self, assigned: Sequence[str]) -> None:
        """End the schedules of options that were assigned before a copy's first step."""
        described = dict(self._found("schedules") or {})
        for name in assigned:
            if (plain := described.pop(name, None)) is not None and not callable(self._found(name)):
                self._note_overruled(name, self._restored_schedule(name, plain, self.schedules.get(name)))
                self.schedules.pop(name, None)
        self._put("schedules", described)

    def _note_overruled(self, name: str, schedule: StepFunction) -> None:
        """Remember to warn, where a scheduler is there: it writes numbers at every step."""
        if self._found(BASE) is not None and not (isinstance(self.given, LiveGroup) and self.given.released):
            self.overruled = name, schedule

    def _found(self, name: str, default: Any = None) -> Any:
        """Return what stands in torch's group, as it stands there: a live one would fetch it."""
        return dict.get(self.given, name, default)

    def _put(self, name: str, value: Any) -> None:
        """Put an entry there likewise."""
        dict.__setitem__(self.given, name, value)

    def look(self) -> None:
        """Take over what was assigned in the group since the last look."""
        given, get = self.given, dict.get  # `_found`, without a call for each name
        for name in self.seen:
            if name not in given:
                raise ValueError(f"group {self.index} has no {name!r}: assign it, perhaps its default")
        for flag, reason in NOT_OFFERED.items():
            if get(given, flag):
                message = f"{flag}=True is not offered, in group {self.index}: {reason}; use torch.optim for that"
                raise ValueError(message)
        described = self._found("schedules")
        if described is not self.told or described != self.content:
            self._restore(described or {})
        step = self._found("step", self.written)
        if step is not self.written and self._is_count(step) and step != self.written:
            self.assign({"step": step})
            self.written = step
        found = {
            name: get(given, name)
            for name, last in self.seen.items()
            if get(given, name) is not last or isinstance(last, MOVING)
        }
        if found:
            self._take(found)
        self.has_moving = any(isinstance(value, MOVING) for value in self.seen.values())

    def _is_count(self, step: Any) -> bool:
        """Say whether an entry is meant as the count of steps; without a schedule it may be another library's."""
        return "schedules" in self.given or (type(step) is int and 0 <= step < RESUMABLE)

    def _restore(self, described: Any) -> None:
        """Take over schedules by their description, and the numbers and the count beside it."""
        if self.fetch is not None:
            self.fetch()
        if isinstance(described, Mapping):  # what is assigned in its place needs no description
            described = {name: plain for name, plain in described.items() if not goes_by_step(self._found(name))}
        restored = self.restored_schedules(described)
        found = {name: self._found(name) for name in self.seen if not goes_by_step(self._found(name))}
        step = self._found("step", self.written)
        step = self.entries["step"] if step == self.written else self._checked("step", step, 0)
        checked = {name: self._checked(name, number(name, value), step) for name, value in found.items()}
        numbers_at(step, restored)
        self.restore({**checked, "step": step}, restored)
        self.seen.update(found)
        self._tell()

    def _take(self, found: dict[str, Any]) -> None:
        """Take over what was assigned to options."""
        numbers = {name: number(name, value) for name, value in found.items()}
        new = {
            name: value
            for name, value in numbers.items()
            if name in self.schedules or name in self.ended or callable(value) or value != self.entries[name]
        }
        ended = {n: (self.schedules[n], self.seen[n], self.entries["step"]) for n in new if n in self.schedules}
        resumed = [n for n in new if n in self.ended and found[n] is self.ended[n][1] and self.entries[n] == 0]
        if resumed and self.fetch is not None:  # steps that a device has counted belong to the count before that one's
            self.fetch()
        if new:
            self.assign(new)
        for name in resumed:
            schedule, _, self.entries["step"] = self.ended.pop(name)
            self.schedules = {**self.schedules, name: schedule}
        self.ended.update(ended)
        for name, (schedule, *_) in ended.items():
            self._note_overruled(name, schedule)
        self.seen.update(found)
        if ended or resumed or any(callable(value) for value in new.values()):
            self._tell()

    def warn(self) -> None:
        """Say that a scheduler has ended a schedule, and what to do about it."""
        if self.overruled is not None:
            (name, schedule), self.overruled = self.overruled, None
            warnings.warn(
                f"a scheduler sets {name} of group {self.index}, which ends the schedule that drove it, "
                f"{schedule!r:.200}. Let one of the two do it: make the optimizer with a number and pass "
                f"schedule.torch_scheduler(optimizer) where the scheduler is made, or make no scheduler",
                UserWarning,
                stacklevel=2,
            )

    def _tell(self) -> None:
        for name in self.schedules:
            self._show(name)
        if self.schedules or "schedules" in self.given:  # an empty one where they have ended, and the count goes on
            self.told, self.content = self.described(), self.described()  # two, to see what is changed in the group's
            self._put("schedules", self.told)
            self._show_count()

    def _show(self, name: str) -> None:
        self.seen[name] = self.entries[name]
        self._put(name, self.entries[name])
        if isinstance(self.given, LiveGroup):
            self.given.numbers[name] = self.entries[name]
            self.given.rate, self.given.released = self.schedules.get("lr"), False

    def _show_count(self) -> None:
        self.written = self.entries["step"]
        self._put("step", self.written)

    def take_upcoming(self) -> None:
        """Make what schedules have said the current numbers, in torch's group as well."""
        super().take_upcoming()
        for name in self.schedules:
            if self._found(name) is self.seen[name]:  # else somebody has assigned another meanwhile
                self._show(name)

    def count(self, steps: int = 1) -> None:
        """Count completed steps."""
        super().count(steps)
        if self.schedules and self._found("step") == self.written:
            self._show_count()

    def describe_anew(self) -> None:
        """Bring the description of the schedules up to date, with the memory of those that have one."""
        self.look()
        self._tell()


def look_at(groups: Iterable[Group]) -> None:
    """Take over what was assigned in groups, and warn, once, where a scheduler has ended a schedule."""
    for group in groups:
        group.look()
    overruled = [group for group in groups if group.overruled]
    if overruled:
        overruled[0].warn()
        for group in overruled[1:]:
            group.overruled = None
