"""The counts of steps that are part of a state of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels.reader import Array
from ...step.interrupts import HeldBack
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

    float64 counts exactly up to 2**53, and torch.optim takes it over; its own float32 stops at 2**24. Counts that
    processes share stay what they are, and are counted there as well.
    """

    def __init__(self, parameters: Sequence[TorchParameter]) -> None:
        with torch.inference_mode(False):
            self.table = torch.tensor([parameter.step for parameter in parameters], dtype=torch.float64, device="cpu")
        self.tensors = list(self.table.unbind())
        self.shared: dict[int, Tensor] = {}
        for i, (parameter, tensor) in enumerate(zip(parameters, self.tensors, strict=True)):
            given: Any = parameter.state.get("step")
            if is_shared(given):
                self.shared[i] = given
            parameter.count = self.shared.get(i, tensor)
        with HeldBack():
            for parameter in parameters:
                if parameter.states or "step" in parameter.state:  # else with its first gradient, as in torch
                    parameter.show_count()
        self.array: Array = self.table.numpy()
        self.expected = self.array.copy()  # to see whether anybody else has written there

    @property
    def counted_elsewhere(self) -> bool:
        """Whether another process has counted meanwhile."""
        return any(float(count) != self.expected[i] for i, count in self.shared.items())

    def take(self, parameters: Sequence[TorchParameter]) -> None:
        """Take the counts of the parameters, but where somebody has written another, which the next step will find."""
        written = self.array != self.expected
        self.expected[:] = [parameter.step for parameter in parameters]
        self.array[:] = np.where(written, self.array, self.expected)

    def count(self, which: Any) -> None:
        """Count a step of those that took part."""
        before = self.expected.copy() if self.shared else self.expected
        self.array[which] += 1
        self.expected[which] += 1
        if self.shared:
            self._count_shared(self.expected - before)

    def _count_shared(self, steps: Array) -> None:
        with torch.no_grad():
            for i, count in self.shared.items():
                count += int(steps[i])
