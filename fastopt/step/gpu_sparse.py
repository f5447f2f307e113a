"""Sparse gradients on a GPU: the rows of a table that a launch updates are found there, and nobody waits for them.

A row is a chunk, as on the CPU, but one that the GPU writes. Its gradient lies where the values do, so that the row is
a tile to the kernels, which are those of whole tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..kernels import cuda
from ..kernels.dtypes import DTYPES
from ..kernels.reader import Array, address
from ..kernels.stream import MESSENGERS, Memory
from ..kernels.tables import CHUNK, GPU_ROWS, LAYOUT
from .gpu_launch import TILE_THREADS, GpuLaunch
from .gpu_rows import GpuRows
from .launch import Entry, Variant
from .sparse import LARGEST_KEY, REALS, bits_of

WARP = 32  # threads


class GivenThere(NamedTuple):
    """Rows as they were given, in a GPU's memory; whether they are rows of the table is found there."""

    what: str
    number: int  # the parameter's
    indices: Array | None  # describes int32 or int64, one behind the other; None: all rows, in order
    values: Array  # describes float32 or float64, one row behind the other
    rows: int  # of the table
    width: int  # of a row
    held: Any  # whose memory that is

    @property
    def dense(self) -> bool:
        """Whether they are all that the table has."""
        return self.indices is None

    @property
    def lines(self) -> int:
        """How many lines of values there are."""
        return self.rows if self.indices is None else self.indices.size

    @property
    def dtype(self) -> str:
        """The dtype of the values."""
        return REALS[self.values.dtype]

    @property
    def bits(self) -> int:
        """How many bits of a key are the place."""
        return bits_of(self.lines)

    def check_size(self) -> None:
        """Raise ValueError if the table has more rows than keys can number."""
        most = LARGEST_KEY >> self.bits
        if self.rows > most:
            raise ValueError(f"{self.what} is of a table of {self.rows} rows, more than {most}: pass parts of it")


def refuse_capture(device: Any, what: str, dense: bool = False) -> None:
    """Raise RuntimeError if a step by rows is recorded in a graph, before anything is allocated for it."""
    if not device.current_stream().is_capturing():
        return
    if dense:
        raise RuntimeError(f"{what} is of a table with rowwise=True: a step with it cannot be captured")
    raise RuntimeError(f"{what} is sparse: a step with it cannot be captured, since each has other rows")


class RowsLaunch(GpuLaunch):
    """One kernel over the rows of one table that have a gradient.

    To the kernel these are two tensors in the same place: one has its gradient in the values, the other in the sums of
    those that belong to the same row.
    """

    def __init__(self, rows: GpuRows, variant: Variant, size: int) -> None:
        super().__init__(rows, variant, [size, size])
        self.check, self.kernels_of_rows = rows.check_here(), cuda.row_kernels(self.stream.cupy)

    def _cut(self, strided: Any) -> None:
        """Describe the gradient; the chunks come with it."""
        layout = np.zeros(1, LAYOUT)
        layout["grad_item"] = DTYPES[self.dtype].itemsize
        self.layout = Memory(self.stream, layout.nbytes)
        self.stream.write(self.layout, layout)
        self.table["layout"] = self.layout.address
        self.count, self.block, self.stale = 0, WARP, True

    def prepare(self, rows: int) -> None:
        """Reserve memory for so many hyper rows, and load the kernels, however many rows come."""
        self.count = max(self.count, 1)
        super().prepare(rows)

    def write_entries(self, entries: Sequence[Entry]) -> None:
        """Write hyper row and states, twice."""
        super().write_entries([entry._replace(row=row) for entry in entries for row in (0, 1)])

    def take(self, given: GivenThere) -> None:
        """Put on the stream what writes the chunks of a gradient's rows."""
        n, cupy = given.lines, self.stream.cupy
        with cupy.cuda.Device(self.stream.index), self.stream.current:
            keys, chunks = cupy.empty(n, np.int64), cupy.empty(n * CHUNK.itemsize // 8, np.int64)
            sums = cupy.empty(0 if given.dense else n * given.width, given.values.dtype)
        self.block = min(max(-(-given.width // WARP), 1) * WARP, TILE_THREADS)
        self.check.tables[given.number] = given.what, given.rows
        job = np.zeros(1, GPU_ROWS)
        if given.indices is not None:
            job["indices"], job["wide"] = address(given.indices), given.indices.dtype == np.int64
        job["values"] = address(given.values)
        for name, array in (("keys", keys), ("sums", sums), ("chunks", chunks)):
            job[name] = array.data.ptr
        for name in ("bits", "rows", "width"):
            job[name] = getattr(given, name)
        job["n"], job["tensor"] = n, given.number
        job["check"] = self.check.memory.address
        if n:  # a launch of no blocks would be an error
            self.stream.launch(self.kernels_of_rows["number_rows"], -(-n // MESSENGERS), job)
            if not given.dense:  # whose keys come in order
                with cupy.cuda.Device(self.stream.index), self.stream.current:
                    keys.sort()
            self.stream.launch(self.kernels_of_rows[f"cut_rows_{self.dtype}"], n, job, self.block)
            if not given.dense:
                self.check.memory.tell()
        self.gradients[:] = address(given.values), sums.data.ptr
        self.count, self.cuts = n, Placed(int(chunks.data.ptr))
        self.held: tuple[Any, ...] = given, keys, sums, chunks

    def __call__(self) -> None:
        """Put the kernel on the stream; what it reads may then be given back, in the stream's order."""
        super().__call__()
        self.held = ()

    def memories(self) -> list[Any]:
        """Return the memory of the tables."""
        return [self.memory, self.layout]

    def again(self) -> None:
        """Say that the extension cannot launch this: each gradient has its own rows."""


class Placed(NamedTuple):
    """Something in a GPU's memory that others hold."""

    address: int
