"""A GPU: one kernel over tensors there, and a plan's course, which has its hyper rows and counts what it takes away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import plan
from .away import COLD, record_of
from .chunks import Strides, chunk_table
from .kernels import cuda, graphs
from .kernels.device import Device, Memory
from .kernels.reader import Array
from .kernels.tables import ABI, CHUNK, COHORT, COURSE, ELEMENTS, HYPERS, JOB, TENSOR
from .plan import Idle, Member, Verdict
from .rules import Row, Rule

if TYPE_CHECKING:
    from .plan import Cohort

OLDEST = 70  # compute capability: Volta, from 2017
WORD = 8  # bytes
GRAD = TENSOR.fields["grad"][1]  # type: ignore[index]  # it has fields

# From so many packs of 16 bytes on, a block has so many threads, each of which takes one pack: that is its chunk. As
# measured on an H100, 2026-11-26, in float32, with four elements a pack: the time as a multiple of the fastest of the
# three, means of momentum, AdaGrad and Adam; last, a loop over eight packs in each of 128 threads. Other formats are
# still to be measured.
#
#     elements    packs    128    256    512   loop
#     2^16        2^14   1.005  1.002  1.049  1.756
#     2^18        2^16   1.000  1.009  1.019  1.548
#     2^20        2^18   1.012  1.005  1.000  1.141
#     2^22        2^20   1.001  1.001  1.010  1.024
#     2^24        2^22   1.003  1.001  1.000  1.052
#     2^28        2^26   1.005  1.002  1.000  1.040
BLOCKS = ((2**22, 512), (2**18, 256), (0, 128))
TILE_THREADS = 128  # where gradients lie otherwise: they share the rows of a tile


def block_threads(packs: int) -> int:
    """Choose how many threads a block has, by the packs that there are for all."""
    return next(threads for least, threads in BLOCKS if packs >= least)


class Course:
    """A plan's course on one device: hyper rows, and what counts the steps that the device takes by itself.

    In memory: the edition of the description and the steps taken since; the rows in float32, the rows in float64, the
    cohorts that they are computed from.
    """

    def __init__(self, place: Gpu) -> None:
        self.place = place
        self.device = Device(place.cupy, place.index, place.current_stream)
        if self.device.capturing:
            raise RuntimeError(COLD)
        self.reals: set[Any] = set()  # that its launches compute in
        self.records: dict[bytes, Memory] = {}
        self.edition = self.started = 0
        self.rows = 0
        self.scale = self.skip = 0
        self.course = np.zeros(1, COURSE)
        self.form(1)
        self.course["taken"] = self.memory.address + WORD
        self.advance()  # of no cohorts: the first launch loads a kernel, which a capture could not

    @property
    def capturing(self) -> bool:
        """Whether the step is recorded in a graph."""
        return self.device.capturing

    def begin(self, verdict: Verdict | None) -> None:
        """Find out on which stream the step is put, and what decides about it."""
        self.device.begin()
        self.scale, self.skip = verdict.addresses(self.place) if verdict is not None else (0, 0)

    def launch(self, rule: Rule, format: str, sizes: Sequence[int]) -> Launch:
        """Prepare a launch."""
        self.reals.add(ELEMENTS[format][1])
        return Launch(self, rule, format, sizes)

    def form(self, rows: int) -> None:
        """Make room for so many hyper rows."""
        if rows > self.rows:
            self.rows = rows
            self.memory = Memory(self.device, 2 * WORD + rows * (HYPERS * (4 + 8) + COHORT.itemsize))
            self.edition = self.started = 0
            self.rounded = self.memory.address + 2 * WORD
            self.exact = self.rounded + 4 * HYPERS * rows
            self.cohorts = self.exact + 8 * HYPERS * rows

    def rows_of(self, format: str) -> int:
        """Return where the hyper rows lie that a format's kernel reads."""
        return self.exact if ELEMENTS[format][1] is np.float64 else self.rounded

    def send_rows(self, hypers: npt.NDArray[np.float64]) -> None:
        """Send hyper rows that the host has computed."""
        if np.float32 in self.reals:
            self.device.send(self.rounded, hypers.astype(np.float32).reshape(-1).view(np.int64))
        if np.float64 in self.reals:
            self.device.send(self.exact, hypers.reshape(-1).view(np.int64))

    def hold(self, record: Array) -> int:
        """Return where a schedule's record lies in the device's memory, after putting it there."""
        key = record.tobytes()
        if key not in self.records:
            self.records[key] = Memory(self.device, len(key))
            self.device.write(self.records[key], record)
        return self.records[key].address

    def describe(self, cohorts: Sequence[Cohort], taken: int, restart: bool) -> None:
        """Take over what hyper rows are computed from, after so many steps away, and count from there, or anew."""
        self.described = np.zeros(len(cohorts), COHORT)
        for row, cohort in zip(self.described, cohorts, strict=True):
            self._describe(row, cohort, taken)
        self.edition += 1
        if restart:
            self.started = self.edition
        self.course["cohorts"], self.course["n"] = self.cohorts, len(cohorts)
        self.course["taken"] = self.memory.address + WORD
        self.course["hypers"], self.course["rounded"] = self.exact, self.rounded

    def own(self, memories: Sequence[Any]) -> None:
        """Let the graph that is recorded own this memory, and the course's."""
        graphs.own(self.device.stream.ptr, [self.memory, *self.records.values(), *memories])

    def tell(self) -> None:
        """Send that, unless the device has it already, from a graph."""
        edition = {"edition": self.memory.address, "number": self.edition}
        self.device.send(self.cohorts, self.described.view(np.int64), **edition)
        if self.started == self.edition:
            self.device.send(self.memory.address + WORD, np.zeros(1, np.int64), **edition)
        self.device.send(self.memory.address, np.array([self.edition]), **edition)

    def _describe(self, row: Any, cohort: Cohort, taken: int) -> None:
        group = cohort.group
        cohort.describe(row)
        row["steps"] -= taken
        row["clock"] = group.entries["step"] - taken
        for i, (_, number) in enumerate(cohort.rule.numbers({**group.upcoming, **group.schedules})):
            record = record_of(number)
            if record is not None:
                row["schedules"][i] = self.hold(record)

    def advance(self) -> None:
        """Count a step, unless it is skipped, and compute its hyper rows."""
        self.course["scale"], self.course["skip"] = self.scale, self.skip
        _, advance = cuda.send_and_advance(self.device.cupy)
        self.device.launch(advance, 1, self.course, threads=1)

    def taken(self) -> int:
        """Wait for the device, and return how many steps it has counted."""
        edition, taken = self.device.download(self.memory, 2)
        return taken if edition >= self.started else 0  # a graph that starts the count has not been replayed


class Launch(plan.Launch):
    """One kernel over tensors of one rule, one format, one device, and these sizes.

    The tensor table lies in the device's memory twice: a captured step has one of its own, so that a step beside the
    graph does not change what the graph reads.
    """

    def __init__(self, course: Course, rule: Rule, format: str, sizes: Sequence[int]) -> None:
        super().__init__(sizes)
        self.course = course
        self.device = course.device
        self.format = format
        self.kernel = cuda.kernel(self.device.cupy, rule.name, format)
        self.pack = cuda.pack(format)
        self.memory = Memory(self.device, 2 * self.table.nbytes)
        self.job = np.zeros(1, JOB)
        self.job["abi"] = ABI
        self.cut({})

    def cut(self, strided: dict[int, Strides]) -> None:
        """Write the chunk table, for gradients that lie so."""
        self.threads = TILE_THREADS if strided else block_threads(sum(self.sizes) // self.pack)
        chunks, layouts = chunk_table(self.sizes, strided, self.threads * self.pack)
        self.count = len(chunks)
        self.cuts = Memory(self.device, chunks.nbytes + layouts.nbytes)
        self.device.write(self.cuts, chunks, layouts)
        self.table["layout"] = 0
        for row in strided:
            self.table["layout"][row] = self.cuts.address + len(chunks) * CHUNK.itemsize + row * layouts.itemsize
        self.job["chunks"] = self.cuts.address
        self.strided = strided
        self.outdated, self.moved = True, False  # the table in the device's memory, its column of gradients

    def write_members(self, members: Sequence[Member]) -> None:
        """Take hyper rows and states of tensors that take part."""
        super().write_members(members)
        self.outdated = True

    def write_hypers(self, hypers: npt.NDArray[np.float64]) -> None:
        """Make room for as many hyper rows."""
        self.course.form(len(hypers))

    def write_gradients(self, addresses: npt.NDArray[np.int64], strided: dict[int, Strides]) -> None:
        """Take the addresses of gradients, which the caller keeps; cut anew if they lie otherwise than the last."""
        if strided != self.strided:
            self.cut(strided)
        self.moved = self.moved or not np.array_equal(self.gradients, addresses)
        self.gradients[:] = addresses

    def memories(self) -> list[Any]:
        """Return what the tables lie in."""
        return [self.memory, self.cuts]

    @property
    def cold(self) -> bool:
        """Whether the tables are not in the device's memory yet, as a capture needs them."""
        return self.outdated and self.count > 0

    def __call__(self) -> None:
        """Put the kernel on the stream, over all chunks."""
        if self.count:  # else there is nothing, which a launch of no blocks would be an error for
            self.job["tensors"] = self._captured_table() if self.device.capturing else self._table()
            self.job["hypers"] = self.course.rows_of(self.format)
            self.job["skip"] = self.course.skip
            self.device.launch(self.kernel, self.count, self.job, self.threads)

    def _table(self) -> int:
        if self.outdated:
            self.device.write(self.memory, self.table, self.table)
        elif self.moved:
            self._send_gradients(self.memory.address)
        self.outdated = self.moved = False
        return self.memory.address

    def _captured_table(self) -> int:
        """Return the table of captured steps, each of which sends its own gradients when it is replayed."""
        table = self.memory.address + self.table.nbytes
        self._send_gradients(table)
        return table

    def _send_gradients(self, table: int) -> None:
        self.device.send(table + GRAD, self.gradients, apart=TENSOR.itemsize // WORD)


class Gpu:
    """A device's memory, as one library uses it: work goes where that library's current stream is."""

    on_device = True

    def __init__(self, cupy: Any, index: int, current_stream: Callable[[], Any]) -> None:
        capability = cupy.cuda.Device(index).compute_capability
        if int(capability) < OLDEST:
            raise ValueError(f"GPU {index} has compute capability {int(capability) / 10:.1f}; at least 7.0 is needed")
        self.cupy, self.index, self.current_stream = cupy, index, current_stream
        self.idle = Idle()

    def open(self) -> Course:
        """Return a course of a plan's own."""
        return Course(self)

    def update(
        self, rule: Rule, format: str, size: int, addresses: Sequence[int], strided: dict[int, Strides], numbers: Row
    ) -> None:
        """Update a single tensor, whose parameter, gradient and states lie at these addresses."""
        # Another stream's launch may not have run yet, and has tables of its own; a thread may have its own stream.
        key = rule.name, format, size, self.current_stream().ptr, threading.get_ident()
        launch = self.idle.pop(key, None) or self.open().launch(rule, format, [size])
        rows = np.zeros((1, HYPERS))
        rows[0, : len(numbers)] = numbers
        launch.course.begin(None)
        if launch.device.capturing:
            raise RuntimeError("a single update cannot be captured: make an optimizer, and capture its step")
        launch.course.send_rows(rows)
        launch.write_params(addresses[:1])
        launch.write_members([(0, 0, addresses[2:])])
        launch.write_gradients(np.array(addresses[1:2]), strided)
        launch()
        self.idle.put(key, launch)
