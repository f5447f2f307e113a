"""Step counts that are part of torch's states."""

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
    """Say whether a state is in memory that processes share, so that all of them count there.

    Of CUDA tensors torch says so always.
    """
    if not isinstance(state, Tensor) or state.device.type != "cpu" or state.is_inference():
        return False
    if state.layout is not torch.strided or type(state).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return False
    return bool(state.is_shared())  # type: ignore[no-untyped-call]  # torch's own


class Counts:
    """Step counts that are part of torch's states: each is a tensor, and all of them are one table.

    If the family's rules have a carried number, these stand behind the counts, as a second row of the table.

    float64 counts exactly up to 2**53, and torch.optim accepts it; its own float32 stops at 2**24. Counts in shared
    memory stay where they are, and are counted there as well.

    Attributes
    ----------
    array, expected : array of float64
        The table, and what it holds unless somebody else has written into it.
    tensors : list of tensor
        The entries as tensors of torch.
    rows : array of int64 or None
        For each parameter the clock's row with its carried number.
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
        self.followed = 0  # the number of the step groups from which rows was made: they themselves hold the counts
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
        """Return the places of a parameter's numbers in the table."""
        return range(place, len(self.tensors), self.size)

    def of(self, place: int) -> dict[str, Tensor]:
        """Return the tensors for the state of a parameter, by name."""
        shown = (self.shared.get(i, self.tensors[i]) for i in self._of(place))
        return dict(zip(self.names, shown, strict=True))

    @property
    def counted_elsewhere(self) -> bool:
        """Whether another process has counted meanwhile."""
        return any(float(count) != self.expected[i] for i, count in self.shared.items())

    def take(self, parameters: Sequence[TorchParameter]) -> None:
        """Take the counts of the parameters, except where somebody has written another; the next step will see it."""
        written = self.array != self.expected
        self.expected[:] = np.concatenate(self._values(parameters))
        self.array[:] = np.where(written, self.array, self.expected)

    def follow(self, formed: int, step_groups: Sequence[StepGroup]) -> None:
        """Look up the clock's row of each parameter again, if step groups were formed since."""
        if self.rows is None or formed == self.followed:
            return
        for number, group in enumerate(step_groups):
            for parameter in group.parameters:
                self.rows[cast(TorchParameter, parameter).place] = number
        self.followed = formed

    def count(self, which: Any, carried: Array) -> None:
        """Count a step of the parameters that took part, and take their carried numbers after it, by row."""
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
