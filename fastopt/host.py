"""NumPy arrays on the CPU: what a parameter is there, and one kernel over some of them, on a pool's threads."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from . import plan
from .arrays import Extents, check_dense, check_gradient, check_like, check_type, extent, pin
from .chunks import CHUNK_ELEMENTS, TILE_ELEMENTS, Strides, chunk_table, located
from .groups import GroupOptions
from .kernels import limits, pool
from .kernels.cold import kernel
from .kernels.reader import Array, address, read_alike
from .kernels.tables import ABI, ELEMENTS, HYPERS, JOB, TENSOR
from .plan import ArrayTensor, Idle
from .rules import Row, Rule

# So many for each thread: below twice that one is faster than two, after a millisecond of other work (`fastopt bench`).
ELEMENTS_PER_THREAD = 100_000

# So many claims each thread makes on a large job. With a claim for each chunk, threads that take turns at neighbours
# spoil each other's prefetching, for some 5 % of the time of ResNet-50 and GPT-2; with four, a late one delays all.
RUNS = 16


class Threads(Protocol):
    """Whose threads run a launch: those of the pool, which the module `pool` is, or those of another library."""

    def get_num_threads(self) -> int:
        """Return how many threads a launch may use."""

    def runner(self, kernel: Any, job_address: int) -> Callable[[int, int, int], None]:
        """Bind a kernel to a job: a function of (chunks, chunks a claim, threads)."""


class Launch(plan.Launch):
    """One kernel over tensors of one rule, one format and these sizes: the tables in memory, and the call."""

    def __init__(self, rule: Rule, format: str, sizes: Sequence[int], threads: Threads = pool) -> None:
        super().__init__(sizes)
        self.rule = rule
        self.threads = threads
        self.itemsize = np.dtype(ELEMENTS[format][0]).itemsize
        self.elements = sum(sizes)
        self.addresses = self.table.view(np.int64).reshape(len(sizes), -1)  # of parameter, gradient and states
        self.job = np.zeros((), JOB)
        self.job["abi"] = ABI
        self.job["tensors"] = address(self.table)
        self.kernel = kernel(rule.name, format)
        self.run = threads.runner(self.kernel, address(self.job))
        self.write_hypers(np.zeros((1, HYPERS)))
        self.cut({})

    def cut(self, strided: dict[int, Strides]) -> None:
        """Write the chunk table, for gradients that lie so."""
        self.strided = None  # until all is written: an interrupt must not leave an old address behind
        self.chunks, self.layouts = chunk_table(self.sizes, strided)
        self.table["layout"] = 0
        for row in strided:
            self.table["layout"][row] = address(self.layouts[row : row + 1])
        self.job["chunks"] = address(self.chunks)
        self.count = len(self.chunks)
        self.workers = max(1, self.elements // ELEMENTS_PER_THREAD)
        # Small tensors are claimed many at once, for about a chunk's worth of work, and of large jobs long runs.
        small = self.count * CHUNK_ELEMENTS // max(self.elements, 1)
        long = self.count // (RUNS * min(self.workers, self.threads.get_num_threads()))
        self.grain = max(1, small, long)
        if strided:
            self.workers = min(self.workers, max(limits.affinity(), self.threads.get_num_threads()))
            self.scratch = np.empty((self.workers, TILE_ELEMENTS * self.itemsize), np.uint8)
            self.job["scratch"] = address(self.scratch)
            self.job["scratch_bytes"] = self.scratch.shape[1]
        self.strided = strided

    def fields(self, parallel: int) -> dict[str, int]:
        """Return what the extension needs to launch by itself: fields of REPETITION."""
        return {
            "kernel": self.kernel.address,
            "job": address(self.job),
            "chunks": self.count,
            "grain": self.grain,
            "workers": self.workers,
            "parallel": parallel,
            "grads": address(self.table) + self.gradients.itemsize,  # the second column
            "apart": TENSOR.itemsize // self.gradients.itemsize,
        }

    def write_gradients(self, addresses: npt.NDArray[np.int64], strided: dict[int, Strides]) -> None:
        """Take the addresses of gradients, which the caller keeps; cut anew if they lie otherwise than the last."""
        self.gradients[:] = addresses
        if strided != self.strided:
            self.cut(strided)

    def write_hypers(self, hypers: npt.NDArray[np.float64]) -> None:
        """Take the hyper rows, which may change in place, and keep them."""
        self.hypers = hypers
        self.job["hypers"] = address(hypers)

    def __call__(self) -> None:
        """Run the kernel over all chunks."""
        threads = self.threads.get_num_threads()
        self.run(self.count, self.grain, threads if threads < self.workers else self.workers)


class Host:
    """The host's memory, and whose threads work there."""

    on_device = False

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        self.idle = Idle()

    def open(self) -> Host:
        """Return itself, which prepares launches."""
        return self

    def launch(self, rule: Rule, format: str, sizes: Sequence[int]) -> Launch:
        """Prepare a launch."""
        return Launch(rule, format, sizes, self.threads)

    def update(
        self, rule: Rule, format: str, size: int, addresses: Sequence[int], strided: dict[int, Strides], numbers: Row
    ) -> None:
        """Update a single tensor, whose parameter, gradient and states lie at these addresses."""
        key = rule.name, format, size
        launch = self.idle.pop(key, None) or self.launch(rule, format, [size])
        if strided != launch.strided:
            launch.cut(strided)
        launch.addresses[0, : len(addresses)] = addresses
        launch.hypers[0, : len(numbers)] = numbers
        launch()
        self.idle.put(key, launch)


HOST = Host(pool)


class HostTensor(ArrayTensor):
    """One parameter that is a NumPy array."""

    def __init__(self, key: Hashable, param: Any, group: GroupOptions) -> None:
        array, layout = check_dense(f"parameter {key!r}", param)
        super().__init__(key, array, layout, array.dtype.name, group, HOST)
        self.pins = pin(self.array)

    def restore(self, step: int, states: Mapping[str, Array]) -> None:
        """Take over a count and states, and drop the present ones."""
        self.step, self.states, self.pins = step, {}, pin(self.array)
        self.keep(states)

    def keep(self, states: Mapping[str, Array]) -> None:
        """Take new states, and keep them in place."""
        self.states.update(states)
        for array in states.values():
            self.pins += pin(array)

    def new_state(self, value: float) -> Array:
        """Allocate a state that lies as the parameter does."""
        return self.layout.allocate(self.array, value)

    def loaded(self, what: str, given: Any) -> Array:
        """Copy a state from a state dict, after checking that it is this tensor's."""
        source = check_like(what, given, "its parameter", self.dtype, self.shape)
        state = self.new_state(0.0)
        state[...] = source
        return state

    def gradient(self, what: str, given: Any) -> tuple[Any, Array]:
        """Check a gradient; return it, to be held, and how it lies."""
        array = check_gradient(what, given, "its parameter", self.dtype, self.shape)
        return array, array


def update_once(rule: Rule, p: Any, g: Any, states: Mapping[str, Any], numbers: Row) -> None:
    """Update a single parameter by a rule, on states of the caller's, after checking all of them."""
    single = Single(p, g, states)
    rule.check_row(numbers, single.dtype.name)
    HOST.update(rule, single.dtype.name, single.size, single.addresses, single.strided, numbers)
    for array, copy in single.copies:
        array[...] = copy


class Single:
    """The arrays of a single update, checked and held.

    Attributes
    ----------
    addresses : list of int
        Of parameter, gradient and states.
    copies : list of (array, array)
        States that lie in another order than the parameter, and the copies that are updated in their place.
    """

    def __init__(self, p: Any, g: Any, states: Mapping[str, Any]) -> None:
        self.strided: dict[int, Strides] = {}
        self.copies: list[tuple[Array, Array]] = []
        self.held = [p, g, *states.values()]
        if (read := read_alike(self.held)) is not None:
            self.addresses, self.dtype, self.size = read
        else:
            self._check(p, g, states)

    def _check(self, p: Any, g: Any, states: Mapping[str, Any]) -> None:
        param, layout = check_dense("p", p)
        gradient = check_gradient("g", g, "p", param.dtype, param.shape)
        arrays = {"p": param}
        for name, given in states.items():
            state = check_like(name, check_type(name, given), "p", param.dtype, param.shape)
            arrays[name], _ = check_dense(name, state)
        extents = Extents(arrays.items())
        pair = extents.first_overlap() or (extents.overlapping(gradient), "g")
        if pair[0] is not None:
            raise ValueError(f"{pair[0]} and {pair[1]} overlap in memory: pass a .copy() of one")

        gradient_address, strides = located(layout.in_storage_order(gradient))
        if strides is not None:
            self.strided[0] = strides
        for name in states:
            if not layout.in_storage_order(arrays[name]).flags.c_contiguous:
                copy = layout.allocate(param, 0.0)
                copy[...] = arrays[name]
                self.copies.append((arrays[name], copy))
                arrays[name] = copy
        start, *rest = (extent(array)[0] for array in arrays.values())
        self.addresses, self.dtype, self.size = [start, gradient_address, *rest], param.dtype, param.size
        self.held = [gradient, *arrays.values()]
