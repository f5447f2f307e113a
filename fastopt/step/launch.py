"""One kernel over some parameters: its tables, and the call; and where parameters lie and are updated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..kernels.reader import address
from ..kernels.tables import TENSOR
from ..rules import Row, Rule
from .chunks import Strides

GRAD: int = TENSOR.fields["grad"][1]  # type: ignore[index]  # it has fields

Entry = tuple[int, int, Sequence[int]]  # of the tensor table: its row, its hyper row, the addresses of the states


class Launch(ABC):
    """One kernel over tensors of one rule, one dtype, one device and these sizes: the tables, and the call."""

    strided: dict[int, Strides] | None  # row of a tensor -> how its gradient lies, where not as the parameter
    threads: Any = None  # whose they are that run it, on the CPU
    cut_version = 0  # how often the chunk table was written

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self.table = np.zeros(len(sizes), TENSOR)
        self.gradients = self.table["grad"]

    def write_params(self, addresses: Sequence[int]) -> None:
        """Take the addresses of the parameters."""
        self.table["param"] = addresses

    def write_entries(self, entries: Sequence[Entry]) -> None:
        """Take hyper rows and states of the tensors that take part."""
        for row, hyper, states in entries:
            self.table[row]["hyper"] = hyper
            self.table[row]["states"][: len(states)] = states

    def memories(self) -> list[Any]:
        """Return what the tables lie in that a device reads."""
        return []

    def again(self) -> tuple[int, ...] | None:
        """Return what the extension launches it again by, as LAUNCH lists it; None where it cannot."""
        return None

    def places(self) -> npt.NDArray[np.int64]:
        """Return where in memory the addresses of gradients go."""
        return address(self.table) + GRAD + TENSOR.itemsize * np.arange(len(self.table))

    @abstractmethod
    def write_hypers(self, hypers: npt.NDArray[np.float64]) -> None:
        """Take the hyper rows, which may change in place."""

    @abstractmethod
    def write_gradients(self, addresses: npt.NDArray[np.int64], strided: dict[int, Strides]) -> None:
        """Take the addresses of gradients, which the caller keeps until the work is done."""

    @abstractmethod
    def __call__(self) -> None:
        """Update."""


class Launcher(Protocol):
    """What prepares the launches of one plan on one device."""

    def launch(self, rule: Rule, dtype: str, sizes: Sequence[int]) -> Launch:
        """Prepare a launch over tensors of these sizes."""


class Device(Protocol):
    """Where parameters lie and are updated: the CPU with its memory, or a GPU."""

    on_gpu: bool

    def open(self) -> Launcher:
        """Return what prepares a plan's launches; on a GPU it has the plan's hyper rows there."""

    def update(
        self, rule: Rule, dtype: str, size: int, addresses: Sequence[int], strided: dict[int, Strides], numbers: Row
    ) -> None:
        """Update a single tensor, whose parameter, gradient and states lie at these addresses."""


class AmpState(Protocol):
    """What only the devices know of a step: GradScaler's scale, and whether a gradient was infinite."""

    def addresses(self, device: Any) -> tuple[int, int]:
        """Return where the scale, a float, and found_inf, an int32, lie on a device; 0 where there is no scale."""


class LaunchCache(dict[Hashable, Any]):
    """Launches of single updates, kept for the next of their kind: whoever pops one has it alone, in any thread."""

    LIMIT = 256

    def put(self, key: Hashable, launch: Any) -> None:
        """Keep a launch, and let go of the one that was not used for the longest time where there are too many."""
        self[key] = launch
        if len(self) > self.LIMIT:
            self.pop(next(iter(list(self))), None)  # another thread may be first
