"""The arguments of CUDA kernels, made for arrays on the host and launched there; no tests here."""

from dataclasses import dataclass, field

import host_cuda
import numpy as np
from fastopt.kernels import cuda
from fastopt.kernels.dtypes import DTYPES
from fastopt.kernels.tables import (
    CLOCK,
    GPU_JOB,
    GPU_NORM,
    GPU_TOTAL,
    HYPERS,
    MESSAGE,
    POWERS,
    ROW_INPUTS,
    STATES,
    STORAGE,
    TENSOR,
)

from fastopt.rules import RULES
from fastopt.step.chunks import Strides, chunk_table
from fastopt.step.gpu_launch import TILE_THREADS

APART = TENSOR.itemsize // 8  # int64 from one tensor's gradient to the next one's


@dataclass
class Tensor:
    """A parameter, a gradient, which may be missing or in another order, states, an average; 16-bit dtypes as bits.

    States that are codes have scales; of others they are None.
    """

    param: np.ndarray
    grad: np.ndarray | None
    states: list[np.ndarray]
    hyper: int = 0
    average: np.ndarray | None = None
    scales: tuple[np.ndarray | None, ...] = ()


@dataclass
class Numbers:
    """What the stages of a job go by: numbers, and arrays of one number."""

    coefficient: np.ndarray | None = None
    scale: np.ndarray | None = None
    limit: float = 0.0
    gain: float = 0.0


def pointer(array):
    """The address of an array; 0 for None."""
    return 0 if array is None else array.ctypes.data


def computed(dtype):
    """The type that a kernel computes in, which its states and hyper rows have too."""
    return DTYPES[dtype].real


class Job:
    """A launch of one update with blocks of `threads` threads: its tables, and all arrays that they point to.

    Of an argument of some size, gradients, rows or both may travel in it; else it has but the tables' addresses.
    """

    def __init__(
        self,
        name,
        dtype,
        tensors,
        rows=((),),
        skip=None,
        threads=TILE_THREADS,
        size=cuda.SIZES[0],
        travels=(),
        stages=(),
        numbers=None,
        states=(),
        rounding="",
    ):
        self.kernel = cuda.Kind(name, dtype, size, stages, states, rounding=rounding).name
        self.norm = cuda.norm_name(dtype, size)
        self.tensors, self.skip, self.numbers = tensors, skip, numbers or Numbers()
        self.threads, self.size, self.travels = threads, size, travels
        self.taken: np.ndarray | None = None  # the count of steps, if the launch is to count
        self.steps, self.counted = 0, None  # for random bits: steps before, and an array of more of them
        self.reads_storages = bool(rounding) or self.kernel in host_cuda.WITH_CODES
        strided = {
            row: Strides.of(tensor.grad)
            for row, tensor in enumerate(tensors)
            if tensor.grad is not None and not tensor.grad.flags.c_contiguous
        }
        self.table, self.storages = np.zeros(len(tensors), TENSOR), np.zeros(len(tensors), STORAGE)
        sizes = [tensor.param.size for tensor in tensors]
        self.chunks, self.layouts = chunk_table(sizes, strided, threads * cuda.pack(dtype))
        for row, tensor in enumerate(tensors):
            addresses = [state.ctypes.data for state in tensor.states]
            self.table["param"][row] = tensor.param.ctypes.data
            self.table["grad"][row] = pointer(tensor.grad)
            self.table["average"][row] = pointer(tensor.average)
            self.table["states"][row] = addresses + [0] * (STATES - len(addresses))
            self.table["layout"][row] = self.layouts[row : row + 1].ctypes.data if row in strided else 0
            self.table["hyper"][row] = tensor.hyper
            self.storages["scales"][row][: len(tensor.scales)] = [pointer(scales) for scales in tensor.scales]
        self.sums = None
        self.hypers = np.zeros((len(rows), HYPERS), computed(dtype))
        for hyper, row in zip(self.hypers, rows, strict=True):
            hyper[: len(row)] = row

    def launch(self, seed=0):
        """Run the kernel over all chunks; return how many of its accesses were of 16 bytes."""
        return self._run(self.kernel, seed)

    def square(self, seed=0):
        """Run the norm's kernel instead, with the same argument, and return the sums that it writes."""
        self.sums = np.full((POWERS, len(self.chunks)), np.nan)
        self._run(self.norm, seed)
        return self.sums

    def _run(self, kernel, seed):
        argument = np.zeros(self.size, np.uint8)
        job, words = argument[: GPU_JOB.itemsize].view(GPU_JOB)[0], argument[GPU_JOB.itemsize :].view(np.int64)
        table, n = self.table.copy(), 0
        if "gradients" in self.travels:
            n = len(table)
            words[:n] = table["grad"]
            table["grad"] = 1  # which nobody may follow
        if "rows" in self.travels:
            rows = self.hypers.reshape(-1).view(np.int64)
            words[n : n + len(rows)] = rows
        else:
            job["hypers"] = self.hypers.ctypes.data
        job["tensors"], job["chunks"], job["grads"] = table.ctypes.data, self.chunks.ctypes.data, n
        for name in ("skip", "taken"):
            job[name] = pointer(getattr(self, name))
        job["limit"], job["gain"] = self.numbers.limit, self.numbers.gain
        job["coefficient"], job["scale"] = pointer(self.numbers.coefficient), pointer(self.numbers.scale)
        job["count"], job["counted"] = self.steps, pointer(self.counted)
        job["sums"], job["apart"] = pointer(self.sums), len(self.chunks)
        job["storages"] = self.storages.ctypes.data if self.reads_storages and kernel == self.kernel else 0
        argument = argument.view(np.dtype((np.void, self.size)))
        return host_cuda.launch(kernel, argument, len(self.chunks), self.threads, seed) if len(self.chunks) else 0


@dataclass
class Total:
    """What becomes of a step by sums of squares: what is asked, and what was found."""

    max_norm: float = np.inf
    skips: bool = False
    scale: np.ndarray | None = None
    skip: np.ndarray | None = None
    found: np.ndarray = field(default_factory=lambda: np.zeros(1, GPU_NORM))

    def launch(self, sums, threads=512, seed=0):
        """Run the kernel on sums, a row for each power, and return what it finds."""
        self._run(sums, "norm", self.found, threads, seed)
        return self.found[0]

    def add(self, sums, threads=512, seed=0):
        """Run it for the sum of each power alone."""
        totals = np.full(POWERS, np.nan)
        self._run(sums, "totals", totals, threads, seed)
        return totals

    def _run(self, sums, name, to, threads, seed):
        argument, sums = np.zeros((), GPU_TOTAL), np.ascontiguousarray(sums)
        argument["sums"], argument["count"], argument["apart"] = sums.ctypes.data, sums.shape[1], sums.shape[1]
        argument["scale"], argument["skip"] = pointer(self.scale), pointer(self.skip)
        argument["factor"] = 1.0
        argument["max_norm"], argument["skips"], argument[name] = self.max_norm, self.skips, pointer(to)
        host_cuda.launch("total", argument, 1, threads, seed)


class Clock:
    """The counting of steps: inputs, and the hyper rows that follow."""

    def __init__(self, n):
        self.inputs = np.zeros(n, ROW_INPUTS)
        self.taken = np.zeros(1, np.int64)
        self.carried = np.ones(n)
        self.hypers, self.rounded = np.zeros((n, HYPERS)), np.zeros((n, HYPERS), np.float32)
        self.scale: np.ndarray | None = None
        self.skip: np.ndarray | None = None
        self.records = []  # of schedules, kept

    def write(self, i, name, options, *, first=True, steps=0, schedule_steps=0):
        """Write the inputs of a row; an option may be a schedule."""
        row = self.inputs[i : i + 1]
        row["rule"], row["first"] = list(RULES).index(name), first
        row["steps"], row["schedule_steps"] = steps, schedule_steps
        at_first = {option: 0.0 if hasattr(value, "record") else value for option, value in options.items()}
        for index, (option, number) in enumerate(RULES[name].numbers(at_first)):
            row["options"][0, index] = number
            if hasattr(options[option], "record"):
                self.records.append(options[option].record())
                row["schedules"][0, index] = self.records[-1].ctypes.data

    def advance(self, block=1, seed=0):
        """Compute the rows, in blocks of so many threads."""
        self.launch("advance", -(-len(self.inputs) // block), block, seed)

    def count(self):
        """Count the step."""
        self.launch("count", 1, 1)

    def launch(self, kernel, blocks, threads, seed=0):
        """Run one of the kernels, in no block at all too, of which there is no launch."""
        clock = np.zeros((), CLOCK)
        clock["n"] = len(self.inputs)
        for name in ("inputs", "taken", "carried", "hypers", "rounded", "scale", "skip"):
            array = getattr(self, name)
            clock[name] = 0 if array is None else array.ctypes.data
        if blocks:
            host_cuda.launch(kernel, clock, blocks, threads, seed)


def send(numbers, to, apart=1, version=None, number=0, block=128, seed=0):
    """Send numbers to an address, so many int64 apart."""
    message = np.zeros((), MESSAGE)
    message["to"], message["apart"], message["count"] = to, apart, len(numbers)
    message["version"], message["number"] = 0 if version is None else version.ctypes.data, number
    message["words"][: len(numbers)] = numbers
    host_cuda.launch("send", message, 1, block, seed)
