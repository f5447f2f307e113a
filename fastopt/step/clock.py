"""The clock of an optimizer: step counts of groups and parameters, and the hyper rows of the next step."""

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
from ..options import STAGE_OPTIONS
from ..rules import RULES, SPARSE_ADAM, Options, Row, Rule
from .group import GroupOptions, record_of
from .guard import Guard
from .interrupts import HeldBack
from .launch import AmpState
from .parameter import Parameter, StepGroup
from .plan import Located, Plan
from .stages import Stages, check_alike

NUMBERS = {rule: number for number, rule in enumerate((*RULES.values(), SPARSE_ADAM))}  # in ROW_INPUTS
REPEATABLE = {"lr", "weight_decay", *STAGE_OPTIONS}  # schedules of others can change the rule, or get out of range
REPEATED_LIMIT = 2**50  # of steps under a schedule, which end at 2**51: nobody takes as many in between


class State(enum.Enum):
    """Who counts the steps."""

    HOST = "the host, step by step"
    CREDITED = "the extension, which repeats the last step; the host adds its steps on demand"
    DEVICE = "the GPUs; the host reads their count on demand, and waits for them"
    CAPTURED = "the GPUs, for good: a graph holds a step, so its tables and states must stay where they are"


class Tally:
    """The steps that the extension has taken, and how many of these are in the counts already.

    Attributes
    ----------
    asked : int or None
        How many steps it had taken when Python last asked the schedules; None while the extension evaluates them.
    """

    def __init__(self) -> None:
        self.repetition: Repetition | None = None
        self.credited = 0
        self.asked: int | None = None

    def begin(self, repetition: Repetition) -> None:
        """Begin to count the steps that a repetition takes from now on."""
        self.end()  # nothing is pending, whatever comes in between
        self.credited = repetition.taken
        self.repetition = repetition

    def end(self) -> None:
        """Forget the repetition, whose steps are in the counts."""
        self.repetition = None

    @property
    def pending(self) -> int:
        """How many steps are not in the counts yet."""
        return 0 if self.repetition is None else self.repetition.taken - self.credited

    def credit(self) -> int:
        """Return these; the caller adds them to the counts."""
        steps = self.pending
        self.credited += steps
        return steps

    def show(self, group: GroupOptions) -> None:
        """Show the numbers of the latest step, which is in the group's count or was asked for last."""
        if self.asked is None:
            group.catch_up()
        elif self.repetition is not None and self.repetition.taken > self.asked:
            group.take_upcoming()


class Fetch:
    """Brings a group up to date by its clock or, if the optimizer is gone, by the tally that it left."""

    def __init__(self, clock: Clock) -> None:
        self.clock = weakref.ref(clock)  # the clock holds the group: a strong reference would be a cycle
        self.tally, self.guard = clock.tally, clock.guard
        self.is_done = False

    def __call__(self, group: GroupOptions) -> None:
        """Bring it up to date."""
        with self.guard.mutex:
            clock = self.clock()
            if clock is not None:
                clock.settle()
            elif not self.is_done and self.tally.pending:
                with HeldBack():
                    self.is_done = True
                    group.count(self.tally.pending)
                    self.tally.show(group)


class Clock:
    """Counts steps, evaluates schedules and computes hyper rows; nobody else does.

    ::

                  start_repeating             by_device             recording
        CREDITED  <--------------  HOST  ------------------> DEVICE ----------> CAPTURED
                  -------------->        <------------------
                        end                      end

    This class has the first two states, `DeviceClock` all four.

    A step calls ``poll`` (options of the next step), ``form`` (step groups) and ``advance`` (hyper rows), launches, and
    calls ``count``. A step that the extension takes calls ``keep_up``. Whoever reads a count calls ``settle`` first.

    Parameters
    ----------
    plan : Plan
    groups : sequence of GroupOptions
    choose : callable
        ``choose(options)``, the rule that a group's options ask for; raises ValueError where they contradict.
    guard : Guard
    stages : Stages
    counts_groups : bool, default True
        Whether it counts the groups' steps too, and not only those of parameters.

    Attributes
    ----------
    rules : list of Rule
        The rule of each group in the next step.
    step_groups : list of StepGroup
        The parameters that take part, by hyper row.
    hypers, carried, next : array of float64
        For each step group its hyper row, and its carried number after the latest step and after the step under way.
    steady : bool
        Whether the rows are up to date with options, scale and step groups.
    moving : bool
        Whether the rows change from step to step all the same.
    assigned : bool
        Whether an option was assigned between the last two steps that were not repeated.
    scheduled, needs_python : bool
        Whether there are schedules; whether one is a function that only Python can call.
    repeatable : bool
        Whether the extension may take steps with these.
    staged : bool
        Whether the groups have options of the stages.
    """

    def __init__(
        self,
        plan: Plan,
        groups: Sequence[GroupOptions],
        choose: Callable[[Options], Rule],
        guard: Guard,
        stages: Stages,
        counts_groups: bool = True,
    ) -> None:
        self.plan, self.groups, self.choose, self.guard, self.stages = plan, groups, choose, guard, stages
        self.counted = groups if counts_groups else ()
        self.state = State.HOST
        self.scale = 1.0  # factor of all gradients in the next step
        self.rules: list[Rule] = []
        self.versions: list[tuple[GroupOptions, int]] = []  # of the groups, at the last poll
        self.step_groups: list[StepGroup] = []
        self.formed = 0  # how often step groups were formed
        self.hypers, self.carried, self.next = np.zeros((0, HYPERS)), np.ones(0), np.ones(0)
        self.steady = self.moving = False
        self.assigned, self.staged = True, False
        self.scheduled = self.needs_python = self.repeatable = False
        self.repetition: Repetition | None = None  # of the last step, in the state CREDITED
        self.aside: Repetition | None = None  # the same, while steps of another kind are not to repeat it
        self.tally = Tally()
        kinds = sorted({(parameter.group.index, parameter.dtype) for parameter in plan.parameters})
        self._kinds = [(index, dtype, f" of group {index}") for index, dtype in kinds]
        self._complex = next((parameter for parameter in plan.parameters if parameter.is_complex), None)
        options = [group.entries for group in groups]
        self.check_options([choose(entries) for entries in options], options)

    def attach(self) -> None:
        """From now on, bring the groups up to date whenever somebody reads them."""
        for group in self.counted:
            group.fetch = Fetch(self)

    @property
    def is_behind(self) -> bool:
        """Whether the groups may be behind, since the extension or a GPU counts."""
        return self.state is not State.HOST

    @property
    def on_devices(self) -> bool:
        """Whether GPUs count."""
        return self.state in (State.DEVICE, State.CAPTURED)

    # Options

    def check_options(self, rules: Sequence[Rule], options: Sequence[Options]) -> None:
        """Raise if options of a group are too large for the dtype of one of its parameters, or do not go with it."""
        for index, dtype, whose in self._kinds:
            rules[index].check_options(options[index], dtype, whose)
        if self._complex is not None and any(of.get("clip_grad_value") is not None for of in options):
            raise TypeError(
                f"clip_grad_value does not go with complex numbers, which {self._complex} has: clip them by "
                f"max_grad_norm, or in an optimizer of their own"
            )

    def versions_now(self) -> list[tuple[GroupOptions, int]]:
        """Return each group with its version."""
        return [(group, group.version) for group in self.groups]

    def chosen(self) -> list[Rule]:
        """Evaluate the schedules for the next step, check the options, and return the rule of each group."""
        upcoming = [group.ask_schedules() for group in self.groups]
        rules = [self.choose(options) for options in upcoming]
        self.check_options(rules, upcoming)
        return rules

    def poll(self, scale: float, amp: AmpState | None) -> None:
        """Poll the options of the next step, and decide who counts it.

        Parameters
        ----------
        scale : float
            Factor of all gradients.
        amp : AmpState or None
            GradScaler's scale and found_inf. Only if all parameters are on GPUs.
        """
        self.end()
        self._take_scale(scale)
        self.assigned = self._ask()

    def _take_scale(self, scale: float) -> None:
        if scale != self.scale:
            self.scale, self.steady = scale, False

    def _ask(self) -> bool:
        """Poll the groups if their options may have changed; return whether any was assigned."""
        versions = self.versions_now()
        assigned = versions != self.versions
        if assigned or self.scheduled:
            self.steady = False
            first = not self.versions
            if assigned:
                self.look_for_stages()
            self.rules = self.chosen()
            if self.staged or first:
                self.stages.take(self.groups[0].upcoming)
            if assigned:
                self.look_at_schedules()
            self.versions = versions  # from before: an assignment by a schedule counts for the next step
        return assigned

    def look_for_stages(self) -> None:
        """Find out whether groups have options of the stages, and raise unless all have the same."""
        self.staged = any(name in group.entries for group in self.groups for name in STAGE_OPTIONS)
        if self.staged:
            check_alike(self.groups)

    def look_at_schedules(self) -> None:
        """Find out what the schedules ask for, after options were assigned."""
        driven = [group for group in self.groups if group.schedules]
        self.scheduled = bool(driven)
        self.needs_python = any(
            record_of(function) is None or name in STAGE_OPTIONS
            for group in driven
            for name, function in group.functions()
        )
        self.repeatable = all(group.schedules.keys() <= REPEATABLE for group in driven)

    def goes_on(self) -> bool:
        """Say whether the next step has the options of the last one, or the extension computes its rows."""
        if self.tally.asked is not None:
            return False
        for group, version in self.versions:  # noqa: SIM110 (all() takes half as long again)
            if group.version != version:
                return False
        return True

    def ask_now(self) -> None:
        """Bring counts and options up to date on the host, for rows of single parameters."""

    # Steps

    def check(self, gradients: Located) -> None:
        """Raise if the next step cannot be taken with these gradients."""

    def prepare_launches(self, rows: int) -> None:
        """Prepare launches for so many hyper rows, where that may fail or take long."""

    def form(self, taking_part: bytes) -> None:
        """Form the step groups: parameters of one group with the same step count share a hyper row."""
        self.write_counts()
        found: dict[tuple[float, int, int, bool], StepGroup] = {}
        for parameter, part in zip(self.plan.parameters, taking_part, strict=True):
            if not part:
                continue
            group, rule = parameter.group, self.rules[parameter.group.index]
            new_states = parameter.new_states(rule, self.stages.averages)
            first = any(name in new_states for name in rule.states)
            key = parameter.carried, group.index, parameter.step, first
            if key not in found:
                found[key] = StepGroup(group, rule, parameter.step, first)
            found[key].parameters.append(parameter)
            found[key].new_states.append(new_states)
            found[key].begins = found[key].begins or bool(new_states)
        self.prepare_launches(len(found))
        with HeldBack():
            self.steady, self.formed = False, self.formed + 1
            self.step_groups, self.hypers = list(found.values()), np.zeros((len(found), HYPERS))
            self.carried = np.array([carried for carried, *_ in found], np.float64)
            self.next = self.carried.copy()
            self.plan.form(taking_part, self.step_groups, self.hypers, self.stages.averages)

    def advance(self) -> None:
        """Compute the hyper rows of the next step, unless those of the last one still hold."""
        if self.moving or not self.steady:
            self._write_rows()

    def _write_rows(self, ahead: int = 0) -> None:
        steady, moving = True, False
        for number, step_group in enumerate(self.step_groups):
            rule, step = step_group.rule, step_group.step + ahead + 1
            options: Options = step_group.group.upcoming
            if rule.carried is not None:
                self.next[number] = carried = rule.carried_after(options, step, float(self.carried[number]))
                options = rule.with_carried(options, carried)
            factor, *row = rule.row(options, step, step_group.first)
            self.hypers[number, : len(row) + 1] = factor * self.scale, *row
            steady = steady and not step_group.first
            moving = moving or rule.moves(options)
        self.steady, self.moving = steady, moving

    @property
    def steps(self) -> int:
        """How many steps came before this one, for the random bits of all groups: as the first one counts."""
        steps: int = self.groups[0].entries["step"]
        return steps

    def number_launches(self) -> None:
        """Tell the launches how many steps came before this one."""
        for launch in self.plan.launches:
            launch.write_count(self.steps)

    def count(self) -> None:
        """Count the step that was launched; the parameters keep the states that began with it."""
        self.carried[:] = self.next
        for step_group in self.step_groups:
            step_group.step += 1
            step_group.first = False
            if step_group.begins:
                self.keep_states(step_group)
        for group in self.groups:
            group.take_upcoming()
        for group in self.counted:
            group.count()

    def count_alone(self, parameter: Parameter) -> None:
        """Count a step of a single parameter."""
        parameter.step += 1

    def count_groups(self) -> None:
        """Count a step of the groups; their parameters have clocks of their own."""
        with HeldBack():
            for group in self.groups:
                group.count()

    def row_of(self, parameter: Parameter, scale: float, first: bool) -> Row:
        """Return the hyper row for a step of a single parameter, whose states may begin with it."""
        rule = self.rules[parameter.group.index]
        factor, *row = rule.row(parameter.group.upcoming, parameter.step + 1, first)
        return factor * scale, *row

    def measure(self, scale: float) -> bool:
        """Have GPUs take the norm of the gradients, and decide by it; return False if the host has to."""
        return False

    def grad_norm(self) -> Any:
        """Return the norm of the last step's gradients; None before the first one was taken."""
        return self.stages.norm

    def keep_states(self, group: StepGroup) -> None:
        """Give the parameters the states that begin with a step."""
        for parameter, new_states in zip(group.parameters, group.new_states, strict=True):
            parameter.keep(new_states)
        group.new_states, group.begins = [], False
        self.plan.forget_extents()

    def prepare(self) -> None:
        """Prepare for steps that the host will not see, after one that was taken."""

    # Repetitions

    def start_repeating(self) -> None:
        """Let the extension take the next steps, if they can repeat the last one."""
        if not (self.repeatable and self.counted and self.state is State.HOST):
            return
        repetition = self.plan.repetition(self.stages.measures)
        if repetition is not None:
            repetition.set_rows(self.hypers, self.carried, self.next, self.scale, self.plan.largest)
            self.stages.clip["factor"] = abs(self.scale)  # nothing is pending in steps to come
            repetition.set_clip(self.stages.clip if self.stages.measures else None)
            self.tally.begin(repetition)
            self.tally.asked = repetition.taken
            self.repetition, self.state = repetition, State.CREDITED
            if self.can_describe:
                self._describe_rows(repetition)

    def keep_up(self, repetition: Repetition) -> bool:
        """Bring the rows of a repetition up to date where it does not; return whether it can take the next step."""
        versions = self.versions_now()
        if versions != self.versions:
            self.look_for_stages()
            self.look_at_schedules()
            if not self.repeatable or [self.choose(group.entries) for group in self.groups] != self.rules:
                return False
        elif self.can_describe:
            self._describe_rows(repetition)
            return True
        with self.guard.stepping:
            if not self._compute_rows(repetition):
                return False
        self.versions = versions  # from before: an assignment by a schedule counts for the next step
        return True

    def _compute_rows(self, repetition: Repetition) -> bool:
        """Compute the rows and numbers of the next step; return False if it needs other kernels than the last one."""
        tally = self.tally
        if tally.asked is None:
            self._credit()
            repetition.keep_rows()
        elif repetition.taken > tally.asked:
            for group in self.groups:
                group.take_upcoming()
        tally.asked = taken = repetition.taken  # before any group has other numbers
        ahead = taken - tally.credited
        self.check_options(self.rules, [group.ask_schedules(ahead) for group in self.groups])
        if self.staged:
            if not self.stages.goes_on(self.groups[0].upcoming):
                return False
            self.stages.take(self.groups[0].upcoming)
            self.plan.write_stages(self.stages, self.scale)
        self._write_rows(ahead)
        return True

    @property
    def can_describe(self) -> bool:
        """Whether the extension can evaluate all schedules, in all steps that anybody will take."""
        return not self.needs_python and all(
            group.entries["step"] < REPEATED_LIMIT for group in self.groups if group.schedules
        )

    def _describe_rows(self, repetition: Repetition) -> None:
        self._credit()
        repetition.describe(*self._inputs(repetition.taken))
        self.tally.asked = None

    def _inputs(self, taken: int) -> tuple[npt.NDArray[Any] | None, list[Array]]:
        """Return the row inputs (None if the rows stay) and the records to which these point."""
        if self.steady and not self.moving and not any(group.schedules for group in self.groups):
            return None, []
        records: list[Array] = []

        def hold(record: Array) -> int:
            records.append(record)
            return address(record)

        inputs = np.zeros(len(self.step_groups), ROW_INPUTS)
        for row, step_group in zip(inputs, self.step_groups, strict=True):
            describe(row, step_group, hold, taken)
        return inputs, records

    def set_aside(self) -> None:
        """Keep a repetition of steps of another kind for the next one of these."""
        self.aside, self.repetition = self.repetition, None

    def take_back(self) -> None:
        """Go on with the repetition that was set aside."""
        self.repetition, self.aside = self.aside, None

    def stop_repeating(self) -> None:
        """Take the next step in full."""
        self.aside = None
        if self.state is State.CREDITED:
            self._credit()
            self.repetition, self.state = None, State.HOST
            self.tally.end()

    def end(self) -> None:
        """Let the host count again."""
        self.stop_repeating()

    def _credit(self) -> None:
        if self.tally.pending:
            with HeldBack():
                self._add(self.tally.credit())
                self.steady = self.steady and self.tally.asked is not None  # else the extension has written other rows

    def _add(self, steps: int) -> None:
        """Add steps that the extension or a GPU has counted."""
        for step_group in self.step_groups:
            step_group.step += steps
        for group in self.counted:
            group.count(steps)
        for group in self.groups:
            self.tally.show(group)

    # Counts

    def settle(self) -> None:
        """Bring the counts of groups and step groups up to date."""
        if self.state is State.CREDITED:
            self._credit()

    def write_counts(self) -> None:
        """Bring all counts up to date, and write them into the parameters."""
        self.settle()
        for group, carried in zip(self.step_groups, self.carried.tolist(), strict=True):
            for parameter in group.parameters:
                parameter.step, parameter.carried = group.step, carried

    def refuse_captured(self) -> None:
        """Raise if a graph may hold a step: what it uses must not be replaced."""


def describe(row: Any, group: StepGroup, hold: Callable[[Array], int], known: int = 0) -> None:
    """Write a row of ROW_INPUTS for a step group.

    Parameters
    ----------
    row : row of ROW_INPUTS
    group : StepGroup
    hold : callable
        Keeps a schedule's record and returns its address.
    known : int, default 0
        The steps that whoever uses the row adds to its counts already.
    """
    rule, options = group.rule, group.group
    row["rule"], row["first"], row["steps"] = NUMBERS[rule], group.first, group.step - known
    row["schedule_steps"] = options.entries["step"] - known
    given = rule.with_carried(options.upcoming, 1.0)  # whoever uses the row puts the carried number in its place
    driven = rule.numbers({**given, **options.schedules})
    for i, ((_, number), (_, schedule)) in enumerate(zip(rule.numbers(given), driven, strict=True)):
        row["options"][i] = number
        if (record := record_of(schedule)) is not None:
            row["schedules"][i] = hold(record)
