"""Launches on the CPU: one kernel over parameters with its tables, run by the threads of a pool."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..kernels import limits, pool
from ..kernels.dtypes import DTYPES
from ..kernels.lazy import kernel
from ..kernels.reader import address
from ..kernels.tables import ABI, HYPERS, JOB, NORM, PIECE, STATES, STORAGE
from ..rules import Row
from .chunks import CHUNK_ELEMENTS, TILE_ELEMENTS, Strides, Table, chunk_table
from .launch import NO_STORAGE, Launch, LaunchCache, StorageRow, Tables, Variant
from .norm import Measured, Piece, measure

# A second thread pays from twice as many on, after a millisecond of other work (`fastopt bench`).
ELEMENTS_PER_THREAD = 100_000

# Rows here and there in a table come from memory, one at a time. Of rows with 64 elements, two threads update 600 as
# fast as one does, and 2,100 in 84 to 91 % of the time, each after other work.
ROW_ELEMENTS_PER_THREAD = 30_000

# Claims per thread in a large job. If each chunk were a claim, threads would take turns at neighbours and spoil each
# other's prefetching, which costs 5 % in ResNet-50 and GPT-2; with four claims, a late thread delays all.
RUNS = 16


class Threads(Protocol):
    """The threads that run a launch: those of the pool (the module `pool`), or those of another library."""

    parallel: int  # the address of GOMP_parallel in the OpenMP runtime; 0 for the pool

    def get_num_threads(self) -> int:
        """Return how many threads a launch may use."""

    def runner(self, kernel: Any, job_address: int) -> Callable[[int, int, int], None]:
        """Bind a kernel to a job; return a function of (chunks, chunks per claim, threads)."""


class CpuTables(Tables):
    """The tables of tensors of these sizes in memory, with gradients of one dtype, and the pass that sums the squares.

    Attributes
    ----------
    sums : array of float64
        The sum of squares of each chunk, after `sum_squares`.
    norm : int
        The address of the kernel that writes them; 0 until it is first needed.
    """

    def __init__(self, dtype: str, sizes: Sequence[int], threads: Threads = pool) -> None:
        super().__init__(sizes)
        self.threads = threads
        self.dtype = dtype
        self.job = np.zeros((), JOB)
        self.job["abi"] = ABI
        self.job["power"] = self.job["coefficient"] = 1.0
        self.job["tensors"] = address(self.table)
        self.norm = 0
        self.cut({})

    def _cut(self, strided: dict[int, Strides]) -> None:
        sizes = [0 if row in self.apart else size for row, size in enumerate(self.sizes)]
        chunks, self.layouts = chunk_table(sizes, strided)
        self.table["layout"] = 0
        for row in strided:
            self.table["layout"][row] = address(self.layouts[row : row + 1])
        self.take_chunks(chunks, sum(sizes))

    def take_chunks(self, chunks: Table, elements: int, per_thread: int = ELEMENTS_PER_THREAD) -> None:
        """Take these chunks, of so many elements; a second thread is to have at least so many."""
        self.chunks, self.elements = chunks, elements
        self.job["chunks"] = address(self.chunks)
        self.count = len(self.chunks)
        self.sums = np.empty(self.count)
        self.job["sums"] = address(self.sums)
        self.workers = max(1, self.elements // per_thread)
        # A claim takes many small tensors at once, about a chunk's worth of work; in large jobs it takes a long run.
        small = self.count * CHUNK_ELEMENTS // max(self.elements, 1)
        long = self.count // (RUNS * min(self.workers, self.threads.get_num_threads()))
        self.grain = max(1, small, long)

    def write_gradients(self, addresses: npt.NDArray[np.int64], strided: dict[int, Strides]) -> None:
        """Write the addresses of gradients, which the caller keeps alive; cut anew if their strides are others."""
        self.gradients[:] = addresses
        self.cut(strided)

    def prepare_norm(self) -> None:
        """Compile the kernel of the norm, or load it, unless it is there."""
        if not self.norm:
            compiled = kernel(NORM, self.dtype)
            self.run_norm = self.threads.runner(compiled, address(self.job))
            self.norm = int(compiled.address)

    def sum_squares(self, power: float) -> npt.NDArray[np.float64]:
        """Return the sum of squares of each chunk's gradient, times this power of two; 0 where there is none."""
        self.prepare_norm()
        self.job["power"] = power
        self._run(self.run_norm)
        return self.sums

    def _run(self, run: Callable[[int, int, int], None]) -> None:
        if not self.count:
            return
        threads = self.threads.get_num_threads()
        run(self.count, self.grain, threads if threads < self.workers else self.workers)


class CpuLaunch(CpuTables, Launch):
    """One kernel over tensors of one rule, one dtype and these sizes: the tables in memory, and the call."""

    on_gpu = False

    def __init__(self, variant: Variant, sizes: Sequence[int], threads: Threads = pool) -> None:
        self.for_codes = STATES * PIECE * 4 if variant.has_codes else 0
        super().__init__(variant.of_gradient, sizes, threads)
        self.addresses = self.table.view(np.int64).reshape(len(sizes), -1)  # of parameter, gradient and states
        if variant.uses_storages:
            self.storages = np.zeros(len(sizes), STORAGE)
            self.job["storages"] = address(self.storages)
        self.kernel = kernel(*variant)
        self.run = threads.runner(self.kernel, address(self.job))
        self.write_hypers(np.zeros((1, HYPERS)))

    def _cut(self, strided: dict[int, Strides]) -> None:
        super()._cut(strided)
        if strided:
            self._reserve(TILE_ELEMENTS * DTYPES[self.dtype].itemsize)

    def take_chunks(self, chunks: Table, elements: int, per_thread: int = ELEMENTS_PER_THREAD) -> None:
        """Take these chunks, and reserve what their workers need."""
        super().take_chunks(chunks, elements, per_thread)
        self._reserve(self.for_codes)

    def _reserve(self, size: int) -> None:
        """Reserve so many bytes for each worker: gradients in another order, or what codes decode to, never both."""
        if size:
            self.workers = min(self.workers, max(limits.affinity(), self.threads.get_num_threads()))
            self.scratch = np.empty((self.workers, size), np.uint8)
            self.job["scratch"] = address(self.scratch)
            self.job["scratch_bytes"] = self.scratch.shape[1]

    def again(self) -> tuple[int, ...] | None:
        """Return the fields of LAUNCH for the extension; None if it cannot run this launch."""
        if self.strided or not pool.available:
            return None
        return self.kernel.address, self.norm, address(self.job), self.count, self.grain, self.workers

    def write_hypers(self, hypers: npt.NDArray[np.float64]) -> None:
        """Point to the hyper rows, which may change in place."""
        pointer = address(hypers)  # first: an interrupt between the two would leave the address of rows that are gone
        self.hypers, self.job["hypers"] = hypers, pointer

    def write_count(self, count: int) -> None:
        """Write how many steps came before this one; the extension counts on."""
        self.job["count"] = count

    def write_stages(self, limit: float, gain: float) -> None:
        """Write the numbers of the stages."""
        self.job["limit"], self.job["gain"] = limit, gain

    def write_coefficient(self, coefficient: float) -> None:
        """Write by what gradients are multiplied, to clip them by their norm."""
        self.job["coefficient"] = coefficient

    def __call__(self) -> None:
        """Run the kernel over all chunks."""
        self._run(self.run)


class Cpu:
    """The CPU with its memory, and the threads that work there."""

    on_gpu = False

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        self.cache = LaunchCache()

    def open(self) -> Cpu:
        """Return itself, which prepares launches."""
        return self

    def launch(self, variant: Variant, sizes: Sequence[int]) -> CpuLaunch:
        """Prepare a launch."""
        return CpuLaunch(variant, sizes, self.threads)

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
        key = variant, size
        launch = self.cache.pop(key, None) or self.launch(variant, [size])
        launch.cut(strided)
        launch.addresses[0, : len(addresses)] = addresses
        launch.hypers[0, : len(numbers)] = numbers
        launch.write_storage(0, storage)
        launch.write_count(count)
        launch()
        self.cache.put(key, launch)

    def launch_of_places(
        self, key: Hashable, variant: Variant, addresses: Sequence[Sequence[int]], storage: StorageRow
    ) -> CpuLaunch:
        """Return a launch over one tensor whose gradients lie in several places, for the caller to give it chunks.

        The tensor table has a row for each place: the addresses of parameter, gradient and states. Whoever has used the
        launch puts it into the cache, by its key.
        """
        launch: CpuLaunch = self.cache.pop(key, None) or self.launch(variant, [0] * len(addresses))
        for row, of_row in enumerate(addresses):
            launch.addresses[row, : len(of_row)] = of_row
            launch.write_storage(row, storage)
        return launch

    def norm(self, pieces: Sequence[Piece]) -> Measured:
        """Return the norm of gradients, which the caller keeps alive."""
        with self.tables(pieces) as tables:
            return measure(tables)

    @contextlib.contextmanager
    def tables(self, pieces: Sequence[Piece]) -> Iterator[list[CpuTables]]:
        """Lend tables of gradients, which the caller keeps alive, for a ``with`` block."""
        tables = {}
        for dtype in dict.fromkeys([piece.dtype for piece in pieces]):
            alike = [piece for piece in pieces if piece.dtype == dtype]
            key = dtype, tuple([piece.size for piece in alike])
            tables[key] = self.cache.pop(key, None) or CpuTables(*key, self.threads)
            strided = {row: piece.strides for row, piece in enumerate(alike) if piece.strides is not None}
            tables[key].write_gradients(np.array([piece.address for piece in alike], np.int64), strided)
        yield [*tables.values()]
        for key, kept in tables.items():
            self.cache.put(key, kept)
