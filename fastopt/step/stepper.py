"""Takes the steps of one optimizer, in the same few lines for NumPy, CuPy and PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..kernels.dtypes import CODES, STORED
from ..rules import Family, Rule
from .clock import Clock
from .codes import blocks
from .group import GroupOptions
from .guard import Guard
from .interrupts import HeldBack
from .launch import AmpState
from .norm import total
from .parameter import EMA, Parameter
from .plan import Located, Plan
from .sparse import Clip, Rows, check_rowwise, check_rule, check_there
from .stages import Stages


class Stepper:
    """The plan and the clock of some parameters, and the steps that they take together.

    Not thread-safe: the caller holds the guard's mutex, and for a step also its `stepping`.

    Parameters
    ----------
    parameters : sequence of Parameter
        Those of all groups, in order.
    groups : sequence of GroupOptions
    family : Family
        The rules between which a group's options choose.
    guard, stages
        The optimizer's.
    counts_groups : bool, default True
        Whether the groups' steps are counted too, and not those of parameters alone.

    Raises
    ------
    ValueError
        If parameters overlap in memory, or options contradict each other or are too large.
    """

    instead: ClassVar = ("a dense one", "SGD or Adagrad")  # of a sparse gradient, and of rules that take none

    def __init__(
        self,
        parameters: Sequence[Parameter],
        groups: Sequence[GroupOptions],
        family: Family,
        guard: Guard,
        stages: Stages,
        counts_groups: bool = True,
    ) -> None:
        for parameter in parameters:
            check_rowwise(parameter, family)
        self.family, self.plan, self.stages = family, Plan(parameters), stages
        self.rows: dict[int, Any] = {}  # of the sparse gradients in the step under way
        self.clock = clock_of(self.plan)(self.plan, groups, family.choose, guard, stages, counts_groups)

    def repeat(self, gradients: Located) -> bool:
        """Take the last step again in one call of C, if only gradients and rows differ; return whether it did."""
        clock, plan = self.clock, self.plan
        repetition = clock.repetition
        if repetition is None or gradients.strided or gradients.taking_part != plan.taking_part:
            return False
        if gradients.others or gradients.sparse or gradients.there:
            return False
        return (clock.goes_on() or clock.keep_up(repetition)) and plan.take_again(repetition, gradients)

    def take(self, gradients: Any, scale: float = 1.0, amp: AmpState | None = None) -> None:
        """Take a step: update every parameter that has a gradient.

        Whatever can fail comes before the first launch. An interrupt comes before the step or after it.

        Parameters
        ----------
        gradients : Located
        scale : float, default 1.0
            Factor of all gradients.
        amp : AmpState, optional
            GradScaler's scale and found_inf: the GPUs unscale the gradients, and may skip the step.
        """
        try:
            self._take(gradients, scale, amp)
        finally:
            self.rows = {}  # which hold gradients

    def _take(self, gradients: Any, scale: float, amp: AmpState | None) -> None:
        clock, plan, stages = self.clock, self.plan, self.stages
        stages.beside = bool(gradients.sparse)
        clock.poll(scale, plan.checked(amp) if gradients.are_checked_there else amp)
        for i, given in gradients.there.items():
            parameter = plan.parameters[i]
            rule = clock.rules[parameter.group.index]
            if not given.dense:
                check_rule(parameter, self.family, rule, *self.instead)
            check_there(parameter, rule, stages)
        if gradients.sparse:
            self.find_rows(gradients)
        self.prepare(gradients)
        clock.check(gradients)
        plan.arrange(clock.rules, stages.kernel, gradients)
        if gradients.taking_part != plan.taking_part:
            clock.form(gradients.taking_part)
        plan.load(gradients)
        if stages.kernel:
            plan.write_stages(stages, scale)
        if stages.measures:
            plan.prepare_norm()
        with HeldBack():
            if not self.goes_on(gradients, scale):
                return
            self.begin(gradients)
            clock.advance()
            clock.number_launches()
            for launch in plan.launches:
                launch()
            clock.count()
            self.finish(gradients)
        clock.prepare()
        if self.can_repeat():
            clock.start_repeating()

    def goes_on(self, gradients: Any, scale: float) -> bool:
        """Take the norm of the gradients, and say whether the step goes on, or is skipped."""
        stages, plan = self.stages, self.plan
        if stages.measures and self.clock.measure(scale):
            return True
        stages.coefficient = stages.pending
        if stages.measures and not stages.measure(self.sum_squares, scale, self.norms_beside(gradients)):
            plan.forget()  # states that would have begun with this step begin with another one
            return False
        plan.multiply(stages.coefficient, stages.measures)
        return True

    def sum_squares(self, power: float) -> float:
        """Return the sum of squares of all gradients in launches, times a power of two."""
        return total(self.plan.launches, power)

    def norms_beside(self, gradients: Any) -> list[float]:
        """Return the norms of gradients that take no part in launches."""
        return [rows.norm for rows in self.rows.values()]

    def find_rows(self, gradients: Any) -> None:
        """Find the rows of sparse gradients, and make what they need: all that can fail."""
        self.clock.ask_now()
        for i, gradient in gradients.sparse.items():
            parameter = self.plan.parameters[i]
            clip = (gradients.scale, self.stages.limit) if self.stages.clips_by_value else None
            rows = self.rows_of(parameter, self.clock.rules[parameter.group.index], gradient, clip)
            if (other := self.plan.extents.overlapping(rows.read)) is not None:
                raise ValueError(
                    f"the gradient of {parameter} overlaps {other} in memory: pass a .copy() of its values"
                )
            self.rows[i] = rows

    def rows_of(self, parameter: Any, rule: Rule, gradient: Any, clip: Clip) -> Any:
        """Return the rows of a parameter that a sparse gradient has."""
        if not gradient.dense:
            check_rule(parameter, self.family, rule, *self.instead)
        return Rows(parameter, rule, gradient, clip, self.stages.averages)

    def memory(self) -> dict[str, int]:
        """Count the bytes of parameters, gradients, states, their scales and masters, once all gradients have come."""
        found = dict.fromkeys(("parameters", "gradients", "states", "scales", "masters"), 0)
        for parameter in self.plan.parameters:
            entries, array = parameter.group.entries, parameter.array
            averaged = [EMA] if entries.get("ema_decay") is not None else []
            names = (*self.clock.choose(entries).states, *averaged)
            dtypes = [parameter.state_dtype(name) for name in names]
            sizes = [len(array) if parameter.is_of_rows(name) else array.size for name in names]
            found["parameters"] += array.nbytes
            found["gradients"] += parameter.gradient_bytes
            found["states"] += sum(size * STORED[dtype].itemsize for size, dtype in zip(sizes, dtypes, strict=True))
            found["scales"] += 4 * blocks(array.size) * sum(dtype in CODES for dtype in dtypes)
            found["masters"] += array.size * np.dtype(parameter.master or "V0").itemsize
        return found

    def can_repeat(self) -> bool:
        """Say whether the last step consists of launches and counts alone."""
        return not self.rows

    def prepare(self, gradients: Any) -> None:
        """Prepare what a library adds to the step, after the options are polled; may raise."""

    def begin(self, gradients: Any) -> None:
        """Update rows before the launches, which bring the averages of all parameters up to date."""
        for i, rows in self.rows.items():
            rows.keep_new_states()
            scale = 1.0 if self.stages.clips_by_value else gradients.scale
            row = self.clock.row_of(self.plan.parameters[i], scale * self.stages.coefficient, rows.first)
            rows.update(row, self.clock.steps)
            if rows.new_states:
                self.plan.forget_extents()

    def finish(self, gradients: Any) -> None:
        """Count the steps of parameters whose rows were updated."""
        for i in self.rows:
            self.clock.count_alone(self.plan.parameters[i])


def clock_of(plan: Plan) -> type[Clock]:
    """Choose the clock of a plan: GPUs can count steps too."""
    if plan.uses_gpus:
        from .device_clock import DeviceClock

        return DeviceClock
    return Clock
