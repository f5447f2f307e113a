"""The options of one parameter group, the schedules that drive some of them, and the count of its steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from .. import schedules
from ..checks import RESUMABLE, Count
from ..kernels.reader import Array
from ..pair import Pair, paired
from ..plateau import Plateau
from ..rules import PAIRS, SCHEDULABLE, check, is_scheduled

StepFunction: TypeAlias = Callable[[int], Any]


class GroupOptions:
    """The hyperparameters of one group, the schedules that drive some of them, and the count of its steps.

    Attributes
    ----------
    index : int
        The group's place among the groups, for messages.
    version : int
        Another one whenever something was assigned.
    schedules : dict of str to callable
        The schedules in force themselves, by option. Never changed but replaced, since another thread may read it.
    entries, upcoming : dict
        The numbers and flags as they are, and as they are in the step that is under way.
    fetch : callable or None
        Has the clock bring the count and the numbers up to date.
    """

    def __init__(self, index: int, entries: Mapping[str, Any]) -> None:
        self.index = index
        self.version = 0
        self.schedules: dict[str, StepFunction] = {}
        self.entries = dict(entries)
        self.upcoming = self.entries
        self.fetch: Callable[[GroupOptions], None] | None = None

    def assign(self, given: Mapping[str, Any]) -> None:
        """Take several entries, all or none; a callable ``step -> number`` begins a schedule, a number ends one."""
        given = {name: paired(name, value) for name, value in given.items()}
        by_count = self.schedules or "step" in given or any(map(callable, given.values()))
        if self.fetch is not None and by_count:
            self.fetch(self)
        step = self._checked("step", given.get("step", self.entries["step"]), 0)
        checked = {name: self._checked(name, value, step) for name, value in given.items()}
        kept = {name: schedule for name, schedule in self.schedules.items() if name not in given}
        if "step" in given:
            numbers_at(step, kept)  # else the next step would be refused
        self.entries.update(checked)
        self.schedules = kept | {name: value for name, value in given.items() if callable(value)}
        self.version += 1

    def _checked(self, name: str, value: Any, step: int) -> Any:
        if name == "step":
            return Count(limit=RESUMABLE).check("the step of a group", value)
        if is_scheduled(name, value):
            value = value(step)
        return check(name, value)

    def described(self) -> dict[str, Any]:
        """Describe the schedules in force as plain Python, by option."""
        return {option: describe(schedule) for option, schedule in self.schedules.items()}

    def undescribed(self) -> dict[str, StepFunction]:
        """Return the schedules that their description cannot bring back, in whole or in part: functions of yours."""
        plain = {
            name: described if isinstance(described, list) else [described]
            for name, described in self.described().items()
        }
        return {name: self.schedules[name] for name, parts in plain.items() if CALLABLE in parts}

    def functions(self) -> Iterator[tuple[str, StepFunction]]:
        """Iterate over all functions of the step in the schedules, with what each drives: ``betas[0]`` in a pair."""
        for name, schedule in self.schedules.items():
            if isinstance(schedule, Pair):
                yield from ((f"{name}[{i}]", part) for i, part in enumerate(schedule) if callable(part))
            else:
                yield name, schedule

    def ask_schedules(self) -> None:
        """Set `upcoming` to the entries with which the next step is taken, checked; changes nothing else."""
        self.upcoming = {**self.entries, **numbers_at(self.entries["step"], self.schedules)}

    def take_upcoming(self) -> None:
        """Make what schedules have said the current numbers, where they have not been ended meanwhile."""
        for name in self.schedules:
            self.entries[name] = self.upcoming[name]

    def restored_schedules(self, described: Any) -> dict[str, StepFunction]:
        """Return the schedules that a state dict describes; of the group's own, those that cannot be described."""
        if not isinstance(described, Mapping) or not described.keys() <= {*SCHEDULABLE} & self.entries.keys():
            raise ValueError(f"the schedules of group {self.index} must be a dict of options, not {described!r:.200}")
        own = self.schedules
        return {name: self._restored_schedule(name, plain, own.get(name)) for name, plain in described.items()}

    def _restored_schedule(self, name: str, plain: Any, own: object) -> StepFunction:
        if name in PAIRS:
            return self._restored_pair(name, plain, own or (None, None))
        if not (isinstance(plain, Mapping) and isinstance(plain.get("name"), str) and plain == CALLABLE):
            try:
                return schedules.from_dict(plain)
            except (TypeError, ValueError) as error:
                raise type(error)(f"the schedule of {name} of group {self.index}: {error}") from error
        if callable(own):
            return own
        raise ValueError(
            f"{name} of group {self.index} was a function of yours, which a state dict cannot hold: assign it to the "
            f"group before loading, or delete {name.partition('[')[0]!r} from 'schedules' to go on with fixed numbers"
        )

    def _restored_pair(self, name: str, plain: Any, own: Any) -> StepFunction:
        if not isinstance(plain, (list, tuple)) or not any(isinstance(part, Mapping) for part in plain):
            what = f"the schedules of {name} of group {self.index}"
            raise ValueError(f"{what} must be a list of descriptions and numbers, not {plain!r:.200}")
        check(name, [0.0 if isinstance(part, Mapping) else part for part in plain])
        parts = [
            self._restored_schedule(f"{name}[{i}]", part, mine) if isinstance(part, Mapping) else part
            for i, (part, mine) in enumerate(zip(plain, own, strict=True))
        ]
        restored: Pair = paired(name, parts)
        return restored

    def own_plateaus(self, restored: Mapping[str, StepFunction]) -> list[tuple[str, Plateau, Plateau]]:
        """Return where the group's own plateau is to become another one: option, own, other."""
        pairs = [(name, self.schedules.get(name), schedule) for name, schedule in restored.items()]
        return [(n, a, b) for n, a, b in pairs if isinstance(a, Plateau) and isinstance(b, Plateau) and a is not b]

    def restore(self, options: Mapping[str, Any], restored: Mapping[str, StepFunction]) -> None:
        """Take over checked options, and schedules, which go on from the restored count of steps."""
        self.entries.update(options)
        pairs = self.own_plateaus(restored)
        for _, own, plateau in pairs:
            own.become(plateau)  # whoever holds it goes on calling its update
        self.schedules = {**restored, **{name: own for name, own, _ in pairs}}
        self.version += 1

    def count(self, steps: int = 1) -> None:
        """Count completed steps."""
        self.entries["step"] += steps


def numbers_at(step: int, schedules: Mapping[str, StepFunction]) -> dict[str, Any]:
    """Return what schedules say at the count of steps from which they are to go on, checked."""
    return {name: check(name, schedule(step)) for name, schedule in schedules.items()}


CALLABLE = {"name": "callable"}


def describe(schedule: StepFunction) -> Any:
    """Describe a schedule as plain Python; of a bare callable, or a class of your own, there is nothing to say."""
    if isinstance(schedule, Pair):
        return [describe(part) if callable(part) else float(part) for part in schedule]
    if isinstance(schedule, (schedules.Schedule, Plateau)):
        with contextlib.suppress(TypeError):  # of a class of your own, perhaps deep in a schedule made of others
            return schedule.to_dict()
    return dict(CALLABLE)


def record_of(schedule: Any) -> Array | None:
    """Return the record that C++ evaluates a schedule by; None for one that only Python knows, and for a number."""
    try:
        return schedule.record() if isinstance(schedule, schedules.Schedule) else None
    except TypeError:  # a class of the user's own, perhaps deep in a schedule made of others
        return None


def check_shared(groups: Sequence[GroupOptions], restored: Sequence[Mapping[str, StepFunction]]) -> None:
    """Raise where one plateau that drives several groups would have to become several."""
    becomes: dict[int, dict[str, Any]] = {}
    for group, schedules_of_group in zip(groups, restored, strict=True):
        for name, own, plateau in group.own_plateaus(schedules_of_group):
            if becomes.setdefault(id(own), plateau.to_dict()) != plateau.to_dict():
                raise ValueError(
                    f"the Plateau that drives {name} of group {group.index} drives another group as well, for which "
                    "the state dict has another one: give each group its own before loading"
                )
