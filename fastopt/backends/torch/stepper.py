"""Takes the steps of an optimizer of torch, for as long as its tensors stay the same and in place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # which is public all the same

from ...kernels.reader import Array
from ...kernels.repetition import TORN
from ...kernels.tensors import OUT_OF_DATE, PARAMS, Watch, call_of, exchange_table
from ...rules import Family, Rule
from ...step.group import GroupOptions
from ...step.guard import Guard
from ...step.norm import Measured, measure
from ...step.parameter import EMA
from ...step.sparse import Clip, check_rule
from ...step.stages import Stages, needs_norm
from ...step.stepper import Stepper
from .counts import Counts
from .device import AmpState
from .gradients import GRAD, Gradients, has_plain_gradient, readable_gradient
from .memory import alias_of, behind, is_distributed, local, slots_of_distributed
from .parameter import TorchParameter
from .shards import Shards
from .sparse import CopiedRows, TensorRows

TABLE = exchange_table(Tensor)
INCREMENT = getattr(torch._C, "_increment_version", increment_version)  # what that calls
GRADIENT_TYPE = Tensor  # exactly: others are read in Python
NO_COUNTS = np.zeros(0)
SHARDS_ON_GPUS = (
    "max_grad_norm and skip_nonfinite need the norm of parameters that are distributed over several GPUs, which a step "
    "cannot take there: leave them out, and call the optimizer's clip_grad_norm_(max_norm) before the step"
)


def trains(param: Tensor) -> bool:
    """Say whether a parameter is to be updated; a frozen one may be of any kind until it has a gradient."""
    return param.requires_grad or param.grad is not None


class Part:
    """The parameters that take part in a step, one byte for each, and the others that have averages."""

    def __init__(self, parameters: Sequence[TorchParameter], everyone: bytes, bits: bytes) -> None:
        self.bits = bits
        self.which = slice(None) if bits == everyone else np.frombuffer(bits, bool)
        taking_part = [parameter for parameter, bit in zip(parameters, bits, strict=True) if bit]
        self.averaged = [p for p, bit in zip(parameters, bits, strict=True) if not bit and EMA in p.states]
        self.with_gaps = [parameter for parameter in taking_part if parameter.has_gaps]
        self.repeatable = bits == everyone and not self.with_gaps
        self.written = [tensor for parameter in taking_part for tensor in parameter.counted()]
        self.written += [alias_of(parameter.states[EMA]) for parameter in self.averaged]
        self.call = call_of(INCREMENT, self.written)  # tells autograd of a repeated step
        # Version counters of tensors that C++ holds as well are incremented in a quarter of the time.
        self.held = [to_dlpack(tensor) for tensor in self.written if not is_distributed(tensor)]


class TorchStepper(Stepper):
    """Updates parameters of an optimizer of torch, for as long as these and their states stay the same and in place.

    Parameters
    ----------
    family : Family
    groups : sequence of GroupOptions
    names : sequence of sequences
        What the parameters of each group are called.
    given : list of dict
        The groups as torch has them, at least with their ``params``, into all of which others may write.
    states : dict
        Parameter -> its state: dicts that others may write into.
    eager : bool
        Whether states are made at once, and not with a parameter's first gradient.
    guard, stages, counts_groups
        As for `Stepper`.
    first : int
        The place of the first parameter among all of the optimizer.

    Raises
    ------
    TypeError, ValueError
        If a parameter cannot be updated, a state is not its parameter's, or options contradict each other.
    """

    instead = (".to_dense() of it", "Adagrad or SparseAdam")

    def __init__(
        self,
        family: Family,
        groups: Sequence[GroupOptions],
        names: Sequence[Sequence[Any]],
        given: list[dict[str, Any]],
        states: dict[Any, Any],
        eager: bool,
        guard: Guard,
        stages: Stages,
        counts_groups: bool = True,
        first: int = 0,
    ) -> None:
        self.parameters: list[TorchParameter] = []
        self.frozen: list[Tensor] = []  # until they have a gradient
        places = count(first)
        for group, keys, entries in zip(groups, names, given, strict=True):
            for key, param in zip(keys, entries[PARAMS], strict=True):
                number = next(places)
                if trains(param):
                    self.parameters.append(TorchParameter(key, param, group, states))
                    self.parameters[-1].number = number
                else:
                    self.frozen.append(param)
        for parameter in self.parameters:
            parameter.adopt(family)
        super().__init__(self.parameters, groups, family, guard, stages, counts_groups)
        if eager:
            for parameter in self.parameters:
                parameter.keep(parameter.new_states(family.choose(parameter.group.entries)))
            self.plan.forget_extents()
        self.counts = Counts(self.parameters, family.carried) if family.counts else None
        self.part: Part | None = None
        self.devices_counted = False  # up to that step
        self.finds_there = self.plan.on_one_gpu and counts_groups  # else nobody would hear of a wrong index
        self.given = [parameter.given for parameter in self.parameters]
        self.shards = Shards.of(self.given)
        # Watched are parameters and states; of distributed ones, the local part.
        self.objects = [tensor for parameter in self.parameters for tensor in parameter.written()]
        self.objects += self.counts.tensors if self.counts else []
        self.tensors = [local(held) for held in self.objects]
        self.asks = not all(map(has_plain_gradient, (*self.given, *self.frozen)))
        # States that C++ holds as well are read in half the time. Not parameters: torch.utils.swap_tensors would refuse
        # these.
        held = [local(state) for parameter in self.parameters for state in parameter.written()[1:]]
        self.held = [to_dlpack(tensor) for tensor in held + (self.counts.tensors if self.counts else [])]
        counts = self.counts
        numbers: tuple[Array, Array, Array | None] = NO_COUNTS, NO_COUNTS, None
        if counts:
            numbers = counts.array, counts.expected, counts.rows
        self.watch = Watch(TABLE, given, states, self.tensors, *numbers, [*map(behind, self.tensors)])
        distributed = [held for held in self.objects if is_distributed(held)]
        if distributed:
            self.watch.expect_parts(distributed, slots_of_distributed())
        self.extents = self.plan.extents
        self.sparse: set[int] = set()  # indices of parameters that have had sparse gradients
        self._expect_gradients()

    # Gradients

    def _expect_gradients(self) -> None:
        """Tell the watch what gradients are like; sparse ones it need not try, which takes a millisecond each."""
        specs = [parameter._spec if is_distributed(parameter) else None for parameter in self.given]
        shapes = [readable_gradient(parameter) for parameter in self.parameters]
        shapes = [None if i in self.sparse else shape for i, shape in enumerate(shapes)]
        descriptor, (starts, reaches) = None if self.asks else GRAD, (self.extents.starts, self.extents.reaches)
        self.watch.expect(self.given, self.frozen, descriptor, GRADIENT_TYPE, specs, shapes, starts, reaches)

    def read(self) -> int:
        """Read the gradients; return how many were not as expected, OUT_OF_DATE, or ASSIGNED."""
        if self.has_new_states or self._is_overtaken:
            return OUT_OF_DATE
        self._locate()
        return self.watch.read()

    @property
    def _is_overtaken(self) -> bool:
        """Whether another process has counted, or a frozen parameter has a gradient that the watch cannot see."""
        if self.counts is not None and self.counts.shared and self.counts.counted_elsewhere:
            return True
        return self.asks and any(param.grad is not None for param in self.frozen)

    @property
    def has_new_states(self) -> bool:
        """Whether a step has made states that are not watched yet."""
        return self.plan.extents is not self.extents

    def _locate(self) -> None:
        if self.asks:
            self.watch.gradients[:] = [given.grad for given in self.given]

    def read_anew(self) -> int:
        """Read the gradients right after adoption, when everything is up to date."""
        unread = self.read()
        return self.watch.collect() if unread == OUT_OF_DATE else unread

    def read_or_repeat(self, scale: float) -> int:
        """Take the last step again, with other gradients, and return REPEATED, if that is possible; else `read`."""
        clock, part = self.clock, self.part
        repetition = clock.repetition
        if repetition is None or part is None or scale != clock.scale:
            return self.read()
        if self.asks and self._is_overtaken:
            return OUT_OF_DATE
        self._locate()
        result = self.watch.take(repetition, part.call)
        if result == TORN:
            raise repetition.torn()
        return result

    def measure(self) -> Measured | None:
        """Return the norm of all gradients, by the tables of the last step; None if they do not fit these.

        Where processes add up their parts, each of them would have to find that they fit.
        """
        plan = self.plan
        if self.part is None or self.shards or plan.uses_gpus or not plan.launches or self.read() != 0:
            return None
        gradients = Gradients(self.watch, self.parameters, plan, 0)
        if gradients.taking_part != plan.taking_part:
            return None
        plan.load(gradients)
        gradients.release()
        launches: list[Any] = plan.launches  # on the CPU
        return measure(launches)

    # Steps

    def update(self, unread: int, scale: float, amp: AmpState | None = None) -> None:
        """Update every parameter that has a gradient.

        Whatever can fail comes before anything is written.

        Parameters
        ----------
        unread : int
            What `read` has returned.
        scale : float
        amp : AmpState, optional
            GradScaler's scale and found_inf: the GPUs unscale the gradients, and may skip the step.
        """
        gradients = Gradients(self.watch, self.parameters, self.plan, unread, self.finds_there)
        sparse = {*gradients.sparse, *gradients.there}
        if not self.sparse >= sparse:
            self.sparse |= sparse
            self._expect_gradients()
        skipped = False
        if amp is None and scale != 1 and self._may_be_skipped_there(gradients):
            scale, amp = 1.0, AmpState.of(scale)
        if amp is not None:
            alone = self.plan.on_one_gpu and not gradients.sparse  # the GPU can take the norm, and decide by it
            waits = not self.plan.only_gpus or (needs_norm(self.clock.groups[0].entries) and not alone)
            if gradients.sparse or waits:
                scale, skipped = amp.on_host()
            if waits:
                amp = None
        gradients.scale = scale
        self.devices_counted = self.clock.on_devices
        try:
            if not skipped:
                self.take(gradients, scale if amp is None else 1.0, amp)
                if self.clock.repetition is not None:  # then no schedule could have assigned an option meanwhile
                    self.watch.note_entries()
        finally:  # the plan remembers their addresses; nothing may keep them alive
            gradients.release()

    def _may_be_skipped_there(self, gradients: Gradients) -> bool:
        """Say whether the GPU decides if the step is taken, so that it has to know the factor of all gradients."""
        if gradients.sparse or not self.plan.on_one_gpu:
            return False
        skips = bool(self.clock.groups[0].entries.get("skip_nonfinite"))
        return skips or gradients.are_checked_there

    def can_repeat(self) -> bool:
        """Say whether the last step consists of launches and counts alone."""
        clock, shared = self.clock, self.counts is not None and self.counts.shared
        if self.stages.measures and self.shards:  # then all processes add up their parts
            return False
        if clock.assigned or not clock.can_describe:  # schedulers assign in every step, so that it would be in vain
            return False
        if self.has_new_states:  # or gradients of another dtype than the watch expects
            return False
        return bool(TABLE and self.part is not None and self.part.repeatable and not shared)

    def prepare(self, gradients: Gradients) -> None:
        """Find the tensors that are written."""
        if self.stages.measures and self.shards and self.plan.uses_gpus:
            raise ValueError(SHARDS_ON_GPUS)
        if self.family.only_sparse:
            self._refuse_dense(gradients)
        if self.part is None or self.part.bits != gradients.taking_part:
            self.part = Part(self.parameters, self.plan.everyone, gradients.taking_part)

    def _refuse_dense(self, gradients: Gradients) -> None:
        for i in np.flatnonzero(gradients.addresses).tolist():
            if i not in gradients.there:
                raise RuntimeError(
                    f"the gradient of {self.parameters[i]} is dense, and SparseAdam takes sparse ones alone: use Adam "
                    "for it, which takes both with lazy_update=True"
                )

    def rows_of(self, parameter: TorchParameter, rule: Rule, gradient: Tensor, clip: Clip) -> TensorRows | CopiedRows:
        """Return the rows of a parameter that a sparse gradient has."""
        if gradient.layout is not torch.strided:
            check_rule(parameter, self.family, rule, *self.instead)
        kind = TensorRows if parameter.has_plain_rows and not parameter.device.on_gpu else CopiedRows
        return kind(parameter, rule, gradient, clip, self.stages.averages)

    def sum_squares(self, power: float) -> float:
        """Return the sum of squares of all gradients in launches, times a power of two; of all processes."""
        if self.shards is None:
            return super().sum_squares(power)
        return self.shards.sum_squares(self.plan.launches, self.plan.indices, power)

    def begin(self, gradients: Gradients) -> None:
        """Tell autograd what is written, and copy parameters with gaps into dense memory."""
        part = self._part
        increment_version(part.written)
        super().begin(gradients)
        for parameter in part.with_gaps:
            parameter.load()
        for parameter in part.averaged if self.stages.averages else ():
            if parameter.has_gaps:
                parameter.load()

    def finish(self, gradients: Gradients) -> None:
        """Copy parameters with gaps back, and show the counts."""
        for parameter in self._part.with_gaps:
            parameter.store()
        if self.counts is not None and not self.clock.on_devices:
            self._show_counts(self.counts)
        super().finish(gradients)
        if self.counts is not None:
            for i in self.rows:
                self.counts.count(i, self.clock.carried)

    @property
    def _part(self) -> Part:
        assert self.part is not None  # since `prepare`
        return self.part

    def _show_counts(self, counts: Counts) -> None:
        counts.follow(self.clock.formed, self.clock.step_groups)
        if self.devices_counted:  # up to this step, which the host counts
            self.clock.write_counts()
            counts.take(self.parameters)
        else:
            counts.count(self._part.which, self.clock.carried)

    def settle(self) -> None:
        """Bring all counts up to date, before somebody reads one."""
        if not self.clock.on_devices:
            self.clock.settle()
            return
        self.clock.write_counts()
        if self.counts is not None:
            self.counts.take(self.parameters)
