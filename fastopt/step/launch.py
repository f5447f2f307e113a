"""What launches have in common on the CPU and on GPUs, and what a device is to the machinery of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..kernels.dtypes import CODES
from ..kernels.reader import address
from ..kernels.tables import STATES, TENSOR
from ..rules import Row
from .chunks import Strides


class StorageRow(NamedTuple):
    """A row of the table of storages."""

    scales: tuple[int, ...] = (0,) * STATES  # addresses, for states in 8 bits
    remainder: int = 0  # its address, for a parameter with a master
    key: int = 0  # for stochastic rounding


NO_STORAGE = StorageRow()


class Entry(NamedTuple):
    """What a step group writes into the tables for one parameter."""

    row: int
    hyper: int  # its hyper row
    states: Sequence[int]  # their addresses
    storage: StorageRow


class Variant(NamedTuple):
    """Which kernel a launch runs; `kernels.cpu.kernel` says what these names may be."""

    rule: str
    dtype: str  # of the parameter
    stages: tuple[str, ...] = ()
    states: tuple[str, ...] = ()  # their dtypes; none if all are what the kernel computes in
    gradient: str = ""  # its dtype, if it is not the parameter's
    master: str = ""  # the dtype of the remainder, if the parameter has a master
    rounding: str = ""  # to nearest, or "stochastic"

    @property
    def of_gradient(self) -> str:
        """The dtype of the gradient."""
        return self.gradient or self.dtype

    @property
    def uses_storages(self) -> bool:
        """Whether the kernel reads the table of storages."""
        return bool(self.master or self.rounding or self.has_codes)

    @property
    def has_codes(self) -> bool:
        """Whether states have 8 bits."""
        return any(state in CODES for state in self.states)


class Tables(ABC):
    """The tables of tensors of one dtype, one device and these sizes."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        # Row of a tensor -> strides of its gradient, if not those of the parameter; None while the cut is not complete.
        self.strided: dict[int, Strides] | None = None
        self.apart: frozenset[int] = frozenset()  # rows of tensors that are not cut: a step leaves these to others
        self.table = np.zeros(len(sizes), TENSOR)
        self.gradients = self.table["grad"]  # where the addresses of gradients are written

    def set_apart(self, rows: frozenset[int]) -> None:
        """Leave tensors out of the chunk table from the next cut on, and no others."""
        if rows != self.apart:
            self.apart, self.strided = rows, None

    def cut(self, strided: dict[int, Strides]) -> None:
        """Cut the tensors into chunks, unless the gradients' strides are those of the last cut."""
        if strided != self.strided:
            self.strided = None  # after an interrupt or an error, the next step has to cut again
            self._cut(strided)
            self.strided = strided

    @abstractmethod
    def _cut(self, strided: dict[int, Strides]) -> None:
        """Write the chunk table."""

    @abstractmethod
    def write_gradients(self, addresses: npt.NDArray[np.int64], strided: dict[int, Strides]) -> None:
        """Write the addresses of gradients, which the caller keeps alive until the work is done."""


class Launch(Tables):
    """One kernel over tensors of one rule, one dtype, one device and these sizes: its tables, and the call."""

    on_gpu: ClassVar[bool]
    threads: Any = None  # those that run it, on the CPU
    stream: Any = None  # on which it goes, on a GPU
    storages: npt.NDArray[Any] | None = None  # a row of STORAGE for each tensor, if the kernel reads them

    def write_params(self, addresses: Sequence[int]) -> None:
        """Write the addresses of the parameters."""
        self.table["param"] = addresses

    def write_entries(self, entries: Sequence[Entry]) -> None:
        """Write hyper rows and states of the tensors that take part."""
        for row, hyper, states, storage in entries:
            self.table[row]["hyper"] = hyper
            self.table[row]["states"][: len(states)] = states
            self.write_storage(row, storage)

    def write_storage(self, row: int, storage: StorageRow) -> None:
        """Write where what a tensor has beside its states lies, for one that is averaged and takes no part."""
        if self.storages is not None:
            self.storages[row] = storage

    def write_averages(self, addresses: Sequence[int]) -> None:
        """Write the addresses of the parameters' averages, 0 for those that have none."""
        self.table["average"] = addresses

    def write_average(self, row: int, address: int) -> None:
        """Write the address of one average, which begins where no step group does."""
        self.table["average"][row] = address

    @abstractmethod
    def write_count(self, count: int) -> None:
        """Write how many steps came before this one, for stochastic rounding."""

    @abstractmethod
    def write_stages(self, limit: float, gain: float) -> None:
        """Write the numbers of the stages: the limit of gradients before any factor, and the average's gain."""

    @abstractmethod
    def write_coefficient(self, coefficient: float) -> None:
        """Write by what gradients are multiplied, to clip them by their norm."""

    @abstractmethod
    def prepare_norm(self) -> None:
        """Compile or load what takes the norm of the gradients."""

    @abstractmethod
    def sum_squares(self, power: float) -> npt.NDArray[np.float64]:
        """Return sums of squares of gradients, times a power of two."""

    def memories(self) -> list[Any]:
        """Return the memory of the tables that a GPU reads."""
        return []

    def again(self) -> tuple[int, ...] | None:
        """Return the fields of LAUNCH, or GPU_LAUNCH, for the extension; None if it cannot run this launch."""
        return None

    def places(self) -> npt.NDArray[np.int64]:
        """Return the addresses of the places for the gradients' addresses."""
        return address(self.gradients) + self.gradients.strides[0] * np.arange(len(self.gradients))

    @abstractmethod
    def write_hypers(self, hypers: npt.NDArray[np.float64]) -> None:
        """Point to the hyper rows, which may change in place."""

    @abstractmethod
    def __call__(self) -> None:
        """Update."""


class Launcher(Protocol):
    """Prepares the launches of one plan on one device."""

    def launch(self, variant: Variant, sizes: Sequence[int]) -> Launch:
        """Prepare a launch of a kernel over tensors of these sizes."""


class Device(Protocol):
    """A device that has parameters in its memory and updates them: the CPU, or a GPU."""

    on_gpu: bool

    def open(self) -> Launcher:
        """Return a launcher for a plan; on a GPU it has the plan's hyper rows."""

    def update(
        self,
        variant: Variant,
        size: int,
        addresses: Sequence[int],
        strided: dict[int, Strides],
        numbers: Row,
        storage: StorageRow = NO_STORAGE,
        count: int = 0,
    ) -> None:
        """Update a single tensor with parameter, gradient and states at these addresses, after so many steps."""


class AmpState(Protocol):
    """GradScaler's scale and found_inf, which only the GPUs know.

    The scale is a float32, or missing; found_inf has 32 bits, all 0 unless the step is skipped.
    """

    def addresses(self, device: Any) -> tuple[int, int]:
        """Return the addresses of scale (0 if there is none) and found_inf on a device."""


class LaunchCache(dict[Hashable, Any]):
    """Launches of single updates, kept for the next one of their kind. Whoever pops one owns it, in any thread."""

    LIMIT = 256

    def put(self, key: Hashable, launch: Any) -> None:
        """Keep a launch; drop the least recently used one if there are too many."""
        self[key] = launch
        if len(self) > self.LIMIT:
            self.pop(next(iter(list(self))), None)  # another thread may be first
