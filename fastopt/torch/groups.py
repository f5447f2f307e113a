"""Parameter groups of torch: plain dicts, which anybody may change between two steps."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import RESUMABLE
from ..options import ADDED_OPTIONS, OWN_DEFAULTS, OWN_OPTIONS
from ..pair import goes_by_step, paired
from ..step.group import GroupOptions, StepFunction, numbers_at
from ..step.interrupts import HeldBack
from .live import LiveGroup

ARRAYS = (Tensor, np.ndarray)
MOVING = (*ARRAYS, list)  # values that may be changed in place

NOT_OFFERED = {
    "differentiable": "autograd cannot see through a fused update",
    "capturable": "a step on a GPU can be captured without it, and there is nothing to capture on the CPU",
}


ROUNDING = 1e-12  # torch's LinearLR to 0 ends below 0 by up to this much, and torch uses that rate


def number(name: str, value: Any) -> Any:
    """Return the current value of a tensor, an array or a list, and 0 for a number that rounding has made negative."""
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


class Group(GroupOptions):
    """The options of one group of torch.

    A schedule ends when a number other than its own is assigned to its option. Some of torch's engines assign a rate
    of 0 for a step that shall change nothing, and the old object afterwards: then the schedule resumes, as if there had
    been no such step.

    Parameters
    ----------
    index : int
    given : dict
        The group itself, as torch and the user have it. Its ``lr`` is always a number or a tensor. If it has or had
        schedules, ``schedules`` describes the current ones as plain Python, and ``step`` counts the steps they drove.
    names : iterable of str
        The names of the optimizer's options.

    Attributes
    ----------
    seen : dict
        The options as the last `sync` found them in the group.
    has_moving : bool
        Whether one of them is a tensor, an array or a list, which may be changed in place.
    overruled : tuple or None
        An option and the schedule that a scheduler has ended, until the user is warned.
    description, content : dict or None
        The description last written into the group: the object itself, and a copy of its content.
    written : int
        The step count last written into the group, or read there. Without a schedule it stays as it is.
    ended : dict
        Option -> the schedule that last drove it, the object that it last wrote, and the step count at that time.
    """

    def __init__(self, index: int, given: dict[str, Any], names: Iterable[str]) -> None:
        super().__init__(index, {"step": 0, **dict.fromkeys(names, math.nan)})  # NaN, which equals no value
        self.given = given
        self.seen: dict[str, Any] = dict.fromkeys(names, self)  # an object that is no option's value
        self.description: Any = None
        self.content: dict[str, Any] | None = None
        self.written = 0
        self.ended: dict[str, tuple[StepFunction, Any, int]] = {}
        self.has_moving = False
        self.overruled: tuple[str, StepFunction] | None = None
        # A plain dict gets an empty one, which saves checks for None.
        self.live = given if isinstance(given, LiveGroup) else LiveGroup()
        if given.get("schedules"):
            self.schedules = dict(self.live.own)
        self.live.own = {}
        if assigned := self.live.assigned():
            self._end_in_copy(assigned)
        self.sync()
        if self.is_random and self._found("step") is None:
            self._show_count()

    def _end_in_copy(self, assigned: Sequence[str]) -> None:
        """In a copy before its first step, end the schedules of options that were assigned."""
        described = dict(self._found("schedules") or {})
        for name in assigned:
            if (plain := described.pop(name, None)) is not None and not goes_by_step(self._found(name)):
                self._note_end(name, self._restored_schedule(name, plain, self.schedules.get(name)))
                self.schedules.pop(name, None)
        self._put("schedules", described)

    def _note_end(self, name: str, schedule: StepFunction) -> None:
        """Forget the numbers of a schedule that has ended; if a scheduler ended it, remember to warn."""
        self.live.end(name)
        if name in self.live.overruled:
            self.live.overruled.discard(name)
            self.overruled = name, schedule

    def _found(self, name: str, default: Any = None) -> Any:
        """Return an entry of torch's group; by `dict.get`, since a LiveGroup's own `get` may wait for a GPU."""
        return dict.get(self.given, name, default)

    def _put(self, name: str, value: Any) -> None:
        """Set an entry of torch's group, in the same way."""
        dict.__setitem__(self.given, name, value)

    def sync(self) -> None:
        """Take over what was assigned in the group since the last `sync`."""
        given, get = self.given, dict.get  # as `_found`, without a call for each name
        for name in ADDED_OPTIONS:  # which may come later
            if dict.__contains__(given, name) and name not in self.seen:
                self.seen[name], self.entries[name] = self, OWN_DEFAULTS.get(name, math.nan)
        for name in self.seen:
            if not dict.__contains__(given, name):
                raise ValueError(f"group {self.index} has no {name!r}: assign it, perhaps its default")
        for flag, reason in NOT_OFFERED.items():
            if get(given, flag):
                message = f"{flag}=True is not offered, in group {self.index}: {reason}; use torch.optim for that"
                raise ValueError(message)
        described = self._found("schedules")
        if described is not self.description or described != self.content:
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
        """Say whether an entry "step" is our step count; without a schedule it may be another library's."""
        return "schedules" in self.given or (type(step) is int and 0 <= step < RESUMABLE)

    def _restore(self, described: Any) -> None:
        """Take over the schedules that a description holds, with the group's numbers and step count."""
        if self.fetch is not None:
            self.fetch(self)
        if isinstance(described, Mapping):  # an assigned schedule replaces the described one
            described = {name: plain for name, plain in described.items() if not goes_by_step(self._found(name))}
        restored = self.restored_schedules(described)
        found = {name: self._found(name) for name in self.seen if not goes_by_step(self._found(name))}
        step = self._found("step", self.written)
        step = self.entries["step"] if step == self.written else self._checked("step", step, 0)
        checked = {name: self._checked(name, number(name, value), step) for name, value in found.items()}
        numbers_at(step, restored)
        with HeldBack():
            self.restore({**checked, "step": step}, restored)
            self.seen.update(found)
            self._write_back()

    def _take(self, found: dict[str, Any]) -> None:
        """Take over values that were assigned to options."""
        numbers = {name: number(name, value) for name, value in found.items()}
        new = {
            name: value
            for name, value in numbers.items()
            if name in self.schedules or name in self.ended or callable(value) or value != self.entries[name]
        }
        if any(name in self.schedules or callable(new[name]) or self._resumes(name, found[name]) for name in new):
            with HeldBack():
                self._exchange(new, found)
        else:
            if new:
                self.assign(new)
            self.seen.update(found)
            for name in found.keys() & {*OWN_OPTIONS}:  # by name, as state dicts can hold it
                self.seen[name] = self.entries[name]
                self._put(name, self.entries[name])

    def _resumes(self, name: str, value: Any) -> bool:
        """Say whether a value, assigned after a rate of 0, is the object that an ended schedule had written."""
        return name in self.ended and value is self.ended[name][1] and self.entries[name] == 0

    def _exchange(self, new: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Take over values with which a schedule begins, ends or resumes."""
        ended = {n: (self.schedules[n], self.seen[n], self.entries["step"]) for n in new if n in self.schedules}
        resumed = [name for name in new if self._resumes(name, found[name])]
        if resumed and self.fetch is not None:  # add the steps that somebody else counted before the count is set back
            self.fetch(self)
        self.assign(new)
        for name in resumed:
            schedule, _, self.entries["step"] = self.ended.pop(name)
            self.schedules = {**self.schedules, name: schedule}
        self.ended.update(ended)
        for name, (schedule, *_) in ended.items():
            self._note_end(name, schedule)
        self.seen.update(found)
        self._write_back()

    def warn(self) -> None:
        """Warn that a scheduler has ended a schedule, and say what to do about it."""
        if self.overruled is not None:
            (name, schedule), self.overruled = self.overruled, None
            warnings.warn(
                f"a scheduler sets {name} of group {self.index}, which ends the schedule that drove it, "
                f"{schedule!r:.200}. Let one of the two do it: make the optimizer with a number and pass "
                f"schedule.torch_scheduler(optimizer) where the scheduler is made, or make no scheduler",
                UserWarning,
                stacklevel=frames_inside(),
            )

    def _write_back(self) -> None:
        self.live.driven = self.schedules
        for name in self.schedules:
            self._show(name)
        if self.schedules or "schedules" in self.given:  # empty after they have ended; the step count goes on
            self.description, self.content = self.described(), self.described()  # two, to notice changes in place
            self._put("schedules", self.description)
            self._show_count()

    def _show(self, name: str) -> None:
        self.seen[name] = self.entries[name]
        self._put(name, self.entries[name])
        self.live.numbers[name] = self.entries[name]

    def _show_count(self) -> None:
        self.written = self.entries["step"]
        self._put("step", self.written)

    def take_upcoming(self) -> None:
        """Make the schedules' next numbers the current ones, in torch's group as well."""
        super().take_upcoming()
        for name in self.schedules:
            if self._found(name) is self.seen[name]:  # else another number was assigned meanwhile
                self._show(name)

    @property
    def is_random(self) -> bool:
        """Whether random bits go by the count, which then has to be in state dicts."""
        return self.entries.get("stochastic_rounding") is True

    def count(self, steps: int = 1) -> None:
        """Count completed steps."""
        super().count(steps)
        if (self.schedules or self.is_random) and self._found("step") == self.written:
            self._show_count()

    def describe_anew(self) -> None:
        """Update the description of the schedules, with the memory of each `Plateau`."""
        self.sync()
        with HeldBack():
            self._write_back()


def frames_inside() -> int:
    """Count the frames of fastopt and torch on the stack, so that a warning shows the user's line."""
    level, frame = 0, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("fastopt", "torch"):
        level, frame = level + 1, frame.f_back
    return level + 1


def sync_all(groups: Sequence[Group]) -> None:
    """Take over what was assigned in groups; warn once if a scheduler has ended schedules."""
    for group in groups:
        group.sync()
    overruled = [group for group in groups if group.overruled]
    if overruled:
        overruled[0].warn()
        for group in overruled[1:]:
            group.overruled = None
