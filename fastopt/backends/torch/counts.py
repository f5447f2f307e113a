"""The counts of steps that are part of a state of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ...kernels.reader import Array
from ...step.interrupts import HeldBack
from ...step.parameter import StepGroup
from .parameter import TorchParameter


def is_shared(state: Any) -> bool:
    """Say whether a state lies in memory that processes share, so that each of them works there.

    Of CUDA tensors torch says so always.
    """
    if not isinstance(state, Tensor) or state.device.type != "cpu" or state.is_inference():
        return False
    if state.layout is not torch.strided or type(state).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return False
    return bool(state.is_shared())  # type: ignore[no-untyped-call]  # torch's own


class Counts:
    """The counts of steps, where they are part of a state of torch: each a tensor of its own, all in one table.

    Behind them stand, in a second row, the numbers that rules hand on from step to step, where the family's do.

    float64 counts exactly up to 2**53, and torch.optim takes it over; its own float32 stops at 2**24. Counts that
    processes share stay what they are, and are counted there as well.

    Attributes
    ----------
    array, expected : array of float64
        All of them, and what they are if nobody else has written there.
    tensors : list of tensor
        The same as tensors of torch.
    rows : array of int64 or None
        For each parameter the row of the clock with what it hands on.
    """

    def __init__(self, parameters: Sequence[TorchParameter], carried: str | None) -> None:
        self.names: tuple[str, ...] = ("step",) if carried is None else ("step", carried)
        numbers = [value for values in self._values(parameters) for value in values]
        with torch.inference_mode(False):
            self.table = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        self.tensors = list(self.table.unbind())
        self.size = len(parameters)
        self.array: Array = self.table.numpy()
        self.expected = self.array.copy()
        self.rows = None if carried is None else np.zeros(self.size, np.int64)
        self.followed: object = None  # the clock's list of step groups, from which the rows are
        self.shared: dict[int, Tensor] = {}
        for place, parameter in enumerate(parameters):
            for i, name in zip(self._of(place), self.names, strict=True):
                given: Any = parameter.state.get(name)
                if is_shared(given):
                    self.shared[i] = given
            parameter.counts, parameter.place = self, place
        with HeldBack():
            for parameter in parameters:
                if parameter.states or "step" in parameter.state:  # else with its first gradient, as in torch
                    parameter.show_count()

    def _values(self, parameters: Sequence[TorchParameter]) -> list[list[float]]:
        steps: list[float] = [parameter.step for parameter in parameters]
        return [steps, [parameter.carried for parameter in parameters]][: len(self.names)]

    def _of(self, place: int) -> range:
        """Return where the numbers of a parameter stand in the table."""
        return range(place, len(self.tensors), self.size)

    def of(self, place: int) -> dict[str, Tensor]:
        """Return what belongs into the state of a parameter."""
        shown = (self.shared.get(i, self.tensors[i]) for i in self._of(place))
        return dict(zip(self.names, shown, strict=True))

    @property
    def counted_elsewhere(self) -> bool:
        """Whether another process has counted meanwhile."""
        return any(float(count) != self.expected[i] for i, count in self.shared.items())

    def take(self, parameters: Sequence[TorchParameter]) -> None:
        """Take the counts of the parameters, but where somebody has written another, which the next step will find."""
        written = self.array != self.expected
        self.expected[:] = np.concatenate(self._values(parameters))
        self.array[:] = np.where(written, self.array, self.expected)

    def follow(self, step_groups: Sequence[StepGroup]) -> None:
        """Find out in which rows of the clock parameters are, where these may be others."""
        if self.rows is None or step_groups is self.followed:
            return
        for number, group in enumerate(step_groups):
            for parameter in group.parameters:
                self.rows[cast(TorchParameter, parameter).place] = number
        self.followed = step_groups

    def count(self, which: Any, carried: Array) -> None:
        """Count a step of those that took part; take what rules hand on after it, one number for each row."""
        before = self.expected.copy() if self.shared else self.expected
        steps = slice(self.size)
        self.array[steps][which] += 1
        self.expected[steps][which] += 1
        if self.rows is not None:
            numbers = carried[self.rows[which]]
            self.array[self.size :][which] = numbers
            self.expected[self.size :][which] = numbers
        if self.shared:
            self._count_shared(before)

    def _count_shared(self, before: Array) -> None:
        with torch.no_grad():
            for i, count in self.shared.items():
                if i < self.size:
                    count += int(self.expected[i] - before[i])
                else:
                    count.fill_(self.expected[i])
