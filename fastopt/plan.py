"""From checked arrays to launches: the tensor table, the chunk table, the hyper rows, and who counts what.

A `Plan` belongs to an optimizer. It splits the tensors into one `Launch` per rule and format, and those that take part
in a step into `Cohort`s, one per hyper row: tensors of one group that have taken the same number of steps. As a rule
there is one launch and a cohort per group, and a step rewrites nothing but the addresses of new gradients.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .arrays import Extents, check_dense, check_like, extent, pin
from .chunks import CHUNK_ELEMENTS, TILE_ELEMENTS, Strides, chunk_table
from .groups import GroupOptions
from .kernels import pool
from .kernels.cold import kernel
from .kernels.reader import UNREAD, Array, Reader, address, read_alike
from .kernels.tables import ABI, ELEMENTS, HYPERS, JOB, TENSOR
from .rules import RULES, Options, Row, Rule

# So many for each thread: below twice that one is faster than two, after a millisecond of other work (`fastopt bench`).
ELEMENTS_PER_THREAD = 100_000

# So many claims each thread makes on a large job. With a claim for each chunk, threads that take turns at neighbours
# spoil each other's prefetching, for some 5 % of the time of ResNet-50 and GPT-2; with four, a late one delays all.
RUNS = 16


class Tensor:
    """One parameter: its array, its states, and the count of its own steps."""

    def __init__(self, key: Hashable, param: Any, group: GroupOptions) -> None:
        self.key = key
        self.array, self.layout = check_dense(f"parameter {key!r}", param)
        self.group = group
        self.dtype = self.array.dtype
        self.format = self.dtype.name  # what its kernel is compiled for
        self.shape = self.array.shape
        self.address = extent(self.array)[0]
        self.pins = pin(self.array)
        self.step = 0
        self.states: dict[str, Array] = {}
        self.launch: Launch  # the plan's choice, and its row there
        self.row: int

    def __str__(self) -> str:
        """Name the parameter, for messages."""
        return f"parameter {self.key!r}"

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Iterate over all that an update writes, with names for messages."""
        yield str(self), self.array
        for name, array in self.states.items():
            yield f"the {name} of {self}", array

    def restore(self, step: int, states: Mapping[str, Array]) -> None:
        """Take over a count and states, and drop the present ones."""
        self.step, self.states, self.pins = step, {}, pin(self.array)
        self.keep(states)

    def keep(self, states: Mapping[str, Array]) -> None:
        """Take new states, and keep them in place."""
        self.states.update(states)
        for array in states.values():
            self.pins += pin(array)

    def new_states(self, rule: Rule) -> dict[str, Array]:
        """Allocate what a rule needs and the tensor does not have."""
        value = self.group.entries[rule.initial] if rule.initial else 0.0
        return {name: self.layout.allocate(self.array, value) for name in rule.states if name not in self.states}


def located(gradient: Array) -> tuple[int, Strides | None]:
    """Return where a gradient in its parameter's storage order lies, and how, unless just as the parameter does."""
    dense = gradient.flags.c_contiguous and gradient.flags.aligned
    return address(gradient), None if dense else Strides.of(gradient)


class Gradients:
    """Gradients that have been checked against their tensors, and held.

    Attributes
    ----------
    addresses : array of int64
        One for each tensor, of the first element in the parameter's storage order; 0 where there is no gradient.
    taking_part : bytes
        One byte for each tensor, 1 where there is a gradient.
    strided : dict
        Index of a tensor -> how its gradient lies, where that is not as the parameter lies.
    """

    def __init__(self, plan: Plan, given: Sequence[Any]) -> None:
        self.arrays = list(given)
        if len(self.arrays) != len(plan.tensors):
            raise ValueError(f"there are {len(plan.tensors)} parameters and {len(self.arrays)} gradients")
        self.strided: dict[int, Strides] = {}
        self.addresses, unread, none = plan.reader.read(self.arrays)
        if unread:
            for i in np.flatnonzero(self.addresses == UNREAD).tolist():
                self._check(i, plan.tensors[i], plan.extents)
        self.taking_part = (self.addresses != 0).tobytes() if none else plan.everyone

    def _check(self, i: int, tensor: Tensor, extents: Extents) -> None:
        what = f"the gradient of {tensor}"
        given = self.arrays[i]
        if isinstance(given, np.generic):  # what a reduction over all axes returns: the gradient of a 0-d parameter
            given = np.asarray(given)
        gradient = self.arrays[i] = check_like(what, given, "its parameter", tensor.dtype, tensor.shape)
        if (other := extents.overlapping(gradient)) is not None:
            raise ValueError(f"{what} overlaps {other} in memory: pass a .copy() of it")
        self.addresses[i], strides = located(tensor.layout.in_storage_order(gradient))
        if strides is not None:
            self.strided[i] = strides

    def keep_in_place(self) -> None:
        """Hinder all resizing, also that without a check of references, for as long as this lives."""
        self.pins = [reference for array in self.arrays if array is not None for reference in pin(array)]

    def release(self) -> None:
        """Hold the arrays no longer, so that the next ones can have their memory; there is no step with these again."""
        self.arrays = []


class Located(Protocol):
    """What a step needs to know of gradients: what is said of `Gradients`, by whomever they were read."""

    addresses: npt.NDArray[np.int64]
    taking_part: bytes
    strided: dict[int, Strides]


@dataclass(eq=False)
class Cohort:
    """The tensors of a step that share a hyper row: one group, one count of steps."""

    group: GroupOptions
    rule: Rule
    step: int
    first: bool  # whether their states begin with this step
    tensors: list[Tensor] = field(default_factory=list)
    new_states: list[dict[str, Array]] = field(default_factory=list)


class Threads(Protocol):
    """Whose threads run a launch: those of the pool, which the module `pool` is, or those of another library."""

    def get_num_threads(self) -> int:
        """Return how many threads a launch may use."""

    def runner(self, kernel: Any, job_address: int) -> Callable[[int, int, int], None]:
        """Bind a kernel to a job: a function of (chunks, chunks a claim, threads)."""


class Launch:
    """One kernel over tensors of one rule, one format and these sizes: the tables in memory, and the call."""

    def __init__(self, rule: Rule, format: str, sizes: Sequence[int], threads: Threads = pool) -> None:
        self.rule = rule
        self.threads = threads
        self.itemsize = np.dtype(ELEMENTS[format][0]).itemsize
        self.sizes = sizes
        self.strided: dict[int, Strides] | None
        self.elements = sum(sizes)
        self.table = np.zeros(len(sizes), TENSOR)
        self.addresses = self.table.view(np.int64).reshape(len(sizes), -1)  # of parameter, gradient and states
        self.gradients = self.addresses[:, 1]
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
            self.workers = min(self.workers, max(pool.cores(), self.threads.get_num_threads()))
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

    def __call__(self, threads: int) -> None:
        """Run the kernel over all chunks, on so many threads at most."""
        self.run(self.count, self.grain, threads if threads < self.workers else self.workers)


class Plan:
    """All launches of an optimizer, and what changes between two of its steps.

    Not for several threads at once: whoever calls holds `lock`.

    Parameters
    ----------
    groups : sequence of GroupOptions
    tensors : sequence of Tensor
        Those of all groups, in order.
    choose : callable
        ``choose(options)``, the rule that a group's options ask for; raises ValueError where they contradict.
    threads : Threads
        Whose threads do the work.
    """

    def __init__(
        self,
        groups: Sequence[GroupOptions],
        tensors: Sequence[Tensor],
        choose: Callable[[Options], Rule],
        threads: Threads = pool,
    ) -> None:
        self.groups = groups
        self.tensors = tensors
        self.choose = choose
        self.threads = threads
        self.counted = groups  # whose steps this plan counts
        self.scale = 1.0  # of all gradients in the next step
        self.rules: list[Rule] = []
        self.launches: list[Launch] = []
        self.indices: list[npt.NDArray[np.int64]] = []  # of each launch's tensors
        self.cohorts: list[Cohort] = []
        self.hypers = np.zeros((0, HYPERS))
        self.formed: bytes | None = None  # who takes part in the cohorts
        self.loaded: Located | None = None
        self.versions: list[int] = []  # of the groups, when they were asked last
        self.looked = False  # whether the groups have been asked for the next step
        self.steady = False  # whether the hyper rows can stay as they are
        self.stepping = False
        self._extents: Extents | None = None
        self._reader: Reader | None = None
        self.validate()
        self.lock = threading.RLock()  # a schedule may ask for the state
        _plans.add(self)

    def validate(self) -> None:
        """Check what concerns groups as a whole and all tensors together."""
        for group in self.groups:
            self.choose(group.entries)
        if (pair := self.extents.first_overlap()) is not None:
            raise ValueError(
                f"{pair[0]} and {pair[1]} overlap in memory: pass each once, and a copy of what they share"
            )

    @property
    def extents(self) -> Extents:
        """Where parameters and states lie, so that gradients can be kept off them."""
        if self._extents is None:
            self._extents = Extents(named for tensor in self.tensors for named in tensor.arrays())
        return self._extents

    @property
    def everyone(self) -> bytes:
        """What `Gradients.taking_part` is where there is a gradient for every tensor."""
        return b"\1" * len(self.tensors)

    @property
    def reader(self) -> Reader:
        """What reads the addresses of gradients that lie as their parameters do, and off all that an update writes."""
        if self._reader is None:
            expected = [tensor.array if tensor.layout.forwards else None for tensor in self.tensors]
            self._reader = Reader(expected, self.extents.starts, self.extents.reaches)
        return self._reader

    def step(self, gradients: Located) -> None:
        """Update every tensor that has a gradient; whatever can fail comes before the first launch."""
        self.refuse_inside_step()
        self.stepping = True
        try:
            self._step(gradients, self.threads.get_num_threads())
        finally:
            self.stepping = False

    def refuse_inside_step(self) -> None:
        """Raise where a schedule, or a signal's handler, would change tables that a step is about to use."""
        if self.stepping:
            raise RuntimeError(
                "this optimizer is inside a step: neither step nor load or add parameters before it ends"
            )

    def _step(self, gradients: Located, threads: int) -> None:
        if not self.looked:
            self.look()
        self.looked = False
        if gradients is not self.loaded:
            self._load(gradients)
        if not self.steady:
            self._write_rows()
        # Counted first: an interrupt is delivered when a launch returns, and must find the books in order.
        for cohort in self.cohorts:
            cohort.step += 1
            if cohort.first:
                self._keep_states(cohort)
        for group in self.counted:
            group.count()
        for launch in self.launches:
            launch(threads)

    def can_repeat(self) -> bool:
        """Say whether the next step can differ from the last one in nothing but where the gradients lie."""
        return self.steady and len(self.launches) == 1 and not self.launches[0].strided

    def count(self, steps: int) -> None:
        """Count steps that somebody else has taken, as repetitions of the last one."""
        for cohort in self.cohorts:
            cohort.step += steps
        for group in self.counted:
            group.count(steps)
        self.loaded = None  # other addresses than these stand in the tables

    def settle(self) -> None:
        """Write the cohorts' counts back to the tensors."""
        for cohort in self.cohorts:
            for tensor in cohort.tensors:
                tensor.step = cohort.step

    def reset(self) -> None:
        """Forget the tables, after somebody else has written the tensors' counts and states."""
        self.rules = []
        self.cohorts = []
        self._forget_extents()
        self.versions = []

    def look(self) -> None:
        """Ask the groups for the next step's options, where these may have changed, and choose their rules."""
        versions = []
        scheduled = False
        for group in self.groups:
            versions.append(group.version)
            scheduled = scheduled or bool(group.schedules)
        if scheduled or versions != self.versions:
            self._choose_rules()
            self.versions = versions  # of before: what a schedule assigns counts for the next step
            self.steady = False
        self.looked = True

    def _choose_rules(self) -> None:
        for group in self.groups:
            group.ask_schedules()
        rules = [self.choose(group.upcoming) for group in self.groups]
        if rules != self.rules:
            self.loaded = self.formed = None
            self.launches = self._split(rules)
            self.rules = rules

    def _split(self, rules: Sequence[Rule]) -> list[Launch]:
        kinds: dict[tuple[str, str], list[int]] = {}
        for i, tensor in enumerate(self.tensors):
            kinds.setdefault((rules[tensor.group.index].name, tensor.format), []).append(i)
        launches = []
        for (name, format), indices in kinds.items():
            members = [self.tensors[i] for i in indices]
            launch = Launch(RULES[name], format, [tensor.array.size for tensor in members], self.threads)
            launch.table["param"] = [tensor.address for tensor in members]
            launches.append(launch)
            for row, tensor in enumerate(members):
                tensor.launch, tensor.row = launch, row
        self.indices = [np.array(indices) for indices in kinds.values()]
        return launches

    def _load(self, gradients: Located) -> None:
        self.loaded = None  # until all is written
        if gradients.taking_part != self.formed:
            self.formed = None
            self._form_cohorts(gradients.taking_part)
            self.formed = gradients.taking_part
        for launch, indices in zip(self.launches, self.indices, strict=True):
            strided = {}
            if gradients.strided:
                found = ((row, gradients.strided.get(index)) for row, index in enumerate(indices.tolist()))
                strided = {row: strides for row, strides in found if strides is not None}
            alone = len(self.launches) == 1  # the usual case; an index would take a copy
            launch.write_gradients(gradients.addresses if alone else gradients.addresses[indices], strided)
        self.loaded = gradients

    def _form_cohorts(self, taking_part: bytes) -> None:
        self.settle()
        cohorts: dict[tuple[int, int, bool], Cohort] = {}
        for tensor, part in zip(self.tensors, taking_part, strict=True):
            if not part:
                continue
            group, rule = tensor.group, self.rules[tensor.group.index]
            new_states = tensor.new_states(rule)
            key = group.index, tensor.step, bool(new_states)
            if key not in cohorts:
                cohorts[key] = Cohort(group, rule, tensor.step, bool(new_states))
            cohorts[key].tensors.append(tensor)
            cohorts[key].new_states.append(new_states)
        self.cohorts = list(cohorts.values())
        self.steady = False
        self.hypers = np.zeros((len(self.cohorts), HYPERS))
        for launch in self.launches:
            launch.write_hypers(self.hypers)
        for number, cohort in enumerate(self.cohorts):
            for tensor, new_states in zip(cohort.tensors, cohort.new_states, strict=True):
                row = tensor.launch.table[tensor.row]
                row["hyper"] = number
                states = {**tensor.states, **new_states}
                row["states"][: len(cohort.rule.states)] = [extent(states[name])[0] for name in cohort.rule.states]

    def _write_rows(self) -> None:
        for group in self.groups:
            group.take_upcoming()
        self.steady = True
        for number, cohort in enumerate(self.cohorts):
            options = cohort.group.upcoming
            gain, *row = cohort.rule.row(options, cohort.step + 1, cohort.first)
            self.hypers[number, : len(row) + 1] = gain * self.scale, *row
            self.steady = self.steady and not cohort.first and not cohort.rule.moves(options)

    def _keep_states(self, cohort: Cohort) -> None:
        for tensor, new_states in zip(cohort.tensors, cohort.new_states, strict=True):
            tensor.keep(new_states)
        cohort.first = False
        cohort.new_states = []
        self._forget_extents()

    def _forget_extents(self) -> None:
        self._extents = self._reader = None


_idle: dict[tuple[str, str, int], Launch] = {}  # launches of single updates, kept for the next of their kind
IDLE_LIMIT = 256


def update_once(rule: Rule, p: Any, g: Any, states: Mapping[str, Any], numbers: Row) -> None:
    """Update a single parameter by a rule, on states of the caller's, after checking all of them."""
    threads = pool.get_num_threads()
    single = Single(p, g, states)
    key = rule.name, single.dtype.name, single.size
    launch = _idle.pop(key, None) or Launch(rule, single.dtype.name, [single.size])
    if single.strided != launch.strided:
        launch.cut(single.strided)
    launch.addresses[0, : len(single.addresses)] = single.addresses
    launch.hypers[0, : len(numbers)] = numbers
    launch(threads)
    for array, copy in single.copies:
        array[...] = copy
    _idle[key] = launch
    if len(_idle) > IDLE_LIMIT:
        _idle.pop(next(iter(list(_idle))), None)  # the one that has been idle longest; another thread may be first


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
        gradient = check_like("g", np.asarray(g) if isinstance(g, np.generic) else g, "p", param.dtype, param.shape)
        arrays = {"p": param}
        for name, given in states.items():
            arrays[name], _ = check_dense(name, check_like(name, given, "p", param.dtype, param.shape))
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


_plans: weakref.WeakSet[Plan] = weakref.WeakSet()


def _unlock_in_child() -> None:
    """Free the locks that threads held which a forked child does not have."""
    for plan in _plans:
        plan.lock = threading.RLock()
        plan.stepping = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_in_child)
