"""The norm of the gradients of one plan on a GPU, and what becomes of a step by it, without waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..kernels import cuda
from ..kernels.stream import Memory, Stream
from ..kernels.tables import GPU_NORM, GPU_TOTAL, POWERS
from .norm import DOWN, UP

THREADS = 512  # of the block that adds the sums
POWER = {1.0: 0, DOWN: 1, UP: 2}  # which of its sums is of gradients times this


class GpuNorm:
    """The sums of squares of a plan's launches on one GPU, their norm, and what it decides.

    Attributes
    ----------
    coefficient : int
        The address of the number that multiplies gradients, in the launches of this step; 0 if there is none.
    skip : int
        The address of the flag that skips the step.
    known : int
        The skipped steps that the host has read.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.memory = Memory(stream, GPU_NORM.itemsize + 8 * POWERS)  # and the sum for each power
        self.sums: Memory | None = None
        self.chunks = 0
        self.coefficient = self.known = 0
        self.skip = self._address("skip")
        self.total = np.zeros(1, GPU_TOTAL)
        self.kernel = cuda.total(stream.cupy)
        stream.function(self.kernel)  # loads it, which is not possible in a capture

    def _address(self, name: str) -> int:
        return self.memory.address + int(GPU_NORM.fields[name][1])  # type: ignore[index]  # it has fields

    def prepare(self, launches: Sequence[Any]) -> None:
        """Reserve room for the sums, and load kernels."""
        chunks = sum(launch.count for launch in launches)
        if self.sums is None or chunks > self.chunks:
            self.chunks = max(chunks, 2 * self.chunks)  # rows differ from step to step, and allocating waits
            self.sums = Memory(self.stream, 8 * POWERS * self.chunks)
        for launch in launches:
            launch.prepare_norm()

    def _sum(self, launches: Sequence[Any]) -> None:
        assert self.sums is not None  # since `prepare`
        at = self.sums.address
        count = sum(launch.count for launch in launches)
        for launch in launches:
            launch.launch_norm(at, count)
            at += 8 * launch.count
        self.total["sums"], self.total["count"], self.total["apart"] = self.sums.address, count, count

    def decide(self, launches: Sequence[Any], rows: Any, clip: Any, factor: float) -> None:
        """Have the GPU take the norm of the gradients times a factor, and decide by it what `rows` will do."""
        self._sum(launches)
        self.total["norm"], self.total["totals"] = self.memory.address, 0
        self.total["scale"], self.total["skip"], self.total["factor"] = rows.scale, rows.skip, factor
        self.total["max_norm"], self.total["skips"] = clip["max_norm"], clip["skips"]
        self.stream.launch(self.kernel, 1, self.total, threads=THREADS)
        self.coefficient = self._address("coefficient")
        if clip["skips"]:
            rows.skip = self.skip

    def sum_of(self, launch: Any, power: float) -> float:
        """Wait for the sum of squares of a launch's gradients times a power of two."""
        self.prepare([launch])
        self._sum([launch])
        self.total["norm"], self.total["totals"] = 0, self.memory.address + GPU_NORM.itemsize
        self.stream.launch(self.kernel, 1, self.total, threads=THREADS)
        words = np.array(self._download(GPU_NORM.itemsize // 8 + POWERS)[-POWERS:], np.int64)
        return float(words.view(np.float64)[POWER[power]])

    def _download(self, count: int) -> list[int]:
        return self.stream.download(self.memory, count)

    def write_coefficient(self, coefficient: float) -> None:
        """Have the launches multiply their gradients by a number that the host knows."""
        self.coefficient = self._address("coefficient")
        self.stream.send(self.coefficient, np.array([coefficient]).view(np.int64))

    def new_skipped(self) -> int:
        """Wait for the GPU, and return how many steps it has skipped since the last call."""
        words = self._download(GPU_NORM.itemsize // 8)
        skipped = int(np.array(words, np.int64).view(GPU_NORM)[0]["skipped"])
        new, self.known = skipped - self.known, skipped
        return new

    def copy_to(self, address: int) -> None:
        """Copy the norm, a float64, to another place on the GPU, in the stream's order."""
        self.stream.copy(address, self._address("norm"), 8)

    def memories(self) -> list[Any]:
        """Return what a graph has to own."""
        return [self.memory, self.sums]
