"""The clock of an optimizer: how many steps its groups and parameters have taken, and the numbers of the next one."""

from __future__ import annotations

import enum
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels.reader import Array, address
from ..kernels.repetition import Repetition
from ..kernels.tables import HYPERS, ROW_INPUTS
from ..rules import RULES, Options, Row, Rule, check
from .group import GroupOptions, record_of
from .guard import Guard
from .interrupts import HeldBack
from .launch import AmpState
from .parameter import Parameter, StepGroup
from .plan import Located, Plan

NUMBERS = {name: number for number, name in enumerate(RULES)}  # of the rules in ROW_INPUTS
REPEATED_LIMIT = 2**50  # of steps under a schedule, which end at 2**51: nobody takes as many in between


class State(enum.Enum):
    """Who counts the steps."""

    HOST = "the host, one after the other"
    CREDITED = "the extension, which takes the last step again and again; the host adds them when somebody asks"
    DEVICE = "the devices; the host reads their count when somebody asks, which waits for them"
    CAPTURED = "the devices, for good: a graph holds a step, and its tables and states stay where they are"


class Tally:
    """How many steps the extension has taken, and how many of these were added to the counts."""

    def __init__(self) -> None:
        self.repetition: Repetition | None = None
        self.credited = 0

    def begin(self, repetition: Repetition) -> None:
        """Count the steps of a repetition, which has taken none yet."""
        self.credited, self.repetition = 0, repetition

    @property
    def pending(self) -> int:
        """How many are still to be added."""
        return 0 if self.repetition is None else self.repetition.taken - self.credited

    def credit(self) -> int:
        """Return them, to be added."""
        steps = self.pending
        self.credited += steps
        return steps


class Fetch:
    """Brings a group up to date, by its clock; where that is gone, by what the extension had counted until then."""

    def __init__(self, clock: Clock) -> None:
        self.clock = weakref.ref(clock)  # which has the group: no cycle that only the garbage collector could end
        self.tally = clock.tally
        self.is_done = False

    def __call__(self, group: GroupOptions) -> None:
        """Bring it up to date."""
        clock = self.clock()
        if clock is not None:
            clock.fetch()
        elif not self.is_done and self.tally.pending:
            with HeldBack():
                self.is_done = True
                group.count(self.tally.pending)
                catch_up(group)


class Clock:
    """The only one who counts steps, asks schedules and computes hyper rows.

    ::

                      repeat                        by_device              captured
        CREDITED  <-----------  HOST  ---------------------------> DEVICE ----------> CAPTURED
                  ----------->        <---------------------------
                      end                           end

    Here the first two; `DeviceClock` has the others as well.

    A step goes ``poll`` (the options of the next step), ``form`` (who shares a hyper row), ``advance`` (the rows),
    launch, ``count``. Whoever wants to know a count calls ``settle`` before.

    Parameters
    ----------
    plan : Plan
    groups : sequence of GroupOptions
    choose : callable
        ``choose(options)``, the rule that a group's options ask for; raises ValueError where they contradict.
    guard : Guard
    counts_groups : bool, default True
        Whether the groups' steps are counted too, and not those of parameters alone.

    Attributes
    ----------
    rules : list of Rule
        Of the groups, in the next step.
    step_groups : list of StepGroup
        Who takes part in the last step.
    hypers, carried : array of float64
        A hyper row for each of these, and the number that its rule hands on.
    steady : bool
        Whether the rows are those of these options, this scale and these step groups.
    moving : bool
        Whether they change with the count of steps all the same.
    """

    def __init__(
        self,
        plan: Plan,
        groups: Sequence[GroupOptions],
        choose: Callable[[Options], Rule],
        guard: Guard,
        counts_groups: bool = True,
    ) -> None:
        self.plan, self.groups, self.choose, self.guard = plan, groups, choose, guard
        self.counted = groups if counts_groups else ()
        self.state = State.HOST
        self.scale = 1.0  # of all gradients in the next step
        self.rules: list[Rule] = []
        self.versions: list[int] = []  # of the groups, when they were asked last
        self.step_groups: list[StepGroup] = []
        self.hypers = np.zeros((0, HYPERS))
        self.carried = np.ones(0)
        self.steady = self.moving = False
        self.repetition: Repetition | None = None  # the last step, where the extension may take it again
        self.tally = Tally()
        self._kinds = sorted({(parameter.group.index, parameter.dtype) for parameter in plan.parameters})
        options = [group.entries for group in groups]
        self.check_options([choose(entries) for entries in options], options)

    def attach(self) -> None:
        """Bring the groups' counts and numbers up to date, from now on, for whoever reads them."""
        for group in self.counted:
            group.fetch = Fetch(self)

    @property
    def is_behind(self) -> bool:
        """Whether somebody else counts, so that the groups' counts and numbers may be those of an earlier step."""
        return self.state is not State.HOST

    @property
    def on_devices(self) -> bool:
        """Whether devices count."""
        return self.state in (State.DEVICE, State.CAPTURED)

    # Options

    def check_options(self, rules: Sequence[Rule], options: Sequence[Options]) -> None:
        """Raise where options of a group are too large for what one of its parameters is computed in."""
        for index, dtype in self._kinds:
            rules[index].check_options(options[index], dtype, f" of group {index}")

    def chosen(self) -> list[Rule]:
        """Ask the schedules, and return the rules that the options of the next step ask for, which are checked."""
        for group in self.groups:
            group.ask_schedules()
        rules = [self.choose(group.upcoming) for group in self.groups]
        self.check_options(rules, [group.upcoming for group in self.groups])
        return rules

    def poll(self, scale: float, amp: AmpState | None) -> None:
        """Find out by which options the next step is taken, and who counts it.

        Parameters
        ----------
        scale : float
            What all gradients are first multiplied by.
        amp : AmpState or None
            Has another factor, and may be that the step is skipped. Only where all parameters lie on GPUs.
        """
        self.end()
        self._take_scale(scale)
        self._ask()

    def _take_scale(self, scale: float) -> None:
        if scale != self.scale:
            self.scale, self.steady = scale, False

    def _ask(self) -> bool:
        """Ask the groups for the next step's options, where these may have changed; say whether any was assigned."""
        versions = [group.version for group in self.groups]
        assigned = versions != self.versions
        if assigned or any(group.schedules for group in self.groups):
            self.steady = False
            self.rules = self.chosen()
            self.versions = versions  # of before: what a schedule assigns counts for the next step
        return assigned

    def unchanged(self) -> bool:
        """Say whether the next step has the options of the last one."""
        for group, version in zip(self.groups, self.versions, strict=True):  # noqa: SIM110 (half as long again by all())
            if group.version != version:
                return False
        return True

    def ask_now(self) -> None:
        """Ask for counts and options, since the host is to compute the rows of parameters alone."""

    # Steps

    def check(self, gradients: Located) -> None:
        """Raise where the next step cannot be taken with these gradients."""

    def form(self, taking_part: bytes) -> None:
        """Find out who shares a hyper row: parameters of one group that have taken as many steps."""
        self.write_counts()
        found: dict[tuple[int, int, float, bool], StepGroup] = {}
        for parameter, part in zip(self.plan.parameters, taking_part, strict=True):
            if not part:
                continue
            group, rule = parameter.group, self.rules[parameter.group.index]
            new_states = parameter.new_states(rule)
            key = group.index, parameter.step, parameter.carried, bool(new_states)
            if key not in found:
                found[key] = StepGroup(group, rule, parameter.step, parameter.carried, bool(new_states))
            found[key].parameters.append(parameter)
            found[key].new_states.append(new_states)
        with HeldBack():
            self.steady = False
            self.step_groups = list(found.values())
            self.hypers, self.carried = np.zeros((len(found), HYPERS)), np.ones(len(found))
            self.plan.form(taking_part, self.step_groups, self.hypers)

    def advance(self) -> None:
        """Compute the hyper rows of the next step, where they are not those of the last one."""
        if self.moving or not self.steady:
            self._write_rows()

    def _write_rows(self) -> None:
        for group in self.groups:
            group.take_upcoming()
        self.steady, self.moving = True, False
        for number, step_group in enumerate(self.step_groups):
            rule, options, step = step_group.rule, step_group.group.upcoming, step_group.step + 1
            self.carried[number] = rule.hand_on(options, step, step_group.carried)
            factor, *row = rule.row(rule.with_carried(options, float(self.carried[number])), step, step_group.first)
            self.hypers[number, : len(row) + 1] = factor * self.scale, *row
            self.steady = self.steady and not step_group.first
            self.moving = self.moving or rule.moves(options)

    def count(self) -> None:
        """Count the step that was launched; states that it began are the parameters' own from now on."""
        for number, step_group in enumerate(self.step_groups):
            step_group.step += 1
            step_group.carried = float(self.carried[number])
            if step_group.first:
                self.keep_states(step_group)
                step_group.first = False
        for group in self.counted:
            group.count()

    def count_alone(self, parameter: Parameter) -> None:
        """Count a step of one parameter alone."""
        parameter.step += 1

    def count_groups(self) -> None:
        """Count a step of the groups, whose parameters have clocks of their own."""
        with HeldBack():
            for group in self.groups:
                group.count()

    def row_of(self, parameter: Parameter, scale: float) -> Row:
        """Return the hyper row of one parameter alone, which takes part in the next step by itself."""
        rule = self.rules[parameter.group.index]
        factor, *row = rule.row(parameter.group.upcoming, parameter.step + 1, False)
        return factor * scale, *row

    def keep_states(self, group: StepGroup) -> None:
        """Make the states that a step begins the parameters' own."""
        for parameter, new_states in zip(group.parameters, group.new_states, strict=True):
            parameter.keep(new_states)
        group.new_states = []
        self.plan.forget_extents()

    # Repetitions

    def repeat(self) -> None:
        """Let the extension take the next steps, where they can be the last one again."""
        if not self.counted or self.state is not State.HOST or not all(map(can_repeat, self.groups)):
            return
        repetition = self.plan.repetition()
        if repetition is not None:
            repetition.set_rows(self.hypers, self.carried, *self._inputs(), self.scale, self.plan.largest)
            self.tally.begin(repetition)
            self.repetition, self.state = repetition, State.CREDITED

    def _inputs(self) -> tuple[npt.NDArray[Any] | None, list[Array]]:
        """Describe what hyper rows are computed from, with the records that this points to; None where they stay."""
        if self.steady and not self.moving and not any(group.schedules for group in self.groups):
            return None, []
        records: list[Array] = []

        def hold(record: Array) -> int:
            records.append(record)
            return address(record)

        inputs = np.zeros(len(self.step_groups), ROW_INPUTS)
        for row, step_group in zip(inputs, self.step_groups, strict=True):
            describe(row, step_group, hold)
        return inputs, records

    def end(self) -> None:
        """Let the host count again."""
        if self.state is State.CREDITED:
            self._credit()
            self.repetition, self.state = None, State.HOST

    def _credit(self) -> None:
        if self.tally.pending:
            with HeldBack():
                self._add(self.tally.credit(), self.carried.tolist())
                self.steady = False  # the rows are those of its last step

    def _add(self, steps: int, carried: Sequence[float]) -> None:
        """Add steps that somebody else has counted, and what rules hand on after these."""
        for step_group, number in zip(self.step_groups, carried, strict=False):  # on a GPU there is room for more
            step_group.step += steps
            step_group.carried = number
        for group in self.counted:
            group.count(steps)
        for group in self.groups:
            catch_up(group)

    # Counts

    def fetch(self) -> None:
        """Bring the groups' counts and numbers up to date, for somebody who reads them."""
        with self.guard.mutex:
            self.settle()

    def settle(self) -> None:
        """Bring the counts of groups and step groups up to date."""
        if self.state is State.CREDITED:
            self._credit()

    def write_counts(self) -> None:
        """Bring all counts up to date, and write them to the parameters."""
        self.settle()
        for group in self.step_groups:
            for parameter in group.parameters:
                parameter.step, parameter.carried = group.step, group.carried

    def refuse_captured(self) -> None:
        """Raise where a graph may hold a step, and what it uses would be exchanged."""


def can_repeat(group: GroupOptions) -> bool:
    """Say whether the extension knows all schedules of a group, and nothing that they come to is the host's affair."""
    if not group.schedules:
        return True
    few = group.schedules.keys() <= {"lr", "weight_decay"} and group.entries["step"] < REPEATED_LIMIT
    return few and all(record_of(function) is not None for _, function in group.functions())


def describe(row: Any, group: StepGroup, hold: Callable[[Array], int], known: int = 0) -> None:
    """Write into a row of ROW_INPUTS what a hyper row is computed from.

    Parameters
    ----------
    row : row of ROW_INPUTS
    group : StepGroup
    hold : callable
        Keeps a schedule's record, and returns its address.
    known : int, default 0
        So many of the steps were taken before the count that is added to the row's own.
    """
    rule, options = group.rule, group.group
    row["rule"], row["first"], row["steps"] = NUMBERS[rule.name], group.first, group.step - known
    row["schedule_steps"] = options.entries["step"] - known
    given = rule.with_carried(options.upcoming, group.carried)
    driven = rule.numbers({**given, **options.schedules})
    for i, ((_, number), (_, schedule)) in enumerate(zip(rule.numbers(given), driven, strict=True)):
        row["options"][i] = number
        if (record := record_of(schedule)) is not None:
            row["schedules"][i] = hold(record)


def catch_up(group: GroupOptions) -> None:
    """Make the numbers of a group's schedules those of its latest step."""
    if group.schedules:
        step = group.entries["step"] - 1
        numbers = {name: check(name, schedule(step)) for name, schedule in group.schedules.items()}
        group.upcoming = {**group.entries, **numbers}
        group.take_upcoming()
