"""The hyper rows of one plan on a GPU, in its memory or on the way there, and the steps that the GPU counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels import cuda, graphs
from ..kernels.dtypes import DTYPES
from ..kernels.reader import Array
from ..kernels.stream import Memory, Stream
from ..kernels.tables import CARRIED, CLOCK, HYPERS, ROW_INPUTS
from .gpu_norm import GpuNorm
from .index_check import IndexCheck
from .launch import AmpState, Device

WORD = 8  # bytes

WARM_UP = (
    "warm up before the capture: the step that is captured must not be the first one, nor the first one after an "
    "option was assigned, or with gradients for other parameters. Take two steps like it before"
)

NO_WORDS = np.zeros(0, np.int64)


class GpuRows:
    """A plan's hyper rows on one GPU, and the count of steps that only the GPU sees.

    Rows that the host computes travel with each launch. The memory is for those that the GPU computes, and for launches
    with which nothing travels: the version of the row inputs and the steps taken since, the carried numbers, the rows
    in float32, the rows in float64, and the row inputs.

    Attributes
    ----------
    hypers : array or None
        The rows that the host has computed; None if the GPU computes them.
    held : bool
        Whether the launches of this step read the rows in the memory.
    counter : int
        The address of the count of steps, until a launch has counted the step; 0 if the host counts it.
    is_read : bool
        Whether launches read the count, so that none of them may count.
    ahead : int
        The steps between the row inputs and the first one that the GPU counts.
    """

    def __init__(self, device: Device, stream: Stream) -> None:
        self.device, self.stream = device, stream
        if self.stream.capturing:
            raise RuntimeError(WARM_UP)
        self.hypers: npt.NDArray[np.float64] | None = None
        self.words: dict[Any, npt.NDArray[np.int64]] = {}  # these rows, by the type that kernels compute in
        self.sent: set[Any] = set()  # the types in which the memory has them
        self.held = False
        self.counter = self.ahead = 0
        self.is_read = False
        self.records: dict[bytes, Memory] = {}
        self.version = self.started = 0
        self.rows = 0
        self.scale = self.skip = 0
        self.norm: GpuNorm | None = None
        self.check: IndexCheck | None = None  # of the indices of sparse gradients
        self.clock = np.zeros(1, CLOCK)
        self.reserve(1)
        self.kernels = cuda.small_kernels(stream.cupy)
        for kernel in self.kernels.values():
            self.stream.function(kernel)  # loads it, which is not possible in a capture

    @property
    def capturing(self) -> bool:
        """Whether the step is recorded in a graph."""
        return self.stream.capturing

    def begin(self, amp: AmpState | None) -> None:
        """Find the current stream, and where GradScaler's scale and found_inf lie."""
        self.stream.begin()
        self.held, self.counter = False, 0
        self.scale, self.skip = amp.addresses(self.device) if amp is not None else (0, 0)

    def norm_here(self) -> GpuNorm:
        """Return what takes the norm of the gradients on this GPU."""
        if self.norm is None:
            self.norm = GpuNorm(self.stream)
        return self.norm

    def check_here(self) -> IndexCheck:
        """Return what checks the indices of sparse gradients on this GPU."""
        if self.check is None:
            self.check = IndexCheck(self.stream)
        return self.check

    def refuse_wrong_indices(self) -> None:
        """Raise if the host was told of an index that is no row of its table."""
        if self.check is not None:
            self.check.refuse_told()

    @property
    def coefficient(self) -> int:
        """The address of the number that multiplies all gradients; 0 if there is none."""
        return 0 if self.norm is None else self.norm.coefficient

    def write_coefficient(self, coefficient: float) -> None:
        """Have the launches multiply their gradients by a number that the host knows."""
        if coefficient != 1:
            self.norm_here().write_coefficient(coefficient)
        elif self.norm is not None:
            self.norm.coefficient = 0

    def reserve(self, rows: int) -> None:
        """Make room for so many hyper rows."""
        if rows > self.rows:
            self.memory = Memory(self.stream, 2 * WORD + rows * (WORD + HYPERS * (4 + 8) + ROW_INPUTS.itemsize))
            self.version = self.started = 0
            self.sent = set()
            self.carried = self.memory.address + 2 * WORD
            self.rounded = self.carried + WORD * rows
            self.exact = self.rounded + 4 * HYPERS * rows
            self.inputs = self.exact + 8 * HYPERS * rows
            self.rows = rows  # now that there is room

    def take(self, hypers: npt.NDArray[np.float64]) -> None:
        """Take over hyper rows that the host has computed."""
        self.hypers, self.words, self.sent = hypers, {}, set()

    def words_of(self, dtype: str) -> npt.NDArray[np.int64]:
        """Return the rows that travel with a launch, as words; none if it reads those in the memory."""
        if self.hypers is None or self.held:
            return NO_WORDS
        return self._words_of(self.hypers, DTYPES[dtype].real)

    def _words_of(self, hypers: npt.NDArray[np.float64], real: Any) -> npt.NDArray[np.int64]:
        if real not in self.words:
            self.words[real] = hypers.astype(real).reshape(-1).view(np.int64)
        return self.words[real]

    def in_memory(self, dtype: str) -> int:
        """Return the address of the rows in the memory, after the host's were sent there."""
        real = DTYPES[dtype].real
        to = self.exact if real is np.float64 else self.rounded
        if self.hypers is not None and real not in self.sent:
            self.stream.send(to, self._words_of(self.hypers, real))
            self.sent.add(real)
        return to

    def has_sent(self, dtype: str) -> bool:
        """Say whether the memory has the rows that the host has computed, as a dtype's kernel reads them."""
        return self.hypers is not None and DTYPES[dtype].real in self.sent

    def hold(self, record: Array) -> int:
        """Copy a schedule's record into the GPU's memory, once, and return its address."""
        key = record.tobytes()
        if key not in self.records:
            memory = Memory(self.stream, len(key))
            self.stream.write(memory, record)
            self.records[key] = memory
        return self.records[key].address

    def describe(self, inputs: npt.NDArray[Any], carried: npt.NDArray[np.float64], restart: bool) -> None:
        """Take over row inputs that are to be uploaded; on a restart also the carried numbers, and count from 0."""
        self.described, self.first_carried = inputs, carried.copy()
        self.version += 1
        if restart:
            self.started = self.version
        self.clock["inputs"], self.clock["n"] = self.inputs, len(inputs)
        self.clock["taken"], self.clock["carried"] = self.taken_at, self.carried
        self.clock["hypers"], self.clock["rounded"] = self.exact, self.rounded
        if restart:
            self.ahead, self.clock["given"] = 0, 0

    def count_on(self, ahead: int, carried: npt.NDArray[np.float64]) -> None:
        """Count from 0, by inputs that were uploaded so many steps ago; the carried numbers of now travel."""
        self.ahead, self.clock["given"] = ahead, len(carried[:CARRIED])
        self.clock["start"][0, : len(carried)] = carried[:CARRIED]

    def own(self, memories: Sequence[Any]) -> None:
        """Let the graph that is being recorded own this memory, and that of the rows."""
        graphs.own(self.stream.current.ptr, [self.memory, *self.records.values(), *memories])

    def upload(self) -> None:
        """Upload the row inputs, unless a graph replay has already installed this version."""
        version = {"version": self.memory.address, "number": self.version}
        self.stream.send(self.inputs, self.described.view(np.int64), **version)
        if self.started == self.version:
            self.stream.send(self.taken_at, np.zeros(1, np.int64), **version)
            self.stream.send(self.carried, self.first_carried.view(np.int64), **version)
        self.stream.send(self.memory.address, np.array([self.version]), **version)

    def advance(self) -> None:
        """Have the GPU compute the hyper rows of a step, side by side, unless the step is skipped."""
        self.hypers = None
        # A block for each row: in one warp, those of different rules or schedules would wait for each other.
        self._launch_small("advance", len(self.described))

    def rest(self) -> None:
        """Have the launches of this step read the rows that the memory has."""
        self.held = True

    @property
    def taken_at(self) -> int:
        """The address of the count of steps."""
        return self.memory.address + WORD

    def count_with_launches(self) -> None:
        """Have the first launch of this step count it, unless the step is skipped."""
        self.counter = self.taken_at

    def count_once(self) -> int:
        """Return the address of the count to the first launch that asks; 0 to others, and if launches read it."""
        if self.is_read:
            return 0
        counter, self.counter = self.counter, 0
        return counter

    def count(self) -> None:
        """Count the step behind its launches, if none has done it, since none has elements, or since they read it."""
        if self.counter:
            self.counter = 0
            self._launch_small("count", 1)

    def _launch_small(self, name: str, threads: int) -> None:
        self.clock["scale"], self.clock["skip"], self.clock["ahead"] = self.scale, self.skip, self.ahead
        if threads:  # a launch of no blocks would be an error
            self.stream.launch(self.kernels[name], threads, self.clock, threads=1)

    def taken(self) -> tuple[int, npt.NDArray[np.float64]]:
        """Wait for the GPU, and return how many steps it has counted, and, if any, the carried numbers after these."""
        words = np.array(self.stream.download(self.memory, 2 + self.rows), np.int64)
        if words[0] < self.started:
            return 0, self.first_carried  # the graph that starts the count has not been replayed yet
        return int(words[1]), words[2:].view(np.float64)
