"""A step over tensors of torch: what has changed since the last one, where the gradients lie, and the launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # which is public all the same

from ..arrays import Extents
from ..chunks import Strides, located
from ..kernels.reader import UNREAD
from ..kernels.tensors import OUT_OF_DATE, PARAMS, Shape, Watch, exchange_table, shape_of
from ..plan import Plan
from ..rules import Family
from .devices import Verdict
from .groups import Group
from .sparse import Rows, coalesced
from .tensors import Counts, Parameter, array_of, check_memory, is_distributed, local
from .threads import THREADS

GRAD = torch._C.TensorBase.__dict__["grad"]  # the descriptor itself: by name it takes a third longer
TABLE = exchange_table(Tensor)
INCREMENT = getattr(torch._C, "_increment_version", increment_version)  # what that calls
NO_COUNTS = np.zeros(0)


class Gradients:
    """The gradients of one step, checked against their parameters, and held.

    Attributes
    ----------
    addresses, taking_part, strided
        As those of `fastopt.plan.Gradients`, where sparse gradients do not take part.
    sparse : dict
        Index of a parameter -> its sparse gradient, each row once.
    """

    def __init__(self, updater: Updater, unread: int) -> None:
        self.tensors = list(updater.watch.gradients)
        self.strided: dict[int, Strides] = {}
        self.sparse: dict[int, Tensor] = {}
        self.addresses = updater.watch.found[:-1].copy()
        if unread:
            for i in np.flatnonzero(self.addresses == UNREAD).tolist():
                self._check(i, updater.parameters[i], updater.plan.extents)
        all_dense = updater.watch.found[-1] == 0 and not self.sparse
        self.taking_part = updater.everyone if all_dense else (self.addresses != 0).tobytes()

    def _check(self, i: int, parameter: Parameter, extents: Extents) -> None:
        what = f"the gradient of {parameter}"
        given = self.tensors[i]
        check_distribution(what, given, parameter.given)
        if isinstance(given, Tensor) and given.layout is torch.sparse_coo:
            self.sparse[i] = coalesced(what, given, parameter)
            self.addresses[i] = 0
            return
        if isinstance(given, Tensor) and given._is_zerotensor():
            given = given.clone()  # which has memory
        gradient = check_memory(what, given).detach().resolve_conj().resolve_neg()
        if gradient.device != parameter.tensor.device:
            raise ValueError(f"{what} is on {gradient.device}, its parameter on {parameter.tensor.device}")
        if gradient.dtype != parameter.tensor.dtype:
            raise TypeError(f"{what} has dtype {gradient.dtype}, its parameter {parameter.tensor.dtype}")
        if gradient.shape != parameter.tensor.shape:
            shapes = f"shape {tuple(gradient.shape)}, its parameter {tuple(parameter.tensor.shape)}"
            raise ValueError(f"{what} has {shapes}: they are paired by index and must agree")
        self.tensors[i] = gradient
        array = array_of(gradient)
        if (other := extents.overlapping(array)) is not None:
            raise ValueError(f"{what} overlaps {other} in memory: assign a .clone() of it")
        self.addresses[i], strides = located(parameter.layout.in_storage_order(array))
        if strides is not None:
            self.strided[i] = strides


def check_distribution(what: str, gradient: Any, parameter: Any) -> None:
    """Raise where one of the two is distributed and the other is not, or otherwise."""
    if not is_distributed(parameter):
        if is_distributed(gradient):
            raise ValueError(f"{what} is distributed, and its parameter is not: assign its .full_tensor()")
        return
    there = "parameter.device_mesh, parameter.placements"
    if not is_distributed(gradient):
        raise ValueError(
            f"{what} is not distributed, and its parameter is: assign distribute_tensor(gradient, {there})"
        )
    if gradient.device_mesh != parameter.device_mesh:
        raise ValueError(
            f"{what} is distributed over another mesh than its parameter: assign "
            f"distribute_tensor(gradient.full_tensor(), {there})"
        )
    if gradient.placements != parameter.placements:
        raise ValueError(
            f"{what} is not distributed as its parameter is: assign its .redistribute(placements=parameter.placements)"
        )


def trains(param: Tensor) -> bool:
    """Say whether a parameter is to be updated; what is frozen may be of any kind, until it has a gradient."""
    return param.requires_grad or param.grad is not None


def has_plain_gradient(param: Tensor) -> bool:
    """Say whether a parameter's gradient is torch's own attribute, and not a property of its class."""
    return getattr(type(param), "grad", None) is GRAD


def readable_gradient(parameter: Parameter) -> Shape | None:
    """Describe a gradient that lies as its parameter does; None where only Python can tell what it stands for.

    Complex ones may be conjugates, and where no stride is odd it may be the negated imaginary part of a conjugate.
    """
    tensor = parameter.tensor
    plain = any(stride % 2 for stride in tensor.stride()) and not tensor.is_complex() and not parameter.has_gaps
    return shape_of(tensor) if plain else None


class Part:
    """The parameters that take part in a step, one bit for each."""

    def __init__(self, updater: Updater, bits: bytes) -> None:
        self.bits = bits
        self.which = slice(None) if bits == updater.everyone else np.frombuffer(bits, bool)
        parameters = [parameter for parameter, bit in zip(updater.parameters, bits, strict=True) if bit]
        self.with_gaps = [parameter for parameter in parameters if parameter.has_gaps]
        self.repeatable = bits == updater.everyone and not self.with_gaps
        self.written = [tensor for parameter in parameters for tensor in parameter.counted()]
        # Those that C++ holds as well are counted in a quarter of the time.
        self.held = [to_dlpack(tensor) for tensor in self.written if not is_distributed(tensor)]


class Updater:
    """Updates parameters of an optimizer of torch, as long as these and their states are what and where they were.

    Parameters
    ----------
    family : Family
    groups : sequence of Group
    names : sequence of sequences
        What the parameters of each group are called.
    given : list of dict
        The groups as torch has them, at least with their ``params``, into all of which others may write.
    states : dict
        Parameter -> its state: dicts that others may write into.
    eager : bool
        Whether states are made at once, and not with a parameter's first gradient.

    Raises
    ------
    TypeError, ValueError
        If a parameter cannot be updated, a state is not its parameter's, or options contradict each other.
    """

    def __init__(
        self,
        family: Family,
        groups: Sequence[Group],
        names: Sequence[Sequence[Any]],
        given: list[dict[str, Any]],
        states: dict[Any, Any],
        eager: bool,
    ) -> None:
        self.family = family
        self.parameters: list[Parameter] = []
        self.frozen: list[Tensor] = []  # until they have a gradient
        for group, keys, members in zip(groups, names, given, strict=True):
            for key, param in zip(keys, members[PARAMS], strict=True):
                if trains(param):
                    self.parameters.append(Parameter(key, param, group, states))
                else:
                    self.frozen.append(param)
        for parameter in self.parameters:
            parameter.adopt(family)
        self.plan = Plan(groups, self.parameters, family.choose)
        if eager:
            for parameter in self.parameters:
                parameter.keep(parameter.new_states(family.choose(parameter.group.entries)))
            self.plan.reset()
        self.counts = Counts(self.parameters) if family.counts else None
        self.part: Part | None = None
        self.prepared = False  # whether the next step may be the last one again
        self.last: tuple[Any, Part] | None = None  # what was prepared
        self.given = [parameter.given for parameter in self.parameters]
        self.everyone = self.plan.everyone
        # What is watched: parameters and states, and of distributed ones the part that is here.
        self.objects = [tensor for parameter in self.parameters for tensor in parameter.written()]
        self.objects += self.counts.tensors if self.counts else []
        self.tensors = [local(held) for held in self.objects]
        self.distributed = any(map(is_distributed, self.given))
        self.asks = self.distributed or not all(map(has_plain_gradient, (*self.given, *self.frozen)))
        # States that C++ holds as well are read in half the time. Not parameters, which torch.utils.swap_tensors would
        # refuse then.
        held = [local(state) for parameter in self.parameters for state in parameter.written()[1:]]
        self.held = [to_dlpack(tensor) for tensor in held + (self.counts.tensors if self.counts else [])]
        counts = (self.counts.array, self.counts.expected) if self.counts else (NO_COUNTS, NO_COUNTS)
        self.watch = Watch(TABLE, given, states, self.tensors, *counts)
        shapes = [readable_gradient(parameter) for parameter in self.parameters]
        descriptor = None if self.asks else GRAD
        self.extents = self.plan.extents
        self.watch.expect(
            self.given, self.frozen, descriptor, Tensor, shapes, self.extents.starts, self.extents.reaches
        )

    def read(self) -> int:
        """Read the gradients; return how many were not as expected, OUT_OF_DATE, or ASSIGNED."""
        if self.has_new_states or self._is_overtaken:
            return OUT_OF_DATE
        self._locate()
        return self.watch.read()

    @property
    def _is_overtaken(self) -> bool:
        """Whether another process has counted, or a frozen parameter has a gradient where nobody else would look."""
        if self.counts is not None and self.counts.shared and self.counts.counted_elsewhere:
            return True
        return self.asks and any(param.grad is not None for param in self.frozen)

    @property
    def has_new_states(self) -> bool:
        """Whether a step has made states, which nobody watches yet."""
        return self.plan.extents is not self.extents

    def _locate(self) -> None:
        if self.distributed:
            self.tensors[:] = map(local, self.objects)
        if self.asks:
            self.watch.gradients[:] = [given.grad for given in self.given]

    def read_anew(self) -> int:
        """Read the gradients of an updater that has just been made, and so is up to date."""
        unread = self.read()
        return self.watch.collect() if unread == OUT_OF_DATE else unread

    def read_or_repeat(self, scale: float) -> int:
        """Take the step where it can be the last one again, with other gradients, and return REPEATED; else `read`."""
        if not self.prepared or scale != self.plan.scale or (self.asks and self._is_overtaken):
            return self.read()
        self._locate()
        return self.watch.step(torch.get_num_threads())

    def settle(self) -> None:
        """Bring all counts up to date, before anybody asks for one."""
        self.stop_repeating()
        if self.plan.away.active:
            self.plan.settle()
            if self.counts is not None:
                self.counts.take(self.parameters)

    def stop_repeating(self) -> None:
        """Count the steps that were repetitions, and repeat no more."""
        if self.prepared:
            self.prepared = False
            self.plan.count(self.watch.take_times())

    def _prepare(self, part: Part) -> None:
        """Prepare that the next step is this one again, where it can be."""
        shares = self.counts is not None and self.counts.shared
        if TABLE and part.repeatable and not shares and self.plan.can_repeat():
            launch: Any = self.plan.launches[0]  # of the host
            if self.last is None or launch.chunks is not self.last[0] or part is not self.last[1]:
                self.watch.prepare(launch.fields(THREADS.parallel), INCREMENT, part.written)
                self.last = launch.chunks, part
            self.watch.prepare_rows(self.plan.moving_rows(), self.plan.hypers, self.plan.scale)
            self.prepared = True

    def step(self, unread: int, scale: float, verdict: Verdict | None = None) -> None:
        """Update every parameter that has a gradient, which is first multiplied by a scale.

        Whatever can fail comes before anything is written.

        Parameters
        ----------
        unread : int
            What `read` has returned.
        scale : float
        verdict : Verdict, optional
            Has another factor, and may be that the step is skipped.
        """
        plan = self.plan
        self.stop_repeating()
        was_away = plan.away.active
        skipped = False
        if verdict is not None and not plan.on_devices:
            scale, skipped = verdict.on_host()
            verdict = None
        plan.look(scale, verdict)
        gradients = Gradients(self, unread)
        if verdict is not None and gradients.sparse:
            scale, skipped = verdict.on_host()
        if skipped:
            return
        if gradients.sparse and plan.away.active:  # their rows are the host's affair, and go by the count
            plan.settle()
            plan.choose_rules()
        rows = {i: self._rows(i, gradient) for i, gradient in gradients.sparse.items()}
        if self.part is None or self.part.bits != gradients.taking_part:
            self.part = Part(self, gradients.taking_part)
        part = self.part
        increment_version(part.written)
        for parameter in part.with_gaps:
            parameter.load()
        try:
            plan.step(gradients)
        finally:  # the plan remembers where they lay, and nothing may keep them alive
            gradients.tensors, gradients.sparse = [], {}
        for parameter in part.with_gaps:
            parameter.store()
        if self.counts is not None and not plan.away.active:
            if was_away:  # the plan has fetched the count, and counts again
                plan.settle()
                self.counts.take(self.parameters)
            else:
                self.counts.count(part.which)
        self._prepare(part)
        for i, row in rows.items():
            row.update(scale)
            if self.counts is not None:
                self.counts.count(i)

    def _rows(self, i: int, gradient: Tensor) -> Rows:
        parameter = self.parameters[i]
        return Rows(parameter, self.family, self.plan.rules[parameter.group.index], gradient)
