"""Launches on the CPU: one kernel over parameters with its tables, run by the threads of a pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..kernels import limits, pool
from ..kernels.dtypes import DTYPES
from ..kernels.lazy import kernel
from ..kernels.reader import address
from ..kernels.tables import ABI, HYPERS, JOB
from ..rules import Row, Rule
from .chunks import CHUNK_ELEMENTS, TILE_ELEMENTS, Strides, chunk_table
from .launch import Launch, LaunchCache

# A second thread pays from twice as many on, after a millisecond of other work (`fastopt bench`).
ELEMENTS_PER_THREAD = 100_000

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


class CpuLaunch(Launch):
    """One kernel over tensors of one rule, one dtype and these sizes: the tables in memory, and the call."""

    on_gpu = False

    def __init__(
        self, rule: Rule, dtype: str, sizes: Sequence[int], threads: Threads = pool, stages: tuple[str, ...] = ()
    ) -> None:
        super().__init__(sizes)
        self.threads = threads
        self.itemsize = DTYPES[dtype].itemsize
        self.elements = sum(sizes)
        self.addresses = self.table.view(np.int64).reshape(len(sizes), -1)  # of parameter, gradient and states
        self.job = np.zeros((), JOB)
        self.job["abi"] = ABI
        self.job["power"] = self.job["coefficient"] = self.job["unscale"] = 1.0
        self.job["tensors"] = address(self.table)
        self.kernel = kernel(rule.name, dtype, stages)
        self.run = threads.runner(self.kernel, address(self.job))
        self.write_hypers(np.zeros((1, HYPERS)))
        self.cut({})

    def _cut(self, strided: dict[int, Strides]) -> None:
        self.chunks, self.layouts = chunk_table(self.sizes, strided)
        self.table["layout"] = 0
        for row in strided:
            self.table["layout"][row] = address(self.layouts[row : row + 1])
        self.job["chunks"] = address(self.chunks)
        self.count = len(self.chunks)
        self.workers = max(1, self.elements // ELEMENTS_PER_THREAD)
        # A claim takes many small tensors at once, about a chunk's worth of work; in large jobs it takes a long run.
        small = self.count * CHUNK_ELEMENTS // max(self.elements, 1)
        long = self.count // (RUNS * min(self.workers, self.threads.get_num_threads()))
        self.grain = max(1, small, long)
        if strided:
            self.workers = min(self.workers, max(limits.affinity(), self.threads.get_num_threads()))
            self.scratch = np.empty((self.workers, TILE_ELEMENTS * self.itemsize), np.uint8)
            self.job["scratch"] = address(self.scratch)
            self.job["scratch_bytes"] = self.scratch.shape[1]

    def again(self) -> tuple[int, ...] | None:
        """Return the fields of LAUNCH for the extension; None if it cannot run this launch."""
        if self.strided or not pool.available:
            return None
        return self.kernel.address, 0, address(self.job), self.count, self.grain, self.workers

    def write_gradients(self, addresses: npt.NDArray[np.int64], strided: dict[int, Strides]) -> None:
        """Write the addresses of gradients, which the caller keeps alive; cut anew if their strides are others."""
        self.gradients[:] = addresses
        self.cut(strided)

    def write_hypers(self, hypers: npt.NDArray[np.float64]) -> None:
        """Point to the hyper rows, which may change in place."""
        self.hypers = hypers
        self.job["hypers"] = address(hypers)

    def write_stages(self, unscale: float, limit: float, gain: float) -> None:
        """Write the numbers of the stages."""
        self.job["unscale"], self.job["limit"], self.job["gain"] = unscale, limit, gain

    def __call__(self) -> None:
        """Run the kernel over all chunks."""
        threads = self.threads.get_num_threads()
        self.run(self.count, self.grain, threads if threads < self.workers else self.workers)


class Cpu:
    """The CPU with its memory, and the threads that work there."""

    on_gpu = False

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        self.cache = LaunchCache()

    def open(self) -> Cpu:
        """Return itself, which prepares launches."""
        return self

    def launch(self, rule: Rule, dtype: str, sizes: Sequence[int], stages: tuple[str, ...] = ()) -> CpuLaunch:
        """Prepare a launch."""
        return CpuLaunch(rule, dtype, sizes, self.threads, stages)

    def update(
        self, rule: Rule, dtype: str, size: int, addresses: Sequence[int], strided: dict[int, Strides], numbers: Row
    ) -> None:
        """Update a single tensor with parameter, gradient and states at these addresses."""
        key = rule.name, dtype, size
        launch = self.cache.pop(key, None) or self.launch(rule, dtype, [size])
        launch.cut(strided)
        launch.addresses[0, : len(addresses)] = addresses
        launch.hypers[0, : len(numbers)] = numbers
        launch()
        self.cache.put(key, launch)
