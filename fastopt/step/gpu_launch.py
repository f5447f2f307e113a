"""A launch on a GPU: one kernel over parameters, with its tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels import cuda
from ..kernels.dtypes import DTYPES
from ..kernels.reader import address
from ..kernels.stream import Memory
from ..kernels.tables import CHUNK, GPU_JOB, HYPERS, STORAGE, TENSOR
from .chunks import Strides, chunk_table
from .gpu_rows import WORD, GpuRows
from .launch import Entry, Launch, StorageRow, Variant

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


def block_threads(packs: int) -> int:
    """Choose how many threads a block has, by the number of packs in all tensors."""
    return next(threads for least, threads in BLOCKS if packs >= least)


class GpuLaunch(Launch):
    """One kernel over tensors of one rule, one dtype, one device, and these sizes.

    What differs from step to step, the gradients' addresses and the hyper rows, travels in the kernel's argument, for
    which the smallest of a few sizes is taken. Where that is too much, it is sent ahead into the GPU's memory, which
    holds the tensor table twice: captured steps have one of their own, so that other steps do not change what the graph
    reads. Behind the two is the table of storages, if the kernel reads it.
    """

    on_gpu = True

    def __init__(self, rows: GpuRows, variant: Variant, sizes: Sequence[int]) -> None:
        super().__init__(sizes)
        self.rows = rows
        self.stream = rows.stream
        self.variant, self.dtype = variant, variant.of_gradient
        self.limit, self.gain = math.inf, 0.0
        self.pack = cuda.pack(variant.dtype, variant.of_gradient)
        if variant.uses_storages:
            self.storages = np.zeros(len(sizes), STORAGE)
        self.steps, self.follows = 0, False  # for random bits: the host's count, and whether the GPU adds its own
        rows.is_read = rows.is_read or bool(variant.rounding)
        self.memory = Memory(self.stream, sum(table.nbytes for table in self._tables))
        self.uploaded = b""  # what the memory holds
        self.sent: npt.NDArray[np.int64] | None = None  # the gradients' addresses there
        head = GPU_JOB.itemsize // WORD
        self.argument = np.zeros(max(head + len(sizes), cuda.SIZES[-1] // WORD), np.int64)
        self.job, self.travelling = self.argument[:head].view(GPU_JOB), self.argument[head:]
        self.gradients = self.travelling[: len(sizes)]
        self.kernels: dict[int, Any] = {}  # by the size of their argument: what is loaded
        self.norms: dict[int, Any] = {}  # those of the norm
        self.size = 0  # of the argument with which everything can travel; 0 if there is none
        self.cut({})

    def _cut(self, strided: dict[int, Strides]) -> None:
        self.block = TILE_THREADS if strided else block_threads(sum(self.sizes) // self.pack)
        chunks, layouts = chunk_table(self.sizes, strided, self.block * self.pack)
        self.count = len(chunks)
        self.cuts: Any = Memory(self.stream, chunks.nbytes + layouts.nbytes)
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
        self.sizes_loaded = sizes if self.count else []
        for size in self.sizes_loaded:
            if size not in self.kernels:
                self.kernels[size] = cuda.kernel(self.stream.cupy, cuda.Kind(size=size, **self.variant._asdict()))
                self.stream.function(self.kernels[size])  # loads it, which is not possible in a capture

    def prepare_norm(self) -> None:
        """Load the kernels that sum squares."""
        for size in self.sizes_loaded:
            if size not in self.norms:
                self.norms[size] = cuda.norm(self.stream.cupy, self.dtype, size)
                self.stream.function(self.norms[size])

    def write_averages(self, addresses: Sequence[int]) -> None:
        """Write the addresses of the parameters' averages."""
        super().write_averages(addresses)
        self.stale = True

    def write_average(self, row: int, address: int) -> None:
        """Write the address of one average."""
        super().write_average(row, address)
        self.stale = True

    def write_storage(self, row: int, storage: StorageRow) -> None:
        """Write where what a tensor has beside its states lies."""
        super().write_storage(row, storage)
        self.stale = True

    @property
    def _tables(self) -> list[npt.NDArray[Any]]:
        """What the memory holds."""
        return [self.table, self.table, *([] if self.storages is None else [self.storages])]

    def write_count(self, count: int, follows: bool = False) -> None:
        """Write how many steps came before, with or without those that the GPU has counted; the extension counts on."""
        self.steps, self.follows = count, follows

    def write_stages(self, limit: float, gain: float) -> None:
        """Write the numbers of the stages."""
        self.limit, self.gain = limit, gain

    def write_coefficient(self, coefficient: float) -> None:
        """Write by what gradients are multiplied."""
        self.rows.write_coefficient(coefficient)

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
        self._launch(self.kernels)

    def launch_norm(self, sums: int, apart: int) -> None:
        """Put the kernel on the stream that sums the squares of each chunk's gradient."""
        self._launch(self.norms, sums, apart)

    def sum_squares(self, power: float) -> npt.NDArray[np.float64]:
        """Wait for the sum of squares of all gradients, times a power of two."""
        return np.array([self.rows.norm_here().sum_of(self, power)] if self.count else [])

    def _launch(self, kernels: dict[int, Any], sums: int = 0, apart: int = 0) -> None:
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
        counter = 0 if sums else self.rows.count_once()
        job = table, self.cuts.address, hypers, self.rows.skip, grads, counter
        stages = self.rows.coefficient, self.rows.scale if "value" in self.variant.stages else 0, self.limit, self.gain
        storages = 0 if self.storages is None else self.memory.address + 2 * self.table.nbytes
        self.job[0] = *job, sums, apart, *stages, storages, self.steps, self.rows.taken_at if self.follows else 0
        size = size or cuda.SIZES[0]
        argument = self.argument.view(np.uint8)[:size].view(f"V{size}")
        self.stream.launch(kernels[size], self.count, argument, self.block)

    def _table(self) -> int:
        if self.stale and (tables := b"".join(table.tobytes() for table in self._tables)) != self.uploaded:
            self.uploaded, self.sent = b"", None  # until they are written
            self.stream.write(self.memory, *self._tables)
            self.uploaded = tables
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
