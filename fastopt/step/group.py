"""The options of one parameter group, the schedules that drive some of them, and the count of its steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from .. import schedules
from ..checks import RESUMABLE, Count
from ..kernels.reader import Array
from ..options import ADDED_DEFAULTS, ADDED_OPTIONS, FIXED_OPTIONS, PAIRS, SCHEDULABLE, check, is_scheduled
from ..pair import Pair, paired
from ..plateau import Plateau

StepFunction: TypeAlias = Callable[[int], Any]


class GroupOptions:
    """The hyperparameters of one group, the schedules that drive some of them, and the count of its steps.

    Attributes
    ----------
    index : int
        The group's place among the groups, for messages.
    version : int
        Grows with every assignment.
    schedules : dict of str to callable
        The schedules, by option. Replaced, never changed in place, since another thread may be reading it.
    entries, upcoming : dict
        The numbers and flags now, and in the step under way.
    fetch : callable or None
        Asks the clock to bring count and numbers up to date.
    """

    def __init__(self, index: int, entries: Mapping[str, Any]) -> None:
        self.index = index
        self.version = 0
        self.schedules: dict[str, StepFunction] = {}
        self.entries = dict(entries)
        self.upcoming = self.entries
        self.fetch: Callable[[GroupOptions], None] | None = None

    def assign(self, given: Mapping[str, Any]) -> None:
        """Assign several entries, all or none; a callable ``step -> number`` starts a schedule, a number ends it."""
        given = {name: paired(name, value) for name, value in given.items()}
        by_count = self.schedules or "step" in given or any(map(callable, given.values()))
        if self.fetch is not None and by_count:
            self.fetch(self)
        step = self._checked("step", given.get("step", self.entries["step"]), 0)
        checked = {name: self._checked(name, value, step) for name, value in given.items()}
        kept = {name: schedule for name, schedule in self.schedules.items() if name not in given}
        if "step" in given:
            numbers_at(step, kept)  # else the next step would be refused
        driving = kept | {name: value for name, value in given.items() if is_scheduled(name, value)}
        # Here nothing is called: an interrupt, which comes when a call returns, finds none of the three done, or all.
        self.entries |= checked
        self.schedules = driving
        self.version += 1

    def _checked(self, name: str, value: Any, step: int) -> Any:
        if name == "step":
            return Count(limit=RESUMABLE).check("the step of a group", value)
        if is_scheduled(name, value):
            value = value(step)
        checked = check(name, value)
        is_in_use = self.fetch is not None
        if is_in_use and name in FIXED_OPTIONS and checked != self.entries.get(name, ADDED_DEFAULTS[name]):
            made = f"numbers lie in memory as it says: make another optimizer with {name}={value!r:.80}"
            instead = {
                "seed": "random bits go on from it: change it in the 'param_groups' of a state_dict(), and load that",
                "rowwise": f"{made}, whose accumulators begin anew",
            }.get(name, f"{made}, and load this one's state_dict() there")
            raise ValueError(f"{name} of group {self.index} is fixed, since {instead}")
        return checked

    def saved_seed(self, saved: Mapping[str, Any]) -> dict[str, int]:
        """Return the seed of a group in a state dict, whose random bits go on, unless it is this one's or has none."""
        seed = check("seed", saved.get("seed", ADDED_DEFAULTS["seed"]))
        own = self.entries.get("seed", ADDED_DEFAULTS["seed"])
        return {"seed": seed} if saved.get("stochastic_rounding") and seed != own else {}

    def described(self) -> dict[str, Any]:
        """Describe the schedules as plain Python, by option."""
        return {option: describe(schedule) for option, schedule in self.schedules.items()}

    def undescribed(self) -> dict[str, StepFunction]:
        """Return the schedules that are, or contain, functions of the user's, which no description can restore."""
        plain = {
            name: described if isinstance(described, list) else [described]
            for name, described in self.described().items()
        }
        return {name: self.schedules[name] for name, parts in plain.items() if CALLABLE in parts}

    def functions(self) -> Iterator[tuple[str, StepFunction]]:
        """Iterate over all functions of the step, with the name of what each drives: ``betas[0]`` in a pair."""
        for name, schedule in self.schedules.items():
            if isinstance(schedule, Pair):
                yield from ((f"{name}[{i}]", part) for i, part in enumerate(schedule) if callable(part))
            else:
                yield name, schedule

    def ask_schedules(self, ahead: int = 0) -> dict[str, Any]:
        """Evaluate the schedules for the next step, or one so many ahead; set and return `upcoming`, and no more."""
        numbers = numbers_at(self.entries["step"] + ahead, self.schedules) if self.schedules else {}
        self.upcoming = {**self.entries, **numbers}
        return self.upcoming

    def take_upcoming(self) -> None:
        """Make the schedules' numbers of the step under way the current ones, unless the schedule has ended."""
        for name in self.schedules.keys() & self.upcoming.keys():  # an option that begins with a schedule is not there
            self.entries[name] = self.upcoming[name]

    def catch_up(self) -> None:
        """Set the numbers that schedules drive to those of the latest step."""
        if self.schedules:
            self.ask_schedules(-1)
            self.take_upcoming()

    def restored_schedules(self, described: Any) -> dict[str, StepFunction]:
        """Return the schedules that a state dict describes; functions are the group's own ones."""
        allowed = {*SCHEDULABLE} & {*self.entries, *ADDED_OPTIONS}
        if not isinstance(described, Mapping) or not described.keys() <= allowed:
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
        """Return the group's own plateaus that are to take over another one: option, own, other."""
        pairs = [(name, self.schedules.get(name), schedule) for name, schedule in restored.items()]
        return [(n, a, b) for n, a, b in pairs if isinstance(a, Plateau) and isinstance(b, Plateau) and a is not b]

    def restore(self, options: Mapping[str, Any], restored: Mapping[str, StepFunction]) -> None:
        """Take over checked options and schedules; these go on from the restored step count."""
        self.entries.update(options)
        pairs = self.own_plateaus(restored)
        for _, own, plateau in pairs:
            own.become(plateau)  # whoever holds it goes on calling its update
        self.schedules = {**restored, **{name: own for name, own, _ in pairs}}
        self.version += 1

    def count(self, steps: int = 1) -> None:
        """Add completed steps to the count."""
        self.entries["step"] += steps


def numbers_at(step: int, schedules: Mapping[str, StepFunction]) -> dict[str, Any]:
    """Evaluate schedules at a step count, and check the numbers."""
    return {name: check(name, schedule(step)) for name, schedule in schedules.items()}


CALLABLE = {"name": "callable"}


def describe(schedule: StepFunction) -> Any:
    """Describe a schedule as plain Python; a bare callable, or a class of the user's, is only called so."""
    if isinstance(schedule, Pair):
        return [describe(part) if callable(part) else float(part) for part in schedule]
    if isinstance(schedule, (schedules.Schedule, Plateau)):
        with contextlib.suppress(TypeError):  # for a class of the user's, perhaps deep inside
            return schedule.to_dict()
    return dict(CALLABLE)


def record_of(schedule: Any) -> Array | None:
    """Return the record from which C++ evaluates a schedule; None for a number, or if only Python can evaluate it."""
    try:
        return schedule.record() if isinstance(schedule, schedules.Schedule) else None
    except TypeError:  # a class of the user's, perhaps deep inside
        return None


def check_shared(groups: Sequence[GroupOptions], restored: Sequence[Mapping[str, StepFunction]]) -> None:
    """Raise if one plateau drives several groups, and the state dict has different ones for these."""
    becomes: dict[int, dict[str, Any]] = {}
    for group, schedules_of_group in zip(groups, restored, strict=True):
        for name, own, plateau in group.own_plateaus(schedules_of_group):
            if becomes.setdefault(id(own), plateau.to_dict()) != plateau.to_dict():
                raise ValueError(
                    f"the Plateau that drives {name} of group {group.index} drives another group as well, for which "
                    "the state dict has another one: give each group its own before loading"
                )
