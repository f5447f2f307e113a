"""Launches on a GPU: one kernel over parameters with its tables, and the hyper rows in the GPU's memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels import cuda, graphs
from ..kernels.dtypes import DTYPES
from ..kernels.reader import Array, address
from ..kernels.stream import Memory, Stream
from ..kernels.tables import CARRIED, CHUNK, CLOCK, GPU_JOB, HYPERS, ROW_INPUTS, TENSOR
from ..rules import Row, Rule
from .chunks import Strides, chunk_table
from .launch import AmpState, Entry, Launch, LaunchCache

OLDEST = 70  # compute capability: Volta, from 2017
WORD = 8  # bytes
GRAD: int = TENSOR.fields["grad"][1]  # type: ignore[index]  # it has fields

# (packs of 16 bytes, threads of a block), the least packs for each size. A thread takes one pack; a block is a chunk.
# Measured on an H100, 2026-11-26, in float32, four elements a pack: time as a multiple of the fastest of the three, the
# mean over momentum, AdaGrad and Adam; last, a loop over eight packs in each of 128 threads. Other dtypes are still to
# be measured.
#
#     elements    packs    128    256    512   loop
#     2^16        2^14   1.005  1.002  1.049  1.756
#     2^18        2^16   1.000  1.009  1.019  1.548
#     2^20        2^18   1.012  1.005  1.000  1.141
#     2^22        2^20   1.001  1.001  1.010  1.024
#     2^24        2^22   1.003  1.001  1.000  1.052
#     2^28        2^26   1.005  1.002  1.000  1.040
BLOCKS = ((2**22, 512), (2**18, 256), (0, 128))

TILE_THREADS = 128  # for gradients in another order; they share the rows of a tile


WARM_UP = (
    "warm up before the capture: the step that is captured must not be the first one, nor the first one after an "
    "option was assigned, or with gradients for other parameters. Take two steps like it before"
)

NO_CAPTURE = "a single update cannot be captured: make an optimizer, and capture its step"


NO_WORDS = np.zeros(0, np.int64)


def block_threads(packs: int) -> int:
    """Choose how many threads a block has, by the number of packs in all tensors."""
    return next(threads for least, threads in BLOCKS if packs >= least)


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
    ahead : int
        The steps between the row inputs and the first one that the GPU counts.
    """

    def __init__(self, device: Gpu) -> None:
        self.device = device
        self.stream = Stream(device.cupy, device.index, device.current_stream, device.exchange)
        if self.stream.capturing:
            raise RuntimeError(WARM_UP)
        self.hypers: npt.NDArray[np.float64] | None = None
        self.words: dict[Any, npt.NDArray[np.int64]] = {}  # these rows, by the type that kernels compute in
        self.sent: set[Any] = set()  # the types in which the memory has them
        self.held = False
        self.counter = self.ahead = 0
        self.records: dict[bytes, Memory] = {}
        self.version = self.started = 0
        self.rows = 0
        self.scale = self.skip = 0
        self.clock = np.zeros(1, CLOCK)
        self.reserve(1)
        self.kernels = cuda.small_kernels(device.cupy)
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

    def launch(self, rule: Rule, dtype: str, sizes: Sequence[int]) -> GpuLaunch:
        """Prepare a launch."""
        return GpuLaunch(self, rule, dtype, sizes)

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
        self.clock["taken"], self.clock["carried"] = self.memory.address + WORD, self.carried
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
            self.stream.send(self.memory.address + WORD, np.zeros(1, np.int64), **version)
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

    def count_with_launches(self) -> None:
        """Have the first launch of this step count it, unless the step is skipped."""
        self.counter = self.memory.address + WORD

    def count_once(self) -> int:
        """Return the address of the count to the first launch that asks; 0 to others."""
        counter, self.counter = self.counter, 0
        return counter

    def count(self) -> None:
        """Count the step behind its launches, if none has done it, since none has elements."""
        if self.count_once():
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


class GpuLaunch(Launch):
    """One kernel over tensors of one rule, one dtype, one device, and these sizes.

    What differs from step to step, the gradients' addresses and the hyper rows, travels in the kernel's argument, for
    which the smallest of a few sizes is taken. Where that is too much, it is sent ahead into the GPU's memory, which
    holds the tensor table twice: captured steps have one of their own, so that other steps do not change what the graph
    reads.
    """

    on_gpu = True

    def __init__(self, rows: GpuRows, rule: Rule, dtype: str, sizes: Sequence[int]) -> None:
        super().__init__(sizes)
        self.rows = rows
        self.stream = rows.stream
        self.rule, self.dtype = rule.name, dtype
        self.pack = cuda.pack(dtype)
        self.memory = Memory(self.stream, 2 * self.table.nbytes)
        self.uploaded = b""  # what the memory holds
        self.sent: npt.NDArray[np.int64] | None = None  # the gradients' addresses there
        head = GPU_JOB.itemsize // WORD
        self.argument = np.zeros(max(head + len(sizes), cuda.SIZES[-1] // WORD), np.int64)
        self.job, self.travelling = self.argument[:head].view(GPU_JOB), self.argument[head:]
        self.gradients = self.travelling[: len(sizes)]
        self.kernels: dict[int, Any] = {}  # by the size of their argument: what is loaded
        self.size = 0  # of the argument with which everything can travel; 0 if there is none
        self.cut({})

    def _cut(self, strided: dict[int, Strides]) -> None:
        self.block = TILE_THREADS if strided else block_threads(sum(self.sizes) // self.pack)
        chunks, layouts = chunk_table(self.sizes, strided, self.block * self.pack)
        self.count = len(chunks)
        self.cuts = Memory(self.stream, chunks.nbytes + layouts.nbytes)
        self.stream.write(self.cuts, chunks, layouts)
        self.table["layout"] = 0
        for row in strided:
            self.table["layout"][row] = self.cuts.address + len(chunks) * CHUNK.itemsize + row * layouts.itemsize
        self.stale = True  # the table in the GPU's memory

    def write_entries(self, entries: Sequence[Entry]) -> None:
        """Write hyper rows and states of the tensors that take part."""
        super().write_entries(entries)
        self.stale = True

    def prepare(self, rows: int) -> None:
        """Reserve memory for so many hyper rows, choose the argument's size, and load the kernels."""
        self.rows.reserve(rows)
        words = len(self.gradients) + rows * HYPERS * np.dtype(DTYPES[self.dtype].real).itemsize // WORD
        most = cuda.largest_argument(self.stream.cupy)
        self.size = min((size for size in cuda.SIZES if words <= cuda.words(size) and size <= most), default=0)
        sizes = [self.size] if 0 < self.size <= cuda.WITHOUT_ASKING else [self.size or cuda.SIZES[0], cuda.SIZES[0]]
        for size in sizes if self.count else []:
            if size not in self.kernels:
                self.kernels[size] = cuda.kernel(self.stream.cupy, self.rule, self.dtype, size)
                self.stream.function(self.kernels[size])  # loads it, which is not possible in a capture

    def write_hypers(self, hypers: npt.NDArray[np.float64]) -> None:
        """Take over the hyper rows, which are computed later."""
        self.rows.take(hypers)

    def write_gradients(self, addresses: npt.NDArray[np.int64], strided: dict[int, Strides]) -> None:
        """Write the addresses of gradients, which the caller keeps alive; cut anew if their strides are others."""
        self.cut(strided)
        self.gradients[:] = addresses

    def memories(self) -> list[Any]:
        """Return the memory of the tables."""
        return [self.memory, self.cuts]

    @property
    def not_warm(self) -> bool:
        """Whether the GPU's memory lacks the tables, which a capture needs there."""
        return self.stale and self.count > 0

    def again(self) -> tuple[int, ...] | None:
        """Return the fields of GPU_LAUNCH for the extension; None if it cannot launch this."""
        if not self.size or not self.count or self.stale or self.strided or not len(self.stream.functions):
            return None
        rows = address(self.travelling) + WORD * len(self.gradients)
        rounded = DTYPES[self.dtype].real is np.float32
        function = self.stream.function(self.kernels[self.size])
        return address(self.stream.gpu), function, address(self.argument), rows, int(rounded), self.count, self.block

    def __call__(self) -> None:
        """Put the kernel on the stream, over all chunks."""
        if not self.count:  # a launch of no blocks would be an error
            return
        size, table, rows = self.size, self._table(), self.rows.words_of(self.dtype)
        if self.stream.capturing and size > cuda.WITHOUT_ASKING:  # with more than 4 KB, captures have crashed
            size = 0
        grads = len(self.gradients) if size else 0
        if size:
            self.travelling[grads : grads + len(rows)] = rows
        else:
            table = self._with_gradients(table)
        hypers = 0 if size and len(rows) else self.rows.in_memory(self.dtype)
        self.job[0] = table, self.cuts.address, hypers, self.rows.skip, grads, self.rows.count_once()
        size = size or cuda.SIZES[0]
        self.stream.launch(
            self.kernels[size], self.count, self.argument.view(np.uint8)[:size].view(f"V{size}"), self.block
        )

    def _table(self) -> int:
        if self.stale and (table := self.table.tobytes()) != self.uploaded:
            self.uploaded, self.sent = b"", None  # until it is written
            self.stream.write(self.memory, self.table, self.table)
            self.uploaded = table
        self.stale = False
        return self.memory.address

    def _with_gradients(self, table: int) -> int:
        """Return the table after the gradients' addresses were sent into it; a captured step has one of its own."""
        if self.stream.capturing:
            table += self.table.nbytes
            self._send_gradients(table)  # again at each replay
        elif self.sent is None or not np.array_equal(self.sent, self.gradients):
            self._send_gradients(table)
            self.sent = self.gradients.copy()
        return table

    def _send_gradients(self, table: int) -> None:
        self.stream.send(table + GRAD, self.gradients, apart=TENSOR.itemsize // WORD)


class Gpu:
    """A GPU with its memory, as one library uses it: work goes on that library's current stream."""

    on_gpu = True

    def __init__(self, cupy: Any, index: int, current_stream: Callable[[], Any], exchange: int = 0) -> None:
        capability = cupy.cuda.Device(index).compute_capability
        if int(capability) < OLDEST:
            raise ValueError(f"GPU {index} has compute capability {int(capability) / 10:.1f}; at least 7.0 is needed")
        self.cupy, self.index, self.current_stream, self.exchange = cupy, index, current_stream, exchange
        self.cache = LaunchCache()

    def open(self) -> GpuRows:
        """Return a plan's hyper rows on this GPU."""
        return GpuRows(self)

    def update(
        self, rule: Rule, dtype: str, size: int, addresses: Sequence[int], strided: dict[int, Strides], numbers: Row
    ) -> None:
        """Update a single tensor with parameter, gradient and states at these addresses."""
        # A launch on another stream may not have run yet, so each has its own tables; threads may have own streams.
        key = rule.name, dtype, size, self.current_stream().ptr, threading.get_ident()
        launch = self.cache.pop(key, None) or self._launch_alone(rule, dtype, size)
        rows = np.zeros((1, HYPERS))
        rows[0, : len(numbers)] = numbers
        launch.rows.begin(None)
        if launch.stream.capturing:
            raise RuntimeError(NO_CAPTURE)
        launch.rows.take(rows)
        launch.write_params(addresses[:1])
        launch.write_entries([(0, 0, addresses[2:])])
        launch.write_gradients(np.array(addresses[1:2]), strided)
        launch()
        self.cache.put(key, launch)

    def _launch_alone(self, rule: Rule, dtype: str, size: int) -> GpuLaunch:
        if Stream(self.cupy, self.index, self.current_stream).capturing:
            raise RuntimeError(NO_CAPTURE)
        launch = self.open().launch(rule, dtype, [size])
        launch.prepare(1)
        return launch
